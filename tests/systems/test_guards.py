"""The guard: losses and gradients that are not finite, rates and adversaries that collapse; seeds of batches."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from aeic_lightning.errors import RunError
from aeic_lightning.losses import Term
from aeic_lightning.losses.adversarial import ProjectedDiscriminator, discriminator_loss
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from aeic_lightning.systems.optimization import WINDOW, Guard, seed_batch

LOSS = {"rate": 0.5, "mse": 1.0}


class Poison(Term):
    """Breaks the loss or a gradient of chosen batches, counted from 0."""

    def __init__(self, batches: dict[int, str]):
        super().__init__()
        self.batches, self.batch = batches, -1

    def forward(self, batch, output, teacher):
        self.batch += 1
        kind = self.batches.get(self.batch)
        if kind == "loss":
            return output.x_hat.new_tensor(float("inf"))
        if kind == "gradient":  # sqrt has an infinite slope at 0, and 0 * inf is NaN
            return (output.x_hat * 0).sum().abs().sqrt()
        return output.x_hat.new_tensor(0.0)


def system(codec_config, decoder_config, poison, loss=LOSS, **optimization):
    objective = loss | {"extra": {"class_path": f"{__name__}.Poison", "batches": poison}}
    return TeacherSystem(codec_config, decoder_config, objective, OptimizationConfig([(0, 1e-3)], **optimization))


def weights(one):
    return {name: value.clone() for name, value in one.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", r"step 2: the loss is not finite: extra is inf on the batch of image2\. Nothing was updated"),
        ("gradient", r"step 2: the generator's gradient of model\.\S+ and of \d+ more is not finite \(the"),
    ],
)  # fmt: skip
def test_what_is_not_finite_stops_the_run_before_the_update(
    codec_config, decoder_config, loader, trainer, kind, message
):
    one = system(codec_config, decoder_config, {2: kind})
    with pytest.raises(RunError, match=message):
        trainer(5).fit(one, loader(4))
    assert all(value.isfinite().all() for value in one.state_dict().values())
    assert one.global_step == 2


class Late(Callback):
    """As on a GPU: the guard reads one step late. Keeps the weights after each step."""

    def __init__(self, late: bool = True):
        self.late, self.after = late, []

    def on_train_batch_start(self, trainer, module, *args):
        module.guard.late = self.late

    def on_train_batch_end(self, trainer, module, *args):
        self.after.append(weights(module))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", r"^step 2: the loss is not finite: extra is inf on the batch of image2\. Nothing was updated"),
        ("gradient", r"^step 2: the generator's gradient of model\.\S+ and of \d+ more is not finite \(the"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_what_is_read_late_was_not_updated_either(codec_config, decoder_config, loader, trainer, kind, message, last):
    """The run ends at the next step, or where step 2 was its last; the step in question changed nothing."""
    one, late = system(codec_config, decoder_config, {2: kind}), Late()
    with pytest.raises(RunError, match=message):
        trainer(3 if last else 5, callbacks=[late]).fit(one, loader(4))
    assert len(late.after) == 3
    torch.testing.assert_close(late.after[2], late.after[1], rtol=0, atol=0)
    torch.testing.assert_close(weights(one), late.after[1], rtol=0, atol=0)
    assert any(not torch.equal(value, late.after[1][name]) for name, value in late.after[0].items())


def test_no_checkpoint_follows_a_step_that_was_left_out(codec_config, decoder_config, loader, trainer, tmp_path):
    class Saves(Late):
        def on_train_batch_end(self, trainer, module, *args):
            trainer.save_checkpoint(tmp_path / f"{module.global_step}.ckpt")

    with pytest.raises(RunError, match="step 2: the loss is not finite"):
        trainer(5, callbacks=[Saves()]).fit(system(codec_config, decoder_config, {2: "loss"}), loader(4))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["1.ckpt", "2.ckpt"]


def test_a_run_that_is_watched_late_is_the_same(codec_config, decoder_config, loader, trainer):
    runs = []
    for late in (False, True):
        torch.manual_seed(0)
        one = system(codec_config, decoder_config, {}, accumulate=2)
        fitted = trainer(2, callbacks=[Late(late)])
        fitted.fit(one, loader(4))
        runs.append((weights(one), fitted.callback_metrics, one.guard.updates))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-6, atol=0)


def test_a_late_guard_waits_for_nothing(guard, monkeypatch):
    """On tensors that have no numbers: to ask for one fails."""
    one, optimizer, called = guard(), SimpleNamespace(), []
    event = SimpleNamespace(record=lambda: called.append("record"), synchronize=lambda: called.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    one.system, one.late = SimpleNamespace(device=torch.device("cuda"), global_step=0), True
    with FakeTensorMode(), torch.no_grad():
        weight = nn.Parameter(torch.empty(3, device="cuda"))
        weight.grad = torch.empty(3, device="cuda")
        one.see({"loss": torch.empty((), device="cuda")}, ["a"])
        one.queue([("weight", weight)], optimizer)
        assert optimizer.found_inf.is_cuda
        assert called == ["record"]
        with pytest.raises(DataDependentOutputException):
            one.settle()
        assert called == ["record", "synchronize"]
        one.late = False
        with pytest.raises(DataDependentOutputException):
            one.see({"loss": torch.empty((), device="cuda")}, ["a"])


def test_a_guard_is_late_where_an_update_can_be_left_out_on_a_gpu(guard):
    weight = [nn.Parameter(torch.zeros(1))]
    fused, plain = torch.optim.AdamW(weight, fused=True), torch.optim.AdamW(weight)

    def may_be(device="cuda", world_size=1, optimizers=(fused,), on_nonfinite="stop"):
        one = guard(on_nonfinite=on_nonfinite)
        strategy = SimpleNamespace(root_device=torch.device(device))
        trainer = SimpleNamespace(world_size=world_size, optimizers=optimizers, strategy=strategy)
        one.system = SimpleNamespace(trainer=trainer)
        return one.may_be_late()

    assert may_be()
    assert not may_be("cpu")
    assert not may_be(world_size=2)
    assert not may_be(optimizers=(plain,))
    assert not may_be(optimizers=(fused, fused))
    assert not may_be(on_nonfinite="skip")


def test_accumulated_batches_are_all_named(codec_config, decoder_config, loader, trainer):
    one = system(codec_config, decoder_config, {2: "loss"}, accumulate=2)
    with pytest.raises(RunError, match="on the batch of image2, image3"):
        trainer(5).fit(one, loader(4))


def test_skipping_leaves_the_update_out_and_counts(codec_config, decoder_config, loader, trainer, capsys, tmp_path):
    """The weights are those of a run that never had the update; both players skip it."""
    adversarial = LOSS | {"adversarial": 0.1}
    one = system(codec_config, decoder_config, {1: "gradient"}, adversarial, on_nonfinite="skip")
    before = {}

    def remember(trainer, module, *args):
        before.setdefault(trainer.fit_loop.epoch_loop.total_batch_idx, (weights(module), module.global_step))

    watch = type("Watch", (Callback,), {"on_train_batch_end": staticmethod(remember)})()
    fitted = trainer(3, callbacks=[watch])
    fitted.fit(one, loader(4))
    (first, steps), (second, steps_after) = before[0], before[1]
    players = [name for name, _ in one.named_parameters()]
    assert steps == steps_after == 1
    assert all(torch.equal(first[name], second[name]) for name in players)
    assert one.guard.skipped == 1
    assert one.global_step == 3
    assert "warning: step 1: skipped an update (1 so far)" in capsys.readouterr().err
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    again = system(codec_config, decoder_config, {}, adversarial)
    trainer(4).fit(again, loader(4), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert again.guard.skipped == 1


def test_skipping_ends_when_nothing_else_happens(codec_config, decoder_config, loader, trainer):
    one = system(codec_config, decoder_config, dict.fromkeys(range(99), "loss"), on_nonfinite="skip")
    with pytest.raises(RunError, match="20 updates in a row"):
        trainer(5).fit(one, loader(4))


@pytest.fixture
def guard(codec_config, decoder_config, trainer):
    def make(**kwargs):
        one = system(codec_config, decoder_config, {})
        one._trainer = trainer(1)
        return Guard(one, **kwargs)

    return make


def test_a_rate_that_collapses_is_said_once(guard, capsys):
    one = guard()
    for bpp in [0.1] * 10 + [5e-5] * (WINDOW - 1):
        one.see({"bpp_estimate": torch.tensor(bpp)}, ["a"])
    assert not capsys.readouterr().err
    for _ in range(WINDOW):
        one.see({"bpp_estimate": torch.tensor(5e-5)}, ["a"])
    said = capsys.readouterr().err
    assert said.count("the rate has collapsed") == 1
    assert "objective.rate" in said


def test_a_discriminator_that_wins_outright_is_said(guard, capsys):
    """A real one, on images that do not change: its heads tell noise from gradients within some fifty updates."""
    images = torch.nn.functional.interpolate(torch.randn(4, 3, 4, 4), size=(64, 64), mode="bicubic")
    noise = torch.randn(4, 3, 64, 64)
    discriminator = ProjectedDiscriminator("lite0").train()
    optimizer = torch.optim.AdamW([p for p in discriminator.parameters() if p.requires_grad], lr=0.01)
    one = guard(chance=6 * math.log(2))
    for _ in range(110):
        loss = discriminator_loss(discriminator(noise), discriminator(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.see({"discriminator": loss}, ["a"])
    said = capsys.readouterr().err
    assert said.count("the discriminator has won outright: its loss fell below 0.416") == 1
    assert "4.16 is chance" in said


def test_smoothed_labels_move_the_threshold(guard, capsys):
    """With real_label 0.9 the loss cannot fall below three times the entropy of (0.9, 0.1): 0.975."""
    one = guard(chance=4.16, least=0.975)
    for _ in range(WINDOW):
        one.see({"discriminator": torch.tensor(1.4)}, ["a"])
    assert not capsys.readouterr().err
    for _ in range(WINDOW):
        one.see({"discriminator": torch.tensor(1.0)}, ["a"])
    assert "won outright" in capsys.readouterr().err


def draws() -> tuple:
    return torch.rand(2).tolist(), np.random.random(), random.random()


def test_draws_follow_from_seed_batch_and_process_alone():
    def drawn(*key):
        seed_batch(*key)
        return draws()

    first = drawn(0, 0, 0)
    draws()
    assert drawn(0, 0, 0) == first
    others = [drawn(1, 0, 0), drawn(0, 1, 0), drawn(0, 0, 1)]
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))
