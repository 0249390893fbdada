"""One optimisation step of AEIC-SE stage 2 at full size on a CPU, at 128 x 128: time and peak memory with the base
shared between teacher and student, and with two separate networks.

    python scripts/full_size_step.py [--size 128] [--threads 2]

It is `fit` on experiments/paper/se_stage2.yaml, in float32, with gradient checkpointing, on one random picture. Random
weights stand in for SD-Turbo and for the teacher, and EfficientNet-Lite0 for VGG, CLIP and DINOv3 (so their memory is
not in the figures). Needs about 1 GB of disk and, for two networks, 12 GB of memory.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from random_base import peak_memory, use_random_base

from aeic_lightning import cli
from aeic_lightning.model import AEIC
from aeic_lightning.weights.released import RELEASED

CONFIG = Path(__file__).parents[1] / "experiments" / "paper" / "se_stage2.yaml"


def prepare(folder: Path, size: int) -> None:
    """A teacher's checkpoint and a picture."""
    model = AEIC(*RELEASED["AEIC-ME"])
    checkpoint = folder / "me_stage2_2" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "model_config": model.config}, checkpoint)
    for name in ("train", "val"):
        (folder / name).mkdir()
        pixels = np.random.default_rng(len(name)).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "picture.png")


def step(folder: Path, size: int, shared: bool) -> int:
    """Run the step in this process and print what it took."""
    use_random_base()
    settings = {
        "vars.root": folder,
        "vars.name": "shared" if shared else "separate",
        "vars.data": folder / "train",
        "vars.val": folder / "val",
        "vars.crop": size,
        "vars.batch": 1,
        "vars.accumulate": 1,
        "vars.steps": 1,
        "vars.val_every": 1,
        "vars.workers": 0,
        "data.init_args.pin_memory": "false",
        "model.init_args.init_from": "null",
        "model.init_args.share_base": str(shared).lower(),
        "model.init_args.loss.dists_backbone": "lite0",
        "model.init_args.loss.semantic_backbone": "lite0",
        "model.init_args.optimization.discriminator": "lite0",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.limit_val_batches": 0,
        "trainer.logger": "false",
        "trainer.callbacks": "[]",
        "trainer.enable_progress_bar": "false",
    }
    start = time.monotonic()
    code = cli.main(["fit", "--config", str(CONFIG), *(f"--{key}={value}" for key, value in settings.items())])
    base = "one shared base" if shared else "two networks"
    print(f"{base}: peak memory {peak_memory():.2f} GB, {time.monotonic() - start:.0f} s with loading", flush=True)
    return code


def main() -> int:
    """Each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the crop, a multiple of 128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=["shared", "separate"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        return step(args.folder, args.size, args.case == "shared")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args.size)
        command = [sys.executable, __file__, "--size", str(args.size), "--threads", str(args.threads)]
        codes = [
            subprocess.run([*command, "--folder", folder, "--case", case]).returncode for case in ("shared", "separate")
        ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
