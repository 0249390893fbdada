"""What several images a pass save: `python -m benchmarks.batch`.

    python -m benchmarks.batch [--model small-student] [--sizes 64,128,256,512] [--count 8]

Times encoding and the decoding of latents, one image a pass and `--count` a pass, in turns, on one thread. The files
must be the same bytes and the latents equal: exit code 1 if they are not. Images are random, with the spectrum of
photographs.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from aeic_lightning.cli.commands.bench import picture
from aeic_lightning.codec import Codec
from benchmarks.__main__ import timed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small-student", help="a shipped model, a checkpoint or a folder of weights")
    parser.add_argument("--sizes", default="64,128,256,512", help="pixels a side, separated by commas")
    parser.add_argument("--count", type=int, default=8, help="images a pass")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bitstream = Codec.from_pretrained(args.model).bitstream
    print("| pixels | part | one a pass, ms an image | images a pass | ms an image | ratio | of processor time |")
    print("|---|---|---|---|---|---|---|")
    for side in map(int, args.sizes.split(",")):
        x = torch.cat([picture(side, side).roll(shift, 2) for shift in range(args.count)])
        alone = [bitstream.encode(image) for image in x.split(1)]
        if [file.data for file in bitstream.encode_batch(x)] != alone:
            print(f"error: at {side} pixels a batch has other bytes", file=sys.stderr)
            return 1
        pairs = zip(map(bitstream.decode, alone), bitstream.decode_batch(alone), strict=True)
        if not all(torch.equal(one.y_hat, other.y_hat) for one, other in pairs):
            print(f"error: at {side} pixels a batch has other latents", file=sys.stderr)
            return 1
        encode = {
            "one": lambda x=x: [bitstream.encode(image) for image in x.split(1)],
            "batch": lambda x=x: bitstream.encode_batch(x),
        }
        decode = {
            "one": lambda alone=alone: [bitstream.decode(data) for data in alone],
            "batch": lambda alone=alone: bitstream.decode_batch(alone),
        }
        for part, both in (("encode", encode), ("decode latents", decode)):
            found = timed(both, args.repeats)
            one, batch = (1000 * found[name]["seconds"] / args.count for name in ("one", "batch"))
            ratios = f"{found['batch']['ratio']:.2f} | {found['batch']['processor_ratio']:.2f}"
            print(f"| {side}x{side} | {part} | {one:.1f} | {args.count} | {batch:.1f} | {ratios} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
