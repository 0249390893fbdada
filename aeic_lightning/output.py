"""What commands print: tables whose columns align, and one JSON document on standard output under `--json`."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

JSON_HELP = "print one JSON document on standard output; what is read by people goes to standard error"


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json` for a command that hands its document to `args.give`; the command line sets that up."""
    parser.add_argument("--json", action="store_true", dest="document", help=JSON_HELP)
    parser.set_defaults(give=lambda document: None)


def give_file(args: argparse.Namespace, path: Path) -> None:
    """Hand a JSON file that the command has written to `args.give`; it is read only under `--json`."""
    if args.document:
        args.give(json.loads(path.read_text()))


@contextlib.contextmanager
def json_output(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """Within it, `print` goes to standard error if `wanted`; what is handed to the given function is the document.

    Numbers that JSON does not have (infinite, NaN) become null.
    """
    if not wanted:
        yield lambda document: None
        return
    with contextlib.redirect_stdout(sys.stderr):
        given: list[Any] = []
        yield given.append
    for document in given:
        print(json.dumps(finite_or_null(document), indent=1, allow_nan=False), flush=True)


def finite_or_null(value: Any) -> Any:
    """The same with None in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def clock(seconds: float) -> str:
    """h:mm:ss"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def align(text: str) -> str:
    """Markdown with the cells of each table padded to the width of their column; numbers to the right."""
    lines = []
    for is_table, group in groupby(text.split("\n"), lambda line: line.startswith("|") and line.endswith("|")):
        rows = list(group)
        lines += _aligned(rows) if is_table else rows
    return "\n".join(lines)


def _aligned(table: Sequence[str]) -> list[str]:
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table]
    if len({len(row) for row in rows}) > 1:  # a cell holds a bar of its own
        return list(table)
    widths = [max(3, *(len(row[i]) for row in rows if not _rule(row))) for i in range(len(rows[0]))]
    right = [all(_number(row[i]) for row in rows[2:]) for i in range(len(widths))]
    lines = []
    for row in rows:
        cells = ["-" * width if _rule(row) else cell.rjust(width) if to_right else cell.ljust(width)
                 for cell, width, to_right in zip(row, widths, right, strict=True)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rule(row: Sequence[str]) -> bool:
    return all(cell and set(cell) <= set("-:") and len(cell) >= 3 for cell in row)


def _number(cell: str) -> bool:
    return not cell.strip("*") or cell.strip("*")[0] in "+-0123456789" or cell in ("infinite", "refused")
