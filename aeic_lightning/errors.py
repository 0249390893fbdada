"""The two errors and the warning that a user reads: one line each."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend: shown as one line, with exit code 2.

    The message says what is wrong, where, and what to do.
    """


class RunError(Exception):
    """A run that cannot go on, for a reason outside of its input: shown as one line, with exit code 1.

    The message says what happened, where, what is left, and how to go on.
    """


class ImageWarning(UserWarning):
    """Something of an image file was ignored or left out."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known word is near."""
    near = get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
