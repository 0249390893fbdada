"""The pages say what works: their term and their tap, taken out of the page, train for two steps."""

import re
from pathlib import Path

import torch
import yaml
from importable import importable
from omegaconf import OmegaConf

from aeic_lightning.config import merge
from aeic_lightning.losses.objective import SHIPPED
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, TeacherSystem

PAGE = (Path(__file__).parents[2] / "docs" / "howto_loss.md").read_text()


def test_a_term_and_a_tap_are_one_file_and_one_line_each(codec_config, decoder_config, loader, trainer, tmp_path):
    codes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    lines = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert all(len(code.splitlines()) <= 25 for code in codes)
    assert [len(line.splitlines()) for line in lines] == [1, 1, 1, 1]
    for code in codes:
        (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)

    objective = {"rate": 0.8, "mse": 2.0}
    teacher = TeacherSystem(codec_config, decoder_config, objective, OptimizationConfig())
    checkpoint = {"state_dict": {f"model.{k}": t for k, t in teacher.model.state_dict().items()}}
    torch.save(checkpoint | {"model_config": teacher.model.config}, tmp_path / "teacher.ckpt")
    layers = [{"model": {"init_args": {"objective": objective}}}, *map(yaml.safe_load, lines)]
    settings = OmegaConf.to_container(merge(layers))
    objective = settings["model"]["init_args"]["objective"]
    with importable(tmp_path):
        system = DistillationSystem(
            codec_config, decoder_config, objective, OptimizationConfig(), teacher=str(tmp_path / "teacher.ckpt")
        )
        fitted = trainer(2)
        fitted.fit(system, loader(2))
    logged = fitted.callback_metrics
    assert logged["train/gradients"] > 0
    curves = {name.removeprefix("train/distill/") for name in logged if name.startswith("train/distill/")}
    assert curves == {
        "L_dec",
        "attention",
        "l1",
        "encoder/y.l1",
        "relational",
        *(f"decoder/{tap}" for tap in ("l_0", "decoder.vae.conv_in", *(f"h_{n}" for n in range(9)))),
        "decoder/l_0.attention",
        "encoder/y.relational",
        "encoder/phi.relational",
    }
    assert all(logged[f"train/distill/{name}"] > 0 for name in curves)


def test_every_shipped_term_is_on_the_page():
    assert all(f"`{name}`" in PAGE for name in SHIPPED)
