"""The two errors that a user reads: one line each."""


class UserError(Exception):
    """Something the user can mend: shown as one line, with exit code 2.

    The message says what is wrong, where, and what to do.
    """


class RunError(Exception):
    """A run that cannot go on, for a reason outside of its input: shown as one line, with exit code 1.

    The message says what happened, where, what is left, and how to go on.
    """
