"""Steps a second and memory of one stage of the paper on a GPU: `python -m benchmarks.stages se_stage2 --files FOLDER`.

`benchmarks.full_size_files` writes FOLDER. Prints one line of JSON last.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

from aeic_lightning import cli
from aeic_lightning.timing import peak_memory
from benchmarks.cuda import STAGES, Clock

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "paper"
LAMBDA = 2
ME = ("me_stage1", f"me_stage2_{LAMBDA}")
SE = ("se_stage1", f"se_stage2_{LAMBDA}")
LIMITED = {
    "data.init_args.pin_memory": "false",
    "trainer.limit_val_batches": 0,
    "trainer.logger": "false",
}
TERMS = {1: ("lpips", "semantic"), 2: ("edge_dists", "semantic", "adversarial")}
"""Terms of the objective with a network of their own, by stage; stage 3 is as 2."""


class StepClock(Callback):
    """Times the steps of a run. `clock` is of the last run of this process."""

    clock = Clock()

    def __init__(self, every: int = 1) -> None:
        self.every = every  # batches a step

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        type(self).clock = Clock()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.every == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.clock.tick()


def measure(config: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run `fit` on a config with settings, and return its speed and the peak of the device's memory."""
    callback = "[{class_path: benchmarks.stages.StepClock}]"
    words = [f"--{name}={value}" for name, value in (settings | {"trainer.callbacks": callback}).items()]
    code = cli.main(["fit", "--config", str(config), *words])
    if code:
        raise RuntimeError(f"fit ended with exit code {code}")
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_memory()
    return {"steps_per_second": StepClock.clock.speed, "peak_memory_gib": memory}


def settings_of(stage: str, files: Path, root: Path, steps: int, shared: bool) -> dict[str, Any]:
    """The settings of a stage on files with random weights, below `root`."""
    base = {"unet": files / "sd-turbo", "vae": files / "halfDecoder.ckpt"}
    for released, names in (("AEIC_ME.pkl", ME), ("AEIC_SE.pkl", SE)):
        words = ["import-released", str(files / released), "-o", str(root / f"{names[0]}/checkpoints/last.ckpt")]
        words += [word for name, path in base.items() for word in (f"--{name}", str(path))]
        subprocess.run([sys.executable, "-m", "aeic_lightning", *words], check=True, stdout=sys.stderr)
        other = root / names[1] / "checkpoints"
        other.mkdir(parents=True)
        (other / "last.ckpt").symlink_to(root / f"{names[0]}/checkpoints/last.ckpt")
    for name in ("train", "val"):
        (root / name).mkdir()
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    settings = {f"vars.{name}": path for name, path in base.items()}
    settings |= {
        "vars.root": root, "vars.name": "measured", "vars.data": root / "train", "vars.val": root / "val",
        "vars.lambda": LAMBDA, "vars.steps": steps, "vars.accumulate": 1,
    } | LIMITED  # fmt: skip
    terms = TERMS[min(int(stage[-1]), 2)]
    settings |= {f"model.init_args.objective.{term}.backbone": "lite0" for term in terms}
    if stage.startswith("se_"):
        settings["model.init_args.share_base"] = str(shared).lower()
    return settings


def main() -> int:
    """One stage in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--files", type=Path, required=True, help="folder that full_size_files wrote")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--shared", action="store_true", help="one base for teacher and student")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(args.stage, args.files, Path(folder), args.steps, args.shared)
        print(json.dumps(measure(EXPERIMENTS / f"{args.stage}.yaml", settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
