"""As `test_settings.py`, for the systems that distil and for the classifier's: no setting does less than it says."""

from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm import create_model

from aeic_lightning.classification import ClassificationConfig, TransformerConfig
from aeic_lightning.classification.system import ClassificationOptimization, ClassificationSystem, TeacherConfig
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import save
from aeic_lightning.systems import DistillationSystem, OnlineDistillationSystem, OptimizationConfig, StudentSystem
from aeic_lightning.systems.teachers import FrozenTeacher, Teacher
from datamodules.labelled import SampleDigits
from tests.conftest import quiet_trainer, small_codec, small_decoder
from tests.test_settings import Change, check, image, names_of

SHARED = {"codec", "decoder", "objective", "optimization", "init_from", "write_streams", "labels"}
"""Settings of every system, which `test_settings.py` has; the last two reach these systems by `**kwargs`."""
TERMS = {"rate": 0.8, "mse": 2.0, "L_enc": {"weight": 5.0, "taps": ["y"]}}
DISTILLATION = {
    "teacher": Change("other"),
    "receiver_from": Change("other"),
    "share_base": Change(False),
    "teacher_cache": Change("taps"),
}
ONLINE = {
    "teacher_codec": Change(None),
    "teacher_objective": Change({"rate": 4.0, "mse": 1.0}),
    "teacher_decay": Change(0.05, {"teacher_codec": None}),
}
OPTIMIZATION = [(0, 1e-2)]


def batches(count: int) -> Any:
    return torch.utils.data.DataLoader(
        [{"image": image(64, 4)[i : i + 1], "name": [str(i)]} for i in range(count)], batch_size=None
    )


def trained(folder: Any, system: Any, data: Any = None, steps: int = 1, **trainer: Any) -> dict[str, Any]:
    """Weights and scalars after some updates."""
    fitted = quiet_trainer(folder, steps, log_every_n_steps=1, **trainer)
    torch.manual_seed(0)
    fitted.fit(system, batches(steps) if data is None else data)
    groups = [{k: v for k, v in g.items() if k != "params"} for o in fitted.optimizers for g in o.param_groups]
    return {"state": system.state_dict(), "logged": dict(fitted.callback_metrics), "groups": groups}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for number, name in enumerate(("first", "other")):
        torch.manual_seed(10 + number)
        save(AEIC(small_codec(), small_decoder()), folder / name)
    return folder


def test_every_setting_of_distillation(teachers, tmp_path, monkeypatch):
    assert set(DISTILLATION) | SHARED - {"write_streams", "labels"} == names_of(DistillationSystem)
    assert {"receiver_from"} == names_of(StudentSystem) & set(DISTILLATION)
    parts = []
    build = FrozenTeacher.__init__
    monkeypatch.setattr(FrozenTeacher, "__init__", lambda self, *given: (parts.append(self), build(self, *given))[1])

    def run(given: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        given = {"teacher": "first"} | given
        for name in ("teacher", "receiver_from"):
            given |= {name: str(teachers / given[name])} if name in given else {}
        given |= {"teacher_cache": str(tmp_path / "taps")} if "teacher_cache" in given else {}
        system = DistillationSystem(small_codec(), small_decoder(), TERMS, OptimizationConfig(OPTIMIZATION), **given)
        # What sharing does for a pretrained decoder: tests/models/decoder/test_shared_base.py.
        return trained(tmp_path, system) | {"share": parts[-1].share_base}

    bases: dict[str, Any] = {}
    for name, change in DISTILLATION.items():
        check(name, change, run, "", bases)


def test_every_setting_of_online_distillation(tmp_path):
    assert set(ONLINE) | SHARED - {"write_streams", "labels"} == names_of(OnlineDistillationSystem)
    terms = TERMS | {"L_enc": {"weight": 5.0, "taps": ["y_hat"]}}

    def run(given: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        given = {"teacher_codec": asdict(replace(small_codec(), context_width=24))} | given
        codec = given.pop("teacher_codec")
        given["teacher_codec"] = codec and CodecConfig(**codec)
        optimization = OptimizationConfig(OPTIMIZATION)
        return trained(tmp_path, OnlineDistillationSystem(small_codec(), small_decoder(), terms, optimization, **given))

    bases: dict[str, Any] = {}
    for name, change in ONLINE.items():
        check(name, change, run, "", bases)


# ---------------------------------------------------------------------- compress and classify

ROOM = "aeic_lightning.classification"
STEP2 = {
    "rate": 1.0,
    "cross_entropy": {"class_path": f"{ROOM}.CrossEntropy", "weight": 0.3},
    "mse_255": {"class_path": f"{ROOM}.SquaredError255", "weight": 0.003},
}
LOGITS = STEP2 | {"logits": {"class_path": f"{ROOM}.LogitsDistillation"}}
EPOCHS = {"schedule": "epochs", "warmup_epochs": 2}
CLASSIFICATION = {
    "sizes": Change({"hyper_width": 8}),
    "objective": Change(STEP2 | {"rate": 2.0}),
    "init_from": Change("earlier"),
    "teacher": Change({"checkpoint": "earlier"}, also={"objective": LOGITS}),
    "mixup": Change(0.8),
    "cutmix": Change(0.9),
    "cutmix_switch": Change(1.0, {"mixup": 0.8, "cutmix": 0.9}),
    "latents": Change("noisy"),
    "write_streams": Change(False),
    "labels": Change({"arm": "enc"}),
}
OF_TEACHER = {
    "name": Change("deit_tiny_distilled_patch16_224", {"weights": "vit.safetensors"}, refused="does not hold"),
    "weights": Change("other.safetensors", {"name": "vit_tiny_patch16_224"}),
    "checkpoint": Change("earlier", refused="name and weights of a timm network, or a checkpoint"),
}
OF_CLASSIFIER = {
    "optimizer": Change("adam"),
    "learning_rate": Change(1e-3),
    "learning_rate_batch": Change(2),
    "final_learning_rate": Change(1e-3),
    "schedule": Change("epochs"),
    "warmup_steps": Change(4),
    "warmup_epochs": Change(3, {"schedule": "epochs", "warmup_learning_rate": 1e-4}),
    "warmup_learning_rate": Change(1e-4, EPOCHS),
    "weight_decay": Change(0.5),
    "prior_learning_rate": Change(1e-4),
    "on_nonfinite": Change("skip"),
}
OF_TRAINER = {"gradient_clip_val": Change(1e-3), "accumulate_grad_batches": Change(2)}


def sizes(**given: Any) -> ClassificationConfig:
    own = {"encoder_widths": [8, 8, 8, 12], "hyper_width": 6, "decoder_widths": [8, 8, 8], "aggregate": [1]}
    transformer = TransformerConfig(width=24, depth=1, heads=3, grid=[4, 4], classes=10)
    return ClassificationConfig(**own | given, transformer=transformer)


def classifier(optimization: Any = None, objective: Any = None, **given: Any) -> ClassificationSystem:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"learning_rate": 2e-3} | (optimization or {})
    made = ClassificationOptimization(**settings)
    return ClassificationSystem(sizes(**given.pop("sizes", {})), objective or STEP2, made, **given)


def taught(folder: Any, system: Any, **trainer: Any) -> dict[str, Any]:
    data = SampleDigits(batch_size=4, samples_per_epoch=8, eval_batch_size=2)
    trainer = {"limit_val_batches": 0} | trainer
    return trained(folder, system, data, steps=3, max_epochs=6, **trainer) | {"guard": system.guard.on_nonfinite}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An earlier step 2, and two timm networks."""
    folder = tmp_path_factory.mktemp("files")
    fitted = quiet_trainer(folder, 1, limit_val_batches=0)
    torch.manual_seed(5)
    system = ClassificationSystem(sizes(), STEP2, ClassificationOptimization())
    fitted.fit(system, SampleDigits(batch_size=4, samples_per_epoch=4))
    fitted.save_checkpoint(folder / "earlier")
    for name in ("vit.safetensors", "other.safetensors"):
        save_file(create_model("vit_tiny_patch16_224", num_classes=10).state_dict(), folder / name)
    return folder


def test_every_setting_of_the_classifiers_system(files, tmp_path):
    assert set(CLASSIFICATION) | {"optimization"} == names_of(ClassificationSystem)

    def run(given: dict[str, Any]) -> Any:
        given = dict(given)
        if "init_from" in given:
            given["init_from"] = str(files / given["init_from"])
        if "teacher" in given:
            given["teacher"] = TeacherConfig(checkpoint=str(files / given["teacher"]["checkpoint"]))
        system = classifier(**given)
        return taught(tmp_path, system) | {"written": system.write_streams}

    bases: dict[str, Any] = {}
    for name, change in CLASSIFICATION.items():
        check(name, change, run, "", bases)


def test_every_setting_of_the_classifiers_optimization(tmp_path):
    assert set(OF_CLASSIFIER) == {f.name for f in fields(ClassificationOptimization)}
    bases: dict[str, Any] = {}
    for name, change in OF_CLASSIFIER.items():
        check(f"optimization.{name}", change, lambda given: taught(tmp_path, classifier(given)), "optimization", bases)
    for name, change in OF_TRAINER.items():
        check(name, change, lambda given: taught(tmp_path, classifier(), **given), "", bases, part="trainer")


def test_every_setting_of_the_classifiers_teacher(files):
    assert set(OF_TEACHER) == {f.name for f in fields(TeacherConfig)}

    def logits(given: dict[str, Any]) -> Any:
        given = {"name": "vit_tiny_patch16_224", "weights": "vit.safetensors"} | given
        given |= {name: str(files / given[name]) for name in ("weights", "checkpoint") if name in given}
        return TeacherConfig(**given).build(10)(image(64))

    for name, change in OF_TEACHER.items():
        check(f"teacher.{name}", change, logits, "teacher", {})


def test_a_part_says_what_it_is_not():
    """What a teacher of one's own leaves out is refused, not passed over."""
    for missing in (lambda: Teacher().join(None), lambda: Teacher().taps(image(64))):
        with pytest.raises(NotImplementedError):
            missing()
