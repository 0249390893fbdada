"""What commands print: tables whose columns align, and one JSON document on standard output under `--json`."""

import argparse
import contextlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from aeic_lightning.errors import ImageWarning

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
PARENT = "AEIC_PARENT_PROCESS"  # environment: the process id of a sweep, with which its runs end
JSON_HELP = "print one JSON document on standard output; what is read by people goes to standard error"


def counted(number: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def shown(text: object) -> str:
    """A name as it may be printed: one line, in which nothing moves a terminal's cursor or changes its colours.

    Control characters, line ends and what reverses the direction of writing become escapes (`\\n`, `\\x1b`).
    """
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else ascii(c)[1:-1] for c in str(text))


def is_first_process() -> bool:
    """Whether this is the first process of the run; launchers number the others."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


class Output:
    """Standard output or error as commands write to it: what reads it decides nothing, and no name controls it.

    Where the reader is gone (`| head -1`, a closed terminal) or the disk is full, what is printed is dropped and the
    work goes on; `lost` then holds the error. Control characters other than line ends and tabs are written as escapes,
    so that no file's name reaches a terminal as a command; what draws on a terminal takes `terminal` instead.
    """

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self.terminal.write(CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)))
        return len(text)

    def flush(self) -> None:
        self._try(self.terminal.flush)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def _try(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except OSError as error:
            self.lost = self.lost or error
            with contextlib.suppress(OSError, ValueError):  # what is still in a buffer would fail at the end again
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.terminal.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def heedless() -> Iterator[Output]:
    """Within, `sys.stdout` (which it gives) and `sys.stderr` are an `Output`, and warnings of images are one line."""
    before = sys.stdout, sys.stderr, warnings.formatwarning
    out = Output(sys.stdout)
    sys.stdout, sys.stderr = out, Output(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue] (as a text stream)
    warnings.formatwarning = image_warnings_in_words(warnings.formatwarning)
    try:
        yield out
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr, warnings.formatwarning = before


def image_warnings_in_words(others: Callable[..., str]) -> Callable[..., str]:
    """`warnings.formatwarning` that says of an image what is wrong, and not which line of the code found it."""

    def form(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        return (
            f"warning: {message}\n" if issubclass(category, ImageWarning) else others(message, category, *where, **more)
        )

    return form


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
