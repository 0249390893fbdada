"""The whole board: submissions checked, rivals at the same rates, published points, and what they amount to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from aeic_lightning.board.check import Checked, check
from aeic_lightning.board.isolation import Limits
from aeic_lightning.board.submission import find_submissions, read_submission
from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.files import SAMPLE_PHOTOS
from aeic_lightning.study.anchors import CODECS, anchors, bpp_target
from aeic_lightning.study.bd_rate import MIN_POINTS, BDRate
from aeic_lightning.study.measurement import Images, Measurement, open_images
from aeic_lightning.study.paper_points import DISTILLATION, published
from aeic_lightning.study.results import Result, common_metrics
from aeic_lightning.study.study import Study, group

FILE = "board.yaml"
RIVALS = tuple(f"{codec}/{scale}".removesuffix("/1") for codec in CODECS for scale in (1, 2, 3, 4))


@dataclass(frozen=True)
class Settings:
    """`board.yaml`; every board has the defaults of what it leaves out.

    Attributes:
        images: a folder, relative to the board's, or `sample-photos`.
        rates: bits per pixel of the rivals.
        rivals: names as `anchors --codecs` takes them.
        backbones: of the metrics; None for all whose weights are here.
        seconds, memory_gb, file_mb: limits of a command for one image.
        reference: curve that BD-rates are against; None for the first submission with enough rates.
        patch_size, min_patches, min_images: of FID and KID.
    """

    images: str = SAMPLE_PHOTOS
    rates: list[float] = field(default_factory=lambda: [0.03, 0.06])
    rivals: list[str] = field(default_factory=lambda: list(RIVALS))
    backbones: list[str] | None = None
    seconds: float = 300
    memory_gb: float = 16
    file_mb: float = 256
    reference: str | None = None
    patch_size: int = 256
    min_patches: int = 400
    min_images: int = 50

    @property
    def limits(self) -> Limits:
        """Of commands."""
        return Limits(self.seconds, int(self.memory_gb * 2**30), int(self.file_mb * 2**20))


def read_settings(folder: Path) -> Settings:
    """Of a board's folder. Raises UserError for a setting that is unknown or of the wrong kind."""
    path = folder / FILE
    if not path.is_file():
        return Settings()
    try:
        given = yaml.safe_load(path.read_text()) or {}
        known = Settings.__dataclass_fields__
        if unknown := [key for key in given if key not in known]:
            raise UserError(f"{path}: {unknown[0]} is no setting{did_you_mean(str(unknown[0]), known)}")
        for key, value in given.items():
            kinds = {"images": str, "rates": list, "rivals": list, "backbones": list, "reference": str}
            if not isinstance(value, kinds.get(key, int | float)):
                raise UserError(f"{path}: {key} is {value!r}, of the wrong kind; see docs/howto_board.md")
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return Settings(**given)


def open_board_images(settings: Settings, folder: Path) -> Images:
    """The originals. Raises UserError where there are none."""
    return open_images(settings.images if settings.images == SAMPLE_PHOTOS else str(folder / settings.images))


@dataclass(frozen=True)
class Board:
    """What the page shows.

    Attributes:
        checked: one a submission, by name.
        rivals: results of anchors.
        intervals: name of a result -> metric -> 95 % interval of its mean.
        bd: BD-rates among submissions and rivals.
        published: BD-rates recomputed from published points, as (data set, row).
        images: how many, and which.
        settings: of the board.
    """

    checked: list[Checked]
    rivals: list[Result]
    intervals: dict[str, dict[str, tuple[float, float]]]
    bd: list[BDRate]
    published: list[tuple[str, BDRate]]
    images: list[str]
    settings: Settings

    @property
    def accepted(self) -> list[Checked]:
        """Submissions that are as they claim, by rising rate."""
        return sorted((c for c in self.checked if not c.reasons), key=lambda c: _rate(c.result))

    @property
    def refused(self) -> list[Checked]:
        """The others."""
        return [c for c in self.checked if c.reasons]

    @property
    def results(self) -> list[Result]:
        """Of accepted submissions, then of rivals."""
        return [c.result for c in self.accepted if c.result] + self.rivals


def make_board(folder: Path, measure: Measurement, *, unsafe: bool = False, quiet: bool = False) -> Board:
    """Check all submissions of a folder and measure the rivals.

    Args:
        folder: of the board.
        measure: the metrics.
        unsafe: run commands without isolation where there is none.
        quiet: print no progress.

    Raises UserError where there is no submission, and where commands cannot be isolated. A submission that cannot be
    read is refused, as all others are.
    """
    settings = read_settings(folder)
    images = open_board_images(settings, folder)
    folders = find_submissions(folder)
    checked: list[Checked] = []
    streams: dict[str, str] = {}
    for number, own in enumerate(folders, 1):
        hidden = [path.resolve() for path in (*images.files.paths, *(other for other in folders if other != own))]
        found = _check(own, images, measure, streams, hidden, settings.limits, unsafe)
        if found.name in [other.name for other in checked]:
            found.reasons.append(f"another submission is called {found.name!r}")
            found.name = own.name
        checked.append(found)
        if not quiet:
            said = f"refused: {found.reasons[0]}" if found.reasons else "as claimed"
            print(f"[{number}/{len(folders)}] {found.name}: {said}", flush=True)
    rivals = list(anchors(settings.rivals, [bpp_target(rate) for rate in settings.rates], images, measure, quiet=quiet))
    board = Board(checked, rivals, {}, [], published_bd_rates(), images.names, settings)
    return replace(
        board, intervals={r.name: mean_intervals(r) for r in board.results}, bd=_bd(board.results, settings.reference)
    )


def _check(
    folder: Path,
    images: Images,
    measure: Measurement,
    streams: dict[str, str],
    hidden: Sequence[Path],
    limits: Limits,
    unsafe: bool,
) -> Checked:
    try:
        submission = read_submission(folder.resolve())
    except UserError as error:
        return Checked(folder.name, reasons=[str(error)])
    return check(submission, images, measure, streams, hidden, limits=limits, unsafe=unsafe)


def _rate(result: Result | None) -> float:
    return (result.value("bpp") if result else None) or 0.0


def mean_intervals(result: Result, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % of each metric's mean, percentiles of a bootstrap over images; none for fewer than two images."""
    found = {}
    for name in ("bpp", *common_metrics([result])):
        values = np.array([row[name] for row in result.images if name in row], float)
        if len(values) < 2 or not np.isfinite(values).all():
            continue
        drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
        low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
        found[name] = (float(low), float(high))
    return found


def _bd(results: Sequence[Result], reference: str | None) -> list[BDRate]:
    """Every curve with enough rates against the reference."""
    curves = [curve for curve in group(results) if len(curve.settings) >= MIN_POINTS]
    if reference is not None and reference not in [curve.name for curve in curves]:
        raise UserError(
            f"{FILE}: the reference {reference!r} is no curve of {MIN_POINTS} rates; there are "
            f"{', '.join(repr(c.name) for c in curves) or 'none'}"
        )
    curves.sort(key=lambda curve: (curve.name != reference, curve.kind == "anchor"))
    if len(curves) < 2:
        return []
    return Study().rates(curves[0], curves[1:], common_metrics([r for c in curves for r in c.results]), equal_bits=True)


def published_bd_rates() -> list[tuple[str, BDRate]]:
    """BD-rates of the published points against AEIC-ME, from the points alone."""
    rows = []
    for dataset in ("Kodak", "DIV2K", "CLIC"):
        reference = group(published("AEIC-ME", dataset))[0]
        for codec in ("AEIC-SE", "StableCodec"):
            test = group(published(codec, dataset))[0]
            metrics = common_metrics([*reference.results, *test.results])
            found = Study().rates(reference, [test], metrics)
            rows += [(dataset, replace(row, reference="AEIC-ME", test=codec)) for row in found]
    return rows


def to_document(board: Board) -> dict[str, Any]:
    """Plain values for JSON."""
    intervals = board.intervals
    rows = [
        {
            "name": found.name,
            "refused": found.reasons,
            "isolation": found.isolation,
            "encoder": found.encoder,
            "metrics": {n: m["mean"] for n, m in found.result.metrics.items()} if found.result else {},
            "intervals": intervals.get(found.name, {}) if not found.reasons else {},
        }
        for found in board.checked
    ]
    rivals = [
        {"name": r.name, "metrics": {n: m["mean"] for n, m in r.metrics.items()}, "intervals": intervals[r.name]}
        for r in board.rivals
    ]
    bd = [{"test": r.test, "reference": r.reference, "metric": r.metric, "percent": r.percent, "interval": r.interval,
           "refused": r.reason} for r in board.bd]  # fmt: skip
    paper = [{"images": dataset, "test": r.test, "reference": r.reference, "metric": r.metric, "percent": r.percent,
              "refused": r.reason} for dataset, r in board.published]  # fmt: skip
    return {
        "format": "aeic_lightning board 1",
        "images": board.images,
        "submissions": rows,
        "rivals": rivals,
        "bd_rates": bd,
        "published": {"bd_rates": paper, "claimed_distillation": DISTILLATION},
    }


def with_interval(value: float | None, between: tuple[float, float] | None, digits: int) -> str:
    """`27.31 (26.10 to 28.44)`; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" + (f" ({between[0]:.{digits}f} to {between[1]:.{digits}f})" if between else "")
