"""Resuming a fine-tuning: the settings that may differ from those it began with.

Paths may differ if the files' contents are the same. This module imports no library that is slow
to load.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from detsd.concepts.source import ConceptSource
from detsd.config import FinetuneConfig, TrainingConfig, differences
from detsd.runs.folder import DICT_FILE, RunFolder, read_metadata
from detsd.utils.errors import UserError
from detsd.utils.paths import content_digest, resolve
from detsd.utils.plurals import counted

# Settings that may always differ: among them image folders, because the images themselves are
# compared once they are read, and the batch, because the samples per step stay the same
# (`resumed_layout`).
FREE = {
    "concepts.img_dirs", "training.stop_on_plateau", "training.metric_report_freq",
    "training.train_batch_size", "training.gradient_accumulation_steps",
    "inference.inference_prompts", "inference.seeds", "inference.img_per_prompt",
}  # fmt: skip


def check_resume(config: FinetuneConfig, folder: Path, warm_start: Path | None) -> Path | None:
    """Return the checkpoint from which a fine-tuning in `folder` resumes, or None.

    Its configuration must be the one it began with, except for `FREE`, more steps, and paths to the
    same contents. If nothing is measured, all of `inference` may differ.
    """
    if warm_start:
        _ = ConceptSource.parse(warm_start).file
    run = RunFolder(folder)
    latest = run.latest()
    facts = read_metadata(latest) if latest else {}
    ours = "best" in facts if latest else run.tensorboard.is_dir()
    if run.best_file.exists() and not ours:
        raise UserError(
            f"--output-dir {folder} holds {DICT_FILE}, which is not from a run and would be "
            "overwritten; move it, or name another folder"
        )
    if not latest:
        return None
    digests = facts.get("digests", {})
    if (
        warm_start
        and facts.get("warm_start") != str(warm_start.resolve())
        and digests.get("warm_start") != [_digest_of_concept(str(warm_start))]
    ):
        raise UserError(
            f"--output-dir {folder} already holds another run; give this warm start a new folder"
        )
    old, new = facts.get("config", {}), dataclasses.asdict(config)
    old["model"] = {"clip_skip": 0, "vae": None} | old.get("model", {})  # of an earlier version
    free, training = set(FREE), old.get("training", {})
    before = training.get("num_sgd_steps")
    if isinstance(before, int) and config.training.num_sgd_steps > before:
        free.add("training.num_sgd_steps")
    if not config.measure.num_samples:
        free |= {f"inference.{field.name}" for field in dataclasses.fields(config.inference)}
    if differences(old, new, free):  # only then: the digests take a moment
        now = digests_of_paths(config)
        free |= {key for key in now if digests.get(key) == now[key]}
    changed = differences(old, new, free)
    if changed:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}); change it "
            "back, or give --output-dir a new folder (and --warm-start to keep what was learned)"
        )
    if facts["steps_completed"] < config.training.num_sgd_steps:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        resumed_layout(config.training, training, facts.get("samples_per_step"), processes)
    return latest


def digests_of_paths(
    config: FinetuneConfig, warm_start: Path | None = None
) -> dict[str, list[str]]:
    """Return digests of the files and folders that a configuration names, by key.

    Descriptions and names of hub models stay as they are. Training images are not included, because
    they have their own digests.
    """

    def digest(path: str) -> str:
        return (path and content_digest(Path(resolve(path)))) or path

    c, e = config.concepts, config.evaluator
    paths = {
        "model.pretrained_model_name_or_path": [config.model.pretrained_model_name_or_path],
        "model.vae": [config.model.vae or ""],
        "evaluator.clip": [e.clip or ""],
        "evaluator.dino": [e.dino or ""],
        "measure.lineup": config.measure.lineup,
    }
    found = {key: [digest(path) for path in paths[key]] for key in paths}
    found["concepts.initializer_strs"] = [
        _digest_of_concept(start) if ConceptSource.looks_like(start) else start
        for start in c.initializer_strs
    ]
    return found | ({"warm_start": [_digest_of_concept(str(warm_start))]} if warm_start else {})


def _digest_of_concept(source: str) -> str:
    """Return the digest of a concept's file, with its new word if it has one."""
    parsed = ConceptSource.parse(source)
    digest = parsed.uuid or content_digest(parsed.file)
    return f"{digest}={parsed.word}" if parsed.word else digest


def resumed_layout(
    config: TrainingConfig, before: dict[str, Any], samples: int | None, processes: int
) -> TrainingConfig:
    """Return the configuration with the batch that keeps a resumed run's samples per step.

    If the number of processes has changed, each takes an equal share of the samples, in
    micro-batches of at most the configured size.

    Args:
        before: the run's configuration so far.
        samples: per step, over all processes; None if unknown.
        processes: their number now.
    """
    batch, accumulated = config.train_batch_size, config.gradient_accumulation_steps
    if samples in (None, batch * accumulated * processes):
        return config
    per_step = f"{counted(samples, 'sample')} per step"
    keys = ("train_batch_size", "gradient_accumulation_steps")
    if any(before.get(key) != getattr(config, key) for key in keys):
        raise UserError(
            f"this run uses {per_step}, but training.train_batch_size {batch} x "
            f"gradient_accumulation_steps {accumulated} x {counted(processes, 'process')} would be "
            f"{batch * accumulated * processes}; change them to {samples} in all, or start another "
            "run from what was learned"
        )
    share, rest = divmod(samples, processes)
    if rest:
        *fewer, most = [k for k in range(1, samples + 1) if samples % k == 0]
        start = f"{', '.join(map(str, fewer))} or " * bool(fewer) + counted(most, "process")
        raise UserError(
            f"this run uses {per_step}, which {processes} processes cannot share equally; start "
            f"{start}"
        )
    batch = max(k for k in range(1, min(batch, share) + 1) if share % k == 0)
    return dataclasses.replace(
        config, train_batch_size=batch, gradient_accumulation_steps=share // batch
    )


def layout_line(config: TrainingConfig, samples: int, processes: int) -> str:
    """Return a sentence on how the samples of a step are divided among processes."""
    return (
        f"{counted(samples, 'sample')} per step, as before: {counted(processes, 'process')} x "
        f"train_batch_size {config.train_batch_size} x gradient_accumulation_steps "
        f"{config.gradient_accumulation_steps}"
    )
