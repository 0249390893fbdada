"""How much results differ from one of them, image by image, with 95 % intervals of the means over images.

    python -m benchmarks.paired results/ladder/mixed.json [FILE ...] [--reference PART_OF_A_NAME]

Files are those of `evaluate`, of the same images. The reference is the first result, or the one whose name has these
letters. The interval is that of `benchmarks.shipped_page.interval`; metrics of a whole set, as FID, have none.
"""

import argparse

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.study.results import Result, check_same_images, read_results
from benchmarks.shipped_page import difference, metrics_of


def table(reference: Result, others: list[Result]) -> list[str]:
    """A row for each other result and metric. Raises UserError for results of other images."""
    lines = ["| result | metric | difference | 95 % interval |", "|---|---|---|---|"]
    for other in others:
        check_same_images([reference, other])
        for metric in ("bytes", *metrics_of({0.0: [reference, other]})):
            mean, bounds = difference(reference, other, metric)
            if bounds is not None:
                lines.append(f"| {other.name} | {metric} | {mean:+.4f} | {bounds[0]:+.4f} to {bounds[1]:+.4f} |")
            elif not np.isnan(mean):
                lines.append(f"| {other.name} | {metric} | {mean:+.4g} | |")
    return lines


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--reference", default="", metavar="NAME")
    args = parser.parse_args()
    results = read_results(args.files)
    found = [result for result in results if args.reference in result.name]
    if not found:
        raise SystemExit(f"error: no result is called {args.reference}; there are {[r.name for r in results]}")
    try:
        print(*table(found[0], [result for result in results if result is not found[0]]), sep="\n")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
