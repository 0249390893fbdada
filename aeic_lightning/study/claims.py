"""Claims about curves, and what BD-rates say of them: the answer at the head of a study's page.

    report:
      claims:
        - {says: L_enc saves bits, test: {arm: enc}, reference: {arm: none}, metric: lpips_lite2}

A claim holds where the whole interval of the BD-rate is below zero, does not hold where it is above, and is not shown
where zero lies within, where there is no interval, or where interpolators disagree about the sign. Where the curves
share too few qualities for a BD-rate, the BD-quality decides in the same way: a curve that is better at the same bits
needs fewer for the same quality.

A claim is not decided with fewer images than `MIN_IMAGES`, or with fewer seeds than `MIN_SEEDS` of what was trained for
the study (`report.min_images` and `report.min_seeds` say otherwise).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.bd_rate import BDRate
from aeic_lightning.study.results import agree
from aeic_lightning.study.study import Curve, Study

MIN_IMAGES = 10
MIN_SEEDS = 2


@dataclass(frozen=True)
class Claim:
    """That the curve `test` spends fewer bits than the curve `reference` at equal quality.

    Args:
        says: the claim in words, without a full stop.
        test, reference: labels of the two curves.
        metric: name of the metric that is held equal.
    """

    says: str
    test: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    metric: str = "psnr"


@dataclass(frozen=True)
class Answer:
    """What one set of images says of a claim."""

    claim: Claim
    verdict: str  # "holds", "does not hold", "not shown", "not decided: WHY" or "not answered"
    reason: str  # the figures, or why there are none


@dataclass(frozen=True)
class Needs:
    """What a claim needs to be decided: images, and seeds of each curve that has any."""

    images: int = MIN_IMAGES
    seeds: int = MIN_SEEDS

    def lacking(self, images: int | None, seeds: int) -> str:
        """What is missing, in words; empty where nothing is. `images` are None where they are not known."""
        few = [_number(images or 0, "image")] if (images or 0) < self.images else []
        few += [_number(seeds, "seed")] if seeds < self.seeds else []
        return " and ".join(few)


def answers(
    study: Study, claims: Sequence[Claim], curves: Sequence[Curve], resamples: int = 1000, needs: Needs = Needs()
) -> list[Answer]:
    """The answer to each claim from curves of one set of images; not answered where it is not about two of them."""
    found = []
    for claim in claims:
        sides = [[c for c in curves if agree(c.labels, labels)] for labels in (claim.test, claim.reference)]
        if why := unanswerable(claim, curves):
            found.append(Answer(claim, "not answered", f"{why[0].upper()}{why[1:]}."))
            continue
        (test,), (reference,) = sides
        (rate,) = study.rates(reference, [test], [claim.metric], equal_bits=True, resamples=resamples)
        found.append(Answer(claim, *_verdict(rate, min(_seeds(test), _seeds(reference), key=_rank), needs)))
    return found


def unanswerable(claim: Claim, curves: Sequence[Curve]) -> str:
    """Why a claim is not about two of these curves; empty where it is."""
    for labels in (claim.test, claim.reference):
        matching = [c for c in curves if agree(c.labels, labels)]
        said = ", ".join(f"{label}={value}" for label, value in labels.items()) or "no label"
        if not matching:
            return f"no curve has {said}"
        if len(matching) > 1:
            names = "; ".join(c.name for c in matching)
            return f"{len(matching)} curves have {said} ({names}): name one by further labels"
    return ""


def answers_by_set(
    study: Study, claims: Sequence[Claim], resamples: int = 1000, needs: Needs = Needs()
) -> list[tuple[str, list[Answer]]]:
    """The title of each set of images that says something of the claims, and what it says of every one.

    Where no set says anything, the first one says why.
    """
    found = [(images.title, answers(study, claims, images.curves, resamples, needs)) for images in study.sets]
    saying = [(title, said) for title, said in found if any(a.verdict != "not answered" for a in said)]
    return saying or [(title, said) for title, said in found[:1] if said]


def markdown(title: str, found: Sequence[tuple[str, Sequence[Answer]]]) -> str:
    """One line per claim, under the images that it was measured on."""
    lines = [f"# {title}"]
    for images, said in found:
        lines += ["", f"On {images}:", "", *(f"- {a.claim.says}: **{a.verdict}**. {a.reason}" for a in said)]
    return "\n".join(lines) + "\n"


def read_claims(entries: Sequence[Mapping[str, Any]] | None) -> list[Claim]:
    """Claims as they stand in YAML."""
    return [Claim(**entry) for entry in entries or []]


def _seeds(curve: Curve) -> int | None:
    """Seeds of a curve; None for one that was not trained for the study, such as a shipped model or an anchor."""
    seeds = {result.labels.get("seed") for result in curve.results}
    return None if seeds == {None} else len(seeds)


def _rank(seeds: int | None) -> float:
    return float("inf") if seeds is None else seeds


def _number(count: int, word: str) -> str:
    return f"{'one' if count == 1 else 'no' if count == 0 else count} {word}{'s' * (count != 1)}"


def _verdict(rate: BDRate, seeds: int | None, needs: Needs) -> tuple[str, str]:
    metric = find_metric(rate.metric)
    assert metric is not None
    if rate.percent is not None:
        figures, refused = f"{rate.percent:+.1f} % bits at equal {metric.title}", ""
        between = rate.interval and f"{rate.interval[0]:+.1f} to {rate.interval[1]:+.1f} %"
        interval, images = rate.interval, rate.images
    elif found := rate.equal_bits:
        figures = f"{metric.title} {metric.difference(found.difference)} at equal bits"
        refused = f" No BD-rate: {str(rate.reason).split(' (')[0]}."
        between = found.interval and " to ".join(map(metric.difference, found.interval))
        interval, images = found.interval, found.images
        if interval and metric.higher:
            interval = (-interval[1], -interval[0])  # below zero is better, as for bits
    else:
        return "not shown", f"There is no BD-rate: {rate.reason}."
    count = 1 if seeds is None else seeds
    over = f"{images} images, {_number(count, 'seed')}"
    if interval is None:
        verdict, said = "not shown", f"{figures}, without an interval.{refused}"
    else:
        low, high = interval
        verdict = "holds" if high < 0 else "does not hold" if low > 0 else "not shown"
        half = (high - low) / 2
        least = f"{half:.1f} %" if rate.percent is not None else metric.difference(half).lstrip("+")
        told = f" The smallest effect that could have been told is about {least}." if verdict == "not shown" else ""
        said = f"{figures} (95 % interval {between}; {over}).{told}{refused}"
    others = {kind: p for kind, p in rate.by_interpolator.items() if kind == "akima" and p * (rate.percent or 0) < 0}
    if verdict in ("holds", "does not hold") and others:
        return "not shown", f"{said} By Akima it is {others['akima']:+.1f} %: the sign depends on the interpolator."
    if lacking := needs.lacking(images, count):
        return f"not decided: {lacking}", f"{said} A claim needs {needs.images} images and {needs.seeds} seeds."
    return verdict, said
