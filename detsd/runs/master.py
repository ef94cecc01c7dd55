"""Errors of requests to a Determined master, as sentences."""

import contextlib
from collections.abc import Iterator

from detsd.utils.errors import UserError


@contextlib.contextmanager
def asking_master(what: str, unknown: str) -> Iterator[None]:
    """Raise errors of requests to the master as UserErrors.

    The master and the login are those of the `det` command line.

    Args:
        what: the thing looked up.
        unknown: the sentence if it does not exist.
    """
    from determined.common.api import errors  # late: it takes a third of a second

    try:
        yield
    except errors.NotFoundException:
        raise UserError(unknown) from None
    except errors.MasterNotFoundException:
        raise UserError(
            f"{what} cannot be looked up: no Determined master was found; set DET_MASTER"
        ) from None
    except errors.UnauthenticatedException:
        raise UserError(
            f"{what} cannot be looked up: the master asks for a login; run det user login"
        ) from None
