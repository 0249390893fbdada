"""`decompress`: .aeic files to PNG."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aeic_lightning.cli import refuse_extra
from aeic_lightning.cli.commands.compress import add_model_arguments
from aeic_lightning.errors import UserError
from aeic_lightning.output import add_json_argument, counted, shown
from aeic_lightning.torch_settings import check_device

Entry = tuple[int, Any, bytes, tuple[str, Any]]
"""A stream: its number and conversion, its bytes, and what a pass has in common: model, size and level of latents."""
NOTICE = "Synthesised by a generative decoder from a few hundred bytes: its details are plausible, not recorded."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sources, checkpoint, target."""
    parser.add_argument("streams", nargs="+", metavar="FILE", help=".aeic files, or folders of them")
    add_model_arguments(parser, "by default the one that each stream names")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where the PNG files go")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N",
        help="pictures a pass of the networks, where sizes and levels of neighbours agree; for GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--realism", type=float, metavar="R",
        help="from 0, the picture nearest to the original (default), to 1, the one most like a photograph; for models "
        "with decoder weights for both",
    )  # fmt: skip
    parser.add_argument(
        "--float32", action="store_true", help="compute pictures in float32, also where bfloat16 is quicker"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """One line for each file. A file that cannot be decoded gives no picture, and exit code 2 at the end."""
    refuse_extra(extra)
    from aeic_lightning.files import Conversion, conversions_of, find_streams, require_model

    conversions = conversions_of(args.streams, args.out, ".png", find_streams, args.force)
    name = args.model
    if name and not name.startswith("hf:"):
        require_model(name, "model")

    check_device(args.device)
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}; it is at least 1")
    from aeic_lightning.bitstream.stream import in_passes, reconstruct_batch
    from aeic_lightning.codec import Codec

    opened: dict[str, tuple[Codec, Any]] = {}  # and the model at the realism that was ordered
    failed = 0
    files: list[dict[str, Any]] = []

    def fail(conversion: Conversion, error: UserError) -> None:
        nonlocal failed
        failed += 1
        print(shown(f"error: {conversion.source}: {error}"), file=sys.stderr)
        files.append({"source": str(conversion.source), "error": str(error)})

    def draw(entries: list[Entry]) -> None:
        codec, model = opened[entries[0][3][0]]
        try:
            decoded = codec.bitstream.decode_batch([data for _, _, data, _ in entries])
        except UserError as error:
            if len(entries) == 1:
                fail(entries[0][1], error)
            else:
                for entry in entries:
                    draw([entry])
            return
        pictures = reconstruct_batch(model, decoded, not args.float32)
        for (number, conversion, *_), latents, picture in zip(entries, decoded, pictures, strict=True):
            notice = NOTICE if model.generative else None
            write_png(conversion.target, picture, codec.fingerprint[:16], notice)
            print(
                f"[{number}/{len(conversions)}] {shown(conversion.target)}  {latents.width}x{latents.height}",
                flush=True,
            )
            files.append({"source": str(conversion.source), "file": str(conversion.target), "width": latents.width,
                          "height": latents.height})  # fmt: skip

    def entries() -> Iterator[Entry]:
        for number, conversion in enumerate(conversions, 1):
            try:
                data = read_stream(conversion.source)
                model_name = name or _writer(data)
                if model_name not in opened:
                    codec = Codec.from_pretrained(model_name, device=args.device)
                    opened[model_name] = codec, codec.model.at_realism(args.realism)
                if name:
                    _refuse_earlier(data, opened[name][0].fingerprint)
                yield number, conversion, data, (model_name, opened[model_name][0].bitstream.pass_of(data))
            except UserError as error:
                if name and not opened:
                    raise  # there is no such model
                fail(conversion, error)

    for group in in_passes(entries(), args.batch, lambda entry: entry[3]):
        draw(group)
    print(f"{counted(len(conversions) - failed, 'file')}, {failed} failed")
    args.give({"files": files})
    return 2 if failed else 0


def _writer(data: bytes) -> str:
    """The shipped model that a stream names."""
    from aeic_lightning.bitstream.wire import model_of
    from aeic_lightning.zoo import earlier_writer, models, writer_of

    found = writer_of(model_of(data))
    if found is None:
        names = ", ".join(model.name for model in models()) or "none"
        raise UserError(
            earlier_writer(model_of(data))
            or f"it was written by model {model_of(data).hex()}, which is none of those that ship ({names}); "
            "give the one that wrote it: --model MODEL"
        )
    return found.name


def _refuse_earlier(data: bytes, fingerprint: str) -> None:
    """Raise UserError for a stream that a model wrote which ships no more, unless the named model is that one."""
    from aeic_lightning.bitstream.wire import model_of
    from aeic_lightning.zoo import earlier_writer

    try:
        model_id = model_of(data)
    except UserError:
        return  # no header: decoding says what is wrong
    earlier = earlier_writer(model_id)
    if earlier and not fingerprint.startswith(model_id.hex()):
        raise UserError(earlier)


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


def read_stream(path: Path) -> bytes:
    """The bytes of a file. Raises UserError for one that cannot be read or is far too large to be a stream."""
    from aeic_lightning.bitstream.wire import LARGEST_FILE

    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:  # before it fills the memory
            raise UserError(f"{size} bytes are more than any stream has; it is no .aeic file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); check the path and its permissions") from error
