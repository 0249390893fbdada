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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.results import RATE_LABELS, Result, check_same_images, shared_rate

INTERPOLATORS = ("pchip", "akima", "cubic")
"""`cubic` is one polynomial, fitted to all points; it needs four of them."""
MIN_OVERLAP = 0.5
CONTRADICTION, DOUBT = 1.25, 1.05
"""Ratios of the rates that two interpolators find. Above the first, PCHIP and Akima, which both pass through the
points, contradict each other and the BD-rate is refused; above the second, it comes with a note. So does a cubic fit,
which is one polynomial and strays further, above the first."""
MIN_POINTS = 3
DEFINED = 0.95  # of the resamples must give a figure, or there is no interval
Arrays = tuple[np.ndarray, np.ndarray]
"""Rate, bits per pixel, and quality of each point of a curve; of every resample where there is a second axis."""


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
    """BD-rate of one curve against another, with an interval by `interval`.

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
    between, over, note = interval(found, _percent, resamples, seed)
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
    if any(np.unique(rate).size < rate.size for rate, _ in found.curves):
        raise UserError("two points of a curve have equal rates: leave one out")
    (difference,) = _difference(*((rate[:, None], quality[:, None]) for rate, quality in found.curves))
    between, *_ = interval(found, _difference, resamples, seed)
    return BDQuality(
        float(difference), between, shared, found.images, (len(found.reference.seeds), len(found.test.seeds))
    )


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


def _bd_rate(reference: Arrays, test: Arrays, kind: str, metric: str) -> float:
    """NaN where the curves do not overlap. Raises UserError for two points of equal quality."""
    import bjontegaard  # with it comes pyplot, which takes a second to import

    (rate_a, quality_a), (rate_b, quality_b) = reference, test
    if not all((np.diff(quality) > 0).all() for quality in (quality_a, quality_b)):
        raise UserError(f"two points of a curve are equal in {metric}: leave one out")
    options = {"require_matching_points": False, "min_overlap": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing overlaps; and cubic fits of curves that are nearly straight
        return float(cast(float, bjontegaard.bd_rate(rate_a, quality_a, rate_b, quality_b, kind, **options)))


# ---------------------------------------------------------------------- rate points


@dataclass(frozen=True)
class RatePoints:
    """One curve as arrays. Without metrics by image, the last axis has the mean alone."""

    name: str
    rate: np.ndarray  # (seeds, points, images), bits per pixel
    quality: np.ndarray  # (seeds, points, images), or (seeds, points, 1) for a metric of the whole set
    seeds: list

    @property
    def curve(self) -> Arrays:
        """Rate and quality of each point, means over seeds and images, by rising quality."""
        rate, quality = self.rate.mean((0, 2)), self.quality.mean((0, 2))
        order = np.argsort(quality, kind="stable")
        return rate[order], quality[order]

    def drawn(self, seeds: np.ndarray, images: np.ndarray) -> Arrays:
        """Rate and quality (points, resamples), means over the (resamples, seeds) and (resamples, images) drawn."""

        def means(values: np.ndarray) -> np.ndarray:
            by_seed = values[:, :, images].sum(-1)  # sums first: equal counts of a share have equal means
            return np.take_along_axis(by_seed, seeds.T[:, None], axis=0).sum(0) / (seeds.shape[1] * images.shape[1])

        return means(self.rate), means(self.quality)


@dataclass(frozen=True)
class Pair:
    """Two curves by one metric.

    Attributes:
        reference, test: their points.
        metric: of the quality.
        rates: "bpp" or "bpp_estimate".
        by_image: whether figures of every image are known on both sides.
        images: images behind each point; None if unknown.
        notes: what a reader should know.
    """

    reference: RatePoints
    test: RatePoints
    metric: str
    rates: str
    by_image: bool
    images: int | None
    notes: list[str]

    @property
    def curves(self) -> tuple[Arrays, Arrays]:
        """Means over seeds and images: reference and test, by rising quality."""
        return self.reference.curve, self.test.curve


def pair(
    reference: Sequence[Result], test: Sequence[Result], metric: str, rates: str | None, names: tuple[str, str]
) -> Pair:
    """The points of two curves on the same images. Arguments: see `bd_rate`.

    Raises UserError for other images, missing metrics or points, and too few points.
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
    known = len(images) if images else None if unknown else len(sides[0][0].images)
    return Pair(ours, theirs, metric, rates, by_image, known, notes)


def _not_monotone(points: RatePoints, metric: str) -> str | None:
    rate, _ = points.curve
    known = find_metric(metric)
    steps = np.diff(rate)
    if (steps > 0).all() if known and known.higher else (steps < 0).all() if known else len(set(np.sign(steps))) == 1:
        return None
    return f"{points.name} does not get better in {metric} with every step in rate, so the BD-rate depends on its noise"


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """What two ranges share over what they cover together, 0 to 1; a and b hold their values in any order."""
    union = max(a.max(), b.max()) - min(a.min(), b.min())
    return float(max(min(a.max(), b.max()) - max(a.min(), b.min()), 0) / union) if union > 0 else 0.0


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


def _points(results: list[Result], metric: str, rates: str, images: list[str] | None, name: str) -> RatePoints:
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
    # In one order for all curves, since those of the same seeds are drawn together.
    seeds = sorted({seed for by_seed in table.values() for seed in by_seed}, key=lambda seed: (str(type(seed)), seed))
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
    return RatePoints(name, rate, array(metric), seeds)


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


# ---------------------------------------------------------------------- intervals


def interval(
    pair: Pair, figure: Callable[[Arrays, Arrays], np.ndarray], resamples: int, seed: int
) -> tuple[tuple[float, float] | None, str | None, str | None]:
    """95 % interval of a figure of two curves, over what, and a note where there is none though there could be.

    The bootstrap draws images by name, the same for both curves: the codecs meet the same hard and easy images. Seeds
    are drawn where there are several: together if both curves have the same ones (a student's seed is that of its
    teacher), else each by itself. A drawn seed takes all its points along.

    Args:
        pair: of `pair`.
        figure: from reference and test (points, resamples) to a number a resample; NaN where there is none.
        resamples: how many; 0 for no interval.
        seed: of the draws.
    """
    reference, test = pair.reference, pair.test
    images, ours, theirs = (
        np.empty((resamples, count), int)
        for count in (reference.rate.shape[2], *map(len, (reference.seeds, test.seeds)))
    )
    several = {"images": images.shape[1] > 1, "seeds": max(ours.shape[1], theirs.shape[1]) > 1}
    over = " and ".join(name for name, drawn in several.items() if drawn)
    if not over or not resamples:
        return None, None, None
    rng = np.random.default_rng(seed)
    if reference.seeds == test.seeds:
        theirs = ours
    for resample in range(resamples):
        for drawn in (images, ours) if theirs is ours else (images, ours, theirs):
            drawn[resample] = rng.integers(drawn.shape[1], size=drawn.shape[1])
    values = figure(reference.drawn(ours, images), test.drawn(theirs, images))
    defined = values[np.isfinite(values)]
    if len(defined) < DEFINED * resamples:
        return None, None, f"no interval: {resamples - len(defined)} of {resamples} resamples have no figure"
    low, high = np.percentile(defined, [2.5, 97.5])
    return (float(low), float(high)), over, None


def _percent(reference: Arrays, test: Arrays) -> np.ndarray:
    """BD-rate by pchip of each resample."""
    (rate_a, quality_a), (rate_b, quality_b) = reference, test
    return 100 * (10 ** _mean_gap((quality_a, np.log10(rate_a)), (quality_b, np.log10(rate_b))) - 1)


def _difference(reference: Arrays, test: Arrays) -> np.ndarray:
    """BD-quality of each resample."""
    (rate_a, quality_a), (rate_b, quality_b) = reference, test
    return _mean_gap((np.log10(rate_a), quality_a), (np.log10(rate_b), quality_b))


def _mean_gap(reference: Arrays, test: Arrays) -> np.ndarray:
    """By how much y of the test is above that of the reference, on average over the x that both reach.

    x and y are (points, resamples), in any order. NaN where no x is shared, or two are equal.
    """
    (x, y), (other_x, other_y) = (
        [np.take_along_axis(values, np.argsort(side[0], axis=0, kind="stable"), axis=0) for values in side]
        for side in (reference, test)
    )
    low, high = np.maximum(x[0], other_x[0]), np.minimum(x[-1], other_x[-1])
    with np.errstate(all="ignore"):
        area = _area(other_x, other_y, low, high) - _area(x, y, low, high)
        return np.where(high > low, area / (high - low), np.nan)


def _area(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Integral of the interpolant through each column of points, x rising: PCHIP, as SciPy's for one column.

    Fritsch, Butland: "A method for constructing local monotone piecewise cubic interpolants", SIAM J. Sci. Stat.
    Comput. 5, 1984. NaN where two x are equal.
    """
    h = np.diff(x, axis=0)
    rise = np.diff(y, axis=0) / h

    def at_end(h: np.ndarray, rise: np.ndarray) -> np.ndarray:
        """The slope through the outermost three points, made to keep the interpolant monotone."""
        slope = ((2 * h[0] + h[1]) * rise[0] - h[0] * rise[1]) / (h[0] + h[1])
        slope = np.where(slope * rise[0] <= 0, 0, slope)
        too_steep = (rise[0] * rise[1] <= 0) & (abs(slope) > 3 * abs(rise[0]))
        return np.where(too_steep, 3 * rise[0], slope)

    left, right = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    harmonic = (left + right) / (left / rise[:-1] + right / rise[1:])
    inner = np.where(rise[:-1] * rise[1:] > 0, harmonic, 0)
    slopes = np.stack([at_end(h, rise), *inner, at_end(h[::-1], rise[::-1])])
    square = 3 * rise - 2 * slopes[:-1] - slopes[1:]
    cube = slopes[:-1] + slopes[1:] - 2 * rise

    def until(end: np.ndarray) -> np.ndarray:
        """The integral of each piece from its left point on."""
        t = np.clip((end - x[:-1]) / h, 0, 1)
        return h * t * (y[:-1] + h * t * (slopes[:-1] / 2 + t * (square / 3 + t * cube / 4)))

    return np.where((h > 0).all(0), (until(high) - until(low)).sum(0), np.nan)
