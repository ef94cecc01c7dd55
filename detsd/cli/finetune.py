"""python -m detsd finetune: fine-tune concepts."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detsd.cli.common import (
    PROG,
    cluster_commands,
    configuration,
    print_commands,
    stopped,
    tensorboard,
)
from detsd.concepts.source import ConceptSource
from detsd.config import FinetuneConfig, load_config, read_experiment
from detsd.config.yaml_text import as_yaml
from detsd.data.templates import PLAIN
from detsd.runs import task
from detsd.runs.folder import RunFolder, read_metadata
from detsd.train.preflight import check_finetune
from detsd.train.resume import check_resume
from detsd.utils import progress
from detsd.utils.errors import Diverged, UserError, one_line
from detsd.utils.paths import BUNDLED

LAYOUT_OF_A1111 = {1: "a1111", 2: "sdxl"}  # by the number of text encoders
Resolution = Callable[[str], tuple[int, int] | None]  # of the images of a prompt


def finetune(args: argparse.Namespace) -> int:
    """Fine-tune concepts; return the exit code."""
    on_cluster = task.on_cluster()
    config, folder = configuration(args, FinetuneConfig, check_finetune, finetune_config)
    start = args.warm_start
    if not on_cluster:
        check_apart(folder, config.concepts.img_dirs)
        start = start or source_checkpoint(args.config)
        latest = check_resume(config, folder, start)
        if latest and (line := completed(config, folder, latest)):
            progress.say_once(line)
            return 0
    with progress.importing_libraries():
        from detsd.runs.open import open_run
        from detsd.train.trainer import Trainer
        from detsd.utils.memory import is_out_of_memory
    with open_run(folder, start, accelerate=True) as run:
        try:
            trainer = Trainer(config, run)
            done = trainer.train()
        except Diverged as end:
            if not on_cluster:
                raise
            run.print(f"ending here: {end}")  # a success: a restarted trial would diverge again
            return 0
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = one_line(error)
            raise UserError(
                f"this training does not fit into the memory of {run.ranks.device} ({reason}); "
                "lower training.train_batch_size and raise training.gradient_accumulation_steps by "
                "the same factor, or set training.gradient_checkpointing to true"
            ) from None
        if not done:
            steps = f"step {trainer.state.steps_completed} of {config.training.num_sgd_steps}"
            return stopped(run, steps)
        if run.is_chief and on_cluster:
            progress.say(trainer.best_line)
            uuid = trainer.best_uuid
            print_next_steps_on_cluster(config, uuid, trainer.model.vocabulary.resolution)
        elif run.is_chief:
            vocabulary = trainer.model.vocabulary
            layout = LAYOUT_OF_A1111[len(vocabulary.text_encoders)]
            print_next_steps(config, folder, layout, vocabulary.resolution)
    return 0


def finetune_config(args: argparse.Namespace) -> tuple[FinetuneConfig, str, str]:
    """Return a fine-tuning's configuration off cluster, in the form `configuration` takes."""
    if args.config is None:
        raise UserError(
            f"no experiment file was given and no cluster was found; run e.g. {PROG} finetune "
            "finetune_demo.yaml"
        )
    return load_config(args.config, args.set), str(args.config), args.config.stem


def source_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint that an experiment file starts from, as `--warm-start` takes it."""
    searcher = read_experiment(path).get("searcher") or {}
    if searcher.get("source_trial_id") is not None:
        raise UserError(
            f"{path} has searcher.source_trial_id, which works only on a cluster; name a "
            "checkpoint of that trial in searcher.source_checkpoint_uuid or with --warm-start"
        )
    uuid = searcher.get("source_checkpoint_uuid")
    return Path(f"uuid:{uuid}") if uuid else None


def completed(config: FinetuneConfig, folder: Path, latest: Path) -> str:
    """Return a sentence if a run is complete with its latest checkpoint; "" if it is not."""
    facts, patience = read_metadata(latest), config.training.stop_on_plateau
    before = facts.get("config", {}).get("training", {}).get("stop_on_plateau")
    why = ""
    if facts.get("settled") and patience and patience == before:
        why = (
            f"; it ended at step {facts['steps_completed']} because val_loss had levelled off; "
            "--set training.stop_on_plateau=null continues it"
        )
    elif facts["steps_completed"] < config.training.num_sgd_steps:
        return ""
    return f"complete: {best_checkpoint_line(folder)}{why}"


def check_apart(folder: Path, img_dirs: list[str]) -> None:
    """Refuse to write a run's pictures into a folder of training images: they would become some."""
    for k, images in enumerate(img_dirs):
        if folder.exists() and os.path.samefile(folder, images):
            raise UserError(
                f"--output-dir {folder} is the folder of concepts.img_dirs[{k}]: the pictures of "
                "the run would become training images; name another folder"
            )


def best_checkpoint_line(folder: Path) -> str:
    """Return a line that names the file of the best vectors, with their metrics."""
    metadata, file = read_metadata(RunFolder(folder).latest()), ConceptSource(folder).file
    best, several = metadata.get("best"), len(metadata.get("concepts", [])) > 1
    where = f"the {'concepts are' if several else 'concept is'} in {file}"
    if not best:  # from an earlier version, or without a validation
        return where
    if file.parent not in (folder, RunFolder(folder).checkpoint(best["steps_completed"])):
        return where  # the best was deleted
    step = best.pop("steps_completed")
    figures = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
    return f"{where}: step {step}, the best ({figures})"


def print_next_steps(
    config: FinetuneConfig, folder: Path, layout: str, resolution: Resolution
) -> None:
    """Print where a finished fine-tuning is, and the next commands, ready to paste."""
    progress.say(best_checkpoint_line(folder))
    if (folder / "before_after.png").is_file():
        progress.say(f"before and after: {folder / 'before_after.png'}")
        progress.say(f"time-lapse: {folder / 'time_lapse.gif'} and time_lapse.png")
    model = config.model.pretrained_model_name_or_path
    other = [] if model == BUNDLED else ["--model", model]
    other += ["--clip-skip", config.model.clip_skip] if config.model.clip_skip else []
    other += ["--vae", config.model.vae] if config.model.vae else []
    settings = grid_settings(config, {"concepts.files": as_yaml(str(folder))}, resolution)
    settings["grid.num_seeds"] = 3
    grid = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    print_commands(
        {
            "inspect what was learned": [PROG, "show", folder],
            "try it in a browser": [PROG, "app", *other, "--concepts", folder],
            "make a grid of images": [
                PROG, "generate", *grid, "--output-dir", beside(folder, "-grid"),
            ],
            "export it to another program": [PROG, "export", folder, "--format", layout],
            "view its metrics and images": tensorboard(folder),
        }
    )  # fmt: skip


def beside(folder: Path, ending: str) -> Path:
    """Return a folder beside another one, named after it, although `.` and `..` are no names."""
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return named.parent / f"{named.name or 'root'}{ending}"


def print_next_steps_on_cluster(config: FinetuneConfig, uuid: str, resolution: Resolution) -> None:
    """Print the next commands after a trial, with its best checkpoint, ready to paste."""
    concepts = {"concepts.files": "[]", "concepts.uuids": json.dumps([uuid])}
    # The file's spacing suits its own steps, and must not stay if the samples had none.
    settings = {"grid.spacing": "null"} | grid_settings(config, concepts, resolution)
    grid = [
        word
        for key, value in settings.items()
        for word in ("--config", f"hyperparameters.{key}={value}")
    ]
    print_commands(
        {"make a grid of images": ["det", "e", "create", "generate_demo.yaml", ".", *grid]}
        | cluster_commands(uuid)
    )


def grid_settings(
    config: FinetuneConfig, concepts: dict[str, Any], resolution: Resolution
) -> dict[str, Any]:
    """Return the settings of a grid that shows what was learned, as YAML, by key.

    All its images have the shape of the first prompt's concept.
    """
    i, c = config.inference, config.concepts
    named = zip(c.concept_strs, c.learnable_properties, strict=True)
    prompts = i.inference_prompts or [PLAIN[kind].format(word) for word, kind in named]
    width, height = resolution(prompts[0]) or (None, None)
    settings = {
        "model.pretrained_model_name_or_path": as_yaml(config.model.pretrained_model_name_or_path),
        "model.revision": config.model.revision and as_yaml(config.model.revision),
        "model.clip_skip": config.model.clip_skip,
        "model.vae": config.model.vae and as_yaml(config.model.vae),
        **concepts,
        "grid.prompts": json.dumps(prompts, ensure_ascii=False),
        "grid.scheduler_names": i.scheduler_name,
        "grid.num_inference_steps": i.num_inference_steps,
        "grid.guidance_scales": json.dumps([2, 4, 7]),
        "grid.guidance_interval": i.guidance_interval,
        "grid.spacing": i.spacing,
        "grid.width": width,
        "grid.height": height,
        "grid.negative_prompts": json.dumps([i.negative_prompt]) if i.negative_prompt else None,
        "grid.prompt_weights": None if i.prompt_weights else "false",
    }
    return {key: value for key, value in settings.items() if value}  # the others have defaults
