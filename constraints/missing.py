"""List what the image of a task lacks of requirements.txt, and the versions to install.

    python3 constraints/missing.py FOLDER

For startup-hook.sh. Writes FOLDER/missing.txt, empty if nothing is missing, and
FOLDER/constraints.txt. Imports nothing that could itself be missing: Determined needs `packaging`.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
KEPT = ("torch", "numpy")  # built for each other and for the machine: the image's own stay
# The cluster installs the harness that belongs to it, and nothing else may talk to its master.
LEFT_ALONE = "determined"


def installed(name: str) -> str | None:
    """The version of the distribution `name`, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements in `path`, comments left out."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def tested_versions() -> Path:
    """The constraints that belong to this Python and the torch that is there."""
    torch = installed("torch")
    older = sys.version_info < (3, 11) or (torch and Version(torch) < Version("2.6"))
    return ROOT / "constraints" / ("determined-0.38-image.txt" if older else "tested.txt")


def main(folder: Path) -> None:
    """Write the two files into `folder`."""
    missing = []
    for wanted in read_requirements(ROOT / "requirements.txt"):
        found = installed(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            if found and wanted.name == LEFT_ALONE:
                print(f"startup-hook.sh: this cluster has determined {found}, tested is {wanted}")
            else:
                missing.append(wanted)
    unfit = {wanted.name for wanted in missing}
    # pip leaves alone what is installed and fits, unless something new needs a later one of it.
    kept = [name for name in KEPT if name not in unfit] + [LEFT_ALONE]
    pins = [f"{name}=={installed(name)}" for name in kept if installed(name)]
    for tested in read_requirements(tested_versions()):
        if tested.name in unfit or installed(tested.name) is None:
            pins.append(str(tested))
    (folder / "missing.txt").write_text("".join(f"{wanted}\n" for wanted in missing))
    (folder / "constraints.txt").write_text("".join(f"{pin}\n" for pin in pins))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
