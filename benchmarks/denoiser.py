"""What the receiver's U-Net is good for: `python -m benchmarks.denoiser small-student --images DIR`.

The VAE decoder paints l_0 + l_res, and l_0 is all that the U-Net gives. Beside each other stand the figures of the
pictures and of those without l_0, and the root mean square of each hidden state, which a U-Net that is trained from
random weights may let grow without bound.

`--fresh DIR` writes the same model with a new U-Net whose conv_out is zero, so that its pictures are those without l_0:
a start for a training in which all else stays as it is, and so do latents and streams' contents.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from aeic_lightning.checkpoints.checkpoint import load_aeic
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, to_uint8
from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder.denoiser import Denoiser
from aeic_lightning.study.measurement import open_images


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or write the model. 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.denoiser", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a shipped model's name, a checkpoint or a folder of weights")
    parser.add_argument("--images", metavar="DIR", help="photographs; of each at most 256x256 in the centre")
    parser.add_argument("--limit", type=int, default=16, metavar="N", help="of them the first N (default 16)")
    parser.add_argument("--level", type=float, metavar="L", help="rate level (default: the middle one)")
    parser.add_argument("--fresh", type=Path, metavar="DIR", help="write the model with a new U-Net")
    args = parser.parse_args(arguments)
    try:
        model = load_aeic(args.model, "model")
        if args.fresh:
            with_new_denoiser(model)
            Codec(model).save_pretrained(args.fresh, dtype="float32")
            print(f"written: {args.fresh}")
        elif args.images:
            print(table(model.eval(), args.images, args.limit, args.level))
        else:
            raise UserError("benchmarks.denoiser: nothing to do; give --images or --fresh")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def with_new_denoiser(model: AEIC) -> None:
    """Put a U-Net of random weights in place of the model's; its l_0 is zero."""
    old = cast(Denoiser, model.decoder.denoiser)
    if old.lora is not None:
        raise UserError("the model's U-Net is a pretrained one under an adapter; it has nothing to begin anew")
    new = Denoiser(old.conv_in.in_channels, old.conv_out.out_channels, model.decoder.config.unet)
    nn.init.zeros_(new.conv_out.weight)
    nn.init.zeros_(cast(torch.Tensor, new.conv_out.bias))
    model.decoder.denoiser = new


@torch.no_grad()
def table(model: AEIC, folder: str, limit: int, level: float | None) -> str:
    """Quality with and without l_0, and the size of the hidden states."""
    images = open_images(folder, (256, 256))
    quality = ImageQuality(lpips=["lite0", "lite2"], dists=["lite2"])
    rows: dict[str, list[dict[str, Any]]] = {"l_0 + l_res": [], "l_res alone": []}
    squares: list[list[float]] = []
    decoder = model.decoder
    for name, x in islice(images, limit):
        codec = model.codec(from_uint8(x)[None], level)
        l_0, hidden = decoder.denoiser(codec.l_T)
        squares.append([float(h.square().mean()) for h in (codec.l_T, codec.l_res, l_0, *hidden)])
        for key, latents in (("l_0 + l_res", l_0 + codec.l_res), ("l_res alone", codec.l_res)):
            x_hat = decoder.vae(latents).clamp(-1, 1)[0, :, : x.shape[1], : x.shape[2]]
            rows[key].append(quality.row(name, x, to_uint8(x_hat), float(codec.bits_y + codec.bits_z), None))
    metrics = ("bpp_estimate", "psnr", "lpips_lite0", "lpips_lite2", "dists_lite2")
    lines = ["| painted | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for key, found in rows.items():
        means = [sum(row[metric] for row in found) / len(found) for metric in metrics]
        lines.append(f"| {key} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    sizes = torch.tensor(squares).mean(0).sqrt()
    names = ["l_T", "l_res", "l_0", *(f"h_{n}" for n in range(len(sizes) - 3))]
    states = ", ".join(f"{n} {v:.3g}" for n, v in zip(names, sizes.tolist(), strict=True))
    return "\n".join([*lines, "", f"rms: {states}"])


if __name__ == "__main__":
    sys.exit(main())
