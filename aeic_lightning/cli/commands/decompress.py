"""`decompress`: .aeic files to PNG."""

import argparse
import sys
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError

NOTICE = "Synthesised by a generative decoder from a few hundred bytes: its details are plausible, not recorded."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sources, checkpoint, target."""
    parser.add_argument("streams", nargs="+", metavar="FILE", help=".aeic files, or folders of them")
    parser.add_argument("--checkpoint", required=True, help="the model that wrote them")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the PNG files go")
    parser.add_argument("--fast", action="store_true", help="bfloat16 for the picture; the latents are the same")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """One line for each file. A file that cannot be decoded gives no picture, and exit code 2 at the end."""
    refuse_extra(extra)
    from aeic_lightning.bitstream.files import find_streams, plan, read_stream

    jobs = plan(args.streams, args.output, ".png", find_streams, args.force)

    from aeic_lightning.bitstream.stream import Bitstream, reconstruct
    from aeic_lightning.checkpoints.checkpoint import load_model

    model = load_model(args.checkpoint)
    bitstream = Bitstream(model, args.fast)
    notice = NOTICE if model.generative else None
    failed = 0
    for number, job in enumerate(jobs, 1):
        try:
            decoded = bitstream.decode(read_stream(job.source))
            picture = reconstruct(model, decoded, args.fast)
            write_png(job.target, picture, bitstream.fingerprint.hex()[:16], notice)
        except UserError as error:
            failed += 1
            print(f"error: {job.source}: {error}", file=sys.stderr)
            continue
        print(f"[{number}/{len(jobs)}] {job.target}  {decoded.width}x{decoded.height}", flush=True)
    return 2 if failed else 0


def write_png(path: Path, image, model: str, notice: str | None) -> None:
    """Write uint8 (3, H, W) as PNG whose text chunks say what it is."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from aeic_lightning import __version__
    from aeic_lightning.files import write_whole

    info = PngInfo()
    if notice:
        info.add_text("Comment", notice)
    info.add_text("Software", f"aeic_lightning {__version__}, model {model}")
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", pnginfo=info)
    write_whole(path, buffer.getvalue())
