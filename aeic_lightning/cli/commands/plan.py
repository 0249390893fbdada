"""`plan` (and `fit --dry-run`): what an experiment needs, before it is run."""

import argparse

from aeic_lightning.config import load_config, parse_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment file; overrides work as in `fit`."""
    parser.usage = f"{parser.prog} --config FILE [--section.name=value ...]"
    parser.add_argument("--config", action="append", required=True, help="experiment file; later ones win")
    parser.epilog = "exit code 0 when nothing is missing, 2 when something is"


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Print parameters, memory and what is missing."""
    config = load_config(args.config, parse_overrides(extra))

    from aeic_lightning.study.plan import make_plan, print_plan

    return print_plan(make_plan(config, args.config[-1]))
