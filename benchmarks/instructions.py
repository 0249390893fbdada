"""Instructions that encoders execute for one photograph, counted by Valgrind, and their processor time without it.

    python -m benchmarks.instructions PHOTO [--senders AEIC-SE small-student jpeg webp avif avif/4 SEND_FOLDER]

PHOTO is coded once and three times in processes of their own, and half of the difference is printed, by pixel and with
the memory that the Python process held at most. `SEND_FOLDER` is what `export --c` wrote: its `send` is built and
measured whole; its memory is what it says of itself, without the C library. Models run at their middle level through
`Codec.compress` in PyTorch on one thread, AEIC-SE with random weights; Pillow's codecs at quality 1 (AVIF at 30, speed
4), `avif/4` at a quarter of the sides. Valgrind offers AVX2 and no AVX-512, so counts are of that code.
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
print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], "KiB")
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


def used(command: list[str]) -> tuple[float, str]:
    """Processor seconds of a process, and what it prints."""
    before = os.times()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, said


def of_sender(photo: Path, sender: str, folder: Path) -> tuple[int, float, float]:
    """Instructions and processor seconds of coding `photo` once, and the MiB of a process that does."""
    if not Path(sender).is_dir():
        command = [sys.executable, "-c", CODE.replace("{pillow!r}", repr(PILLOW)), str(photo), sender]
        once, more = ([*command, str(times)] for times in TIMES)
        added = TIMES[1] - TIMES[0]
        (seconds, said), (seconds_more, _) = used(once), used(more)
        return (counted(more) - counted(once)) // added, (seconds_more - seconds) / added, int(said.split()[0]) / 1024
    subprocess.run(["make", "-s", "-C", sender, "send"], check=True)
    ppm = folder / "photo.ppm"
    Image.fromarray(read_image(photo)).save(ppm)
    command = [str(Path(sender).resolve() / "send"), str(ppm), str(folder / "photo.aeic")]
    seconds, said = used(command)
    return counted(command), seconds, int(re.findall(r"(\d+) bytes of working memory", said)[0]) / 2**20


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--senders", nargs="+", default=["AEIC-SE", "small-student", "jpeg", "webp", "avif", "avif/4"])
    args = parser.parse_args()
    with Image.open(args.photo) as image:
        pixels = image.width * image.height
    print("| sender | instructions a pixel | processor seconds | memory, MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for sender in args.senders:
            instructions, seconds, held = of_sender(args.photo, sender, Path(folder))
            print(f"| {sender} | {instructions / pixels:,.0f} | {seconds:.3f} | {held:,.2f} |", flush=True)


if __name__ == "__main__":
    main()
