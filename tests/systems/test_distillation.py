"""Teacher and students: the teacher must be there and stay as it is; each side's loss is what it says."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from aeic_lightning.errors import UserError
from aeic_lightning.losses.distillation import DistillationLoss, Pair, tap_channels
from aeic_lightning.losses.rate_distortion import LossConfig
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, StudentSystem, TeacherSystem

LOSS = LossConfig(lpips=0.0, semantic=0.0)
OPTIMIZATION = OptimizationConfig(learning_rates=[(0, 1e-2)])
ENCODER = [Pair(tap, "encoder") for tap in ("y", "z", "phi", "y_hat")]
DECODER = [Pair(tap, "decoder") for tap in ("l_T", "l_res", "l_0", *(f"h_{n}" for n in range(9)))]


@pytest.fixture
def teacher(codec_config, decoder_config, loader, trainer, tmp_path):
    """Path of a teacher trained for two steps."""
    seed_everything(3, verbose=False)
    system = TeacherSystem(codec_config, decoder_config, LOSS, OPTIMIZATION)
    fitted = trainer(2)
    fitted.fit(system, loader(2))
    fitted.save_checkpoint(tmp_path / "teacher.ckpt")
    return str(tmp_path / "teacher.ckpt")


@pytest.fixture
def student_config(codec_config) -> CodecConfig:
    """Narrower than the teacher, M = 16, so that every projection changes widths."""
    return CodecConfig(**vars(codec_config) | {"widths": [8, 8, 8, 16, 16], "context_width": 8})


def distill(student_config, decoder_config, teacher, pairs=(*ENCODER, *DECODER), **kwargs) -> DistillationSystem:
    seed_everything(0, verbose=False)
    arguments = {"teacher": teacher, "pairs": list(pairs), "beta1": 0.5, "beta2": 0.1, **kwargs}
    return DistillationSystem(student_config, decoder_config, LOSS, OPTIMIZATION, **arguments)


def test_the_teacher_is_bit_identical_after_training(student_config, decoder_config, teacher, loader, trainer):
    system = distill(student_config, decoder_config, teacher)
    net = system.teacher.net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    system.train()
    system.requires_grad_(True)
    trainer(3).fit(system, loader(3))
    assert not net.training
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_student_does_learn(student_config, decoder_config, teacher, loader, trainer):
    system = distill(student_config, decoder_config, teacher, beta1=10.0)
    taps = []

    class Watched(DistillationSystem):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            taps.append(self.trainer.callback_metrics["train/distill/L_enc"].item())

    system.__class__ = Watched
    trainer(30).fit(system, loader(1))
    assert sum(taps[-3:]) < 0.5 * sum(taps[:3])


def test_a_student_saves_itself_alone(student_config, decoder_config, teacher, loader, trainer, tmp_path):
    system = distill(student_config, decoder_config, teacher)
    fitted = trainer(1)
    fitted.fit(system, loader(1))
    fitted.save_checkpoint(tmp_path / "student.ckpt")
    names = torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in names} == {"model", "distillation"}


def test_a_missing_teacher_stops_before_step_0(student_config, decoder_config, tmp_path):
    with pytest.raises(UserError, match=r"teacher: no file .*nowhere\.ckpt; train it first"):
        distill(student_config, decoder_config, str(tmp_path / "nowhere.ckpt"))


def test_a_foreign_teacher_stops_before_step_0(student_config, decoder_config, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="is not a checkpoint of aeic_lightning"):
        distill(student_config, decoder_config, str(tmp_path / "foreign.ckpt"))


def test_taps_are_the_forward_pass(codec_config, decoder_config):
    """Hooks on the modules see what the taps say."""
    model = AEIC(codec_config, decoder_config).eval()
    seen = {}
    trunk = model.decoder.denoiser.trunk
    for name, module in {
        "y": model.codec.g_a, "z": model.codec.h_a, "l_0": model.decoder.denoiser.conv_out, "h_0": trunk.down_blocks[0],
        "h_4": trunk.mid_block, "h_8": trunk.up_blocks[3],
    }.items():  # fmt: skip
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    model.codec.g_s.register_forward_hook(lambda m, i, out: seen.update(y_hat=i[0], g_s=out))
    model.decoder.denoiser.conv_in.register_forward_hook(lambda m, i, out: seen.update(l_T=i[0]))
    with torch.no_grad():
        output = model(torch.rand(1, 3, 128, 64) * 2 - 1)
    taps = output.taps
    for name in ("y", "z", "y_hat", "l_T", "l_0", "h_4", "h_8"):
        assert torch.equal(taps[name], seen[name]), name
    assert torch.equal(taps["h_0"], seen["h_0"][0])
    assert torch.equal(torch.cat([taps["l_T"], taps["l_res"]], 1), seen["g_s"])
    assert {name: tap.shape[1] for name, tap in taps.items()} == tap_channels(codec_config, decoder_config)


def test_losses_are_mean_squares_of_projected_taps(student_config, codec_config, decoder_config):
    loss = DistillationLoss(
        [Pair("y", "encoder", 2.0), Pair("z", "encoder"), Pair("h_3", "decoder", teacher_tap="h_5")],
        tap_channels(student_config, decoder_config),
        tap_channels(codec_config, decoder_config),
    )
    student = {"y": torch.randn(2, 16, 4, 4), "z": torch.randn(2, 8, 1, 1), "h_3": torch.randn(2, 16, 2, 2)}
    teacher = {"y": torch.randn(2, 32, 4, 4), "z": torch.randn(2, 16, 1, 1), "h_5": torch.randn(2, 16, 2, 2)}
    sums, taps = loss(student, teacher)
    expected = {}
    for key, mine, theirs in (("encoder_y", "y", "y"), ("encoder_z", "z", "z"), ("decoder_h_3", "h_3", "h_5")):
        f = loss.projections[key]
        projected = torch.einsum("oi,bihw->bohw", f.weight[:, :, 0, 0], student[mine]) + f.bias[:, None, None]
        expected[key] = ((teacher[theirs] - projected) ** 2).mean()
    assert torch.allclose(taps["encoder/y"], expected["encoder_y"])
    assert torch.allclose(sums["encoder"], 2 * expected["encoder_y"] + expected["encoder_z"])
    assert torch.allclose(sums["decoder"], expected["decoder_h_3"])


def test_a_normalised_pair_does_not_see_scale():
    """Against numpy's own arithmetic, and the same whatever the scale of either tap."""
    ours, theirs = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    loss = DistillationLoss([Pair("h_0", "decoder", normalise=True)], {"h_0": 4}, {"h_0": 4})
    s, t = ours.numpy().astype(float), theirs.numpy().astype(float)
    expected = ((t / (t**2).mean() ** 0.5 - s / (s**2).mean() ** 0.5) ** 2).mean()
    for factor in (1e-3, 1.0, 1e6):
        sums, _ = loss({"h_0": ours * factor}, {"h_0": theirs / factor})
        assert sums["decoder"].item() == pytest.approx(expected, rel=1e-5)


def test_beta1_and_beta2_weigh_their_sides(student_config, decoder_config, teacher, loader):
    x = next(iter(loader(1)))["image"]
    system = distill(student_config, decoder_config, teacher, beta1=0.7, beta2=0.02).eval()
    output = system.model(x)
    total, terms = system.extra_loss(x, output)
    expected = 0.7 * terms["distill/L_enc"] + 0.02 * terms["distill/L_dec"]
    assert torch.allclose(total, expected)
    assert {name for name in terms if name.count("/") == 2} == {
        f"distill/{pair.side}/{pair.tap}" for pair in (*ENCODER, *DECODER)
    }


def test_a_side_of_weight_zero_costs_nothing(student_config, decoder_config, teacher):
    system = distill(student_config, decoder_config, teacher, beta2=0.0)
    assert system.distillation.sides == {"encoder"}
    calls = []
    system.teacher.net.decoder.register_forward_hook(lambda *_: calls.append(1))
    system.teacher.net.decoder.denoiser.register_forward_hook(lambda *_: calls.append(1))
    x = torch.zeros(1, 3, 128, 128)
    system.extra_loss(x, system.model(x))
    assert not calls


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([Pair("h_9", "decoder")], "no tap 'h_9'; did you mean h_"),
        ([Pair("yhat", "encoder")], "did you mean y_hat"),
        ([Pair("y", "decoder")], "write side: encoder"),
        ([Pair("l_0", "encoder")], "write side: decoder"),
        ([Pair("y", "encoder"), Pair("y", "encoder")], "listed twice"),
        ([], "no pairs"),
    ],
)
def test_bad_pairs_are_said_in_words(codec_config, decoder_config, pairs, message):
    channels = tap_channels(codec_config, decoder_config)
    with pytest.raises(UserError, match=message):
        DistillationLoss(pairs, channels, channels)


def test_shapes_are_compared_before_step_0(student_config, decoder_config, teacher, loader, trainer):
    pairs = [Pair("h_0", "decoder", teacher_tap="h_3")]
    system = distill(student_config, decoder_config, teacher, pairs=pairs, beta1=0.0)
    with pytest.raises(UserError, match=r"tap 'h_0' is \(\d+, \d+\) in the student but"):
        trainer(1).fit(system, loader(1))


def test_a_weight_without_pairs_is_refused(student_config, decoder_config, teacher):
    with pytest.raises(UserError, match=r"beta2 is 0\.1 but no pair has side: decoder"):
        distill(student_config, decoder_config, teacher, pairs=ENCODER)


def test_students_start_from_the_teachers_receiver(student_config, decoder_config, teacher, loader, trainer):
    seed_everything(0, verbose=False)
    started = {}

    class Watched(StudentSystem):
        def on_train_start(self):
            started.update({name: value.clone() for name, value in self.model.state_dict().items()})

    system = StudentSystem(student_config, decoder_config, LOSS, OPTIMIZATION, receiver_from=teacher)
    system.__class__ = Watched
    own = {name: value.clone() for name, value in system.model.state_dict().items()}
    trainer(1).fit(system, loader(1))
    theirs = torch.load(teacher, weights_only=True)["state_dict"]
    for name, value in started.items():
        taught = theirs[f"model.{name}"]
        if name.startswith("decoder.") or (name.startswith("codec.g_s.") and taught.shape == value.shape):
            assert torch.equal(value, taught), name
        else:
            assert torch.equal(value, own[name]), name
    assert started["codec.g_s.0.branch2.weight"].shape != theirs["model.codec.g_s.0.branch2.weight"].shape


def test_a_second_stage_keeps_projections_it_shares(student_config, decoder_config, teacher, loader, trainer, tmp_path):
    first = distill(student_config, decoder_config, teacher, pairs=ENCODER, beta2=0.0)
    fitted = trainer(2)
    fitted.fit(first, loader(2))
    fitted.save_checkpoint(tmp_path / "stage1.ckpt")
    second = distill(student_config, decoder_config, teacher, init_from=str(tmp_path / "stage1.ckpt"))
    second.load_start()
    for key, projection in first.distillation.projections.items():
        assert torch.equal(projection.weight, second.distillation.projections[key].weight)
    fresh = second.distillation.projections["decoder_l_T"]
    assert torch.equal(fresh.weight, F.pad(torch.eye(12), (0, 0, 0, 0)).reshape(12, 12, 1, 1))


def test_training_loss_is_student_plus_teacher_terms(student_config, decoder_config, teacher, loader, trainer):
    """All else equal: an arm with distillation adds exactly its terms to the control's loss."""
    totals = {}
    for arm in ("none", "both"):
        seed_everything(0, verbose=False)
        if arm == "none":
            system = StudentSystem(student_config, decoder_config, LOSS, OPTIMIZATION)
        else:
            system = distill(student_config, decoder_config, teacher)
        seed_everything(5, verbose=False)
        fitted = trainer(1)
        fitted.fit(system, loader(1))
        totals[arm] = {name: value.item() for name, value in fitted.callback_metrics.items()}
    added = 0.5 * totals["both"]["train/distill/L_enc"] + 0.1 * totals["both"]["train/distill/L_dec"]
    assert totals["both"]["train/loss"] == pytest.approx(totals["none"]["train/loss"] + added, rel=1e-4)
