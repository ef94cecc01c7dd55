"""Deferred imports: packages that nothing uses are not run until they are needed."""

import gc
import json
import re
import subprocess
import sys
import threading

import pytest
from tiny import ROOT

from detsd.utils import imports

# Runs in a new process, since this one's imports stay. Prints the names of all modules run by the
# end of a command or, for a fine-tuning, at its first step.
SCRIPT = """
import json, sys
from detsd.__main__ import main
from detsd.utils import progress

def tell():
    print(json.dumps([n for n, m in sys.modules.items() if "_loader" not in getattr(m, "__dict__", ())]))
    sys.stdout.flush()

if sys.argv[1] == "finetune":
    with progress.importing_libraries():
        from detsd.train.step import TrainStep
    step = TrainStep.__call__
    TrainStep.__call__ = lambda self, *args: (step(self, *args), tell())[0]
code = main(sys.argv[1:])
if sys.argv[1] != "finetune":
    tell()
sys.exit(code)
"""  # noqa: E501
UNUSED = {
    "boto3", "diffusers.models.autoencoders.vq_model", "diffusers.models.transformers",
    "diffusers.models.unets", "gradio", "matplotlib", "pandas", "scipy.integrate", "scipy.stats",
    "sklearn", "transformers.models", "transformers.models.bert",
}  # fmt: skip
SHOWN_WITHOUT = {"accelerate", "diffusers", "matplotlib", "scipy", "tensorboard", "torch._dynamo"}
FINETUNING = (
    "finetune", ROOT / "finetune_demo.yaml", "--set", "training.num_sgd_steps=1", "--set",
    "training.max_validation_images=1", "--set", "inference.inference_prompts=[]", "--set",
    "concepts.img_dirs=[examples/ring_and_dot]",
)  # fmt: skip


def imported(*words) -> set[str]:
    """Run a command in a new process; return the modules that it has run."""
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(next(line for line in done.stdout.splitlines() if line[:2] == '["')))


def test_concepts_are_shown_without_the_libraries_of_models():
    found = imported("show", "learned_embeddings_dict_demo.pt")
    assert "torch" in found
    assert sorted(found & (SHOWN_WITHOUT | UNUSED)) == []


@pytest.mark.slow
def test_a_first_step_is_made_without_what_it_does_not_use(tmp_path):
    found = imported(*FINETUNING, "--output-dir", tmp_path / "out")
    assert {"torch", "diffusers.models.unets.unet_2d_condition", "accelerate"} <= found
    assert sorted(found & UNUSED) == []


def test_what_is_deferred_was_tried_with_the_tested_versions():
    text = (ROOT / "constraints" / "tested.txt").read_text()
    for library, (tried, packages) in imports.DEFERRED.items():
        pinned = re.search(rf"(?m)^{library}==(\d+\.\d+)", text)[1]
        assert pinned == tried, f"try deferring {packages} with {pinned}"


@pytest.fixture
def deferred(tmp_path, monkeypatch):
    """Write a package `zoo`; return a function that imports from it while it is deferred."""
    for name, text in {
        "__init__.py": "from zoo.lion import ROAR\nfrom zoo import bird\nRUNS = ROAR * 2\n",
        "lion.py": "ROAR = 3\n",
        "bird.py": "from zoo import lion\nSONG = lion.ROAR + 1\n",
    }.items():
        (tmp_path / "zoo").mkdir(exist_ok=True)
        (tmp_path / "zoo" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(imports.DEFERRED, "zoo", ("1.2", ("zoo",)))
    monkeypatch.setattr(imports, "version", lambda name: "1.2.3")
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "zoo"]:
        del sys.modules[name]


def test_a_deferred_package_runs_when_it_is_asked_for_a_name(deferred):
    with imports.only_what_is_used():
        from zoo.lion import ROAR
    assert ROAR == 3
    assert {n for n in sys.modules if n.startswith("zoo")} == {"zoo", "zoo.lion"}
    import zoo

    found = []
    threads = [threading.Thread(target=lambda: found.append(zoo.RUNS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [6] * 8
    assert zoo.bird.SONG == 4
    assert zoo.__file__.endswith("__init__.py")
    with pytest.raises(AttributeError, match="zoo.*fish"):
        _ = zoo.fish


def test_a_deferred_package_may_put_another_in_its_place(deferred, tmp_path):
    text = "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(FISH=5)\n"
    (tmp_path / "zoo" / "__init__.py").write_text(text)
    with imports.only_what_is_used():
        import zoo.lion
        from zoo import FISH
    assert FISH == 5
    assert zoo.FISH == 5


def test_another_version_is_imported_as_it_is(deferred, monkeypatch):
    monkeypatch.setattr(imports, "version", lambda name: "1.3.0")
    with imports.only_what_is_used():
        import zoo.lion  # noqa: F401
    assert "zoo.bird" in sys.modules


def test_the_collector_goes_on_after_the_imports():
    finders = list(sys.meta_path)
    with imports.only_what_is_used():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert sys.meta_path == finders
