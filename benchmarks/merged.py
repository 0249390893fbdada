"""What merging the adapters of a decoder saves: `python -m benchmarks.merged --checkpoint CKPT`.

A model whose decoder is a frozen base under adapters (LoRA) decodes the same latents to pictures with the adapters
apart, as in training, and merged, as `decompress` and `export` have them; in turns, on one thread. Prints both times,
their ratio, and the largest difference between the pictures.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.cli.commands.bench import parse_size, picture
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import OneStepDecoder
from benchmarks.__main__ import timed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of a model with adapters")
    parser.add_argument("--sizes", default="256x256,768x512", help="WIDTHxHEIGHT, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        apart, merged = load_model(args.checkpoint, "model"), load_model(args.checkpoint, "model").for_decoding()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not (isinstance(apart, AEIC) and isinstance(apart.decoder, OneStepDecoder) and apart.decoder.denoiser.adapter):
        print(f"error: {args.checkpoint} has no adapters", file=sys.stderr)
        return 2
    bitstream = Codec(apart).bitstream
    print("| size | adapters apart, s | merged, s | ratio | of processor time | largest difference, of 255 |")
    print("|---|---|---|---|---|---|")
    for height, width in map(parse_size, args.sizes.split(",")):
        decoded = bitstream.decode(bitstream.encode(picture(height, width)))
        pictures = [reconstruct(model, decoded).int() for model in (apart, merged)]
        found = timed(
            {"apart": lambda d=decoded: reconstruct(apart, d), "merged": lambda d=decoded: reconstruct(merged, d)},
            args.repeats,
        )
        seconds = " | ".join(f"{found[name]['seconds']:.3f}" for name in ("apart", "merged"))
        ratios = f"{found['merged']['ratio']:.2f} | {found['merged']['processor_ratio']:.2f}"
        difference = int((pictures[0] - pictures[1]).abs().max())
        print(f"| {width}x{height} | {seconds} | {ratios} | {difference} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
