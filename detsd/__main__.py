"""The one door: python -m detsd finetune | generate ...

On a cluster the configuration and the latest checkpoint come from the trial; off cluster from the
experiment file named on the command line. Mistakes end with one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from pathlib import Path

from detsd.errors import DISK_ERRORS, Diverged, UserError
from detsd.sources import LAYOUTS


def cluster_config(kind: type):
    """The trial's configuration, checked.

    Raises:
        UserError: every problem found.
    """
    from detsd import cluster
    from detsd.config import check_experiment, parse_config

    source = "the experiment's configuration"
    check_experiment(cluster.cluster_experiment(), source, kind)
    return parse_config(cluster.cluster_hyperparameters(), source, kind)


def finetune(args: argparse.Namespace) -> int:
    """Fine-tune concepts; exit code."""
    from detsd import cluster, sources
    from detsd.config import FinetuneConfig, load_config

    on_cluster = cluster.on_cluster()
    if on_cluster:
        config = cluster_config(FinetuneConfig)
        folder = Path()
    else:
        if args.config is None:
            raise UserError(
                "no experiment file given and no cluster found; write e.g. "
                "python -m detsd finetune finetune_demo.yaml"
            )
        config = load_config(args.config, args.set)
        folder = args.output_dir or Path("outputs") / Path(args.config).stem
        if args.warm_start:
            sources.locate(args.warm_start)
    from detsd import trainer  # the libraries take seconds: a mistake above is told at once

    with cluster.open_run(folder, args.warm_start, accelerate=True) as run:
        if not on_cluster:
            trainer.refuse_changes(config, run)
            if (
                run.latest
                and run.latest_is_own
                and cluster.read_metadata(run.latest).get("complete")
            ):
                run.say(f"complete: the concept lies in {run.latest}")
                return 0
        try:
            done = trainer.Trainer(config, run).train()
        except Diverged as end:
            if not on_cluster:
                raise
            run.say(f"ending here: {end}")  # and success: a restarted trial would diverge again
            return 0
        if on_cluster:
            return 0
        if not done:
            run.say("stopped; the same command goes on from here")
            return 128 + (run.stop_signal or 0)
        steps = config.training.num_sgd_steps
        run.say(f"learned concept: {run.folder / 'checkpoints' / f'step-{steps:08d}'}")
        if (run.folder / "before_after.png").is_file():
            run.say(f"before and after: {run.folder / 'before_after.png'}")
            run.say(f"time-lapse: {run.folder / 'time_lapse.gif'} and time_lapse.png")
    return 0


def generate(args: argparse.Namespace) -> int:
    """Make a grid of images, or one image again; exit code."""
    from detsd import cluster
    from detsd.config import GenerateConfig, load_config, override, parse_config
    from detsd.generator import Generator, compare, remake_hyperparameters

    on_cluster = cluster.on_cluster()
    if on_cluster:
        config = cluster_config(GenerateConfig)
        folder = Path()
    elif args.source:
        hyperparameters = remake_hyperparameters(args.source)
        override(hyperparameters, args.set or [], str(args.source))
        config = parse_config(hyperparameters, str(args.source), GenerateConfig)
        folder = args.output_dir or Path("outputs") / f"from-{args.source.stem}"
    elif args.config:
        config = load_config(args.config, args.set, GenerateConfig)
        folder = args.output_dir or Path("outputs") / Path(args.config).stem
    else:
        raise UserError(
            "no experiment file given and no cluster found; write e.g. "
            "python -m detsd generate generate_demo.yaml"
        )
    with cluster.open_run(folder) as run:
        generator = Generator(config, run)
        done = generator.generate()
        if on_cluster:
            return 0
        if not done:
            run.say("stopped; the same command goes on from here")
            return 128 + (run.stop_signal or 0)
        if args.source and not args.set:
            if run.is_chief:  # who wrote it
                run.say(f"{generator.path(0)}: {compare(generator.path(0), args.source)}")
        else:
            run.say(f"images: {generator.folder}, contact sheets: {run.folder / 'sheets'}")
    return 0


def show(args: argparse.Namespace) -> int:
    """Say what a concept file or checkpoint holds; exit code."""
    from detsd.show import describe

    print(describe(args.path, args.model))
    return 0


def export(args: argparse.Namespace) -> int:
    """Write concepts in the layout of another tool; exit code."""
    from detsd.formats import encode, family, file_name, read_concepts, store

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
    from detsd.app import serve
    from detsd.models import resolve

    concepts = args.concepts
    if concepts is None and not args.uuid and args.model == "demo_model":
        concepts = [resolve("learned_embeddings_dict_demo.pt")]
    serve(args.model, concepts or [], args.uuid or [], args.host, args.port)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per job."""
    door = argparse.ArgumentParser(prog="python -m detsd", description="Textual Inversion")
    commands = door.add_subparsers(dest="command", required=True)
    tune = commands.add_parser("finetune", help="learn new concepts from images")
    tune.add_argument("config", nargs="?", help="experiment file (off cluster)")
    tune.add_argument("--set", action="append", metavar="KEY=VALUE", help="override, repeatable")
    tune.add_argument("--output-dir", type=Path, help="default: outputs/<config's name>")
    tune.add_argument(
        "--warm-start", type=Path, metavar="SOURCE", help="take the learned rows of that concept"
    )
    tune.set_defaults(run=finetune)
    grid = commands.add_parser("generate", help="make a grid of images from prompts")
    which = grid.add_mutually_exclusive_group()
    which.add_argument("config", nargs="?", help="experiment file (off cluster)")
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
    look = commands.add_parser("show", help="what a concept file, checkpoint or run folder holds")
    what = "concept file, checkpoint or run folder"
    look.add_argument("path", type=Path, metavar="SOURCE", help=what)
    look.add_argument("--model", help="base model to compare with; default: the one it fits")
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
    page.add_argument("--model", default="demo_model", help="diffusers folder or hub model")
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
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    from diffusers.utils.logging import disable_progress_bar  # late: --help need not wait for it

    disable_progress_bar()
    try:
        return args.run(args)
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
