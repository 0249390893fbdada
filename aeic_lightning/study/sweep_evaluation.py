"""The finished runs of a sweep, evaluated at several rate levels on sets of images of their own.

A run's last validation is at one level and on the validation images. A study of models of many rates needs each level,
and images that nothing was chosen on:

    report:
      evaluate:
        levels: [0, 1, 2, 3, 4]
        images: {validation: null, kodak: photos/test/kodak}      # null: those of the runs' validation
        max_size: [256, 256]                                      # of the folders' images, at most their centre
        models: [small-teacher]                                   # shipped ones, beside the runs
        labels: {arm: teacher}                                    # of these models
        backbones: [lite0, lite2]
        metrics: [{class_path: my_metric.MyMetric, higher: false}]    # of your own
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeic_lightning.errors import UserError
from aeic_lightning.files import locate
from aeic_lightning.study.results import Result, read_result, read_results, write_results
from aeic_lightning.study.sweep_file import Run, Sweep


def evaluate_run(sweep: Sweep, name: str) -> None:
    """Evaluate one run of a sweep, and the report's models, on the validation images. What is there is kept.

    Raises UserError for a run that is not in the sweep.
    """
    run = next((run for run in sweep.runs if run.name == name), None)
    if run is None:
        raise UserError(f"--evaluate {name}: the sweep has no such run; --dry-run lists them")
    wanted = sweep.report.get("evaluate") or {}
    evaluated([run], wanted | {"images": {validation_set(sweep): None}}, sweep.root)


def validation_set(sweep: Sweep) -> str:
    """The name that the runs' validation images have in the report."""
    images = (sweep.report.get("evaluate") or {}).get("images") or {"validation": None}
    return next((name for name, folder in images.items() if folder is None), "validation")


def model_folder(root: Path, model: str) -> Path:
    """Where a sweep keeps its evaluation of a model that it did not train."""
    return root / "models" / Path(model).name


def evaluated(runs: Sequence[Run], wanted: dict[str, Any], root: Path) -> list[Path]:
    """Evaluate every run, and every model, on every set of images; the result files, run by run.

    A run's files are in its folder as `evaluated/SET.json`, or `SET_256x256.json` with `max_size`, a model's in
    `models/NAME` of the sweep's root. What is there, of the same checkpoint and levels, is kept, so that a study that
    was stopped goes on.

    Raises UserError for images that are not there.
    """
    from aeic_lightning.study.anchors import images_like
    from aeic_lightning.study.measurement import measurement, open_images

    levels = [float(level) for level in wanted.get("levels") or []]
    places = [(str(run.checkpoint), run.folder / "evaluated", {}) for run in runs]
    for model in wanted.get("models") or []:
        places.append((model, model_folder(root, model), wanted.get("labels") or {}))
    max_size = wanted.get("max_size")
    sets = {}
    for name, folder in (wanted.get("images") or {"validation": None}).items():
        cut = "_" + "x".join(map(str, max_size)) if folder and max_size else ""
        sets[name + cut] = open_images(folder, max_size) if folder else images_like([read_result(runs[0].folder)])
    figures = measurement(wanted.get("backbones"), metrics=wanted.get("metrics") or [])
    for checkpoint, place, labels in places:
        missing = {
            name: images
            for name, images in sets.items()
            if not _there(place / f"{name}.json", checkpoint, levels, images.names)
        }
        if missing:
            _evaluate(checkpoint, missing, figures, levels, labels, place)
    return [place / f"{name}.json" for name in sets for _, place, _ in places]


def _evaluate(
    path: str, sets: dict[str, Any], figures: Any, levels: list[float], labels: dict[str, Any], place: Path
) -> None:
    from aeic_lightning.study.evaluate import Checkpoint, RatePoint, evaluate_checkpoint

    checkpoint = Checkpoint(path)
    points = [RatePoint(level=level) for level in levels] or [RatePoint()]
    for name, images in sets.items():
        results: list[Result] = []
        for point in points:
            pictures = place / name / (point.words.strip().replace(" ", "_") or "middle")
            results.append(
                evaluate_checkpoint(checkpoint, images, figures, point=point, labels=labels, pictures=pictures)
            )
        write_results(place / f"{name}.json", results)


def _there(file: Path, checkpoint: str, levels: list[float], names: Sequence[str]) -> bool:
    """Whether a file holds the evaluation that is asked for, and is no older than the weights."""
    path = locate(checkpoint)
    weights = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file() or file.stat().st_mtime < weights.stat().st_mtime:
        return False
    try:
        found = read_results([file])
    except UserError:
        return False
    same = [result.labels.get("level") for result in found] == (levels or [None])
    return same and all({row["name"] for row in result.images} == set(names) for result in found)
