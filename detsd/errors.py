"""The exceptions for mistakes a user can mend."""


class UserError(Exception):
    """One sentence that names the file or key, what is wrong, and what to do. Exit code 2."""


class Diverged(UserError):
    """The loss is not finite any more; trying again would end the same way."""
