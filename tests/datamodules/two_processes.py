"""Run by test_two_processes.py: a real run of two processes, each of which writes down what it saw."""

import hashlib
import json
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torchmetrics import MeanMetric

from datamodules import SamplePhotos


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))  # a buffer, for DDP
        self.mean = MeanMetric()
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.note("train", batch)
        return self.layer(batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)
        self.mean.update(batch["image"].mean())
        self.log("val/mean", self.mean, batch_size=1)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def note(self, stage, batch):
        for name, x in zip(batch["name"], batch["image"], strict=True):
            pixels = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()  # a sum depends on its order
            self.seen[stage].append([name, list(x.shape), pixels])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def run(folder, devices, batch_size):
    """Three epochs and a test; what this process saw, and the mean over all validation images."""
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=True,  # Lightning's default: it must leave the samplers alone
        default_root_dir=folder,
    )
    model, photos = Recorder(), SamplePhotos(crop_size=128, batch_size=batch_size, samples_per_epoch=12)
    trainer.fit(model, photos)
    mean = trainer.callback_metrics["val/mean"].item()
    trainer.test(model, photos, verbose=False)
    # As JSON and back, so that both kinds of run compare.
    return json.loads(json.dumps({**model.seen, "mean": mean, "rank": trainer.global_rank}))


def main(folder: Path) -> None:
    result = run(folder, devices=2, batch_size=2)
    (folder / f"{result['rank']}.json").write_text(json.dumps(result))
