"""The rate points of two curves that are compared, as arrays, and the bootstrap over their images and seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.study.curves import check_same_images, shared_rate
from aeic_lightning.study.results import RATE_LABELS, Result

MIN_POINTS = 3
DEFINED = 0.95  # of the resamples must give a figure, or there is no interval
Arrays = tuple[np.ndarray, np.ndarray]
"""Rate, bits per pixel, and quality of each point of a curve."""


@dataclass(frozen=True)
class RatePoints:
    """One curve as arrays. Without metrics by image, the last axis has the mean alone."""

    name: str
    rate: np.ndarray  # (seeds, points, images), bits per pixel
    quality: np.ndarray  # (seeds, points, images), or (seeds, points, 1) for a metric of the whole set
    seeds: list

    def curve(self, seeds: np.ndarray | None = None, images: np.ndarray | None = None) -> Arrays:
        """Rate and quality of each point, means over the seeds and images drawn, by rising quality."""
        rate, quality = self.rate, self.quality
        if seeds is not None:
            rate, quality = rate[seeds], quality[seeds]
        if images is not None:
            rate, quality = rate[..., images], quality[..., images]
        rate, quality = rate.mean((0, 2)), quality.mean((0, 2))
        order = np.argsort(quality, kind="stable")
        return rate[order], quality[order]


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
        return self.reference.curve(), self.test.curve()


def pair(
    reference: Sequence[Result], test: Sequence[Result], metric: str, rates: str | None, names: tuple[str, str]
) -> Pair:
    """The points of two curves on the same images. Arguments: see `bd_rate.bd_rate`.

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


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """What two ranges share over what they cover together, 0 to 1; a and b hold their values in any order."""
    union = max(a.max(), b.max()) - min(a.min(), b.min())
    return float(max(min(a.max(), b.max()) - max(a.min(), b.min()), 0) / union) if union > 0 else 0.0


def interval(
    pair: Pair, figure: Callable[[Arrays, Arrays], float], resamples: int, seed: int
) -> tuple[tuple[float, float] | None, str | None, str | None]:
    """95 % interval of a figure of two curves, over what, and a note where there is none though there could be.

    The bootstrap draws images by name, the same for both curves: the codecs meet the same hard and easy images. Seeds
    are drawn where there are several: together if both curves have the same ones (a student's seed is that of its
    teacher), else each by itself. A drawn seed takes all its points along.

    Args:
        pair: of `pair`.
        figure: from reference and test to a number; NaN or UserError where there is none.
        resamples: how many; 0 for no interval.
        seed: of the draws.
    """
    reference, test = pair.reference, pair.test
    rng = np.random.default_rng(seed)
    count = reference.rate.shape[2] if pair.by_image else 1
    drawn = [
        name
        for name, several in (("images", count > 1), ("seeds", max(len(reference.seeds), len(test.seeds)) > 1))
        if several
    ]
    if not drawn or not resamples:
        return None, None, None
    together = reference.seeds == test.seeds

    def seeds_of(points: RatePoints) -> np.ndarray:
        return rng.integers(len(points.seeds), size=len(points.seeds))

    values = []
    for _ in range(resamples):
        images = rng.integers(count, size=count) if pair.by_image else None
        ours = seeds_of(reference)
        theirs = ours if together else seeds_of(test)
        try:
            values.append(figure(reference.curve(ours, images), test.curve(theirs, images)))
        except UserError:
            values.append(math.nan)
    defined = np.array(values)[np.isfinite(values)]
    if len(defined) < DEFINED * resamples:
        return None, None, f"no interval: {resamples - len(defined)} of {resamples} resamples have no figure"
    low, high = np.percentile(defined, [2.5, 97.5])
    return (float(low), float(high)), " and ".join(drawn), None


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
