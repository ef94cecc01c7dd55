"""In a trial: the real harness against a stand-in master."""

import pytest
import torch
import yaml
from standin import Master

from detsd.formats import read_concepts


@pytest.mark.slow
def test_a_trial_paused_resumed_restarted_and_followed(experiment, tmp_path):
    given = yaml.safe_load(experiment().read_text())["hyperparameters"]

    def run(master, **options):
        process = master.run(given, **options)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        return said

    def rows(master, step):
        return read_concepts(master.store(master.checkpoints()[step]))[0].embeddings

    with Master(tmp_path) as master:
        master.preempt.set()  # paused at once: one step, a checkpoint, a clean exit
        run(master)
        assert list(master.checkpoints()) == [1]
        master.preempt.clear()
        assert "resuming after step 1" in run(master, latest=master.checkpoints()[1])
        assert list(master.checkpoints()) == [1, 4, 8]
        assert sorted(master.metrics("training")) == [2, 4, 6, 8]
        validation = master.metrics("validation")
        assert sorted(validation) == [4, 8]
        assert validation[8]["val_gap"] > 0
        progress = [b["progress"] for p, b in master.told if p.endswith("/progress")]
        assert progress[-1] == 1.0
        stored = {p.name for p in master.store(master.checkpoints()[8]).rglob("*")}
        assert {
            "learned_embeddings_dict.pt", "blob-thing.safetensors", "metadata.json",
                "before_after.png", "time_lapse.gif", "step-00000000-001.png",
        } <= stored  # fmt: skip
        assert list((tmp_path / "storage").rglob("events.out.tfevents.*"))
        learned = rows(master, 8)

        count = len(master.told)
        run(master, latest=master.checkpoints()[8])  # a finished run restarted: nothing more
        assert not [p for p, _ in master.told[count:] if p.endswith("metrics")]

        given["training"]["learning_rate"] = 1e-9
        said = run(master, latest=master.checkpoints()[8], trial=8)
        assert "starting from the rows of" in said
        # The new, tiny rate: learned rows all but unmoved, from step 0.
        assert master.metrics("training")[2]["learning_rate"] == 1e-9
        assert torch.allclose(rows(master, 8), learned, atol=1e-6)

    with Master(tmp_path / "undisturbed") as master:
        master.folder.mkdir()
        given["training"]["learning_rate"] = 0.01
        run(master)
        assert torch.equal(rows(master, 8), learned)
