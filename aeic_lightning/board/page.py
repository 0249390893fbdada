"""The board as one HTML file, without scripts."""

import time
from typing import Any

from aeic_lightning import __version__
from aeic_lightning.board.isolation import WORDS
from aeic_lightning.board.submission import Submission
from aeic_lightning.board.table import Board, with_interval
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.bd_rate import BDRate
from aeic_lightning.study.paper_points import DISTILLATION, IMAGES, published
from aeic_lightning.study.report.templates import templates
from aeic_lightning.study.results import Result, metrics_of


def page(board: Board, command: str) -> str:
    """HTML; everything from submissions is escaped."""
    environment = templates("aeic_lightning.board")
    names = ["bpp", *(metric.name for metric in metrics_of(board.results))]
    rows = []
    for found in board.accepted:
        assert found.result is not None
        assert found.submission is not None
        rows.append(_row(found.result, board, names) | {"how": _how(found.submission), "encoder": found.encoder})
    paper = published()
    columns = ["bpp_estimate", *(metric.name for metric in metrics_of(paper))]
    return environment.get_template("page.html").render(
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        command=command,
        images=board.images,
        metrics=[_title(name) for name in names],
        accepted=rows,
        refused=board.refused,
        rivals=[_row(result, board, names) | {"over": _over(result)} for result in board.rivals],
        isolation=[WORDS[kind] for kind in sorted({found.isolation for found in board.checked})],
        limits=board.settings.limits,
        bd=[_bd_row(row) for row in board.bd],
        paper_metrics=[_title(name) for name in columns],
        paper=[(r.name, [_figure(r, name) for name in columns]) for r in paper],
        paper_bd=[(dataset, _bd_row(row)) for dataset, row in board.published],
        paper_images=IMAGES,
        distillation=DISTILLATION,
        distilled=[_title(name) for name in next(iter(DISTILLATION.values()))],
    )


def _row(result: Result, board: Board, names: list[str]) -> dict[str, Any]:
    between = board.intervals.get(result.name, {})
    sizes = [row["bytes"] for row in result.images]
    cells = [with_interval(result.value(name), between.get(name), _digits(name)) for name in names]
    return {"name": result.name, "bytes": f"{sum(sizes) / len(sizes):.1f}", "cells": cells}


def _how(submission: Submission) -> dict[str, Any]:
    return {
        "authors": submission.authors,
        "link": submission.link if submission.link.startswith(("https://", "http://")) else "",
        "decoder": f"{submission.decoder_bytes:,}",
        "where": f"container {submission.container}" if submission.container else
        f"environment {submission.environment.name}" if submission.environment else "the board's environment",
        "command": " ".join(submission.decode),
    }  # fmt: skip


def _over(result: Result) -> str:
    over = sum(bool(row.get("over_target")) for row in result.images)
    return f"{over} of {len(result.images)}" if over else ""


def _bd_row(row: BDRate) -> dict[str, Any]:
    between = f"{row.interval[0]:+.1f} to {row.interval[1]:+.1f} %" if row.interval else "–"
    shown = "refused" if row.percent is None else f"{row.percent:+.2f} %"
    return {
        "test": row.test, "reference": row.reference, "metric": _title(row.metric), "percent": shown,
        "interval": between, "overlap": "–" if row.overlap is None else f"{row.overlap:.0%}",
        "note": row.reason or "; ".join(row.notes),
    }  # fmt: skip


def _figure(result: Result, name: str) -> str:
    return with_interval(result.value(name), None, _digits(name))


def _title(name: str) -> str:
    metric = find_metric(name)
    return metric.full if metric else name


def _digits(name: str) -> int:
    metric = find_metric(name)
    return 5 if name == "bpp_estimate" or (metric and metric.title == "KID") else metric.digits if metric else 4
