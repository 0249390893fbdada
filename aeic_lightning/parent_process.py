"""A run that a sweep has started ends when the sweep is gone, whatever ended it.

The sweep gives its process id in the environment. Linux then sends SIGTERM to the run at the death of its parent;
elsewhere a thread asks once a second. SIGTERM saves a checkpoint and stops (`callbacks.checkpoint.LastCheckpoint`).
"""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT = "AEIC_PARENT_PROCESS"
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def follow_parent() -> None:
    """End this process with SIGTERM when the process named in `PARENT` ends. Without that variable, do nothing."""
    named = os.environ.pop(PARENT, None)  # not for the children of this process
    if named is None:
        return
    parent = int(named)
    if not _signal_at_death_of_parent():
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="follow_parent").start()
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)


def _signal_at_death_of_parent() -> bool:
    """Ask Linux to send SIGTERM; False where that is not possible."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
