"""python -m detsd app: the demo page."""

import argparse
import importlib.util

from detsd.concepts.source import ConceptSource
from detsd.config import ModelConfig
from detsd.config.schema import parse_section
from detsd.models.support import model_problems
from detsd.utils import progress
from detsd.utils.errors import UserError
from detsd.utils.paths import DEMO_CONCEPT, DEMO_IMAGES, DEMO_WORD, bundled_with, uuid_problem


def app(args: argparse.Namespace) -> int:
    """Serve the interactive demo until interrupted; return the exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the demo needs gradio, which is not installed; run pip install -r requirements-app.txt"
        )
    concepts, pictures = args.concepts, {}
    if concepts is None and not args.uuid and (repository := bundled_with(args.model)):
        concepts = [str(repository / DEMO_CONCEPT)]
        pictures = {DEMO_WORD: str(repository / DEMO_IMAGES)}
    given = {"pretrained_model_name_or_path": args.model, "vae": args.vae}
    model, problems = parse_section(ModelConfig, {**given, "clip_skip": args.clip_skip})
    problems = [f"--{problem.replace('_', '-')}" for problem in problems]
    problems = problems or model_problems(model)
    for uuid in args.uuid or []:
        if problem := uuid_problem(uuid.partition("=")[0]):
            problems.append(f"--uuid: {problem}")
    for source in map(ConceptSource.parse, concepts or []):
        problems += source.problems("--concepts")
    if problems:
        raise UserError(problems[0])
    from detsd.app.guard import Address, no_proxy

    address = Address(args.host, args.port, tuple(args.allow_host), args.auth, args.no_auth)
    address.check()
    with progress.importing_libraries(), no_proxy():
        from detsd.app.page import serve

    serve(model, concepts or [], args.uuid or [], address, pictures)
    return 0
