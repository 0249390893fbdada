"""Whatever the loggers: what the callbacks write stays in the run folder, and pictures reach all that take them."""

import csv

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from callbacks.checkpoint import LastCheckpoint
from callbacks.curves import RateDistortionPicture
from callbacks.pictures import ReconstructionGrid
from callbacks.quality import QualityMetrics

WRITTEN = {"metrics_val.json", "rate_distortion.png", "reconstructions/step_000006.png", "checkpoints/last.ckpt"}


def loggers_of(kind, folder):
    return {
        "true": lambda: True,
        "false": lambda: False,
        "csv": lambda: CSVLogger(folder),
        "csv, then tensorboard": lambda: [CSVLogger(folder), TensorBoardLogger(folder, name="tb")],
        "wandb, then tensorboard": lambda: [WandbLogger(save_dir=folder, offline=True), TensorBoardLogger(folder)],
        "mlflow": lambda: MLFlowLogger("codecs", None, f"sqlite:///{folder}.db", artifact_location=str(folder)),
    }[kind]()


@pytest.mark.parametrize("kind", ["true", "false", "csv", "csv, then tensorboard", "wandb, then tensorboard", "mlflow"])
def test_files_stay_in_the_run_folder(
    system, trainer_of, train_loader, val_loader, run_folder, tmp_path, kind, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if "wandb" in kind:
        import wandb

        wandb.finish()  # a run that another test of this process left open would take the files
    run_folder.mkdir()
    callbacks = [
        QualityMetrics(ms_ssim=False, lpips=[], dists=[]),
        ReconstructionGrid(max_images=1),
        RateDistortionPicture(["psnr"]),
        LastCheckpoint(),
    ]
    loggers = loggers_of(kind, tmp_path / "logs")
    trainer = trainer_of(*callbacks, logger=loggers, enable_checkpointing=True)
    trainer.fit(system, train_loader, val_loader)

    files = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
    beside = {name for name in files if not name.startswith("lightning_logs/")}
    assert beside == WRITTEN | {f"reconstructions/step_{step:06d}.png" for step in (2, 4)}
    drawn = np.asarray(Image.open(run_folder / "reconstructions" / "step_000006.png"))
    if kind == "mlflow":
        artifacts = tmp_path / "logs" / loggers.run_id / "artifacts"
        assert {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*.png")} == {
            f"{what}/step_{step:06d}.png" for what in ("pictures/val", "plots/rate_distortion") for step in (2, 4, 6)
        }
        np.testing.assert_array_equal(np.asarray(Image.open(artifacts / "pictures/val/step_000006.png")), drawn)
        recorded = loggers.experiment.get_metric_history(loggers.run_id, "val/psnr")
        assert [metric.step for metric in recorded] == [1, 3, 5]  # Lightning counts updates from 0
    if "wandb" in kind:
        wandb.finish()
        pictures = sorted((tmp_path / "logs").rglob("media/images/p*/*.png"))
        assert len(pictures) == 6
        assert any(np.array_equal(np.asarray(Image.open(path)), drawn) for path in pictures)
    if "csv" in kind:
        (table,) = (tmp_path / "logs").rglob("metrics.csv")
        assert "val/psnr" in next(csv.reader(table.open()))
    if "tensorboard" in kind:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (events,) = (tmp_path / "logs").rglob("events.out.tfevents.*")
        record = EventAccumulator(str(events)).Reload()
        assert set(record.Tags()["images"]) == {"pictures/val", "plots/rate_distortion"}
