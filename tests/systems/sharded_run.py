"""Run by test_sharded.py: a distillation over a frozen base in two processes (gloo, CPU), spread or not.

    main(FOLDER)

FOLDER holds the base, `turbo` and `half.ckpt`, and a teacher over it, `teacher.ckpt`. Three steps with a validation in
which one process has more images than the other; then, resumed, two steps more. Each process writes what it has at the
end into `FOLDER/NAME-RANK.pt`, NAME being "whole" or "spread".
"""

from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.tensor import DTensor

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig, UNetConfig, VAEConfig
from aeic_lightning.systems import DistillationSystem, OptimizationConfig
from aeic_lightning.systems.sharded import base_blocks
from callbacks.checkpoint import LastCheckpoint
from callbacks.quality import QualityMetrics
from datamodules import SamplePhotos

WIDTHS, HEADS = [8, 16], [1, 2]
CODEC = CodecConfig(
    widths=[8, 8, 16, 16, 32], depths=[1] * 5, context_width=16, context_depth=1, synthesis_widths=[32, 24, 16],
    synthesis_depths=[1, 1, 1], l_T_channels=12, l_res_channels=8,
)  # fmt: skip
LOSS = {"rate": 0.5, "mse": 2.0, "L_enc": 0.1, "L_dec": 1e-3}


def decoder(folder: Path) -> DecoderConfig:
    return DecoderConfig(
        unet=UNetConfig(widths=WIDTHS, heads=HEADS, layers=1, groups=4),
        vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
        pretrained=PretrainedConfig(str(folder / "turbo"), str(folder / "half.ckpt"), rank=4, alpha=1.0),
        gradient_checkpointing=True,
    )


def fit(folder: Path, name: str, steps: int, ckpt_path: str | None) -> tuple[lightning.Trainer, DistillationSystem]:
    lightning.seed_everything(3, verbose=False)
    optimization = OptimizationConfig([(0, 1e-3)], ema=0.9, accumulate=2, shard_base=name == "spread")
    teacher = str(folder / "teacher.ckpt")
    system = DistillationSystem(CODEC, decoder(folder), LOSS, optimization, teacher)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_steps=steps,
        val_check_interval=3 * 2, check_val_every_n_epoch=None, num_sanity_val_steps=0, default_root_dir=folder / name,
        logger=TensorBoardLogger(folder / name, name="", version=""), 
        callbacks=[LastCheckpoint(3), QualityMetrics(lpips=[], dists=[], ms_ssim=False)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    photos = SamplePhotos(crop_size=128, batch_size=1, samples_per_epoch=4 * steps, val_max_size=[64, 96])
    trainer.fit(system, photos, ckpt_path=ckpt_path)
    return trainer, system


def main(folder: Path) -> None:
    for name in ("whole", "spread"):
        run(folder, name)


def run(folder: Path, name: str) -> None:
    trainer, first = fit(folder, name, 3, None)
    figures = {key: trainer.callback_metrics[f"val/{key}"].item() for key in ("bpp", "psnr")}
    after_three = {key: tensor.clone() for key, tensor in first.state_dict().items()}
    trainer, system = fit(folder, name, 5, str(folder / name / "checkpoints/last.ckpt"))
    base = [p for block in base_blocks(system.model.decoder) for n, p in block.named_parameters() if ".lora_" not in n]
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in base)
    found = {"first": after_three, "weights": system.state_dict(), "figures": figures, "held": held}
    torch.save(found, folder / f"{name}-{trainer.global_rank}.pt")
