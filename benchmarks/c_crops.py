"""Do C on x86-64, ARM and WebAssembly give the bytes of Python, and does Python decode them all?

    python -m benchmarks.c_crops MODEL --images photos/train [--count 10000] [--seed 0]

Crops of 64 photographs, of 1 to 200 pixels a side, one in ten noise and one in ten a single colour, at any of the 256
positions of the dial, are coded by Python, decoded by Python, and coded by `send` of `export --c`: natively, by QEMU on
32-bit ARM and on AArch64 (compiled by zig), and as WebAssembly in Node. Printed is how many streams differ. Exits with
1 if any does.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aeic_lightning.bitstream.c_sender import export_c
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.files import find_images
from aeic_lightning.images import from_uint8, read_image

ZIG = f"{sys.executable} -m ziglang cc -target"
SENDERS = {
    "x86-64, cc": ([], "cc"),
    "ARM, zig, qemu-arm": (["qemu-arm"], f"{ZIG} arm-linux-musleabihf"),
    "AArch64, zig, qemu-aarch64": (["qemu-aarch64"], f"{ZIG} aarch64-linux-musl"),
}
WASM = "WebAssembly, zig, Node"
LARGEST = 200  # beyond one band of rows of a stream by rows
AT_ONCE = 500
PHOTOS = 64
NODE = """
const fs = require("fs"), [folder, wasm, first, last] = process.argv.slice(1)
const {encode, aeic_memory, memory, __heap_base} = new WebAssembly.Instance(
    new WebAssembly.Module(fs.readFileSync(wasm))).exports
const after = at => (at + 15) & ~15, most = 1 << 18
for (let n = +first; n < +last; n++) {
    const ppm = fs.readFileSync(`${folder}/${n}.ppm`), position = +fs.readFileSync(`${folder}/${n}.position`, "utf8")
    const [, width, height] = ppm.toString("latin1", 0, 30).match(/^P6\\n(\\d+) (\\d+)\\n/).map(Number)
    const pixels = ppm.subarray(ppm.length - 3 * width * height), need = aeic_memory(width, height)
    const start = after(__heap_base.value), work = after(start + pixels.length), out = work + need
    const missing = out + most + 32 - memory.buffer.byteLength
    if (missing > 0) memory.grow(Math.ceil(missing / 65536))
    new Uint8Array(memory.buffer).set(pixels, start)
    const count = encode(start, width, height, position, work, need, out, most)
    fs.writeFileSync(`${folder}/${n}.wasm`, new Uint8Array(memory.buffer, out, Math.max(count, 0)))
}
"""


def centre(path: Path) -> np.ndarray:
    """At most the central 1024 x 1024 pixels of a photograph."""
    pixels = read_image(path)
    top, left = (max(0, (size - 1024) // 2) for size in pixels.shape[:2])
    return pixels[top : top + 1024, left : left + 1024].copy()


def crop(photos: list[np.ndarray], chance: random.Random) -> np.ndarray:
    """uint8 (height, width, 3)."""
    height, width = (round(LARGEST ** chance.random()) for _ in range(2))
    kind = chance.randrange(10)
    if kind == 0:
        return np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:
        return np.full((height, width, 3), [chance.randrange(256) for _ in range(3)], np.uint8)
    photo = chance.choice(photos)
    height, width = min(height, photo.shape[0]), min(width, photo.shape[1])
    top, left = chance.randrange(photo.shape[0] - height + 1), chance.randrange(photo.shape[1] - width + 1)
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint or a shipped model of a sender in integers")
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the photographs, crops and positions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bitstream = Bitstream(load_model(args.model))
    levels = bitstream.model.rate_levels
    chance = random.Random(args.seed)
    photos = [centre(path) for path in chance.sample(find_images(Path(args.images)), PHOTOS)]
    differ, escaped, size = dict.fromkeys([*SENDERS, WASM], 0), 0, 0
    with tempfile.TemporaryDirectory() as place:
        code, work = Path(place) / "c", Path(place) / "crops"
        code.mkdir()
        export_c(bitstream, code)
        for number, (_, compiler) in enumerate(SENDERS.values()):
            build = ["make", "-s", "-B", "-C", code, f"CC={compiler}", f"PROGRAM=send{number}", f"send{number}"]
            subprocess.run(build, check=True)
        subprocess.run(["make", "-s", "-C", code, "aeic_sender.wasm", f"WASM_CC={ZIG} wasm32-freestanding"], check=True)
        for first in range(0, args.count, AT_ONCE):
            last = min(args.count, first + AT_ONCE)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            for n in range(first, last):
                pixels, position = crop(photos, chance), chance.randrange(256)
                Image.fromarray(pixels).save(work / f"{n}.ppm")
                (work / f"{n}.position").write_text(str(position))
                x = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])
                encoded = bitstream.encode_fully(x, position * max(0, levels - 1) / 255)
                bitstream.decode(encoded.data)  # raises where the latents are not those of the sender
                (work / f"{n}.aeic").write_bytes(encoded.data)
                escaped, size = escaped + encoded.escaped, size + len(encoded.data)
            for number, (name, (machine, _)) in enumerate(SENDERS.items()):
                for n in range(first, last):
                    position = (work / f"{n}.position").read_text()
                    made = work / f"{n}.{number}"
                    command = [*machine, code / f"send{number}", work / f"{n}.ppm", made, "--position", position]
                    subprocess.run(command, check=True, capture_output=True)
                    differ[name] += made.read_bytes() != (work / f"{n}.aeic").read_bytes()
            node = ["node", "-e", NODE, work, code / "aeic_sender.wasm", str(first), str(last)]
            subprocess.run(list(map(os.fspath, node)), check=True)
            differ[WASM] += sum(
                (work / f"{n}.wasm").read_bytes() != (work / f"{n}.aeic").read_bytes() for n in range(first, last)
            )
            print(f"{last} crops, {size} bytes, {escaped} escaped symbols; streams that differ: {differ}", flush=True)
    return int(any(differ.values()))


if __name__ == "__main__":
    sys.exit(main())
