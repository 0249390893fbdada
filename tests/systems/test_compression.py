"""The shared training step: two players, accumulation, clipping, counting, starting points."""

import copy
import math

import pytest
import torch
from lightning.pytorch import seed_everything

from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.losses import adversarial
from aeic_lightning.losses.objective import Objective
from aeic_lightning.models.codec import context, latent_codec
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from callbacks.quality import QualityMetrics


def make(codec_config, decoder_config, adversarial=0.0, init_from=None, rate_warmup=0, **optimization) -> TeacherSystem:
    seed_everything(0, verbose=False)
    return TeacherSystem(
        codec_config,
        decoder_config,
        {"rate": {"weight": 0.8, "warmup_steps": rate_warmup}, "mse": 2.0, "adversarial": adversarial},
        OptimizationConfig(**{"learning_rates": [(0, 1e-3)], **optimization}),
        init_from=init_from,
    )


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_steps_are_generator_updates(codec_config, decoder_config, loader, trainer, adversarial):
    system = make(codec_config, decoder_config, adversarial)
    fitted = trainer(3)
    fitted.fit(system, loader(8))
    assert fitted.global_step == 3
    assert fitted.fit_loop.epoch_loop.batch_progress.total.completed == 3
    counts = {int(state["step"]) for optimizer in fitted.optimizers for state in optimizer.state.values()}
    assert counts == {3}


@pytest.mark.parametrize("updates", ["joint", "separate"])
def test_generator_gradients_never_reach_the_discriminator(
    codec_config, decoder_config, loader, trainer, updates, monkeypatch
):
    """The discriminator's gradient is bit for bit the same, however hard the generator pulls on its logits."""
    gradients = []

    class Watched(TeacherSystem):
        def step_players(self):
            gradients.append(
                [p.grad.clone() for p in self.objective.adversary.discriminator.parameters() if p.requires_grad]
            )
            super().step_players()

    for weight in (0.1, 100.0):
        system = make(codec_config, decoder_config, adversarial={"weight": weight, "updates": updates})
        # Separate updates are weighted as the term is; the generator alone is to be pulled harder.
        monkeypatch.setattr(Objective, "adversary_weight", 0.1)
        system.__class__ = Watched
        seed_everything(0, verbose=False)
        trainer(1).fit(system, loader(1))
    assert any(g.abs().sum() > 0 for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("accumulate", "batch_size", "clip"), [(1, 3, 0.05), (3, 1, 1e3)])
def test_separate_updates_are_real_then_fake(
    codec_config, decoder_config, loader, trainer, monkeypatch, accumulate, batch_size, clip
):
    """Two steps of the discriminator for one of the generator. Each takes the gradient of its own half of the loss over
    all batches, times the weight of the term and clipped; the second is of the weights that the first has left. Where
    the clip binds, the weight does not show: so it does not in one of the two runs."""
    monkeypatch.setattr(adversarial, "diff_augment", lambda x: x)
    pictures, gradients, heads = [], [], []

    class Watched(TeacherSystem):
        def configure_optimizers(self):
            generator, second = super().configure_optimizers()
            discriminator = self.objective.adversary.discriminator

            def before(*_):
                heads.append(copy.deepcopy(discriminator))
                gradients.append(torch.cat([p.grad.flatten() for p in discriminator.parameters() if p.requires_grad]))

            second.register_step_pre_hook(before)
            return [generator, second]

    def gradient(discriminator, real, fake, weight):
        discriminator.zero_grad()
        losses = [real_or_fake(discriminator, real, fake) for real, fake in zip(real, fake, strict=True)]
        (weight * torch.stack(losses).mean()).backward()
        return torch.cat([p.grad.flatten() for p in discriminator.parameters() if p.requires_grad])

    def real_or_fake(discriminator, real, fake):
        return adversarial.discriminator_loss(
            [] if fake is None else discriminator(fake), [] if real is None else discriminator(real), 0.8
        )

    term = {"weight": 0.1, "real_label": 0.8, "updates": "separate", "learning_rate": 1e-2}
    system = make(codec_config, decoder_config, term, accumulate=accumulate, gradient_clip=clip)
    system.objective.eval()  # no power iteration
    monkeypatch.setattr(system.objective, "train", lambda mode=True: system.objective)
    system.__class__ = Watched
    see = system.second_player.see
    monkeypatch.setattr(
        system.second_player, "see", lambda x_hat, x: (pictures.append((x_hat.detach(), x)), see(x_hat, x))[1]
    )
    fitted = trainer(1)
    fitted.fit(system, loader(3, batch_size))
    assert (fitted.global_step, len(gradients)) == (1, 2)
    assert not torch.equal(*(torch.cat([p.flatten() for p in head.heads.parameters()]) for head in heads))
    for (discriminator, found), (fakes, reals) in zip(
        zip(heads, gradients, strict=True),
        [([None] * accumulate, [x for _, x in pictures]), ([x_hat for x_hat, _ in pictures], [None] * accumulate)],
        strict=True,
    ):
        expected = gradient(discriminator, reals, fakes, 0.1)
        expected = expected * min(1.0, clip / expected.norm().item())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    values = fitted.callback_metrics
    assert values["train/discriminator"] > values["train/discriminator_fake"] > 0


def test_frozen_parameters_get_no_gradient_but_pass_it_on(codec_config, decoder_config):
    from aeic_lightning.losses.adversarial import frozen_parameters, generator_loss

    system = make(codec_config, decoder_config, adversarial=1.0)
    x_hat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    discriminator = system.objective.adversary.discriminator
    with frozen_parameters(discriminator):
        generator_loss(discriminator(x_hat)).backward()
    assert x_hat.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminator.parameters())
    assert any(p.requires_grad for p in discriminator.parameters())


def test_accumulated_batches_equal_one_large_batch(codec_config, decoder_config, loader, trainer, monkeypatch):
    """Both players: four batches of one give the step that one batch of four gives."""
    # Noise is drawn in another order, and a value near 1/2 may round the other way in another batch.
    monkeypatch.setattr(latent_codec, "add_noise", lambda x: x)
    monkeypatch.setattr(latent_codec, "round_ste", lambda x: x)
    monkeypatch.setattr(context, "round_ste", lambda x: x)
    results = []
    for accumulate, batch_size in ((4, 1), (1, 4)):
        system = make(codec_config, decoder_config, 0.1, accumulate=accumulate, gradient_clip=0.0)
        seen: list = []

        class Watched(TeacherSystem):
            gradients = seen

            def step_players(self):
                players = (self.model, self.objective)
                self.gradients.extend(p.grad.clone() for m in players for p in m.parameters() if p.grad is not None)
                super().step_players()

            def on_train_batch_start(self, batch, batch_idx):
                self.objective.eval()  # no augmentation, no power iteration

        system.__class__ = Watched
        fitted = trainer(1)
        fitted.fit(system, loader(4, batch_size))
        assert fitted.global_step == 1
        results.append(seen)
    assert len(results[0]) == len(results[1]) > 100
    small, large = (torch.cat([g.flatten() for g in gradients]) for gradients in results)
    assert (small - large).norm() < 1e-3 * large.norm()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_each_player_is_clipped_to_its_own_norm(codec_config, decoder_config, loader, trainer, precision):
    """The norm of the gradient that each optimizer steps with."""
    norms = []

    class Watched(TeacherSystem):
        def configure_optimizers(self):
            players = super().configure_optimizers()
            for player in players:
                player.register_step_pre_hook(lambda optimizer, *_: norms.append(norm(optimizer)))
            return players

    def norm(optimizer) -> float:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.stack([gradient.norm() for gradient in gradients]).norm().item()

    system = make(codec_config, decoder_config, 0.1, gradient_clip=0.01)
    system.__class__ = Watched
    trainer(1, precision=precision).fit(system, loader(1))
    assert norms == [pytest.approx(0.01, rel=1e-3)] * 2


def test_evaluate_says_that_few_updates_trained_the_rate(
    codec_config, decoder_config, loader, trainer, tmp_path, capfd
):
    fitted = trainer(1)
    fitted.fit(make(codec_config, decoder_config), loader(1))
    fitted.save_checkpoint(tmp_path / "first.ckpt")
    words = ["--checkpoint", str(tmp_path / "first.ckpt"), "--images", "sample-photos", "--max-size", "64", "64"]
    assert main(["evaluate", *words, "--backbones", "lite0", "-o", str(tmp_path / "first.json")]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert "first.ckpt had 1 update(s) with a rate" in said[0]


def test_precision_that_needs_loss_scaling_is_refused(codec_config, decoder_config, loader, trainer):
    system = make(codec_config, decoder_config)
    with pytest.raises(UserError, match="take bf16-mixed, or 32-true"):
        trainer(1, precision="16-true").fit(system, loader(1))


def test_learning_rate_and_lambda_follow_generator_steps(codec_config, decoder_config, loader, trainer):
    """The rate that the optimizer has, and the share of lambda that is in the total of the loss."""
    seen = []

    class Watched(TeacherSystem):
        def log_at_step(self, prefix, terms):
            rest = terms["loss"] - 2 * terms["mse"] - 0.1 * terms["adversarial"]
            scale = (rest / terms["bpp_estimate"] / 0.8).item()
            seen.append((round(self.trainer.optimizers[0].param_groups[0]["lr"], 6), round(scale, 3)))

    system = make(
        codec_config, decoder_config, 0.1, learning_rates=[(0, 0.01), (3, 0.004)], warmup_steps=2, rate_warmup=4
    )
    system.__class__ = Watched
    trainer(5).fit(system, loader(1))
    assert seen == [(0.005, 0.0), (0.01, 0.25), (0.01, 0.5), (0.004, 0.75), (0.004, 1.0)]


def test_optimizers_have_the_settings_of_their_players(codec_config, decoder_config):
    term = {"weight": 0.1, "learning_rate": 3e-5}
    system = make(codec_config, decoder_config, term, learning_rates=[(0, 7e-4)], weight_decay=0.03)
    generator, discriminator = system.configure_optimizers()
    assert (generator.defaults["lr"], generator.defaults["weight_decay"]) == (7e-4, 0.03)
    assert discriminator.defaults["lr"] == 3e-5
    assert all(
        (player.defaults["betas"], player.defaults["eps"]) == ((0.9, 0.999), 1e-8)
        for player in (generator, discriminator)
    )
    heads = {id(p) for p in system.objective.adversary.discriminator.heads.parameters()}
    assert {id(p) for p in discriminator.param_groups[0]["params"]} == heads
    assert {id(p) for p in generator.param_groups[0]["params"]} == {id(p) for p in system.model.parameters()}


def test_the_guard_knows_what_the_discriminators_loss_can_be(codec_config, decoder_config):
    """Three heads: 2 log 2 each at chance, and at least the entropy of the smoothed label."""
    guard = make(codec_config, decoder_config, {"weight": 0.1, "real_label": 0.8}).guard
    assert guard.chance == pytest.approx(6 * math.log(2))
    assert guard.least == pytest.approx(-3 * (0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    guard = make(codec_config, decoder_config).guard
    assert (guard.chance, guard.least) == (0, 0)


def test_training_lowers_the_loss(codec_config, decoder_config, loader, trainer):
    system = make(codec_config, decoder_config)
    losses = []

    class Watched(TeacherSystem):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    system.__class__ = Watched
    trainer(40).fit(system, loader(1))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_stage_starts_from_the_one_before(codec_config, decoder_config, loader, trainer, tmp_path):
    first = make(codec_config, decoder_config)
    fitted = trainer(2)
    fitted.fit(first, loader(2))
    fitted.save_checkpoint(tmp_path / "stage1.ckpt")
    second = make(codec_config, decoder_config, init_from=str(tmp_path / "stage1.ckpt"))
    started: dict = {}

    class Watched(TeacherSystem):
        def on_train_start(self):
            started.update(weights(self.model))

    second.__class__ = Watched
    trainer(1).fit(second, loader(1))
    first.model.prior.update_quantiles()  # as for every reader of a checkpoint
    expected = weights(first.model)
    assert started.keys() == expected.keys()
    assert all(torch.equal(started[name], expected[name]) for name in expected)


def test_the_checkpoint_alone_gives_the_model(codec_config, decoder_config, loader, trainer, tmp_path):
    system = make(codec_config, decoder_config, 0.1)
    fitted = trainer(2)
    fitted.fit(system, loader(2))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    model = load_model(tmp_path / "a.ckpt").to(memory_format=torch.channels_last)
    system.model.codec.prior.update_quantiles()
    x = next(iter(loader(1)))["image"]
    with torch.no_grad():
        assert torch.equal(model(x).x_hat, system.model.eval()(x).x_hat)
    names = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in names} == {"model", "objective"}
    assert not any(".backbone" in name for name in names), "frozen networks are not saved"


def test_bytes_are_those_of_the_files(codec_config, decoder_config, loader, trainer, tmp_path):
    """After each validation's training: what the checkpoint writes, and what its likelihoods promise."""
    system, metrics = make(codec_config, decoder_config), QualityMetrics(lpips=[], dists=[], ms_ssim=False)
    fitted = trainer(4, val_check_interval=2, callbacks=[metrics])
    fitted.fit(system, loader(4), loader(3, batch_size=2))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    bitstream = Bitstream(load_model(tmp_path / "a.ckpt"))
    (x,) = [batch["image"] for batch in loader(3, batch_size=3)]
    assert [row["name"] for row in metrics.rows] == ["image0", "image1", "image2"]
    for row, image in zip(metrics.rows, x, strict=True):
        file = bitstream.encode(image[None])
        assert row["bytes"] == len(file)
        assert row["bpp"] == 8 * len(file) / 128**2
        payload = len(file) - 11  # the header
        assert abs(payload - row["bits_estimate"] / 8) <= 0.01 * row["bits_estimate"] / 8 + 8
    assert fitted.callback_metrics["val/bpp"].item() == pytest.approx(
        8 * sum(r["bytes"] for r in metrics.rows) / 3 / 128**2
    )


def test_writing_streams_does_not_change_training(codec_config, decoder_config, loader, trainer):
    results = []
    for write_streams in (True, False):
        system = make(codec_config, decoder_config)
        system.write_streams = write_streams
        metrics = QualityMetrics(lpips=[], dists=[], ms_ssim=False)
        trainer(3, val_check_interval=1, callbacks=[metrics]).fit(system, loader(3), loader(1))
        assert ("bpp" in metrics.means) == write_streams
        results.append(weights(system.model))
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))


def test_a_share_of_the_images_has_streams_and_its_rates_say_so(codec_config, decoder_config, loader, trainer):
    """Two of three images; the estimate is of all, and that of the two stands beside their files' rate."""
    system, metrics = make(codec_config, decoder_config), QualityMetrics(lpips=[], dists=[], ms_ssim=False)
    system.write_streams = 2
    fitted = trainer(2, val_check_interval=1, callbacks=[metrics])
    fitted.fit(system, loader(2), loader(3, batch_size=2))
    assert ["bytes" in row for row in metrics.rows] == [True, True, False]
    assert "bpp" not in metrics.means, "a rate of two images is no rate of the set"
    estimates = [row["bpp_estimate"] for row in metrics.rows]
    assert metrics.means["bpp_estimate"] == pytest.approx(sum(estimates) / 3)
    assert metrics.means["bpp_estimate_share"] == pytest.approx(sum(estimates[:2]) / 2)
    sizes = [8 * row["bytes"] / 128**2 for row in metrics.rows[:2]]
    assert fitted.callback_metrics["val/bpp_share"].item() == pytest.approx(sum(sizes) / 2)
    with pytest.raises(UserError, match="a number of images, 0 or more"):
        TeacherSystem(codec_config, decoder_config, {"mse": 1.0}, OptimizationConfig([(0, 1e-3)]), write_streams=-1)


def test_a_stage_of_other_sizes_is_refused_by_name(codec_config, decoder_config, loader, trainer, tmp_path):
    system = make(codec_config, decoder_config)
    fitted = trainer(1)
    fitted.fit(system, loader(1))
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    codec_config.context_width = 24
    other = make(codec_config, decoder_config, init_from=str(tmp_path / "a.ckpt"))
    with pytest.raises(UserError, match=r"init_from: .*a\.ckpt holds codec\.context.* the config asks for"):
        trainer(1).fit(other, loader(1))


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 half a zip"])
def test_damaged_checkpoints_are_one_line(tmp_path, content):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.ckpt cannot be read as a checkpoint") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_checkpoint_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {}, "model_config": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
