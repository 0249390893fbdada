"""What CONTRIBUTING.md says works: its parts, taken out of the page, train for two steps in one experiment."""

import json
import re
from pathlib import Path

import pytest
import skimage
import skimage.data
import torch
import yaml
from importable import importable
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.parts import build_encoder
from aeic_lightning.models.random_model import save
from aeic_lightning.study.complexity import experiment_configs
from aeic_lightning.study.results import metrics_of, read_result

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
PARTS = {
    "Encoder": "my_encoder.py",
    "Entropy model": "my_context.py",
    "Term of the loss": "my_term.py",
    "Metric": "my_metric.py",
    "Tap": None,
    "Data set": "my_data.py",
    "Callback": "my_callback.py",
}


def section(heading: str) -> str:
    return PAGE.split(f"### {heading}\n")[1].split("\n### ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(("heading", "file"), PARTS.items())
def test_a_part_is_one_short_file_and_one_line(heading, file):
    code = blocks(section(heading), "python")
    assert [text.splitlines()[0] for text in code] == ([f"# {file}"] if file else [])
    assert all(len(text.splitlines()) <= 25 for text in code)
    (lines,) = blocks(section(heading), "yaml")
    assert len(lines.splitlines()) == 1


def test_y_starts_above_rounding(tmp_path):
    """With the standard deviation that docs/howto_encoder.md asks for, from any seed."""
    (code,) = blocks(section("Encoder"), "python")
    (line,) = blocks(section("Encoder"), "yaml")
    (tmp_path / "my_encoder.py").write_text(code)
    photo = torch.from_numpy(skimage.data.coffee()[:256, :256].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with importable(tmp_path), torch.no_grad():
        for seed in range(10):
            torch.manual_seed(seed)
            encoder, _, _ = build_encoder(yaml.safe_load(line)["model"]["init_args"]["codec"]["encoder"])
            assert encoder(photo).std() > 1


def test_all_parts_train_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for heading, file in PARTS.items():
        for text in blocks(section(heading), "python"):
            Path(file).write_text(text)
    photos = Path(skimage.__file__).parent / "data"
    Path("photos.txt").write_text("".join(f"{photos}/{name}.png\n" for name in ("chelsea", "astronaut", "coffee")))
    files = []
    for i, text in enumerate(blocks(PAGE, "yaml")):
        files.append(f"{i}.yaml")
        Path(files[-1]).write_text(text)
    assert yaml.safe_load(Path("0.yaml").read_text()) == {"include": ["tiny/student_enc.yaml"]}
    # A list replaces those before it: here both parts' callbacks are wanted.
    trainers = [yaml.safe_load(Path(file).read_text()).get("trainer") or {} for file in files]
    callbacks = [callback for trainer in trainers for callback in trainer.get("callbacks", [])]
    teacher = Path("runs/tiny/teacher_stage2/checkpoints/last.ckpt")
    teacher.parent.mkdir(parents=True)
    save(AEIC(*experiment_configs(load_config(["tiny/teacher_stage2.yaml"]), "teacher")), teacher)
    Path("mine.yaml").write_text(
        yaml.safe_dump(
            {
                "include": files,
                "vars": {"steps": 2, "val_every": 2},
                "data": {"init_args": {"batch_size": 1, "crop_size": 128, "val_max_size": [128, 128]}},
                "trainer": {"log_every_n_steps": 1, "callbacks": callbacks},
            }
        )
    )
    with importable(tmp_path):
        assert main(["fit", "--config", "mine.yaml"]) == 0

    run = Path("runs/tiny/student_enc")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["model.codec.g_a.0.weight"].shape == (16, 3, 5, 5)
    assert {name.split(".")[4] for name in state if "context.adapter_in." in name} == {"0", "1"}, "two steps"
    events = EventAccumulator(str(run)).Reload()
    assert events.Scalars("train/brightness")[-1].value > 0
    assert events.Scalars("train/distill/decoder/decoder.denoiser.trunk.mid_block")[-1].value > 0
    (edges,) = events.Scalars("val/edge_error")
    result = read_result(run)
    assert edges.value == pytest.approx(result.value("edge_error"))
    assert 0 < edges.value < 1
    assert [(m.name, m.higher) for m in metrics_of([result])][-1] == ("edge_error", False)
    assert "my_metric" in json.loads((run / "run.json").read_text())["sources"]
    (largest,) = events.Scalars("val/largest_file")
    assert largest.value > 30, "the bytes of one file"
