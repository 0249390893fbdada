"""What `compress --effort` gives for its seconds: `python -m benchmarks.effort PHOTO... --effort 10 30 100`.

For the centre of each photograph: rate and quality without effort at levels close to each other, then with each effort
at the `--levels`. Means over the photographs are compared with the rate that the model needs without effort for the
same mean metric, by linear interpolation of the logarithm of the rate. LPIPS is on EfficientNet-Lite2, which no
training here sees. One thread.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch

from aeic_lightning.bitstream.stream import Encoded, reconstruct
from aeic_lightning.codec import Codec
from aeic_lightning.images import from_uint8, read_image
from aeic_lightning.metrics.features import LPIPS
from aeic_lightning.metrics.pixels import psnr

BETTER = {"psnr": 1, "lpips_lite2": -1}
"""Metric -> 1 where more is better, -1 where less is."""


def main(argv: list[str] | None = None) -> int:
    """Print a table in Markdown; 0."""
    parser = argparse.ArgumentParser(description="Rate and quality of refined streams.")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--model", default="small-student")
    parser.add_argument("--effort", nargs="+", type=int, default=[10, 30, 100])
    parser.add_argument("--levels", nargs="+", type=float, default=[0.5, 2.5])
    parser.add_argument("--step", type=float, default=0.5, help="between the levels without effort")
    parser.add_argument("--side", type=int, default=256, help="of the centre that is taken, pixels")
    parser.add_argument("--figures", type=Path, help="write every file's figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    codec, lpips = Codec.from_pretrained(args.model), LPIPS("lite2")
    images = [centre(torch.from_numpy(read_image(path)), args.side) for path in args.photos]
    rows = []

    def measure(level: float, effort: int) -> dict[str, float]:
        encoder, found = codec.encoder(effort), []
        for image in images:
            x = from_uint8(image[None])
            start = time.process_time()
            encoded = encoder.encode_at(x, level=level)
            found.append({"seconds": time.process_time() - start} | quality(codec, lpips, encoded, image))
        mean = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        rows.append({"level": level, "effort": effort, "mean": mean, "files": found})
        return mean

    plain = [measure(float(level), 0) for level in np.arange(0, codec.levels - 1 + args.step / 2, args.step)]
    print(
        "| level | effort | seconds an image | bpp | PSNR, dB | LPIPS-Lite2 | bits at equal PSNR | equal LPIPS-Lite2 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for level in args.levels:
        for effort in (0, *args.effort):
            mean = measure(level, effort)
            saved = [change(mean["bpp"], equal_rate(plain, name, mean[name])) for name in BETTER]
            print(
                f"| {level:g} | {effort} | {mean['seconds']:.1f} | {mean['bpp']:.4f} | {mean['psnr']:.2f} | "
                f"{mean['lpips_lite2']:.4f} | {saved[0]} | {saved[1]} |",
                flush=True,
            )
    if args.figures:
        args.figures.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def centre(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of (H, W, 3), at most `side` pixels each way, as (3, h, w)."""
    top, left = (max(size - side, 0) // 2 for size in pixels.shape[:2])
    return pixels[top : top + side, left : left + side].permute(2, 0, 1)


def quality(codec: Codec, lpips: LPIPS, encoded: Encoded, image: torch.Tensor) -> dict[str, float]:
    """Bits per pixel of a file, and the metrics of what the receiver makes of it."""
    picture = reconstruct(codec.model, codec.bitstream.decode(encoded.data))
    with torch.no_grad():
        distance = lpips(from_uint8(picture[None]), from_uint8(image[None])).item()
    bpp = 8 * len(encoded.data) / image[0].numel()
    return {"bpp": bpp, "psnr": psnr(picture[None], image[None]).item(), "lpips_lite2": distance}


def equal_rate(plain: list[dict[str, float]], name: str, value: float) -> float | None:
    """Bits per pixel at which the curve without effort first reaches a value; None where no level does."""
    better = BETTER[name]
    for low, high in itertools.pairwise(plain):
        ends = better * low[name], better * high[name]
        if ends[0] <= better * value <= ends[1]:
            share = (better * value - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0
            return float(np.exp((1 - share) * np.log(low["bpp"]) + share * np.log(high["bpp"])))
    return None


def change(bpp: float, without: float | None) -> str:
    """How many bits more or fewer a rate is."""
    return "no level reaches it" if without is None else f"{100 * (bpp / without - 1):+.0f} %"


if __name__ == "__main__":
    raise SystemExit(main())
