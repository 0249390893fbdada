"""BD-quality against closed forms and scipy's integration, and where it stands in for a BD-rate."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import PchipInterpolator

from aeic_lightning.errors import UserError
from aeic_lightning.study.bd_rate import bd_quality, markdown_table
from aeic_lightning.study.study import Study, group
from tests.study.made_curves import column, curve

RATES, QUALITIES = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)


def test_a_constant_difference_is_the_bd_quality():
    found = bd_quality(curve(RATES, QUALITIES), curve(RATES[::-1], QUALITIES[::-1] + 1.5), "psnr")
    assert found.difference == pytest.approx(1.5)
    assert (found.overlap, found.interval, found.images, found.seeds) == (1, None, 1, (1, 1))


steps = st.lists(st.floats(0.1, 2.0), min_size=10, max_size=10)


@given(steps, steps, st.integers(3, 5), st.integers(3, 5))
@settings(max_examples=30, deadline=None)
def test_it_is_the_mean_over_the_logarithm_of_the_rate(ours, theirs, count, other_count):
    (ra, qa), (rb, qb) = (
        (np.exp(np.cumsum(drawn[:n]))[:, None] / 100, (20 + np.cumsum(drawn[5 : 5 + n]))[:, None])
        for drawn, n in ((ours, count), (theirs, other_count))
    )
    low, high = max(np.log(ra[0, 0]), np.log(rb[0, 0])), min(np.log(ra[-1, 0]), np.log(rb[-1, 0]))
    assume(high - low > 0.02)
    found = bd_quality(curve(ra, qa), curve(rb, qb), "psnr", min_overlap=0, resamples=0)
    a, b = (PchipInterpolator(np.log(r[:, 0]), q[:, 0]) for r, q in ((ra, qa), (rb, qb)))
    knots = [float(x) for x in np.log([*ra[:, 0], *rb[:, 0]]) if low < x < high]
    area, _ = quad(lambda x: b(x) - a(x), low, high, points=knots, limit=200)
    assert found.difference == pytest.approx(area / (high - low), rel=1e-4, abs=1e-6)
    other_way = bd_quality(curve(rb, qb), curve(ra, qa), "psnr", min_overlap=0, resamples=0)
    assert other_way.difference == pytest.approx(-found.difference, abs=1e-9)


def test_the_interval_is_over_images_and_seeds():
    gains = {0: 1.0, 1: 1.1, 2: 1.3}
    hard = np.array([[-1.0, 0.0, 2.0]])
    reference = [r for seed in gains for r in curve(RATES + 0 * hard, QUALITIES - hard, seed=seed)]
    test = [r for seed, gain in gains.items() for r in curve(RATES + 0 * hard, QUALITIES - hard + gain, seed=seed)]
    found = bd_quality(reference, test, "psnr", resamples=2000)
    # Images are drawn for both alike, so that hard ones cancel; each extreme of the seeds has 1 draw in 27.
    assert found.difference == pytest.approx(np.mean(list(gains.values())))
    assert found.interval == pytest.approx((1.0, 1.3), abs=1e-9)
    assert (found.images, found.seeds) == (3, (3, 3))


def test_what_has_no_bd_quality():
    reference = curve(RATES, QUALITIES)
    with pytest.raises(UserError, match="share 0% of their rates"):
        bd_quality(reference, curve(20 * RATES, QUALITIES), "psnr", min_overlap=0)
    with pytest.raises(UserError, match="share 33% of their rates, less than the 50% asked for"):
        bd_quality(reference, curve(10**0.5 * RATES, QUALITIES), "psnr")
    with pytest.raises(UserError, match="two points of a curve have equal rates"):
        bd_quality(reference, curve(column(0.01, 0.02, 0.02, 0.1), QUALITIES), "psnr")


def test_it_stands_in_where_a_bd_rate_is_refused():
    made = {"a": (1, 0), "near": (1, 0.5), "far": (1, 6), "elsewhere": (50, 6)}
    curves = group(
        [
            replace(r, labels=r.labels | {"arm": arm})
            for arm, (factor, more) in made.items()
            for r in curve(factor * RATES, QUALITIES + more, arm)
        ]
    )
    reference, *tests = sorted(curves, key=lambda c: list(made).index(c.labels["arm"]))
    rows = Study().rates(reference, tests, ["psnr"], equal_bits=True)
    assert [(row.reason is None, row.equal_bits is None) for row in rows] == [
        (True, True),
        (False, False),
        (False, True),
    ]
    assert all(row.equal_bits is None for row in Study().rates(reference, tests, ["psnr"]))
    head, _, *lines = markdown_table(rows).splitlines()
    assert head.endswith("| seeds | at equal bits |")
    assert [line.split(" | ")[-1] for line in lines[:3]] == ["- |", "+6.00 |", "- |"]
    assert "at equal bits" not in markdown_table(rows[:1])
