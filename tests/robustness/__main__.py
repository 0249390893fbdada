"""Kills, bad input and data-parallel runs, tried on this machine.

    python -m tests.robustness [kills|inputs|processes ...] [--stages NAME,...] [--kills N] [--table FILE]

Without words all three are tried; a quarter of an hour on two idle cores. Writes a Markdown table to standard output or
to FILE. Exit code 1 if anything went wrong.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.robustness.runs import import_everything


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="kills, seeds, inputs, processes (default: all)")
    parser.add_argument("--stages", type=lambda text: text.split(","), help="of the kills (default: all)")
    parser.add_argument("--kills", type=int, help="at most so many kills a stage")
    parser.add_argument("--table", type=Path, help="write the tables there")
    parser.add_argument("--folder", type=Path, help="keep the runs there (default: a temporary folder)")
    args = parser.parse_args()
    parts = args.parts or ["kills", "seeds", "inputs", "processes"]
    import_everything()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        tables, well = [], True
        for part in parts:
            trials = {
                "kills": lambda: kills_table(folder / "kills", args.stages, args.kills),
                "seeds": lambda: seeds_table(folder / "seeds"),
                "inputs": lambda: inputs_table(folder / "inputs"),
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
