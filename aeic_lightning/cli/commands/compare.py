"""`compare`: finished runs side by side."""

import argparse
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.files import check_can_write
from aeic_lightning.output import add_json_argument, give_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run folders and where the result goes."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="run folder, or a model: a shipped one's name, a checkpoint, a folder of weights; the teacher's first",
    )  # fmt: skip
    parser.add_argument(
        "--bpp", type=float, metavar="BPP",
        help="compare files of at most BPP bits per pixel (default with a model: 0.06), not the last validations",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for comparison.md, .json and .png")
    add_json_argument(parser)
    parser.add_argument(
        "--with-paper",
        nargs="?",
        const="DIV2K",
        choices=("Kodak", "DIV2K", "CLIC"),
        metavar="DATASET",
        help="add the paper's results on Kodak, DIV2K (default) or CLIC, and the settings that differ from the paper's",
    )


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write and print the comparison."""
    refuse_extra(extra)
    check_can_write(args.out, folder=True)
    from aeic_lightning.study.views import compare_runs

    compare_runs(args.runs, args.out, args.with_paper, args.bpp)
    give_file(args, args.out / "comparison.json")
