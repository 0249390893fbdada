"""`bd-rate`: curves against a reference curve."""

import argparse
from dataclasses import asdict
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import check_can_write
from aeic_lightning.output import add_json_argument, align

EPILOG = """
Sources are run folders, and JSON files of evaluate, anchors and compare. Published points are paper:CODEC:DATASET,
with CODEC AEIC-ME, AEIC-SE or StableCodec and DATASET Kodak, DIV2K or CLIC.

examples:
  aeic-lightning bd-rate runs/depth/teacher_* --test runs/depth/student_* -o bd.json
  aeic-lightning bd-rate paper:AEIC-ME:Kodak --test paper:AEIC-SE:Kodak
  aeic-lightning bd-rate paper:StableCodec:Kodak --test paper:AEIC-SE:Kodak paper:AEIC-ME:Kodak
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Reference, tests, what is compared and where the result goes."""
    parser.epilog = EPILOG
    parser.add_argument("reference", nargs="+", metavar="REFERENCE", help="all points of the reference curve")
    parser.add_argument("--test", nargs="+", required=True, metavar="TEST", help="points of the other curves")
    parser.add_argument("--metric", nargs="+", help="metrics to hold equal; default: all that every result has")
    parser.add_argument("--rate", choices=["bpp", "bpp_estimate"], help="default: bpp where all results have it")
    parser.add_argument("--by", nargs="+", metavar="LABEL", help="labels that tell curves apart; default: all but "
                        "the seed and the setting of the rate")  # fmt: skip
    parser.add_argument("--min-overlap", type=float, default=0.5, metavar="SHARE",
                        help="refuse curves that share less of their range of quality; the difference at equal bits "
                        "stands in, by the same share of their rates (default 0.5)")  # fmt: skip
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; 0 for none (default 1000)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="write the table as JSON too")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Print the table. Exit code 1 if every comparison was refused."""
    refuse_extra(extra)
    if not 0 <= args.min_overlap <= 1 or args.resamples < 0:
        raise UserError("--min-overlap is a share from 0 to 1, and --resamples 0 or more")
    if args.out:
        check_can_write(args.out)
    require("bd-rate", "bjontegaard")

    from aeic_lightning.study.bd_rate import markdown_table
    from aeic_lightning.study.results import common_metrics, write_json
    from aeic_lightning.study.study import Study, group_apart

    sides = _results(args.reference), _results(args.test)
    references, tests = group_apart(sides, args.by)
    if len(references) > 1:
        names = "; ".join(curve.name for curve in references)
        raise UserError(f"the reference holds {len(references)} curves ({names}); give one, or pool them with --by")
    results = [result for curve in (*references, *tests) for result in curve.results]
    metrics = args.metric or common_metrics(results)
    if not metrics:
        raise UserError("the results have no metric in common; evaluate them with the same metrics")
    options = {"rates": args.rate, "min_overlap": args.min_overlap, "resamples": args.resamples}
    rows = Study().rates(references[0], tests, metrics, equal_bits=True, **options)
    print(align(markdown_table(rows)))
    document = {"format": "aeic_lightning bd-rate 1", "settings": options, "rows": [asdict(row) for row in rows]}
    args.give(document)
    if args.out:
        write_json(args.out, document)
        print(f"written: {args.out}")
    return 1 if all(row.reason for row in rows) else 0


def _results(sources: list[str]) -> list:
    from aeic_lightning.study.paper_points import published
    from aeic_lightning.study.results import read_results

    results = []
    for source in sources:
        if source.startswith("paper:"):
            codec, _, dataset = source.removeprefix("paper:").partition(":")
            results += published(codec, dataset)
        else:
            results += read_results([source])
    return results
