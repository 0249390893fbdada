"""`bench`: how long encoding and decoding take, against the plain float32 form of the same network."""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.output import add_json_argument
from aeic_lightning.timing import peak_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, sizes, repetitions."""
    parser.add_argument("--checkpoint", help="the model; without one, random weights at the full size of AEIC-SE")
    parser.add_argument("--sizes", default="768x512,1920x1080", help="WIDTHxHEIGHT, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind, in turn; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--encode-only", action="store_true", help="leave out the decoder, which takes minutes")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="write the figures as JSON")
    add_json_argument(parser)
    parser.add_argument("--memory", nargs=2, metavar=("HALF", "SIZE"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Print medians, ratios and peak memory. The plain form has no entropy coder: its times are without one."""
    refuse_extra(extra)
    args.give(measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Print and return what was measured."""
    sizes = [parse_size(size) for size in args.sizes.split(",")]
    if args.repeats < 1 or args.threads < 1:
        raise UserError("--repeats and --threads must be at least 1")

    from aeic_lightning.files import require_model

    if args.checkpoint:
        require_model(args.checkpoint)

    import torch

    torch.set_num_threads(args.threads)
    if args.memory:
        print(peak(args, args.memory[0], parse_size(args.memory[1])))
        return {}

    from aeic_lightning.bitstream import products
    from aeic_lightning.codec import Codec
    from aeic_lightning.models.aeic import AEIC
    from aeic_lightning.timing import processor
    from aeic_lightning.torch_settings import fast_choice

    model = build(args, decoder=not args.encode_only)
    if not isinstance(model, AEIC) and args.encode_only:
        raise UserError(f"--encode-only: {args.checkpoint} is no AEIC, and is timed as a whole; leave it out")
    bitstream = Codec(model).bitstream
    about = {
        "model": args.checkpoint or "random weights, AEIC-SE", "threads": args.threads, "repeats": args.repeats,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "processor": processor(), "exact products": products.chosen(), "fast": fast_choice(),
    }  # fmt: skip
    print("\n".join(f"{name}: {describe(value)}" for name, value in about.items()))
    results = []
    for height, width in sizes:
        print(f"\n{width}x{height}: seconds, and times the plain form's, by the clock (by processor time)")
        if not isinstance(model, AEIC):
            parts = code(args.repeats, model, bitstream, picture(height, width))
            results.append({"width": width, "height": height, "parts": parts})
            continue
        parts = encode(args.repeats, model.codec, bitstream, picture(height, width))
        if not args.encode_only:
            parts |= decode(args.repeats, model, bitstream, picture(height, width))
        memory = {half: peak_of(args, half, height, width) for half in ("encode", "decode")[: 2 - args.encode_only]}
        for half, gib in memory.items():
            print(f"  peak memory of a process that {half}s one image: {gib:.2f} GiB")
        results.append({"width": width, "height": height, "parts": parts, "peak_memory_gib": memory})
    if args.out:
        import json

        from aeic_lightning.files import write_whole

        write_whole(args.out, json.dumps(about | {"sizes": results}, indent=1).encode())
    return about | {"sizes": results}


def code(repeats: int, model, bitstream, x) -> dict:
    """Times of a model that is no AEIC; its memory, some megabytes, is not measured."""
    sent = bitstream.encode_fully(x)
    results = {
        "encode": show(repeats, "encode", {
            "plain float32": lambda: model.estimate_bits(x), "compress": lambda: bitstream.encode(x),
        }),
        "decode latents": show(repeats, "decode latents", {"decompress": lambda: bitstream.decode(sent.data)}),
        "picture": show(repeats, "picture", {"decompress": lambda: model.reconstruct(sent.y_hat)}),
    }  # fmt: skip
    if hasattr(model, "transformer"):
        results["classes"] = show(repeats, "classes", {"classify": lambda: model.transformer(sent.y_hat)})
    return results


def encode(repeats: int, codec, bitstream, x) -> dict:
    """Times of the sender's parts."""
    from aeic_lightning.bitstream.sender import Sender

    quick = Sender(codec, fast=True)
    size = x.shape[2:]

    def plain_encode():
        y = codec.g_a(codec.pad(x))
        return plain_latents(codec, y, codec.hyper_encode(y))

    y, z = bitstream.sender(x)
    return {
        "encode": show(repeats, "encode", {
            "plain float32": plain_encode,
            "compress": lambda: bitstream.encode(x),
            "compress --fast": lambda: bitstream.encode_latents(*quick(x), *size),
        }),
        "g_a": show(repeats, "  g_a, h_a", {
            "plain float32": lambda: codec.hyper_encode(codec.g_a(codec.pad(x))),
            "compress": lambda: bitstream.sender(x),
            "compress --fast": lambda: quick(x),
        }),
        "latents": show(repeats, "  z, context, coder", {
            "plain float32": lambda: plain_latents(codec, y, z),
            "compress": lambda: bitstream.encode_latents(y, z, *size),
        }),
    }  # fmt: skip


def plain_latents(codec, y, z):
    """y_hat by the float networks, as evaluation mode computes it; no likelihoods, no coder."""
    phi = codec.hyper_decode(codec.prior.quantise(z), *y.shape[2:])
    return codec.context(phi, lambda m, s, mask: codec.conditional.quantise(y, m, s, mask)[0] + m)


def decode(repeats: int, model, bitstream, x) -> dict:
    """Times of the receiver's parts."""
    import torch

    from aeic_lightning.torch_settings import bfloat16_is_quicker

    def autocast(function, *inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_quicker()):
            return function(*inputs)

    codec, decoder = model.codec, model.decoder
    sent = bitstream.encode_fully(x)
    results = {"decode latents": show(repeats, "decode latents", {
        "plain float32": lambda: plain_latents(codec, sent.y_hat, sent.z_hat),
        "decompress": lambda: bitstream.decode(sent.data),
    })}  # fmt: skip

    def g_s(y_hat):
        return codec.synthesise(y_hat, codec.levels(len(y_hat), sent.level))

    with torch.inference_mode():
        l_T, l_res = g_s(sent.y_hat)
    # Time does not depend on the values: l_res stands for l_0 + l_res.
    tiling = decoder.config.tiling
    denoise = partial(decoder.denoise, tiling=tiling) if tiling else decoder.denoise_evenly
    paint = partial(decoder.paint, tiling=tiling) if tiling else decoder.paint_evenly
    parts = [
        ("g_s", g_s, g_s, sent.y_hat),
        ("denoiser", lambda x: decoder.denoiser(x).l_0, denoise, l_T),
        ("VAE decoder", decoder.vae, paint, l_res),
    ]
    for name, whole, in_tiles, x in parts:
        results[name] = show(repeats, f"  {name}", {
            "plain float32": lambda f=whole, x=x: f(x),
            "decompress --float32": lambda f=in_tiles, x=x: f(x),
            "decompress": lambda f=in_tiles, x=x: autocast(f, x),
        })  # fmt: skip
    return results


def show(repeats: int, what: str, candidates: dict) -> dict:
    """Time the candidates in turn; print and return medians and ratios to the first."""
    from dataclasses import asdict

    import torch

    from aeic_lightning.timing import compare

    with torch.inference_mode():
        timed = compare(candidates, repeats)
    cells = [
        f"{name} {t.seconds:.3f}" + (f" {t.ratio:.2f} ({t.processor_ratio:.2f})" if number else "")
        for number, (name, t) in enumerate(timed.items())
    ]
    once = "" if next(iter(timed.values())).runs == repeats else ", once"
    print(f"  {what + once:<22}" + "   ".join(cells), flush=True)
    return {name: asdict(t) for name, t in timed.items()}


def describe(value) -> str:
    """A value of the head in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {describe(part)}" for name, part in value.items())
    return (
        " ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:.1f}"
        if isinstance(value, float)
        else str(value)
    )


def build(args: argparse.Namespace, decoder: bool):
    """The checkpoint's model, or AEIC-SE with random weights; without `decoder`, one too small to matter."""
    from aeic_lightning.checkpoints.checkpoint import load_model

    if args.checkpoint:
        return load_model(args.checkpoint, receiver=decoder).for_decoding()

    from aeic_lightning.models.aeic import AEIC
    from aeic_lightning.models.codec import CodecConfig
    from aeic_lightning.models.decoder import DecoderConfig
    from aeic_lightning.models.decoder.tiling import TilingConfig
    from aeic_lightning.models.random_model import CODECS, random_model

    model = random_model(CODECS["AEIC-SE"])
    if not decoder:
        return model
    tiling = TilingConfig(unet_tile=192, unet_overlap=64)  # as experiments/paper/se.yaml has it
    full = AEIC(CodecConfig(), DecoderConfig(tiling=tiling)).eval()
    own = {k: v for k, v in model.codec.state_dict().items() if not k.startswith("g_s.")}
    full.codec.load_state_dict(own, strict=False)
    return full


def picture(height: int, width: int):
    """x (1, 3, H, W) in [-1, 1]: waves and a little noise."""
    import torch

    down, right = torch.linspace(-9, 9, height)[:, None], torch.linspace(-16, 16, width)[None]
    waves = torch.stack([(down + right).sin(), (2 * down - right).cos(), (down * right / 9).sin()])
    return (0.8 * waves + 0.1 * torch.randn(3, height, width)).clamp(-1, 1)[None]


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (height, width)."""
    match = re.fullmatch(r"\s*(\d+)x(\d+)\s*", text)
    if not match:
        raise UserError(f"--sizes: {text!r} is not a size; write 1920x1080")
    return int(match[2]), int(match[1])


def peak_of(args: argparse.Namespace, half: str, height: int, width: int) -> float:
    """GiB that a process of its own needs at most for one image."""
    import subprocess

    command = [sys.executable, "-m", "aeic_lightning", "bench", "--memory", half, f"{width}x{height}"]
    command += ["--threads", str(args.threads), *(["--checkpoint", args.checkpoint] if args.checkpoint else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])


def peak(args: argparse.Namespace, half: str, size: tuple[int, int]) -> float:
    """Encode or decode one image; this process's peak memory since then or before, GiB."""
    import torch

    from aeic_lightning.bitstream.stream import Decoded, reconstruct
    from aeic_lightning.codec import Codec
    from aeic_lightning.models.aeic import AEIC

    model = build(args, decoder=half == "decode")
    assert isinstance(model, AEIC), "of other models the memory is not measured"
    if half == "encode":
        Codec(model).bitstream.encode(picture(*size))
    else:
        (h, w), (zh, zw) = model.codec.grid.sizes(*size)
        z_hat, y_hat = (
            torch.zeros(1, model.codec.prior.channels, zh, zw),
            torch.zeros(1, model.codec.channels, h, w),
        )
        reconstruct(model, Decoded(*size, z_hat, y_hat))
    return peak_memory()
