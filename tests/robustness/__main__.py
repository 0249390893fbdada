"""Kills, signals, bad input, names, damaged streams and data-parallel runs, tried on this machine.

    python -m tests.robustness [PART ...] [--stages NAME,...] [--kills N] [--streams N] [--table FILE]

Without words all parts are tried; half an hour on two idle cores. Writes Markdown tables to standard output and to
FILE. Exit code 1 if anything went wrong. The part `streams` needs `pip install atheris`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.robustness.runs import ROOT, import_everything

SWEEPS = "tests/study/test_sweep_processes.py::test_"
SIGNALS = {
    "`sweep`: SIGINT, SIGTERM, SIGHUP, to the process and to its group": f"{SWEEPS}a_signal_to_the_sweep",
    "`sweep`: SIGKILL": f"{SWEEPS}runs_notice",
    "`sweep`: a second signal": f"{SWEEPS}a_second_signal",
    "`sweep`: what reads its output goes away": f"{SWEEPS}a_reader_that_goes_away",
    "`sweep`: SIGHUP under `nohup`": f"{SWEEPS}nohup",
    "`fit`: SIGINT": "tests/test_cli.py::test_ctrl_c",
    "`fit`, a step that hangs in the process itself: SIGINT, SIGTERM": "tests/callbacks/test_hanging.py::test_a_signal",
    "`fit` with workers: SIGTERM to the group": "tests/test_run_folder.py::test_sigterm_to_the_whole_group",
    "all commands but `fit` and `sweep`: SIGTERM, SIGHUP": "tests/test_stopping.py::test_a_command",
    "`export`, in the middle of its folder: SIGTERM, SIGHUP": "tests/test_stopping.py::test_export",
    "all but `fit` and `sweep`: an ignored signal": "tests/test_stopping.py::test_an_ignored",
    "workers that are killed, stopped, hang, or cannot start": "tests/datamodules/test_workers.py::test_",
    "`fit` in a SLURM job: SIGUSR1": "tests/checkpoints/test_checkpoint_files.py::test_slurms_signal",
}
SAME = {
    "pixels and weights laid out in memory in other ways": "tests/bitstream/test_settings.py::test_every_layout",
    "batches, numbers of threads": "tests/bitstream/test_settings.py::test_batches",
    "settings of the process: PyTorch's and numpy's": "tests/bitstream/test_settings.py::test_what_the_process",
    "a receiver without the encoder's class": "tests/bitstream/test_settings.py::test_a_receiver",
    "images as files and as opened by Pillow, cut short too; colours": "tests/test_colours.py::test_",
    "readers that go away, full disks, names that command a terminal": "tests/test_readers.py::test_",
}
NAMES = {
    "names of images, and the files made of them": "tests/test_files.py::test_",
    "folders of runs, and who may train there": "tests/test_run_folder.py::test_",
    "values of a sweep file": "tests/study/test_sweeps.py::test_a_value_reaches",
    "images that would leave the folder": "tests/robustness/test_robustness.py::test_an_images_name",
}
"""What was tried, and the tests that try it, by the beginning of their names."""


def tests_table(head: str, rows: dict[str, str]) -> tuple[list[str], bool]:
    """One row an entry of `rows`: how many tests there are, and how many passed."""
    lines, well = [f"| {head} | tried | passed |", "|---|---|---|"], True
    for what, tests in rows.items():
        file, name = tests.split("::")
        words = ["-m", "pytest", file, "-k", name]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
        passed = counts.get("passed", 0)
        lines.append(f"| {what} | {sum(counts.values())} | {passed} |")
        well &= done.returncode == 0 and passed > 0
    return lines, well


def kills_table(folder: Path, stages: list[str] | None, limit: int | None) -> tuple[list[str], bool]:
    """One row a stage."""
    from tests.robustness import kills

    outcomes = kills.trial(folder, stages or list(kills.STAGES), limit)
    lines = ["| stage | killed at | kills | equal to the undisturbed run |", "|---|---|---|---|"]
    for stage, outcome in outcomes.items():
        verdict = "yes" if not outcome.differences else f"no: {len(outcome.differences)} differences"
        missed = f" (not reached: {', '.join(outcome.missed)})" if outcome.missed else ""
        lines.append(f"| {stage} | {', '.join(outcome.killed)}{missed} | {len(outcome.killed)} | {verdict} |")
    total = sum(len(outcome.killed) for outcome in outcomes.values())
    well = sum(not outcome.differences for outcome in outcomes.values())
    lines.append(f"| {len(outcomes)} stages | | {total} | {well} of {len(outcomes)} |")
    return lines, well == len(outcomes) and not any(outcome.missed for outcome in outcomes.values())


def seeds_table(folder: Path) -> tuple[list[str], bool]:
    """The same seed again, and another one."""
    from tests.robustness import kills
    from tests.robustness.runs import run

    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        if run(kills.words("codec", folder / name, seed), folder / f"{name}.log"):
            raise SystemExit((folder / f"{name}.log").read_text()[-2000:])
    again = kills.differences(folder / "one/codec", folder / "again/codec")
    other = kills.differences(folder / "one/codec", folder / "other/codec")
    curves = sum(line.startswith("curve train/loss") for line in other)
    lines = [
        "| runs of one command | differences |",
        "|---|---|",
        f"| the same seed | {len(again)} |",
        f"| another seed | {len(other)}, the loss at {curves} of {kills.STEPS} steps among them |",
    ]
    return lines, not again and curves == kills.STEPS


def inputs_table(folder: Path) -> tuple[list[str], bool]:
    """One row a kind of input."""
    from tests.robustness import inputs

    verdicts = inputs.trial(folder)
    groups: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        kind = name.split(":")[0] if ":" in name else "folders and runs"
        groups.setdefault(kind, []).append(verdict)
    lines = ["| input | tried | one clear line, exit code 2 |", "|---|---|---|"]
    lines += [f"| {kind} | {len(group)} | {group.count('')} |" for kind, group in groups.items()]
    well = list(verdicts.values()).count("")
    lines.append(f"| all | {len(verdicts)} | {well} |")
    return lines, well == len(verdicts)


def processes_table(folder: Path) -> tuple[list[str], bool]:
    """Two processes against one with the joint batch."""
    from tests.robustness import processes

    lines = [
        "| batches a step | generator's gradient | discriminator's gradient | both processes' weights "
        "| each image once | PSNR |",
        "|---|---|---|---|---|---|",
    ]
    well = True
    for accumulate in (1, 2):
        got = processes.trial(folder, accumulate)
        worst = {player: max(errors) for player, errors in got.gradients.items()}
        lines.append(
            f"| {accumulate} | {worst['generator']:.1e} | {worst['discriminator']:.1e} "
            f"| {'equal' if got.ranks_agree else 'DIFFERENT'} | {'yes' if got.images_once else 'NO'} "
            f"| {got.figures:.1e} |"
        )
        well &= max(worst.values()) < 1e-4 and got.ranks_agree and got.images_once and got.figures < 1e-4
    return lines, well


def streams_table(folder: Path, count: int) -> tuple[list[str], bool]:
    """One row a target of the fuzzer."""
    from tests.robustness import fuzz

    folder.mkdir(parents=True)
    return fuzz.table(fuzz.counts(count), folder)


PARTS = ["kills", "seeds", "signals", "inputs", "names", "same", "streams", "processes"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--stages", type=lambda text: text.split(","), help="of the kills (default: all)")
    parser.add_argument("--kills", type=int, help="most kills per stage")
    parser.add_argument("--streams", type=int, default=100_000, help="number of streams")
    parser.add_argument("--table", type=Path, help="write the tables there")
    parser.add_argument("--folder", type=Path, help="keep the runs there (default: a temporary folder)")
    args = parser.parse_args(argv)
    parts = args.parts or PARTS
    import_everything()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        tables, well = [], True
        for part in parts:
            trials = {
                "kills": lambda: kills_table(folder / "kills", args.stages, args.kills),
                "seeds": lambda: seeds_table(folder / "seeds"),
                "signals": lambda: tests_table("command and signal", SIGNALS),
                "inputs": lambda: inputs_table(folder / "inputs"),
                "names": lambda: tests_table("names", NAMES),
                "same": lambda: tests_table("the same bytes, pictures and files under", SAME),
                "streams": lambda: streams_table(folder / "streams", args.streams),
                "processes": lambda: processes_table(folder / "processes"),
            }
            if part not in trials:
                parser.error(f"no part {part!r}; there are {', '.join(trials)}")
            lines, passed = trials[part]()
            tables.append("\n".join(lines))
            well &= passed
            print(f"\n{tables[-1]}\n", flush=True)
    if args.table:
        args.table.write_text("\n\n".join(tables) + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
