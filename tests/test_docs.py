"""What the documents say: links that resolve, commands that exist, files that are named."""

import re
import shlex
import subprocess

import pytest
from tiny import ROOT

from detsd.__main__ import parser

PAGES = [ROOT / name for name in ("README.md", "demo_model/README.md", "dev/LOG.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_inside_the_repository_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands(text: str) -> list[str]:
    return re.findall(r"^ *(?:#.*?: +)?((?:python -m|torchrun|make) .*?)(?: +#.*)?$", text, re.M)


@pytest.mark.parametrize("name", ["README.md", *sorted(p.name for p in ROOT.glob("*_*.yaml"))])
def test_commands_are_real(name):
    found = commands((ROOT / name).read_text())
    assert found
    for line in found:
        words = shlex.split(line.replace("(one GPU)", ""))
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
            continue
        module = words[words.index("-m") + 1]
        if module == "detsd":
            args = parser().parse_args(words[words.index("-m") + 2 :])
            assert args.config in (None, "my_concept.yaml") or (ROOT / args.config).is_file()
        else:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), line


def test_readme_names_every_file_at_the_top():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked if not path.startswith(".")} - {"README.md"}
    readme = (ROOT / "README.md").read_text()
    assert [name for name in sorted(top) if name not in readme] == []


def test_help_says_what_the_commands_do(capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["finetune", "--help"])
    assert caught.value.code == 0
    assert "--warm-start" in capsys.readouterr().out
