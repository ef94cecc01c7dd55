"""Run the notebook from top to bottom and keep its outputs: python -m dev.notebook

It uses the current bundled model and concept. Pictures are kept as JPEG, so that the file stays
small; code hosts show them.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "textual_inversion.ipynb"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in a new kernel, in `folder`; their outputs stay in `notebook`."""
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": folder}},
    ).execute()


def make_small(notebook: nbformat.NotebookNode) -> None:
    """Store pictures as JPEG, and remove traces of the machine."""
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        data = output.get("data", {})
        if "image/png" in data:
            picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png"))))
            file = io.BytesIO()
            picture.convert("RGB").save(file, "JPEG", quality=80)
            data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}


def main() -> None:
    """Run the notebook and write it back."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook, NOTEBOOK.parent)
    make_small(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
