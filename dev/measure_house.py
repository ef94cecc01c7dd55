"""The size and the texts of the package as a table: python -m dev.measure_house [FOLDER]

FOLDER is a checkout, by default the current folder. It may predate the packages, when the page was
`detsd/app*.py`, `studio.py` and `learning.py`. Below the table are the places above a limit.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_FILE, MAX_CLASS, MAX_FUNCTION = 400, 250, 80  # lines
FLAT_PAGE = {"studio.py", "learning.py"}
OPENING = r"(What|Whether|Of|Where)\b"
QUESTION = r"(What|Whether|Of|Where|Which|Who|Whose|Whom|How|Why|When)\b"

FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)
Documented = (ast.Module, ast.ClassDef, *FunctionNode)


class Part(NamedTuple):
    """A file, class or function, and its length in lines, decorators included."""

    lines: int
    kind: str
    name: str


class Docstring(NamedTuple):
    """A docstring, its length in lines, and whether its owner is public."""

    text: str
    lines: int
    public: bool


def sources(folder: Path, package: str) -> list[Path]:
    return sorted((folder / package).rglob("*.py"))


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def parts(folder: Path, package: str) -> Iterator[Part]:
    """Yield every file, class and function of a package, nested ones too."""
    for path in sources(folder, package):
        name = path.relative_to(folder).as_posix()
        yield Part(line_count(path), "file", name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, *FunctionNode)):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                yield Part(node.end_lineno - first + 1, kind, f"{name}: {node.name}")


def limits(folder: Path) -> list[str]:
    """Name each file, class and function of detsd and demo_model that is above its limit."""
    most = {"file": MAX_FILE, "class": MAX_CLASS, "function": MAX_FUNCTION}
    return [
        f"{part.name} has {part.lines} lines; a {part.kind} has at most {most[part.kind]}"
        for package in ("detsd", "demo_model")
        for part in parts(folder, package)
        if part.lines > most[part.kind]
    ]


def is_page(path: Path, package: Path) -> bool:
    first = path.relative_to(package).parts[0]
    return first.startswith("app") or first in FLAT_PAGE


def docstrings(path: Path) -> Iterator[Docstring]:
    """Yield the docstrings of a module, its classes and functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            place = node.body[0]
            public = not getattr(node, "name", "").startswith("_")
            yield Docstring(text, place.end_lineno - place.lineno + 1, public)


def comment_lines(path: Path) -> int:
    """Count the lines that hold only a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return sum(t.type == tokenize.COMMENT and t.line.lstrip().startswith("#") for t in tokens)


def layout_rows(folder: Path) -> int:
    """Count the rows of README's layout table that name something within detsd/."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    return len(re.findall(r"^\| `detsd/\w", readme, re.MULTILINE))


def measure(folder: Path) -> dict[str, str]:
    """Return the figures of a checkout, in the order of the table."""
    package = folder / "detsd"
    paths = sources(folder, "detsd")
    lines = {path: line_count(path) for path in paths}
    page = sum(n for path, n in lines.items() if is_page(path, package))
    total = sum(lines.values())
    figures = {
        "rows of README's layout table of the package": str(layout_rows(folder)),
        "files": str(len(paths)),
        "lines": str(total),
        "lines of the core (without the page)": str(total - page),
        "lines of the page (detsd/app)": str(page),
    }
    for package in ("detsd", "demo_model"):
        for kind in ("file", "class", "function"):
            longest = max(p for p in parts(folder, package) if p.kind == kind)
            figures[f"longest {kind} in {package}/"] = f"{longest.lines} ({longest.name})"
    found = [docstring for path in paths for docstring in docstrings(path)]
    opening = sum(bool(re.match(OPENING, d.text)) for d in found)
    public = [d for d in found if d.public]
    asking = sum(bool(re.match(QUESTION, d.text)) for d in public)
    comments = sum(map(comment_lines, paths))
    return figures | {
        "docstrings that open with What, Whether, Of, Where": share(opening, len(found)),
        "public ones that open so, or with another question word": share(asking, len(public)),
        "lines of docstrings": share(sum(d.lines for d in found), total),
        "lines that are a comment alone, of all lines": share(comments, total),
    }


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.1%})"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    print("| | |\n|---|---|")
    for name, value in measure(folder).items():
        print(f"| {name} | {value} |")
    print("", *limits(folder), sep="\n")


if __name__ == "__main__":
    main()
