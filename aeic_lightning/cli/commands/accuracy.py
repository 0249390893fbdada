"""`accuracy`: what finished runs classify from the bytes of their files."""

import argparse
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.files import check_can_write
from aeic_lightning.output import add_json_argument, give_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run folders and where the result goes."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder of a classifying system")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for accuracy.md, .json and .png")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write the test images of every run as files, read them back, and print the table."""
    refuse_extra(extra)
    check_can_write(args.out, folder=True)
    from aeic_lightning.classification.comparison import compare_accuracy

    compare_accuracy(args.runs, args.out)
    give_file(args, args.out / "accuracy.json")
