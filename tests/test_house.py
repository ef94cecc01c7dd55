"""The laws of the package: who may import whom, and which files load no large library."""

import ast
import itertools
import re
from pathlib import Path

import pytest
from tiny import ROOT

from dev.measure_house import docstrings, limits, sources

PACKAGE = ROOT / "detsd"
# What each package may import of the others; everything may import utils.
MAY_IMPORT = {
    "utils": set(),
    "config": set(),
    "runs": set(),
    "concepts": {"runs"},
    "models": {"concepts", "config"},
    "data": {"models", "concepts", "config"},
    "sampling": {"models", "concepts", "config"},
    "generate": {"sampling", "models", "concepts", "runs", "config"},
    "evaluate": {"generate", "sampling", "data", "models", "concepts", "runs", "config"},
    "train": {"evaluate", "sampling", "data", "models", "concepts", "runs", "config"},
    "app": {"train", "sampling", "data", "concepts", "runs", "config"},
    "cli": {
        "app", "train", "evaluate", "generate", "sampling", "data", "models", "concepts", "runs",
        "config",
    },
}  # fmt: skip
HEAVY = {"torch", "diffusers", "transformers", "determined"}
LIGHT = (
    "__init__.py", "__main__.py", "config/*.py", "utils/errors.py", "utils/paths.py",
    "utils/progress.py", "runs/folder.py", "runs/task.py", "concepts/source.py",
    "models/support.py", "data/folder.py", "*/preflight.py", "cli/*.py",
)  # fmt: skip


def imported(path: Path, late: bool) -> set[str]:
    """Return the modules that a file imports at its top or, with `late`, anywhere."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if late else itertools.chain(tree.body, *map(ast.walk, tops(tree)))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(tree: ast.Module) -> list[ast.stmt]:
    """Return the compound statements that run when a module is imported."""
    return [n for n in tree.body if isinstance(n, ast.If | ast.Try | ast.With)]


def files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def test_there_are_twelve_packages():
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()} == set(MAY_IMPORT)
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package):
    allowed = MAY_IMPORT[package] | {package, "utils", "__version__"}
    wrong = []
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for name in imported(path, late=True):
            top, _, rest = name.partition(".")
            if top == "detsd" and rest.split(".")[0] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_light_files_load_no_large_library():
    """Neither do the modules that they import at their top, directly or indirectly."""
    by_module = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in files()}
    light = {p for pattern in LIGHT for p in PACKAGE.glob(pattern)}
    assert len(light) > 20
    wrong, seen = [], set()
    while light:
        path = light.pop()
        seen.add(path)
        for name in imported(path, late=False):
            if name.split(".")[0] in HEAVY:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            for module in (name, name.rpartition(".")[0]):
                if (found := by_module.get(module)) and found not in seen:
                    light.add(found)
    assert not wrong


def test_packages_are_imported_without_their_content():
    """Importing a light file must cost nothing: only config, all light, re-exports names."""
    for path in PACKAGE.glob("*/__init__.py"):
        assert path.parent.name == "config" or not path.read_text(), path


def test_files_classes_and_functions_are_short():
    assert limits(ROOT) == []


def test_docstrings_open_with_a_verb_or_a_noun():
    """A question word does not name what a thing does or is."""
    question = re.compile(r"(What|Whether|Of|Where|Why|How|Which|Who)\b")
    wrong = [
        f"{path.relative_to(ROOT)}: {found.text.splitlines()[0]}"
        for package in ("detsd", "demo_model")
        for path in sources(ROOT, package)
        for found in docstrings(path)
        if question.match(found.text)
    ]
    assert not wrong
