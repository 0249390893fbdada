"""Accuracy, bytes and quality of finished runs: every metric from the bytes of real files."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.images import to_uint8
from aeic_lightning.losses.objective import objective_weights
from aeic_lightning.metrics.pixels import bits_per_pixel, psnr
from aeic_lightning.output import align
from aeic_lightning.own_classes import find_class
from aeic_lightning.provenance import command_line
from aeic_lightning.study.results import Result, check_same_images, read_result, summary_rows, write_results
from aeic_lightning.study.study import Curve, Study
from aeic_lightning.study.views import markdown_table, mean_bytes


def compare_accuracy(folders: Sequence[Path], out: Path) -> list[Result]:
    """Write accuracy.json (and .csv, one row per image), accuracy.md and accuracy.png to `out`, and print the table.

    Each test image of a run is written as an .aeic file; classes and picture come from what is read back. A run of step
    1 has no files: its metrics are the last validation's, without rate.

    Raises UserError for a folder without a finished run, and when the runs have other test images.
    """
    results = []
    for number, folder in enumerate(folders, 1):
        print(f"[{number}/{len(folders)}] {folder}", flush=True)
        results.append(measure_run(Path(folder)))
    check_same_images(results)
    study = Study(results)
    table = markdown_table(study.curves, labels=["reads"])
    written = write_results(out / "accuracy.json", results)
    write_whole(out / "accuracy.md", table)
    write_whole(out / "accuracy.png", draw(study.curves))
    print(align(table))
    print(f"written: {', '.join(map(str, written))}, accuracy.md, accuracy.png")
    return results


def measure_run(folder: Path) -> Result:
    """The metrics of a run's test images."""
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished run; train it first")
    run = read_result(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    settings = config["model"]["init_args"]
    if objective_weights(settings).get("rate") or "head" in settings:
        images, reads = _images_from_files(path, config), settings.get("reads", "y_hat")
    else:
        images, reads = _images_from_validation(run), "y, unquantised"
    return replace(
        run,
        labels=run.labels | {"reads": reads},
        metrics=summary_rows(images, ["bytes"]),
        images=images,
        command=command_line(),
    )


def _images_from_files(path: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    data = _data(config)
    classifier = load_classifier(path, receiver=True)
    if classifier.class_names != data.class_names:
        raise UserError(f"{path} was trained on other classes than its config.yaml names")
    rows = []
    for batch in data.test_dataloader():
        for x, name, label in zip(batch["image"], batch["name"], batch["label"].tolist(), strict=True):
            file = classifier.codec.bitstream.encode(x[None])
            decoded = classifier.codec.bitstream.decode(file)
            order = classifier.logits(decoded).argsort(descending=True).tolist()
            height, width = x.shape[1:]
            row = {
                "name": name,
                "height": height,
                "width": width,
                "crc32": zlib.crc32(to_uint8(x).numpy().tobytes()),
                "bytes": len(file),
                "bpp": bits_per_pixel(8 * len(file), height, width),
                "psnr": psnr(reconstruct(classifier.codec.model, decoded)[None], to_uint8(x)[None]).item(),
                "top1": float(order[0] == label),
            }
            if len(order) > 5:
                row["top5"] = float(label in order[:5])
            rows.append(row)
    return sorted(rows, key=lambda row: row["name"])


def _images_from_validation(run: Result) -> list[dict[str, Any]]:
    if not run.images or "top1" not in run.images[0]:
        raise UserError(f"{run.folder} has no accuracy; train it with callbacks.accuracy.AccuracyMetrics")
    wanted = ("name", "height", "width", "crc32", "psnr", "top1", "top5")
    return [{k: row[k] for k in wanted if k in row} for row in run.images]


def _data(config: dict[str, Any]) -> Any:
    """The data module of a run, ready for testing."""
    data: Any = find_class(config["data"]["class_path"], "data")(**config["data"]["init_args"])
    data.setup("test")
    return data


def draw(curves: Sequence[Curve]) -> bytes:
    """Accuracy and PSNR over the bytes of a file, as PNG: a curve for results that differ in rate alone."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for curve in curves:
        points = [result for result in curve.results if "bpp" in result.metrics]
        if not points:
            continue
        for axes, metric in zip(panels, ("top1", "psnr"), strict=True):
            axes.plot([mean_bytes(p) for p in points], [p.value(metric) for p in points], "o-", label=curve.name)
    for axes, label in zip(panels, ("top-1 accuracy", "PSNR (dB)"), strict=True):
        axes.set(xlabel="bytes of a file, header included", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
