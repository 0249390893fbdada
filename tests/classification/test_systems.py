"""The two steps of compress-and-classify."""

import copy
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.metrics import top_k_accuracy_score
from timm.data import resolve_model_data_config

from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.classification import ClassificationConfig, CrossEntropy, TransformerConfig
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.classification.losses import logits_distance
from aeic_lightning.classification.system import ClassificationOptimization, ClassificationSystem, TeacherConfig
from aeic_lightning.classification.targets import Mixup
from aeic_lightning.classification.teacher import TimmTeacher
from aeic_lightning.errors import UserError
from aeic_lightning.losses import Objective
from aeic_lightning.systems.guards import seed_batch
from callbacks.accuracy import AccuracyMetrics
from tests.classification.trained import train

SIZES = ClassificationConfig(
    encoder_widths=[8, 8, 8, 12],
    hyper_width=6,
    decoder_widths=[8, 8, 8],
    aggregate=[1, 2],
    transformer=TransformerConfig(width=24, depth=2, heads=3, grid=[4, 4], classes=10),
)
ROOM = "aeic_lightning.classification"
STEP1 = {
    "cross_entropy": {"class_path": f"{ROOM}.CrossEntropy", "label_smoothing": 0.1},
    "mse_255": {"class_path": f"{ROOM}.SquaredError255", "weight": 0.001},
}
STEP2 = {
    "rate": 1.0,
    "cross_entropy": {"class_path": f"{ROOM}.CrossEntropy", "weight": 0.3},
    "mse_255": {"class_path": f"{ROOM}.SquaredError255", "weight": 0.003},
}


def classification_system(objective=STEP1, **kwargs) -> ClassificationSystem:
    return ClassificationSystem(
        SIZES, objective, kwargs.pop("optimization", ClassificationOptimization(learning_rate=2e-3)), **kwargs
    )


# ---------------------------------------------------------------------------------------------------- the two steps


def test_step_2_goes_on_from_step_1_and_its_checkpoint_classifies(trainer, digits, tmp_path):
    first = classification_system()
    path = train(trainer, first, digits, 4, tmp_path, "step1")

    second = classification_system(STEP2, init_from=path)
    begun = {}

    class Start(AccuracyMetrics):
        def on_train_start(self, trainer, pl_module):
            begun.update(copy.deepcopy(pl_module.model.state_dict()))

    final = train(trainer, second, digits, 4, tmp_path, "step2", callbacks=[Start()])
    for name, tensor in first.model.state_dict().items():
        if not name.endswith("quantiles"):
            assert torch.equal(begun[name], tensor), name
    changed = [name for name, p in second.model.named_parameters() if not torch.equal(p, begun[name])]
    assert changed == [name for name, _ in second.model.named_parameters()]

    classifier = load_classifier(final)
    assert classifier.class_names == list("0123456789")
    batch = next(iter(digits.val_dataloader()))
    expected = second.eval().evaluate_batch(batch)["logits"]
    torch.testing.assert_close(classifier.head(classifier.model(batch["image"]).latents.y_hat), expected)


def test_step_1_leaves_the_entropy_model_alone_and_step_2_solves_its_quantiles(trainer, digits, tmp_path):
    system = classification_system()
    before = copy.deepcopy(system.model.codec.state_dict())
    train(trainer, system, digits, 2, tmp_path, "a")
    after = system.model.codec.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if not name.startswith("g_a.")}

    system = classification_system(STEP2)
    train(trainer, system, digits, 3, tmp_path, "b")
    prior = system.model.codec.prior
    cumulative = torch.sigmoid(prior.logits(prior.quantiles.detach()))
    torch.testing.assert_close(cumulative[:, 1], torch.full((6,), 0.5), atol=1e-4, rtol=0)


def test_training_lowers_the_loss_on_other_images(trainer, digits, tmp_path):
    def total(system) -> float:
        batch = next(iter(digits.val_dataloader()))
        with torch.no_grad():
            out = SimpleNamespace(**system.eval().evaluate_batch(batch))
        return Objective(STEP2)(batch, out).total.item()

    digits.setup("fit")
    system = classification_system(STEP2)
    before = total(system)
    train(trainer, system.train(), digits, 40, tmp_path, "a")
    assert total(system) < 0.85 * before


def test_learning_rate_is_a_cosine_after_a_warm_up(trainer, digits, tmp_path):
    config = ClassificationOptimization(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3)
    rates = []

    class Watch(AccuracyMetrics):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(trainer, classification_system(optimization=config), digits, 11, tmp_path, "a", callbacks=[Watch()])
    expected = [1e-2 * i / 3 for i in (1, 2, 3)]
    expected += [1e-3 + 9e-3 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]
    assert rates == pytest.approx(expected)


def test_resumed_training_equals_the_uninterrupted_one(trainer, digits, tmp_path):
    def fresh() -> ClassificationSystem:
        torch.manual_seed(1)
        return classification_system(mixup=0.8)

    class Half(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = fresh()
    train(trainer, whole, digits, 6, tmp_path, "whole", callbacks=[Half()])
    resumed = fresh()
    trainer(6, limit_val_batches=0).fit(resumed, digits, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, msg=name)


def test_the_weight_of_the_rate_rises_over_its_warm_up(trainer, digits, tmp_path):
    system = classification_system(STEP2 | {"rate": {"weight": 1.0, "warmup_steps": 4}})
    train(trainer, system, digits, 2, tmp_path, "a")
    logged = {}
    system.log_dict = logged.update
    total = system.training_step(next(iter(digits.val_dataloader())), 0).detach()
    terms = {name: logged[f"train/{name}"] for name in ("bpp_estimate", "cross_entropy", "mse_255")}
    assert terms["bpp_estimate"] > 0.1
    expected = 0.5 * terms["bpp_estimate"] + 0.3 * terms["cross_entropy"] + 0.003 * terms["mse_255"]
    torch.testing.assert_close(total, expected)


def test_the_prior_may_have_a_learning_rate_of_its_own():
    system = classification_system(
        optimization=ClassificationOptimization(learning_rate=1e-3, prior_learning_rate=1e-2)
    )
    system.trainer = type("T", (), {"estimated_stepping_batches": 10})()
    groups = system.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in system.model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        own = ["codec.prior" in names[id(p)] for p in group["params"]]
        assert all(own) if group["initial_lr"] == 1e-2 else not any(own)


def test_decay_leaves_out_what_timm_leaves_out():
    system = classification_system()
    system.trainer = type("T", (), {"estimated_stepping_batches": 10})()
    groups = system.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in system.model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert "transformer.blocks.0.mlp.fc1.weight" in decayed
    assert "codec.g_a.0.weight" in decayed
    for part in ("bias", "norm", "cls_token", "pos_embed", "prior"):
        assert not [name for name in decayed if part in name], part
    assert sum(len(group["params"]) for group in groups) == len(names)


# ---------------------------------------------------------------------------------------------------- targets


def test_targets_are_smoothed_and_mixed():
    x, label = torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    batch = {"image": x, "label": label}
    assert Mixup(5, 0.0)(batch) is batch

    logits = torch.randn(4, 5)
    smooth = 0.02 + 0.9 * torch.eye(5)[label]
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    term = CrossEntropy(label_smoothing=0.1)
    value, logged = term(batch, SimpleNamespace(logits=logits), None)
    torch.testing.assert_close(value, expected)
    assert logged["top1"] == (logits.argmax(1) == label).float().mean()

    once = Mixup(5, 0.8)(batch)
    mixed, target = once["image"], once["label"]
    share = target[0, 1]  # of image 0, which is mixed with image 3
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0))
    torch.testing.assert_close(target, share * torch.eye(5)[label] + (1 - share) * torch.eye(5)[label.flip(0)])


def test_mixing_follows_the_seed_of_the_batch_alone():
    targets = Mixup(10, 0.8)
    x, label = torch.randn(4, 3, 8, 8), torch.arange(4)

    def mixed(batch: int) -> torch.Tensor:
        seed_batch(7, batch, rank=0)
        return targets({"image": x, "label": label})["image"]

    first = [mixed(batch) for batch in range(3)]
    assert torch.equal(mixed(2), first[2])
    assert not torch.equal(first[0], first[1])
    with pytest.raises(UserError, match="even size, not 3"):
        targets({"image": x[:3], "label": label[:3]})


# ---------------------------------------------------------------------------------------------------- a timm teacher


@pytest.fixture
def teacher(tmp_path) -> TeacherConfig:
    net = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(net.state_dict(), tmp_path / "teacher.safetensors")
    return TeacherConfig("vit_tiny_patch16_224", str(tmp_path / "teacher.safetensors"))


def test_teacher_gives_timms_logits_at_its_own_normalisation(teacher):
    frozen = TimmTeacher(teacher.name, teacher.weights, 10)
    net = frozen.net
    data = resolve_model_data_config(net)
    x = torch.rand(2, 3, 224, 224)  # [0, 1]
    mean, std = (torch.tensor(data[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(frozen(2 * x - 1), net((x - mean) / std), atol=1e-4, rtol=1e-4)
        assert frozen(2 * x[..., :64, :64] - 1).shape == (2, 10)
    frozen.train()
    assert not net.training
    assert not list(frozen.parameters())


def test_distillation_adds_the_distance_of_the_logits(teacher, trainer, digits, tmp_path):
    objective = {"distillation": {"class_path": f"{ROOM}.LogitsDistillation", "weight": 2.0, "temperature": 2.0}}
    system = classification_system(objective, teacher=teacher)
    path = train(trainer, system, digits, 1, tmp_path, "a")
    assert not [name for name in torch.load(path, weights_only=True)["state_dict"] if "teacher" in name]
    batch = {name: value[:4] for name, value in next(iter(digits.val_dataloader())).items()}
    system.log_dict = lambda values: logged.update(values)
    logged = {}
    system.eval()
    total = system.training_step(batch, 0)
    with torch.no_grad():
        x = batch["image"]
        expected = logits_distance(system.model(x, quantise=False).logits, system.teacher(x), 2.0)
    torch.testing.assert_close(logged["train/distillation"], expected)
    torch.testing.assert_close(total.detach(), 2 * expected)


def test_a_trained_classifier_teaches_another(trainer, digits, tmp_path):
    """Step 1's own logits: of latents that are not quantised, as it was trained."""
    first = classification_system()
    path = train(trainer, first, digits, 2, tmp_path, "first")
    x = next(iter(digits.val_dataloader()))["image"][:4]
    teacher = TeacherConfig(checkpoint=path)
    expected = first.model.eval()(x, quantise=False).logits
    torch.testing.assert_close(teacher.build(10)(x), expected)
    objective = STEP1 | {"logits": {"class_path": f"{ROOM}.LogitsDistillation", "temperature": 2.0}}
    train(trainer, classification_system(objective, teacher=teacher), digits, 2, tmp_path, "second")
    with pytest.raises(UserError, match="holds no compress-and-classify model of 7 classes"):
        teacher.build(7)
    with pytest.raises(UserError, match="name and weights of a timm network, or a checkpoint"):
        TeacherConfig(name="vit_tiny_patch16_224", checkpoint=path).build(10)


def test_teacher_errors(teacher, tmp_path):
    with pytest.raises(UserError, match="give both or neither"):
        classification_system(teacher=teacher)
    with pytest.raises(UserError, match="give both or neither"):
        classification_system({"kl": {"class_path": f"{ROOM}.LogitsDistillation"}})
    with pytest.raises(UserError, match="timm has no model"):
        TimmTeacher("vit_huge_pencil", teacher.weights, 10)
    with pytest.raises(UserError, match="does not hold vit_tiny_patch16_224 with 7 classes"):
        TimmTeacher(teacher.name, teacher.weights, 7)
    with pytest.raises(UserError, match="cannot read weights"):
        TimmTeacher(teacher.name, str(tmp_path / "none.safetensors"), 10)


def test_another_number_of_classes_stops_the_run(trainer, digits, loader):
    sizes = copy.deepcopy(SIZES)
    sizes.transformer.classes = 7
    system = ClassificationSystem(sizes, STEP1, ClassificationOptimization())
    with pytest.raises(UserError, match="10 classes, the transformer 7"):
        trainer(1).fit(system, digits)
    with pytest.raises(UserError, match="no classes"):
        trainer(1).fit(classification_system(), loader(4))


# ---------------------------------------------------------------------------------------------------- accuracy


def test_accuracy_is_scikit_learns(trainer, digits):
    system = classification_system(STEP2)
    torch.nn.init.normal_(system.model.transformer.head.weight)
    metrics = AccuracyMetrics()
    one = trainer(1, callbacks=[metrics])
    one.validate(system, digits, verbose=False)
    logits, labels = [], []
    with torch.no_grad():
        for batch in digits.val_dataloader():
            logits.append(system.eval().evaluate_batch(batch)["logits"])
            labels.append(batch["label"])
    logits, labels = torch.cat(logits), torch.cat(labels)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(10))
        assert one.callback_metrics[f"val/top{k}"].item() == pytest.approx(expected)
        assert 0 < expected < 1
    assert len(metrics.rows) == 400
    assert set(metrics.rows[0]) >= {"top1", "top5", "psnr", "bpp_estimate"}
    (batch, *_) = digits.val_dataloader()
    sizes = {row["name"]: row["bytes"] for row in metrics.rows}
    for name, x in list(zip(batch["name"], batch["image"], strict=True))[:3]:
        assert sizes[name] == len(Bitstream(system.model).encode(x[None]))


def test_step_1_has_no_files(trainer, digits):
    metrics = AccuracyMetrics()
    trainer(1, callbacks=[metrics], limit_val_batches=1).validate(classification_system(STEP1), digits, verbose=False)
    assert "bpp" not in metrics.means
