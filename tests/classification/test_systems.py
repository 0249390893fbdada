"""The two steps of compress-and-classify."""

import copy
import dataclasses
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
from aeic_lightning.classification import (
    ClassificationConfig,
    ClassificationModel,
    CrossEntropy,
    TransformerConfig,
)
from aeic_lightning.classification import system as system_module
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.classification.losses import logits_distance
from aeic_lightning.classification.system import ClassificationOptimization, ClassificationSystem, TeacherConfig
from aeic_lightning.classification.targets import Mixup
from aeic_lightning.classification.teacher import TimmTeacher
from aeic_lightning.errors import UserError
from aeic_lightning.losses import Objective
from aeic_lightning.systems.optimization import seed_batch
from callbacks.accuracy import AccuracyMetrics
from datamodules.labelled import SampleDigits
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
    second.solve_quantiles()  # as for every reader of a checkpoint
    expected = second.eval().evaluate_batch(batch)["logits"]
    torch.testing.assert_close(classifier.head(classifier.codec.model(batch["image"]).latents.y_hat), expected)


def test_step_1_leaves_the_entropy_model_alone_and_step_2_solves_its_quantiles(trainer, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(system_module, "QUANTILE_INTERVAL", 3)
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
    rates, logged, norms = [], [], []

    class Watch(AccuracyMetrics):
        def on_after_backward(self, trainer, pl_module):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)

        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            logged.append([float(trainer.callback_metrics[f"train/{n}"]) for n in ("learning_rate", "gradient_norm")])

    train(trainer, classification_system(optimization=config), digits, 11, tmp_path, "a", callbacks=[Watch()])
    expected = [1e-2 * i / 3 for i in (1, 2, 3)]
    expected += [1e-3 + 9e-3 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]
    assert rates == pytest.approx(expected)
    assert [rate for rate, _ in logged] == pytest.approx(expected)
    assert [norm for _, norm in logged] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("schedule", [pytest.param("steps", marks=pytest.mark.slow), "epochs"])
def test_resumed_training_equals_the_uninterrupted_one(trainer, tmp_path, schedule):
    """From the middle of its second epoch, with all that is drawn in training."""
    augment = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "re_mode": "pixel"}
    digits = SampleDigits(batch_size=8, samples_per_epoch=16, augment=augment)
    warmup: dict = {"warmup_steps": 1}
    if schedule == "epochs":
        warmup = {"warmup_epochs": 1, "warmup_learning_rate": 1e-3}
    optimization = ClassificationOptimization(learning_rate=2e-3, schedule=schedule, **warmup)

    def fresh() -> ClassificationSystem:
        torch.manual_seed(1)
        return classification_system(mixup=0.8, cutmix=1.0, optimization=optimization)

    class Half(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = fresh()
    train(trainer, whole, digits, 6, tmp_path, "whole", callbacks=[Half()], max_epochs=3)
    resumed, half = fresh(), tmp_path / "half.ckpt"
    trainer(6, limit_val_batches=0, max_epochs=3).fit(resumed, digits, ckpt_path=half, weights_only=True)
    assert not torch.equal(fresh().model.g_s[0].weight, whole.model.g_s[0].weight)
    state = resumed.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, msg=name)


@pytest.mark.parametrize("start", [pytest.param(None, marks=pytest.mark.slow), "rate"])
def test_an_extended_run_is_the_longer_one_bit_for_bit(trainer, digits, tmp_path, start):
    """From 3 to 4 steps, at a rate that does not fall: a cosine's other steps depend on where it ends."""
    optimization = ClassificationOptimization(learning_rate=2e-3, final_learning_rate=2e-3)

    def run(steps: int, ckpt_path=None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        system = classification_system(STEP2 if start else STEP1, optimization=dataclasses.replace(optimization))
        one = trainer(steps, check_val_every_n_epoch=None, val_check_interval=3, limit_val_batches=1)
        one.fit(system, digits, ckpt_path=ckpt_path, weights_only=True)
        one.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return system.model.state_dict()

    run(3)
    extended, whole = run(4, tmp_path / "3.ckpt"), run(4)
    for name, tensor in whole.items():
        assert torch.equal(extended[name], tensor), name


def test_a_learning_rate_for_a_batch_is_scaled_with_it():
    """Images of all processes and of accumulated batches count; the end of the cosine stays."""
    config = ClassificationOptimization(learning_rate=1e-3, learning_rate_batch=512, final_learning_rate=1e-5)
    system = classification_system(optimization=config)
    system.trainer = SimpleNamespace(
        estimated_stepping_batches=10, max_steps=10, world_size=4, accumulate_grad_batches=2, gradient_clip_val=None,
        datamodule=SimpleNamespace(batch_size=32),
    )  # fmt: skip
    system.configure_callbacks()
    (optimizer,) = system.configure_optimizers()
    for step, expected in ((0, 1e-3 * 256 / 512), (10, 1e-5)):
        config.set_rates(optimizer, step, 10, 0)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)


def test_schedules_and_their_warm_ups():
    for settings, message in (
        ({"schedule": "epochs", "warmup_steps": 3}, "set warmup_epochs"),
        ({"warmup_epochs": 3}, "set warmup_steps"),
        ({"warmup_learning_rate": 1e-6}, "set warmup_steps"),
        ({"schedule": "days"}, "steps or epochs"),
        ({"learning_rate_batch": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            classification_system(optimization=ClassificationOptimization(**settings))
    system = classification_system(optimization=ClassificationOptimization(schedule="epochs"))
    system.trainer = SimpleNamespace(max_epochs=-1)
    with pytest.raises(UserError, match=r"set trainer\.max_epochs"):
        system.configure_optimizers()


def test_noisy_latents_are_what_the_rate_is_of():
    """In training y_hat and z_hat carry noise within half a step, and the bits are of the same values."""
    codec = classification_system(STEP2).model.codec
    x, seen = torch.randn(2, 3, 64, 64), {}
    codec.h_s.register_forward_pre_hook(lambda _, inputs: seen.update(z_hat=inputs[0]))
    z = codec.h_a(codec.g_a(x))
    latents = codec.train()(x, True, noisy=True)
    noise, z_noise = latents.y_hat - latents.y, seen["z_hat"] - z
    for drawn in (noise, z_noise):
        assert drawn.abs().max() <= 0.5 + 1e-5
        assert drawn.std() > 0.2
    mean, scale = codec.hyper_decode(seen["z_hat"], *latents.y.shape[2:])
    scale = scale.clamp(min=0.11)
    upper, lower = ((torch.distributions.Normal(mean, scale).cdf(latents.y_hat + side)) for side in (0.5, -0.5))
    expected = -(upper - lower).clamp(min=1e-9).log2().sum((1, 2, 3))
    expected = expected - codec.prior.likelihood(seen["z_hat"]).log2().sum((1, 2, 3))
    torch.testing.assert_close(latents.bits, expected, rtol=1e-4, atol=1e-2)
    rounded = codec.eval()(x, True, noisy=True)
    torch.testing.assert_close(rounded.y_hat, codec(x).y_hat)
    with pytest.raises(UserError, match="rounded or noisy"):
        classification_system(STEP2, latents="loud")


def test_step_2_trains_on_the_latents_that_it_names():
    for latents, noisy in (("rounded", False), ("noisy", True)):
        system = classification_system(STEP2, latents=latents)
        given = []
        system.model.codec.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[1:]))
        system.manual_backward = lambda loss: None
        system.both_passes({"image": torch.zeros(2, 3, 64, 64), "label": torch.tensor([0, 1]), "name": ["a", "b"]})
        assert given == [(True, noisy)]


def test_the_released_start_is_pytorchs_for_convolutions_and_timms_for_linear_layers():
    model = ClassificationModel(dataclasses.replace(SIZES, start="released"))
    bounds, normals = [], []
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            bound = module.weight[0].numel() ** -0.5  # of PyTorch, which takes dimension 1 for a transposed kernel too
            assert max(module.weight.abs().max(), module.bias.abs().max()) <= bound
            bounds += [module.weight.flatten() / bound, module.bias / bound]
        elif isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
            normals.append(module.weight.flatten())
    assert torch.cat(bounds).std().item() == pytest.approx(3**-0.5, rel=0.02)
    assert torch.cat(normals).std().item() == pytest.approx(0.02, rel=0.02)
    for weight in (model.transformer.embed.weight, model.aggregation.merge.weight, model.transformer.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    with pytest.raises(UserError, match="start is ours or released"):
        ClassificationModel(dataclasses.replace(SIZES, start="warm"))


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
    system.trainer = type("T", (), {"estimated_stepping_batches": 10, "max_steps": 10})()
    groups = system.configure_optimizers()[0].param_groups
    names = {id(p): name for name, p in system.model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        own = ["codec.prior" in names[id(p)] for p in group["params"]]
        assert all(own) if group["initial_lr"] == 1e-2 else not any(own)


def test_decay_leaves_out_what_timm_leaves_out():
    system = classification_system()
    system.trainer = type("T", (), {"estimated_stepping_batches": 10, "max_steps": 10})()
    groups = system.configure_optimizers()[0].param_groups
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


def test_cutmix_gives_each_class_the_share_of_its_pixels():
    x, label = torch.zeros(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    x += label.view(-1, 1, 1, 1)  # a pixel says whose it is
    shares = []
    for seed in range(20):
        seed_batch(seed, 0, 0)
        mixed = Mixup(5, 0.0, cutmix=1.0)({"image": x, "label": label})
        assert set(mixed["image"][0].unique().tolist()) <= {1.0, 4.0}
        own = (mixed["image"][0, 0] == 1.0).float().mean()
        expected = own * torch.eye(5)[1] + (1 - own) * torch.eye(5)[4]
        torch.testing.assert_close(mixed["label"][0], expected)
        shares.append(own.item())
    assert min(shares) < 0.5 < max(shares)


@pytest.mark.parametrize(("switch", "least", "most"), [(0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)])
def test_a_batch_has_mixup_or_cutmix(switch, least, most):
    """CutMix leaves every pixel as one of the two images had it."""
    targets, x = Mixup(4, 0.8, 1.0, switch), torch.rand(2, 3, 16, 16)
    cut = 0
    for seed in range(40):
        seed_batch(seed, 0, 0)
        mixed = targets({"image": x, "label": torch.tensor([0, 1])})["image"][0]
        cut += bool(((mixed == x[0]) | (mixed == x[1])).all())
    assert least <= cut <= most
    for bad, message in (((-1.0, 0.0), "mixup must be"), ((0.0, -1.0), "cutmix must be")):
        with pytest.raises(UserError, match=message):
            Mixup(4, *bad)
    with pytest.raises(UserError, match="cutmix_switch is a probability"):
        Mixup(4, 0.8, 1.0, 1.5)


def test_a_system_mixes_as_it_is_told():
    mix = classification_system(mixup=0.7, cutmix=0.9, cutmix_switch=0.25).mixup.mix
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.switch_prob, mix.mix_prob) == (0.7, 0.9, 0.25, 1.0)


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
    with torch.no_grad():
        x = batch["image"]
        expected = logits_distance(system.model(x, quantise=False).logits, system.teacher(x), 2.0)
    total = system.training_step(batch, 0)
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


def test_a_run_whose_steps_lightning_took_goes_on_at_its_step(trainer, digits, tmp_path):
    """A checkpoint of an earlier version counts its updates where Lightning's own steps are counted."""
    path = train(trainer, classification_system(), digits, 2, tmp_path, "new")
    checkpoint = torch.load(path, weights_only=False)
    loops = checkpoint["loops"]["fit_loop"]
    by_hand = loops["epoch_loop.manual_optimization.optim_step_progress"]
    loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = copy.deepcopy(by_hand)
    for counts in by_hand.values():
        counts |= dict.fromkeys(counts, 0)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    resumed = trainer(3, limit_val_batches=0)
    resumed.fit(classification_system(), digits, ckpt_path=tmp_path / "old.ckpt", weights_only=False)
    assert resumed.global_step == 3
    assert resumed.fit_loop.epoch_loop.total_batch_idx == 2, "the third batch, counted from 0"
