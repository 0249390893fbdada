"""`report`: one page of any runs and result files."""

import argparse
import sys
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import check_can_write
from aeic_lightning.output import shown
from aeic_lightning.provenance import command_line

EXAMPLES = """examples:
  report runs/depths/* -o depths.html
  report results/depths.json results/anchors.json -o depths.html --reference role=teacher --reference jpeg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs and files, where the page goes, and what BD-rates are against."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RUN_OR_JSON",
        help="run folder, or a file of evaluate, anchors, compare or accuracy",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.html", help="the page")
    parser.add_argument(
        "--reference", action="append", default=[], metavar="LABEL=VALUE[,...]|NAME",
        help="what BD-rates are against; may be given again (default: the teacher, or else the first anchor)",
    )  # fmt: skip
    parser.add_argument("--title", default="Rate, distortion and perception", help="heading of the page")
    parser.add_argument(
        "--max-images", type=int, default=6, metavar="N", help="images of each set that are embedded (default: 6)"
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="resamples behind each interval (default: 1000)"
    )


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write the page and say what is in it."""
    refuse_extra(extra)
    if args.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{args.out}: the report is a page; name a file that ends in .html")
    if args.max_images < 0 or args.resamples < 2:
        raise UserError("--max-images starts at 0 and --resamples at 2")
    check_can_write(args.out)
    require("report", "bjontegaard", "jinja2", "plotly")
    from aeic_lightning.study.report.page import write_report

    said = write_report(
        _results(args.results), args.out, args.reference,
        title=args.title, max_images=args.max_images, resamples=args.resamples, command=command_line(),
    )  # fmt: skip
    print(f"written: {args.out} ({said})")


RUN = ("run.json", "config.yaml", "metrics_val.json")


def _results(paths: list[Path]) -> list[Path]:
    """Without folders that are no runs, which `DIR/*/` names as well; a warning names each. All, if none is a run."""
    others = [path for path in paths if path.is_dir() and not any((path / name).exists() for name in RUN)]
    if len(others) == len(paths):
        return paths
    for path in others:
        print(shown(f"warning: {path} was skipped: it holds no run"), file=sys.stderr)
    return [path for path in paths if path not in others]
