"""Training with all callbacks is training without them; and each of them can be named in YAML."""

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import LightningCLI
from tiny_system import TinySystem, records
from torch.utils.data import DataLoader

from aeic_lightning.torch_settings import own_random_state
from callbacks.curves import RateDistortionPicture, TapCurves
from callbacks.distribution import PatchFID
from callbacks.layout import ComparisonLayout
from callbacks.pictures import ReconstructionGrid
from callbacks.progress import PlainProgress
from callbacks.quality import QualityMetrics


def all_callbacks():
    return [
        PlainProgress(),
        ComparisonLayout(),
        RateDistortionPicture(),
        QualityMetrics(),
        PatchFID(patch_size=32, min_patches=2, min_images=1),
        ReconstructionGrid(save_images=True),
        TapCurves(every_n_steps=1),
    ]


def test_training_is_bit_identical(trainer_of, train_loader, val_loader):
    results = []
    for callbacks in (list, all_callbacks):
        seed_everything(11, verbose=False)
        system = TinySystem()
        trainer_of(*callbacks()).fit(system, train_loader, val_loader)
        results.append((system.state_dict(), torch.get_rng_state()))
    (plain, plain_random), (watched, watched_random) = results
    assert list(plain) == list(watched)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert torch.equal(plain_random, watched_random)


def test_a_validation_leaves_the_random_state(system, trainer_of):
    trainer = trainer_of(*all_callbacks())
    # A loader draws a seed an epoch from the global stream unless it has a generator of its own.
    loader = DataLoader(records(), batch_size=1, generator=torch.Generator())
    state = torch.get_rng_state()
    trainer.validate(system, loader, verbose=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_own_random_state_repeats_and_is_put_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with own_random_state(seed=1):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


YAML = """
trainer:
  accelerator: cpu
  max_epochs: 1
  default_root_dir: SAVE_DIR/run
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {save_dir: SAVE_DIR, name: "", version: run, default_hp_metric: false}
  callbacks:
  - class_path: callbacks.quality.QualityMetrics
    init_args: {backbone: lite0, ms_ssim: true, lpips: [lite0], dists: null}
  - class_path: callbacks.distribution.PatchFID
    init_args: {patch_size: 32, min_patches: 50, min_images: 1, backbone: lite0, every_n_validations: 2}
  - class_path: callbacks.pictures.ReconstructionGrid
    init_args: {max_images: 2, save_images: true}
  - class_path: callbacks.curves.RateDistortionPicture
    init_args: {metrics: [psnr, lpips_lite0]}
  - class_path: callbacks.curves.TapCurves
    init_args: {every_n_steps: 1}
  - class_path: callbacks.layout.ComparisonLayout
    init_args: {metrics: [psnr]}
  - class_path: callbacks.progress.PlainProgress
    init_args: {every_n_steps: 5}
"""


def test_named_in_yaml_they_run(train_loader, val_loader, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(YAML.replace("SAVE_DIR", str(tmp_path)))
    cli = LightningCLI(
        TinySystem, run=False, args=["--config", str(config)], save_config_callback=None, seed_everything_default=False
    )
    cli.trainer.fit(cli.model, train_loader, val_loader)
    folder = tmp_path / "run"
    assert {
        "metrics_val.json",
        "rate_distortion.png",
        "reconstructions/step_000002.png",
        "reconstructions/wide.png",
        "taps.csv",
        "taps.png",
    } <= {str(path.relative_to(folder)) for path in folder.rglob("*")}
