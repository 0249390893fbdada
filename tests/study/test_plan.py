"""`plan`: its counts against the system that would be built, its memory against a real pass, and the paper's stages."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from aeic_lightning import cli
from aeic_lightning.checkpoints.released import RELEASED
from aeic_lightning.config import load_config
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import objective_weights
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import PretrainedConfig, UNetConfig
from aeic_lightning.study.complexity import experiment_configs
from aeic_lightning.study.plan import check_settings, make_plan, print_plan
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, TeacherSystem

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
OBJECTIVE = {"rate": 0.8, "mse": 2.0, "adversarial": 0.1, "lpips": 1.0, "semantic": 0.1}
STAGES = ("me_stage1", "me_stage2", "se_stage1", "se_stage2", "se_stage3")


@pytest.fixture
def config(codec_config, decoder_config) -> dict:
    """An experiment that needs nothing but what is installed."""
    return {
        "model": {
            "class_path": "aeic_lightning.systems.TeacherSystem",
            "init_args": {
                "codec": asdict(codec_config),
                "decoder": asdict(decoder_config),
                "objective": dict(OBJECTIVE),
                "optimization": {},
            },
        },
        "data": {"class_path": "datamodules.SamplePhotos", "init_args": {"crop_size": 128, "batch_size": 2}},
        "trainer": {"max_steps": 1},
    }


@pytest.fixture
def plain(config) -> dict:
    """The same without the networks of a loss, which take a second to count."""
    config["model"]["init_args"]["objective"] = {"rate": 0.8, "mse": 2.0}
    return config


def trained(plan) -> int:
    return sum(part.trained for part in plan.parts)


def test_trained_parameters_are_those_of_the_optimizers(config, codec_config, decoder_config):
    plan = make_plan(config, "x.yaml")
    system = TeacherSystem(codec_config, decoder_config, OBJECTIVE, OptimizationConfig())
    optimizers = system.configure_optimizers()
    assert trained(plan) == sum(p.numel() for o in optimizers for group in o.param_groups for p in group["params"])
    assert plan.memory["AdamW"] == 8 * trained(plan)
    assert plan.missing == []


def test_activations_are_those_of_a_real_pass(plain, codec_config, decoder_config):
    """What autograd keeps on the meta device is what it keeps on a CPU."""
    plan = make_plan(plain, "x.yaml")
    model = AEIC(codec_config, decoder_config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.rand(2, 3, 128, 128))
    assert output.x_hat.requires_grad
    estimate = plan.activations["codec"] + plan.activations["decoder"]
    assert estimate == pytest.approx(sum(kept.values()), rel=0.05)


def test_checkpointing_and_low_precision_need_less(plain):
    whole = make_plan(plain, "x.yaml").activations["decoder"]
    plain["model"]["init_args"]["decoder"]["gradient_checkpointing"] = True
    checkpointed = make_plan(plain, "x.yaml").activations["decoder"]
    plain["trainer"]["precision"] = "bf16-mixed"
    assert checkpointed < 0.75 * whole
    assert make_plan(plain, "x.yaml").activations["decoder"] == checkpointed / 2


def test_distillation_counts_the_teacher_once(config, codec_config, decoder_config, tmp_path):
    teacher = AEIC(codec_config, decoder_config)
    path = tmp_path / "teacher.ckpt"
    state = {f"model.{name}": tensor for name, tensor in teacher.state_dict().items()}
    torch.save({"state_dict": state, "model_config": teacher.config}, path)
    config["model"]["class_path"] = "aeic_lightning.systems.DistillationSystem"
    sides = {"L_enc": {"weight": 0.5, "taps": ["y"]}}
    config["model"]["init_args"]["teacher"] = str(path)
    config["model"]["init_args"]["objective"] |= sides
    plan = make_plan(config, "x.yaml")
    parts = {part.name: part for part in plan.parts}
    assert parts["teacher's codec"].frozen == sum(p.numel() for p in teacher.codec.parameters())
    assert parts["teacher's decoder"].frozen == sum(p.numel() for p in teacher.decoder.parameters())
    built = DistillationSystem(codec_config, decoder_config, OBJECTIVE | sides, OptimizationConfig(), teacher=str(path))
    assert trained(plan) == sum(p.numel() for p in built.parameters() if p.requires_grad)


def test_shared_base_is_counted_once(plain, codec_config, decoder_config, tmp_path):
    unet = UNetConfig(widths=[8, 16], heads=[1, 2], layers=1, groups=4)
    decoder = replace(decoder_config, unet=unet, pretrained=PretrainedConfig(unet="none", vae="none", rank=4))
    teacher = AEIC(codec_config, decoder)
    state = {f"model.{name}": tensor for name, tensor in teacher.state_dict().items()}
    torch.save({"state_dict": state, "model_config": teacher.config}, tmp_path / "teacher.ckpt")
    plain["model"]["class_path"] = "aeic_lightning.systems.DistillationSystem"
    plain["model"]["init_args"] |= {"teacher": str(tmp_path / "teacher.ckpt"), "decoder": asdict(decoder)}
    plain["model"]["init_args"]["objective"]["L_dec"] = {"weight": 1.0, "taps": ["l_0"]}
    shared = make_plan(plain, "x.yaml")
    plain["model"]["init_args"]["share_base"] = False
    separate = make_plan(plain, "x.yaml")
    base = sum(p.numel() for n, p in teacher.decoder.named_parameters() if "base_layer" in n or n.startswith("vae."))
    norms = sum(
        p.numel()
        for n, p in teacher.decoder.denoiser.trunk.named_parameters()
        if "base_layer" not in n and ".lora_" not in n
    )
    difference = sum(p.frozen for p in separate.parts) - sum(p.frozen for p in shared.parts)
    assert difference == base + norms
    assert any("no U-Net" in line for line in shared.missing)

    plain["model"]["init_args"] |= {"share_base": True}
    plain["model"]["init_args"]["optimization"] = {"shard_base": True}
    plain["trainer"]["devices"] = 4
    spread = make_plan(plain, "x.yaml")
    saved = shared.memory["weights"] - spread.memory["weights"]
    ends = 4 * 3 / 4 * (base + norms)  # what lies before and after the blocks is whole on each
    assert 0.9 * ends < saved < ends
    assert 0 < spread.memory["gathered block of the base"] < ends


def test_exit_code_and_what_is_missing(plain, capsys):
    assert print_plan(make_plan(plain, "x.yaml")) == 0
    assert "nothing is missing" in capsys.readouterr().out
    plain["model"]["init_args"]["init_from"] = "runs/nowhere/last.ckpt"
    assert print_plan(make_plan(plain, "x.yaml")) == 2
    assert "init_from: no file runs/nowhere/last.ckpt; train that stage first" in capsys.readouterr().out


def test_a_term_of_half_of_the_crops_keeps_half(config):
    config["data"]["init_args"]["batch_size"] = 4
    for name in ("lpips", "edge_dists"):
        config["model"]["init_args"]["objective"][name] = {"weight": 1.0, "share": 0.5}
    half = make_plan(config, "x.yaml").activations
    for name in ("lpips", "edge_dists"):
        config["model"]["init_args"]["objective"][name] = 1.0
    whole = make_plan(config, "x.yaml").activations
    for name in ("lpips (lite0)", "edge_dists (lite0)"):
        assert half[name] == pytest.approx(whole[name] / 2, rel=0.01)


def test_a_shipped_teacher_is_there(capsys):
    """Named by its name alone, it is no missing file, and it is counted."""
    assert cli.main(["plan", "--config", "arms/enc_dec.yaml", "--vars.data=."]) == 0
    said = capsys.readouterr().out
    assert "nothing is missing" in said
    assert "teacher's codec" in said


def test_settings_that_fit_would_refuse_are_refused(config):
    config["model"]["init_args"]["objective"]["lpipps"] = 1
    with pytest.raises(UserError, match="lpipps"):
        make_plan(config, "x.yaml")


# ---------------------------------------------------------------------- the stages of the paper


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rate", [2, 32])
def test_stages_of_the_paper_are_the_released_models(stage, rate):
    config = load_config([PAPER / f"{stage}.yaml"], [f"vars.lambda={rate}"])
    codec, decoder = experiment_configs(config, stage)
    name = "AEIC-ME" if stage.startswith("me") else "AEIC-SE"
    assert decoder.gradient_checkpointing
    assert (codec, replace(decoder, gradient_checkpointing=False)) == RELEASED[name]
    settings = config["model"]["init_args"]
    assert objective_weights(settings)["rate"] == rate
    if settings.get("teacher") and "2" in stage:
        assert settings["teacher"].endswith(f"me_stage2_{rate}/checkpoints/last.ckpt")


@pytest.mark.parametrize("stage", STAGES)
def test_fit_takes_the_stages_of_the_paper(stage):
    check_settings(load_config([PAPER / f"{stage}.yaml"]))


def test_recipe_of_the_paper():
    """Steps, batches, rates and weights of its table."""
    stages = {stage: load_config([PAPER / f"{stage}.yaml"]) for stage in STAGES}

    def recipe(stage):
        config = stages[stage]
        settings, trainer = config["model"]["init_args"], config["trainer"]
        batch = config["data"]["init_args"]["batch_size"] * settings["optimization"]["accumulate"] * trainer["devices"]
        weights = {name: weight for name, weight in objective_weights(settings).items() if weight}
        weights = {name: weight for name, weight in weights.items() if name not in ("rate", "L_enc", "L_dec")}
        return trainer["max_steps"], batch, config["data"]["init_args"]["crop_size"], weights

    first = {"mse": 2.0, "lpips": 1.0, "semantic": 0.1}
    second = {"mse": 2.0, "edge_dists": 1.0, "semantic": 0.1, "adversarial": 0.1}
    assert recipe("me_stage1") == recipe("se_stage1") == (300_000, 8, 512, first)
    assert recipe("me_stage2") == recipe("se_stage2") == (30_000, 32, 512, second)
    assert (recipe("se_stage3")[0], recipe("se_stage3")[2:]) == (5_000, (1024, second))
    optimization = {stage: OptimizationConfig(**c["model"]["init_args"]["optimization"]) for stage, c in stages.items()}
    assert [optimization["me_stage1"].learning_rate(step) for step in (0, 279_999, 280_000)] == [1e-4, 1e-4, 5e-5]
    steps = (0, 10_000, 25_000, 28_000, 29_000)
    assert [optimization["se_stage2"].learning_rate(step) for step in steps] == [5e-5, 2e-5, 1e-5, 5e-6, 1e-6]
    weights = [objective_weights(stages[f"se_stage{n}"]["model"]["init_args"]) for n in (1, 2, 3)]
    betas = [(weight["L_enc"], weight["L_dec"]) for weight in weights]
    assert betas == [(0.5, 0.0), (0.0, 0.001), (0.0, 0.001)]
    for stage, config in stages.items():
        every, accumulate = config["trainer"]["val_check_interval"], optimization[stage].accumulate
        assert every % accumulate == 0
        assert config["trainer"]["max_steps"] * accumulate % every == 0


def test_dry_run_is_the_plan(capsys):
    words = ["--config", "tiny/teacher_stage2.yaml", "--vars.root=nowhere"]
    codes, outputs = [], []
    for command in (["plan", *words], ["fit", *words, "--dry-run"]):
        codes.append(cli.main(command))
        outputs.append(capsys.readouterr().out)
    assert codes == [2, 2]
    assert outputs[0] == outputs[1]
    assert "nowhere/teacher_stage1/checkpoints/last.ckpt" in outputs[0]
