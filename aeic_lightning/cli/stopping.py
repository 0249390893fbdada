"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it had begun to write goes away with it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
OWN = ("fit", "sweep")
"""Commands that see to signals by themselves: they save, and go on later."""


class Stopped(BaseException):
    """A signal to stop has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Within, the first of these signals raises `Stopped`; a second one ends the process at once.

    Not for the commands of `OWN`, outside of the main thread, or where a signal is ignored (`nohup`) or has a handler.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    if command not in OWN and threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
