"""python -m detsd evaluate: measure concepts."""

import argparse
import json
from pathlib import Path
from typing import Any

from detsd.cli.common import PROG, configuration, images_done, print_stored, stopped
from detsd.concepts.source import ConceptSource
from detsd.config import EvaluateConfig, load_config, override, parse_config
from detsd.evaluate.preflight import check_evaluate
from detsd.runs import task
from detsd.runs.folder import finetuning_metadata, title_of
from detsd.utils import progress
from detsd.utils.errors import UserError
from detsd.utils.paths import BUNDLED, DEMO_CONCEPT


def evaluate(args: argparse.Namespace) -> int:
    """Measure concepts; return the exit code."""
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
        if not done:
            return stopped(run, images_done(evaluation.grid))
        if task.on_cluster():
            print_stored(run, "metrics, samples and plot")
            return 0
        run.print(f"metrics: {folder / FIGURES}, plotted in {folder / 'evaluation.png'}")
        run.print(f"samples: {folder / 'samples.png'}, all of them in {folder / 'sheets'}")
    return 0


def evaluation_config(args: argparse.Namespace) -> tuple[EvaluateConfig, str, str]:
    """Return an evaluation's configuration off cluster, in the form `configuration` takes."""
    files = [word for word in args.sources if word.endswith((".yaml", ".yml"))]
    if files and args.sources[1:]:
        raise UserError(
            f"{files[0]} is an experiment file, which names what to evaluate itself; give either "
            "that file or concepts, not both"
        )
    if not args.sources:
        raise UserError(
            f"nothing to evaluate was given and no cluster was found; run e.g. {PROG} evaluate "
            f"{DEMO_CONCEPT}"
            + (", before --lineup, which takes all that follows" if args.lineup else "")
        )
    file = Path(files[0]) if files else None
    sources = [] if file else [ConceptSource.parse(word) for word in args.sources]
    settings = {
        "concepts.files": [str(s) for s in sources if not (s.uuid or s.model)],
        "concepts.uuids": [str(s).removeprefix("uuid:") for s in sources if s.uuid],
        "concepts.models": [str(s).removeprefix("model:") for s in sources if s.model],
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
    title = sources[0].uuid or sources[0].model or title_of(sources[0].path)
    return config, source, f"evaluate-{title}"


def learned_on(sources: list[str]) -> dict[str, Any]:
    """Return the base model of the first fine-tuning among sources, or else the bundled one."""
    for source in sources:
        facts = finetuning_metadata(ConceptSource.parse(source).file)
        if facts:
            model = facts["config"]["model"]
            own = {key: model.get(key) for key in ("pretrained_model_name_or_path", "clip_skip")}
            return own | {"revision": facts.get("commit"), "vae": facts.get("vae")}
    return {"pretrained_model_name_or_path": BUNDLED}
