"""Errors of requests to a Determined master, as sentences."""

import contextlib
from collections.abc import Iterator

from detsd.utils.errors import UserError, one_line


@contextlib.contextmanager
def asking_master(what: str, unknown: str, hint: str, verb: str = "looked up") -> Iterator[None]:
    """Raise errors of requests to the master as UserErrors.

    The master and the login are those of the `det` command line.

    Args:
        what: the thing looked up.
        unknown: the sentence if it does not exist.
        hint: what to do about any other error: of the network, of certificates, of rights.
        verb: what could not be done then.
    """
    from determined.common.api import errors  # late: it takes a third of a second

    try:
        yield
    except UserError:
        raise
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
    except Exception as error:  # storage back ends, too, raise anything
        raise UserError(
            f"{what} cannot be {verb} ({type(error).__name__}: {one_line(error)}); {hint}"
        ) from None
