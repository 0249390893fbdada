"""How much memory a process has needed."""

import sys
from pathlib import Path


def peak_memory() -> float:
    """GiB that this process has held at most.

    Linux's ru_maxrss starts at what the parent held when it started this process, so the kernel's own record is read.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**20
        )
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
