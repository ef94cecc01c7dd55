"""The files of a model: those in a folder, or those of a hub model, fetched once from one commit.

    source = resolve_files("CompVis/stable-diffusion-v1-4")
    source.fetch("scheduler", "unet")
    source.folder / "unet"

    source = resolve_files("openai/clip-vit-large-patch14", key="evaluator.clip", index=CONFIG)
    source.fetch(WHOLE)

The libraries' loaders are then given a folder. Left to themselves, they ask the hub once for every
file, hide its answer behind an error of their own, and forget which commit they were given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import enable_progress_bars

from detsd.models.support import INDEX, SUPPORTED, without_index
from detsd.utils.errors import DISK_ERRORS, UserError, one_line
from detsd.utils.progress import LINE, every, say, status

logger = logging.getLogger("detsd")
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # two lines for each retry

KEY = "model.pretrained_model_name_or_path"

PLACEHOLDER_TOKEN = "YOUR_HF_AUTH_TOKEN_HERE"

CONFIG = "config.json"  # marks a model of a single part, as `INDEX` marks one of several
WHOLE = "."  # the single part, which has no folder of its own
SMALL = 1e6  # bytes of a download that shows no progress: configuration only

TIMEOUT = 10  # seconds for an answer of the hub

MAX_WAIT = 60  # seconds before a busy hub is asked again

# Seconds between tries, two minutes in all: a cluster's DNS may fail for a moment.
PAUSES = (1, 2, 4, 8, 15, 30, 60)

T = TypeVar("T")

# Weights are read from safetensors only: a pickle can run code. Those in half precision (.fp16)
# are used if there are no others.
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors"
)


def hub_token() -> str | None:
    """Return HF_AUTH_TOKEN or HF_TOKEN, if set; the configs' placeholder counts as none."""
    for name in ("HF_AUTH_TOKEN", "HF_TOKEN"):
        token = os.environ.get(name, "").strip()
        if token and token != PLACEHOLDER_TOKEN:
            if not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):
                raise UserError(
                    f"{name} holds a character that no token has, such as a quote or a space; copy "
                    "the token again"
                )
            return token
    return None


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, some of which may still have to be fetched.

    Attributes:
        name: folder, or name on the hub.
        folder: where its files are; for a hub model, in the cache.
        files: all files that exist, here or on the hub: path in the folder -> bytes.
        commit: the hub commit of the files; None for a folder.
        offline: why the hub is not asked for missing files; empty if it may be asked.
        single: the one file that holds all the weights, in the original layout of Stable Diffusion;
            `folder` then has the configuration that such a file lacks.
        key: the setting that names the model, for messages.
    """

    name: str
    folder: Path
    files: dict[str, int]
    commit: str | None = None
    offline: str = ""
    single: Path | None = None
    key: str = KEY

    def weights(self, part: str) -> list[str]:
        """Return a part's weight files: half precision only if there are no others.

        The same goes for files that hold a shard each.
        """
        found = [n for n in self.files if Path(n).parent.as_posix() == part and _is_weights(n)]
        found = [n for n in found if ".fp16" not in n] or found
        return [n for n in found if "-of-" not in n] or found

    def variant(self, part: str) -> str | None:
        """Return diffusers' `variant` of `weights(part)`."""
        return "fp16" if any(".fp16" in name for name in self.weights(part)) else None

    def part_files(self, part: str, weights: bool = True) -> list[str]:
        """Return what the loaders need of one part (`unet`): configuration, vocabulary, weights."""
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
        """Fetch what is missing of these parts into `folder`.

        Args:
            weights: False: configuration and vocabulary only, a few kilobytes.
        """
        wanted = [name for part in parts for name in self.part_files(part, weights)]
        if self.commit is None:  # a folder: its loader reports what is missing
            return
        for part in parts:
            own = [name for name in wanted if Path(name).parent.as_posix() == part]
            # Not a vocabulary or a scheduler.
            is_model = (Path(part) / CONFIG).as_posix() in own
            if not own or (weights and is_model and not any(map(_is_weights, own))):
                there = "among the files fetched before" if self.offline else "on the hub"
                what = "" if part == WHOLE else f"{part} with "
                kind = "" if part == WHOLE else " in the diffusers format"
                raise UserError(
                    f"{self.key}: {self.name} has no {what}safetensors weights {there}"
                    + (f", and {self.offline}" if self.offline else "")
                    + f"; use a complete model{kind}"
                )
        self.fetch_files(*wanted)

    def fetch_files(self, *names: str) -> None:
        """Fetch these files into `folder`, unless they are there."""
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
                with _refusals(self.key, self.name, self.commit, name):
                    _repeat(partial(self._download, name))

    def _download(self, name: str) -> None:
        hf_hub_download(self.name, name, revision=self.commit, token=hub_token())


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
        fetch: whether the hub may be asked; if not, only what was fetched before is found.
        key: the setting that names the model, for messages.
        index: `INDEX` for a base model, `CONFIG` for a model of one part.
    """
    folder = Path(name)
    if folder.is_dir():
        return ModelFiles(name, folder, files_of(folder), key=key)
    with _refusals(key, name, revision, index):
        try:
            cached = isinstance(try_to_load_from_cache(name, index, revision=revision), str)
            info = _ask(name, revision, cached) if fetch else None
            offline = "" if fetch else "the hub was not asked"
        except _NoAnswer as error:
            info, offline = None, str(error)
        if info:
            files = {s.rfilename: s.size or 0 for s in info.siblings or []}
            if index not in files:
                what = f"is {without_index(files)}; {SUPPORTED}"
                what = what if index == INDEX else f"holds no {index}; name another model"
                raise UserError(f"{key}: {name} {what}")
            # By branch, so that the cache can later resolve the branch without the hub.
            path = _repeat(
                lambda: hf_hub_download(name, index, revision=revision, token=hub_token())
            )
            folder = Path(path).parent
            return ModelFiles(name, folder, files, folder.name, key=key)
        path = try_to_load_from_cache(name, index, revision=revision)
    if not isinstance(path, str):
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{key}: {name} is not a folder here, {offline}, and the cache {constants.HF_HUB_CACHE}"
            f" does not hold it{at}; run this once with access to the hub (or run hf download "
            f"{name} elsewhere and copy the cache), or name a folder"
        )
    folder = Path(path).parent
    if fetch:
        logger.warning("%s; using %s as fetched before, at %s", offline, name, folder.name)
    return ModelFiles(name, folder, files_of(folder), folder.name, offline, key=key)


def files_of(folder: Path) -> dict[str, int]:
    """List the files of a model's folder and its subfolders: path -> bytes."""
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths if p.is_file()}


class _NoAnswer(Exception):
    """The hub is unreachable or offline; the message completes a sentence."""


def _ask(name: str, revision: str | None, cached: bool):
    """Ask the hub for a model's files; if they are cached, retry only a busy hub."""
    token = hub_token()

    def ask():
        return HfApi().model_info(
            name, revision=revision, token=token, timeout=TIMEOUT, files_metadata=True
        )

    try:
        return _repeat(ask, PAUSES[1:3] if cached else PAUSES, connect=not cached)
    except HfHubHTTPError as error:
        if not _is_busy(error):
            raise
        raise _NoAnswer(f"the hub ({constants.ENDPOINT}) answers {_answer(error)}") from None
    except HFValidationError:
        raise
    except OfflineModeIsEnabled:
        raise _NoAnswer("HF_HUB_OFFLINE forbids asking the hub") from None
    except Exception as error:  # no connection, in one of a dozen classes of the HTTP libraries
        raise _NoAnswer(_unreachable(error)) from None


def _repeat(call: Callable[[], T], pauses: Iterable[float] = PAUSES, connect: bool = True) -> T:
    """Call again, after growing pauses, while the hub is busy or, if `connect`, unreachable."""
    began = time.monotonic()  # the library itself may try for a while before it gives up
    for count, pause in enumerate((*pauses, None)):
        try:
            return call()
        except Exception as error:
            busy = _is_busy(error)
            over = pause is None or time.monotonic() - began > sum(pauses)
            if over or not (busy or (connect and _is_unreachable(error))):
                raise
            if not count:
                what = f"answers {_answer(error)}" if busy else ""
                what = f"the hub ({constants.ENDPOINT}) {what}" if what else _unreachable(error)
                logger.warning("%s; retrying for up to %d s", what, sum(pauses))
            asked = error.response.headers.get("Retry-After", "") if busy else ""
            time.sleep(min(MAX_WAIT, int(asked) if asked.isdigit() else pause))


def _is_busy(error: Exception) -> bool:
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    return code == 429 or code >= 500


def _is_unreachable(error: Exception) -> bool:
    """Check that an error neither is an answer of the hub nor concerns this machine's disk."""
    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    return not disk and not any(
        isinstance(e, HfHubHTTPError | HFValidationError | OfflineModeIsEnabled | UserError)
        for e in _chain(error)
    )


def _unreachable(error: Exception) -> str:
    reason = one_line(_chain(error)[-1], 100) or type(error).__name__
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({reason})"


def _chain(error: BaseException) -> list[BaseException]:
    """List an error and its causes, one of which may be the real reason."""
    chain = [error]
    while link := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(link)
    return chain


def _answer(error: HfHubHTTPError) -> str:
    return f"{error.response.status_code} {error.response.reason_phrase}".strip()


@contextlib.contextmanager
def _refusals(key: str, name: str, revision: str | None, file: str) -> Iterator[None]:
    """Turn any error of talking to the hub into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusals = (HfHubHTTPError, HFValidationError)
        refusal = next((e for e in _chain(error) if isinstance(e, refusals)), None)
        if refusal is None and isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise UserError(f"{key}: {_sentence(name, revision, file, refusal or error)}") from None


def _sentence(name: str, revision: str | None, file: str, error: BaseException) -> str:
    page = f"{constants.ENDPOINT}/{name}"
    has_token = bool(hub_token() or get_token())
    if isinstance(error, GatedRepoError):  # first: it is a subclass of not found
        if has_token:
            return (
                f"{name} is gated, and this token's account has no access to it; accept its "
                f"licence on {page} with that account (a fine-grained token must also be allowed "
                "to read gated models)"
            )
        return (
            f"{name} is gated; accept its licence on {page} and set HF_AUTH_TOKEN to a token of "
            "that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision}; set model.revision to a branch, tag or commit"
    if isinstance(error, EntryNotFoundError):
        return f"{name} has no file {file}; name a complete model"
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, RepositoryNotFoundError | HFValidationError) or (
        code == 401 and not has_token
    ):
        token = "check the spelling" if has_token else "check the spelling, or set HF_AUTH_TOKEN"
        who = "this token can see" if has_token else "can be seen without a token"
        return f"{name} is neither a folder here nor a hub model that {who}; {token}"
    if code == 401:
        return (
            "the hub does not accept this token; set HF_AUTH_TOKEN to one that is listed in your "
            "hub settings"
        )
    if code == 403:
        return f"the hub denies this token access to {name} (403); allow the token to read it"
    if code:
        return f"{name} cannot be fetched: the hub answers {_answer(error)}; try again later"
    reason = one_line(error) or type(error).__name__
    return (
        f"{name} cannot be fetched: the connection to the hub broke off ({reason}); run the same "
        "command again (complete files are kept)"
    )


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
