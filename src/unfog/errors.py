"""The one error that a user may cause: a single line that says what, where, and what to do."""


class UserError(ValueError):
    """Bad input; the command line prints it as one line and exits with code 2."""
