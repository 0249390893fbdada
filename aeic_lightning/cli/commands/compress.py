"""`compress`: images to .aeic files."""

import argparse
import sys
import warnings
from functools import partial
from typing import Any

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.output import add_json_argument, counted, image_warnings_in_words, shown
from aeic_lightning.torch_settings import check_device

EXAMPLE = """
examples:
  aeic-lightning compress photo.jpg -o streams/                      # with the model that ships
  aeic-lightning compress photos/ -o streams/ --bpp 0.06
  aeic-lightning compress photo.jpg -o streams/ --bytes 2000
  aeic-lightning compress photos/ -o streams/ --model runs/tiny/student/checkpoints/last.ckpt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sources, model, rate, target."""
    parser.epilog = EXAMPLE
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_model_arguments(parser, "the receiver needs the same (default: small-student, which ships)")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where the .aeic files go")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--bpp", type=float, metavar="R", help="the best picture of at most R bits per pixel")
    rate.add_argument("--bytes", type=int, metavar="N", help="the best picture of at most N bytes")
    rate.add_argument("--level", type=float, help="rate level, from 0 (smallest files); by default the middle one")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="images at a time, one process each")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N",
        help="images a pass of the coder's networks, where sizes of neighbours agree; quicker for small images",
    )  # fmt: skip
    parser.add_argument(
        "--effort", type=int, default=0, metavar="N",
        help="gradient steps that refine the latents for each image: smaller files and better pictures, for seconds to "
        "minutes an image (default: 0)",
    )  # fmt: skip
    parser.add_argument("--fast", action="store_true", help="bfloat16 for g_a if it is quicker here")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    add_json_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser, remark: str) -> None:
    """--model, also under the name that it had for files, and --device."""
    help_ = f"a shipped model, a checkpoint of `fit`, a folder of weights or hf:OWNER/NAME; {remark}"
    parser.add_argument("--model", metavar="MODEL", help=help_)
    parser.add_argument("--checkpoint", dest="model", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help="where the networks compute: cpu, cuda, cuda:1 ...")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """One line for each file with its bytes and bits per pixel, then the sums. Exit code 2 if any image failed."""
    refuse_extra(extra)
    from aeic_lightning.bitstream.wire import check_rate
    from aeic_lightning.files import conversions_of, find_images, locate, require_model

    conversions = conversions_of(args.images, args.out, ".aeic", find_images, args.force)
    for name in ("workers", "batch"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it is at least 1")
    if args.effort < 0:
        raise UserError(f"--effort is {args.effort}; it is a number of gradient steps, 0 or more")
    if args.effort:
        require("--effort", "lightning", "torchmetrics")
    if args.bpp is not None:
        check_rate(args.bpp)
    from aeic_lightning.zoo import DEFAULT

    name = args.model or DEFAULT
    if not name.startswith("hf:"):
        require_model(name, "model")
    check_device(args.device)
    if args.model and locate(name).is_file():
        from aeic_lightning.checkpoints.checkpoint import warn_of_untrained_rate

        warn_of_untrained_rate(name, "model")

    bfloat16 = False
    if args.fast:
        from aeic_lightning.torch_settings import bfloat16_is_quicker, fast_choice

        print(f"--fast: {fast_choice()}")
        bfloat16 = bfloat16_is_quicker()  # here, and not by workers that disturb one another
    settings: Settings = (
        str(name),
        args.device,
        args.fast,
        bfloat16,
        {"bpp": args.bpp, "max_bytes": args.bytes, "level": args.level},
        args.effort,
    )
    files = []
    written = pixels = failed = 0
    for number, (conversion, result) in enumerate(
        zip(conversions, _results(conversions, settings, args.workers, args.batch), strict=True), 1
    ):
        if isinstance(result, str):
            failed += 1
            print(shown(f"error: {conversion.source}: {result}"), file=sys.stderr)
            files.append({"source": str(conversion.source), "error": result})
            continue
        size, height, width = result
        written, pixels = written + size, pixels + height * width
        about = {"width": width, "height": height, "bytes": size, "bpp": 8 * size / (height * width)}
        files.append({"source": str(conversion.source), "file": str(conversion.target)} | about)
        print(f"[{number}/{len(conversions)}] {shown(conversion.target)}  {width}x{height}  {size} bytes  "
              f"{8 * size / (height * width):.5f} bpp", flush=True)  # fmt: skip
    rate = f", {8 * written / pixels:.5f} bpp over all pixels" if pixels else ""
    print(f"{counted(len(conversions) - failed, 'file')}, {failed} failed, {written} bytes{rate}")
    args.give({"files": files, "bytes": written, "bpp": 8 * written / pixels if pixels else None})
    return 2 if failed else 0


Settings = tuple[str, str, bool, bool, dict[str, Any], int]
"""What `_start` is given: model, device, --fast, bfloat16, the rate, the effort."""


def _results(conversions: list, settings: Settings, workers: int, batch: int):
    """For each conversion its `Result`, in order."""
    groups = [conversions[start : start + batch] for start in range(0, len(conversions), batch)]
    workers = min(workers, len(groups))
    if workers == 1:
        _start(*settings)
        for group in groups:
            yield from _compress(group)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    start = partial(_start, workers=workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), start, settings) as pool:
        for results in pool.map(_compress, groups):
            yield from results


_state: dict[str, Any] = {}


def _start(
    name: str, device: str, fast: bool, bfloat16: bool, rate: dict[str, Any], effort: int, workers: int = 1
) -> None:
    import os

    import torch

    from aeic_lightning.codec import Codec
    from aeic_lightning.torch_settings import assume_bfloat16

    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if workers > 1:  # a process of its own
        warnings.formatwarning = image_warnings_in_words(warnings.formatwarning)
    assume_bfloat16(bfloat16)
    codec = Codec.from_pretrained(name, device=device, fast=fast, receiver=bool(effort))
    if effort and not codec.objective:
        from aeic_lightning.study.model_card import objective

        codec.objective = objective(name)
    _state["encoder"] = codec.encoder(effort)
    _state["rate"] = rate


Result = tuple[int, int, int] | str
"""Bytes, height and width of an image that was compressed, or what went wrong."""


def _compress(conversions: list[Any]) -> list[Result]:
    from aeic_lightning.bitstream.stream import in_passes

    images = [(conversion, _read(conversion)) for conversion in conversions]
    results: list[Result] = []
    for alike in in_passes(images, len(images), lambda entry: getattr(entry[1], "shape", None)):
        results += _write(alike)
    return results


def _read(conversion: Any) -> Any:
    """The image, uint8 (3, H, W), or why it cannot be read."""
    import torch

    from aeic_lightning.images import read_image

    try:
        return torch.from_numpy(read_image(conversion.source)).permute(2, 0, 1)
    except UserError as error:
        return str(error)


def _write(entries: list[tuple[Any, Any]]) -> list[Result]:
    """Compress images of one size in one pass. Where one of them cannot be, the others are written all the same."""
    import torch

    from aeic_lightning.files import write_whole
    from aeic_lightning.images import from_uint8

    if isinstance(entries[0][1], str):
        return [error for _, error in entries]
    x = from_uint8(torch.stack([image for _, image in entries]))
    try:
        encoded = _state["encoder"].encode_batch(x, **_state["rate"])
    except UserError as error:
        return [str(error)] if len(entries) == 1 else [_write([entry])[0] for entry in entries]
    for (conversion, _), one in zip(entries, encoded, strict=True):
        write_whole(conversion.target, one.data)
    return [(len(one.data), x.shape[2], x.shape[3]) for one in encoded]
