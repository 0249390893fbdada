"""`plan` (and `fit --dry-run`): what an experiment needs, before it is run."""

import argparse
from dataclasses import asdict
from typing import Any

from aeic_lightning.config import load_config, parse_overrides
from aeic_lightning.output import add_json_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment file; overrides work as in `fit`."""
    parser.usage = f"{parser.prog} --config FILE [--section.name=value ...]"
    parser.add_argument("--config", action="append", required=True, help="experiment file; later ones win")
    add_json_argument(parser)
    parser.epilog = "exit code 0 when nothing is missing, 2 when something is"


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Print parameters, memory and what is missing."""
    return print_plan_of(load_config(args.config, parse_overrides(extra)), args)


def print_plan_of(config: dict[str, Any], args: argparse.Namespace) -> int:
    """The same for a config that has been read, by `fit --dry-run` too."""
    from aeic_lightning.study.plan import make_plan, print_plan

    plan = make_plan(config, args.config[-1])
    args.give(asdict(plan) | {"memory_bytes": plan.memory})
    return print_plan(plan)
