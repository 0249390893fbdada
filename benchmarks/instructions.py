"""Instructions that encoders execute for one photograph, counted by Valgrind.

    python -m benchmarks.instructions PHOTO [--senders AEIC-SE small-student jpeg webp avif avif/4 SEND_FOLDER]

PHOTO is coded once and three times in processes of their own, and half of the difference is printed, by pixel and with
the memory that the Python process held at most. `SEND_FOLDER` is what `export --c` wrote: its `send` is built and
counted whole. Models run at their middle level through `Codec.compress` in PyTorch on one thread, AEIC-SE with random
weights; Pillow's codecs at quality 1 (AVIF at 30, speed 4), `avif/4` at a quarter of the sides. Valgrind offers AVX2
and no AVX-512, so counts are of that code.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from aeic_lightning.images import read_image

TIMES = (1, 3)
PILLOW = {"jpeg": {"quality": 1}, "webp": {"quality": 1}, "avif": {"quality": 30, "speed": 4}}
CODE = """
import io, re, sys
from PIL import Image
photo, sender, times = sys.argv[1:]
image = Image.open(photo).convert("RGB")
image.load()
if sender.split("/")[0] in {pillow!r}:
    codec, _, scale = sender.partition("/")
    scale = int(scale or 1)
    def encode():
        small = image.resize((image.width // scale, image.height // scale), Image.Resampling.LANCZOS)
        small.save(io.BytesIO(), codec.upper(), **{pillow!r}[codec])
else:
    import torch
    torch.set_num_threads(1)
    from aeic_lightning import Codec
    if sender == "AEIC-SE":
        from aeic_lightning.models.random_model import CODECS, random_model
        codec = Codec(random_model(CODECS[sender]))
    else:
        codec = Codec.from_pretrained(sender)
    def encode():
        codec.compress(image)
for _ in range(int(times)):
    encode()
print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])
"""


def counted(command: list[str]) -> int:
    """Instructions of a process."""
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*tool, *command], capture_output=True, text=True, env=environment)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line and not line.startswith("==")]
        raise SystemExit(f"error: {command[-2]}: {said[-1] if said else 'Valgrind counted nothing'}")
    return int(found[1].replace(",", ""))


def of_sender(photo: Path, sender: str, folder: Path) -> tuple[int, float | None]:
    """Instructions of coding `photo` once, and the MiB of the process, where it is a Python process."""
    if not Path(sender).is_dir():
        command = [sys.executable, "-c", CODE.replace("{pillow!r}", repr(PILLOW)), str(photo), sender]
        once, more = (counted([*command, str(times)]) for times in TIMES)
        held = subprocess.run([*command, "1"], capture_output=True, text=True, check=True).stdout
        return (more - once) // (TIMES[1] - TIMES[0]), int(held) / 1024
    subprocess.run(["make", "-s", "-C", sender, "send"], check=True)
    ppm = folder / "photo.ppm"
    Image.fromarray(read_image(photo)).save(ppm)
    return counted([str(Path(sender).resolve() / "send"), str(ppm), str(folder / "photo.aeic")]), None


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--senders", nargs="+", default=["AEIC-SE", "small-student", "jpeg", "webp", "avif", "avif/4"])
    args = parser.parse_args()
    with Image.open(args.photo) as image:
        pixels = image.width * image.height
    print("| sender | instructions a pixel | memory of the process, MiB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for sender in args.senders:
            instructions, memory = of_sender(args.photo, sender, Path(folder))
            held = "" if memory is None else f"{memory:,.0f}"
            print(f"| {sender} | {instructions / pixels:,.0f} | {held} |", flush=True)


if __name__ == "__main__":
    main()
