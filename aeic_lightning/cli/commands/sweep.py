"""`sweep`: a list of experiments, each after those it needs, then a comparison."""

import argparse
from pathlib import Path

from aeic_lightning.output import add_json_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sweep's file; overrides reach the sweep file itself."""
    parser.usage = f"{parser.prog} --config FILE [--dry-run | --eta] [--vars.name=value ...]"
    parser.add_argument("--config", required=True, type=Path, help="sweep file (see experiments/sweeps/demo.yaml)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="list the runs, their commands and which are done")
    only.add_argument(
        "--eta", action="store_true", help="time a few steps of each experiment; say what is left, in hours"
    )
    only.add_argument("--evaluate", metavar="RUN", help="evaluate one finished run as the report does, on its images")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Run what is missing; 1 if a run failed."""
    from aeic_lightning.config import parse_overrides
    from aeic_lightning.study.runner import checked_settings, run_sweep
    from aeic_lightning.study.sweep_file import read_sweep

    sweep = read_sweep(args.config, parse_overrides(extra))
    if args.evaluate:
        from aeic_lightning.study.sweep_evaluation import evaluate_run

        evaluate_run(sweep, args.evaluate)
        return 0
    if args.eta:
        from aeic_lightning.study.eta import estimate

        args.give({"eta": estimate(sweep, checked_settings(sweep))})
        return 0
    code = run_sweep(sweep, args.dry_run)
    args.give({"runs": [{"name": r.name, "folder": str(r.folder), "done": r.done} for r in sweep.runs]})
    return code
