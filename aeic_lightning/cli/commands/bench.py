"""`bench`: how long encoding and decoding take, against the plain float32 form of the same network."""

import argparse
import os
import re
import sys

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.memory import peak_memory

SLOW = 20  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, sizes, repetitions."""
    parser.add_argument("--checkpoint", help="the model; without one, random weights at the full size of AEIC-SE")
    parser.add_argument("--sizes", default="768x512,1920x1080", help="WIDTHxHEIGHT, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind, in turn; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--encode-only", action="store_true", help="leave out the decoder, which takes minutes")
    parser.add_argument("--memory", nargs=2, metavar=("HALF", "SIZE"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Print medians, ratios and peak memory. The plain form has no entropy coder: its times are without one."""
    refuse_extra(extra)
    sizes = [parse_size(size) for size in args.sizes.split(",")]
    if args.repeats < 1 or args.threads < 1:
        raise UserError("--repeats and --threads must be at least 1")

    import torch

    torch.set_num_threads(args.threads)
    if args.memory:
        return peak(args, args.memory[0], parse_size(args.memory[1]))

    from aeic_lightning.bitstream.sender import Sender
    from aeic_lightning.bitstream.stream import Bitstream

    model = build(args, decoder=not args.encode_only)
    codec, bitstream = model.codec, Bitstream(model)
    quick = Sender(codec, fast=True)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"{args.checkpoint or 'random weights, AEIC-SE'}; {args.threads} threads; medians of {args.repeats}; {load}")
    for height, width in sizes:
        print(f"\n{width}x{height}")
        x = picture(height, width)

        def plain_encode(x=x):
            y = codec.g_a(codec.pad(x))
            return plain_latents(codec, y, codec.hyper_encode(y))

        y, z = bitstream.sender(x)
        data = bitstream.encode(x)
        compare(args.repeats, "encode", {
            "plain float32": plain_encode,
            "compress": lambda x=x: bitstream.encode(x),
            "compress --fast": lambda x=x, s=x.shape: bitstream.encode_latents(*quick(x), *s[2:]),
        })  # fmt: skip
        compare(args.repeats, "  g_a", {
            "plain float32": lambda x=x: codec.g_a(codec.pad(x)),
            "compress": lambda x=x: bitstream.sender(x),
            "compress --fast": lambda x=x: quick(x),
        })  # fmt: skip
        compare(args.repeats, "  z, context, coder", {
            "plain float32": lambda y=y, z=z: plain_latents(codec, y, z),
            "compress": lambda y=y, z=z, s=x.shape: bitstream.encode_latents(y, z, *s[2:]),
        })  # fmt: skip
        if not args.encode_only:
            decode(args.repeats, model, bitstream, data, plain_encode())
        for half in ("encode",) if args.encode_only else ("encode", "decode"):
            print(f"  peak memory of a process that {half}s one image: {peak_of(args, half, height, width):.2f} GiB")


def plain_latents(codec, y, z):
    """y_hat by the float networks, as evaluation mode computes it; no likelihoods, no coder."""
    phi = codec.hyper_decode(codec.prior.quantise(z), *y.shape[2:])
    return codec.context(phi, lambda m, s, mask: codec.conditional.quantise(y, m, s, mask)[0] + m)


def decode(repeats: int, model, bitstream, data: bytes, y_hat) -> None:
    """Times of the receiver's parts."""
    import torch

    def autocast(function, *inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*inputs)

    codec, decoder = model.codec, model.decoder
    y, z = y_hat, torch.zeros(1, codec.prior.channels, -(-y_hat.shape[2] // 4), -(-y_hat.shape[3] // 4))
    compare(repeats, "decode latents", {
        "plain float32": lambda: plain_latents(codec, y, z),
        "decompress": lambda: bitstream.decode(data),
    })  # fmt: skip
    with torch.inference_mode():
        l_T, l_res = codec.synthesise(y_hat)
    # Time does not depend on the values: l_res stands for l_0 + l_res.
    parts = [
        ("g_s", codec.synthesise, codec.synthesise, y_hat),
        ("denoiser", lambda x: decoder.denoiser(x).l_0, decoder.denoise, l_T),
        ("VAE decoder", decoder.vae, decoder.paint, l_res),
    ]
    for name, whole, in_tiles, x in parts:
        compare(repeats, f"  {name}", {
            "plain float32": lambda f=whole, x=x: f(x),
            "decompress": lambda f=in_tiles, x=x: f(x),
            "decompress --fast": lambda f=in_tiles, x=x: autocast(f, x),
        })  # fmt: skip


def compare(repeats: int, what: str, candidates: dict) -> None:
    """Run the candidates in turn; print medians of each, and how many times as fast it is as the first.

    First by the clock, which other processes slow down, then by processor time, which idle threads that spin add to.
    Where the first, untimed, runs take longer than SLOW seconds, they are what counts.
    """
    import time
    from statistics import median

    import torch

    clocks = {"by the clock": time.perf_counter, "processor time": time.process_time}
    times = {clock: {name: [] for name in candidates} for clock in clocks}

    def run_all() -> None:
        for name, function in candidates.items():
            start = [clock() for clock in clocks.values()]
            function()
            for clock, began in zip(clocks, start, strict=True):
                times[clock][name].append(clocks[clock]() - began)

    with torch.inference_mode():
        run_all()
        once = times["by the clock"]
        if sum(t for (t,) in once.values()) < SLOW:
            for column in times.values():
                for measured in column.values():
                    measured.clear()
            for _ in range(repeats):
                run_all()
        else:
            what += ", once"
    for clock, columns in times.items():
        medians = {name: median(t) for name, t in columns.items()}
        first = next(iter(medians.values()))
        cells = [f"{name} {1000 * t:.0f} ms ({first / t:.2f}x)" for name, t in medians.items()]
        print(f"  {what:<22}{clock:<15} " + "   ".join(cells), flush=True)
        what = ""


def build(args: argparse.Namespace, decoder: bool):
    """The checkpoint's model, or AEIC-SE with random weights; without `decoder`, one too small to matter."""
    from aeic_lightning.checkpoints.checkpoint import load_aeic

    if args.checkpoint:
        return load_aeic(args.checkpoint)

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


def peak(args: argparse.Namespace, half: str, size: tuple[int, int]) -> None:
    """Encode or decode one image, and print this process's peak memory."""
    import torch

    from aeic_lightning.bitstream.stream import Bitstream, Decoded, reconstruct

    model = build(args, decoder=half == "decode")
    if half == "encode":
        Bitstream(model).encode(picture(*size))
    else:
        (h, w), (zh, zw) = model.codec.latent_sizes(*size)
        z_hat, y_hat = (
            torch.zeros(1, model.codec.prior.channels, zh, zw),
            torch.zeros(1, model.codec.channels, h, w),
        )
        reconstruct(model, Decoded(*size, z_hat, y_hat))
    print(peak_memory())
