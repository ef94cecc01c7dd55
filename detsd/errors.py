"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """One sentence that names the file or key, what is wrong, and what to do. Exit code 2."""
