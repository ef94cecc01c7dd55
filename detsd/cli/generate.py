"""python -m detsd generate: a grid of images, or one image made again."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detsd.cli.common import (
    PROG,
    configuration,
    images_done,
    print_commands,
    print_stored,
    stopped,
    tensorboard,
)
from detsd.config import GenerateConfig, load_config, override, parse_config
from detsd.generate.preflight import check_generate
from detsd.runs import task
from detsd.runs.folder import vectors_of_image
from detsd.utils import progress
from detsd.utils.errors import UserError, printable
from detsd.utils.foreign import read_foreign
from detsd.utils.paths import BUNDLED
from detsd.utils.png import read_record

# The sections of settings that may say where the parts of an image are now.
PLACES = ("model.", "concepts.", "output.")


def generate(args: argparse.Namespace) -> int:
    """Make a grid of images, or one image again; return the exit code."""
    config, folder = configuration(args, GenerateConfig, check_generate, grid_config)
    with progress.importing_libraries():
        from detsd.generate.grid import Grid, compare
        from detsd.runs.open import open_run
    with open_run(folder) as run:
        grid = Grid(config, run)
        done = grid.generate()
        if not done:
            return stopped(run, images_done(grid))
        if task.on_cluster():
            print_stored(run, f"all {len(grid.jobs)} images" if grid.jobs[1:] else "the image")
            return 0
        if args.source and all(given.startswith(PLACES) for given in args.set or []):
            if grid.store:  # on the chief
                path = grid.store.path(0)
                run.print(f"{path}: {compare(path, args.source)}")
        elif grid.store:
            run.print(f"images: {grid.store.folder}, contact sheets: {run.folder / 'sheets'}")
            again = [PROG, "generate", "--from", grid.store.path(0)]
            print_commands({"make one of them again": again, "view them all": tensorboard(folder)})
    return 0


def grid_config(args: argparse.Namespace) -> tuple[GenerateConfig, str, str]:
    """Return a grid's configuration off cluster, or one image's, as `configuration` takes it."""
    if args.config:
        config = load_config(args.config, args.set, GenerateConfig)
        return config, str(args.config), args.config.stem
    if not args.source and not args.set:
        raise UserError(
            f"no experiment file was given and no cluster was found; run e.g. {PROG} generate "
            "generate_demo.yaml"
        )
    source, name, hyperparameters = "the command line", "grid", {}
    if args.source:
        source, folder = str(args.source), args.source.absolute().parent
        run = f"{folder.parent.name}-" if folder.name in ("images", "samples") else ""
        name = f"from-{run}{args.source.stem}"
        hyperparameters = remake_hyperparameters(args.source, args.set or [])
    override(hyperparameters, args.set or [], source)
    return parse_config(hyperparameters, source, GenerateConfig), source, name


def foreign_hyperparameters(path: Path, given: Sequence[str]) -> dict[str, Any]:
    """Return the `hyperparameters` for an image of A1111 or ComfyUI; print what is not reproduced.

    Args:
        given: those of `--set`, with the files of model and concepts: an image has only names.
    """
    foreign = read_foreign(path)
    if foreign is None:
        raise UserError(
            f"{path} holds no settings of detsd, A1111 or ComfyUI; give the original file that "
            "one of them wrote (image editors and chat programs strip the settings; contact "
            "sheets, samples of step 0 and those of a training on a cluster have none)"
        )
    progress.say_once(f"{path} was made with {foreign.tool}")
    key = "model.pretrained_model_name_or_path"
    model = next((x.partition("=")[2] for x in given if x.startswith(f"{key}=")), BUNDLED)
    there = printable(foreign.model.replace("\\", "/").rpartition("/")[2][:200])
    there = there or "an unknown checkpoint"
    if there.lower() not in (Path(model).stem.lower(), Path(model).name.lower()):
        name = "" if model != BUNDLED else f"; choose another with --set {key}=FILE"
        progress.say_once(f"  its model was {there}, this image will use {model}{name}")
    for note in foreign.notes:
        progress.say_once(f"  {note}")
    own = {"pretrained_model_name_or_path": BUNDLED, "clip_skip": foreign.clip_skip}
    return {"model": own, "grid": foreign.grid}


def remake_hyperparameters(path: Path, given: Sequence[str] = ()) -> dict[str, Any]:
    """Return the `hyperparameters` that make an image again from the settings inside it."""
    if not os.path.isfile(path):
        there = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {there}; name an image made with detsd, A1111 or ComfyUI")
    record = read_record(path)
    if record is None:
        return foreign_hyperparameters(path, given)
    concepts = record["concepts"].values()
    sources = dict.fromkeys(vectors_of_image(c["source"], path) for c in concepts)
    uuids = [s.removeprefix("uuid:") for s in sources if s.startswith("uuid:")]
    return {
        "model": record["model"],
        "concepts": {"files": [s for s in sources if not s.startswith("uuid:")], "uuids": uuids},
        "grid": {
            "prompts": record["prompt"],
            "negative_prompts": record["negative_prompt"],
            "scheduler_names": record["scheduler_name"],
            "num_inference_steps": record["num_inference_steps"],
            "guidance_scales": record["guidance_scale"],
            "guidance_interval": record.get("guidance_interval"),  # not in older files
            "spacing": record.get("spacing"),
            "prompt_weights": record.get("prompt_weights", False) is not False,
            "seeds": record["seed"],
            "width": record["width"],
            "height": record["height"],
        },
        # The original batch size: another one may run other kernels and round differently.
        "output": {"batch_size": record.get("batch_size"), "fill_batches": True},
    }
