# PYTHON_ARGCOMPLETE_OK
"""The one door: python -m detsd finetune | generate | evaluate ...

On a cluster the configuration and the latest checkpoint come from the trial; off cluster from the
experiment file named on the command line. Mistakes end with one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from detsd import __version__
from detsd.concepts.source import LAYOUTS, is_uuid, locate, source_problems, split_source
from detsd.config import (
    Config,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    ModelConfig,
    check_experiment,
    load_config,
    override,
    parse_config,
)
from detsd.evaluate.preflight import check_evaluate
from detsd.generate.preflight import check_generate
from detsd.models.support import model_problems
from detsd.runs import folder, task
from detsd.runs.folder import check_grid_folder, check_output, latest_checkpoint, read_metadata
from detsd.runs.task import cluster_experiment, cluster_hyperparameters
from detsd.train.preflight import check_finetune, check_resume
from detsd.utils import progress
from detsd.utils.errors import DISK_ERRORS, Diverged, UserError, one_line
from detsd.utils.paths import BUNDLED, DEMO_CONCEPT, DEMO_IMAGES, DEMO_WORD, resolve
from detsd.utils.png import remake_hyperparameters

# As it was called: the command that installing brings, or the module.
DOOR = "detsd" if Path(sys.argv[0]).stem == "detsd" else "python -m detsd"


def configuration(
    args: argparse.Namespace, kind: type[Config], check: Callable[..., None], named: Callable
) -> tuple[Config, Path]:
    """What a command is to do, checked, and in which folder off cluster.

    Args:
        named: off cluster, of `args`: the configuration, what it comes from, what it is called.

    Raises:
        UserError: every problem found.
    """
    if task.on_cluster():
        source = "the experiment's configuration"
        check_experiment(cluster_experiment(), source, kind)
        config = parse_config(cluster_hyperparameters(), source, kind)
        check(config, source)
        return config, Path()
    config, source, name = named(args)
    folder = args.output_dir or Path("outputs") / name
    beside = None if source.endswith(".png") else Path(source).parent  # an image names none
    check(config, source, beside)
    check_output(folder)
    if kind is not FinetuneConfig:
        check_grid_folder(folder)
    return config, folder


def stopped(run) -> int:
    """Say that a run off cluster was interrupted; its exit code, as a shell gives it."""
    run.say("stopped; the same command goes on from here")
    return 128 + (run.stop_signal or 0)


def finetune(args: argparse.Namespace) -> int:
    """Fine-tune concepts; exit code."""
    on_cluster = task.on_cluster()
    config, folder = configuration(args, FinetuneConfig, check_finetune, finetuning_of)
    if not on_cluster:
        latest = check_resume(config, folder, args.warm_start)
        facts = read_metadata(latest) if latest else {"steps_completed": 0}
        settled = facts.get("settled") and facts["config"]["training"]["stop_on_plateau"]
        if settled and settled == config.training.stop_on_plateau:
            if progress.is_first():
                progress.say(
                    f"complete: {best_of(folder)}; val_loss had settled at step "
                    f"{facts['steps_completed']}, and --set training.stop_on_plateau=null goes on"
                )
            return 0
        if facts["steps_completed"] >= config.training.num_sgd_steps:
            if progress.is_first():
                progress.say(f"complete: {best_of(folder)}")
            return 0
    with progress.libraries():
        from detsd.runs.open import open_run
        from detsd.train.trainer import Trainer
        from detsd.utils.memory import is_out_of_memory
    with open_run(folder, args.warm_start, accelerate=True) as run:
        try:
            done = Trainer(config, run).train()
        except Diverged as end:
            if not on_cluster:
                raise
            run.say(f"ending here: {end}")  # and success: a restarted trial would diverge again
            return 0
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = one_line(error)
            raise UserError(
                f"this training does not fit into the memory of {run.ranks.device} ({reason}); "
                "lower training.train_batch_size and raise training.gradient_accumulation_steps by "
                "as much, or set training.gradient_checkpointing to true"
            ) from None
        if on_cluster:
            return 0
        if not done:
            return stopped(run)
        if run.is_chief:
            say_what_next(config, folder)
    return 0


def finetuning_of(args: argparse.Namespace) -> tuple[FinetuneConfig, str, str]:
    """A fine-tuning off cluster, as `configuration` takes it."""
    if args.config is None:
        raise UserError(
            f"no experiment file given and no cluster found; write e.g. {DOOR} finetune "
            "finetune_demo.yaml"
        )
    return load_config(args.config, args.set), str(args.config), args.config.stem


def best_of(folder: Path) -> str:
    """Where the best rows of a fine-tuning lie, and what tells that they are."""
    best = read_metadata(latest_checkpoint(folder)).get("best")
    if not best:  # of an earlier version, or without a validation
        return f"the concept lies in {locate(folder)}"
    step = best.pop("steps_completed")
    figures = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
    return f"the concept lies in {locate(folder)}: step {step}, the best ({figures})"


def say_what_next(config: FinetuneConfig, folder: Path) -> None:
    """Where a finished fine-tuning lies, and the commands that one wants then, to be pasted."""
    progress.say(best_of(folder))
    if (folder / "before_after.png").is_file():
        progress.say(f"before and after: {folder / 'before_after.png'}")
        progress.say(f"time-lapse: {folder / 'time_lapse.gif'} and time_lapse.png")
    i, words = config.inference, config.concepts.concept_strs
    model, revision = config.model.pretrained_model_name_or_path, config.model.revision
    settings = {
        "model.pretrained_model_name_or_path": model,
        **({"model.revision": revision} if revision else {}),
        "concepts.files": folder,
        "grid.prompts": i.inference_prompts or [f"a photo of a {word}" for word in words],
        "grid.scheduler_names": i.scheduler_name,
        "grid.num_inference_steps": i.num_inference_steps,
        "grid.guidance_scales": [2, 4, 7],
        "grid.num_seeds": 3,
    }
    pairs = [
        f"{key}={json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v}"
        for key, v in settings.items()
    ]
    other = [] if model == BUNDLED else ["--model", model]
    grid = [word for pair in pairs for word in ("--set", pair)]
    say_commands(
        {
            "look at what was learned": [DOOR, "show", folder],
            "play with it in a browser": [DOOR, "app", *other, "--concepts", folder],
            "make a grid of images": [
                DOOR, "generate", *grid, "--output-dir", folder.with_name(f"{folder.name}-grid"),
            ],
            "take it to another program": [DOOR, "export", folder, "--format", "a1111"],
            "see how it went": tensorboard(folder),
        }
    )  # fmt: skip


def say_commands(commands: dict[str, list]) -> None:
    """Commands under what they are for."""
    progress.say("next:")
    for what, words in commands.items():
        door, *rest = map(str, words)
        progress.say(f"  {what}:\n    {door} {shlex.join(rest)}")


def tensorboard(folder: Path) -> list[str]:
    """The command that shows a run's metrics and images beside those of its neighbours.

    Without the last option TensorBoard shows ten images under a name and drops the others.
    """
    beside = folder.parent if folder.parent.name == "outputs" else folder
    return ["tensorboard", "--logdir", str(beside), "--samples_per_plugin", "images=100"]


def generate(args: argparse.Namespace) -> int:
    """Make a grid of images, or one image again; exit code."""
    config, folder = configuration(args, GenerateConfig, check_generate, grid_of)
    with progress.libraries():
        from detsd.generate.grid import Generator, compare
        from detsd.runs.open import open_run
    with open_run(folder) as run:
        generator = Generator(config, run)
        done = generator.generate()
        if task.on_cluster():
            return 0
        if not done:
            return stopped(run)
        if args.source and not args.set:
            if generator.album:  # who wrote it
                path = generator.album.path(0)
                run.say(f"{path}: {compare(path, args.source)}")
        elif generator.album:
            album = generator.album
            run.say(f"images: {album.folder}, contact sheets: {run.folder / 'sheets'}")
            again = [DOOR, "generate", "--from", album.path(0)]
            say_commands({"make one of them again": again, "see them all": tensorboard(folder)})
    return 0


def grid_of(args: argparse.Namespace) -> tuple[GenerateConfig, str, str]:
    """A grid off cluster, or one image again, as `configuration` takes it."""
    if args.config:
        return (
            load_config(args.config, args.set, GenerateConfig),
            str(args.config),
            args.config.stem,
        )
    if not args.source and not args.set:
        raise UserError(
            f"no experiment file given and no cluster found; write e.g. {DOOR} generate "
            "generate_demo.yaml"
        )
    source, name, hyperparameters = "the command line", "grid", {}
    if args.source:
        source, name = str(args.source), f"from-{args.source.stem}"
        hyperparameters = remake_hyperparameters(args.source)
    override(hyperparameters, args.set or [], source)
    return parse_config(hyperparameters, source, GenerateConfig), source, name


def evaluate(args: argparse.Namespace) -> int:
    """Measure concepts; exit code."""
    config, folder = configuration(args, EvaluateConfig, check_evaluate, evaluation_of)
    with progress.libraries():
        from detsd.evaluate.evaluation import Evaluation
        from detsd.evaluate.report import FIGURES, table
        from detsd.runs.open import open_run
    with open_run(folder) as run:
        evaluation = Evaluation(config, run)
        done = evaluation.evaluate()
        if run.is_chief and done:
            progress.say(table(evaluation.result))
        if task.on_cluster():
            return 0
        if not done:
            return stopped(run)
        run.say(f"all figures: {folder / FIGURES}, drawn: {folder / 'evaluation.png'}")
        run.say(f"samples: {folder / 'samples.png'}, all of them: {folder / 'sheets'}")
    return 0


def evaluation_of(args: argparse.Namespace) -> tuple[EvaluateConfig, str, str]:
    """An evaluation off cluster, as `configuration` takes it."""
    words, file = list(args.sources), None
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        file = Path(words.pop())
    elif not words:
        raise UserError(
            f"nothing to evaluate is named and no cluster found; write e.g. {DOOR} evaluate "
            f"{DEMO_CONCEPT}"
        )
    settings = {
        "concepts.files": [word for word in words if not is_uuid(word)],
        "concepts.uuids": [word for word in words if is_uuid(word)],
        "evaluation.images": args.images and str(args.images),
        "evaluation.lineup": [str(folder) for folder in args.lineup or []],
        "evaluation.all_checkpoints": args.all_checkpoints,
        "evaluator.clip": args.clip,
        "evaluator.dino": args.dino,
    }
    model = {"pretrained_model_name_or_path": args.model} if args.model else {}
    if not file and not model:
        model = learned_on(settings["concepts.files"])
    settings |= {f"model.{key}": value for key, value in model.items()}
    overrides = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items() if value
    ] + (args.set or [])
    if file:
        return load_config(file, overrides, EvaluateConfig), str(file), file.stem
    source, hyperparameters = "the command line", {}
    override(hyperparameters, overrides, source)
    config = parse_config(hyperparameters, source, EvaluateConfig)
    first = Path(split_source(words[0])[0])
    return config, source, f"evaluate-{first.stem if first.is_file() else first.name}"


def learned_on(sources: list[str]) -> dict[str, str | None]:
    """The base model of the first fine-tuning among sources, else the bundled one."""
    for source in sources:
        facts = folder.finetuning_of(split_source(locate(source))[0])
        if facts:
            name = facts["config"]["model"]["pretrained_model_name_or_path"]
            return {"pretrained_model_name_or_path": name, "revision": facts.get("commit")}
    return {"pretrained_model_name_or_path": BUNDLED}


def download(args: argparse.Namespace) -> int:
    """Fetch all that a checkpoint of the cluster stands for; exit code."""
    from detsd.generate.shards import collect

    folder = args.output_dir or Path("outputs") / args.uuid
    count = collect(args.uuid, folder)
    print(f"{folder}: {count} images" if count else f"{folder}")
    return 0


def show(args: argparse.Namespace) -> int:
    """Say what a concept file or checkpoint holds; exit code."""
    locate(args.path)
    with progress.libraries():
        from detsd.evaluate.rows import examine, plot, report

    facts = examine(args.path, args.model)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        print(report(facts))
    if args.plot:
        plot(facts, args.plot)
        print(f"picture: {args.plot}", file=sys.stderr if args.json else sys.stdout)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write concepts in the layout of another tool; exit code."""
    for source in args.sources:
        locate(source)
    with progress.libraries():
        from detsd.concepts.concept import family
        from detsd.concepts.reading import read_concepts
        from detsd.concepts.writing import encode, store
        from detsd.utils.paths import file_name

    concepts = [c for source in args.sources for c in read_concepts(source)]
    folder = args.output or Path("outputs") / "exported" / args.format
    files = encode(concepts, args.format)
    store(files, folder)
    for name in files:
        print(folder / name)
    for c in concepts:
        by_file = file_name(c.name)
        also = "" if by_file == c.name else f" (where the file's name counts: {by_file})"
        rows = "1 vector" if len(c.embeddings) == 1 else f"{len(c.embeddings)} vectors"
        print(f"the word in prompts is {c.name}{also}; {rows} for {family(c.widths)}")
    return 0


def app(args: argparse.Namespace) -> int:
    """Serve the interactive demo until interrupted; exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the demo needs gradio, which is not installed; run pip install -r requirements-app.txt"
        )
    concepts, pictures = args.concepts, {}
    if concepts is None and not args.uuid and args.model == BUNDLED:
        concepts = [resolve(DEMO_CONCEPT)]
        pictures = {DEMO_WORD: DEMO_IMAGES}
    problems = model_problems(ModelConfig(args.model))
    problems += [p for c in concepts or [] for p in source_problems(str(c), "--concepts")]
    if problems:
        raise UserError(problems[0])
    with progress.libraries():
        from detsd.app.page import serve

    serve(args.model, concepts or [], args.uuid or [], args.host, args.port, pictures)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per job."""
    door = argparse.ArgumentParser(
        prog=DOOR, description="Teach Stable Diffusion a new word (Textual Inversion)."
    )
    door.add_argument("--version", action="version", version=f"detsd {__version__}")
    door.set_defaults(run=None)
    commands = door.add_subparsers(dest="command", metavar="COMMAND")
    tune = commands.add_parser("finetune", help="learn new concepts from images")
    tune.add_argument("config", nargs="?", type=Path, help="experiment file (off cluster)")
    tune.add_argument("--set", action="append", metavar="KEY=VALUE", help="override, repeatable")
    tune.add_argument("--output-dir", type=Path, help="default: outputs/<config's name>")
    tune.add_argument(
        "--warm-start", type=Path, metavar="SOURCE", help="take the learned rows of that concept"
    )
    tune.set_defaults(run=finetune)
    grid = commands.add_parser("generate", help="make a grid of images from prompts")
    which = grid.add_mutually_exclusive_group()
    which.add_argument("config", nargs="?", type=Path, help="experiment file (off cluster)")
    which.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="IMAGE",
        help="make this PNG file again from the settings inside it",
    )
    grid.add_argument("--set", action="append", metavar="KEY=VALUE", help="override, repeatable")
    grid.add_argument("--output-dir", type=Path, help="default: outputs/<config's name>")
    grid.set_defaults(run=generate)
    judge = commands.add_parser("evaluate", help="measure how good concepts are")
    judge.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="concept file, checkpoint, run folder or uuid, or SOURCE=WORD; or an experiment file",
    )
    judge.add_argument(
        "--images", type=Path, metavar="DIR", help="training images; default: those of the run"
    )
    judge.add_argument(
        "--lineup",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="pictures of look-alikes, a folder each",
    )
    judge.add_argument(
        "--all-checkpoints", action="store_true", help="of a run folder all, not the best alone"
    )
    judge.add_argument("--model", help="base model; default: the one that a source was learned on")
    judge.add_argument(
        "--clip", metavar="MODEL", help="what measures; default: the base model's own"
    )
    judge.add_argument("--dino", metavar="MODEL", help="what measures besides")
    judge.add_argument("--set", action="append", metavar="KEY=VALUE", help="override, repeatable")
    judge.add_argument("--output-dir", type=Path, help="default: outputs/evaluate-<source's name>")
    judge.set_defaults(run=evaluate)
    fetch = commands.add_parser("download", help="fetch all images of a grid from the cluster")
    fetch.add_argument("uuid", help="its newest checkpoint (det e list-checkpoints)")
    fetch.add_argument("--output-dir", type=Path, help="default: outputs/UUID")
    fetch.set_defaults(run=download)
    look = commands.add_parser("show", help="what a concept file, checkpoint or run folder holds")
    what = "concept file, checkpoint or run folder"
    look.add_argument("path", type=Path, metavar="SOURCE", help=what)
    look.add_argument("--model", help="base model to compare with; default: the one it fits")
    look.add_argument("--json", action="store_true", help="for programs")
    look.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the rows' lengths and nearest words, too"
    )
    look.set_defaults(run=show)
    out = commands.add_parser("export", help="write concepts for another tool")
    out.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="file, checkpoint or run folder, or SOURCE=WORD",
    )
    out.add_argument("--format", required=True, choices=LAYOUTS)
    out.add_argument(
        "--output", type=Path, metavar="DIR", help="default: outputs/exported/<format>"
    )
    out.set_defaults(run=export)
    page = commands.add_parser("app", help="the interactive demo, a page for the browser")
    page.add_argument("--model", default=BUNDLED, help="diffusers folder or hub model")
    page.add_argument(
        "--concepts", nargs="*", metavar="SOURCE", help="concept files, checkpoint or run folders"
    )
    page.add_argument("--uuid", action="append", help="a Determined checkpoint, repeatable")
    page.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from elsewhere")
    page.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    page.set_defaults(run=app)
    return door


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # somebody's own stream
            stream.reconfigure(errors="replace")  # as in a terminal that knows only ASCII
    door = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks how to complete a line
        import argcomplete

        argcomplete.autocomplete(door)
    args = door.parse_args(argv)
    if args.run is None:
        door.print_help()
        return 0
    handler = progress.LogHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except UserError as error:
        return complain(str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return complain(
            f"{error.filename or 'the output folder'} cannot be used ({error.strerror}); mend that "
            "and run the same command again, what is stored is untouched"
        )


def complain(sentence: str) -> int:
    """Say what is wrong, once: where rank 0 fails too, its launcher ends the others meanwhile."""
    if int(os.environ.get("RANK", 0)) > 0:
        time.sleep(3)
    if "DET_ALLOCATION_ID" in os.environ:
        # In one line, which `log_policies` of the experiment files match and the master repeats.
        first, *rest = sentence.split("\n  ")
        sentence = f"{first} {'; '.join(rest)}".strip()
    print(f"detsd: {sentence}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
