"""How quality follows from a student's size, teacher and updates: forms fitted to the runs of `sweeps/law.yaml`.

    python -m benchmarks.law results/ladder/law/results.json [-o results/ladder/law/law.json]

A run's quality is its mean LPIPS on Lite2 at `--bpp` bits per pixel of files, on a line over the logarithm of the bits
between its two neighbouring levels. M is the sender's MACs a pixel, U the updates at a constant rate before the decay,
T the quality of the run's teacher at the same bits. Six of the runs, drawn from all by a fixed seed, are in no fit.
Each form is fitted to the others by least squares; the one with the smallest error on runs left out in turn then
predicts the six.
"""

import argparse
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from aeic_lightning.errors import UserError
from aeic_lightning.study.results import Result, read_results, write_json

METRIC = "lpips_lite2"
SET_ASIDE = 6
DRAWS = 500
"""Of the runs, for the parameters' intervals."""
AIM = 0.01
"""Within which all six are to be predicted, LPIPS."""


@dataclass(frozen=True)
class Run:
    """What the forms are fitted to."""

    name: str
    macs: float
    updates: int
    teacher: float
    quality: float


@dataclass(frozen=True)
class Form:
    """A form of the law.

    Attributes:
        words: as it is printed.
        names: of its parameters.
        value: (parameters, MACs in thousands, updates in hundreds, teacher's quality) -> quality.
        starts: where the fit begins, each in turn.
    """

    words: str
    names: tuple[str, ...]
    value: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    starts: tuple[tuple[float, ...], ...]


FORMS = (
    Form(
        "c + d T",
        ("c", "d"),
        lambda p, m, u, t: p[0] + p[1] * t,
        ((0.0, 1.0),),
    ),
    Form(
        "c + d T + b U^-β",
        ("c", "d", "b", "β"),
        lambda p, m, u, t: p[0] + p[1] * t + p[2] * u ** -p[3],
        ((0.0, 1.0, 0.2, 0.3), (0.0, 1.0, 0.2, 1.0)),
    ),
    Form(
        "c + d T + a log M + b log U",
        ("c", "d", "a", "b"),
        lambda p, m, u, t: p[0] + p[1] * t + p[2] * np.log(m) + p[3] * np.log(u),
        ((0.0, 1.0, -0.02, -0.05),),
    ),
    Form(
        "c + d T + a M^-α + b U^-β",
        ("c", "d", "a", "α", "b", "β"),
        lambda p, m, u, t: p[0] + p[1] * t + p[2] * m ** -p[3] + p[4] * u ** -p[5],
        ((0.0, 1.0, 0.05, 0.3, 0.2, 0.3), (0.0, 1.0, 0.05, 1.0, 0.2, 1.0)),
    ),
    Form(
        "c + d T + a M^-α U^-β",
        ("c", "d", "a", "α", "β"),
        lambda p, m, u, t: p[0] + p[1] * t + p[2] * m ** -p[3] * u ** -p[4],
        ((0.0, 1.0, 0.3, 0.1, 0.3), (0.0, 1.0, 0.3, 0.3, 1.0)),
    ),
    Form(
        "c + (d + e log U) T + a log M + b log U",
        ("c", "d", "e", "a", "b"),
        lambda p, m, u, t: p[0] + (p[1] + p[2] * np.log(u)) * t + p[3] * np.log(m) + p[4] * np.log(u),
        ((0.0, 1.0, 0.0, -0.02, -0.05),),
    ),
)


def quality_at(results: Sequence[Result], bpp: float) -> float:
    """Mean LPIPS of one model at `bpp`.

    Raises:
        UserError: its levels are all above or all below.
    """
    points = sorted((result.value("bpp") or 0.0, result.value(METRIC) or math.nan) for result in results)
    for (low, left), (high, right) in itertools.pairwise(points):
        if low <= bpp <= high:
            share = math.log(bpp / low) / math.log(high / low)
            return left + share * (right - left)
    raise UserError(
        f"{results[0].name}: {bpp:g} bpp is not between its levels, {points[0][0]:.3f} to {points[-1][0]:.3f}"
    )


def runs_of(results: Sequence[Result], bpp: float) -> tuple[list[Run], dict[str, str]]:
    """The students' runs by name, and why others have no quality at `bpp`, by name."""
    models: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        labels = result.labels
        models.setdefault((labels.get("arm"), labels.get("teacher"), labels.get("rung")), []).append(result)
    found, out = [], {}
    for (arm, teacher, rung), levels in models.items():
        if arm == "teacher" or rung is None:
            continue
        taught_by = models[("teacher", None, None if teacher == "shipped" else teacher)]
        name = f"{arm}, teacher {teacher}, {rung} updates"
        costs = levels[0].costs or {}
        try:
            quality, best = quality_at(levels, bpp), quality_at(taught_by, bpp)
        except UserError as error:
            out[name] = str(error)
            continue
        found.append(Run(name, costs["encoder_macs_per_pixel"]["encode"], int(rung), best, quality))
    return sorted(found, key=lambda run: run.name), out


def set_aside(runs: Sequence[Run], others: Iterable[str] = ()) -> tuple[list[Run], list[Run]]:
    """Runs to fit, and the six that no fit sees: drawn by a fixed seed from all names, those without a quality too."""
    chosen = set(random.Random(0).sample(sorted([*(run.name for run in runs), *others]), SET_ASIDE))
    return [run for run in runs if run.name not in chosen], [run for run in runs if run.name in chosen]


def predicted(form: Form, parameters: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """Quality of each run by the form."""
    return form.value(
        parameters,
        np.array([run.macs / 1000 for run in runs]),
        np.array([run.updates / 100 for run in runs]),
        np.array([run.teacher for run in runs]),
    )


def fit(form: Form, runs: Sequence[Run]) -> np.ndarray:
    """The parameters of least squares, from the best of the form's starts."""
    measured = np.array([run.quality for run in runs])
    fits = [least_squares(lambda p: predicted(form, p, runs) - measured, start) for start in form.starts]
    return min(fits, key=lambda found: found.cost).x


def left_out_error(form: Form, runs: Sequence[Run]) -> float:
    """Root mean square error of each run's prediction by a fit to the others."""
    errors = []
    for place, run in enumerate(runs):
        others = [*runs[:place], *runs[place + 1 :]]
        errors.append(float(predicted(form, fit(form, others), [run])[0]) - run.quality)
    return math.sqrt(float(np.mean(np.square(errors))))


def intervals(form: Form, runs: Sequence[Run]) -> list[tuple[float, float]]:
    """95 % intervals of the parameters, over draws of runs with replacement."""
    generator = np.random.default_rng(0)
    found = [fit(form, [runs[i] for i in generator.integers(len(runs), size=len(runs))]) for _ in range(DRAWS)]
    low, high = np.percentile(np.array(found), [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def law(runs: Sequence[Run], others: Iterable[str] = ()) -> dict[str, Any]:
    """The forms with their errors, the best with intervals, and its predictions of the runs set aside.

    `others` are names of runs that have no quality; they are drawn from as well.
    """
    fitted, aside = set_aside(runs, others)
    forms = [{"form": form.words, "left_out_rmse": left_out_error(form, fitted)} for form in FORMS]
    best = FORMS[min(range(len(FORMS)), key=lambda place: forms[place]["left_out_rmse"])]  # type: ignore[arg-type, return-value]
    parameters = fit(best, fitted)
    said = predicted(best, parameters, aside)
    rows = [{**asdict(run), "predicted": float(value)} for run, value in zip(aside, said, strict=True)]
    worst = max(abs(row["predicted"] - row["quality"]) for row in rows)
    return {
        "forms": forms,
        "best": best.words,
        "parameters": [
            {"name": name, "value": float(value), "interval": interval}
            for name, value, interval in zip(best.names, parameters, intervals(best, fitted), strict=True)
        ],
        "set_aside": rows,
        "worst": worst,
        "within_aim": worst <= AIM,
        "fitted": [asdict(run) for run in fitted],
    }


def words(found: dict[str, Any], bpp: float) -> str:
    """Tables of `law` in Markdown."""
    lines = [
        f"{len(found['fitted'])} runs fitted, {len(found['set_aside'])} set aside;"
        f" LPIPS-Lite2 at {bpp:g} bpp of files.",
        "",
        "| form | error of runs left out in turn |",
        "|---|---|",
        *(f"| {row['form']} | {row['left_out_rmse']:.4f} |" for row in found["forms"]),
        "",
        f"{found['best']}, M in thousands, U in hundreds:",
        "",
        "| parameter | value | 95 % interval |",
        "|---|---|---|",
        *(
            f"| {row['name']} | {row['value']:.3f} | {row['interval'][0]:.3f} to {row['interval'][1]:.3f} |"
            for row in found["parameters"]
        ),
        "",
        "| set aside | measured | predicted | difference |",
        "|---|---|---|---|",
        *(
            f"| {row['name']} | {row['quality']:.4f} | {row['predicted']:.4f}"
            f" | {row['predicted'] - row['quality']:+.4f} |"
            for row in found["set_aside"]
        ),
        "",
        f"The largest difference is {found['worst']:.4f}: "
        + (f"within {AIM}." if found["within_aim"] else f"not within {AIM}. None of the forms can be used to predict."),
    ]
    return "\n".join(lines)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="results.json of the sweep's report")
    parser.add_argument("--bpp", type=float, default=0.1)
    parser.add_argument("-o", "--out", type=Path, help="where the figures go, as JSON")
    args = parser.parse_args()
    runs, out = runs_of(read_results([args.results]), args.bpp)
    for name, why in out.items():
        print(f"left out: {name}: {why}")
    found = law(runs, out)
    print(words(found, args.bpp))
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
