"""One optimisation step of AEIC-SE stage 2 at full size on a CPU, at 128 x 128: peak memory with the base shared
between teacher and student, and with two separate networks.

    python -m benchmarks.full_size_step [--size 128] [--threads 2] [--files FOLDER] [--case CASE]

The cases `whole` and `spread` are two processes (gloo) with the shared base, each with all of it, and each with half
(`optimization.shard_base`); they run only where they are asked for, and need 16 GB of memory.

It is `import-released` for teacher and student, then `fit` on experiments/paper/se_stage2.yaml in float32, with
gradient checkpointing, on one random picture. Random weights stand in for the released ones (`full_size_files`, in a
temporary folder or in FOLDER), and EfficientNet-Lite0 for VGG, CLIP and DINOv3, so that their memory is not
included. Needs 4 GB of disk and, for two networks, 12 GB of memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

from aeic_lightning import cli
from benchmarks.full_size_files import make_files, peak_memory, reset_peak_memory

CONFIG = Path(__file__).parents[1] / "experiments" / "paper" / "se_stage2.yaml"
CASES = {
    "shared": "one shared base", "separate": "two networks",
    "whole": "two processes, the base on each", "spread": "two processes, half of the base on each",
}  # fmt: skip
CHECKPOINTS = {"AEIC_ME.pkl": "me_stage2_2/checkpoints/last.ckpt", "AEIC_SE.pkl": "se_stage1/checkpoints/last.ckpt"}


class StepMemory(Callback):
    """Prints the peak of this process's memory from the start of the training on, without the loading of weights."""

    def on_train_start(self, trainer, pl_module) -> None:
        reset_peak_memory()

    def on_train_end(self, trainer, pl_module) -> None:
        print(f"process {trainer.global_rank}: peak memory of the step {peak_memory():.2f} GB", flush=True)


def step(files: Path, size: int, case: str) -> int:
    """Run the step, of one process in this one, and print what it took."""
    base = {"unet": files / "sd-turbo", "vae": files / "halfDecoder.ckpt"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for released, checkpoint in CHECKPOINTS.items():
            words = ["import-released", files / released, "-o", root / checkpoint]
            words += [word for name, path in base.items() for word in (f"--{name}", path)]
            subprocess.run([sys.executable, "-m", "aeic_lightning", *words], check=True)
        for name in ("train", "val"):
            (root / name).mkdir()
            pixels = np.random.default_rng(len(name)).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / "picture.png")
        settings = {
            **{f"vars.{name}": path for name, path in base.items()},
            "vars.root": root,
            "vars.data": root / "train",
            "vars.val": root / "val",
            "vars.crop": size,
            "vars.batch": 1,
            "vars.accumulate": 1,
            "vars.steps": 1,
            "vars.val_every": 1,
            "vars.workers": 0,
            "data.init_args.pin_memory": "false",
            "data.init_args.samples_per_epoch": 2,  # one for each process
            "model.init_args.share_base": str(case != "separate").lower(),
            "model.init_args.optimization.shard_base": str(case == "spread").lower(),
            "model.init_args.objective.edge_dists.backbone": "lite0",
            "model.init_args.objective.semantic.backbone": "lite0",
            "model.init_args.objective.adversarial.backbone": "lite0",
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.limit_val_batches": 0,
            "trainer.logger": "false",
        }
        callbacks = ["{class_path: callbacks.progress.PlainProgress, init_args: {every_n_steps: 1}}"]
        two_processes = case in ("whole", "spread")
        if two_processes:  # a process alone prints the peak of all that it did
            callbacks.append("{class_path: benchmarks.full_size_step.StepMemory}")
        settings["trainer.callbacks"] = f"[{', '.join(callbacks)}]"
        words = ["fit", "--config", str(CONFIG), *(f"--{key}={value}" for key, value in settings.items())]
        if two_processes:
            threads = max(1, torch.get_num_threads() // 2)
            print(f"{CASES[case]}, {threads} threads each", flush=True)
            words = ["--nproc-per-node=2", "-m", "aeic_lightning", *words, "--vars.devices=2"]
            command = [sys.executable, "-m", "torch.distributed.run", *words]
            return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}).returncode
        start = time.monotonic(), time.process_time()
        code = cli.main(words)
        wall, cpu = time.monotonic() - start[0], time.process_time() - start[1]
    print(f"{CASES[case]}: peak memory {peak_memory():.2f} GB; {wall:.0f} s, {cpu:.0f} s of processor time", flush=True)
    return code


def main() -> int:
    """Each case in a process of its own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the crop, a multiple of 128")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--files", type=Path, help="folder that full_size_files wrote")
    parser.add_argument("--case", choices=list(CASES), help="this one alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.files and args.case:
        return step(args.files, args.size, args.case)
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or make_files(Path(folder))
        command = [
            sys.executable,
            "-m",
            "benchmarks.full_size_step",
            "--size",
            str(args.size),
            "--threads",
            str(args.threads),
        ]
        command += ["--files", str(files), "--case"]
        cases = [args.case] if args.case else ["shared", "separate"]
        return max(subprocess.run([*command, case]).returncode for case in cases)


if __name__ == "__main__":
    sys.exit(main())
