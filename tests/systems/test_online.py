"""Student and teacher trained together: what learns from what, and a resume."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.systems import OnlineDistillationSystem, OptimizationConfig, optimization

TERMS = {"rate": 0.8, "mse": 2.0, "L_enc": {"weight": 5.0, "taps": ["y", "y_hat"]}, "L_dec": 0.01}


@pytest.fixture
def make(codec_config, decoder_config):
    """make(learns, ...): a system; self-distillation if its teacher does not learn."""

    def build(learns=True, terms=TERMS, **kwargs):
        seed_everything(0, verbose=False)
        narrow = CodecConfig(**vars(codec_config) | {"widths": [8, 8, 8, 16, 16], "context_width": 8})
        kwargs |= {"teacher_codec": codec_config} if learns else {}
        return OnlineDistillationSystem(narrow, decoder_config, terms, OptimizationConfig([(0, 1e-2)]), **kwargs)

    return build


class Half(Callback):
    """Ends a run after two steps, as a kill would: not its last step."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 2


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_teacher_learns_by_its_own_loss_alone(make, loader, trainer):
    """However hard the student pulls on the taps: the teacher after two steps is the same, bit for bit."""
    teachers, students = [], []
    for weight in (0.1, 100.0):
        system = make(terms=TERMS | {"L_enc": weight})
        begun = state(system.teacher)
        fitted = trainer(2)
        fitted.fit(system, loader(2))
        teachers.append(state(system.teacher))
        students.append(state(system.model))
        assert not any(
            torch.equal(p, begun[n]) for n, p in system.teacher.named_parameters() if n.endswith("conv.weight")
        )
        assert fitted.callback_metrics["train/teacher/bpp_estimate"] > 0
    assert all(torch.equal(teachers[0][name], teachers[1][name]) for name in teachers[0])
    assert not torch.equal(students[0]["codec.g_a.0.conv.weight"], students[1]["codec.g_a.0.conv.weight"])


def test_each_is_clipped_for_itself(make, loader, trainer):
    norms = []

    class Watched(OnlineDistillationSystem):
        def configure_optimizers(self):
            (player,) = super().configure_optimizers()
            player.register_step_pre_hook(lambda optimizer, *_: norms.extend(norm(g) for g in optimizer.param_groups))
            return [player]

    def norm(group):
        return torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm().item()

    system = make()
    system.__class__ = Watched
    trainer(1).fit(system, loader(1))
    assert norms == [pytest.approx(0.1, rel=1e-3)] * 2


def test_in_self_distillation_the_teacher_is_the_average(make, loader, trainer, monkeypatch):
    monkeypatch.setattr(optimization, "QUANTILE_INTERVAL", 1)
    system = make(learns=False, teacher_decay=0.5)
    before = state(system.model)
    trainer(1).fit(system, loader(1))
    after, keep = state(system.model), 2 / 11
    for name, p in system.teacher.named_parameters():
        torch.testing.assert_close(p, keep * before[name] + (1 - keep) * after[name], rtol=1e-5, atol=1e-7)
    assert not any(p.requires_grad for p in system.teacher.parameters())
    for name, buffer in system.teacher.named_buffers():
        assert torch.equal(buffer, after[name]), "buffers are taken over, not averaged"
    assert not torch.equal(after["codec.prior.quantiles"], before["codec.prior.quantiles"])


def test_the_teachers_loss_has_its_warm_up_and_its_share_of_a_step(make, codec_config, loader, trainer):
    """Both losses go backwards divided by the batches of a step, and the teacher's lambda rises with the steps."""
    backward, totals, scales = [], [], []

    class Watched(OnlineDistillationSystem):
        def manual_backward(self, loss, *args, **kwargs):
            backward.append(loss.item())
            super().manual_backward(loss, *args, **kwargs)

        def log_at_step(self, prefix, terms):
            values = {name.removeprefix("teacher/"): value.item() for name, value in terms.items()}
            totals.append(values["loss"])
            if "teacher/loss" in terms:
                scales.append((values["loss"] - 2 * values["mse"]) / values["bpp_estimate"] / 0.8)

    system = make(terms=TERMS | {"rate": {"weight": 0.8, "warmup_steps": 4}})
    system.optimization.accumulate = 2
    system.__class__ = Watched
    trainer(2).fit(system, loader(4))
    assert backward == pytest.approx([total / 2 for total in totals], rel=1e-5)
    assert len(backward) == 8
    assert scales == pytest.approx([0, 0, 0.25, 0.25], abs=1e-3)


def test_the_teachers_quantiles_are_solved_every_so_many_steps(make, loader, trainer, monkeypatch):
    monkeypatch.setattr(optimization, "QUANTILE_INTERVAL", 2)
    system = make()
    solved = []
    monkeypatch.setattr(system.teacher.prior, "update_quantiles", lambda: solved.append(system.global_step))
    trainer(3).fit(system, loader(3))
    assert solved == [2]


@pytest.mark.parametrize("learns", [True, False])
def test_the_teacher_is_asked_at_the_students_rate_levels(make, codec_config, learns, monkeypatch):
    codec_config.rate_levels = [4.0, 1.0, 0.25]
    system = make(learns, terms=TERMS)
    monkeypatch.setattr(system, "manual_backward", lambda loss: None)
    monkeypatch.setattr(system, "log_at_step", lambda prefix, terms: None)
    x, level = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([2.0, 0.0])
    y = system.teacher_taps(x, level)["y"]
    for row in range(2):
        expected = system.teacher.codec.g_a(x[row : row + 1]) * system.teacher.codec.gains.gain(level[row : row + 1])
        torch.testing.assert_close(y[row], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learns", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one(make, loader, trainer, tmp_path, learns):
    whole = make(learns)
    trainer(4).fit(whole, loader(1))
    first = trainer(4, callbacks=[Half()])
    first.fit(make(learns), loader(1))
    assert first.global_step == 2
    first.save_checkpoint(tmp_path / "a.ckpt")
    rest = make(learns)
    trainer(4).fit(rest, loader(1), ckpt_path=tmp_path / "a.ckpt")
    resumed = rest.state_dict()
    for name, value in state(whole).items():
        assert torch.equal(value, resumed[name]), name
    assert load_model(tmp_path / "a.ckpt").codec.config.widths == [8, 8, 8, 16, 16], "readers see the student"


def test_what_cannot_be_is_said(make):
    with pytest.raises(UserError, match="no term reads the teacher"):
        make(terms={"rate": 1.0, "mse": 1.0})
    with pytest.raises(UserError, match="teacher_decay must be"):
        make(learns=False, teacher_decay=1.0)
    with pytest.raises(UserError, match="no objective of its own"):
        make(learns=False, teacher_objective={"mse": 1.0})
