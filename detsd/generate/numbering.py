"""The jobs of stored images, identified by their settings, and the numbers in their file names."""

import functools
import json
from collections.abc import Callable
from typing import Any

from detsd.utils.paths import canonical_path


class Numbering:
    """The numbers of a grid's images: a job's place in the grid, unless the grid has grown.

    In a grown grid, old images keep their numbers, and new ones get their job's or a free one.

    Attributes:
        found: the numbers of stored images, by job.
        problem: a sentence, without its end, on an image that belongs to no job; "" if all do.
    """

    def __init__(self, count: int, settings: Callable[[int], dict[str, Any]]):
        """Number `count` jobs; `settings` returns a job's settings."""
        self._count, self._settings = count, settings
        self._by_settings: dict[str, int] = {}  # filled once an image is not in its place
        self._canonical = functools.cache(canonical_path)
        self.found: dict[int, int] = {}
        self.problem = ""

    def match(self, record: dict[str, Any], name: str) -> int | None:
        """Return the job with a stored image's settings; None if no such job is left."""
        number = record["job"]
        other = self._differences(record, number) if number < self._count else ["job"]
        job = self._job(record) if other else number
        if job is None and not self.problem:
            what = (
                "there is no such job"
                if other == ["job"]
                else f"it differs in its {', '.join(other)}"
            )
            self.problem = f"{name} is from a different grid than this one ({what})"
        if job is None or job in self.found:
            return None
        self.found[job] = number
        return job

    def _differences(self, record: dict[str, Any], job: int) -> list[str]:
        """Return the settings in which a stored image differs from a job."""
        mine, known = self._content(self._settings(job)), self._content(record)
        return [key for key in mine if known.get(key) != mine[key]]  # older files lack some

    def _job(self, record: dict[str, Any]) -> int | None:
        """Return the job with a stored image's settings, wherever it is in the grid."""
        if not self._by_settings:
            for job in range(self._count):
                self._by_settings.setdefault(self._key(self._settings(job)), job)
        known = {key: record.get(key) for key in self._settings(0)}  # older files lack some
        return self._by_settings.get(self._key(known))

    def _content(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what the pixels depend on: a concept's vectors, wherever their file is.

        Model and VAE are told apart by their paths, because no digest of them is stored.
        """
        found = {key: value or None for key, value in settings.items() if key != "job"}
        model, concepts = dict(settings["model"]), settings["concepts"]
        for key in {"pretrained_model_name_or_path", "vae"} & model.keys():
            model[key] = model[key] and self._canonical(model[key])
        digests = {name: concept["sha256"] for name, concept in concepts.items()}
        return found | {"model": model, "concepts": digests}

    def _key(self, settings: dict[str, Any]) -> str:
        return json.dumps(self._content(settings), sort_keys=True)

    def numbers(self) -> list[int]:
        """Return the number of each job's image."""
        taken, jobs = set(self.found.values()), range(self._count)
        own = {job for job in jobs if job not in self.found and job not in taken}
        free = iter(sorted(set(jobs) - taken - own))
        return [
            self.found[job] if job in self.found else job if job in own else next(free)
            for job in jobs
        ]
