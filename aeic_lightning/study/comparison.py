"""Runs side by side: a table, the same as JSON, and a picture."""

import io
from pathlib import Path

from PIL import Image, ImageDraw

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.study.results import Result, check_same_images, read_result, write_results

METRICS = ("bpp", "bpp_estimate", "psnr", "ms_ssim", "lpips_lite0", "dists_lite0")
DIGITS = {"bpp": 4, "bpp_estimate": 4, "psnr": 2}


def compare_runs(folders: list[Path], out: Path) -> list[Result]:
    """Write comparison.md, comparison.json (with .csv) and comparison.png to `out`, print the table, return the rows.

    Raises UserError when the runs were not validated on the same images.
    """
    rows = [read_result(folder) for folder in folders]
    check_same_images(rows)
    table = markdown_table(rows)
    write_results(out / "comparison.json", rows)
    write_whole(out / "comparison.md", table)
    png = io.BytesIO()
    draw(rows).save(png, "PNG")
    write_whole(out / "comparison.png", png.getvalue())
    print(table)
    print(f"written: {out}/comparison.md, comparison.json, comparison.csv, comparison.png")
    return rows


def markdown_table(rows: list[Result]) -> str:
    """One row a result; metric names say their backbone; bpp is bytes of files, bpp_estimate a likelihood.

    A figure that is not finite, and a cost that is not known, is a dash.
    """
    metrics = [name for name in METRICS if all(name in row.metrics for row in rows)]
    head = ["run", "depth", *metrics, "g_a MACs/px", "encode MACs/px", "encode params"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row.name, str(row.labels.get("depth", row.labels.get("encoder", "-")))]
        cells += [_cell(row.figure(name), f".{DIGITS.get(name, 3)}f") for name in metrics]
        macs, parameters = (
            (row.costs or {}).get("encoder_macs_per_pixel", {}),
            (row.costs or {}).get("encoder_parameters", {}),
        )
        cells += [_cell(macs.get(part), ",.0f") for part in ("g_a", "encode")]
        cells += [_cell(parameters.get("encode"), ",")]
        lines.append("| " + " | ".join(cells) + " |")
    count = len(rows[0].images)
    names = ", ".join(sorted(image["name"] for image in rows[0].images)[:6])
    lines += [
        "",
        f"Means over {count} images ({names}{', ...' if count > 6 else ''}); bpp is bytes of the files over pixels, "
        "bpp_estimate a likelihood.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def draw(rows: list[Result], max_images: int = 3) -> Image.Image:
    """Original beside each result's reconstruction, one row an image, with rate and PSNR above each."""
    figures = [{image["name"]: image for image in row.images} for row in rows]
    tiles = []
    for name in sorted(figures[0])[:max_images]:
        pictures = [rows[0].original(name), *(row.pictures.get(name) for row in rows)]
        missing = next((row.name for row, picture in zip((rows[0], *rows), pictures, strict=True) if not picture), None)
        if missing:
            raise UserError(f"{missing} has no picture of {name}; run it with ReconstructionGrid(save_images: true)")
        captions = ["original"] + [
            f"{row.name}  {_rate(f[name])}  {_cell(f[name]['psnr'], '.2f')} dB"
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


def _rate(image: dict) -> str:
    return f"{image['bpp']:.3f} bpp" if "bpp" in image else f"{image['bpp_estimate']:.3f} bpp est."
