"""BD-rate: how many more bits a codec spends than another for the same quality, on average, and how sure that is.

The logarithm of the rate is interpolated over the quality, and averaged over the qualities that both curves reach
(Bjontegaard, VCEG-M33, 2001); interpolation and integration are those of the `bjontegaard` package. Negative: the test
saves bits. A BD-rate is only as good as the overlap of the two curves, so it comes with that and with what the other
interpolators give, and is refused where too little overlaps.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.curves import Curve, check_same_images, shared_rate
from aeic_lightning.study.results import RATE_LABELS, Result

INTERPOLATORS = ("pchip", "akima", "cubic")
"""`cubic` is one polynomial, fitted to all points; it needs four of them."""
MIN_OVERLAP = 0.5
MIN_POINTS = 3
DEFINED = 0.95  # of the resamples must give a BD-rate, or there is no interval


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


@dataclass(frozen=True)
class _Points:
    """One curve as arrays. Without metrics by image, the last axis has the mean alone."""

    name: str
    rate: np.ndarray  # (seeds, points, images), bits per pixel
    quality: np.ndarray  # (seeds, points, images), or (seeds, points, 1) for a metric of the whole set
    seeds: list

    def curve(self, seeds: np.ndarray | None = None, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rate and quality of each point, means over the seeds and images drawn, by rising quality."""
        rate, quality = self.rate, self.quality
        if seeds is not None:
            rate, quality = rate[seeds], quality[seeds]
        if images is not None:
            rate, quality = rate[..., images], quality[..., images]
        rate, quality = rate.mean((0, 2)), quality.mean((0, 2))
        order = np.argsort(quality, kind="stable")
        return rate[order], quality[order]


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
    """BD-rate of one curve against another.

    The bootstrap draws images by name, the same for both curves: the codecs meet the same hard and easy images. Seeds
    are drawn where there are several: together if both curves have the same ones (a student's seed is that of its
    teacher), else each by itself. A drawn seed takes all its points along.

    Args:
        reference, test: results of one curve each, of any number of seeds; a point is what shares `RATE_LABELS`.
        metric: name of a metric of images or of the set.
        rates: "bpp" or "bpp_estimate"; by default bpp where all results have it, else the estimate.
        min_overlap: refuse below, and always where nothing overlaps.
        resamples: of the bootstrap; 0 for none.
        seed: of the bootstrap.
        names: of the curves, for messages.

    Raises UserError where there is no BD-rate that means something: other images, missing metrics or points, too few
    points, or too little overlap.
    """
    sides = tuple(list(side) for side in (reference, test))
    check_same_images([*sides[0], *sides[1]])
    notes = []
    unknown = [name for name, side in zip(names, sides, strict=True) if not all(result.images for result in side)]
    if unknown:
        notes.append(f"images of {' and '.join(unknown)} unknown: published means")
    rates = rates or _common_rates(sides, names)
    by_image = not unknown and all(metric in result.metrics for side in sides for result in side)
    images = _images_with(metric, rates, sides) if by_image else None
    ours, theirs = (_points(side, metric, rates, images, name) for side, name in zip(sides, names, strict=True))
    notes += [note for points in (ours, theirs) if (note := _not_monotone(points, metric))]
    curves = (ours.curve(), theirs.curve())
    overlap = _overlap(*curves)
    if overlap < min_overlap or not overlap:
        ranges = " and ".join(f"{q[0]:.4g} to {q[-1]:.4g}" for _, q in curves)
        raise UserError(
            f"the curves share {overlap:.0%} of their range in {metric} ({ranges}), less than the {min_overlap:.0%} "
            "asked for: a BD-rate would rest on too little; add rate points where they meet"
        )
    usable = [kind for kind in INTERPOLATORS if kind != "cubic" or min(len(q) for _, q in curves) > 3]
    by_interpolator = {kind: _bd_rate(*curves, kind, metric) for kind in usable}
    senseless = [kind for kind, percent in by_interpolator.items() if not _within_reach(percent, *curves)]
    for kind in senseless:
        del by_interpolator[kind]
    if "pchip" in senseless:
        raise UserError(f"the curves have no BD-rate in {metric} by pchip: their rates are too far apart or too few")
    if senseless:
        notes.append(f"{' and '.join(senseless)} left the range of the measured rates and is not shown")
    interval, over = None, None
    if resamples:
        interval, over, note = _bootstrap(ours, theirs, by_image, metric, resamples, seed)
        notes += [note] if note else []
    return BDRate(
        reference=names[0],
        test=names[1],
        metric=metric,
        percent=by_interpolator["pchip"],
        interval=interval,
        interval_over=over,
        overlap=overlap,
        by_interpolator=by_interpolator,
        rates=rates,
        points=(len(curves[0][0]), len(curves[1][0])),
        images=len(images) if by_image and images else None if unknown else len(sides[0][0].images),
        seeds=(len(ours.seeds), len(theirs.seeds)),
        notes=notes,
    )


def bd_rates(reference: Curve, tests: Iterable[Curve], metrics: Sequence[str], **options: Any) -> list[BDRate]:
    """Every curve against the reference by every metric; one that is refused has its `reason`. Options: see `bd_rate`.

    This is where all commands get their rows.
    """
    rows = []
    for test in tests:
        names = (reference.name, test.name)
        for metric in metrics:
            try:
                rows.append(bd_rate(reference.results, test.results, metric, names=names, **options))
            except UserError as error:
                rows.append(BDRate(*names, metric, reason=str(error)))
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
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    remarks: dict[str, list[str]] = {}
    for row in rows:
        cells = [row.test, row.reference, row.metric]
        if row.reason:
            cells += ["refused"] + ["-"] * (len(head) - 4)
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
        lines.append("| " + " | ".join(cells) + " |")
    drawn = list(dict.fromkeys(row.interval_over for row in rows if row.interval_over))
    over = f" Intervals: bootstrap over {' or '.join(drawn)}." if drawn else ""
    lines += ["", f"Negative: the test spends fewer bits for the same quality. BD-rate is by pchip.{over}"]
    lines += [f"- {', '.join(where)}: {remark}" for remark, where in remarks.items()]
    return "\n".join(lines) + "\n"


def to_records(rows: Sequence[BDRate]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(row) for row in rows]


def _common_rates(sides: Sequence[Sequence[Result]], names: Sequence[str]) -> str:
    rate = shared_rate([result for side in sides for result in side])
    if rate is None:
        raise UserError(
            f"{names[0]} and {names[1]} have no rate in common: bytes of files (bpp) are not compared with a "
            "likelihood (bpp_estimate); evaluate both in the same way"
        )
    return rate


def _images_with(metric: str, rates: str, sides: Sequence[Sequence[Result]]) -> list[str]:
    """Names of the images that have both metrics in every result, sorted."""
    names: set[str] | None = None
    for result in (result for side in sides for result in side):
        own = {image["name"] for image in result.images if metric in image and rates in image}
        names = own if names is None else names & own
    if not names:
        raise UserError(f"no image has {metric} and {rates} in every result")
    return sorted(names)


def _points(results: list[Result], metric: str, rates: str, images: list[str] | None, name: str) -> _Points:
    table: dict[tuple, dict[Any, Result]] = {}
    for result in results:
        # Without a rate label a result is a point of its own.
        setting = tuple((k, result.labels[k]) for k in RATE_LABELS if k in result.labels) or (result.name,)
        by_seed = table.setdefault(setting, {})
        seed = result.labels.get("seed")
        if seed in by_seed:
            raise UserError(
                f"{name}: {by_seed[seed].name} and {result.name} are one point ({_words(setting)}); leave one out, or "
                "tell them apart by a label"
            )
        by_seed[seed] = result
    seeds = list(dict.fromkeys(seed for by_seed in table.values() for seed in by_seed))
    for setting, by_seed in table.items():
        missing = [seed for seed in seeds if seed not in by_seed]
        if missing:
            raise UserError(
                f"{name}: seed {missing[0]} has no {_words(setting)}; run it, or leave that seed or point out"
            )
    if len(table) < MIN_POINTS:
        raise UserError(f"{name} has {len(table)} rate points; a BD-rate needs {MIN_POINTS} or more")

    def array(metric: str) -> np.ndarray:
        return np.array([[_column(by_seed[seed], metric, images) for by_seed in table.values()] for seed in seeds])

    rate = array(rates)
    if not (rate > 0).all():
        raise UserError(f"{name}: {rates} of 0 has no logarithm")
    return _Points(name, rate, array(metric), seeds)


def _column(result: Result, metric: str, images: list[str] | None) -> list[float]:
    if images is None:
        values = [result.value(metric)]
    else:
        by_name = {image["name"]: image for image in result.images}
        values = [by_name[name][metric] for name in images]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if len(finite) < len(values):
        raise UserError(
            f"{result.name} has no {metric}, or none that is finite" + (", for every image" if images else "")
        )
    return finite


def _words(setting: tuple) -> str:
    return ", ".join(f"{part[0]} {part[1]}" if isinstance(part, tuple) else str(part) for part in setting)


def _not_monotone(points: _Points, metric: str) -> str | None:
    rate, _ = points.curve()
    known = find_metric(metric)
    steps = np.diff(rate)
    if (steps > 0).all() if known and known.higher else (steps < 0).all() if known else len(set(np.sign(steps))) == 1:
        return None
    return f"{points.name} does not get better in {metric} with every step in rate, so the BD-rate depends on its noise"


def _within_reach(
    percent: float, reference: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> bool:
    """Whether a BD-rate is one that the measured rates could have: their extremes, and as much again for overshoot."""
    (a, _), (b, _) = reference, test
    low, high = b.min() / a.max(), b.max() / a.min()
    return bool(math.isfinite(percent) and low / 2 <= 1 + percent / 100 <= 2 * high)


def _overlap(reference: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    (_, a), (_, b) = reference, test
    union = max(a[-1], b[-1]) - min(a[0], b[0])
    return float(max(min(a[-1], b[-1]) - max(a[0], b[0]), 0) / union) if union > 0 else 0.0


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


def _bootstrap(
    reference: _Points, test: _Points, by_image: bool, metric: str, resamples: int, seed: int
) -> tuple[tuple[float, float] | None, str | None, str | None]:
    """The interval, over what, and a note where there is none though there could be."""
    rng = np.random.default_rng(seed)
    count = reference.rate.shape[2] if by_image else 1
    drawn = [
        name
        for name, several in (("images", count > 1), ("seeds", max(len(reference.seeds), len(test.seeds)) > 1))
        if several
    ]
    if not drawn:
        return None, None, None
    together = reference.seeds == test.seeds

    def seeds_of(points: _Points) -> np.ndarray:
        return rng.integers(len(points.seeds), size=len(points.seeds))

    values = []
    for _ in range(resamples):
        images = rng.integers(count, size=count) if by_image else None
        ours = seeds_of(reference)
        theirs = ours if together else seeds_of(test)
        try:
            values.append(_bd_rate(reference.curve(ours, images), test.curve(theirs, images), "pchip"))
        except UserError:
            values.append(math.nan)
    defined = np.array(values)[np.isfinite(values)]
    if len(defined) < DEFINED * resamples:
        return None, None, f"no interval: {resamples - len(defined)} of {resamples} resamples have no BD-rate"
    low, high = np.percentile(defined, [2.5, 97.5])
    return (float(low), float(high)), " and ".join(drawn), None
