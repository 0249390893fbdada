"""Teacher and student over one frozen base: one U-Net in memory, and neither's adapter touched by the other."""

from dataclasses import replace

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import OneStepDecoder
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, TeacherSystem

L_T, L_RES = 12, 8
SIDES = {"L_enc": {"weight": 0.5, "taps": ["y"]}, "L_dec": {"weight": 1.0, "taps": ["l_0", "h_1", "h_4"]}}


def randomise(decoder: OneStepDecoder) -> None:
    for name, p in decoder.named_parameters():
        if p.requires_grad and (".lora_" in name or "conv_" in name):
            torch.nn.init.normal_(p, std=0.1)


@pytest.fixture
def two(pretrained):
    """A teacher and a student on its base, both with adapters that do something."""
    teacher, student = OneStepDecoder(L_T, L_RES, pretrained), OneStepDecoder(L_T, L_RES, pretrained)
    teacher.load_base()
    randomise(teacher)
    student.share_base(teacher, "student")
    randomise(student)
    return teacher.eval(), student.eval()


def latents():
    return torch.randn(1, L_T, 8, 8), torch.randn(1, L_RES, 8, 8)


def test_sharing_changes_neither(two, pretrained):
    """Each gives what it would give on a base of its own, whichever ran before."""
    x = latents()
    for decoder in (*two, *two):
        alone = OneStepDecoder(L_T, L_RES, pretrained)
        alone.load_base()
        alone.load_state_dict(decoder.state_dict())
        assert torch.equal(alone.eval()(*x).x_hat, decoder(*x).x_hat)
    assert not torch.allclose(two[0](*x).l_0, two[1](*x).l_0)


def test_there_is_one_base(two):
    def base(decoder):
        return {id(p) for name, p in decoder.named_parameters() if "base_layer" in name or name.startswith("vae.")}

    assert base(two[0]) == base(two[1])


def test_fresh_student_starts_from_the_bases_own_ends(pretrained):
    teacher, student, alone = (OneStepDecoder(L_T, L_RES, pretrained) for _ in range(3))
    teacher.load_base()
    randomise(teacher)
    student.share_base(teacher, "student")
    alone.load_base()
    for end in ("conv_in", "conv_out"):
        assert torch.equal(getattr(student.denoiser, end).weight, getattr(alone.denoiser, end).weight)


def test_other_sizes_cannot_share(pretrained):
    teacher = OneStepDecoder(L_T, L_RES, pretrained)
    teacher.load_base()
    with pytest.raises(UserError, match="different sizes"):
        OneStepDecoder(L_T, 4, pretrained).share_base(teacher, "student")


def gradients(decoder, x, between=lambda: None):
    decoder.zero_grad()
    loss = decoder.train()(*x).x_hat.square().mean()
    between()
    loss.backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.requires_grad}


def test_checkpointing_gives_the_same_gradients_whoever_ran_in_between(two):
    """The backward pass computes blocks again; by then the teacher's adapter may be the active one."""
    teacher, student = two
    x = latents()
    expected = gradients(student, x)
    student._checkpoint()
    with torch.no_grad():
        recomputed = gradients_with_teacher(student, teacher, x)
    assert expected.keys() == recomputed.keys()
    for name, gradient in expected.items():
        assert torch.allclose(recomputed[name], gradient, rtol=1e-4, atol=1e-6), name


def gradients_with_teacher(student, teacher, x):
    with torch.enable_grad():
        return gradients(student, x, between=lambda: teacher(*x))


def test_checkpointing_keeps_less(two):
    _, student = two
    x = latents()

    def kept() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            student.train()(*x)
        return sum(sizes)

    whole = kept()
    student._checkpoint()
    assert kept() < whole / 3


def test_low_precision_leaves_the_codec_alone(codec_config, pretrained):
    """Rounding and likelihoods in bfloat16 would be another codec."""
    model = AEIC(codec_config, pretrained)
    model.decoder.load_base()
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    model.eval()
    expected = model.codec(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    assert torch.equal(output.codec.y_hat, expected.y_hat)
    assert torch.equal(output.bits_estimate, expected.bits_y + expected.bits_z)
    assert output.taps["h_1"].dtype == torch.bfloat16
    assert output.x_hat.dtype == torch.float32


# ---------------------------------------------------------------------- in training


@pytest.fixture
def teacher_file(codec_config, pretrained, tmp_path):
    model = AEIC(codec_config, pretrained)
    model.decoder.load_base()
    randomise(model.decoder)
    path = tmp_path / "teacher.ckpt"
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "model_config": model.config}, path)
    return path


def system(codec_config, pretrained, teacher_file, ema=0.0, **options) -> DistillationSystem:
    torch.manual_seed(1)
    student = replace(codec_config, widths=[8, 8, 8, 16, 16])
    objective = {"rate": 0.8, "mse": 2.0} | SIDES
    optimization = OptimizationConfig(learning_rates=[(0, 1e-2)], ema=ema)
    return DistillationSystem(student, pretrained, objective, optimization, teacher=str(teacher_file), **options)


def fit(system, steps=3, **options):
    torch.manual_seed(2)
    images = [{"image": torch.rand(3, 128, 128) * 2 - 1, "name": str(i)} for i in range(steps)]
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, barebones=False, **options,
    )  # fmt: skip
    trainer.fit(system, DataLoader(images, batch_size=1))
    return trainer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_teacher_is_bit_identical_after_training(codec_config, pretrained, teacher_file, checkpointing):
    pretrained = replace(pretrained, gradient_checkpointing=checkpointing)
    training = system(codec_config, pretrained, teacher_file)
    teacher = training.teacher.net
    shared = {id(p) for p in teacher.parameters()} & {id(p) for p in training.model.parameters()}
    assert len(shared) > 100
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    base = {name: p.clone() for name, p in training.model.named_parameters() if not p.requires_grad}
    start = {name: p.clone() for name, p in training.model.decoder.named_parameters() if p.requires_grad}
    fit(training)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    now = dict(training.model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in base.items())
    assert not any(torch.equal(now[f"decoder.{name}"], p) for name, p in start.items())


def test_shared_and_separate_networks_give_the_same_gradients(codec_config, pretrained, teacher_file):
    shared, separate = (system(codec_config, pretrained, teacher_file, share_base=share) for share in (True, False))
    randomise(shared.model.decoder)
    separate.model.decoder.load_base()
    separate.load_state_dict(shared.state_dict())
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    results = []
    for training in (shared, separate):
        torch.manual_seed(5)  # the noise of the rate
        output = training.train()(x)
        training.objective({"image": x}, output, training.teacher_taps(x)).total.backward()
        results.append([p.grad for p in training.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1]) > 100
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6 * a.abs().max().item() + 1e-9)


def test_checkpoint_of_a_student_loads_anywhere_but_on_another_base(
    codec_config, pretrained, teacher_file, base_files, tmp_path
):
    training = system(codec_config, pretrained, teacher_file)
    trainer = fit(training)
    path = tmp_path / "student.ckpt"
    trainer.save_checkpoint(path)
    assert path.stat().st_size < 2 * sum(p.numel() * 12 for p in training.parameters() if p.requires_grad)

    x = torch.rand(1, 3, 128, 128) * 2 - 1
    training.model.codec.prior.update_quantiles()  # as in the checkpoint
    expected = training.eval().model(x).x_hat
    assert torch.allclose(load_model(path)(x).x_hat, expected, atol=1e-5)
    sender = load_model(path, receiver=False)  # reads no base
    assert torch.allclose(sender.codec.g_a(x), training.model.codec.g_a(x), atol=1e-5)
    # Its files are those of a machine that has the base, and are read there.
    receiver = Bitstream(load_model(path))
    data = Bitstream(sender).encode(x)
    assert data == receiver.encode(x)
    assert (receiver.decode(data).height, receiver.decode(data).width) == tuple(x.shape[2:])

    # A student's checkpoint is the teacher of the next; and a run goes on from it.
    assert system(codec_config, pretrained, path).teacher.net.decoder.denoiser.adapter == "own"
    again = system(codec_config, pretrained, teacher_file)
    images = [{"image": torch.zeros(3, 128, 128), "name": "x"}]
    lightning.Trainer(
        accelerator="cpu", max_steps=4, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(again, DataLoader(images), ckpt_path=path, weights_only=True)  # fmt: skip
    assert again.global_step == 4

    half = torch.load(base_files[1])
    half["state_dict"]["decoder.conv_out.bias"] += 1
    torch.save(half, base_files[1])
    with pytest.raises(UserError, match="was trained on a vae with digest"):
        load_model(path)


def test_averages_of_an_adapter_are_read_and_resumed(codec_config, pretrained, teacher_file, tmp_path):
    """A checkpoint names an adapter's tensors otherwise than the model that has two adapters does."""
    training = system(codec_config, pretrained, teacher_file, ema=0.5)
    fit(training).save_checkpoint(tmp_path / "student.ckpt")
    names = {name for name in training.average.averages if ".lora_" in name}
    assert names
    assert any(not torch.equal(training.model.get_parameter(name), training.average.averages[name]) for name in names)
    read = load_model(tmp_path / "student.ckpt").decoder.denoiser
    for name in names:
        average = training.average.averages[name]
        end = name.removeprefix("decoder.denoiser.").replace(".student.", ".own.")
        assert torch.equal(read.get_parameter(end), average), name
    again = system(codec_config, pretrained, teacher_file, ema=0.5)
    images = [{"image": torch.zeros(3, 128, 128), "name": "x"}]
    lightning.Trainer(
        accelerator="cpu", max_steps=3, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(again, DataLoader(images), ckpt_path=tmp_path / "student.ckpt", weights_only=True)  # fmt: skip
    for name, p in again.model.named_parameters():
        assert torch.equal(p, training.model.get_parameter(name)), name
    assert all(torch.equal(average, training.average.averages[n]) for n, average in again.average.averages.items())


def test_stages_follow_each_other(codec_config, pretrained, teacher_file):
    """`init_from` over a base: the next stage starts with what the first one trained."""
    loss, optimization = {"rate": 0.8, "mse": 2.0}, OptimizationConfig(learning_rates=[(0, 0.0)])
    training = TeacherSystem(codec_config, pretrained, loss, optimization, init_from=str(teacher_file))
    fit(training, steps=1)
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    expected = load_model(teacher_file).decoder
    y_hat = training.eval().model.codec(x)
    ours = training.model.decoder(y_hat.l_T, y_hat.l_res).x_hat
    assert torch.allclose(ours, expected(y_hat.l_T, y_hat.l_res).x_hat, atol=1e-5)


def test_cached_taps_train_alike(codec_config, pretrained, teacher_file, tmp_path, monkeypatch):
    """The same weights with and without the cache; the second run asks the teacher nothing."""
    runs = []
    for folder in (None, tmp_path / "taps", tmp_path / "taps"):
        training = system(codec_config, pretrained, teacher_file, teacher_cache=folder and str(folder))
        asked = []
        compute = training.teaching.compute
        monkeypatch.setattr(
            training.teaching, "compute", lambda x, *level, c=compute, a=asked: a.append(len(x)) or c(x, *level)
        )
        fit(training)
        runs.append((training.model.state_dict(), sum(asked)))
    assert [asked for _, asked in runs] == [3, 3, 0]
    for name, tensor in runs[0][0].items():
        assert torch.equal(tensor, runs[1][0][name]), name
        assert torch.equal(tensor, runs[2][0][name]), name
