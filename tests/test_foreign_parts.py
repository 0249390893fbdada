"""Parts that the package has never seen, through every command: an encoder, a term of the loss and a tap.

They stand in a user's folder, outside of the package. Each is one file at most and one line of the experiment.
`export` of such an encoder, which takes long, is in tests/bitstream/test_export.py.
"""

import json

import pytest
import torch
from importable import importable
from PIL import Image
from skimage.data import chelsea
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import save
from aeic_lightning.study.complexity import experiment_configs
from aeic_lightning.study.runner import run_sweep
from aeic_lightning.study.sweep_file import RECORD, read_sweep

FILES = {
    "my_encoder.py": """
from torch import nn


class PlainConvolutions(nn.Sequential):
    def __init__(self, width):
        sizes = [3, width, width, width, width, 64]
        layers = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Conv2d(a, b, 5, 2, 2), nn.ReLU())]
        super().__init__(*layers[:-1])
        for convolution in list(self)[::2]:
            nn.init.normal_(convolution.weight, std=2 * convolution.weight[0].numel() ** -0.5)
""",
    "my_term.py": """
from aeic_lightning.losses import Term


class Brightness(Term):
    def forward(self, batch, output, teacher):
        return (output.x_hat - batch["image"]).mean(dim=(1, 2, 3)).square().mean()
""",
    "receiver.yaml": """
model: {init_args: {decoder: {unet: {widths: [16, 16], heads: [1, 1], layers: 1, groups: 8}}}}
""",
    "teacher.yaml": "include: [tiny/teacher_stage2.yaml, receiver.yaml]",
    "my_experiment.yaml": """
include: [tiny/student_enc.yaml, receiver.yaml]
vars: {name: plain, root: runs, steps: 2, val_every: 2}
data: {init_args: {batch_size: 1, crop_size: 128, val_max_size: [128, 192]}}
trainer: {log_every_n_steps: 1}
model:
  init_args:
    codec: {encoder: {class_path: my_encoder.PlainConvolutions, init_args: {width: 8}}}
    objective:
      brightness: {class_path: my_term.Brightness, weight: 0.5}
      L_dec: {weight: 0.02, taps: [l_0, decoder.denoiser.trunk.mid_block]}
""",
    "my_sweep.yaml": """
vars: {root: runs}
root: ${vars.root}
runs:
  - name: plain_{width}
    grid: {width: [8, 16]}
    config: my_experiment.yaml
    set: {model.init_args.codec.encoder.init_args.width: "{width}"}
compare: {runs: [plain_8, plain_16], out: comparison}
report: {out: report, title: Plain encoders, metrics: [psnr], against: [{reference: {width: 8}}]}
""",
}
MODEL = ["--checkpoint", "runs/plain_8/checkpoints/last.ckpt"]
NAMES = ["PlainConvolutions width=8", "PlainConvolutions width=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's folder after the sweep: the working folder of every test here."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch, importable(folder):
        patch.chdir(folder)
        torch.manual_seed(0)
        teacher = folder / "runs" / "teacher_stage2" / "checkpoints" / "last.ckpt"
        teacher.parent.mkdir(parents=True)
        save(AEIC(*experiment_configs(load_config(["teacher.yaml"]), "teacher")), teacher)
        sweep = read_sweep("my_sweep.yaml", [])
        for run in sweep.runs:
            assert main(run.command[3:]) == 0, run.name
            (run.folder / RECORD).touch()
        assert run_sweep(sweep) == 0
        Image.fromarray(chelsea()[:150, :200]).save("photo.png")
        yield folder


def test_it_is_trained_beside_a_teacher(folder):
    """Two steps; the term and the tap are in the objective."""
    saved = torch.load("runs/plain_16/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"]["model.codec.g_a.0.weight"].shape == (16, 3, 5, 5)
    assert "objective.terms.L_dec.projections.decoder-denoiser-trunk-mid_block.weight" in saved["state_dict"]
    events = EventAccumulator("runs/plain_16").Reload()
    assert events.Scalars("train/brightness")[-1].value > 0
    assert events.Scalars("train/distill/decoder/decoder.denoiser.trunk.mid_block")[-1].value > 0


def test_a_photo_is_coded_and_decoded(folder):
    assert main(["compress", "photo.png", *MODEL, "-o", "coded"]) == 0
    assert main(["decompress", "coded/photo.aeic", *MODEL, "-o", "decoded"]) == 0
    assert Image.open("decoded/photo.png").size == (200, 150)


def test_its_costs_are_counted_and_measured(folder, capfd):
    assert main(["bench", *MODEL, "--encode-only", "--sizes", "64x64", "--repeats", "1", "--threads", "1"]) == 0
    assert "peak memory" in capfd.readouterr().out
    assert main(["complexity", "--config", "my_experiment.yaml"]) == 0
    weights = 25 * (3 * 8 + 3 * 8 * 8 + 8 * 64) + 4 * 8 + 64
    assert f"{weights:,}" in capfd.readouterr().out


def test_tables_and_page_name_the_encoder(folder):
    """In place of the depth that a StarEncoder has."""
    results = json.loads((folder / "report" / "results.json").read_text())["results"]
    assert [result["labels"]["encoder"] for result in results] == NAMES
    assert all("depth" not in result["labels"] for result in results)
    table = (folder / "comparison" / "comparison.md").read_text()
    curves = [line.split(" | ")[1] for line in table.splitlines()[2:4]]
    assert curves == [f"distillation · {name}" for name in NAMES]
    page = (folder / "report" / "index.html").read_text()
    assert all(name in page for name in NAMES)
