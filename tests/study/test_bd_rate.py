"""BD-rate against closed forms, another library's integration and bootstrap, and the figures that were published."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator
from scipy.stats import bootstrap
from tables import plain

from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.study import bd_rate as module
from aeic_lightning.study.bd_rate import bd_rate, interval, markdown_table, pair
from aeic_lightning.study.paper_points import published
from aeic_lightning.study.results import common_metrics, write_results
from aeic_lightning.study.study import Study, group
from tests.study.made_curves import column, curve


@st.composite
def rising_curves(draw):
    """Two curves of 4 to 6 points, quality rising with the rate, that overlap."""

    def one():
        count = draw(st.integers(4, 6))
        steps = draw(st.lists(st.floats(0.2, 2.0), min_size=2 * count, max_size=2 * count))
        return np.exp(np.cumsum(steps[:count]))[:, None] / 100, (20 + np.cumsum(steps[count:]) / 2)[:, None]

    (rates, qualities), (others, other_qualities) = one(), one()
    shared = min(qualities.max(), other_qualities.max()) - max(qualities.min(), other_qualities.min())
    assume(shared > 0.02 * np.ptp([*qualities, *other_qualities]))
    return (rates, qualities), (others, other_qualities)


@pytest.mark.parametrize(
    ("metric", "dataset", "percent"),
    [("lpips_alex", "Kodak", 4.3), ("lpips_alex", "DIV2K", -8.4), ("lpips_alex", "CLIC", -10.4),
     ("dists", "Kodak", 6.0), ("dists", "DIV2K", -1.0), ("dists", "CLIC", -2.2)],
)  # fmt: skip
def test_the_figures_of_the_released_points(metric, dataset, percent):
    row = bd_rate(published("AEIC-ME", dataset), published("AEIC-SE", dataset), metric)
    # Half a digit of the figures, and as much from the digits of the points: a rate of 0.00370 is known to 0.14 %.
    assert row.percent == pytest.approx(percent, abs=0.1)
    assert abs(row.by_interpolator["cubic"] - row.percent) < 1.0
    assert (row.rates, row.points, row.interval) == ("bpp_estimate", (5, 5), None)
    assert "unknown" in row.notes[0]


@pytest.mark.parametrize(
    ("codec", "metric", "percent"),
    [("AEIC-SE", "lpips_alex", -5.5), ("AEIC-SE", "dists", -22.1),
     ("AEIC-ME", "lpips_alex", -9.0), ("AEIC-ME", "dists", -26.1)],
)  # fmt: skip
def test_the_figures_against_stablecodec_on_kodak(codec, metric, percent):
    row = bd_rate(published("StableCodec", "Kodak"), published(codec, "Kodak"), metric)
    assert row.percent == pytest.approx(percent, abs=0.1)
    assert (row.rates, row.points) == ("bpp_estimate", (9, 5))


def test_published_points_get_better_with_the_rate():
    """A digit that was mistyped shows: with the rate, every metric gets better at every step of every table."""
    for codec in ("AEIC-ME", "AEIC-SE", "StableCodec"):
        for dataset in ("Kodak", "DIV2K", "CLIC"):
            points = published(codec, dataset)
            for metric in {name for r in points for name in (*r.metrics, *r.set_metrics)}:
                values = [r.value(metric) for r in points]
                falling = metric in ("lpips_alex", "dists", "fid", "kid")
                assert values == sorted(values, reverse=falling), (codec, dataset, metric)


def test_overlap_is_shared_over_united_range():
    row = bd_rate(published("AEIC-ME", "CLIC"), published("AEIC-SE", "CLIC"), "fid")
    assert row.overlap == pytest.approx((5.73 - 2.75) / (7.35 - 2.45), rel=1e-12)
    other_way = bd_rate(published("AEIC-SE", "CLIC"), published("AEIC-ME", "CLIC"), "fid", min_overlap=0.5)
    assert other_way.overlap == row.overlap
    with pytest.raises(UserError, match=r"share 61% of their range in fid .* less than the 75%"):
        bd_rate(published("AEIC-ME", "CLIC"), published("AEIC-SE", "CLIC"), "fid", min_overlap=0.75)


def agreed(reference, test):
    """The BD-rate of curves whose interpolators do not contradict each other."""
    try:
        return bd_rate(reference, test, "psnr", min_overlap=0.01, resamples=0)
    except UserError as error:
        assume("contradicts" not in str(error))
        raise


@given(rising_curves())
@settings(max_examples=30, deadline=None)
def test_interpolators_are_those_of_scipy_and_numpy(pair):
    (ra, qa), (rb, qb) = pair
    row = agreed(curve(ra, qa), curve(rb, qb))
    low, high = max(qa.min(), qb.min()), min(qa.max(), qb.max())
    knots = [float(q) for q in (*qa[:, 0], *qb[:, 0]) if low < q < high]
    builders = {
        "pchip": PchipInterpolator,
        "akima": Akima1DInterpolator,
        "cubic": lambda q, r: np.poly1d(np.polyfit(q, r, 3)),
    }
    for kind, build in builders.items():
        difference = [build(q[:, 0], np.log(r[:, 0])) for r, q in ((rb, qb), (ra, qa))]
        area, _ = quad(lambda q, f=difference: f[0](q) - f[1](q), low, high, points=knots, limit=200)
        expected = 100 * np.expm1(area / (high - low))
        assert row.by_interpolator[kind] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(rising_curves(), st.floats(0.1, 10), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_invariances(pair, scale, factor):
    (ra, qa), (rb, qb) = pair

    def measure(ra, qa, rb, qb):
        row = agreed(curve(ra, qa), curve(rb, qb))
        return {kind: 1 + value / 100 for kind, value in row.by_interpolator.items()}

    plain = measure(ra, qa, rb, qb)
    close = {"rel": 1e-6, "abs": 1e-9}
    assert measure(scale * ra, qa, scale * rb, qb) == pytest.approx(plain, **close)
    assert measure(ra, qa, factor * rb, qb) == pytest.approx({k: factor * v for k, v in plain.items()}, **close)
    assert measure(rb, qb, ra, qa) == pytest.approx({k: 1 / v for k, v in plain.items()}, **close)
    assert measure(ra[::-1], qa[::-1], rb, qb) == pytest.approx(plain, **close)  # order of the points
    assert measure(ra, -qa, rb, -qb) == pytest.approx(plain, **close)  # a distance instead of a quality
    assert measure(ra, qa / 3 - 5, rb, qb / 3 - 5) == pytest.approx(plain, **close)


def test_a_constant_factor_in_rate_is_the_bd_rate():
    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    row = bd_rate(curve(rates, qualities), curve(1.25 * rates, qualities), "psnr")
    assert row.by_interpolator == pytest.approx({"pchip": 25, "akima": 25, "cubic": 25})
    assert (row.overlap, row.images, row.seeds, row.notes) == (1, 1, (1, 1), [])


def test_three_points_have_no_cubic_and_two_are_too_few():
    rates, qualities = column(0.01, 0.02, 0.05), column(20, 22, 25)
    assert set(bd_rate(curve(rates, qualities), curve(rates, qualities), "psnr").by_interpolator) == {"pchip", "akima"}
    with pytest.raises(UserError, match="test has 2 rate points; a BD-rate needs 3"):
        bd_rate(curve(rates, qualities), curve(rates[:2], qualities[:2]), "psnr")


def noisy(images=12, seed=0):
    """Two curves over the same images: hard images are hard for both, and each has noise of its own."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 2, images)
    rates = column(0.01, 0.02, 0.04, 0.08) * np.exp(0.1 * hard)
    qualities = column(20, 22, 24, 26) - hard
    return (rates, qualities), (
        1.1 * rates * np.exp(rng.normal(0, 0.1, images)),
        qualities + rng.normal(0, 0.2, images),
    )


def test_the_interval_is_by_the_interpolator_of_the_figure():
    """Equal images leave nothing to draw: both ends are the figure itself, by pchip and not by another one."""
    one = [values.repeat(3, axis=1) for values in (column(0.1, 0.2, 0.45, 1.3), column(30, 31.2, 35, 36))]
    other = [values.repeat(3, axis=1) for values in (column(0.11, 0.17, 0.6, 1.2), column(30, 31.5, 34, 36.5))]
    row = bd_rate(curve(*one), curve(*other), "psnr", resamples=5)
    assert row.interval == pytest.approx((row.percent, row.percent), rel=1e-9)
    assert abs(row.by_interpolator["akima"] - row.percent) > 0.1


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    (ra, qa), (rb, qb) = noisy()
    row = bd_rate(curve(ra, qa), curve(rb, qb), "psnr", resamples=2000)
    assert row.interval_over == "images"
    assert row.images == 12

    def statistic(drawn):
        means = [array[:, drawn].mean(1)[:, None] for array in (ra, qa, rb, qb)]
        return bd_rate(curve(*means[:2]), curve(*means[2:]), "psnr", resamples=0, min_overlap=0).percent

    theirs = bootstrap((np.arange(12),), statistic, vectorized=False, n_resamples=1000, method="percentile",
                       rng=np.random.default_rng(1))  # fmt: skip
    low, high = theirs.confidence_interval
    width = high - low
    assert row.interval == pytest.approx((low, high), abs=0.12 * width)
    assert row.interval[0] < row.percent < row.interval[1]


def test_the_draws_are_scipys():
    """Of a plain statistic, from the same seed, the same interval."""
    (ra, qa), (rb, qb) = noisy(images=9)
    both = pair(curve(ra, qa), curve(rb, qb), "psnr", None, ("a", "b"))
    found, over, note = interval(both, lambda a, b: (b[1] - a[1]).mean(0), 500, seed=3)
    theirs = bootstrap(
        (qb.mean(0) - qa.mean(0),), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3)
    )
    assert found == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)
    assert (over, note) == ("images", None)


@given(
    st.lists(st.lists(st.tuples(st.floats(0.1, 2), st.floats(-2, 2)), min_size=4, max_size=4), min_size=1, max_size=5),
    st.permutations(range(4)),
)
@settings(max_examples=30, deadline=None)
def test_many_columns_at_once_are_scipys_one_by_one(columns, order):
    """Monotone or not, with points in any order."""
    x = np.array([np.cumsum([step for step, _ in column]) for column in columns]).T
    y = np.array([[value for _, value in column] for column in columns]).T
    ours = module._mean_gap((np.arange(3.0)[:, None] + 0 * x[:3], 0 * y[:3]), (x[order], y[order]))
    for place, value in enumerate(ours):
        low, high = max(0.0, x[0, place]), min(2.0, x[-1, place])
        if low < high:
            area = PchipInterpolator(x[:, place], y[:, place]).integrate(low, high)
            assert value == pytest.approx(area / (high - low), rel=1e-9, abs=1e-9)
        else:
            assert np.isnan(value)


def test_resamples_without_a_figure_are_counted():
    """Two images, each with the better quality at another rate: where both draws are one, two points are equal."""
    rates, qualities = column(0.01, 0.02, 0.05).repeat(2, 1), np.array([[20.0, 20], [22, 20], [25, 26]])
    row = bd_rate(curve(rates, qualities), curve(rates, qualities), "psnr", resamples=200)
    assert row.interval is None
    assert any("of 200 resamples have no figure" in note for note in row.notes)


def test_equal_shares_are_equal_however_they_are_summed():
    """Of yes and no over three images and seeds: two points with as many of either are equal, to the last bit."""
    rng = np.random.default_rng(5)
    rates, answers = column(0.01, 0.02, 0.05).repeat(3, 1), rng.integers(2, size=(3, 3, 3)).astype(float)
    side = [r for seed in range(3) for r in curve(rates, answers[seed], metric="top1", seed=seed)]
    _, _, note = interval(pair(side, side, "top1", None, ("a", "b")), module._percent, 100, seed=0)
    rng, equal = np.random.default_rng(0), 0
    for _ in range(100):
        images, seeds = rng.integers(3, size=3), rng.integers(3, size=3)
        equal += len(set(answers[seeds][..., images].sum((0, 2)))) < 3
    assert 5 < equal < 100
    assert note == f"no interval: {equal} of 100 resamples have no figure"


def test_images_are_drawn_together():
    """Drawn apart, hard images would not cancel, and the interval of a constant factor would have a width."""
    (ra, qa), _ = noisy()
    row = bd_rate(curve(ra, qa), curve(1.2 * ra, qa), "psnr", resamples=200)
    assert row.interval == pytest.approx((20, 20))
    # By name, not by place: the images of the test in another order.
    test = [replace(r, images=r.images[::-1]) for r in curve(1.2 * ra, qa)]
    assert bd_rate(curve(ra, qa), test, "psnr", resamples=200).interval == pytest.approx((20, 20))


def test_seeds_are_drawn_where_there_are_several():
    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    factors = {0: 1.0, 1: 1.1, 2: 1.3}
    reference = [r for seed in factors for r in curve(rates, qualities, seed=seed)]
    test = [r for seed, f in factors.items() for r in curve(f * rates, qualities, seed=seed)]
    row = bd_rate(reference, test, "psnr", resamples=2000)
    # The rate of a point is the mean over seeds, so all BD-rates are means of the three factors.
    assert row.percent == pytest.approx(100 * (np.mean(list(factors.values())) - 1))
    assert (row.interval_over, row.seeds) == ("seeds", (3, 3))
    assert row.interval == pytest.approx((0, 30), abs=1e-9)  # each extreme has 1 draw in 27
    # With the same seeds on both sides, what a seed does to both cancels.
    both = [r for seed, f in factors.items() for r in curve(f * rates, qualities, seed=seed)]
    assert bd_rate(both, both, "psnr", resamples=100).interval == pytest.approx((0, 0))
    # With other seeds it does not.
    others = [replace(r, labels=r.labels | {"seed": r.labels["seed"] + 3}) for r in both]
    low, high = bd_rate(both, others, "psnr", resamples=300).interval
    assert low < -5
    assert high > 5


def test_seeds_are_drawn_together_in_whatever_order_they_were_listed():
    """A seed that is hard for both curves cancels, so that the interval has no width."""
    qualities, hard = column(30, 33, 36, 39), {0: 0.0, 1: 2.0, 2: -1.0}
    reference = [r for s, q in hard.items() for r in curve(column(0.1, 0.2, 0.4, 0.8), qualities - q, seed=s)]
    test = [r for s, q in hard.items() for r in curve(column(0.08, 0.16, 0.32, 0.64), qualities - q, seed=s)]
    low, high = bd_rate(reference, test[8:] + test[:8], "psnr", resamples=200).interval
    assert low == pytest.approx(high)
    assert low == pytest.approx(-20)


def test_a_set_figure_has_an_interval_over_seeds_alone():
    def with_fid(results, shift):
        return [replace(r, set_metrics={"fid": {"value": 50 - 3 * i + shift}}) for i, r in enumerate(results)]

    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    one = with_fid(curve(rates, qualities, seed=0), 0)
    assert bd_rate(one, one, "fid").interval is None
    two = one + with_fid(curve(rates, qualities, seed=1), 1)
    row = bd_rate(one, two, "fid", resamples=100)
    assert row.interval_over == "seeds"
    assert row.interval[0] < row.interval[1]


def test_estimates_are_never_compared_with_bytes():
    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    estimated = curve(rates, qualities, rate_name="bpp_estimate")
    assert bd_rate(estimated, estimated, "psnr").rates == "bpp_estimate"
    with pytest.raises(UserError, match="no rate in common"):
        bd_rate(curve(rates, qualities), estimated, "psnr")


def test_what_has_no_bd_rate():
    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    good = curve(rates, qualities)
    with pytest.raises(UserError, match=r"share 0% of their range in psnr \(20 to 27 and 30 to 37\)"):
        bd_rate(good, curve(rates, qualities + 10), "psnr", min_overlap=0)
    with pytest.raises(UserError, match="c 0 has no lpips"):
        bd_rate(good, [replace(r, metrics=r.metrics | {"lpips": {"mean": 1}}) for r in good], "lpips")
    with pytest.raises(UserError, match="are one point"):
        bd_rate(good, good + good[:1], "psnr")
    seeds = curve(rates, qualities, seed=0) + curve(rates, qualities, seed=1)[:3]
    with pytest.raises(UserError, match="seed 1 has no lambda 3"):
        bd_rate(good, seeds, "psnr")
    with pytest.raises(UserError, match="validated on different images"):
        bd_rate(good, curve(rates[:, [0, 0]], qualities[:, [0, 0]]), "psnr")
    equal = curve(rates, column(20, 22, 22, 27))
    with pytest.raises(UserError, match="two points of a curve are equal in psnr"):
        bd_rate(good, equal, "psnr")
    infinite = curve(rates, column(20, 22, 25, np.inf))
    with pytest.raises(UserError, match="c 3 has no psnr, or none that is finite, for every image"):
        bd_rate(good, infinite, "psnr")


def test_a_curve_that_is_not_monotone_is_said_to_be():
    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    row = bd_rate(curve(rates, qualities), curve(rates, column(20, 25, 22, 27)), "psnr", names=("teacher", "student"))
    assert row.notes == [
        "student does not get better in psnr with every step in rate, so the BD-rate depends on its noise"
    ]
    falling = curve(rates, -qualities, metric="lpips")  # a distance should fall with the rate
    assert bd_rate(falling, falling, "lpips").notes == []


def test_table_and_refusals():
    results = [*published("AEIC-ME", "CLIC"), *published("AEIC-SE", "CLIC")]
    reference, *tests = group(results)
    rows = Study().rates(reference, tests, common_metrics(results), min_overlap=0.7)
    table = markdown_table(rows)
    assert [row.metric for row in rows] == ["lpips_alex", "dists", "fid"]
    assert "| AEIC-SE | AEIC-ME | lpips_alex | -10.39 % | - | 88% |" in table
    assert "| AEIC-SE | AEIC-ME | fid | refused |" in table
    assert "- AEIC-SE by fid: the curves share 61%" in table


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rates, qualities = column(0.01, 0.02, 0.05, 0.1), column(20, 22, 25, 27)
    noise = rng.normal(0, 0.1, 5)
    for name, factor in (("teacher", 1.0), ("student", 1.1)):
        results = curve(factor * rates * np.exp(noise), qualities + noise, name)
        write_results(tmp_path / f"{name}.json", [replace(r, labels=r.labels | {"role": name}) for r in results])
    words = ["bd-rate", str(tmp_path / "teacher.json"), "--test", str(tmp_path / "student.json")]
    assert main([*words, "-o", str(tmp_path / "bd.json"), "--resamples", "50"]) == 0
    assert "| student | teacher | psnr | +10.00 % | +10.00 to +10.00 | 100% |" in plain(capsys.readouterr().out)
    (row,) = json.loads((tmp_path / "bd.json").read_text())["rows"]
    assert (row["percent"], row["images"]) == (pytest.approx(10), 5)

    assert main([*words[:2], str(tmp_path / "student.json"), *words[2:]]) == 2
    assert "the reference holds 2 curves (teacher; student (1))" in capsys.readouterr().err
    assert main(["bd-rate", "paper:AEIC-XL:Kodak", "--test", words[1]]) == 2
    assert "no published points of 'AEIC-XL'" in capsys.readouterr().err
    assert main([*words, "--metric", "fid"]) == 1
    assert "refused" in capsys.readouterr().out


def test_accuracy_is_better_when_higher():
    rates = column(0.01, 0.02, 0.05, 0.1)
    rising = curve(rates, column(0.5, 0.6, 0.7, 0.8), metric="top1")
    assert bd_rate(rising, rising, "top1").notes == []
    falling = curve(rates, column(0.8, 0.7, 0.6, 0.5), metric="top5")
    assert "does not get better in top5" in bd_rate(falling, falling, "top5").notes[0]


def test_an_interpolator_that_leaves_the_rates_is_not_shown():
    """One cubic through points that lie close together in quality swings by many powers of ten."""
    rates = column(0.01, 0.02, 0.04, 0.08, 0.16)
    reference = curve(rates, column(20, 20.001, 20.002, 30, 30.001))
    row = bd_rate(reference, curve(1.1 * rates, column(20, 20.002, 20.003, 30, 30.002)), "psnr", resamples=0)
    assert "pchip" in row.by_interpolator
    assert all(-100 <= percent < 10_000 for percent in row.by_interpolator.values())
    assert any("left the range of the measured rates" in note for note in row.notes)


def test_interpolators_that_contradict_each_other_refuse_or_flag():
    """SciPy's own integrals of both curves: 278 and 630 % more bits for the same quality."""
    rates, qualities = [0.016, 0.054, 0.181, 0.715], [22, 23, 26.7, 29.4]
    others, other_qualities = [0.083, 0.174, 0.79, 0.978], [24.3, 24.4, 25, 29.5]
    reference, test = curve(column(*rates), column(*qualities)), curve(column(*others), column(*other_qualities))
    found = {}
    for kind in (PchipInterpolator, Akima1DInterpolator):
        a, b = kind(qualities, np.log(rates)), kind(other_qualities, np.log(others))
        found[kind] = 100 * np.expm1((b.integrate(24.3, 29.4) - a.integrate(24.3, 29.4)) / 5.1)
    pchip, akima = found.values()
    said = f"{pchip:+.1f} % by pchip contradicts {akima:+.1f} % by akima"
    with pytest.raises(UserError) as refused:
        bd_rate(reference, test, "psnr", resamples=0)
    assert said in str(refused.value)
    (row,) = Study().rates(group(reference)[0], group(test), ["psnr"], equal_bits=True, resamples=0)
    assert "contradicts" in row.reason
    assert row.equal_bits is not None
    milder = curve(column(*others), column(22, 24.4, 26.5, 29.5))
    (note,) = [n for n in bd_rate(reference, milder, "psnr", resamples=0).notes if n.startswith("akima gives")]
    assert "where pchip gives" in note
