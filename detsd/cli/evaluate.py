"""python -m detsd evaluate: measure concepts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detsd.cli.common import PROG, configuration, stopped
from detsd.concepts.source import is_uuid, locate, split_source
from detsd.config import EvaluateConfig, load_config, override, parse_config
from detsd.evaluate.preflight import check_evaluate
from detsd.runs import folder, task
from detsd.utils import progress
from detsd.utils.errors import UserError
from detsd.utils.paths import BUNDLED, DEMO_CONCEPT


def evaluate(args: argparse.Namespace) -> int:
    """Measure concepts; exit code."""
    config, folder = configuration(args, EvaluateConfig, check_evaluate, evaluation_config)
    with progress.importing_libraries():
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
        run.print(f"all figures: {folder / FIGURES}, drawn: {folder / 'evaluation.png'}")
        run.print(f"samples: {folder / 'samples.png'}, all of them: {folder / 'sheets'}")
    return 0


def evaluation_config(args: argparse.Namespace) -> tuple[EvaluateConfig, str, str]:
    """An evaluation off cluster, as `configuration` takes it."""
    words, file = list(args.sources), None
    if len(words) == 1 and words[0].endswith((".yaml", ".yml")):
        file = Path(words.pop())
    elif not words:
        raise UserError(
            f"nothing to evaluate is named and no cluster found; write e.g. {PROG} evaluate "
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
