"""`verify`: do streams decode to the sender's latents under other settings and in other processes?

Each process is this module, which reads a JSON object from standard input: {"checkpoint", "threads", "onednn",
"channels_last", "kernel", "fast", "encode": [[image, stream], ...], "decode": [stream, ...]}, and prints
{"encode": {stream: SHA-256 of the latents}, "decode": {stream: SHA-256 of the latents, or "error: ..."}}.
"""

import argparse
import json
import sys
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.output import add_json_argument
from aeic_lightning.torch_settings import assume_bfloat16

# Setting -> (what the worker sets, environment). The first is the reference.
SETTINGS = {
    "1 thread": ({}, {}),
    "2 threads": ({"threads": 2}, {}),
    "oneDNN off": ({"onednn": False}, {}),
    "oneDNN up to AVX2": ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "PyTorch without AVX": ({}, {"ATEN_CPU_CAPABILITY": "default"}),
    "channels last": ({"channels_last": True}, {}),
    "int8 products": ({"kernel": "int8"}, {}),
    "float32 products": ({"kernel": "float32"}, {}),
    "float64 products": ({"kernel": "float64", "threads": 2}, {}),
    "fast sender": ({"fast": True}, {}),
}
FAST = "fast sender"
SIZES = ("AEIC-SE", "tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint and images, or random ones."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--checkpoint", help="the model; without one, random weights of AEIC-SE's size (--size)")
    parser.add_argument("--size", choices=SIZES, default="AEIC-SE", help="sizes of a codec with random weights")
    parser.add_argument("--random", type=int, metavar="N", default=0, help="add N random images of random sizes")
    parser.add_argument("--largest", type=int, metavar="PIXELS", default=400, help="longest side of random images")
    parser.add_argument("--settings", metavar="LIST", help=f"some of: {', '.join(SETTINGS)}")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Print one row per setting; exit code 1 if any latents differ."""
    refuse_extra(extra)
    names = [name.strip() for name in args.settings.split(",")] if args.settings else list(SETTINGS)
    for name in names:
        if name not in SETTINGS:
            raise UserError(f"--settings: no setting {name!r}; choose from {', '.join(SETTINGS)}")
    if not args.images and not args.random:
        raise UserError("nothing to encode; name images or a folder, or add --random 20")

    import tempfile

    from aeic_lightning.files import require_model

    if args.checkpoint:
        require_model(args.checkpoint)

    from aeic_lightning.checkpoints.checkpoint import other_kind, read_checkpoint
    from aeic_lightning.files import conversions_of, find_images

    if args.checkpoint:
        checkpoint = read_checkpoint(args.checkpoint, mmap=True)  # an error here is the user's; in a worker a failure
        if (kind := other_kind(checkpoint["model_config"])) and FAST in names:
            if args.settings:
                raise UserError(f"--settings: a {kind.name} model has no {FAST}; leave it out")
            names.remove(FAST)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = args.checkpoint
        if not checkpoint:
            from aeic_lightning.models import random_model

            checkpoint = f"{scratch}/random.ckpt"
            random_model.save(random_model.random_model(random_model.CODECS[args.size]), Path(checkpoint))
        images = [conversion.source for conversion in conversions_of(args.images, scratch, ".aeic", find_images, True)]
        images += random_images(args.random, args.largest, Path(scratch))
        streams = {name: [f"{scratch}/{i}-{n}.aeic" for n in range(len(images))] for i, name in enumerate(names)}
        reference, sent, failed = names[0], {}, 0
        rows = []
        print(f"{len(images)} images, {args.checkpoint or 'random weights of ' + args.size + ' size'}", flush=True)
        print(f"{'setting':<22}{'same bytes':>12}{'reads its own':>16}{'reads reference':>17}{'is read by it':>15}")
        for name in names:
            pairs = [[str(image), stream] for image, stream in zip(images, streams[name], strict=True)]
            sent |= work(checkpoint, name, encode=pairs, decode=[])["encode"]
        # Sender and receivers are separate processes. The reference's receiver reads the streams of all settings.
        back = work(checkpoint, reference, encode=[], decode=[s for name in names for s in streams[name]])["decode"]
        for name in names:
            own = streams[name] + streams[reference]
            got = back if name == reference else work(checkpoint, name, encode=[], decode=own)["decode"]
            counts = [
                sum(results[stream] == sent[stream] for stream in of)
                for results, of in ((got, streams[name]), (got, streams[reference]), (back, streams[name]))
            ]
            same = sum(
                Path(a).read_bytes() == Path(b).read_bytes()
                for a, b in zip(streams[name], streams[reference], strict=True)
            )
            failed += sum(len(images) - count for count in counts)
            counted = ("same_bytes", "reads_its_own", "reads_reference", "is_read_by_it")
            rows.append({"setting": name} | dict(zip(counted, (same, *counts), strict=True)))
            shown = [f"{count}/{len(images)}" for count in [same, *counts]]
            print(f"{name:<22}{shown[0]:>12}{shown[1]:>16}{shown[2]:>17}{shown[3]:>15}", flush=True)
            for results, of in ((got, own), (back, streams[name])):
                for stream in dict.fromkeys(of):
                    if (result := results[stream]) != sent[stream]:
                        print(f"  mismatch: {images[int(Path(stream).stem.split('-')[1])]}: {result[:150]}")
    print(f"{failed} mismatches" if failed else "no mismatch: every stream decodes to the sender's latents everywhere")
    args.give({"images": len(images), "settings": rows, "mismatches": failed})
    return 1 if failed else 0


def work(checkpoint: str, setting: str, encode: list, decode: list) -> dict:
    """Run one worker process under a setting."""
    import os
    import subprocess

    changes, environment = SETTINGS[setting]
    request = {
        "checkpoint": checkpoint, "threads": 1, "onednn": True, "channels_last": False, "kernel": None,
        "fast": False, **changes, "encode": encode, "decode": decode,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "aeic_lightning.cli.commands.verify"],
        input=json.dumps(request), capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the process of setting {setting!r} failed: {reason[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def random_images(count: int, largest: int, folder: Path) -> list[Path]:
    """Images of random sizes from 1x1 up: noise over smooth patterns."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        # Even in log, so that tiny images are as frequent as large ones.
        height, width = np.exp(generator.uniform(0, np.log(largest), 2)).round().astype(int)
        down, right = np.linspace(0, 6, height)[:, None, None], np.linspace(0, 6, width)[None, :, None]
        phase, speed = generator.uniform(0, 6, (2, 3))
        image = 128 + 80 * np.sin(speed * down + phase) * np.cos(right * phase + speed)
        image = image + generator.normal(0, generator.uniform(0, 60), (height, width, 3))
        paths.append(folder / f"random{number}-{width}x{height}.png")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def answer(request: dict) -> dict:
    """Encode and decode files under the settings of a request; see the module."""
    import hashlib

    import torch

    from aeic_lightning.bitstream import products
    from aeic_lightning.bitstream.stream import Decoded, Encoded
    from aeic_lightning.checkpoints.checkpoint import load_model
    from aeic_lightning.codec import Codec
    from aeic_lightning.images import from_uint8, read_image

    def digest(latents: Encoded | Decoded) -> str:
        return hashlib.sha256(b"".join(part.astype("<i4").tobytes() for part in latents.integers())).hexdigest()

    torch.set_num_threads(request["threads"])
    torch.backends.mkldnn.enabled = request["onednn"]
    products.force(request["kernel"])
    assume_bfloat16(True)  # "fast" is to differ, however slow
    model = load_model(request["checkpoint"], receiver=False)  # latents are compared, and no picture is made
    if request["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    bitstream = Codec(model, fast=request["fast"]).bitstream
    encoded, decoded = {}, {}
    for image, stream in request["encode"]:
        result = bitstream.encode_fully(from_uint8(torch.from_numpy(read_image(image)).permute(2, 0, 1)[None]))
        Path(stream).write_bytes(result.data)
        encoded[stream] = digest(result)
    for stream in request["decode"]:
        try:
            decoded[stream] = digest(bitstream.decode(Path(stream).read_bytes()))
        except UserError as error:
            decoded[stream] = f"error: {error}"
    return {"encode": encoded, "decode": decoded, "fingerprint": bitstream.fingerprint.hex()}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
