"""Claims about curves, and what BD-rates say of them: the answer at the head of a study's page.

    report:
      claims:
        - {says: L_enc saves bits, test: {arm: enc}, reference: {arm: none}, metric: lpips_lite2}

A claim holds where the whole interval of the BD-rate is below zero, does not hold where it is above, and is not shown
where zero lies within or there is no interval. Where the curves share too few qualities for a BD-rate, the BD-quality
decides in the same way: a curve that is better at the same bits needs fewer for the same quality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.bd_rate import BDRate, bd_rates
from aeic_lightning.study.curves import Curve, ImageSet
from aeic_lightning.study.labels import agree


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
    verdict: str  # "holds", "does not hold" or "not shown"
    reason: str  # the figures, or why there are none


def answers(claims: Sequence[Claim], curves: Sequence[Curve], resamples: int = 1000) -> list[Answer]:
    """The answer to each claim from curves of one set of images; claims about other curves are left out."""
    found = []
    for claim in claims:
        tests, references = ([c for c in curves if agree(c.labels, labels)] for labels in (claim.test, claim.reference))
        if len(tests) == len(references) == 1:
            (rate,) = bd_rates(references[0], tests, [claim.metric], equal_bits=True, resamples=resamples)
            found.append(Answer(claim, *_verdict(rate)))
    return found


def answers_by_set(
    claims: Sequence[Claim], sets: Sequence[ImageSet], resamples: int = 1000
) -> list[tuple[str, list[Answer]]]:
    """The title of each set of images that says something of the claims, and what it says."""
    found = [(images.title, answers(claims, images.curves, resamples)) for images in sets]
    return [(title, said) for title, said in found if said]


def markdown(title: str, found: Sequence[tuple[str, Sequence[Answer]]]) -> str:
    """One line per claim, under the images that it was measured on."""
    lines = [f"# {title}"]
    for images, said in found:
        lines += ["", f"On {images}:", "", *(f"- {a.claim.says}: **{a.verdict}**. {a.reason}" for a in said)]
    return "\n".join(lines) + "\n"


def read_claims(entries: Sequence[Mapping[str, Any]] | None) -> list[Claim]:
    """Claims as they stand in YAML."""
    return [Claim(**entry) for entry in entries or []]


def _verdict(rate: BDRate) -> tuple[str, str]:
    metric = find_metric(rate.metric)
    assert metric is not None
    if rate.percent is not None:
        figures, refused = f"{rate.percent:+.1f} % bits at equal {metric.title}", ""
        between = rate.interval and f"{rate.interval[0]:+.1f} to {rate.interval[1]:+.1f} %"
        interval, images, seeds = rate.interval, rate.images, rate.seeds or (1,)
    elif found := rate.equal_bits:
        figures = f"{metric.title} {metric.difference(found.difference)} at equal bits"
        refused = f" No BD-rate: {str(rate.reason).split(' (')[0]}."
        between = found.interval and " to ".join(map(metric.difference, found.interval))
        interval, images, seeds = found.interval, found.images, found.seeds
        if interval and metric.higher:
            interval = (-interval[1], -interval[0])  # below zero is better, as for bits
    else:
        return "not shown", f"There is no BD-rate: {rate.reason}."
    if interval is None:
        return "not shown", f"{figures}, without an interval.{refused}"
    low, high = interval
    over = f"{images} images" + (f", {max(seeds)} seeds" if max(seeds) > 1 else ", one seed")
    verdict = "holds" if high < 0 else "does not hold" if low > 0 else "not shown"
    return verdict, f"{figures} (95 % interval {between}; {over}).{refused}"
