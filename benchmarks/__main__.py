"""Speed on this machine, as ratios that were measured in one run: `python -m benchmarks -o docs/performance.md`.

On any processor: encoding against plain PyTorch modules of the same network, one thread against several, and beside
Pillow's JPEG XL and AVIF. On CUDA also: frames a second of AEIC-SE and AEIC-ME, bfloat16 and `torch.compile`, and steps
a second and memory of the paper's stages. Weights are random, at full size: nothing is downloaded.

Alternatives run in turn (A B A B), and a ratio is the median over the turns, so that a busy machine disturbs both.
"""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from aeic_lightning.bitstream import products
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.cli.commands.bench import describe, encode, parse_size, picture, plain_latents
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.images import to_uint8
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import CODECS, random_model
from aeic_lightning.study.anchors import CODECS as OTHERS
from aeic_lightning.study.anchors import check_codec
from aeic_lightning.timing import Timed, compare, processor
from aeic_lightning.torch_settings import fast_choice

INTRODUCTION = """# Performance

Written by `python -m benchmarks --repeats 3 -o docs/performance.md`, which replaces the tables of its own kind of
processor. Ratios are medians over the turns of one run; below 1 is faster than the first column. Seconds are of the
machine as it was, which may have been busy: the load says so, and then the ratio of processor time is the one to go by.
"""

PARTS = {"encode": "whole encode", "g_a": "g_a, h_a", "latents": "h_s, context, coder"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--figures", type=Path, help="write the results here")
    parser.add_argument("--sizes", default="768x512,1920x1080", help="WIDTHxHEIGHT, separated by commas")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="beside one (default: cores)")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--model", choices=list(CODECS), default="AEIC-SE", help="size of the codec")
    parser.add_argument("--cuda", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    args = parser.parse_args(arguments)
    sizes = [parse_size(size) for size in args.sizes.split(",")]

    model = random_model(CODECS[args.model])
    report: dict[str, Any] = {
        "processor": processor(), "exact products": products.chosen(), "fast": fast_choice(), "model": args.model,
        "load before": os.getloadavg()[0], "turns": args.repeats, "sizes": [],
    }  # fmt: skip
    print("\n".join(f"{name}: {describe(value)}" for name, value in report.items() if name != "sizes"), flush=True)
    threads = sorted({1, args.threads})
    for height, width in sizes:
        print(f"\n{width}x{height}", flush=True)
        report["sizes"].append({"size": f"{width}x{height}"} | measure(model, height, width, threads, args.repeats))
    report["load after"] = os.getloadavg()[0]
    if args.cuda:
        from benchmarks import cuda

        report["cuda"] = cuda.measure(sizes[-1], args.repeats, small=args.model == "tiny")
    text = section(report)
    print("\n" + text)
    if args.out:
        write_whole(args.out, with_section(args.out.read_text() if args.out.exists() else INTRODUCTION, text))
    if args.figures:
        write_whole(args.figures, json.dumps(report, indent=1))
    return 0


def measure(model: AEIC, height: int, width: int, threads: list[int], repeats: int) -> dict[str, Any]:
    """Everything about one size on the processor."""
    bitstream, x = Codec(model).bitstream, picture(height, width)
    before = torch.get_num_threads()
    result: dict[str, Any] = {"plain": {}, "bound": {}}
    try:
        for count in threads:
            torch.set_num_threads(count)
            print(f" {count} threads", flush=True)
            result["plain"][count] = encode(repeats, model.codec, bitstream, x)
            result["bound"][count] = bound(model, bitstream, x, repeats)
        result["threads"] = timed(
            {f"{n} threads": with_threads(n, lambda: bitstream.encode(x)) for n in threads}, repeats
        )
        torch.set_num_threads(1)
        result["others"] = others(bitstream, x, repeats)
    finally:
        torch.set_num_threads(before)
    return result


def with_threads(count: int, function: Callable[[], Any]) -> Callable[[], Any]:
    """The function, on this many threads."""

    def run() -> Any:
        torch.set_num_threads(count)
        return function()

    return run


def timed(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """`compare`, as plain values."""
    with torch.inference_mode():
        results: dict[str, Timed] = compare(candidates, repeats)
    return {name: asdict(result) for name, result in results.items()}


def bound(model: AEIC, bitstream: Bitstream, x: torch.Tensor, repeats: int) -> dict[str, float]:
    """What the products of the latents take at least: their number, by the speed of a large float32 product."""
    n = 768
    a, b = torch.randn(n, n), torch.randn(n, n)
    speed = n**3 / min(timed({"product": lambda: a @ b}, 1)["product"]["seconds"] for _ in range(4 * repeats))

    def int_mm(a: tuple[int, int], b: tuple[int, int], **_: Any) -> int:  # PyTorch does not count it
        return 2 * a[0] * a[1] * b[1]

    def macs(function: Callable[[], Any]) -> float:
        with (
            torch.inference_mode(),
            FlopCounterMode(display=False, custom_mapping={torch.ops.aten._int_mm: int_mm}) as counter,
        ):
            function()
        return counter.get_total_flops() / 2

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products on other threads would not be counted
    y, z = bitstream.sender.at_level(bitstream.sender.analyse(x))
    ours = macs(lambda: bitstream.encode_latents(y, z, *x.shape[2:]))
    plain = macs(lambda: plain_latents(model.codec, y, z))
    torch.set_num_threads(threads)
    return {"gmac_per_second": speed / 1e9, "gmac": ours / 1e9, "plain_gmac": plain / 1e9, "seconds": ours / speed}


def others(bitstream: Bitstream, x: torch.Tensor, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Encoding and decoding of this codec's latents beside Pillow's codecs at their lowest quality, on one thread."""
    image = Image.fromarray(to_uint8(x)[0].permute(1, 2, 0).numpy())
    data = bitstream.encode(x)
    writers: dict[str, Callable[[], Any]] = {"compress": lambda: bitstream.encode(x)}
    readers: dict[str, Callable[[], Any]] = {"decompress, latents": lambda: bitstream.decode(data)}
    for name in ("jxl", "avif"):
        codec, quality = OTHERS[name], OTHERS[name].qualities[0]
        try:
            check_codec(name)
            other = codec.encode(image, quality)
        except (UserError, KeyError, OSError) as error:
            print(f"  without {name}: {error}")
            continue
        writers[name] = lambda codec=codec, quality=quality: codec.encode(image, quality)
        readers[name] = lambda codec=codec, other=other: codec.decode(other)
    return {"encode": timed(writers, repeats), "decode": timed(readers, repeats)}


def with_section(page: str, text: str) -> str:
    """The page with this section, in the place of the one with its title if there is one; the others stay."""
    first, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    title = text.splitlines()[0]
    kept = {section.splitlines()[0]: section.strip() + "\n" for section in sections} | {title: text.strip() + "\n"}
    return "\n".join([first.strip() + "\n", *kept.values()])


def section(report: dict[str, Any]) -> str:
    """What the page says of this kind of processor."""
    out = io.StringIO()
    about = report["processor"]
    print(f"## {about['name']}, {' '.join(about['instructions'])}\n", file=out)
    table(out, ["machine", ""], [
        ["processor", about["name"]], ["cores", about["cores"]], ["instructions", " ".join(about["instructions"])],
        ["PyTorch", f"{about['torch']}, {about['pytorch']}"],
        ["exact products", ", ".join(f"{bits}: {name}" for bits, name in report["exact products"].items())],
        ["`--fast`", report["fast"]],
        ["load before and after", f"{report['load before']:.1f}, {report['load after']:.1f}"],
        ["turns", report["turns"]], ["date", date.today()],
    ])  # fmt: skip
    print(f"\n### Encoding against plain PyTorch modules\n\n{report['model']} with random weights. The plain form is "
          "float32, eager and channels first, and has no entropy coder.\n", file=out)  # fmt: skip
    rows = []
    for size in report["sizes"]:
        for threads, parts in size["plain"].items():
            for part, words in PARTS.items():
                plain, ours = parts[part]["plain float32"], parts[part]["compress"]
                fast = parts[part].get("compress --fast")
                rows.append([size["size"], threads, words, f"{plain['seconds']:.3f}", f"{ours['seconds']:.3f}",
                             f"{ours['ratio']:.2f}", f"{ours['processor_ratio']:.2f}",
                             f"{fast['ratio']:.2f}" if fast else ""])  # fmt: skip
    head = ["size", "threads", "part", "plain, s", "compress, s", "ratio", "of processor time", "`--fast`, ratio"]
    table(out, head, rows)
    print("\nThe products of h_s and context bound that part. At the speed of a float32 product of 768x768 matrices, "
          "measured in the same run, they alone take:\n", file=out)  # fmt: skip
    rows = [[size["size"], threads, f"{b['gmac_per_second']:.0f}", f"{b['plain_gmac']:.1f}", f"{b['gmac']:.1f}",
             f"{b['seconds']:.3f}", f"{b['seconds'] / size['plain'][threads]['latents']['compress']['seconds']:.0%}"]
            for size in report["sizes"] for threads, b in size["bound"].items()]  # fmt: skip
    table(
        out, ["size", "threads", "GMAC/s", "GMAC, plain", "GMAC, exact", "at that speed, s", "share of the part"], rows
    )
    print("\n### Threads\n", file=out)
    rows = [[size["size"], name, f"{t['seconds']:.3f}", f"{t['ratio']:.2f}"]
            for size in report["sizes"] for name, t in size["threads"].items()]  # fmt: skip
    table(out, ["size", "compress on", "s", "ratio"], rows)
    print("\n### Beside other codecs\n\nOne thread; Pillow's codecs at their lowest quality and the settings of "
          "`anchors`. Decoding is of latents: the picture decoder takes far longer.\n", file=out)  # fmt: skip
    rows = [
        [size["size"], half, name, f"{t['seconds']:.3f}", f"{t['ratio']:.2f}"]
        for size in report["sizes"]
        for half, codecs in size["others"].items()
        for name, t in codecs.items()
    ]
    table(out, ["size", "", "codec", "s", "ratio"], rows)
    if "cuda" in report:
        from benchmarks import cuda

        cuda.write(out, report["cuda"])
    return out.getvalue()


def table(out: io.StringIO, head: list[str], rows: list[list[Any]]) -> None:
    """Write a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |", file=out)


if __name__ == "__main__":
    sys.exit(main())
