"""`compress`: images to .aeic files."""

import argparse
import sys

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError

EXAMPLE = """
example:
  python -m aeic_lightning compress photos/ --checkpoint runs/tiny/student/checkpoints/last.ckpt -o streams/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sources, checkpoint, target."""
    parser.epilog = EXAMPLE
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--checkpoint", required=True, help="the model; the receiver needs the same one")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the .aeic files go")
    parser.add_argument("--fast", action="store_true", help="bfloat16 for g_a: other rounding, same decoder")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """One line for each file with its bytes and bits per pixel, then the sums. Exit code 2 if any image failed."""
    refuse_extra(extra)
    from aeic_lightning.bitstream.files import plan
    from datamodules.image_folder import find_images

    jobs = plan(args.images, args.output, ".aeic", find_images, args.force)

    import torch

    from aeic_lightning.bitstream.stream import Bitstream
    from aeic_lightning.checkpoints.checkpoint import load_model
    from aeic_lightning.files import write_whole
    from aeic_lightning.images import from_uint8, read_image

    bitstream = Bitstream(load_model(args.checkpoint, receiver=False), args.fast)
    written = pixels = failed = 0
    for number, job in enumerate(jobs, 1):
        try:
            image = torch.from_numpy(read_image(job.source)).permute(2, 0, 1)
            height, width = image.shape[1:]
            data = bitstream.encode(from_uint8(image)[None])
        except UserError as error:
            failed += 1
            print(f"error: {job.source}: {error}", file=sys.stderr)
            continue
        write_whole(job.target, data)
        written, pixels = written + len(data), pixels + height * width
        print(f"[{number}/{len(jobs)}] {job.target}  {width}x{height}  {len(data)} bytes  "
              f"{8 * len(data) / (height * width):.5f} bpp", flush=True)  # fmt: skip
    if pixels:
        print(f"{len(jobs) - failed} files, {written} bytes, {8 * written / pixels:.5f} bpp over all pixels")
    return 2 if failed else 0
