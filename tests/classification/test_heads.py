"""A classification head on AEIC."""

import copy

import pytest
import torch

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.classification import TransformerConfig
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.classification.head import AEICClassificationSystem
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, to_uint8
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from tests.classification.trained import train

CROSS_ENTROPY = {"class_path": "aeic_lightning.classification.CrossEntropy", "label_smoothing": 0.1}
RATE = {"rate": 0.8, "mse": 2.0}
HEAD = TransformerConfig(width=24, depth=2, heads=3, grid=[2, 2], classes=10)


@pytest.fixture
def codec(codec_config, decoder_config, trainer, digits, tmp_path) -> str:
    """Checkpoint of a codec without a head."""
    system = TeacherSystem(codec_config, decoder_config, {"rate": 0.8, "mse": 2.0}, OptimizationConfig())
    return train(trainer, system, digits, 1, tmp_path, "codec")


@pytest.fixture
def head_system(codec):
    def make(alpha=0.3, train_codec=False, **kwargs) -> AEICClassificationSystem:
        return AEICClassificationSystem(
            init_from=codec,
            head=HEAD,
            objective={"cross_entropy": CROSS_ENTROPY | {"weight": alpha}} | (RATE if train_codec else {}),
            optimization=OptimizationConfig([(0, 1e-3)], gradient_clip=0),
            picture_widths=[8, 8, 8, 12],
            train_codec=train_codec,
            **kwargs,
        )

    return make


@pytest.mark.parametrize("reads", ["y_hat", "x_hat"])
def test_a_head_leaves_the_frozen_codec_as_it_was(reads, head_system, codec, trainer, digits, tmp_path):
    system = head_system(reads=reads)
    before = copy.deepcopy(system.head.state_dict())
    path = train(trainer, system, digits, 3, tmp_path, "head")
    reference = load_model(codec).state_dict()
    for name, tensor in system.model.state_dict().items():
        assert torch.equal(tensor, reference[name]), name
    assert all(not p.requires_grad and p.grad is None for p in system.model.parameters())
    assert not system.train().model.training
    assert any(not torch.equal(before[name], tensor) for name, tensor in system.head.state_dict().items())

    # The checkpoint is one of the codec as well.
    other = load_model(path).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in reference.items())
    batch = next(iter(digits.val_dataloader()))
    classifier = load_classifier(path)
    with torch.no_grad():
        # In the system's layout: another one's last digits may round a pixel the other way.
        x, model = batch["image"], classifier.codec.model.to(memory_format=torch.channels_last)
        features = model.codec(x).y_hat if reads == "y_hat" else from_uint8(to_uint8(model(x).x_hat))
        torch.testing.assert_close(system.eval().evaluate_batch(batch)["logits"], classifier.head(features))


def test_a_released_codecs_medians_survive_a_head(head_system, codec, trainer, digits, tmp_path):
    checkpoint = torch.load(codec, weights_only=True)
    medians = torch.rand(16) - 0.5
    checkpoint["state_dict"]["model.codec.prior.quantiles"][:, 1] = medians
    torch.save(checkpoint | {"imported": True}, codec)
    path = train(trainer, head_system(), digits, 2, tmp_path, "head")
    assert torch.equal(load_classifier(path).codec.model.codec.prior.quantiles[:, 1], medians)


def test_a_joint_head_trains_the_codec_with_its_cross_entropy(head_system, trainer, digits, tmp_path):
    results = []
    for alpha in (0.0, 10.0):
        torch.manual_seed(0)
        system = head_system(train_codec=True, alpha=alpha)
        train(trainer, system, digits, 2, tmp_path, f"joint{alpha}")
        results.append(system.model.codec.g_a.state_dict())
    assert any(not torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_head_errors(head_system, codec):
    with pytest.raises(UserError, match="frozen codec"):
        head_system(reads="x_hat", train_codec=True)
    with pytest.raises(UserError, match="the codec is frozen, mse cannot change it"):
        AEICClassificationSystem(codec, HEAD, {"cross_entropy": CROSS_ENTROPY} | RATE, OptimizationConfig())
    with pytest.raises(UserError, match=r"optimization\.ema averages a codec"):
        AEICClassificationSystem(codec, HEAD, {"cross_entropy": CROSS_ENTROPY}, OptimizationConfig(ema=0.9))
    with pytest.raises(UserError, match="reads is 'z'"):
        head_system(reads="z")
    with pytest.raises(UserError, match=r"init_from: no file nowhere\.ckpt"):
        AEICClassificationSystem("nowhere.ckpt", HEAD, {"mse": 1.0}, OptimizationConfig())
    with pytest.raises(UserError, match="has no classifier"):
        load_classifier(codec)
