"""What the documents show of the shipped codec, made anew: `python -m benchmarks.show`, after `benchmarks.shipped`.

docs/gallery.md, docs/gallery/*.webp    four photographs of scikit-image beside JPEG, WebP and AVIF at equal bytes
docs/gallery/first.webp                 the picture of the first screen
docs/gallery/card.jpg                   the card of links to the site
README.md, results/kodak/README.md      the table between its marks, of results/kodak
"""

import argparse
import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from aeic_lightning.codec import Codec
from aeic_lightning.files import write_whole
from aeic_lightning.serve.trial import SCALES, prepare, trial
from aeic_lightning.study.results import Result, read_results
from aeic_lightning.zoo import DEFAULT
from benchmarks.shipped_page import called, column, interval
from datamodules.sample_photos import photographs

ROOT = Path(__file__).parents[1]
SHOWN = ("coffee", "chelsea", "astronaut", "rocket")
"""Photographs whose authors gave up their rights; the first is on the first screen."""
AIM = 0.03
"""Bits per pixel; where the model has no file so small, its smallest."""
MORE = 1.02
"""Mean bytes beyond this, relative to the model's, are marked."""
COLUMNS = {
    "psnr": ("PSNR (dB)", 2),
    "ssimulacra2": ("SSIMULACRA2", 1),
    "lpips_lite2": ("LPIPS, Lite2", 3),
    "lpips_hed": ("LPIPS, HED", 3),
    "dists_lite2": ("DISTS, Lite2", 3),
    "dists_hed": ("DISTS, HED", 3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="the table alone")
    parser.add_argument("--bpp", type=float, default=AIM, help=f"of the table (default: {AIM})")
    args = parser.parse_args(arguments)
    if not args.table:
        gallery(ROOT / "docs")
    results = read_results([ROOT / "results/kodak/results.json"])
    for page in (ROOT / "README.md", ROOT / "results/kodak/README.md"):
        write_whole(page, with_table(page.read_text(), results, args.bpp))
    return 0


# ---------------------------------------------------------------------- photographs


def gallery(docs: Path) -> None:
    """Code the photographs, and write the page, its pictures, the first screen's and the card."""
    codec, samples = Codec.from_pretrained(DEFAULT), photographs()
    folder = docs / "gallery"
    folder.mkdir(exist_ok=True)
    sections = []
    for name in SHOWN:
        image = prepare(samples[name].read_bytes())
        entries = [event["codec"] for event in trial(codec, DEFAULT, image, AIM) if "codec" in event]
        pictures = [_opened(entry["picture"]) for entry in entries]
        files = ["original", *(file_of(entry["name"]) for entry in entries)]
        for file, picture in zip(files, [Image.fromarray(image), *pictures], strict=True):
            write_whole(folder / f"{name}-{file}.webp", _encoded(picture, "WEBP", quality=82, method=6))
        sections.append(section(name, image.shape, files, entries))
        if name == SHOWN[0]:
            best = [entry["name"].startswith(("small", "AVIF")) for entry in entries]
            chosen = [(e, p) for e, p, shown in zip(entries, pictures, best, strict=True) if shown]
            first = side_by_side(Image.fromarray(image), chosen)
            write_whole(folder / "first.webp", _encoded(first, "WEBP", quality=82, method=6))
            write_whole(folder / "card.jpg", _encoded(card(Image.fromarray(image), chosen[0]), "JPEG", quality=80))
    write_whole(docs / "gallery.md", HEAD.format(model=DEFAULT, aim=AIM, scales=_scales()) + "\n".join(sections))


HEAD = """# Gallery

Four photographs that came with scikit-image, coded by `{model}` at {aim:g} bits per pixel, or at its lowest rate.
JPEG, WebP and AVIF have at most the same bytes, at {scales} of the picture's size, whichever is best in
LPIPS. A codec marked with * has no file so small, and shows its smallest. The picture of `decompress --realism 0.5` is
of the same file as the model's other one. `python -m benchmarks.show` makes this page.

Fine detail is invented by the decoder. On your own photographs: [try it on your machine](howto_try.md), or
[in this browser](https://OWNER.github.io/aeic_lightning/codec/index.html), which uploads nothing.

<style>
.pair {{ position: relative; line-height: 0; max-width: 640px; }}
.pair img {{ width: 100%; display: block; }}
.pair img + img {{ position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at, 50%)); }}
.pair::after {{ content: ""; position: absolute; inset: 0 auto 0 var(--at, 50%); border-left: 2px solid #fff; }}
.slid input {{ width: 100%; max-width: 640px; min-height: 44px; }}
</style>

"""


def file_of(codec: str) -> str:
    """`jpeg` of "JPEG at 1/4 size", `student-realism-0.5` of "student, realism 0.5"."""
    return codec.partition(" at ")[0].replace(", ", "-").replace(" ", "-").lower()


def section(name: str, shape: tuple[int, ...], files: Sequence[str], entries: Sequence[dict[str, Any]]) -> str:
    """A photograph: the original and the model's picture under a slider, and a table of all with links."""
    model = entries[0]
    rows = [
        f"| [{e['name']}{' *' if e['over'] else ''}](gallery/{name}-{file}.webp) | {e['bytes']:,} | {e['bpp']:.4f} | "
        f"{e['psnr']:.2f} | {e['lpips']:.3f} |"
        for file, e in zip(files[1:], entries, strict=True)
    ]
    pair = (
        f'<div class="slid"><div class="pair"><img src="gallery/{name}-original.webp" alt="{name}, the original">'
        f'<img src="gallery/{name}-{files[1]}.webp" alt="{name}, decoded from {model["bytes"]:,} bytes"></div>'
        '<input type="range" aria-label="border between the original and the decoded picture" '
        "oninput=\"this.previousElementSibling.style.setProperty('--at', this.value + '%')\"></div>"
    )
    title = f"## {name.capitalize()}: {model['bytes']:,} bytes"
    head = "| picture | bytes | bpp | PSNR (dB) | LPIPS, Lite2 |\n|---|---|---|---|---|"
    said = f"{shape[1]} x {shape[0]} pixels. Left: [original](gallery/{name}-original.webp); right: `{model['name']}`."
    return "\n".join([title, "", pair, "", said, "", head, *rows, ""])


def side_by_side(original: Image.Image, coded: Sequence[tuple[dict[str, Any], Image.Image]]) -> Image.Image:
    """The original and pictures with their bytes below: two rows of two."""
    cells = [("original", original)]
    for entry, picture in coded:
        model, comma, realism = entry["name"].partition(", ")
        cells.append((f"the same file, {realism}" if comma else f"{model}, {entry['bytes']:,} bytes", picture))
    width, height, bar, gap = *original.size, 54, 6
    sheet = Image.new("RGB", (2 * width + gap, 2 * (height + bar)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(40)  # 12 pixels on a phone
    for place, (text, picture) in enumerate(cells):
        x, y = (place % 2) * (width + gap), (place // 2) * (height + bar)
        sheet.paste(picture, (x, y))
        pen.text((x + 2, y + height), text, fill="black", font=font)
    return sheet


def card(original: Image.Image, coded: tuple[dict[str, Any], Image.Image]) -> Image.Image:
    """1200 x 630 pixels: the left half of the original beside the right half of the model's picture."""
    entry, picture = coded
    width, height = original.size
    joined = original.copy()
    joined.paste(picture.crop((width // 2, 0, width, height)), (width // 2, 0))
    scale = max(1200 / width, 520 / height)
    joined = joined.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (joined.width - 1200) // 2, (joined.height - 520) // 2
    sheet = Image.new("RGB", (1200, 630), "white")
    sheet.paste(joined.crop((left, top, left + 1200, top + 520)), (0, 0))
    pen = ImageDraw.Draw(sheet)
    pen.line((600, 0, 600, 520), fill="white", width=3)
    pen.text((24, 530), f"A photograph in {entry['bytes']:,} bytes", fill="black", font=ImageFont.load_default(48))
    pen.text(
        (24, 590), "aeic_lightning: distillation of learned image codecs", fill="#444", font=ImageFont.load_default(26)
    )
    return sheet


def _scales() -> str:
    words = ["full" if scale == 1 else f"1/{scale}" for scale in SCALES]
    return ", ".join(words[:-1]) + f" or {words[-1]}"


def _opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ---------------------------------------------------------------------- the table of the README


def with_table(readme: str, results: Sequence[Result], bpp: float) -> str:
    """The text with the table at a rate between its marks."""
    begin, end = "<!-- kodak:begin -->\n", "<!-- kodak:end -->"
    before, after = readme.split(begin)[0], readme.split(end)[1]
    return before + begin + "\n".join(table(results, bpp)) + "\n" + end + after


def table(results: Sequence[Result], bpp: float) -> list[str]:
    """A row per codec at a rate, with 95 % intervals over images, then what the marks mean; marked rows come last."""
    found = [result for result in results if str(result.labels["target"]).endswith((f"{bpp:g}", f" {bpp:g} bpp"))]
    sizes = [float(column(result, "bytes").mean()) for result in found]
    ours = sizes[0]
    lines = ["| codec | bytes a file | bpp | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines += ["|---" * (len(COLUMNS) + 3) + "|"]
    for size, result in sorted(zip(sizes, found, strict=True), key=lambda row: row[0] > MORE * ours):
        marked = size > MORE * ours
        cells = [f"{size:,.0f}{f' ({size / ours:.1f}x)' if marked else ''}", f"{column(result, 'bpp').mean():.4f}"]
        for name, (_, digits) in COLUMNS.items():
            values = column(result, name)
            low, high = interval(values)
            cells.append(f"{values.mean():.{digits}f} ± {(high - low) / 2:.{digits}f}{' †' if marked else ''}")
        lines.append(f"| {_called(result)} | " + " | ".join(cells) + " |")
    if any("†" in line for line in lines):
        lines += ["", f"† of larger files than those of {_called(found[0])}, since this codec has none so small."]
    return lines


def _called(result: Result) -> str:
    return called(result) if "codec" in result.labels else result.name.partition(" at ")[0]


if __name__ == "__main__":
    raise SystemExit(main())
