"""Runs side by side: a table, the same as JSON, and a picture."""

import io
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from aeic_lightning import UserError
from aeic_lightning.evaluation.complexity import codec_costs
from aeic_lightning.evaluation.images import write_whole
from aeic_lightning.weights.checkpoint import load_model

METRICS = ("bpp_estimate", "psnr", "ms_ssim", "lpips_lite0", "dists_lite0")
DIGITS = {"bpp_estimate": 4, "psnr": 2}


def read_run(folder: Path) -> dict[str, Any]:
    """Figures, costs and origin of one finished run.

    Raises UserError when the folder holds no finished run.
    """
    for name in ("metrics_val.json", "config.yaml", "run.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; it is no finished run of `fit`")
    figures = json.loads((folder / "metrics_val.json").read_text())
    record = json.loads((folder / "run.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    costs = codec_costs(load_model(folder / "checkpoints" / "last.ckpt"))
    init_args = config["model"]["init_args"]
    return {
        "name": folder.name,
        "folder": str(folder),
        "system": config["model"]["class_path"].rsplit(".", 1)[-1],
        "depths": init_args["codec"]["depths"],
        "lambda": init_args["loss"]["rate"],
        "step": figures["step"],
        "metrics": {name: value["mean"] for name, value in figures["metrics"].items()},
        "images": figures["images"],
        "encoder_macs_per_pixel": {"g_a": costs["g_a"].macs_per_pixel, "encode": costs["encode"].macs_per_pixel},
        "encoder_parameters": {"g_a": costs["g_a"].parameters, "encode": costs["encode"].parameters},
        "command": record["command"],
        "git": record["git"],
        "seed": record["seed"],
    }


def compare_runs(folders: list[Path], out: Path) -> list[dict[str, Any]]:
    """Write comparison.md, comparison.json and comparison.png to `out`, print the table, return the rows.

    Raises UserError when the runs were not validated on the same images.
    """
    rows = [read_run(Path(folder)) for folder in folders]
    images = {row["name"]: {(i["name"], i["height"], i["width"], i["crc32"]) for i in row["images"]} for row in rows}
    first = rows[0]["name"]
    for name, own in images.items():
        if own != images[first]:
            raise UserError(f"{name} and {first} were validated on different images; validate both on the same")
    table = markdown_table(rows)
    write_whole(out / "comparison.json", json.dumps(rows, indent=2) + "\n")
    write_whole(out / "comparison.md", table)
    png = io.BytesIO()
    draw(folders, rows).save(png, "PNG")
    write_whole(out / "comparison.png", png.getvalue())
    print(table)
    print(f"written: {out}/comparison.md, comparison.json, comparison.png")
    return rows


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """One row a run; metric names say their backbone, and bpp_estimate is a likelihood, not bytes."""
    metrics = [name for name in METRICS if all(name in row["metrics"] for row in rows)]
    head = ["run", "depth", *metrics, "g_a MACs/px", "encode MACs/px", "encode params"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        depths = row["depths"]
        cells = [row["name"], str(depths[0]) if len(set(depths)) == 1 else "-".join(map(str, depths))]
        cells += [f"{row['metrics'][name]:.{DIGITS.get(name, 3)}f}" for name in metrics]
        cells += [f"{row['encoder_macs_per_pixel'][part]:,.0f}" for part in ("g_a", "encode")]
        cells += [f"{row['encoder_parameters']['encode']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    count = len(rows[0]["images"])
    names = ", ".join(sorted(image["name"] for image in rows[0]["images"])[:6])
    lines += ["", f"Means over {count} images ({names}{', ...' if count > 6 else ''}); bpp_estimate is a likelihood."]
    return "\n".join(lines) + "\n"


def draw(folders: list[Path], rows: list[dict[str, Any]], max_images: int = 3) -> Image.Image:
    """Original beside each run's reconstruction, one row an image, with rate and PSNR above each."""
    figures = [{image["name"]: image for image in row["images"]} for row in rows]
    names = sorted(figures[0])[:max_images]
    columns = [Path(folder) / "reconstructions" for folder in folders]
    tiles = []
    for name in names:
        pictures = [columns[0] / f"{name}_original.png", *(column / f"{name}.png" for column in columns)]
        captions = ["original"] + [
            f"{row['name']}  {f[name]['bpp_estimate']:.3f} bpp est.  {f[name]['psnr']:.2f} dB"
            for row, f in zip(rows, figures, strict=True)
        ]
        tiles.append(list(zip(pictures, captions, strict=True)))
    opened = [[(Image.open(path).convert("RGB"), caption) for path, caption in row] for row in tiles]
    bar = 18
    width = max(sum(image.width + 4 for image, _ in row) for row in opened)
    height = sum(max(image.height for image, _ in row) + bar for row in opened)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    y = 0
    for row in opened:
        x = 0
        for image, caption in row:
            pen.text((x + 2, y + 3), caption, fill="black")
            picture.paste(image, (x, y + bar))
            x += image.width + 4
        y += bar + max(image.height for image, _ in row)
    return picture
