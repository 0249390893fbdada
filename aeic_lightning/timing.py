"""Timing of alternatives that a busy machine cannot mislead: they run in turn, and ratios are taken within a turn.

And what the machine is: its processor, and the memory that a process has needed.
"""

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from aeic_lightning import __version__
from aeic_lightning.files import write_whole

HOPELESS, LOOKS = 4, 2  # as slow as this times the quickest in LOOKS timed runs: not timed again
SLOW = 20.0  # seconds of one turn above which `compare` takes a single turn
OLD = 30 * 24 * 3600  # seconds after which a choice is made anew: the machine may have been an unusual one then
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment: instructions left unused
INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


def quickest(candidates: dict[str, Callable[[], Any]], runs: int = 5, clock: Callable[[], float] | None = None) -> str:
    """Name of the candidate that takes the least processor time; see `least_times`."""
    times = least_times(candidates, runs, clock)
    return min(times, key=times.__getitem__)


def least_times(
    candidates: dict[str, Callable[[], Any]], runs: int = 5, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Seconds of the best of a few runs of each candidate, in turn: A B A B ... The first run of each does not count.

    A candidate that was far slower than another in each of LOOKS runs is not run again, so that looking at it costs
    little; a single slow run drops none.

    Args:
        clock: by default the processor time of the threads that PyTorch computes with: other processes take turns on
            the processor, but are not counted.
    """
    clock = clock or _processor_clock()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(runs + 1):
        least = min((min(seen) for seen in times.values() if seen), default=0.0)
        for name, function in candidates.items():
            if len(times[name]) >= LOOKS and min(times[name]) > HOPELESS * least:
                continue
            start = clock()
            function()
            if run:  # the first takes along what is made once: memory, the library's code
                times[name].append(clock() - start)
    return {name: min(seen) for name, seen in times.items()}


def _processor_clock() -> Callable[[], float]:
    import torch

    return time.thread_time if torch.get_num_threads() == 1 else time.process_time


def remembered(question: str, answers: Iterable[str], measure: Callable[[], str]) -> str:
    """`measure()`, which is one of `answers`, kept on disk for processes under the same conditions.

    Conditions are the processor, the versions of this package and of PyTorch, and the number of threads. A file that is
    broken, old or of other conditions counts as none, and so does a folder that cannot be written.
    """
    import torch

    limits = {name: os.environ.get(name) for name in LIMITS}
    conditions = {"question": question, "version": __version__, "threads": torch.get_num_threads(), "limits": limits}
    conditions |= processor()
    path = choices_folder() / f"{hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:16]}.json"

    def kept(answer: str) -> bytes:
        return json.dumps({"answer": answer, **conditions}, indent=1).encode()

    with suppress(OSError):
        if time.time() - path.stat().st_mtime < OLD:
            content = path.read_bytes()
            for answer in answers:
                if content == kept(answer):
                    return answer
    answer = measure()
    with suppress(OSError):
        write_whole(path, kept(answer))
    return answer


def choices_folder() -> Path:
    """Where `remembered` keeps its files, by the XDG convention."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "aeic_lightning" / "choices"


@dataclass(frozen=True)
class Timed:
    """One alternative beside the first of its comparison."""

    seconds: float  # median by the clock
    processor: float  # median of processor seconds, all threads together
    ratio: float  # median over the turns of its time / that of the first, by the clock
    processor_ratio: float  # the same of processor time, which other processes disturb less
    runs: int


def compare(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Run the alternatives in turn, `repeats` times after a first turn that does not count: A B A B ...

    Where one turn takes longer than SLOW seconds, it is the only one, and counts.
    """
    clocks = time.perf_counter, time.process_time
    turns: list[dict[str, list[float]]] = []

    def turn() -> None:
        times = {}
        for name, function in candidates.items():
            start = [clock() for clock in clocks]
            function()
            times[name] = [clock() - began for clock, began in zip(clocks, start, strict=True)]
        turns.append(times)

    turn()
    if sum(times[0] for times in turns[0].values()) <= SLOW:
        turns.clear()
        for _ in range(repeats):
            turn()
    first = next(iter(candidates))

    def ratio(name: str, clock: int) -> float:
        return median(times[name][clock] / max(times[first][clock], 1e-9) for times in turns)

    def seconds(name: str, clock: int) -> float:
        return median(times[name][clock] for times in turns)

    return {
        name: Timed(seconds(name, 0), seconds(name, 1), ratio(name, 0), ratio(name, 1), len(turns))
        for name in candidates
    }


def processor() -> dict[str, Any]:
    """Name of the processor, its cores for this process, its vector instructions, and what PyTorch uses of them."""
    import torch

    name, flags = platform.processor() or platform.machine(), []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text()
        found = re.search(r"model name\s*:\s*(.+)", text)
        name = found[1].strip() if found else name
        own = set(re.findall(r"\w+", (re.search(r"flags\s*:\s*(.+)", text) or [""])[0]))
        flags = [flag for flag in INSTRUCTIONS if flag in own]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"name": name, "cores": cores, "instructions": flags, "pytorch": capability, "torch": torch.__version__}


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
