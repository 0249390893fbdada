"""No setting is accepted and does less than it says: each is changed once, and what it is of must come out otherwise.

A setting has one line in a table below; one without a line fails. `Change` says the value, what must be set beside it
for it to count, and the words of the refusal where it cannot hold here. All must be seen in the composed settings that
a run's record keeps; all but those of `RECORD_ONLY` also in what is built or computed.
"""

import hashlib
import inspect
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from aeic_lightning.config import flat
from aeic_lightning.errors import RunError, UserError
from aeic_lightning.losses import objective as objectives
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.tap_term import TapMatch
from aeic_lightning.models.aeic import AEIC, AEICOutput
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.codec.context import QuadtreeContext
from aeic_lightning.models.decoder import DecoderConfig, RestorationConfig, UNetConfig, VAEConfig
from aeic_lightning.models.decoder.config import PretrainedConfig
from aeic_lightning.models.decoder.tiling import TilingConfig
from aeic_lightning.models.layers import HyperAnalysis, HyperSynthesis
from aeic_lightning.models.random_model import save
from aeic_lightning.study.experiment import experiment_settings
from aeic_lightning.systems import CompressionSystem, OptimizationConfig, TeacherSystem
from aeic_lightning.systems.start import StartFrom
from datamodules import ImageFolder
from datamodules.base import ImageDataModule
from tests.conftest import SmoothImages, quiet_trainer, small_codec, small_decoder


@dataclass(frozen=True)
class Change:
    """Another value of a setting; `beside` holds in both runs that are compared, `also` in the changed one alone."""

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


OWN = "tests.test_settings."
RECORD_ONLY = {
    "labels": "names the run in tables and curves",
    "pretrained.unet": "a path, read when the run starts",
    "pretrained.vae": "a path, read when the run starts",
    "taps.side": "asks that the tap is on this side, and is refused if not",
}
NO_OTHER_EXPERIMENT = {
    *("labels", "write_streams", "optimization.level", "num_workers", "pin_memory", "seed"),
    *("train_dir", "val_dir", "test_dir", "init_from.path", "pretrained.unet", "pretrained.vae"),
}
"""Settings in which runs may differ and be one curve: paths, the seed, the rate, and how a run is shown or fed."""


# ---------------------------------------------------------------------- what is compared


def seen(value: Any) -> Any:
    """A value so that two of them can be compared: tensors as digests of their bytes."""
    if isinstance(value, Tensor):
        value = value.detach().contiguous()
        return tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()[:16]
    if isinstance(value, dict):
        return {str(key): seen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [seen(inner) for inner in value]
    return repr(value)


def outcome(run: Any, refused: str) -> Any:
    """What `run` gives, or the refusal that is expected."""
    if not refused:
        return seen(run())
    with pytest.raises((UserError, RunError), match=refused) as refusal:
        run()
    assert "\n" not in str(refusal.value)
    return "refused"


def check(name: str, change: Change, run: Any, path: str, bases: dict[str, Any], part: str = "model") -> None:
    """`run(settings)` differs with the setting, and so does what the run's record keeps.

    `bases` keeps what unchanged settings give, which two runs of them must give alike.
    """
    key = name.split(".")[-1]
    before, after = change.beside, change.beside | change.also | {key: change.value}

    def composed(given: dict[str, Any]) -> dict[str, Any]:
        inner: Any = given
        for word in reversed(path.split(".")) if path else ():
            inner = {word: inner}
        return {part: {"init_args": inner}}

    assert flat(composed(before)) != flat(composed(after)), f"{name}: the table's value is the one beside it"
    if name not in NO_OTHER_EXPERIMENT:
        differ = experiment_settings(composed(before)) != experiment_settings(composed(after))
        assert differ, f"{name} is left out of what tells experiments apart"
    if name in RECORD_ONLY:
        return
    base = f"{path} {before}"
    if base not in bases:
        bases[base] = outcome(lambda: run(before), "")
        assert outcome(lambda: run(before), "") == bases[base], f"{name}: the same settings give something else"
    assert bases[base] != outcome(lambda: run(after), change.refused), f"{name} does nothing"


def names_of(kind: Any, prefix: str = "") -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    return {prefix + p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


# ---------------------------------------------------------------------- the model


class OwnAnalysis(HyperAnalysis):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class OwnHyperSynthesis(HyperSynthesis):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class OwnSynthesis(nn.Sequential):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(channels, outputs, 1), nn.Upsample(scale_factor=4))


class OwnContext(QuadtreeContext):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, 24, 1)


CODEC = {
    "widths": Change([16, 8, 16, 16, 32]),
    "depths": Change([2, 1, 1, 1, 1]),
    "context_width": Change(24),
    "context_depth": Change(2),
    "synthesis_widths": Change([32, 24, 24]),
    "synthesis_depths": Change([2, 1, 1]),
    "l_T_channels": Change(16),
    "l_res_channels": Change(12),
    "skip_threshold": Change(100.0),
    "rate_levels": Change([2.0, 0.5]),
    "encoder": Change({"class_path": "tests.models.plain_encoder.PlainEncoder", "init_args": {"width": 8}}),
    "z_only": Change(True),
    "by_rows": Change(True, refused="QuadtreeContext goes over the whole image in 4 steps"),
    "start": Change("pytorch"),
    "context": Change({"class_path": OWN + "OwnContext"}),
    "h_a": Change({"class_path": OWN + "OwnAnalysis"}),
    "h_s": Change({"class_path": OWN + "OwnHyperSynthesis"}),
    "g_s": Change({"class_path": OWN + "OwnSynthesis"}),
}
PATCH = {"patch": 2, "widths": [8, 8, 16]}
TILES = {"unet_tile": 16, "unet_overlap": 0, "vae_tile": 16, "vae_overlap": 0}
DECODER = {
    "unet.widths": Change([8, 16, 16, 32]),
    "unet.heads": Change([2, 2, 2, 2]),
    "unet.layers": Change(2),
    "unet.groups": Change(2),
    "unet.attention": Change([True, True, True, True]),
    "vae.widths": Change([8, 8, 16, 16]),
    "vae.layers": Change(1),
    "vae.groups": Change(2),
    "vae.attention": Change(False),
    "vae.patch": Change(4, PATCH, also={"widths": [8, 16]}),
    "vae.blend": Change(8, PATCH),
    "vae.restoration": Change({"width": 8, "layers": 1}, PATCH | {"patch": 4, "widths": [8, 16]}),
    "pretrained.unet": Change("elsewhere"),
    "pretrained.vae": Change("elsewhere"),
    "pretrained.rank": Change(4, {"rank": 2}),
    "pretrained.alpha": Change(4.0, {"rank": 2}),
    "tiling.unet_tile": Change(24, TILES),
    "tiling.unet_overlap": Change(8, TILES),
    "tiling.vae_tile": Change(24, TILES),
    "tiling.vae_overlap": Change(8, TILES),
    "gradient_checkpointing": Change(True),
}
PARTS = {"unet": UNetConfig, "vae": VAEConfig, "pretrained": PretrainedConfig, "tiling": TilingConfig}


def built(codec: CodecConfig, decoder: DecoderConfig) -> dict[str, Any]:
    """First weights, scalings of adapters, what comes out of one image, and how much a training step keeps."""
    torch.manual_seed(0)
    model = AEIC(codec, decoder).eval()
    scalings = [module.scaling for module in model.modules() if hasattr(module, "scaling")]
    if decoder.pretrained:
        return {"shapes": [tuple(p.shape) for p in model.parameters()], "scalings": scalings}
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # what starts at zero is to be seen as well
            parameter.add_(0.02 * torch.randn_like(parameter))
        for parameter in model.codec.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x = image(256 if decoder.tiling else 128)
    with torch.no_grad():
        output = model(x)
    kept = []
    if not decoder.tiling:
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)), lambda t: t):
            model.train()(x)
    return {"state": model.state_dict(), "x_hat": output.x_hat, "bits": output.bits_estimate, "kept": len(kept)}


@cache
def image(size: int, number: int = 1) -> Tensor:
    return torch.stack([SmoothImages(number, size)[i]["image"] for i in range(number)])


def test_every_setting_of_the_codec():
    assert set(CODEC) == {f.name for f in fields(CodecConfig)}
    bases: dict[str, Any] = {}
    for name, change in CODEC.items():
        check(name, change, lambda given: built(replace(small_codec(), **given), small_decoder()), "codec", bases)


def test_every_setting_of_the_decoder():
    nested = {f"{part}.{f.name}" for part, kind in PARTS.items() for f in fields(kind)}
    assert set(DECODER) == nested | {f.name for f in fields(DecoderConfig)} - set(PARTS)
    bases: dict[str, Any] = {}
    for name, change in DECODER.items():
        part = name.partition(".")[0]

        def run(given: dict[str, Any], part: str = part) -> Any:
            decoder = small_decoder()
            own = getattr(decoder, part)
            if part in PARTS:
                given |= {k: RestorationConfig(**given[k]) for k in given if k == "restoration"}
                given = {part: PARTS[part](**(vars(own) if own else {}) | given)}
            return built(small_codec(), replace(decoder, **given))

        check(name, change, run, "decoder" + (f".{part}" if part in PARTS else ""), bases)


# ---------------------------------------------------------------------- the system

OPTIMIZATION = {
    "learning_rates": Change([(0, 1e-4)]),
    "schedule": Change("cosine"),
    "final_learning_rate": Change(5e-4, {"schedule": "cosine"}),
    "decay_steps": Change(1),
    "warmup_steps": Change(4),
    "weight_decay": Change(0.5),
    "gradient_clip": Change(1e-5),
    "ema": Change(0.5),
    "freeze": Change(["codec.g_s"]),
    "level": Change(1.0, {"rate_levels": [2.0, 0.5]}),
    "compile": Change("nothing", refused="optimization: compile is true, false or one of"),
    "cuda_graph": Change(True, refused="optimization.cuda_graph needs a GPU"),
    "bfloat16": Change(True),
    "shard_base": Change(True, refused="optimization.shard_base spreads the frozen base"),
    "accumulate": Change(2),
    "on_nonfinite": Change("skip", {"broken": True}),
}
SYSTEM = {
    "write_streams": Change(False),
    "labels": Change({"arm": "enc"}),
}
START = {
    "path": Change("other"),
    "only": Change(["codec.h_a"]),
    "partial": Change(True, {"misfit": True}),
}
SECOND_PLAYER = {"learning_rate": Change(1e-3), "updates": Change("separate")}


def system(objective: Any = None, rate_levels: Any = None, optimization: Any = None, **given: Any) -> TeacherSystem:
    torch.manual_seed(0)
    codec = replace(small_codec(), rate_levels=rate_levels)
    given_rates: dict[str, Any] = {"learning_rates": [(0, 1e-3)]}
    settings = OptimizationConfig(**given_rates | (optimization or {}))
    return TeacherSystem(codec, small_decoder(), objective or {"rate": 0.8, "mse": 2.0}, settings, **given)


def trained(folder: Any, optimization: dict[str, Any], **given: Any) -> Any:
    """Weights, averages and scalars after two updates of a small model."""
    optimization = dict(optimization)
    levels, broken = optimization.pop("rate_levels", None), optimization.pop("broken", False)
    made = system(rate_levels=levels, optimization=optimization, **given)
    x = image(128, 4).clone()
    x[0] += float("nan") if broken else 0.0
    batches: Any = [{"image": x[i : i + 1], "name": [str(i)]} for i in range(4)]
    trainer = quiet_trainer(folder, 2, log_every_n_steps=1)
    torch.manual_seed(0)
    try:
        trainer.fit(made, torch.utils.data.DataLoader(batches, batch_size=None))
    except RunError as error:
        return {"stopped": str(error)}
    average = made.average.__dict__ if made.average else {}
    return {
        "state": made.state_dict(),
        "average": [value for value in average.values() if isinstance(value, dict)],
        "logged": dict(trainer.callback_metrics),
        "groups": [{k: v for k, v in g.items() if k != "params"} for o in trainer.optimizers for g in o.param_groups],
    }


def test_every_setting_of_the_optimization(tmp_path):
    assert set(OPTIMIZATION) == {f.name for f in fields(OptimizationConfig)}
    bases: dict[str, Any] = {}
    for name, change in OPTIMIZATION.items():
        check(f"optimization.{name}", change, lambda given: trained(tmp_path, given), "optimization", bases)


def test_every_setting_of_the_system(tmp_path):
    elsewhere = {"objective", "optimization"}  # have tables of their own, as the parts have
    assert set(SYSTEM) | elsewhere | {"model", "start", "teacher"} == names_of(CompressionSystem)
    assert elsewhere | {"codec", "decoder", "init_from"} == names_of(TeacherSystem)

    def validated(given: dict[str, Any]) -> Any:
        with torch.no_grad():
            return system(**given).eval().validation_step({"image": image(128), "name": ["a"]}, 0)["bytes"]

    for name, change in SYSTEM.items():
        check(name, change, validated, "", {})


def test_every_setting_of_a_warm_start(tmp_path):
    assert set(START) == {f.name for f in fields(StartFrom)}
    for number, name in enumerate(("earlier", "other")):
        torch.manual_seed(10 + number)
        save(AEIC(small_codec(), small_decoder()), tmp_path / name)
    save(AEIC(replace(small_codec(), context_width=24), small_decoder()), tmp_path / "misfit")

    def started(given: dict[str, Any]) -> Any:
        given = {"path": "earlier"} | given
        given["path"] = str(tmp_path / ("misfit" if given.pop("misfit", False) else given["path"]))
        made = system(init_from=given)
        try:
            made.load_start()
        except UserError as error:
            return str(error)
        return made.state_dict()

    assert seen(started({})) != seen(system().state_dict()), "init_from does nothing"
    for name, change in START.items():
        check(f"init_from.{name}", change, started, "init_from", {})


# ---------------------------------------------------------------------- the objective

ENTRY = {"weight": Change(0.3), "warmup_steps": Change(4), "share": Change(0.5)}
WITH_TARGET = {"target": 0.2}
TERMS = {
    "rate": {"target": Change(0.2), "settle": Change(7, WITH_TARGET)},
    "mse": {},
    "chroma": {},
    "lpips": {"backbone": Change("alex")},
    "edge_dists": {
        "backbone": Change("vgg"),
        "form": Change("released"),
        "whole": Change(True, {"size": 232}),  # above one patch of 224
    },
    "semantic": {"backbone": Change("clip")},
    "adversarial": {
        "backbone": Change("dinov3"),
        "learning_rate": SECOND_PLAYER["learning_rate"],
        "real_label": Change(0.8),
        "updates": SECOND_PLAYER["updates"],
        "form": Change("released"),
    },
    "L_enc": {
        "side": Change("decoder"),
        "taps": Change(["y"]),
        "projects": Change(False, {"taps": ["y"]}, refused="channels in the student"),
    },
    "L_dec": {
        "side": Change("encoder"),
        "taps": Change(["h_0"]),
        "projects": Change(False, {"taps": ["h_0"]}),
    },
    "cosine": {"side": Change("decoder"), "taps": Change(["y"])},
    "attention": {"side": Change("decoder"), "taps": Change(["y"])},
    "relational": {
        "side": Change("decoder", {"side": "encoder"}),
        "taps": Change(["y"]),
        "distance_weight": Change(3.0),
        "angle_weight": Change(5.0),
        "examples": Change(8),
    },
}
TAP = {
    "tap": Change("z", {"tap": "y"}),
    "side": Change("encoder", {"tap": "y"}),
    "weight": Change(3.0, {"tap": "y"}),
    "teacher_tap": Change("y_hat", {"tap": "y"}),
    "normalise": Change(True, {"tap": "y"}),
}
SCALE_FREE = {"attention", "relational"}


@pytest.fixture(scope="module")
def compared() -> Any:
    """compared(name, settings): a term between a student and a wider teacher: its value, gradients and scalars."""
    torch.manual_seed(0)
    teacher = AEIC(small_codec(), small_decoder())
    student = AEIC(replace(small_codec(), widths=[8, 8, 8, 16, 16]), small_decoder())
    taps = {}
    with torch.no_grad():
        taps["teacher"], taps["student"] = (model(image(128, 2)).taps for model in (teacher, student))

    def run(name: str, settings: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        settings = dict(settings)
        x = image(settings.pop("size", 128), 2)
        objective = Objective({name: {"weight": 1.0} | settings}).train()
        objective.bind(student, teacher)
        leaves = {tap: value.clone().requires_grad_() for tap, value in taps["student"].items()}
        x_hat = (0.8 * x + 0.1 * torch.randn(x.shape)).requires_grad_()
        bits = torch.tensor([9000.0, 20000.0], requires_grad=True)
        output = AEICOutput(x_hat, bits, None, None, leaves, None, None)  # pyright: ignore[reportArgumentType]
        torch.manual_seed(1)
        found: list[Any] = []
        for step in (1, 2) if name == "rate" else (1,):  # its search depends on the updates so far
            total, terms = objective({"image": x}, output, taps["teacher"], step)
            found.append((total, terms))
            objective.updated(10)
        found[-1][0].backward()
        read = [x_hat, bits, *leaves.values(), *objective.parameters()]
        return {"found": found, "gradients": [leaf.grad for leaf in read if leaf.grad is not None]}

    return run


def test_every_term_has_lines_and_every_setting_of_it_one():
    assert set(TERMS) == set(objectives.SHIPPED)
    for name, (kind, _) in objectives.SHIPPED.items():
        assert set(TERMS[name]) == names_of(kind), name
    known = {f.name for f in fields(objectives.Entry)} - {"name", "kind", "arguments"}
    assert set(ENTRY) == known
    assert set(TAP) == {f.name for f in fields(TapMatch)}


@pytest.mark.parametrize("name", TERMS)
def test_every_setting_of_a_term(name, compared, tmp_path):
    kind, given = objectives.SHIPPED[name]
    bases: dict[str, Any] = {}
    for setting, change in (TERMS[name] | ENTRY).items():
        if setting == "share" and not kind.of_single_images:
            change = replace(change, refused="needs the whole batch")
        run = compared
        if setting == "backbone":

            def run(name: str, settings: dict[str, Any]) -> Any:
                try:
                    return compared(name, settings)
                except UserError as error:  # the weights of the others may be missing: it says which
                    return settings["backbone"] in str(error).lower() or pytest.fail(str(error))

        if name == "adversarial" and setting in SECOND_PLAYER:

            def run(name: str, settings: dict[str, Any]) -> Any:
                terms = {"mse": 1.0, name: {"weight": 0.1} | settings}
                return trained(tmp_path, {}, objective=terms)

        path = f"objective.{name}"
        beside = given if setting == "side" else {}
        change = replace(change, beside=beside | change.beside)
        if (name, setting) in {("rate", "weight"), ("rate", "target")}:  # the rate: other points of one curve
            assert seen(run(name, change.beside)) != seen(run(name, change.beside | {setting: change.value}))
            continue
        own = bases.setdefault("trained" if run is not compared else "compared", {})
        check(f"{name}.{setting}", change, lambda settings, run=run: run(name, settings), path, own)


@pytest.mark.parametrize("name", ["L_enc", "cosine", "attention", "relational"])
def test_every_setting_of_a_tap(name, compared):
    bases: dict[str, Any] = {}
    for setting, change in TAP.items():
        if setting == "normalise" and name in SCALE_FREE:
            change = replace(change, refused="does not depend on the scale of a tap")
        check(f"taps.{setting}", change, lambda tap: compared(name, {"taps": [tap]}), f"objective.{name}.taps", bases)


def test_a_class_of_ones_own_and_its_arguments(compared):
    path = "aeic_lightning.losses.relational.RelationalDistillation"
    own = {"class_path": path, "init_args": {"taps": ["y"]}}
    assert seen(compared("mine", own)) != seen(compared("mine", own | {"init_args": {"taps": ["z"]}}))
    other = "aeic_lightning.losses.cosine.CosineDistillation"
    assert seen(compared("mine", own)) != seen(compared("mine", own | {"class_path": other}))


# ---------------------------------------------------------------------- data

DATA = {
    "train_dir": Change("train/a"),
    "val_dir": Change("val"),
    "test_dir": Change("val"),
    "val_count": Change(2),
    "split_seed": Change(3, {"val_count": 2}),
    "folder_weights": Change({"a": 50.0}),
    "crop_size": Change(256),
    "batch_size": Change(1),
    "samples_per_epoch": Change(2),
    "crops_by_area": Change(True),
    "horizontal_flip": Change(False),
    "vertical_flip": Change(True),
    "small_images": Change("drop"),
    "max_zoom_out": Change(2.0),
    "shuffle_channels": Change(True),
    "val_max_size": Change([64, 64], {"val_dir": "val"}),
    "on_error": Change("skip", {"train_dir": "broken"}),
    "max_pixels": Change(100, refused="100 "),
    "cache": Change(True),
    "on_device": Change(True),
    "num_workers": Change(1),
    "worker_timeout": Change(70, {"num_workers": 1}),
    "pin_memory": Change(True),
    "seed": Change(1),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Any:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    sizes = {"train/a/1": (300, 280), "train/a/2": (150, 160), "train/b/3": (400, 300), "train/b/4": (100, 90)}
    for name, size in (sizes | {"val/5": (140, 150), "broken/6": (150, 150), "broken/7": (150, 150)}).items():
        file = root / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    (root / "broken/6.png").write_bytes(b"no image")
    return root


@pytest.mark.filterwarnings("ignore:skipped a training image")
def test_every_setting_of_the_data(photos, monkeypatch):
    assert set(DATA) == names_of(ImageFolder) | names_of(ImageDataModule)

    def run(given: dict[str, Any]) -> Any:
        given = {"train_dir": "train", "crop_size": 128, "batch_size": 2} | given
        given |= {key: str(photos / given[key]) for key in ("train_dir", "val_dir", "test_dir") if key in given}
        data = ImageFolder(**given)
        data.setup()
        loader = data.train_dataloader()
        options = loader.num_workers, loader.timeout, loader.pin_memory
        if loader.num_workers or loader.pin_memory:  # without starting processes, or a warning that there is no GPU
            return options
        reads = []
        assert data.train_images is not None
        read = data.train_images.read
        monkeypatch.setattr(data.train_images, "read", lambda index: reads.append(index) or read(index))
        try:
            crops = [[(batch["name"], batch.get("image", batch.get("window"))) for batch in loader] for _ in range(3)]
        except UserError as error:
            if "max_pixels" in given or "100 " in str(error):
                raise
            return str(error)
        whole = [
            [(batch["name"], batch["image"]) for batch in make()]
            for images, make in ((data.val_images, data.val_dataloader), (data.test_images, data.test_dataloader))
            if images is not None
        ]
        return options, len(reads), crops, whole

    bases: dict[str, Any] = {}
    for name, change in DATA.items():
        check(name, change, run, "", bases, part="data")
