"""Whether the exported send half in onnxruntime writes the bytes that PyTorch does.

    python -m benchmarks.onnx_bytes [--size tiny|AEIC-SE] [--count 50] [--largest 400] [--checkpoint CKPT]

Random images of random sizes. g_a and h_a are floating point, so that a value near a half could be rounded the other
way: PyTorch then still decodes the stream, which is checked. Exit code 1 unless all bytes are equal.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from aeic_lightning.bitstream.export import export
from aeic_lightning.bitstream.send import Sender
from aeic_lightning.bitstream.stream import dial_position
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.cli.commands.verify import random_images
from aeic_lightning.codec import Codec
from aeic_lightning.images import from_uint8, read_image
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import CODECS, random_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CODECS, default="tiny")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--largest", type=int, default=400)
    parser.add_argument("--checkpoint")
    args = parser.parse_args()
    model = load_model(args.checkpoint) if args.checkpoint else random_model(CODECS[args.size])
    assert isinstance(model, AEIC)
    bitstream = Codec(model).bitstream
    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        export(bitstream, Path(folder, "export"))
        sender = Sender(Path(folder, "export", "send"))
        for path in random_images(args.count, args.largest, Path(folder)):
            pixels = read_image(path)
            x = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])
            ours, theirs = bitstream.encode(x), sender.encode(pixels, dial_position(None, sender.levels))
            equal += ours == theirs
            if ours != theirs:
                bitstream.decode(theirs)  # raises UserError for what does not decode to the sender's latents
                print(f"{path.stem}: {len(ours)} and {len(theirs)} bytes; onnxruntime's decode too")
    print(f"{equal} of {args.count} streams have the same bytes from PyTorch and onnxruntime")
    return 0 if equal == args.count else 1


if __name__ == "__main__":
    sys.exit(main())
