"""The ablations of compress and classify, at the paper's configs and small sizes, for two steps each."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from skimage import data

from aeic_lightning.cli import main
from aeic_lightning.config import as_override
from aeic_lightning.study.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "experiments" / "sweeps" / "paper_classification.yaml"
SMALL = {
    "data": {"init_args": {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "pin_memory": False}},
    "model": {
        "init_args": {
            "sizes": {
                "encoder_widths": [8, 8, 8, 16], "hyper_width": 8, "decoder_widths": [8, 8, 8],
                "transformer": {"width": 24, "depth": 3, "heads": 2, "classes": 2},
            },
        },
    },
    "trainer": {
        "accelerator": "cpu", "devices": 1, "strategy": "auto", "max_steps": 2, "limit_val_batches": 0,
        "callbacks": [{"class_path": "callbacks.checkpoint.LastCheckpoint", "init_args": {"every_n_steps": 2}}],
    },
}  # fmt: skip
NAMES = ["no_aggregation_step1", "no_aggregation_q1", "no_step1_q2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of photographs, as ImageNet's folders."""
    folder = tmp_path_factory.mktemp("ablations")
    for split in ("train", "val"):
        for name in ("astronaut", "chelsea"):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(getattr(data, name)()).resize((240, 232)).save(folder / split / name / f"{number}.png")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(folder, name, monkeypatch):
    """In order: a step 2 without aggregation starts from such a step 1."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(SWEEP, [f"vars.root={folder / 'runs'}", f"vars.data={folder}"])
    (run,) = (run for run in sweep.runs if run.name == name)
    overrides = [f"--{as_override(key, value)}" for key, value in run.settings.items()]
    assert main(["fit", "--config", str(run.config), "--config", str(folder / "small.yaml"), *overrides]) == 0
    saved = torch.load(run.checkpoint, weights_only=True)
    assert saved["global_step"] == 2
    sources = [key for key in saved["state_dict"] if key.startswith("model.aggregation.sources") and "weight" in key]
    assert len(sources) == (1 if "no_aggregation" in name else 4), "the embedded y_hat, and three blocks"
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    start = config["model"]["init_args"]["init_from"]
    assert start == (str(folder / "runs/no_aggregation_step1/checkpoints/last.ckpt") if name == NAMES[1] else None)
    assert ("rate" in config["model"]["init_args"]["objective"]) == (name != NAMES[0])


def test_every_quality_has_both_ablations():
    names = {run.name for run in read_sweep(SWEEP, []).runs}
    assert names == {"step1", "no_aggregation_step1"} | {
        f"{arm}_q{quality}" for arm in ("step2", "no_aggregation", "no_step1") for quality in (1, 2, 3)
    }
