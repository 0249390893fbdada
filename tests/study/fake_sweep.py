"""A sweep of fake runs, for tests of its processes: `fake_sweep.py FILE [importing] [stubborn] [no-prctl]`.

The command line, the sweep and the start of a run are the real ones; only the run itself is this file again, which
counts its signals, saves after the first one, and ends.
"""

import os
import signal
import sys
import time
from pathlib import Path


def run(folder: Path, words: list[str]) -> None:
    """What `fit` does with signals, without the training."""
    from aeic_lightning import cli
    from aeic_lightning.run_folder import only_fit

    if "no-prctl" in words:
        cli._signal_at_death_of_parent = lambda: False
    if "importing" in words:  # no handler yet
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    received = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        (folder / "signals").write_text(" ".join(map(str, received)))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    cli.follow_parent()
    with only_fit(folder):
        (folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
        print("ready", flush=True)
        (folder / "pid").write_text(str(os.getpid()))
        until = time.monotonic() + (1 if "short" in words else 60)
        while time.monotonic() < until and (not received or "stubborn" in words):
            time.sleep(0.05)
        if received:
            time.sleep(0.3)  # saving takes a moment
            (folder / "saved").touch()
            sys.exit(130)


def sweep(file: str, words: list[str]) -> int:
    """`aeic_lightning sweep` on runs that are this file."""
    from aeic_lightning.cli import main
    from aeic_lightning.study.sweep_file import Run

    Run.command = property(lambda self: [sys.executable, __file__, "run", str(self.folder), *words])
    return main(["sweep", "--config", file])


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(sweep(sys.argv[1], sys.argv[2:]))
