"""BD-rate: how many more bits a codec spends than another for the same quality, on average, and how sure that is.

The logarithm of the rate is interpolated over the quality, and averaged over the qualities that both curves reach
(Bjontegaard, VCEG-M33, 2001); interpolation and integration are those of the `bjontegaard` package. Negative: the test
saves bits. A BD-rate is only as good as the overlap of the two curves, so it comes with that and with what the other
interpolators give, and is refused where too little overlaps.

Two curves of very different quality have few qualities in common but may have most rates: then `bd_quality`, the same
note's other figure (its BD-PSNR, for any metric), says how much better one is for the same bits.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.curves import Curve
from aeic_lightning.study.rate_points import Arrays, RatePoints, interval, overlap, pair
from aeic_lightning.study.results import Result

INTERPOLATORS = ("pchip", "akima", "cubic")
"""`cubic` is one polynomial, fitted to all points; it needs four of them."""
MIN_OVERLAP = 0.5
CONTRADICTION, DOUBT = 1.25, 1.05
"""Ratios of the rates that two interpolators find. Above the first, PCHIP and Akima, which both pass through the
points, contradict each other and the BD-rate is refused; above the second, it comes with a note. So does a cubic fit,
which is one polynomial and strays further, above the first."""


@dataclass(frozen=True)
class BDRate:
    """A curve against a reference.

    Attributes:
        reference, test: names of the curves.
        metric: the quality that is held equal.
        percent: BD-rate by pchip, %; None if refused, and `reason` says why.
        interval: 95 %, percentiles of the bootstrap; None where there is nothing to resample.
        interval_over: what was drawn anew: "images", "seeds" or "images and seeds".
        overlap: qualities that both reach over qualities that either does, 0 to 1.
        by_interpolator: BD-rate by each, %.
        rates: "bpp", or "bpp_estimate" where one side has no files; never one against the other.
        points: rate points of reference and test.
        images: images behind each point; None if unknown.
        seeds: seeds of reference and test.
        notes: what a reader should know.
        reason: why the BD-rate is refused.
        equal_bits: where it is refused, and where asked for: the BD-quality, if there is one.
    """

    reference: str
    test: str
    metric: str
    percent: float | None = None
    interval: tuple[float, float] | None = None
    interval_over: str | None = None
    overlap: float | None = None
    by_interpolator: dict[str, float] = field(default_factory=dict)
    rates: str | None = None
    points: tuple[int, int] | None = None
    images: int | None = None
    seeds: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    reason: str | None = None
    equal_bits: "BDQuality | None" = None


@dataclass(frozen=True)
class BDQuality:
    """How much more of a metric a curve has than a reference at equal bits, averaged over the logarithm of the rate.

    Attributes:
        difference: test less reference, in the metric's unit, by pchip.
        interval: 95 %; see `BDRate`.
        overlap: rates that both reach over rates that either does, on a logarithmic scale, 0 to 1.
        images: images behind each point; None if unknown.
        seeds: seeds of reference and test.
    """

    difference: float
    interval: tuple[float, float] | None
    overlap: float
    images: int | None
    seeds: tuple[int, int]

    def words(self, metric: str) -> str:
        """As in a table: `-0.0831 (-0.0912 to -0.0750)`."""
        known = find_metric(metric)
        said = [
            known.difference(value) if known else f"{value:+.4g}" for value in (self.difference, *(self.interval or ()))
        ]
        return f"{said[0]} ({' to '.join(said[1:])})" if self.interval else said[0]


def bd_rate(
    reference: Sequence[Result],
    test: Sequence[Result],
    metric: str,
    *,
    rates: str | None = None,
    min_overlap: float = MIN_OVERLAP,
    resamples: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = ("reference", "test"),
) -> BDRate:
    """BD-rate of one curve against another, with an interval by `rate_points.interval`.

    Args:
        reference, test: results of one curve each, of any number of seeds; a point is what shares `RATE_LABELS`.
        metric: name of a metric of images or of the set.
        rates: "bpp" or "bpp_estimate"; by default bpp where all results have it, else the estimate.
        min_overlap: refuse below, and always where nothing overlaps.
        resamples: of the bootstrap; 0 for none.
        seed: of the bootstrap.
        names: of the curves, for messages.

    Raises UserError where there is no BD-rate that means something: other images, missing metrics or points, too few
    points, too little overlap, or interpolators that contradict each other.
    """
    found = pair(reference, test, metric, rates, names)
    notes = found.notes + [n for points in (found.reference, found.test) if (n := _not_monotone(points, metric))]
    curves = found.curves
    shared = overlap(*(quality for _, quality in curves))
    if shared < min_overlap or not shared:
        ranges = " and ".join(f"{q[0]:.4g} to {q[-1]:.4g}" for _, q in curves)
        raise UserError(
            f"the curves share {shared:.0%} of their range in {metric} ({ranges}), less than the {min_overlap:.0%} "
            "asked for: a BD-rate would rest on too little; add rate points where they meet"
        )
    usable = [kind for kind in INTERPOLATORS if kind != "cubic" or min(len(q) for _, q in curves) > 3]
    by_interpolator = {kind: _bd_rate(*curves, kind, metric) for kind in usable}
    senseless = [kind for kind, percent in by_interpolator.items() if not _within_reach(percent, *curves)]
    for kind in senseless:
        del by_interpolator[kind]
    if "pchip" in senseless:
        raise UserError(f"the curves have no BD-rate in {metric} by pchip: their rates are too far apart or too few")
    notes += _disagreements(by_interpolator, metric)
    if senseless:
        notes.append(f"{' and '.join(senseless)} left the range of the measured rates and is not shown")
    between, over, note = interval(found, lambda a, b: _bd_rate(a, b, "pchip"), resamples, seed)
    return BDRate(
        reference=names[0],
        test=names[1],
        metric=metric,
        percent=by_interpolator["pchip"],
        interval=between,
        interval_over=over,
        overlap=shared,
        by_interpolator=by_interpolator,
        rates=found.rates,
        points=(len(curves[0][0]), len(curves[1][0])),
        images=found.images,
        seeds=(len(found.reference.seeds), len(found.test.seeds)),
        notes=notes + ([note] if note else []),
    )


def bd_quality(
    reference: Sequence[Result],
    test: Sequence[Result],
    metric: str,
    *,
    rates: str | None = None,
    min_overlap: float = MIN_OVERLAP,
    resamples: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = ("reference", "test"),
) -> BDQuality:
    """BD-quality of one curve against another: what the metric differs by at equal bits. Arguments: see `bd_rate`.

    Raises UserError where there is none that means something; the overlap is that of the logarithms of the rates.
    """
    found = pair(reference, test, metric, rates, names)
    shared = overlap(*(np.log(rate) for rate, _ in found.curves))
    if shared < min_overlap or not shared:
        raise UserError(f"the curves share {shared:.0%} of their rates, less than the {min_overlap:.0%} asked for")
    difference = _bd_quality(*found.curves)
    between, *_ = interval(found, _bd_quality, resamples, seed)
    return BDQuality(difference, between, shared, found.images, (len(found.reference.seeds), len(found.test.seeds)))


def bd_rates(
    reference: Curve, tests: Iterable[Curve], metrics: Sequence[str], *, equal_bits: bool = False, **options: Any
) -> list[BDRate]:
    """Every curve against the reference by every metric; one that is refused has its `reason`.

    This is where all commands get their rows.

    Args:
        reference, tests: the curves.
        metrics: names.
        equal_bits: find the BD-quality where the BD-rate is refused.
        options: of `bd_rate`.
    """
    rows = []
    for test in tests:
        names = (reference.name, test.name)
        for metric in metrics:
            try:
                rows.append(bd_rate(reference.results, test.results, metric, names=names, **options))
            except UserError as error:
                rows.append(BDRate(*names, metric, reason=str(error)))
                if equal_bits:
                    with suppress(UserError):
                        instead = bd_quality(reference.results, test.results, metric, names=names, **options)
                        rows[-1] = replace(rows[-1], equal_bits=instead)
    return rows


def common_metrics(results: Iterable[Result]) -> list[str]:
    """Metrics of quality that every result has, in the order of the first."""
    results = list(results)
    names = dict.fromkeys([*results[0].metrics, *results[0].set_metrics]) if results else {}

    def has(result: Result, name: str) -> bool:
        return name in result.metrics or result.set_metrics.get(name, {}).get("value") is not None

    return [name for name in names if find_metric(name) and all(has(result, name) for result in results)]


def markdown_table(rows: Sequence[BDRate]) -> str:
    """One row a comparison, and under the table what was refused and what should be known."""
    head = [
        "test",
        "against",
        "metric",
        "BD-rate",
        "95 % interval",
        "overlap",
        *INTERPOLATORS,
        "rate",
        "points",
        "images",
        "seeds",
    ]
    if any(row.equal_bits for row in rows):
        head.append("at equal bits")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    remarks: dict[str, list[str]] = {}
    for row in rows:
        cells = [row.test, row.reference, row.metric]
        if row.reason:
            cells += ["refused"] + ["-"] * 9 + ([row.equal_bits.words(row.metric)] if row.equal_bits else [])
            remarks.setdefault(row.reason, []).append(f"{row.test} by {row.metric}")
        else:
            cells += [
                f"{row.percent:+.2f} %",
                f"{row.interval[0]:+.2f} to {row.interval[1]:+.2f}" if row.interval else "-",
                f"{row.overlap:.0%}",
                *(f"{row.by_interpolator[k]:+.2f}" if k in row.by_interpolator else "-" for k in INTERPOLATORS),
                row.rates,
                "-".join(map(str, dict.fromkeys(row.points or ()))),
                "-" if row.images is None else str(row.images),
                "-".join(map(str, dict.fromkeys(row.seeds or ()))),
            ]
            for note in row.notes:
                remarks.setdefault(note, []).append(f"{row.test} by {row.metric}")
        cells += ["-"] * (len(head) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    drawn = list(dict.fromkeys(row.interval_over for row in rows if row.interval_over))
    over = f" Intervals: bootstrap over {' or '.join(drawn)}." if drawn else ""
    lines += ["", f"Negative: the test spends fewer bits for the same quality. BD-rate is by pchip.{over}"]
    if "at equal bits" in head:
        lines[-1] += (
            " At equal bits: where a BD-rate is refused, what the metric differs by at the rates that both reach."
        )
    lines += [f"- {', '.join(where)}: {remark}" for remark, where in remarks.items()]
    return "\n".join(lines) + "\n"


def to_records(rows: Sequence[BDRate]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(row) for row in rows]


def _not_monotone(points: RatePoints, metric: str) -> str | None:
    rate, _ = points.curve()
    known = find_metric(metric)
    steps = np.diff(rate)
    if (steps > 0).all() if known and known.higher else (steps < 0).all() if known else len(set(np.sign(steps))) == 1:
        return None
    return f"{points.name} does not get better in {metric} with every step in rate, so the BD-rate depends on its noise"


def _disagreements(by_interpolator: dict[str, float], metric: str) -> list[str]:
    """Notes on interpolators that give another BD-rate. Raises UserError where they contradict each other."""
    pchip, notes = by_interpolator["pchip"], []
    for kind, percent in by_interpolator.items():
        ratio = math.exp(abs(math.log1p(percent / 100) - math.log1p(pchip / 100)))
        if kind == "akima" and ratio > CONTRADICTION:
            raise UserError(
                f"the curves have no BD-rate in {metric}: {pchip:+.1f} % by pchip contradicts {percent:+.1f} % by "
                "akima; add rate points"
            )
        if ratio > (DOUBT if kind == "akima" else CONTRADICTION):
            notes.append(f"{kind} gives {percent:+.1f} % where pchip gives {pchip:+.1f} %")
    return notes


def _within_reach(percent: float, reference: Arrays, test: Arrays) -> bool:
    """Whether a BD-rate is one that the measured rates could have: their extremes, and as much again for overshoot."""
    (a, _), (b, _) = reference, test
    low, high = b.min() / a.max(), b.max() / a.min()
    return bool(math.isfinite(percent) and low / 2 <= 1 + percent / 100 <= 2 * high)


def _bd_rate(reference: tuple, test: tuple, kind: str, metric: str = "the metric") -> float:
    """NaN where the curves do not overlap. Raises UserError for two points of equal quality."""
    import bjontegaard  # with it comes pyplot, which takes a second to import

    (rate_a, quality_a), (rate_b, quality_b) = reference, test
    if not all((np.diff(quality) > 0).all() for quality in (quality_a, quality_b)):
        raise UserError(f"two points of a curve are equal in {metric}: leave one out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing overlaps; and cubic fits of curves that are nearly straight
        return float(
            cast(
                float,
                bjontegaard.bd_rate(
                    rate_a, quality_a, rate_b, quality_b, kind, require_matching_points=False, min_overlap=0
                ),
            )
        )


def _bd_quality(reference: Arrays, test: Arrays) -> float:
    """NaN where the rates do not overlap. Raises UserError for two points of equal rate."""
    import bjontegaard  # see above

    (rate_a, quality_a), (rate_b, quality_b) = (_by_rate(*points) for points in (reference, test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing overlaps
        return float(
            cast(
                float,
                bjontegaard.bd_psnr(
                    rate_a, quality_a, rate_b, quality_b, "pchip", require_matching_points=False, min_overlap=0
                ),
            )
        )


def _by_rate(rate: np.ndarray, quality: np.ndarray) -> Arrays:
    order = np.argsort(rate, kind="stable")
    if not (np.diff(rate[order]) > 0).all():
        raise UserError("two points of a curve have equal rates: leave one out")
    return rate[order], quality[order]
