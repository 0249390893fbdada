"""Two processes against one with the joint batch: gradients of both players, figures, files.

    python -m tests.robustness.processes FOLDER

Data-parallel training averages the gradients of the processes. With the same images and the same random draws that is
the gradient of the joint batch, up to the order of sums. A run of two processes with two crops each (gloo, CPU) is
compared with a run of one process with four, in which rows r, r + 2, ... draw from the stream of process r.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from aeic_lightning.systems.optimization import seed_batch
from callbacks.checkpoint import LastCheckpoint
from callbacks.quality import QualityMetrics
from datamodules import SamplePhotos
from tests.robustness.runs import ROOT

STEPS = 3
CODEC = CodecConfig(
    widths=[8, 8, 16, 16, 32], depths=[1] * 5, context_width=16, context_depth=1, synthesis_widths=[32, 24, 16],
    synthesis_depths=[1, 1, 1], l_T_channels=12, l_res_channels=8,
)  # fmt: skip
DECODER = DecoderConfig(
    unet=UNetConfig(widths=[8, 16, 16, 16], heads=[1, 2, 2, 2], layers=1, groups=4),
    vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
)
LOSS = {
    "rate": 0.5, "mse": 2.0, "lpips": 0.1, "edge_dists": 0.1, "semantic": 0.1,
    "adversarial": {"weight": 0.1, "learning_rate": 1e-12},
}  # fmt: skip


class Recorder(TeacherSystem):
    """Keeps the gradients that each update is made of."""

    def step_players(self) -> None:
        named = {"generator": self.generator_parameters(), "discriminator": self.discriminator_parameters()}
        self.gradients.append({player: torch.cat([p.grad.flatten() for _, p in ps]) for player, ps in named.items()})
        super().step_players()


class Joint(Recorder):
    """One process that draws for each row what the process that would hold it draws."""

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        states = []
        for rank in range(2):
            seed_batch(self._run_seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, rank)
            states.append(torch.get_rng_state())
        self.states[:] = states


def by_row(draw: Callable[[Tensor], Tensor], states: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """`draw` for rows 0, 2, ... from the first stream and for rows 1, 3, ... from the second."""

    def drawn(x: Tensor) -> Tensor:
        parts = []
        for rank in range(2):
            torch.set_rng_state(states[rank])
            parts.append(draw(x[rank::2]))
            states[rank] = torch.get_rng_state()
        return torch.stack(parts, 1).flatten(0, 1)

    return drawn


def run(folder: Path, processes: int, accumulate: int) -> dict:
    """Train; the gradients of each update and the weights at the end, as this process has them."""
    from aeic_lightning.losses.adversarial import diff_augment
    from aeic_lightning.models.codec.context import add_noise

    lightning.seed_everything(3, verbose=False)
    # Steps too small to matter: Adam would blow up a difference in the last digit of a small gradient to one of a whole
    # step, and a latent that is rounded the other way would then change the gradients of all that follow.
    optimization = OptimizationConfig([(0, 1e-12)], gradient_clip=1.0, accumulate=accumulate)
    system = (Recorder if processes == 2 else Joint)(CODEC, DECODER, LOSS, optimization)
    system.gradients, system.states = [], []
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=DDPStrategy(process_group_backend="gloo") if processes == 2 else "auto",
        max_steps=STEPS,
        val_check_interval=STEPS * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=lightning.pytorch.loggers.TensorBoardLogger(folder, name="", version=""),
        log_every_n_steps=1,
        callbacks=[LastCheckpoint(2), QualityMetrics(lpips=[], dists=[], ms_ssim=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    photos = SamplePhotos(
        crop_size=128, batch_size=4 // processes, samples_per_epoch=4 * STEPS * accumulate, val_max_size=[64, 96]
    )
    joint = processes == 1
    with (
        patch("aeic_lightning.models.codec.latent_codec.add_noise",
              by_row(add_noise, system.states) if joint else add_noise),
        patch("aeic_lightning.losses.adversarial.diff_augment",
              by_row(diff_augment, system.states) if joint else diff_augment),
    ):  # fmt: skip
        # Validation does not draw, so the patches do nothing there.
        trainer.fit(system, photos)
    return {"gradients": system.gradients, "weights": system.state_dict(), "rank": trainer.global_rank}


class Equality(NamedTuple):
    """Two processes against one."""

    accumulate: int
    gradients: dict[str, list[float]]  # of each player: |difference| / |joint gradient|, update by update
    ranks_agree: bool  # both processes end with the same weights, to the bit
    images_once: bool  # in the validation's record
    figures: float  # largest difference of a figure of an image, relative
    files: list[str]  # that the two processes left


def launch(where: Path, processes: int, accumulate: int) -> None:
    """`record` in a process of its own, from which Lightning starts the second one."""
    command = [sys.executable, "-m", "tests.robustness.processes", str(where), str(processes), str(accumulate)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def record(where: Path, processes: int, accumulate: int) -> None:
    """`run`, and what it returns in a file."""
    found = run(where, processes, accumulate)
    torch.save(found, where / f"rank{found['rank']}.pt")


def trial(folder: Path, accumulate: int, launch: Callable[[Path, int, int], None] = launch) -> Equality:
    """Run both, and compare. `launch` is how the processes come about."""
    records = {}
    for processes in (2, 1):
        where = folder / f"{accumulate}-{processes}"
        where.mkdir(parents=True)
        launch(where, processes, accumulate)
        records[processes] = [torch.load(path, weights_only=True) for path in sorted(where.glob("rank*.pt"))]
    (first, second), (joint,) = records[2], records[1]
    gradients = {
        player: [
            ((a[player] - b[player]).norm() / b[player].norm()).item()
            for a, b in zip(first["gradients"], joint["gradients"], strict=True)
        ]
        for player in ("generator", "discriminator")
    }
    two, one = (json.loads((folder / f"{accumulate}-{n}/metrics_val.json").read_text())["images"] for n in (2, 1))
    names = [row["name"] for row in two]
    return Equality(
        accumulate,
        gradients,
        all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items()),
        names == [row["name"] for row in one] and len(set(names)) == 3,
        max(abs(a["psnr"] - b["psnr"]) / b["psnr"] for a, b in zip(two, one, strict=True)),
        sorted(p.name for p in (folder / f"{accumulate}-2").rglob("*") if p.is_file() and p.suffix != ".pt"),
    )


if __name__ == "__main__":
    record(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
