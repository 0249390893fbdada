"""Whatever ends a sweep, its runs save and end, and nothing is left; real signals, on runs that train nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.study.executors import Gpus

FAKE = Path(__file__).with_name("fake_sweep.py")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Poll until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether there is such a process, zombies aside."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


class Sweep:
    """Two runs at a time, started as a user starts them, with the output in a pipe."""

    def __init__(self, folder: Path, runs: int = 2, workers: int = 2) -> None:
        self.root = folder / "runs"
        self.file = folder / "sweep.yaml"
        (folder / "a.yaml").write_text("x: 1")
        entries = "\n".join(f"- {{name: r{i}, config: a.yaml}}" for i in range(runs))
        self.file.write_text(f"root: {self.root}\nworkers: {workers}\nruns:\n{entries}\n")
        self.folders = [self.root / f"r{i}" for i in range(runs)]
        self.started: list[subprocess.Popen] = []

    def start(self, *words: str, gpus: str = "", prefix: tuple[str, ...] = ()) -> subprocess.Popen:
        """A sweep in a session of its own, as a terminal gives it one."""
        command = [*prefix, sys.executable, str(FAKE), str(self.file), *words]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus},
        )  # fmt: skip
        self.started.append(process)
        return process

    def wait_until_running(self) -> list[int]:
        """Process ids of the runs."""
        wait_for(lambda: all((f / "pid").is_file() and (f / "pid").read_text() for f in self.folders), "a start")
        return self.pids()

    def pids(self) -> list[int]:
        """Of the runs that began."""
        return [int((f / "pid").read_text()) for f in self.folders if (f / "pid").is_file()]

    def signals(self) -> list[str]:
        """What each run received."""
        return [(f / "signals").read_text() for f in self.folders]

    def saved(self) -> bool:
        """Whether every run has saved."""
        return all((f / "saved").is_file() for f in self.folders)


@pytest.fixture
def sweep(tmp_path) -> Iterator[Sweep]:
    made = Sweep(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    for pid in made.pids():
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def heard():
    """Signals that are not ignored, as SIGHUP is below nohup; a program that is started has them at their default."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to", ["process", "group"])
def test_a_signal_to_the_sweep_ends_its_runs_with_their_checkpoints(sweep, number, to):
    process = sweep.start()
    pids = sweep.wait_until_running()
    (os.kill if to == "process" else os.killpg)(process.pid, number)
    said, _ = process.communicate(timeout=30)  # returns once nothing holds the pipe open
    assert process.returncode == 128 + number
    assert "stopping: r0, r1" in said
    assert sweep.saved()
    assert sweep.signals() == [str(int(signal.SIGTERM))] * 2, "one signal: a second one would end it at once"
    assert not any(map(alive, pids))


def test_runs_that_are_still_importing_end_too(sweep):
    """In the background of a script, where the shell has SIGINT ignored for the sweep and all below it."""
    process = sweep.start("importing", prefix=("sh", "-c", "trap '' INT; exec \"$@\"", "sh"))
    pids = sweep.wait_until_running()
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(map(alive, pids))


@pytest.mark.parametrize("word", ["prctl", "no-prctl"])
def test_runs_notice_that_their_sweep_was_killed(sweep, word):
    process = sweep.start(word)
    pids = sweep.wait_until_running()
    process.kill()
    process.communicate(timeout=10)  # the runs have nothing of its pipe
    wait_for(lambda: not any(map(alive, pids)), "the end of the runs", 10)
    assert sweep.saved()
    assert sweep.signals() == [str(int(signal.SIGTERM))] * 2


def test_a_second_signal_ends_runs_that_do_not_stop(sweep):
    process = sweep.start("stubborn")
    pids = sweep.wait_until_running()
    process.terminate()
    wait_for(lambda: all((f / "signals").is_file() for f in sweep.folders), "the first signal")
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(map(alive, pids))


def test_a_reader_that_goes_away_ends_nothing(sweep):
    process = sweep.start("short")
    sweep.wait_until_running()
    process.stdout.close()  # `sweep | head`
    with (sweep.folders[0] / "log.txt").open("a") as log:
        log.write("one more line, which the sweep tries to print\n")
    assert process.wait(timeout=30) == 0
    assert not sweep.saved(), "no run was told to stop"
    process.stdout = None


def test_nohup_goes_on(sweep):
    process = sweep.start("short", prefix=("nohup",))
    sweep.wait_until_running()
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "all 2 runs done" in said


def test_a_second_sweep_in_the_same_root_is_refused(sweep):
    first = sweep.start()
    sweep.wait_until_running()
    second = sweep.start()
    said, _ = second.communicate(timeout=30)
    assert second.returncode == 2
    assert f"process {first.pid} on " in said
    assert said.strip().count("\n") == 0
    first.kill()
    first.communicate(timeout=10)
    third = sweep.start("short")  # the lock went with the process; this one waits for the runs that are saving
    said, _ = third.communicate(timeout=30)
    assert third.returncode == 0, said


def test_each_worker_has_a_gpu_of_its_own(tmp_path):
    sweep = Sweep(tmp_path, runs=4)
    process = sweep.start("short", gpus="3,GPU-5")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    given = [(f / "gpus").read_text() for f in sweep.folders]
    assert set(given[:2]) == {"3", "GPU-5"}, "these two ran side by side"
    assert set(given) == {"3", "GPU-5"}


def test_gpus_go_to_whom_shares_them_with_the_fewest():
    gpus = Gpus(["0", "1", "2"])
    first, second = gpus.take(1), gpus.take(2)
    assert (first, second) == (["0"], ["1", "2"])
    assert gpus.take(1) == ["0"], "more workers than GPUs share them"
    gpus.give_back(second)
    assert gpus.take(2) == ["1", "2"]
    with pytest.raises(UserError, match="gpus is 4, but this machine has 3"):
        gpus.take(4)
    assert Gpus([]).take(1) is None, "no GPUs: the environment stays as it is"
