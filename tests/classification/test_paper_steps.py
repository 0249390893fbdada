"""Both steps of experiments/classification/paper_* at the paper's sizes: two steps each, on a few small images."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos
from timm.scheduler import CosineLRScheduler

from aeic_lightning.classification.system import ClassificationOptimization
from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.study.results import read_result
from datamodules.labelled import LabelledFolder
from tests.classification.test_classification_experiments import FOLDER, ROOT
from tests.classification.test_systems import classification_system
from tests.experiment_names import all_but_few_slow, names

QUALITIES = {1: (0.1, 0.001), 2: (0.3, 0.003), 3: (0.6, 0.006)}
STEPS = ["step1", *(f"step2_q{quality}" for quality in QUALITIES)]


def test_every_paper_file_is_known_here():
    known = {f"paper_{name}" for name in ["base", "step2", *STEPS]}
    assert {name for name in names("classification") if name.startswith("paper_")} == known


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of two training images and one validation image."""
    folder = tmp_path_factory.mktemp("paper")
    for name, photo in (("cat", photos.chelsea()), ("rocket", photos.rocket())):
        for part, sizes in (("train", [(90, 70), (70, 80)]), ("val", [(80, 75)])):
            (folder / part / name).mkdir(parents=True)
            for i, size in enumerate(sizes):
                Image.fromarray(photo).resize(size).save(folder / part / name / f"{name}{part}{i}.png")
    return folder


def train(folder, name: str) -> None:
    settings = {
        "vars.root": folder / "runs", "vars.data": folder, "vars.devices": 1, "vars.batch": 2, "vars.epochs": 1,
        "trainer.accelerator": "cpu", "trainer.strategy": "auto", "data.init_args.num_workers": 0,
        "data.init_args.pin_memory": "false", "data.init_args.crop_size": 64, "data.init_args.eval_batch_size": 2,
        "model.init_args.sizes.transformer.classes": 2,
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in settings.items()]
    assert main(["fit", "--config", str(FOLDER / f"paper_{name}.yaml"), *words]) == 0


@pytest.mark.parametrize("name", all_but_few_slow(STEPS, "step1", "step2_q1"))
def test_two_steps(folder, name, monkeypatch):
    """Step 2 needs the checkpoint of step 1, under the name that step 1 gave it."""
    monkeypatch.chdir(ROOT)
    for needed in dict.fromkeys(["step1", name]):
        if not (folder / "runs" / needed).exists():
            train(folder, needed)

    saved = torch.load(folder / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert sum(p.numel() for p in saved["state_dict"].values()) == pytest.approx(29.67e6 - 998 * 385, rel=2e-4)
    (optimizer,) = saved["optimizer_states"]
    # Begun at 2/512 of step 1's rate, or at step 2's own.
    peak = 5e-4 * 2 / 512 if name == "step1" else 1e-4
    assert {group["initial_lr"] for group in optimizer["param_groups"]} == {peak}
    assert {group["weight_decay"] for group in optimizer["param_groups"]} <= ({0.0, 0.05} if name == "step1" else {0.0})
    assert {(group["betas"], group["eps"]) for group in optimizer["param_groups"]} == {((0.9, 0.999), 1e-8)}
    assert {"psnr", "top1"} <= set(read_result(folder / "runs" / name).metrics)


@pytest.mark.parametrize("name", STEPS)
def test_settings_of_the_release(name):
    """Written a second time, from the facts: docs/recipe.md and the files may not drift together."""
    config = load_config([FOLDER / f"paper_{name}.yaml"], ["vars.data=d"])
    model, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]["init_args"]
    optimization, objective = model["optimization"], model["objective"]
    first = name == "step1"
    assert trainer["devices"] * data["batch_size"] == 1024
    assert (trainer["max_epochs"], trainer["gradient_clip_val"]) == (300, 1.0)
    assert trainer["precision"] == ("bf16-mixed" if first else "32-true")
    assert optimization["optimizer"] == ("adamw" if first else "adam")
    scaled = 1024 / optimization["learning_rate_batch"] if first else 1
    assert optimization["learning_rate"] * scaled == (1e-3 if first else 1e-4)
    assert "learning_rate_batch" not in optimization or first
    assert optimization["weight_decay"] == (0.05 if first else 0.0)
    assert (optimization["schedule"], optimization["warmup_epochs"]) == ("epochs", 5)
    assert (optimization["warmup_learning_rate"], optimization["final_learning_rate"]) == (1e-6, 1e-5)
    assert model["sizes"]["transformer"]["drop_path"] == 0.1
    assert objective["cross_entropy"]["label_smoothing"] == 0.1
    weights = (1.0, 0.001) if first else QUALITIES[int(name[-1])]
    assert (objective["cross_entropy"]["weight"], objective["mse_255"]["weight"]) == weights
    assert objective.get("rate", 0) == (0 if first else 1.0)
    mixing = {key: value for key, value in model.items() if key in ("mixup", "cutmix", "cutmix_switch")}
    assert mixing == ({"mixup": 0.8, "cutmix": 1.0, "cutmix_switch": 0.5} if first else {})
    assert model.get("latents", "rounded") == ("rounded" if first else "noisy")


def transform_of(name: str):
    """The transform that the file asks timm for, made by the data module."""
    data = load_config([FOLDER / f"paper_{name}.yaml"], ["vars.data=d"])["data"]["init_args"]
    return LabelledFolder(**data)._transform()


def test_step_1_has_timms_augmentations_and_step_2_none():
    parts = [type(part).__name__ for part in transform_of("step1").transforms]
    crop, flip, *rest = parts
    assert (crop, flip) == ("RandomResizedCropAndInterpolation", "RandomHorizontalFlip")
    assert rest == ["RandAugment", "MaybeToTensor", "Normalize", "RandomErasing"]
    crop, _, augment, *_, erasing = transform_of("step1").transforms
    assert (crop.scale, crop.ratio, crop.interpolation.value) == ((0.08, 1.0), (3 / 4, 4 / 3), "bicubic")
    assert {(op.magnitude, op.magnitude_std) for op in augment.ops} == {(9, 0.5)}
    assert "PosterizeIncreasing" in {op.name for op in augment.ops}  # inc1
    assert (erasing.probability, erasing.mode, erasing.max_count) == (0.25, "pixel", 1)

    assert [type(part).__name__ for part in transform_of("step2_q1").transforms] == [
        "RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "MaybeToTensor", "Normalize"
    ]  # fmt: skip


def test_the_schedule_is_timms_by_epochs():
    """Warm-up from 1e-6 over five epochs, then a cosine of 300 to 1e-5; an epoch late, as in the release."""
    settings = load_config([FOLDER / "paper_step1.yaml"], ["vars.data=d"])["model"]["init_args"]["optimization"]
    system = classification_system(optimization=ClassificationOptimization(**settings))
    data = SimpleNamespace(batch_size=128)
    system.trainer = SimpleNamespace(max_epochs=300, world_size=8, accumulate_grad_batches=1, datamodule=data)
    (optimizer,) = system.configure_optimizers()
    scheduler = CosineLRScheduler(optimizer, 300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    rates, timms = [], []
    for epoch in range(300):
        timms.append(optimizer.param_groups[0]["lr"])
        system.optimization.set_rates(optimizer, 1250 * epoch, -1, epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    assert rates == timms

    def rate(t):
        return 1e-6 + t * (1e-3 - 1e-6) / 5 if t < 5 else 1e-5 + 0.99e-3 * (1 + math.cos(math.pi * t / 300)) / 2

    np.testing.assert_allclose(rates, [rate(max(epoch - 1, 0)) for epoch in range(300)], rtol=1e-9)
