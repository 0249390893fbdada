"""The decoder of a trained model as the frozen base of others."""

import lightning
import pytest
import torch

from aeic_lightning.checkpoints.checkpoint import load_aeic
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import PretrainedConfig
from aeic_lightning.models.random_model import save
from aeic_lightning.systems import DistillationSystem, OptimizationConfig

TERMS = {"mse": {"weight": 1.0}, "L_dec": {"weight": 1.0, "taps": ["l_0"]}}


def trained(codec_config, decoder_config, path):
    """A teacher whose decoder does something, as its checkpoint has it."""
    model = AEIC(codec_config, decoder_config)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)
    return model.eval()


@pytest.fixture
def teacher(codec_config, decoder_config, tmp_path):
    return trained(codec_config, decoder_config, tmp_path / "teacher.ckpt")


@pytest.fixture
def base(teacher, tmp_path):
    words = ["export", "--checkpoint", str(tmp_path / "teacher.ckpt"), "--base", "-o", str(tmp_path / "base")]
    assert main(words) == 0
    return PretrainedConfig(f"{tmp_path}/base/unet", f"{tmp_path}/base/vae.safetensors", rank=2, alpha=1.0)


def student(codec_config, decoder_config, base, path):
    decoder_config.pretrained = base
    settings = OptimizationConfig(learning_rates=[[0, 1e-2]])
    return DistillationSystem(codec_config, decoder_config, TERMS, settings, teacher=str(path), receiver_from=str(path))


def test_a_student_over_it_starts_as_its_teacher(
    teacher, base, codec_config, decoder_config, tmp_path, trainer, loader
):
    system = student(codec_config, decoder_config, base, tmp_path / "teacher.ckpt")
    system.model.decoder.load_base()
    system.load_start()
    latents = torch.randn(1, 12, 8, 8), torch.randn(1, 8, 8, 8)
    theirs = teacher.decoder(*latents)
    assert torch.allclose(system.model.eval().decoder(*latents).x_hat, theirs.x_hat, atol=1e-5)

    fitting: lightning.Trainer = trainer(2)
    fitting.fit(system, loader(2))
    trained_parts = {name for name, p in system.model.decoder.named_parameters() if p.requires_grad}
    assert trained_parts
    assert all(".lora_" in name or "denoiser.conv_" in name for name in trained_parts)
    moved = (system.model.eval().decoder(*latents).x_hat - theirs.x_hat).abs().max()
    assert moved > 1e-3, "the adapter has learned"

    fitting.save_checkpoint(tmp_path / "student.ckpt")
    again = load_aeic(tmp_path / "student.ckpt")
    assert torch.allclose(again.decoder(*latents).x_hat, system.model.decoder(*latents).x_hat, atol=1e-5)

    # What was trained over a base is a base again, its adapter merged into it.
    words = ["export", "--checkpoint", str(tmp_path / "student.ckpt"), "--base", "-o", str(tmp_path / "second")]
    assert main(words) == 0
    files = PretrainedConfig(f"{tmp_path}/second/unet", f"{tmp_path}/second/vae.safetensors", rank=2, alpha=1.0)
    decoder_config.pretrained = files
    second = AEIC(codec_config, decoder_config).eval()
    second.decoder.load_base()
    assert torch.allclose(second.decoder(*latents).x_hat, again.decoder(*latents).x_hat, atol=1e-5)


def test_the_receiver_of_another_teacher_is_refused(base, codec_config, decoder_config, tmp_path):
    decoder_config.pretrained = None
    other = tmp_path / "other.ckpt"
    trained(codec_config, decoder_config, other)
    system = student(codec_config, decoder_config, base, other)
    system.model.decoder.load_base()
    with pytest.raises(UserError, match="receiver_from"):
        system.load_start()
