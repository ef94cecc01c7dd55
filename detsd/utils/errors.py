"""The exceptions for mistakes that a user can correct, and texts of other exceptions."""

import errno

# A full or read-only disk, another user's folder: the system's own message is enough.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

# Of a path that no file can have, or of a folder where a file already exists.
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST)


def printable(text: str, also: str = "") -> str:
    """Return untrusted text without characters that a terminal would act on, except `also`."""
    return "".join(c if c.isprintable() or c in also else "?" for c in text)


class UserError(Exception):
    """One sentence that names the file or key, what is wrong, and what to do. Exit code 2."""


class Diverged(UserError):
    """The loss is no longer finite; trying again would end the same way."""


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """Return an exception's text on one line, cut to `limit` characters: part of a sentence."""
    return " ".join(str(error).split())[:limit]
