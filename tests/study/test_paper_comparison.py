"""A run beside the paper: the right point, the right costs, and every setting that differs, no other."""

import copy
from pathlib import Path

import pytest

from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.study.paper_comparison import differences, nearest, paper_config, paper_stage, with_paper
from aeic_lightning.study.results import Result

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
STAGES = {
    "me_stage1": [], "me_stage2": ["vars.lambda=8"], "se_stage1": [], "se_stage2": ["vars.lambda=32"],
    "se_stage3": ["vars.lambda=2"],
}  # fmt: skip


def result(role="teacher", rate=0.016, **more):
    return Result("mine", "run", {"role": role}, {"bpp_estimate": {"mean": rate, "images": 3}}, **more)


@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_own_files_differ_in_nothing(stage):
    config = load_config([PAPER / f"{stage}.yaml"], STAGES[stage])
    assert paper_stage(config) == stage
    assert differences(config, paper_config(stage, config)) == []


def test_what_was_changed_is_listed_and_machines_are_not():
    config = load_config([PAPER / "me_stage2.yaml"], ["vars.lambda=8"])
    paper = copy.deepcopy(config)
    settings = config["model"]["init_args"]
    settings["objective"] |= {"adversarial": {"weight": 0.1, "backbone": "lite0"}, "chroma": 1.0}
    settings["codec"]["depths"] = [2, 2, 2, 2, 3]
    settings["optimization"]["accumulate"] = 4
    config["data"]["init_args"] |= {"batch_size": 8, "train_dir": "elsewhere", "num_workers": 1}
    config["trainer"]["max_steps"] = 100
    found = {key: (own, theirs) for key, own, theirs in differences(config, paper)}
    assert found.keys() == {"objective.adversarial", "objective.chroma", "model.codec.depths", "trainer.max_steps"}
    assert found["objective.chroma"] == ("1", "-")
    assert found["model.codec.depths"] == ("[2, 2, 2, 2, 3]", "[2, 2, 2, 2, 2]")
    assert "updates separate" in found["objective.adversarial"][1]


def test_the_point_is_the_one_of_the_next_rate():
    assert nearest(result(), "DIV2K").name == "AEIC-ME DIV2K lambda 8"
    assert nearest(result("distillation", 0.0040), "Kodak").name == "AEIC-SE Kodak lambda 32"
    costs = {"encoder_parameters": {"encode": 1000}, "encoder_macs_per_pixel": {"encode": 500.0}}
    text = with_paper([result(costs=costs)], "DIV2K")
    assert "| mine | AEIC-ME DIV2K lambda 8 | 0.0160, 0.0165 | -, 0.1879" in text
    assert "| mine | 1,000, 55,910,000 | 500, 204,260 |" in text


def test_compare_writes_it(make_run, tmp_path, capfd):
    run = make_run("teacher", settings={"objective": {"rate": 2.0, "mse": 8.0}, "loss": None})
    assert main(["compare", str(run), "-o", str(tmp_path / "out"), "--with-paper"]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "settings that differ from `experiments/paper/me_stage1.yaml`" in text
    assert "| objective.mse | 8 | 2 |" in text
    assert "| starts from | random weights | SD-Turbo |" in text
