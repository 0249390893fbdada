"""What a term of one's own may rely on: the step, names of its own, and the taps that an encoder declares."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.losses import CosineDistillation, Objective, Term
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.taps import Tap
from tests.models.plain_encoder import PlainEncoder
from tests.systems.test_compression import make

HERE = "tests.losses.test_term_interface"


class Output(NamedTuple):
    """What the terms here read."""

    x_hat: Tensor
    taps: dict[str, Tensor] | None = None


class Stepped(Term):
    """Notes the steps that it sees; its value is the error over the step."""

    seen: list[int | None]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, batch, output, teacher):
        self.seen.append(self.global_step)
        return (output.x_hat - batch["image"]).square().mean() / (1 + (self.global_step or 0))


class Tagged(Term):
    """Logs a scalar of a name that it is given."""

    def __init__(self, scalar: str) -> None:
        super().__init__()
        self.scalar = scalar

    def forward(self, batch, output, teacher):
        value = output.x_hat.mean()
        return value, {self.scalar: value}


class TappedEncoder(PlainEncoder):
    """Declares what its second convolution gives."""

    def __init__(self, width: int = 8, name: str = "mid", path: str | None = "body.2", stride: int = 4) -> None:
        super().__init__(width)
        self.taps = [Tap(name, "encoder", width, stride, path)]


def test_a_term_sees_the_step_and_a_resumed_run_continues_it(codec_config, decoder_config, loader, trainer, tmp_path):
    def system():
        made = make(codec_config, decoder_config, accumulate=2)
        made.objective = Objective({"rate": 0.8, "mine": {"class_path": f"{HERE}.Stepped"}})
        return made

    class Half(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 2

    first, second = system(), system()
    fitted = trainer(3, callbacks=[Half()])
    fitted.fit(first, loader(8))
    fitted.save_checkpoint(tmp_path / "half.ckpt")
    trainer(3).fit(second, loader(8), ckpt_path=tmp_path / "half.ckpt")
    assert first.objective.terms["mine"].seen == [0, 0, 1, 1]
    assert second.objective.terms["mine"].seen == [2, 2]


def test_no_step_outside_of_training_and_none_in_a_replayed_one():
    objective = Objective({"mine": {"class_path": f"{HERE}.Stepped"}})
    batch, output = {"image": torch.zeros(1, 3, 4, 4)}, Output(torch.ones(1, 3, 4, 4))
    assert objective(batch, output).total == 1
    assert objective(batch, output, step=3).total == 0.25
    assert objective.terms["mine"].seen == [None, 3]
    with pytest.raises(UserError, match=r"Stepped reads the step, which optimization\.cuda_graph does not replay"):
        objective(batch, output, weights=torch.ones(1))


@pytest.mark.parametrize(
    ("scalar", "other"), [("b", "objective.a"), ("x", "objective.a"), ("loss", "the training step")]
)
def test_two_scalars_of_one_name_are_refused(scalar, other):
    """Of two terms, by the term's own name or a further one, and those of the step itself."""
    first = {"class_path": f"{HERE}.Tagged", "scalar": scalar}
    objective = Objective({"a": first, "b": {"class_path": f"{HERE}.Tagged", "scalar": "x"}})
    with pytest.raises(UserError, match=rf"its scalar '{scalar}' has the name of one of {other}"):
        objective({"image": torch.zeros(1)}, Output(torch.ones(1)))


def test_two_tap_terms_of_one_class_need_labels(codec_config, decoder_config):
    path = f"{CosineDistillation.__module__}.CosineDistillation"
    objective = Objective({"a": {"class_path": path, "taps": ["y"]}, "b": {"class_path": path, "taps": ["y"]}})
    model = AEIC(codec_config, decoder_config)
    objective.bind(model, model)
    taps = {"y": torch.ones(1, 32, 2, 2)}
    with pytest.raises(UserError, match=r"objective\.b: its scalar 'distill/encoder/y\.cosine' has the name"):
        objective({"image": torch.ones(1)}, Output(torch.ones(1), taps), taps)


def own(codec_config, **arguments):
    encoder = {"class_path": f"{HERE}.TappedEncoder", "init_args": arguments}
    return replace(codec_config, widths=None, depths=None, encoder=encoder)


def test_taps_that_an_encoder_declares_are_collected(codec_config, decoder_config):
    model = AEIC(own(codec_config), decoder_config).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = nn.Sequential(*model.codec.g_a.body[:3])(x)
        assert torch.equal(model(x).taps["mid"], expected)
        found = model.compute_taps(x, ["mid", "y"])
        assert torch.equal(found["mid"], expected)
        assert torch.equal(found["y"], model.codec.g_a(x))


def test_own_taps_are_compared_with_a_teachers(codec_config, decoder_config):
    """By all taps where both have them, else by `teacher_tap`; L_enc of all leaves out what the teacher lacks."""
    student, star = AEIC(own(codec_config), decoder_config), AEIC(codec_config, decoder_config)
    objective = Objective({"L_enc": 1.0})
    objective.bind(student, star)
    assert "mid" not in objective.student_taps
    objective = Objective({"L_enc": 1.0})
    objective.bind(student, AEIC(own(codec_config, width=16), decoder_config))
    assert "mid" in objective.student_taps
    assert objective.terms["L_enc"].projections["mid"].weight.shape == (16, 8, 1, 1)
    match = {"tap": "mid", "teacher_tap": "codec.g_a.2", "weight": 2.0}
    objective = Objective({"L_enc": {"weight": 1.0, "taps": ["y", match]}})
    objective.bind(student, star)
    assert objective.teacher_taps == ["y", "codec.g_a.2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "y"}, "there is a tap 'y' already"),
        ({"path": "body.9"}, "'mid' is the output of 'body.9', which is no module of it"),
        ({"path": None}, "'mid' is the output of 'mid', which is no module"),
    ],
)
def test_a_tap_that_cannot_be_is_refused(codec_config, decoder_config, arguments, message):
    with pytest.raises(UserError, match=message):
        AEIC(own(codec_config, **arguments), decoder_config)


def test_a_tap_of_other_sizes_than_declared_is_refused(codec_config, decoder_config):
    model = AEIC(own(codec_config, stride=8), decoder_config)
    with pytest.raises(UserError, match=r"'mid' with 8 channels at stride 8, but codec\.g_a\.body\.2 gives 8 at 4"):
        Objective({"L_enc": 1.0}).bind(model, model)
