"""Queries to the hub, downloads from it, and its refusals, each as one sentence.

A request is repeated if a cluster's network fails for a moment or the hub is busy.
"""

import contextlib
import http.client
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from detsd.utils.errors import DISK_ERRORS, UserError, one_line

logger = logging.getLogger("detsd")
logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # two lines for each retry

PLACEHOLDER_TOKEN = "YOUR_HF_AUTH_TOKEN_HERE"

TIMEOUT = 10  # seconds to wait for the hub's answer

MAX_WAIT = 60  # seconds, at most, before a request to a busy hub is repeated

# Seconds between tries, two minutes in all: a cluster's DNS may fail for a moment.
PAUSES = (1, 2, 4, 8, 15, 30, 60)

T = TypeVar("T")


def hub_token() -> str | None:
    """Return HF_AUTH_TOKEN or HF_TOKEN, if set; the configs' placeholder counts as unset."""
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


class NoAnswer(Exception):
    """A hub that is unreachable, busy or not to be queried; the message completes a sentence."""


def model_info(name: str, revision: str | None, cached: bool) -> ModelInfo:
    """Query the hub for a model's files; if they are cached, retry only if the hub is busy."""
    options = {"token": hub_token(), "timeout": TIMEOUT, "files_metadata": True}
    pauses = PAUSES[1:3] if cached else PAUSES
    try:
        return _repeat(
            lambda: HfApi().model_info(name, revision=revision, **options), pauses, not cached
        )
    except OfflineModeIsEnabled:
        raise NoAnswer("HF_HUB_OFFLINE forbids asking the hub") from None
    except Exception as error:  # the HTTP libraries have a dozen classes for no connection
        if isinstance(error, HfHubHTTPError | HFValidationError) and not _is_busy(error):
            raise  # a refusal
        raise NoAnswer(_no_answer(error)) from None


def download(name: str, file: str, revision: str | None) -> Path:
    """Return the cached path of a model's file; download it if it is missing."""
    return Path(_repeat(lambda: hf_hub_download(name, file, revision=revision, token=hub_token())))


def _repeat(call: Callable[[], T], pauses: Sequence[float] = PAUSES, connect: bool = True) -> T:
    """Call again, after growing pauses, while the hub is busy or, if `connect`, unreachable."""
    start = time.monotonic()  # the library itself may retry for a while before it gives up
    for count, pause in enumerate(pauses):
        try:
            return call()
        except Exception as error:
            busy = _is_busy(error)
            over = time.monotonic() - start > sum(pauses)
            if over or not (busy or (connect and _is_unreachable(error))):
                raise
            if not count:
                logger.warning("%s; retrying for up to %d s", _no_answer(error), sum(pauses))
            asked = error.response.headers.get("Retry-After", "") if busy else ""
            time.sleep(min(MAX_WAIT, int(asked) if asked.isdigit() else pause))
    return call()


def _is_busy(error: Exception) -> bool:
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    return code == 429 or code >= 500


def _is_unreachable(error: Exception) -> bool:
    """Return whether an error is neither an answer from the hub nor one of the local disk."""
    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    return not disk and not any(
        isinstance(e, HfHubHTTPError | HFValidationError | OfflineModeIsEnabled | UserError)
        for e in _chain(error)
    )


def _no_answer(error: Exception) -> str:
    """Say that the hub is busy or cannot be reached."""
    if _is_busy(error):
        return f"the hub ({constants.ENDPOINT}) answers {_answer(error)}"
    reason = one_line(_chain(error)[-1], 100) or type(error).__name__
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({reason})"


def _chain(error: BaseException) -> list[BaseException]:
    """List an error and its causes, one of which may be the real reason."""
    chain = [error]
    while link := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(link)
    return chain


def _answer(error: HfHubHTTPError) -> str:
    code = error.response.status_code  # requests and httpx name the reason differently
    return f"{code} {http.client.responses.get(code, '')}".strip()


@contextlib.contextmanager
def refusals(key: str, name: str, revision: str | None, file: str) -> Iterator[None]:
    """Turn any error while using the hub into one sentence."""
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
    if isinstance(error, GatedRepoError):  # first: a subclass of RepositoryNotFoundError
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
