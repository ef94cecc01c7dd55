"""`pip install .` installs only the package, its requirements, and the command `detsd`."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution

import pytest
from packaging.requirements import Requirement
from tiny import ROOT

import detsd
from constraints.missing import read_requirements


@pytest.mark.slow
def test_pip_install(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    others = ("demo_model", "det_logos", "tests", "benchmarks", "dev", "docs", "findings")
    for name in ("detsd", *others):
        # Other files at the top must not be installed; the package's files all must be.
        keep = shutil.ignore_patterns("__pycache__", *([] if name == "detsd" else ["*.*"]))
        shutil.copytree(ROOT / name, source / name, ignore=keep)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "-q", "--target", target, source], check=True, timeout=240)
    assert {p.name for p in target.iterdir()} == {
        "bin", "detsd", f"detsd-{detsd.__version__}.dist-info",
    }  # fmt: skip

    def files(package):
        found = (p.relative_to(package) for p in package.rglob("*") if p.is_file())
        return {str(p) for p in found if "__pycache__" not in p.parts}

    assert files(target / "detsd") == files(ROOT / "detsd")
    found = Distribution.at(next(target.glob("*.dist-info")))
    wanted = {str(r) for r in read_requirements(ROOT / "requirements.txt")}
    needs = [Requirement(text) for text in found.requires]
    assert {str(r) for r in needs if not r.marker} == wanted
    (extra,) = [r for r in needs if r.marker]
    page = (ROOT / "requirements-app.txt").read_text().splitlines()
    assert f"{extra.name}{extra.specifier}" in [
        str(Requirement(r)) for r in page if r[0] not in "#-"
    ]

    def call(*args, **env):
        return subprocess.run(
            [target / "bin" / "detsd", *args], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(target)} | env, timeout=120,
        )  # fmt: skip

    said = call()
    assert said.returncode == 0
    assert re.search(r"^usage: detsd .*\n\nTeach ", said.stdout, re.M | re.S)
    assert call("--version").stdout == f"detsd {detsd.__version__}\n"
    away = call("app")
    assert away.returncode == 2
    assert "the bundled model is not installed with the package" in away.stderr
    # As the shell asks after register-python-argcomplete: the possible words.
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_TYPE": "9"}
    call(**asked, COMP_LINE="detsd gen", COMP_POINT="9")
    assert answer.read_text().split() == ["generate"]
