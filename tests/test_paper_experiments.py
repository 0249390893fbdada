"""Every stage of experiments/paper runs for two steps, small, from files of the kinds that the real ones come in.

The frozen networks of losses and metrics are the paper's (LPIPS on VGG, DISTS, CLIP, DINOv3, Inception) with random
weights in the caches that their libraries use; the base is a Stable Diffusion by `save_pretrained`. Only widths and
counts differ.
"""

import json
import re
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from small_release import save_base, small_sizes, small_unet, small_vae
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.cli import COMMANDS, main
from aeic_lightning.config import as_override, load_config, locate
from aeic_lightning.losses.objective import read_objective
from aeic_lightning.models.backbone_files import CLIP_REPOSITORY, DINOV3_REPOSITORY, HUB_FILES
from aeic_lightning.study.sweep_file import Sweep, read_sweep
from datamodules import ImageFolder
from tests.experiment_names import all_but_few_slow, names

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "experiments" / "paper"
ORDER = ["me_stage1", "me_stage2", "se_stage1", "se_stage2", "se_stage3"]
PARTS = {"base", "me", "se", "stage1", "stage2"}
LAMBDA = 32
WIDTHS = {"me": [8, 8, 16, 16, 32], "se": [8, 8, 8, 16, 16]}


def test_every_paper_file_is_known_here():
    assert names("paper") == set(ORDER) | PARTS


@pytest.mark.parametrize("stage", ORDER)
def test_settings_that_every_stage_has_from_the_release(stage):
    """Both flips, small images dropped (its data set class); FID as in the paper: Inception on 50 images or more."""
    config = load_config([PAPER / f"{stage}.yaml"], [] if "stage1" in stage else [f"vars.lambda={LAMBDA}"])
    images = ImageFolder(**config["data"]["init_args"])
    assert (images.horizontal_flip, images.vertical_flip, images.small_images) == (True, True, "drop")
    (fid,) = (c["init_args"] for c in config["trainer"]["callbacks"] if c["class_path"].endswith("PatchFID"))
    assert (fid["backbone"], fid["patch_size"], fid["min_images"]) == ("inception", 256, 50)


def hub_folder(cache: Path, repository: str) -> Path:
    """Where `hf download` puts a repository's files."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


def save_inception(path: Path) -> None:
    """Random weights of FID's Inception, in the form of torch-fidelity's file, which it reads as it is built."""
    network = FeatureExtractorInceptionV3
    with (
        torch.device("meta"),
        mock.patch.object(torch, "load", return_value={}),
        mock.patch.object(network, "load_state_dict"),
    ):
        shapes = {name: t.shape for name, t in network("inception", ["2048"], "no file").state_dict().items()}
    # Vectors are variances among others, so above 0.
    torch.save({name: torch.randn(s) * 0.02 if len(s) > 1 else torch.rand(s) + 0.5 for name, s in shapes.items()}, path)


def thin_dinov3():
    """`timm.create_model` with a sixteenth of DINOv3's MLP: what the discriminator reads keeps its place and size."""
    make = timm.create_model
    return lambda name, **given: make(name, **given | ({"mlp_ratio": 0.25} if "dinov3" in name else {}))


@pytest.fixture
def folder(made_once) -> Path:
    return made_once("paper", prepare)


def prepare(folder: Path) -> None:
    """All that a user needs: base, backbones, photographs."""
    save_base(folder, small_unet([8, 8, 16, 16], [1, 1, 2, 2]), small_vae())

    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name, build in (("vgg", torchvision.models.vgg16), ("alex", torchvision.models.alexnet)):
        with torch.device("meta"):
            shapes = {key: t.shape for key, t in build().state_dict().items() if key.startswith("features.")}
        state = {key: torch.randn(shape) * (2 / shape[1:].numel()) ** 0.5 for key, shape in shapes.items()}
        torch.save(state, checkpoints / HUB_FILES[name][1])

    save_inception(checkpoints / HUB_FILES["inception"][1])

    clip = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=24
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(hub_folder(folder / "hub", CLIP_REPOSITORY))
    with torch.device("meta"):
        dino = thin_dinov3()("vit_base_patch16_dinov3", num_classes=0)
    state = {key: torch.randn(t.shape) * 0.02 for key, t in dino.state_dict().items()}
    save_file(state, hub_folder(folder / "hub", DINOV3_REPOSITORY) / "model.safetensors")

    photo = Image.fromarray(data.astronaut())
    for name, size in (("train", (160, 144)), ("val", (256, 256))):
        (folder / name).mkdir()
        photo.resize(size).save(folder / name / "astronaut.png")


@pytest.fixture(autouse=True)
def _weights_at_hand(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(timm, "create_model", thin_dinov3())


def words(folder: Path, stage: str) -> list[str]:
    small = small_sizes(folder / "turbo", folder / "half.ckpt")
    small["model"]["init_args"]["codec"]["widths"] = WIDTHS[stage[:2]]
    if stage in ("se_stage2", "se_stage3"):
        small["model"]["init_args"]["objective"] = {
            "adversarial": {"backbone": "lite0"}
        }  # DINOv3's 86 M once is enough
    callbacks = load_config([PAPER / f"{stage}.yaml"])["trainer"]["callbacks"]
    (place,) = (n for n, callback in enumerate(callbacks) if callback["class_path"] == "callbacks.curves.TapCurves")
    small["trainer"]["callbacks"] = {place: {"init_args": {"every_n_steps": 1}}}
    file = folder / f"small_{stage}.yaml"
    file.write_text(yaml.safe_dump(small))
    variables = {"root": folder / "runs", "data": folder / "train", "val": folder / "val", "steps": 2, "val_every": 2}
    variables |= {"lambda": LAMBDA} if "stage1" not in stage else {}
    return ["--config", str(PAPER / f"{stage}.yaml"), "--config", str(file),
            *(f"--vars.{name}={value}" for name, value in variables.items())]  # fmt: skip


STARTS = {"me_stage2": ["me_stage1"], "se_stage1": ["me_stage1"], "se_stage2": ["se_stage1", "me_stage2"],
          "se_stage3": ["se_stage2"]}  # fmt: skip


@pytest.fixture
def trained(folder, made_once, capfd):
    """trained(stage): after the stages whose checkpoints it needs under the names they gave them."""

    def fit(stage: str) -> None:
        assert main(["fit", *words(folder, stage), "--dry-run"]) == 0, "the plan knows that everything is there"
        assert "nothing is missing" in capfd.readouterr().out
        assert main(["fit", *words(folder, stage)]) == 0

    def get(stage: str) -> None:
        for earlier in STARTS.get(stage, []):
            get(earlier)
        made_once(f"paper_runs/{stage}", lambda _: fit(stage))

    return get


@pytest.mark.parametrize("stage", all_but_few_slow(ORDER, "me_stage1"))
def test_two_steps(folder, stage, trained):
    """The second player is trained by `test_two_steps` of test_experiments.py, too."""
    trained(stage)
    run = folder / "runs" / (stage if "stage1" in stage else f"{stage}_{LAMBDA}")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert not [name for name in saved["state_dict"] if "base_layer" in name or ".vae." in name]
    assert {"psnr", "lpips_alex", "dists"} <= set(json.loads((run / "metrics_val.json").read_text())["metrics"])
    assert (run / "taps.csv").is_file() == stage.startswith("se")
    assert load_model(run / "checkpoints" / "last.ckpt").codec.config.widths == WIDTHS[stage[:2]]


SWEEP = ROOT / "experiments" / "sweeps" / "paper.yaml"
LAST_CHECKPOINT = {"class_path": "callbacks.checkpoint.LastCheckpoint", "init_args": {"every_n_steps": 2}}
SMALL_LENGTHS = {"widths": {64: 8, 128: 8, 192: 8, 256: 16, 320: 16}, "synthesis_widths": {1024: 32, 768: 24, 512: 16}}


@cache
def sweep_in(root: Path) -> Sweep:
    return read_sweep(SWEEP, [f"vars.lambdas=[{LAMBDA}]", f"vars.root={root}"])


def ablations():
    """The runs of the paper's sweep that its own stages do not have, at one rate."""
    sweep = sweep_in(Path("runs/paper"))
    shipped = {stage if "stage1" in stage else f"{stage}_{LAMBDA}" for stage in ORDER}
    assert shipped <= {run.name for run in sweep.runs}
    return [run.name for run in sweep.runs if run.name not in shipped]


ABLATIONS = ablations()


def ablation(folder: Path, name: str):
    return next(run for run in sweep_in(folder / "runs").runs if run.name == name)


def fit_ablation(folder: Path, name: str) -> None:
    run = ablation(folder, name)
    settings = {key: value for key, value in run.settings.items() if key != "vars.data"} | {"vars.val": folder / "val"}
    for key, small in SMALL_LENGTHS.items():
        if (lengths := settings.get(f"model.init_args.codec.{key}")) is not None:
            settings[f"model.init_args.codec.{key}"] = [small[length] for length in lengths]
    cheap = {"adversarial": {"backbone": "lite0"}, "edge_dists": {"backbone": "lite0"}}
    terms = {"lpips": {"backbone": "lite0"}} if "stage1" in name else cheap
    small = {"model": {"init_args": {"objective": terms | {"semantic": {"backbone": "lite0"}}}}}
    small["trainer"] = {"callbacks": [LAST_CHECKPOINT], "limit_val_batches": 0}
    file = folder / f"cheap_{name}.yaml"
    file.write_text(yaml.safe_dump(small))
    stage = run.config.stem
    overrides = [f"--{as_override(key, value if key != 'vars.val' else str(value))}" for key, value in settings.items()]
    assert main(["fit", *words(folder, stage), "--config", str(file), *overrides]) == 0


@pytest.mark.parametrize("name", all_but_few_slow(ABLATIONS, "me_stride16_stage1", "se_none_stage1"))
def test_two_steps_of_the_ablations(folder, name, trained, made_once):
    """After those that it needs. Losses on EfficientNet-Lite0, no metrics: those of the paper are measured above."""

    def train(name: str) -> None:
        for needed in ablation(folder, name).needs:
            train(needed) if needed in ABLATIONS else trained(needed.removesuffix(f"_{LAMBDA}"))
        made_once(f"paper_ablations/{name}", lambda _: fit_ablation(folder, name))

    train(name)
    run = ablation(folder, name)
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    model = load_model(run.checkpoint)
    if "stride" in name:
        stride = int(name.split("stride")[1].split("_")[0])
        assert model.codec.stride == stride
    else:
        assert config["model"]["class_path"].endswith("StudentSystem")
        assert not {"L_enc", "L_dec"} & read_objective(config["model"]["init_args"]["objective"]).keys()
        start = config["model"]["init_args"]["init_from"]
        starts = {"se_none_stage2": "se_none_stage1", "se_enc_stage2": "se_stage1", "se_none_stage3": "se_none_stage2",
                  "se_enc_stage3": "se_enc_stage2"}  # fmt: skip
        assert (start is None) == (name == "se_none_stage1")
        assert (
            start is None or Path(start).parts[-3].removesuffix(f"_{LAMBDA}") == starts[name.removesuffix(f"_{LAMBDA}")]
        )


def test_the_table_of_results_names_runs_and_files_that_there_are():
    """Each row of docs/full_size.md: files are shipped, and runs are those of the sweep that the row names."""
    page = (ROOT / "docs" / "full_size.md").read_text().split("## Tables and figures")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and "table or figure" not in line]
    assert len(rows) == 17
    named = set()
    for what, commands, needs in rows:
        assert any(word in needs for word in ("runs here", "released weights", "GPUs")), what
        quoted = re.findall(r"`([^`]+)`", commands)
        files = [word for text in quoted for word in text.split() if word.endswith(".yaml")]
        for file in files:
            assert locate(ROOT / "experiments" / file), file
        for text in quoted:
            command = text.split()[0]
            assert command in COMMANDS or command.startswith((":", "paper/", "sweeps/", "me_", "se_", "step", "no_")), (
                text
            )
        runs = {text for text in quoted if text.startswith(("me_", "se_", "step", "no_")) and " " not in text}
        if runs and files:
            sweep = read_sweep(ROOT / "experiments" / files[0], []) if files[0].startswith("sweeps/") else None
            known = {re.sub(r"_(2|4|8|16|32)$", "_L", run.name) for run in sweep.runs} if sweep else {"me_stage2_L"}
            assert runs <= known, what
            named |= runs
    arms = [{re.sub(r"_(2|4|8|16|32)$", "_L", run.name) for run in read_sweep(file, []).runs}
            for file in (SWEEP, SWEEP.with_name("paper_classification.yaml"))]  # fmt: skip
    # Stage 1 of a stride and the middle of `to` are named by the stages around them.
    between = {"me_stage1", "me_stride16_stage1", "me_stride64_stage1", "se_none_stage2_L", "step2_q2",
               "no_aggregation_q2", "no_step1_q2"}  # fmt: skip
    assert named | between == set.union(*arms)


def test_plan_lists_all_that_is_not_there(folder, monkeypatch, capfd):
    """The same stage without any of the files."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "none"))
    assert main(["plan", "--config", str(PAPER / "se_stage2.yaml"), f"--vars.root={folder / 'none'}"]) == 2
    missing = capfd.readouterr().out.split("\nmissing\n")[1].splitlines()
    needed = ["sd-turbo", "halfDecoder.ckpt", "VGG16", "CLIP", "DINOv3", "AlexNet", "Inception", "init_from", "teacher",
              "train_dir", "val_dir"]  # fmt: skip
    assert len(missing) == len(needed)
    for word, line in zip(needed, missing, strict=True):
        assert word in line
        assert any(way in line for way in ("hf download", "fetch https://", "train that stage", "put the images"))
