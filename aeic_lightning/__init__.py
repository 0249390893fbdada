"""Distillation studies of ultra-low-bitrate learned image codecs."""

__version__ = "0.1.0"


class UserError(Exception):
    """Something the user can mend: shown as one line, with exit code 2.

    The message says what is wrong, where, and what to do.
    """
