"""The command line: one subcommand per job."""

from __future__ import annotations

import argparse
from pathlib import Path

from detsd import __version__
from detsd.cli.app import app
from detsd.cli.common import PROG
from detsd.cli.concepts import download, export, show
from detsd.cli.evaluate import evaluate
from detsd.cli.finetune import finetune
from detsd.cli.generate import generate
from detsd.concepts.source import LAYOUTS
from detsd.utils.paths import BUNDLED


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per job."""
    door = argparse.ArgumentParser(
        prog=PROG, description="Teach Stable Diffusion a new word (Textual Inversion)."
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
