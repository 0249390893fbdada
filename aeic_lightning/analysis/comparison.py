"""Accuracy, bytes and quality of finished runs: every figure from the bytes of real files."""

import io
import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aeic_lightning import UserError
from aeic_lightning.analysis.checkpoint import load_classifier
from aeic_lightning.evaluation.images import psnr, to_uint8, write_whole
from aeic_lightning.weights.checkpoint import read_checkpoint

HEAD = ("run", "classifier reads", "bytes a file", "bpp", "top-1", "top-5", "PSNR (dB)")


def compare_accuracy(folders: list[Path], out: Path) -> list[dict[str, Any]]:
    """Write accuracy.md, accuracy.json and accuracy.png to `out`, print the table, return the rows.

    Each test image of a run is written as an .aeic file; classes and picture come from what is read back. A run of step
    1 has no files: its row has the last validation's figures, without rate.

    Raises UserError for a folder without a finished run, and when the runs have other test images.
    """
    rows = [measure_run(Path(folder)) for folder in folders]
    names = {row["run"]: [image["name"] for image in row["images"]] for row in rows}
    first = rows[0]["run"]
    for run, own in names.items():
        if own != names[first]:
            raise UserError(f"{run} and {first} were tested on different images; test both on the same")
    table = markdown_table(rows)
    write_whole(out / "accuracy.json", json.dumps(rows, indent=1) + "\n")
    write_whole(out / "accuracy.md", table)
    write_whole(out / "accuracy.png", draw(rows))
    print(table)
    print(f"written: {out}/accuracy.md, accuracy.json, accuracy.png")
    return rows


def measure_run(folder: Path) -> dict[str, Any]:
    """One run's means, and the figures of each test image."""
    path = folder / "checkpoints" / "last.ckpt"
    if not (folder / "config.yaml").is_file() or not path.is_file():
        raise UserError(f"{folder} holds no finished run; train it first")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    settings = config["model"]["init_args"]
    quantised = settings["loss"]["rate"] > 0 or "head" in settings
    images = _images_from_files(path, config) if quantised else _images_from_validation(folder)
    columns = [name for name in ("bytes", "bpp", "top1", "top5", "psnr") if name in images[0]]
    return {
        "run": folder.name,
        "reads": settings.get("reads", "y_hat") if quantised else "y, unquantised",
        "step": read_checkpoint(path)["global_step"],
        **{name: math.fsum(image[name] for image in images) / len(images) for name in columns},
        "images": images,
    }


def _images_from_files(path: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    data = _data(config)
    classifier = load_classifier(path)
    if classifier.class_names != data.class_names:
        raise UserError(f"{path} was trained on other classes than its config.yaml names")
    streams = classifier.streams
    rows = []
    for batch in data.test_dataloader():
        for x, name, label in zip(batch["image"], batch["name"], batch["label"].tolist(), strict=True):
            file = streams.write(x[None])
            decoded = streams.read(file)
            order = classifier.logits(decoded).argsort(descending=True).tolist()
            row = {
                "name": name,
                "bytes": len(file),
                "bpp": 8 * len(file) / x[0].numel(),
                "top1": float(order[0] == label),
            }
            if len(order) > 5:
                row["top5"] = float(label in order[:5])
            row["psnr"] = psnr(streams.picture(decoded)[None], to_uint8(x)[None]).item()
            rows.append(row)
    return rows


def _images_from_validation(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics_val.json"
    if not file.is_file():
        raise UserError(f"{folder} has no metrics_val.json; train it with callbacks.accuracy.AccuracyMetrics")
    rows = json.loads(file.read_text())["images"]
    return [{k: row[k] for k in ("name", "top1", "top5", "psnr") if k in row} for row in rows]


def _data(config: dict[str, Any]) -> Any:
    """The data module of a run, ready for testing."""
    module, name = config["data"]["class_path"].rsplit(".", 1)
    data = getattr(import_module(module), name)(**config["data"]["init_args"])
    data.setup("test")
    return data


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """One row a run; bytes and bpp are those of files, header included."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for row in rows:
        cells = [row["run"], row["reads"]]
        cells += [f"{row['bytes']:.1f}", f"{row['bpp']:.4f}"] if "bytes" in row else ["-", "-"]
        cells += [f"{row[k]:.1%}" if k in row else "-" for k in ("top1", "top5")]
        lines.append("| " + " | ".join([*cells, f"{row['psnr']:.2f}"]) + " |")
    count = len(rows[0]["images"])
    lines += ["", f"Means over {count} test images, each written to a file, read back, classified and decoded."]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> bytes:
    """Accuracy and PSNR over the bytes of a file, as PNG. Runs called NAME_qN make one curve."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "bytes" in row:
            name, _, quality = row["run"].rpartition("_q")
            curves.setdefault(name if name and quality.isdigit() else row["run"], []).append(row)
    panels = figure.subplots(1, 2)
    for axes, (key, label) in zip(panels, (("top1", "top-1 accuracy"), ("psnr", "PSNR (dB)")), strict=True):
        for name, points in curves.items():
            points = sorted(points, key=lambda row: row["bytes"])
            axes.plot([p["bytes"] for p in points], [p[key] for p in points], "o-", label=name)
        axes.set(xlabel="bytes of a file, header included", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()
