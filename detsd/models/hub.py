"""The files of a model, in a folder or fetched once from one commit on the hub.

    source = resolve_files("CompVis/stable-diffusion-v1-4")
    source.fetch("scheduler", "unet")
    source.folder / "unet"

    source = resolve_files("openai/clip-vit-large-patch14", key="evaluator.clip", index=CONFIG)
    source.fetch(WHOLE)

The libraries' loaders then get a folder. On their own, they query the hub once for every file, hide
its answer behind their own error, and forget the requested commit.
"""

import contextlib
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import enable_progress_bars

from detsd.models.hub_access import NoAnswer, download, model_info, refusals
from detsd.models.support import INDEX, SUPPORTED, without_index
from detsd.utils.errors import UserError
from detsd.utils.progress import LINE, every, say, status

logger = logging.getLogger("detsd")

KEY = "model.pretrained_model_name_or_path"

CONFIG = "config.json"  # marks a model of a single part, as `INDEX` marks one of several
WHOLE = "."  # the single part, which has no subfolder
SMALL = 1e6  # bytes; smaller downloads (configuration only) show no progress

# Weights are read from safetensors only: a pickle can run code. Half-precision weights (.fp16) are
# used only if there are no others.
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors"
)


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, some of which may still have to be fetched."""

    name: str  # folder, or name on the hub
    folder: Path  # where its files are; for a hub model, in the cache
    files: dict[str, int]  # all that exist, here or on the hub: path in the folder -> bytes
    commit: str | None = None  # the hub commit of the files; None for a folder
    offline: str = ""  # the reason for not querying the hub; "" if it may be queried
    # The one file that holds all the weights, in the original layout of Stable Diffusion; `folder`
    # then holds the configuration that such a file lacks.
    single: Path | None = None
    key: str = KEY  # the setting that names the model, for messages

    def weights(self, part: str) -> list[str]:
        """Return a part's weight files: half precision only if there are no others.

        Likewise, sharded files are used only if there are no others.
        """
        found = [n for n in self.files if Path(n).parent.as_posix() == part and _is_weights(n)]
        found = [n for n in found if ".fp16" not in n] or found
        return [n for n in found if "-of-" not in n] or found

    def variant(self, part: str) -> str | None:
        """Return diffusers' `variant` of `weights(part)`."""
        return "fp16" if any(".fp16" in name for name in self.weights(part)) else None

    def part_files(self, part: str, weights: bool = True) -> list[str]:
        """Return one part's files (`unet`) for loading: configuration, vocabulary, weights."""
        names = (Path(name) for name in self.files)
        small = [
            name.as_posix()
            for name in names
            if name.parent.as_posix() == part
            and name.suffix in (".json", ".txt")
            and (".index." not in name.name or ".safetensors.index." in name.name)
        ]
        return small + (self.weights(part) if weights else [])

    def fetch(self, *parts: str, weights: bool = True) -> None:
        """Fetch the missing files of these parts; without `weights`, only a few kilobytes."""
        if self.commit is None:  # a folder: its loader reports missing files
            return
        wanted = []
        for part in parts:
            own = self.part_files(part, weights)
            wanted += own
            # Not a vocabulary or a scheduler.
            is_model = (Path(part) / CONFIG).as_posix() in own
            if not own or (weights and is_model and not any(map(_is_weights, own))):
                there = "on the hub"
                if self.offline:
                    there = f"among the files fetched before, and {self.offline}"
                what = "" if part == WHOLE else f"{part} with "
                kind = "" if part == WHOLE else " in the diffusers format"
                raise UserError(
                    f"{self.key}: {self.name} has no {what}safetensors weights {there}; use a "
                    f"complete model{kind}"
                )
        self.fetch_files(*wanted)

    def fetch_files(self, *names: str) -> None:
        """Fetch these files into `folder`, unless they are already in it."""
        missing = [name for name in names if not (self.folder / name).is_file()]
        total = sum(self.files.get(name, 0) for name in missing)
        room = shutil.disk_usage(self.folder).free
        if total > room:
            raise UserError(
                f"{self.key}: {self.name} needs {_size(total)} more in {constants.HF_HUB_CACHE}, "
                f"which has room for {_size(room)}; make room, or set HF_HOME to a larger disk"
            )
        with _download_progress(self.name, total, self.folder.parent.parent / "blobs"):
            for name in missing:
                with refusals(self.key, self.name, self.commit, name):
                    download(self.name, name, self.commit)


def _is_weights(name: str) -> bool:
    return bool(WEIGHTS.fullmatch(Path(name).name))


def resolve_files(
    name: str,
    revision: str | None = None,
    fetch: bool = True,
    *,
    key: str = KEY,
    index: str = INDEX,
) -> ModelFiles:
    """Find a model by folder or hub name; from the hub, only its index is fetched.

    Args:
        revision: branch, tag or commit on the hub.
        fetch: whether the hub may be queried; if not, only files fetched before are found.
        key: the setting that names the model, for messages.
        index: `INDEX` for a base model, `CONFIG` for a model of one part.
    """
    folder = Path(name)
    if folder.is_dir():
        return ModelFiles(name, folder, files_of(folder), key=key)
    with refusals(key, name, revision, index):
        cached = try_to_load_from_cache(name, index, revision=revision)
        try:
            info = model_info(name, revision, isinstance(cached, str)) if fetch else None
            offline = "" if fetch else "the hub was not asked"
        except NoAnswer as error:
            info, offline = None, str(error)
        if info:
            files = {s.rfilename: s.size or 0 for s in info.siblings or []}
            if index not in files:
                what = f"is {without_index(files)}; {SUPPORTED}"
                what = what if index == INDEX else f"holds no {index}; name another model"
                raise UserError(f"{key}: {name} {what}")
            # By branch, so that the cache can later resolve the branch without the hub.
            folder = download(name, index, revision).parent
            return ModelFiles(name, folder, files, folder.name, key=key)
    if not isinstance(cached, str):
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{key}: {name} is not a folder here, {offline}, and the cache {constants.HF_HUB_CACHE}"
            f" does not hold it{at}; run this once with access to the hub (or run hf download "
            f"{name} elsewhere and copy the cache), or name a folder"
        )
    folder = Path(cached).parent
    if fetch:
        logger.warning("%s; using %s as fetched before, at %s", offline, name, folder.name)
    return ModelFiles(name, folder, files_of(folder), folder.name, offline, key=key)


def files_of(folder: Path) -> dict[str, int]:
    """List the files of a model's folder and its subfolders: path -> bytes."""
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths if p.is_file()}


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextlib.contextmanager
def _download_progress(name: str, total: int, blobs: Path) -> Iterator[None]:
    """Show the progress of a download: bars on a terminal, lines in a log."""
    if total < SMALL:
        yield
        return
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()  # transformers' switch for its own bars turns off the hub's as well
    say(f"fetching {name}: {_size(total)}", sys.stderr)
    before = _held(blobs)

    def look() -> None:
        here = min(total, _held(blobs) - before)
        status(f"  {_size(here)} of {_size(total)} of {name}", sys.stderr)

    with contextlib.nullcontext() if sys.stderr.isatty() else every(look, LINE):
        yield


def _held(blobs: Path) -> int:
    total = 0
    for path in blobs.glob("*"):
        with contextlib.suppress(OSError):  # renamed once it is complete
            total += path.stat().st_size
    return total
