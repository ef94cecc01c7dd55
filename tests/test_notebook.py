"""The notebook as committed, and run from top to bottom in a real kernel."""

import nbformat
import pytest
from determined.common.util import yaml_safe_load
from tiny import ROOT

from detsd.utils.png import read_record
from dev.notebook import NOTEBOOK, execute, make_small


def test_committed_as_run_once_from_top_to_bottom_with_small_pictures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [kind for cell in code for o in cell.outputs for kind in o.get("data", {})]
    assert kinds.count("image/jpeg") == 4
    assert "image/png" not in kinds
    assert NOTEBOOK.stat().st_size < 500_000
    assert "/home/" not in NOTEBOOK.read_text()
    assert max(len(cell.source.splitlines()) for cell in code) <= 16
    assert any(cell.source.startswith("uuids = []") for cell in code)


@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """It runs in a new folder, so that its files do not mix with a user's, and in fewer steps."""
    for name in ("learned_embeddings_dict_demo.pt", "det_logos"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.source = cell.source.replace("num_inference_steps=25,", "num_inference_steps=5,")
    execute(notebook, tmp_path)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
    text = "".join(o.get("text", "") for o in outputs if o.get("name") == "stdout")
    assert "det-logo-demo: 11 vectors, initialized from 'brain logo, sharp lines" in text
    assert "Steps: 5, Sampler: Euler a, CFG scale: 4, Seed: 0" in text
    saved = sorted((tmp_path / "outputs" / "notebook").glob("*.png"))
    assert sorted(read_record(path)["seed"] for path in saved) == [0, 1, 2, 3]
    assert "note:" not in text
    make_small(notebook)
    assert [o for o in outputs if "image/jpeg" in o.get("data", {})] == pictures
    # Only the cells' own output: no warnings, no loading bars.
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []


def test_its_configuration_is_one_of_a_notebook():
    config = yaml_safe_load((ROOT / "detsd-notebook.yaml").read_text())
    known = {"description", "resources", "environment", "idle_timeout", "notebook_idle_type"}
    assert set(config) <= known
    assert config["resources"] == {"slots": 1}
    assert config["environment"]["environment_variables"] == [
        "HF_AUTH_TOKEN=YOUR_HF_AUTH_TOKEN_HERE"
    ]
