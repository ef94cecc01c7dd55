"""The documents: links that resolve, commands and files that exist."""

import dataclasses
import inspect
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from conftest import run_detsd
from determined.cli import cli as det_cli
from determined.cli._declarative_argparse import add_args
from determined.common.constants import MAX_CONTEXT_SIZE
from determined.common.util import yaml_safe_load
from diffusers import StableDiffusionXLPipeline
from layouts import LAYOUTS
from tiny import ROOT, save_tiny_sdxl

from benchmarks import measure
from detsd.__main__ import main
from detsd.app import form, parts, training_runs
from detsd.app.page import MAX_WAITING
from detsd.cli.parser import parser
from detsd.concepts import safe_load
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import LAYOUTS as WRITTEN
from detsd.concepts.usage import PROMPTS, READERS, prompts
from detsd.concepts.writing import write_concepts
from detsd.config import (
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    ModelConfig,
    TrainingConfig,
    load_config,
)
from detsd.config.schema import SchedulerName
from detsd.data.templates import EDITS
from detsd.generate.store import MAX_TAGS
from detsd.models.loading import load_base_model
from detsd.sampling import stock
from detsd.train.report import DIVERGED
from detsd.train.step import LONG_RUN
from detsd.utils import png, progress
from dev import configuration, curves, pictures

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # README's run first
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES += [ROOT / f"{folder}/README.md" for folder in ("demo_model", "benchmarks")]
PAGES += [ROOT / "dev" / "LOG.md"]
FINDINGS = ROOT / "findings" / "README.md"  # its commands run without detsd
EXPERIMENTS = [*ROOT.glob("*_*.yaml"), ROOT / "evaluate.yaml"]


def anchors(page: str) -> set[str]:
    """Return the anchors that a code host gives the headings of a page."""
    titles = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, FINDINGS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_inside_the_repository_resolve(page):
    for file, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" not in file:
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {file}"
            assert not anchor or anchor in anchors(target.read_text()), f"{page.name}: #{anchor}"


def test_every_finding_is_listed_and_answered():
    scripts = {path.name for path in FINDINGS.parent.glob("*_*.sh")}
    answers = (ROOT / "docs" / "interoperability.md").read_text()
    assert set(re.findall(r"\]\((\w+_\w+\.sh)\)", FINDINGS.read_text())) == scripts
    assert set(re.findall(r"findings/(\w+\.sh)", answers)) == scripts
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", answers))
    assert len(named) > 10
    assert named <= set(re.findall(r"^def (test_\w+)", tests, re.M))


def test_every_picture_of_the_documents_is_shown_and_drawn_by_a_command():
    link = re.compile(r"\((?:docs/)?(\w+\.png)\)")
    shown = {name for p in PAGES for name in link.findall(p.read_text(encoding="utf-8"))}
    drawn = set(re.findall(r"^    \"\"\"(\w+\.png): ", inspect.getsource(pictures), re.M))
    drawn |= set(re.findall(r"docs/(\w+\.png)", curves.__doc__))
    assert shown == drawn == {p.name for p in (ROOT / "docs").glob("*.png")}


def test_the_configuration_reference_is_what_the_classes_say():
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert text == configuration.reference(), "run python -m dev.configuration"


def test_settings_that_the_guides_name_exist():
    kinds = (FinetuneConfig, GenerateConfig, EvaluateConfig)
    sections = dict.fromkeys(hint for kind in kinds for hint in get_type_hints(kind).items())
    known = {f"{name}.{f.name}" for name, kind in sections for f in dataclasses.fields(kind)}
    names = "|".join({name for name, _ in sections})
    named = set(re.findall(rf"`((?:{names})\.(?!json|png)\w+)\b", text_of(GUIDES)))
    assert len(named) > 20
    assert named <= known


def text_of(pages: list[Path]) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def commands(text: str) -> list[str]:
    start = r"^(?: {4,}|#.*?: +)"  # a code block of a page, a comment of a configuration
    return re.findall(rf"{start}((?:python -m|torchrun|make) .*?)(?: +#.*)?$", text, re.M)


@pytest.mark.parametrize(
    "path", [*PAGES, *sorted(EXPERIMENTS)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_are_real(path):
    found = commands(path.read_text())
    assert found or path in PAGES
    assert found or path.name != "README.md"
    for line in found:
        words = shlex.split(line.replace("(one GPU)", ""))
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
            continue
        module = words[words.index("-m") + 1]
        if module == "detsd":
            args = parser().parse_args(words[words.index("-m") + 2 :])
            config = getattr(args, "config", None)
            if config and str(config) != "my_concept.yaml":
                kind = GenerateConfig if args.command == "generate" else FinetuneConfig
                load_config(ROOT / config, args.set, kind)
        else:
            file = ROOT / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), line


@pytest.mark.slow
def test_the_commands_of_the_guides_run(tmp_path, monkeypatch):
    """They run in order beside a copy of the files, unchanged except for fewer steps and images.

    Not here: the page, which has its own test, models of the hub, a cluster's IDs, and make.
    """
    for path in ROOT.glob("[!.]*"):
        if path.name not in ("outputs", "det_logos"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "det_logos").mkdir()
    for path in sorted((ROOT / "det_logos").iterdir())[::5]:
        shutil.copy(path, tmp_path / "det_logos")
    monkeypatch.chdir(tmp_path)
    shutil.copy("finetune_demo.yaml", "my_concept.yaml")
    fewer = {
        "finetune": [
            "training.num_sgd_steps=1", "training.num_validation_timesteps=1",
            "training.max_validation_images=1",
            "inference.num_inference_steps=2", "inference.seeds=[0]",
        ],
        "generate": ["grid.num_inference_steps=2"],
        "evaluate": [
            "evaluation.num_inference_steps=2", "evaluation.num_samples=2",
            "evaluation.num_samples_per_prompt=1", "evaluation.num_error_timesteps=5",
            "evaluation.prompts=['{} on the grass', 'a drawing of {}']",
        ],
    }  # fmt: skip

    def short(args):
        keys = [] if "--from" in args else fewer.get(args[0], [])
        return [*args, *(word for key in keys for word in ("--set", key))]

    assert main(short(["finetune", "finetune_demo.yaml"])) == 0  # as make demo does
    ran = []
    for line in dict.fromkeys(commands(text_of(GUIDES))):
        words = shlex.split(line)
        args = words[words.index("detsd") + 1 :] if "detsd" in words else ["make"]
        if args[0] in ("make", "app", "download") or {"finetune_const.yaml", "ID"} & {*args}:
            continue
        args = [str(tmp_path / a) if a.startswith("outputs/") else a for a in args]
        if words[0] == "torchrun":
            done = run_detsd(*short(args), ranks=2)
            assert done.returncode == 0, done.stderr
        else:
            assert main(short(args)) == 0, line
        ran.append(args[0])
    counts = {kind: ran.count(kind) for kind in set(ran)}
    assert counts == {
        "finetune": 8, "generate": 2, "evaluate": 2, "show": 2, "export": 2, "search": 1,
    }  # fmt: skip
    for name in (
        "my_concept",
        "ring-and-dot",
        "glow-style",
        "longer",
        "more",
        "two",
        "in-buckets",
        "det-logo-demo",
    ):
        assert (tmp_path / "outputs" / name / "before_after.png").is_file()
    for page, above in (("README.md", "In your own code:"), ("docs/generating.md", "## In your")):
        snippet = (ROOT / page).read_text().split(above)[1].partition("\n\n")[2]
        program = inspect.cleandoc(snippet.partition("\n\n")[0])
        assert program.count(", guidance_scale=4)") == 1
        names = {}
        exec(program.replace("guidance_scale=4", "guidance_scale=4, num_inference_steps=2"), names)
        assert names["pipe"].concepts == ["det-logo-demo"]


def test_det_commands_are_real(monkeypatch, capsys):
    """Determined's own parser accepts every line that begins with det, and every `det ...`."""
    monkeypatch.chdir(ROOT)  # it opens the named files
    det = det_cli.make_parser()
    add_args(det, det_cli.all_args_description)
    texts = [p.read_text() for p in [*PAGES, *EXPERIMENTS]]
    lines = [c for t in texts for c in re.findall(r"^[# ]*(?:[\w ]+: +)?(det \w.*)$", t, re.M)]
    assert len(lines) > 15

    def arguments(line):
        words = shlex.split(line.partition(" # ")[0])[1:]
        return ["7" if word in ("ID", "EXPERIMENT") else word for word in words]

    for line in lines:
        det.parse_args(arguments(line))
    for mention in {c for t in texts for c in re.findall(r"[`(](det \w[^`)\n]*)[`)]", t)}:
        with pytest.raises(SystemExit) as caught:
            det.parse_args([*arguments(mention), "--help"])
        assert caught.value.code == 0, mention


def test_the_table_of_layouts_is_what_the_tests_write_and_read():
    """`layouts.LAYOUTS` is tested file by file; a format of the table can be written."""
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| layout | is read") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {row[0].partition(", the paper's")[0] for row in rows} == LAYOUTS.keys()
    for name, _, written, large, word in rows:
        _, encoders, by_file = LAYOUTS[name.partition(", the paper's")[0]]
        assert (2 in encoders) == (large != "no") or large == "as ComfyUI's"
        assert (1 not in encoders) == (large == "only")
        assert by_file == (word == "the file's name")
        assert written.strip("`") in (*WRITTEN, "")
    assert sorted(row[2].strip("`") for row in rows if row[2]) == sorted(WRITTEN)


def test_the_table_of_tools_is_what_export_prints():
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| tool | `--format`") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == [tool for tool in PROMPTS if tool != "detsd"]
    one = LearnedConcept("det-logo", "", (torch.ones(2, 768),))
    two = dataclasses.replace(one, embeddings=(torch.ones(2, 768), torch.ones(2, 1280)))
    for tool, formats, _, prompt in rows:
        first, *second = re.findall(r"`(\w+)`", formats)
        assert prompts(one, first)[tool] == re.search("`([^`]*)`", prompt)[1]
        if "no XL" in formats:
            assert not any(tool in tools for tools in READERS[2].values())
        else:
            assert prompts(two, (second or [first])[0])[tool] == re.search("`([^`]*)`", prompt)[1]


def test_a_concept_for_xl_is_loaded_as_the_readme_says(tmp_path, monkeypatch):
    """Stock diffusers loads it: both text encoders' states are detsd's."""
    monkeypatch.chdir(tmp_path)
    model = save_tiny_sdxl(tmp_path / "sdxl")
    concept = LearnedConcept("det-logo", "", (torch.randn(2, 16), torch.randn(2, 24)))
    write_concepts([concept], tmp_path)
    assert main(["export", "learned_embeddings_dict.pt", "--format", "diffusers"]) == 0
    text = (ROOT / "README.md").read_text()
    block = text[text.index("it takes two calls:\n\n") :].split("\n\n")[1]
    pipe = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    exec(textwrap.dedent(block), {"pipe": pipe})
    ours = load_base_model(ModelConfig(str(model)), torch.device("cpu"))
    ours.vocabulary.add(concept)
    prompt = "a watercolor painting of a det-logo"
    found = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
    assert torch.allclose(found, ours.encode_prompts([prompt]).prompt_embeds, atol=1e-5)


LIMITS = {field.name: field for field in dataclasses.fields(form.ImageSettings)}
WORDS = {"five": 5, "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "fifteen": 15, "once a": 1}
LEARNABLE = json.loads((ROOT / "demo_model" / "vocabulary.json").read_text())
TRAINING = load_config(ROOT / "finetune_demo.yaml").training
(BUNDLED,) = read_concepts(ROOT / "learned_embeddings_dict_demo.pt")
GRID = load_config(ROOT / "generate_grid.yaml", kind=GenerateConfig).grid
IMAGES = math.prod(
    len(v) for v in (GRID.prompts, GRID.negative_prompts, GRID.scheduler_names, GRID.all_seeds,
                     GRID.num_inference_steps, GRID.guidance_scales)
)  # fmt: skip
NUMBERS = [  # a document, a pattern that holds a number, the number in the code
    ("benchmarks/README.md", r"runs of ([\d,]+) steps", LONG_RUN),
    ("benchmarks/README.md", r"best of (\w+) rounds", measure.ROUNDS),
    ("detsd-notebook.yaml", r"([\d.]+) MiB", MAX_CONTEXT_SIZE / 2**20),
    ("docs/configuration.md", r"runs of ([\d,]+) steps", LONG_RUN),
    ("docs/configuration.md", r"images up to ([\d,]+) of them", MAX_TAGS),
    ("docs/configuration.md", r"dreambooth: the (\d+) of", len(EDITS["dreambooth"])),
    ("docs/configuration.md", r"each; 4 to (\d+) \|", len(EDITS["object"])),
    ("docs/curves.md", r"the (\d+) pictures of `det_logos/`", len(os.listdir(ROOT / "det_logos"))),
    ("docs/curves.md", r"varied: (\d+) steps", curves.STEPS),
    ("docs/curves.md", r"steps of batch size (\d+)", TRAINING.train_batch_size),
    ("docs/curves.md", r"learning rate of ([\de-]+),", curves.PLAIN["training.learning_rate"]),
    ("docs/curves.md", r"each of (\d+) edited prompts", len(EDITS["object"])),
    ("docs/curves.md", r"guidance scale of ([\d.]+)\.", curves.GUIDANCE),
    ("docs/evaluation.md", r"samples of (\w+) edited prompts", len(EDITS["object"])),
    ("docs/evaluation.md", r"whose (\d+) prompts", len(EDITS["dreambooth"])),
    ("docs/evaluation.md", r"of step (\d+), the best", BUNDLED.steps),
    ("docs/generating.md", r"(\d+) images on two slots", IMAGES),
    ("docs/operations.md", r"more than ([\d,]+) images", MAX_TAGS),
    ("docs/operations.md", r"`val_loss` of (\w+)", DIVERGED),
    ("docs/operations.md", r"every (\w+) seconds", progress.LINE),
    ("docs/operations.md", r"(\d+) MiB", MAX_CONTEXT_SIZE / 2**20),
    ("docs/own-pictures.md", r"gets lost after (\d+)\.", curves.STEPS),
    ("docs/own-pictures.md", r"stops at (\d+): from", TRAINING.num_sgd_steps),
    ("docs/own-pictures.md", r"([\de-]+) is usual for Stable", TrainingConfig.learning_rate),
    ("docs/own-pictures.md", r"`finetune_demo.yaml`: ([\de-]+)\)", TRAINING.learning_rate),
    ("SECURITY.md", r"At most (\d+) MiB", safe_load.MAX_BYTES / 2**20),
    ("SECURITY.md", r"one upload \| (\d+) MB", parts.MAX_UPLOAD / 2**20),
    ("SECURITY.md", r"pictures of a training \| (\d+)", training_runs.MAX_PICTURES),
    ("SECURITY.md", r"of a grid \| (\d+), or", form.MAX_IMAGES),
    ("SECURITY.md", r"of a grid \| \d+, or (\d+)", form.MAX_CELLS),
    ("SECURITY.md", r"steps \| (\d+)", LIMITS["steps"].metadata["high"]),
    ("SECURITY.md", r"of a prompt \| ([\d,]+)", form.MAX_LENGTH),
    ("SECURITY.md", r"waiting requests \| (\d+)", MAX_WAITING),
    ("finetune_search.yaml", r"noise; (\w+) if diverged", DIVERGED),
    ("generate_grid.yaml", r"(\d+) images on two slots", IMAGES),
    ("README.md", r"(\d+) images on two slots", IMAGES),
    ("README.md", r"(\d+) training pictures of", len(os.listdir(ROOT / "det_logos"))),
    ("README.md", r"(\w+) media,", len(LEARNABLE["media"])),
    ("README.md", r"(\w+) backgrounds,", len(LEARNABLE["grounds"])),
]


def test_the_table_of_samplers_is_what_the_code_has():
    text = (ROOT / "docs" / "generating.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| ([^|]+) \|[^|]*\| ([^|]+) \|$", text, re.MULTILINE)
    assert {name: other for name, other, _ in rows} == png.SAMPLERS
    assert [name for name, *_ in rows] == list(stock.SCHEDULERS) == [*get_args(SchedulerName)]
    for name, _, diffusers_name in rows:
        if diffusers_name.startswith("`"):
            assert diffusers_name == f"`{stock.SCHEDULERS[name].__name__}`"
    options = dict(re.findall(r"`(\w+)=\"?([\w+-]+)\"?`", text))
    assert stock.OPTIONS["dpmsolver++-sde-karras"] == {
        key: value == "True" or value for key, value in options.items()
    }


def test_numbers_in_documents_are_those_of_the_code():
    wrong = []
    for name, pattern, value in NUMBERS:
        text = re.sub(r"\s+(?:# )?", " ", (ROOT / name).read_text(encoding="utf-8"))
        found = {n: WORDS.get(n) or float(n.replace(",", "")) for n in re.findall(pattern, text)}
        if set(found.values()) != {value}:
            wrong.append(f"{name}: {pattern} finds {list(found)}, the code has {value}")
    assert wrong == []


def commented(path: Path) -> list[tuple[str, str, str]]:
    """Return an experiment file's commented settings: section.key, value, comment."""
    found, section, key = [], "", ""
    text = path.read_text(encoding="utf-8").split("\nhyperparameters:\n")[1]
    for line in text.splitlines():
        if match := re.match(r"  (\w+):", line):
            section = match[1]
        if match := re.match(r"    (\w+): *(.*?)(?: +# (.*))?$", line):
            key = match[1]
            if match[3]:
                found.append((f"{section}.{key}", match[2], match[3]))
    return found


def literals(hint: Any) -> set[str]:
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*map(literals, get_args(hint)))


def numbers(text: str) -> set[float]:
    return {float(n) for n in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w-])", text)}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.name)
def test_comments_of_settings_agree_with_their_fields(path):
    """A comment's numbers are in the field's help text; lists of choices are complete."""
    kind = {"finetune": FinetuneConfig, "generate": GenerateConfig}.get(
        path.name.partition("_")[0], EvaluateConfig
    )
    sections = get_type_hints(kind)
    for name, value, comment in commented(path):
        section, _, key = name.partition(".")
        (field,) = [f for f in dataclasses.fields(sections[section]) if f.name == key]
        assert numbers(comment) <= numbers(field.metadata["help"]), f"{name}: {comment}"
        choices = literals(get_type_hints(sections[section])[key])
        listed = {*re.split(r", or |, | or ", re.split(r"; |: ", comment)[0])}
        if len(listed & choices) > 1:
            assert {*listed, value.strip("[]")} >= choices, f"{name}: {comment}"


def test_readme_names_every_file_at_the_top():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked if not path.startswith(".")} - {"README.md"}
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 350  # details are in docs/
    assert [name for name in sorted(top) if f"`{name}" not in readme] == []
    rows = re.findall(r"^\| (`detsd/\w.*?) \|", readme, re.M)
    package = [f"detsd/{p.parent.name}/" for p in (ROOT / "detsd").glob("*/__init__.py")]
    package += [f"detsd/{p.name}" for p in (ROOT / "detsd").glob("*.py")]
    assert sorted(re.findall(r"`(.*?)`", " ".join(rows))) == sorted(package)
    assert len(rows) == 13


def test_contributing_names_files_and_names_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:detsd|tests|docs|constraints)/[\w./-]*)`", text)
    assert len(files) > 12
    assert [file for file in files if not (ROOT / file).exists()] == []
    for name, file in re.findall(r"`(\w+)` in `([\w/]+\.py)`", text):
        assert re.search(rf"^(class )?{name}\b", (ROOT / file).read_text(), re.M), name


def test_the_hook_before_a_commit_is_what_make_lint_runs():
    hooks = yaml_safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    ran = [line.split()[:2] for line in recipe.replace("$(BIN)", ".venv/bin").splitlines()]
    assert [hook["entry"].split()[:2] for hook in hooks] == ran


def test_make_lists_its_commands_and_removes_nothing_that_was_trained():
    text = (ROOT / "Makefile").read_text()
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    make = partial(subprocess.run, cwd=ROOT, env=outside, capture_output=True, text=True)
    said = make(["make"], check=True).stdout
    listed = re.findall(r"^  make (\w+) - \w", said, re.M)
    assert listed == re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    cleaned = make(["make", "-n", "clean"])
    assert cleaned.stdout == "rm -rf .venv\n"


def test_shells_take_commands_in_documents_as_they_stand():
    """zsh looks for files by what is in square brackets outside quotes, and refuses if none fit."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    one = r"(?:--set|--config)\s+((?:\"[^\"]*\"|'[^']*'|[^\s`\"'])+)"
    given = [word for text in texts for word in re.findall(one, text)]
    assert len(given) > 20
    for word in given:
        assert not set("[]{}*?") & set(re.sub(r"\"[^\"]*\"|'[^']*'", "", word)), word


def test_help_says_what_the_commands_do(capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["finetune", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--warm-start" in said
    assert "\n\nLearn new concepts from images.\n" in said


def test_every_option_of_a_command_has_a_help_text_and_every_command_a_description():
    commands = parser().commands
    assert len(commands) == 8
    for name, command in commands.items():
        assert command.description, name
        assert all(action.help for action in command._actions), name
