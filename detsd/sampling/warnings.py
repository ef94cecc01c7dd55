"""Warnings about jobs whose images will not match their settings."""

import logging
from collections.abc import Iterable
from typing import Any

from detsd.concepts.prompts import prompt_warnings
from detsd.models.base import BaseModel
from detsd.sampling.denoise import guided_steps
from detsd.sampling.jobs import Job
from detsd.sampling.stock import key_of, steps_warning
from detsd.utils.plurals import counted

logger = logging.getLogger("detsd")


class JobWarnings:
    """The warnings about a model's jobs, the first of each kind."""

    def __init__(self, model: BaseModel):
        self._model = model
        self._seen: set[tuple] = set()  # prompts and steps already checked
        self._reported: set[str] = set()

    def __call__(self, jobs: Iterable[Job], spelling: bool = True, section: str = "") -> list[str]:
        """Return the warnings about jobs that were not reported before.

        Args:
            spelling: False if the spelling of concepts was checked before.
            section: that of the configuration, which messages name.
        """
        found = []
        for job in jobs:
            for text in (job.prompt, job.negative_prompt):
                if self._is_new(text, job.prompt_weights):
                    options = {"weighted": job.prompt_weights, "told": self._reported}
                    found += prompt_warnings(text, self._model.vocabulary, spelling, **options)
            steps = (job.scheduler_name, job.num_inference_steps, job.spacing)
            if self._is_new(*steps):
                found += filter(None, [steps_warning(self._model, *steps, section)])
            guidance = (job.num_inference_steps, job.guidance_interval)
            unguided = job.guided and job.guidance_interval and not guided_steps(*guidance)
            if unguided and self._is_new(*guidance):
                found.append(_unguided(*guidance, section))
            scale = job.guidance_scale
            if job.negative_prompt and not job.guided and self._is_new("negative", scale):
                found.append(
                    f"at a guidance scale of {scale:g}, negative prompts have no effect; use more "
                    "than 1"
                )
        return found

    def _is_new(self, *settings: Any) -> bool:
        """Return whether settings were not checked before, and remember them."""
        new = settings not in self._seen
        self._seen.add(settings)
        return new

    def log(
        self, jobs: Iterable[Job], spelling: bool = True, section: str = "", shown: bool = True
    ) -> None:
        """Log the warnings about jobs that were not reported before.

        Args:
            spelling, section: as for a call.
            shown: False in processes that leave it to the first; later calls then log none either.
        """
        for warning in self(jobs, spelling, section):
            if shown:
                logger.warning("%s", warning)


def _unguided(steps: int, interval: tuple[float, float], section: str) -> str:
    """Say that guidance has no effect."""
    return (
        f"{key_of(section)}guidance_interval: {list(interval)} contains none of the "
        f"{counted(steps, 'step')}, so guidance_scale and negative prompts have no "
        "effect; widen it, or use more steps"
    )
