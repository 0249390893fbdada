"""Teacher and students: the teacher must be there and stay as it is; each side's loss is what it says."""

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything

from aeic_lightning.errors import UserError
from aeic_lightning.losses import FeatureDistillation, TapMatch
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import save
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, StudentSystem, TeacherSystem
from aeic_lightning.systems.teachers import TapCache

LOSS = {"rate": 0.8, "mse": 2.0}
OPTIMIZATION = OptimizationConfig(learning_rates=[(0, 1e-2)])
ENCODER = [TapMatch(tap) for tap in ("y", "z", "phi", "y_hat")]
DECODER = [TapMatch(tap) for tap in ("l_T", "l_res", "l_0", *(f"h_{n}" for n in range(9)))]


@pytest.fixture(scope="module")
def teacher(small_sizes, loader, module_trainer, tmp_path_factory):
    """Path of a teacher trained for two steps."""
    seed_everything(3, verbose=False)
    system = TeacherSystem(*small_sizes(), LOSS, OPTIMIZATION)
    fitted = module_trainer(2)
    fitted.fit(system, loader(2))
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    fitted.save_checkpoint(path)
    return str(path)


@pytest.fixture
def student_config(codec_config) -> CodecConfig:
    """Narrower than the teacher, M = 16, so that every projection changes widths."""
    return CodecConfig(**vars(codec_config) | {"widths": [8, 8, 8, 16, 16], "context_width": 8})


def distill(
    student_config, decoder_config, teacher, encoder=ENCODER, decoder=DECODER, beta1=0.5, beta2=0.1, **kwargs
) -> DistillationSystem:
    seed_everything(0, verbose=False)
    sides = {"L_enc": {"weight": beta1, "taps": encoder}, "L_dec": {"weight": beta2, "taps": decoder}}
    return DistillationSystem(student_config, decoder_config, LOSS | sides, OPTIMIZATION, teacher=teacher, **kwargs)


def objective(system, x):
    """The objective's output for images."""
    return system.objective({"image": x}, system(x), system.teacher_taps(x))


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


def test_the_teacher_is_in_evaluation_mode_while_its_taps_are_taken(
    student_config, decoder_config, teacher, loader, trainer
):
    """Afterwards is not enough: in training mode a codec takes its rate from noise, and draws it from the run's own."""
    system = distill(student_config, decoder_config, teacher)
    modes = []
    for module in system.teacher.net.modules():
        module.register_forward_pre_hook(lambda module, _: modes.append((module.training, torch.is_grad_enabled())))
    trainer(1).fit(system, loader(1))
    assert len(modes) > 100, "the teacher has run"
    assert set(modes) == {(False, False)}


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
    assert {name.split(".")[0] for name in names} == {"model", "objective"}


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
    sizes = {tap.name: (tap.channels, -(-128 // tap.stride), -(-64 // tap.stride)) for tap in model.taps}
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == sizes
    assert {tap.name for tap in model.taps if tap.side == "encoder"} == {"y", "z", "phi", "y_hat"}


@pytest.fixture
def bound(student_config, codec_config, decoder_config):
    """bound(side, taps): the term between a narrow student and a wider teacher."""

    def make(side, taps):
        term = FeatureDistillation(side, taps)
        term.bind(AEIC(student_config, decoder_config), AEIC(codec_config, decoder_config))
        return term

    return make


def value(term, student, teacher):
    return term({}, SimpleNamespace(taps=student), teacher)


def test_losses_are_mean_squares_of_projected_taps(bound):
    encoder = bound("encoder", [TapMatch("y", weight=2.0), "z"])
    decoder = bound("decoder", [{"tap": "h_3", "side": "decoder", "teacher_tap": "h_4"}])
    student = {"y": torch.randn(2, 16, 4, 4), "z": torch.randn(2, 8, 1, 1), "h_3": torch.randn(2, 16, 2, 2)}
    teacher = {"y": torch.randn(2, 32, 4, 4), "z": torch.randn(2, 16, 1, 1), "h_4": torch.randn(2, 16, 2, 2)}
    expected = {}
    for term, mine, theirs in ((encoder, "y", "y"), (encoder, "z", "z"), (decoder, "h_3", "h_4")):
        f = term.projections[mine]
        projected = torch.einsum("oi,bihw->bohw", f.weight[:, :, 0, 0], student[mine]) + f.bias[:, None, None]
        expected[mine] = ((teacher[theirs] - projected) ** 2).mean()
    total, taps = value(encoder, student, teacher)
    assert torch.allclose(taps["distill/encoder/y"], expected["y"])
    assert torch.allclose(total, 2 * expected["y"] + expected["z"])
    assert torch.allclose(value(decoder, student, teacher)[0], expected["h_3"])


def test_taps_are_joined_by_name_not_by_place(bound):
    """Crossed names, whose order is not that of the alphabet on the other side."""
    term = bound("encoder", [{"tap": "y", "teacher_tap": "phi"}, {"tap": "phi", "teacher_tap": "y", "weight": 3.0}])
    student = {name: torch.randn(2, 16, 4, 4) for name in ("y", "phi")}
    teacher = {name: torch.randn(2, 32, 4, 4) for name in ("y", "phi")}
    y, phi = (F.mse_loss(term.projections[a](student[a]), teacher[b]) for a, b in (("y", "phi"), ("phi", "y")))
    total, _ = value(term, dict(reversed(student.items())), teacher)
    assert torch.allclose(total, y + 3 * phi)


def test_a_normalised_tap_does_not_see_scale(bound):
    """Against numpy's own arithmetic, and the same whatever the scale of either tap."""
    ours, theirs = torch.randn(2, 8, 3, 5), torch.randn(2, 8, 3, 5)
    term = bound("decoder", [TapMatch("h_0", normalise=True)])
    s, t = ours.numpy().astype(float), theirs.numpy().astype(float)
    expected = ((t / (t**2).mean() ** 0.5 - s / (s**2).mean() ** 0.5) ** 2).mean()
    for factor in (1e-3, 1.0, 1e6):
        total, _ = value(term, {"h_0": ours * factor}, {"h_0": theirs / factor})
        assert total.item() == pytest.approx(expected, rel=1e-5)


def test_beta1_and_beta2_weigh_their_sides(student_config, decoder_config, teacher, loader):
    x = next(iter(loader(1)))["image"]
    system = distill(student_config, decoder_config, teacher, beta1=0.7, beta2=0.02).eval()
    out = objective(system, x)
    terms = out.terms
    student = 0.8 * terms["bpp_estimate"] + 2 * terms["mse"]
    assert torch.allclose(out.total, student + 0.7 * terms["distill/L_enc"] + 0.02 * terms["distill/L_dec"])
    sides = {"encoder": ENCODER, "decoder": DECODER}
    assert {name for name in terms if name.count("/") == 2} == {
        f"distill/{side}/{match.tap}" for side, matches in sides.items() for match in matches
    }


def test_all_taps_of_a_side_are_the_default_and_patterns_name_several(bound):
    assert bound("encoder", None).student_taps == [match.tap for match in ENCODER]
    assert bound("decoder", None).student_taps == [match.tap for match in DECODER]
    some = bound("decoder", ["l_0", {"tap": "h_*", "normalise": True, "weight": 3.0}])
    assert some.student_taps == ["l_0", *(f"h_{n}" for n in range(9))]
    assert [(match.normalise, match.weight) for match in some.matches] == [(False, 1.0)] + [(True, 3.0)] * 9


def test_a_side_of_weight_zero_costs_nothing(student_config, decoder_config, teacher):
    system = distill(student_config, decoder_config, teacher, beta2=0.0)
    assert "L_dec" not in system.objective.terms
    calls = []
    system.teacher.net.decoder.register_forward_hook(lambda *_: calls.append(1))
    system.teacher.net.decoder.denoiser.register_forward_hook(lambda *_: calls.append(1))
    objective(system, torch.zeros(1, 3, 128, 128))
    assert not calls


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["h_9"], "no tap 'h_9'; did you mean h_"),
        (["yhat"], "did you mean y_hat"),
        ([TapMatch("y", "decoder")], "'y' is on the encoder side; write side: encoder"),
        (["l_0"], "'l_0' is on the decoder side; move it to a term of that side"),
        (["y", "y"], "listed twice"),
        ([], "no taps"),
        ([{"tpa": "y"}], "is no tap: write a name, or"),
        (["codec.g_a.99"], r"the student has no tap 'codec.g_a.99'; did you mean codec\.g_a\."),
        ([TapMatch("y", teacher_tap="codec.g_a.99")], "the teacher has no tap 'codec.g_a.99'"),
        (["codec.context.g_c"], "runs 4 times a pass; a tap runs once"),
        (["codec.g_s"], "'codec.g_s' is on the decoder side"),
    ],
)
def test_bad_taps_are_said_in_words(bound, taps, message):
    with pytest.raises(UserError, match=message):
        bound("encoder", taps)


def test_any_module_is_a_tap(student_config, decoder_config, teacher, loader, trainer):
    """By its path, of either model; the value is the module's output in the one pass, and it trains."""
    x = next(iter(loader(1)))["image"]
    encoder = ["codec.g_a.0", {"tap": "codec.h_a", "teacher_tap": "z"}]
    decoder = ["decoder.denoiser.trunk.mid_block", "decoder.vae.conv_in", "decoder.denoiser.trunk.down_blocks.1"]
    system = distill(student_config, decoder_config, teacher, encoder=encoder, decoder=decoder)
    seen, passes = {}, []
    system.model.decoder.vae.register_forward_hook(lambda *_: passes.append(1))
    for net, name in ((system.model, "student"), (system.teacher.net, "teacher")):
        for path in ("codec.g_a.0", "codec.h_a", "decoder.vae.conv_in"):
            net.get_submodule(path).register_forward_hook(
                lambda m, i, out, key=(name, path): seen.__setitem__(key, out.detach())
            )
    system.train()
    terms = objective(system, x).terms
    assert len(passes) == 1
    for side, name, path in (("encoder", "L_enc", "codec.g_a.0"), ("decoder", "L_dec", "decoder.vae.conv_in")):
        f = system.objective.terms[name].projections[path.replace(".", "-")]
        expected = F.mse_loss(f(seen["student", path]), seen["teacher", path])
        assert torch.allclose(terms[f"distill/{side}/{path}"], expected)
    z = system.objective.terms["L_enc"].projections["codec-h_a"](seen["student", "codec.h_a"])
    assert torch.allclose(terms["distill/encoder/codec.h_a"], F.mse_loss(z, seen["teacher", "codec.h_a"]))
    before = {name: p.clone() for name, p in system.objective.named_parameters()}
    fitted = trainer(2)
    fitted.fit(system, loader(2))
    assert len(before) == 10
    assert not any(torch.equal(p, before[name]) for name, p in system.objective.named_parameters())
    assert "train/distill/decoder/decoder.denoiser.trunk.mid_block" in fitted.callback_metrics


def test_taps_of_other_strides_are_refused(student_config, decoder_config, teacher):
    taps = [TapMatch("h_0", teacher_tap="h_3")]
    message = r"tap 'h_0' has a position for 16 pixels in the student, but 'h_3' one for 64 in the teacher"
    with pytest.raises(UserError, match=message):
        distill(student_config, decoder_config, teacher, decoder=taps, beta1=0.0)


def test_a_teacher_that_nothing_reads_is_refused(student_config, decoder_config, teacher):
    with pytest.raises(UserError, match=r"no term reads the teacher; give L_enc or L_dec"):
        distill(student_config, decoder_config, teacher, beta1=0.0, beta2=0.0)


def test_a_student_without_teacher_cannot_distil(student_config, decoder_config, loader, trainer):
    system = StudentSystem(student_config, decoder_config, LOSS | {"L_enc": 0.5}, OPTIMIZATION)
    with pytest.raises(UserError, match="there is no teacher; train with DistillationSystem"):
        trainer(1).fit(system, loader(1))


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
    first = distill(student_config, decoder_config, teacher, beta2=0.0)
    fitted = trainer(2)
    fitted.fit(first, loader(2))
    fitted.save_checkpoint(tmp_path / "stage1.ckpt")
    second = distill(student_config, decoder_config, teacher, init_from=str(tmp_path / "stage1.ckpt"))
    second.load_start()
    for name, p in first.objective.named_parameters():
        assert torch.equal(p, second.objective.get_parameter(name))
    fresh = second.objective.terms["L_dec"].projections["l_T"]
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


def test_the_teacher_is_asked_at_the_students_rate_levels(student_config, decoder_config, tmp_path):
    levels = [4.0, 1.0, 0.25]
    teacher = AEIC(replace(student_config, rate_levels=levels), decoder_config).eval()
    path = tmp_path / "teacher.ckpt"
    save(teacher, path)
    system = distill(replace(student_config, rate_levels=levels), decoder_config, path, beta2=0.0)
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    level = torch.tensor([0.0, 2.0, 1.0])
    taps = system.teacher_taps(x, level)
    with torch.no_grad():
        for row in range(3):
            expected = system.teacher.net.codec(x[row : row + 1], level[row].item()).y
            assert torch.allclose(taps["y"][row], expected[0], atol=1e-5)
    with pytest.raises(UserError, match="rate levels"):
        distill(student_config, decoder_config, path)


def test_a_step_asks_the_teacher_at_the_levels_of_its_own_pass(student_config, decoder_config, tmp_path):
    config = replace(student_config, rate_levels=[4.0, 1.0, 0.25])
    save(AEIC(config, decoder_config).eval(), tmp_path / "teacher.ckpt")
    passed, asked = [], []

    class Watched(DistillationSystem):
        def forward(self, x, level=None):
            output = super().forward(x, level)
            passed.append(output.level)
            return output

        def teacher_taps(self, x, level=None):
            asked.append(level)
            return super().teacher_taps(x, level)

        def manual_backward(self, loss, *args, **kwargs):
            pass

    system = distill(config, decoder_config, tmp_path / "teacher.ckpt", beta2=0.0)
    system.__class__ = Watched
    system.train()
    system.both_passes({"image": torch.rand(4, 3, 64, 64) * 2 - 1})
    assert torch.equal(asked[0], passed[0])
    assert len(asked[0].unique()) > 1, "drawn, one an image"


def test_taps_are_cached_by_image_and_level(tmp_path):
    (tmp_path / "teacher.ckpt").write_bytes(b"some weights")
    cache = TapCache(tmp_path / "taps", tmp_path / "teacher.ckpt", {"y"})
    asked = []

    def compute(x, level):
        asked.append(len(x))
        return {"y": x.mean((1, 2, 3)) + (0 if level is None else 10 * level)}

    x = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    for level, expected in (([0.0, 1.0], [0, 11]), ([1.0, 0.0], [10, 1]), ([1.0, 1.0], [10, 11]), (None, [0, 1])):
        given = None if level is None else torch.tensor(level)
        assert cache.taps(x, compute, given)[0]["y"].tolist() == expected
    assert asked == [2, 2, 2], "the third call found both"


def test_cached_taps_are_those_of_one_teacher_one_choice_of_taps_and_one_precision(tmp_path):
    asked = []

    def ask(weights=b"some weights", names=("y",), low=False):
        (tmp_path / "teacher.ckpt").write_bytes(weights)
        cache = TapCache(tmp_path / "taps", tmp_path / "teacher.ckpt", set(names))
        before = len(asked)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            taps, share = cache.taps(
                torch.ones(1, 3, 4, 4), lambda x, level: asked.append(1) or {name: x.clone() for name in names}
            )
        assert set(taps) == set(names)
        assert share == 1 - (len(asked) - before)
        return len(asked) > before

    assert ask()
    assert not ask()
    assert ask(weights=b"other weights")
    assert ask(names=("y", "z"))
    assert ask(low=True)
    assert not ask(), "the first one's are still there"


def test_taps_travel_as_a_data_set_that_is_refused_where_it_does_not_fit(tmp_path):
    (tmp_path / "teacher.ckpt").write_bytes(b"some weights")
    (tmp_path / "other.ckpt").write_bytes(b"other weights")
    x = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])

    def compute(x, level):
        return {"y": 2 * x, "z": 3 * x}

    TapCache(tmp_path / "taps", tmp_path / "teacher.ckpt", {"y", "z"}, lambda: {"seed": 7}).taps(x, compute)
    (made,) = (tmp_path / "taps").iterdir()
    manifest = json.loads((made / "manifest.json").read_text())
    digest = hashlib.sha256(b"some weights").hexdigest()
    assert manifest == {"format": "aeic_lightning taps 1", "teacher": digest, "taps": ["y", "z"], "data": {"seed": 7}}
    copy = shutil.copytree(made, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(tmp_path / "taps")

    def ask(names, image=x, teacher="teacher.ckpt"):
        cache = TapCache(copy, tmp_path / teacher, names)
        return cache.taps(image, lambda x, level: pytest.fail("it asks the teacher"))

    taps, share = ask({"z"}, x.flip(0))
    assert share == 1
    assert set(taps) == {"z"}, "one of its taps is enough"
    assert torch.equal(taps["z"], 3 * x.flip(0))
    for message, given in {
        "copy has the taps of another teacher": {"names": {"y"}, "teacher": "other.ckpt"},
        "copy lacks the tap phi; it has y, z": {"names": {"y", "phi"}},
        "lacks a crop of this run, at its rate level, in float32; it was made with seed 7": {
            "names": {"y"},
            "image": x / 2,
        },
        "in float64": {"names": {"y"}, "image": x.double()},
    }.items():
        with pytest.raises(UserError) as error:
            ask(**given)
        assert message in str(error.value)
    assert len(list(copy.rglob("*.safetensors"))) == 2, "nothing is added"
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="is no manifest of taps"):
        ask({"y"})


def test_terms_of_the_latents_alone_leave_the_decoder_out(student_config, decoder_config, teacher, monkeypatch):
    """Loss and gradients are those of the whole pass, and the decoder is not run."""
    terms = {"rate": 0.8, "L_enc": {"weight": 0.5, "taps": ["y", "y_hat"]}, "L_dec": {"weight": 1.0, "taps": ["l_T"]}}
    seed_everything(0, verbose=False)
    system = DistillationSystem(student_config, decoder_config, terms, OPTIMIZATION, teacher=teacher)
    monkeypatch.setattr(type(system), "manual_backward", lambda self, loss: loss.backward())
    monkeypatch.setattr(type(system), "in_bfloat16", False)
    batch = {"image": torch.rand(2, 3, 64, 64) * 2 - 1}

    def gradients():
        system.zero_grad()
        torch.manual_seed(0)
        loss, x_hat = system.both_passes(batch, step=3)
        return loss.total, x_hat, {name: p.grad.clone() for name, p in system.named_parameters() if p.grad is not None}

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "reads_latents_alone", False)
        total, x_hat, whole = gradients()
    assert x_hat is not None
    monkeypatch.setattr(system.model.decoder, "forward", None)
    alone, nothing, lean = gradients()
    assert nothing is None
    assert torch.equal(alone, total)
    assert lean.keys() == {name for name, grad in whole.items() if not name.startswith("model.decoder")}
    assert all(torch.equal(grad, whole[name]) for name, grad in lean.items())


@pytest.mark.parametrize(
    "further", [{"mse": 1.0}, {"L_dec": 0.1}, {"L_enc": {"weight": 1.0, "taps": ["y", "codec.g_a.1"]}}]
)
def test_a_term_of_anything_else_keeps_the_decoder(student_config, decoder_config, teacher, further):
    seed_everything(0, verbose=False)
    terms = {"rate": 0.8, "L_enc": {"weight": 0.5, "taps": ["y"]}} | further
    system = DistillationSystem(student_config, decoder_config, terms, OPTIMIZATION, teacher=teacher)
    assert not system.reads_latents_alone
