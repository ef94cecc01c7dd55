"""Mistakes in a grid's configuration, found before any large library is loaded."""

from pathlib import Path

from detsd.concepts.source import ConceptSource
from detsd.config import GenerateConfig, refuse
from detsd.models.support import model_problems


def check_generate(config: GenerateConfig, source: str, beside: Path | None = None) -> None:
    """Refuse a grid whose model or concept files are missing, naming every problem."""
    problems = model_problems(config.model, beside)
    for k, name in enumerate(config.concepts.files):
        problems += ConceptSource.parse(name).problems(f"concepts.files[{k}]", beside)
    refuse(problems, source)
