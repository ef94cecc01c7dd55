"""The interface between a run and the outside world: a Determined cluster, or a folder.

`open_run` decides once; everything else is handed a `Run`. Methods marked "collective" are called
by all ranks, in the same order.
"""

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from detsd.runs.folder import damaged, read_metadata
from detsd.runs.ranks import Ranks
from detsd.runs.registry import find_version
from detsd.runs.tensorboard import TensorBoard
from detsd.utils import progress
from detsd.utils.errors import UserError, one_line

logger = logging.getLogger("detsd")


class Run:
    """The outside world of a training, a grid or an evaluation."""

    ranks: Ranks  # the processes, and this one's device
    folder: Path  # where this run's samples and pictures are collected
    folder_is_kept: bool  # whether it outlives the process; if not, checkpoints carry its files
    begin_anew: str  # for messages: how to begin another run
    warm_start: str  # for messages: how to keep what was learned
    keeps: int = 1  # how many of the latest checkpoints outlive the experiment
    stop_signal: int | None = None
    latest: Path | None = None  # folder of the checkpoint to resume or start from
    latest_is_own: bool = True  # whether this run wrote it; else only its vectors are taken
    latest_uuid: str = ""  # its uuid on the cluster
    stored_uuid: str = ""  # the uuid of this run's newest checkpoint on a cluster
    tensorboard: TensorBoard | None = None  # on the chief only
    models: Mapping[str, str] = MappingProxyType({})  # uuids of the registry's models in this run

    def model_uuids(self, names: list[str]) -> list[str]:
        """Return the uuids of models of the registry, with their words: `uuid=word`. Collective.

        A resumed run keeps the ones it began with, whatever has been registered since.
        """
        found = self.first_models()
        for model in dict.fromkeys(name.partition("=")[0] for name in names):
            if self.is_chief and model not in found:
                found[model], version = find_version(model)
                self.print(f"model {model}: version {version}, checkpoint {found[model]}")
            elif self.is_chief:
                self.compare_with_newest(model, found[model])
        self.models = self.ranks.allgather(found)[0] if names else {}
        parts = [name.partition("=") for name in names]
        return [f"{self.models[model]}{equals}{word}" for model, equals, word in parts]

    def compare_with_newest(self, model: str, uuid: str) -> None:
        """Report a model with a newer version than the one that the run began with."""

    def first_models(self) -> dict[str, str]:
        """Return the uuids that models of the registry stood for when this run began."""
        known = read_metadata(self.latest) if self.latest and self.latest_is_own else {}
        return dict(known.get("models", {}))

    @property
    def is_chief(self) -> bool:
        return self.ranks.rank == 0

    @property
    def own_steps(self) -> int:
        """The steps of the latest checkpoint, if this run wrote it; else -1."""
        own = self.latest if self.latest_is_own else None
        return read_metadata(own)["steps_completed"] if own else -1

    @property
    def latest_name(self) -> str:
        """The latest checkpoint's name for messages."""
        return f"checkpoint {self.latest_uuid}" if self.latest_uuid else str(self.latest)

    def gather(self, values: list[Any]) -> list[Any]:
        """Join all ranks' lists in the order of the ranks, on every rank. Collective."""
        return [value for each in self.ranks.allgather(values) for value in each]

    def print(self, text: str) -> None:
        """Print a line on the terminal or in the task's log, once."""
        if self.is_chief:
            progress.say(text)

    def log_image(self, tag: str, file: bytes, steps: int = 0) -> None:
        """Log a PNG or JPEG file to TensorBoard as it is. Chief only."""
        self.tensorboard.image(tag, file, steps)

    def save(self, steps: int, metadata: dict[str, Any], write: Callable[[Path], None]) -> str:
        """Call `store` on the chief; all ranks wait for it and return its result. Collective."""
        uuid = self.store(steps, metadata, write) if self.is_chief else ""
        return self.ranks.allgather(uuid)[0]

    def assert_equal_across_ranks(self, **facts: dict[str, Any]) -> None:
        """Refuse ranks that differ in facts that must be equal, before any work. Collective.

        Args:
            facts: maps the name of each fact, in words, to its parts.
        """
        chief, *others = self.ranks.allgather(facts)
        for rank, found in enumerate(others, 1):
            for what, parts in chief.items():
                names = sorted({*parts, *found[what]})
                unequal = [n for n in names if parts.get(n) != found[what].get(n)]
                if unequal:
                    name = unequal[0]
                    more = f", and in {len(unequal) - 1} more" if len(unequal) > 1 else ""
                    raise UserError(
                        f"ranks 0 and {rank} differ in their {what.replace('_', ' ')}: {name} is "
                        f"{parts.get(name)!r} here and {found[what].get(name)!r} there{more}; "
                        "start all of them with the same files, packages and kind of device"
                    )

    # The methods below differ on and off cluster.

    def begin(self) -> None:
        """Begin to write; by now, configuration errors have been found."""

    def report(self, steps: int, metrics: dict[str, float], group: str = "training") -> None:
        """Report metrics of `steps` completed steps. Only the chief does anything.

        Args:
            group: "training" or "validation", as Determined calls them, or another; each group has
                its own graph.
        """
        raise NotImplementedError

    def report_progress(self, fraction: float) -> None:
        """Report the share of the work that is done; unused off cluster."""

    def store(self, steps: int, metadata: dict[str, Any], write: Callable[[Path], None]) -> str:
        """Store what `write(folder)` puts into an empty folder, all or nothing. Chief only.

        `write` may be called more than once. Returns the checkpoint's uuid on the cluster.
        """
        raise NotImplementedError

    def register(self, model: str, uuid: str, title: str, notes: str) -> str:
        """Register a stored checkpoint as a version of a model, once. Chief only.

        Further calls register nothing. A model that does not exist is created.

        Returns:
            The version, as "version 1 of NAME"; "" if there is none.
        """
        raise NotImplementedError

    def deletes(self, uuid: str, newer: int) -> str:
        """Return why a checkpoint will not outlive the experiment; "" if it will. Chief only.

        Args:
            newer: the least number of checkpoints stored after it.
        """
        return ""

    def fetch(self, uuid: str, to: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copy the files of a stored checkpoint whose names are wanted. On a cluster only."""
        raise NotImplementedError

    def asked_to_stop(self) -> bool:
        """Return whether this rank was asked to save and leave."""
        raise NotImplementedError

    def why_stopped(self) -> str:
        """Return the reason why the run ended early, to be followed by "after ..."."""
        return "stopped"

    def should_stop(self) -> bool:
        """Return whether any rank was asked to save and leave. Collective."""
        return self.ranks.any(self.asked_to_stop())

    def flush(self) -> None:
        """Upload TensorBoard's events; off cluster they are written at once."""


def pack(archive: Path, files: Iterable[Path], root: Path) -> None:
    """Pack many files into one, under their paths below `root`; pictures are already compressed."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in files:
            packed.write(path, path.relative_to(root))


def unpack(archive: Path, root: Path, checkpoint: str = "") -> None:
    """Unpack the files of `pack` below `root`; their checksums are compared."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(root)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        raise damaged(archive, one_line(error), checkpoint) from None
