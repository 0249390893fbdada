"""Results: what a codec at one setting reached on a set of images, wherever it was measured.

A run folder of `fit`, and the JSON files of `evaluate`, `anchors` and `compare`, are all read as `Result`; tables,
BD-rates and reports are made from those alone. Reading imports no torch. A file holds

    {"format": "aeic_lightning results 1", "results": [{the fields of Result}, ...]}

with paths relative to the file. A metric that is not finite (the PSNR of equal images) is null.
"""

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name, write_whole
from aeic_lightning.metrics.table import Metric, declare_all, find_metric, in_order
from aeic_lightning.output import finite_or_null

FORMAT = "aeic_lightning results 1"
RATES = ("bpp", "bpp_estimate")
Label = int | float | str
OF_CONFIGS = (
    *("role", "encoder", "depth", "widths", "context", "h_a", "h_s", "g_s"),
    *("lambda", "target", "beta1", "beta2", "seed", "loss", "level"),
)
"""Labels that the config of a run says when it is done (`run_description.run_labels`), or the evaluation at a level."""
RATE_LABELS = ("lambda", "quality", "target", "level")
"""Labels that move a codec along its own rate-distortion curve; all others tell curves apart."""
Kind = Literal["run", "checkpoint", "files", "anchor", "published"]


@dataclass(frozen=True)
class Result:
    """One codec at one setting on one set of images.

    Attributes:
        name: name of the run, or what else a reader should call it.
        kind: a run of `fit`; a checkpoint that was evaluated; reconstructions that were found as files; a conventional
            codec as an anchor; or values from a publication, of which nothing is known by image.
        labels: what sets it apart: role, depth, widths, lambda, seed, beta1, ... of runs; codec and target of anchors.
        metrics: name -> {"mean": over the images that have it, null if infinite, "images": how many}.
        set_metrics: metrics of the whole set: name -> {"value", "patches", ...}.
        images: rows with name, height, width, crc32 (of the original's 8-bit pixels) and each metric of the image.
        metric_info: name -> {"backbone", "version", "options", ...}.
        costs: {"encoder_macs_per_pixel": {"g_a", "encode"}, "encoder_parameters": {...}}; None if not known.
        command: what made it.
        git: of this package's code: commit, and whether files differed from it.
        user_repository: the same of the repository in which the command was given, with its name.
        versions: of the packages.
        step: generator updates; None for what was not trained here.
        notes: what a reader of the metrics should know.
        folder: a run's folder.
        pictures: name of an image -> PNG of its reconstruction; see `original`.
        settings: of a trained model: what tells its experiment from others (`study.experiment`); empty if not known.
    """

    name: str
    kind: Kind
    labels: dict[str, Label]
    metrics: dict[str, dict[str, Any]]
    set_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)
    metric_info: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] | None = None
    command: str = ""
    git: dict[str, Any] | None = None
    user_repository: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None
    pictures: dict[str, Path] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        declare_all(self.metric_info)

    def value(self, metric: str) -> float | None:
        """The mean over images, or the value of the whole set; None where it was not measured or is not finite."""
        if metric in self.metrics:
            return self.metrics[metric]["mean"]
        return self.set_metrics.get(metric, {}).get("value")

    def original(self, name: str) -> Path | None:
        """The PNG of an original, which lies beside that of the reconstruction."""
        picture = self.pictures.get(name)
        beside = picture and picture.with_name(f"{picture.stem}_original.png")
        return beside if beside and beside.is_file() else None

    @property
    def image_set(self) -> frozenset[tuple]:
        """What was measured on: two results can be compared where these are equal."""
        return frozenset((i["name"], i.get("height"), i.get("width"), i.get("crc32")) for i in self.images)


# ---------------------------------------------------------------------- reading


def read_result(path: str | Path) -> Result:
    """A run folder, or a file that holds one result. Raises UserError where there is not exactly one."""
    found = read_results([path])
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} results; give a file with one")
    return found[0]


def read_results(paths: Iterable[str | Path]) -> list[Result]:
    """All results of run folders and result files.

    Raises UserError for a folder without a finished run, and for a file that holds no results.
    """
    found = []
    for path in map(Path, paths):
        found += [_read_run(path)] if path.is_dir() else _read_file(path)
    return found


def _read_file(path: Path) -> list[Result]:
    record = _json(path, "no run folder and no result file")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is no result file ({FORMAT}); give one that evaluate, anchors or compare wrote")
    try:
        return [_from_record(entry, path.parent) for entry in record["results"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__} {error}; measure again") from error


def _from_record(entry: dict[str, Any], base: Path) -> Result:
    values = {f.name: entry[f.name] for f in fields(Result) if f.name in entry}
    values["folder"] = _normal(base / entry["folder"]) if entry.get("folder") else None
    values["pictures"] = {name: _normal(base / picture) for name, picture in entry.get("pictures", {}).items()}
    return Result(**values)


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _read_run(folder: Path) -> Result:
    measured, record = (
        _json(folder / name, _UNFINISHED.format(folder, name)) for name in ("metrics_val.json", "run.json")
    )
    if not (folder / "config.yaml").is_file():
        raise UserError(_UNFINISHED.format(folder, "config.yaml"))
    try:
        experiment = experiment_of(folder, record)
        images = measured["images"]
        return Result(
            name=folder.resolve().name,
            kind="run",
            labels=experiment["labels"],
            metrics=measured["metrics"],
            set_metrics=measured.get("set_metrics", {}),
            images=images,
            metric_info=with_part_in_training(measured.get("metric_info", {}), experiment["loss_saw"]),
            costs=experiment["costs"],
            command=record["command"],
            git=record["git"],
            user_repository=record.get("user_repository"),
            versions=record.get("versions", {}),
            step=measured["step"],
            folder=folder,
            pictures=_pictures(folder / "reconstructions", images),
            settings=experiment["settings"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds damaged records ({type(error).__name__}: {error}); train it again") from error


_UNFINISHED = "{0} has no {1}; it is no finished run of `fit`"


def _json(path: Path, missing: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(missing if str(path.parent) in missing else f"{path}: {missing}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def experiment_of(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What a run says of its experiment (`run_description.describe_run`), by its record.

    Runs that did not write it down yet have it derived from their `config.yaml`, which imports torch.
    """
    if "experiment" in record:
        return record["experiment"]
    import yaml

    from aeic_lightning.study.run_description import describe_run

    try:
        return describe_run(yaml.load((folder / "config.yaml").read_text(), Loader=yaml.CSafeLoader), record)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def with_part_in_training(
    info: dict[str, dict[str, Any]], loss_saw: Sequence[Mapping[str, str | None]]
) -> dict[str, dict[str, Any]]:
    """`metric_info` with `in_training`: whether the loss is the metric, or uses its network, or neither.

    A metric that was trained on flatters; one that is held out does not.

    Args:
        info: by metric.
        loss_saw: metric and backbone of each term of the loss (`run_description.seen_in_training`).
    """
    metrics, networks = {term["metric"] for term in loss_saw}, {term["backbone"] for term in loss_saw} - {None}

    def part(name: str, entry: dict[str, Any]) -> str:
        if name in metrics:
            return "in the loss"
        return "its network is in the loss" if entry.get("backbone") in networks else "held out"

    costs = ("bpp", "encode_seconds", "decode_seconds")  # no metrics of quality
    return {
        name: entry if name in costs else entry | {"in_training": part(name, entry)} for name, entry in info.items()
    }


def _pictures(folder: Path, images: list[dict[str, Any]]) -> dict[str, Path]:
    paths = {image["name"]: folder / f"{file_name(image['name'])}.png" for image in images}
    return {name: path for name, path in paths.items() if path.is_file()}


# ---------------------------------------------------------------------- writing


def write_results(path: str | Path, results: Sequence[Result]) -> list[Path]:
    """Write results as JSON, and as CSV beside it (one row per image); each whole or not at all. Returns both paths."""
    path = Path(path)
    table = path.with_suffix(".csv")
    if path == table:
        raise UserError(f"{path}: results are written as JSON, and as CSV beside it; name a .json file")
    write_json(path, {"format": FORMAT, "results": [to_record(result, path.parent) for result in results]})
    write_whole(table, csv_text(results))
    return [path, table]


def write_json(path: str | Path, record: Any) -> None:
    """Write plain values as JSON, whole or not at all, with null for what is not finite."""
    write_whole(path, json.dumps(finite_or_null(record), indent=1, allow_nan=False) + "\n")


def to_record(result: Result, base: str | Path = ".") -> dict[str, Any]:
    """Plain values for JSON, with paths relative to `base` and null for what is not finite."""
    record = {f.name: getattr(result, f.name) for f in fields(Result)}
    record["folder"] = os.path.relpath(result.folder, base) if result.folder else None
    record["pictures"] = {name: os.path.relpath(picture, base) for name, picture in result.pictures.items()}
    return finite_or_null(record)


def csv_text(results: Sequence[Result]) -> str:
    """One row an image and result: its name and labels, the image's metrics, and what is known of each metric.

    `metric_info` is JSON in one column, so that a row keeps its meaning when files are joined.
    """
    rows = []
    for result in results:
        labels = {"result": result.name, "kind": result.kind, **{f"label_{k}": v for k, v in result.labels.items()}}
        info = {"metric_info": json.dumps(result.metric_info, sort_keys=True)}
        rows += [labels | image | info for image in result.images]
    columns = dict.fromkeys(key for row in rows for key in row if key != "metric_info")
    text = io.StringIO()
    table = csv.DictWriter(text, [*columns, "metric_info"], lineterminator="\n")
    table.writeheader()
    table.writerows(finite_or_null(rows))
    return text.getvalue()


# ---------------------------------------------------------------------- means


def summary_rows(images: Sequence[dict[str, Any]], described: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Means over the images that have a metric: name -> {"mean", "images"}."""
    leave_out = {"name", "height", "width", "crc32", *described}
    names = dict.fromkeys(key for row in images for key in row if key not in leave_out)
    columns = {name: [row[name] for row in images if name in row] for name in names}
    return {name: {"mean": math.fsum(c) / len(c), "images": len(c)} for name, c in columns.items()}


def sample(result: Result, metric: str) -> str:
    """What a metric was taken over, in words."""
    if metric in result.metrics:
        count, word = result.metrics[metric]["images"], "image"
    elif metric in result.set_metrics:
        count, word = result.set_metrics[metric].get("patches"), "patch"
    else:
        return "nothing"
    if count is None:
        return "the whole set"
    plural = {"image": "images", "patch": "patches"}[word]
    return f"{count} {word if count == 1 else plural}"


# ---------------------------------------------------------------------- what may be compared


def agree(labels: dict, wanted: dict) -> bool:
    """Whether `labels` has all that is `wanted`, numbers and words compared as they are written."""
    return all(str(labels.get(label)) == str(value) for label, value in wanted.items())


def check_same_images(results: Sequence[Result]) -> None:
    """Raise UserError unless all results are of the same images; those without images are passed over."""
    known = [result for result in results if result.images]
    for result in known[1:]:
        differing = Counter(name for name, *_ in result.image_set ^ known[0].image_set)
        if differing:
            name = min(differing)
            raise UserError(
                f"{result.name} and {known[0].name} were validated on different images ({name!r}, for one); "
                "validate both on the same"
            )


def shared_rate(results: Sequence[Result]) -> str | None:
    """The rate that all results have: bytes of files where possible, else the estimate; None if there is none."""
    return next((rate for rate in RATES if all(r.value(rate) is not None for r in results)), None)


def metrics_of(results: Sequence[Result]) -> list[Metric]:
    """The metrics of quality that at least one result has; not those that all of them refuse."""
    return in_order([n for r in results for n in (*r.metrics, *(n for n in r.set_metrics if r.value(n) is not None))])


def common_metrics(results: Iterable[Result]) -> list[str]:
    """Metrics of quality that every result has, in the order of the first."""
    results = list(results)
    names = dict.fromkeys([*results[0].metrics, *results[0].set_metrics]) if results else {}

    def has(result: Result, name: str) -> bool:
        return name in result.metrics or result.set_metrics.get(name, {}).get("value") is not None

    return [name for name in names if find_metric(name) and all(has(result, name) for result in results)]
