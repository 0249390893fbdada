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


RUN_HAS = [
    ("model.init_args.codec.z_only", True, ("model.codec.z_only", "True", "False")),
    ("model.init_args.codec.skip_threshold", None, ("model.codec.skip_threshold", "-", "0.08")),
    (
        "model.init_args.codec.encoder",
        {"class_path": "mine.Encoder", "init_args": {"width": 16}},
        ("model.codec.encoder.init_args.width", "16", "-"),
    ),
    ("model.init_args.decoder.unet.layers", 1, ("model.decoder.unet.layers", "1", "2")),
    ("model.init_args.optimization.warmup_steps", 50, ("model.optimization.warmup_steps", "50", "0")),
    ("model.init_args.optimization.ema", 0.999, ("model.optimization.ema", "0.999", "0")),
    ("model.init_args.objective.mse", {"weight": 2.0, "share": 0.5}, ("objective.mse", "2, share 0.5", "2")),
    (
        "model.init_args.objective.mine",
        {"class_path": "aeic_lightning.losses.mse.MSE"},
        ("objective.mine", "1, class MSE", "-"),
    ),
    ("data.init_args.max_zoom_out", 2.0, ("data.max_zoom_out", "2", "1")),
    ("data.init_args.shuffle_channels", True, ("data.shuffle_channels", "True", "False")),
    ("data.class_path", "datamodules.SamplePhotos", ("data", "SamplePhotos", "ImageFolder")),
]


@pytest.mark.parametrize(("path", "value", "row"), RUN_HAS)
def test_what_the_run_has_and_the_paper_has_not_is_listed(path, value, row):
    config = load_config([PAPER / "me_stage1.yaml"])
    paper = copy.deepcopy(config)
    *parts, last = path.split(".")
    at = config
    for part in parts:
        at = at[part]
    at[last] = value
    assert row in differences(config, paper)
    assert (row[0], row[2], row[1]) in differences(paper, config), "whichever side has it"


def test_defaults_written_out_are_no_difference():
    """As the config of a run has them: LightningCLI writes every setting."""
    paper = load_config([PAPER / "se_stage2.yaml"], ["vars.lambda=8"])
    config = copy.deepcopy(paper)
    settings = config["model"]["init_args"]
    settings["codec"] |= {"z_only": False, "encoder": None, "rate_levels": None, "skip_threshold": 0.08}
    settings["decoder"]["unet"]["attention"] = None
    settings["optimization"] |= {"ema": 0.0, "warmup_steps": 0, "schedule": "constant", "freeze": [], "level": None}
    settings["objective"]["mse"] = {"weight": 2.0, "warmup_steps": 0, "share": 1.0}
    config["data"]["init_args"] |= {"max_zoom_out": 1.0, "horizontal_flip": True, "val_count": 0, "cache": True}
    assert differences(config, paper) == []


def test_the_point_is_the_one_of_the_next_rate():
    assert nearest(result(), "DIV2K").name == "AEIC-ME DIV2K lambda 8"
    assert nearest(result("distillation", 0.0040), "Kodak").name == "AEIC-SE Kodak lambda 32"
    # By ratio: 0.0077 is 1.37 times the one rate (0.00564) and the other (0.01011) is 1.31 times 0.0077.
    assert nearest(result(rate=0.0077), "Kodak").name == "AEIC-ME Kodak lambda 16"
    assert nearest(result(rate=0.0075), "Kodak").name == "AEIC-ME Kodak lambda 32"
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
