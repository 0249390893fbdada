"""Compress and classify (Bai et al., AAAI 2022): one stream gives the classes, and the picture when it is wanted.

sender     x -> g_a -> y -> stream                                           (codec)
receiver   stream -> y_hat -> embed -> blocks 1 2 3 4 ... 12 -> logits       (classify: no picture on the way)
                                |      |  |  |
                                +---- aggregation -> g_s -> x_hat            (decode: with the transformer's help)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from aeic_lightning.classification.codec import STRIDE, CodedLatents, MeanScaleCodec, decoder, encoder
from aeic_lightning.classification.transformer import FeatureAggregation, LatentTransformer, TransformerConfig
from aeic_lightning.errors import UserError
from aeic_lightning.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import reflect_pad
from aeic_lightning.models.codec.context import FactorizedPrior
from aeic_lightning.models.layers import full_precision

KEY = "classification"  # of the sizes in a checkpoint's model_config


@dataclass
class ClassificationConfig:
    """Sizes of the compress-and-classify model. The defaults are the paper's, 29.67 M parameters.

    Args:
        encoder_widths: channels of g_a after each of its four stages; the last is M.
        hyper_width: channels of z.
        decoder_widths: channels of g_s after its first three stages; the fourth gives the picture.
        aggregate: transformer blocks, counted from 1, whose outputs the decoder gets beside the embedded y_hat.
        transformer: sizes of the transformer.
        start: the weights that training begins with. `ours` keeps the variance through the encoder and starts scales
            near 1, so that short trainings begin to learn at once. `released`: convolutions as PyTorch makes them,
            every linear layer normal with deviation 0.02, cut at 2, and without bias.
    """

    encoder_widths: list[int] = field(default_factory=lambda: [128, 128, 128, 192])
    hyper_width: int = 128
    decoder_widths: list[int] = field(default_factory=lambda: [128, 128, 128])
    aggregate: list[int] = field(default_factory=lambda: [1, 2, 3])
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    start: Literal["ours", "released"] = "ours"

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if self.start not in ("ours", "released"):
            raise UserError(f"sizes: start is ours or released, not {self.start!r}")
        if len(self.encoder_widths) != 4 or len(self.decoder_widths) != 3:
            raise UserError(
                f"sizes: {len(self.encoder_widths)} encoder_widths and {len(self.decoder_widths)} decoder_widths; "
                f"stride {STRIDE} needs four and three"
            )
        if min(*self.encoder_widths, *self.decoder_widths, self.hyper_width) < 1 or self.encoder_widths[-1] % 2:
            raise UserError("sizes: widths start at 1, and the last of encoder_widths must be even")
        if any(not 1 <= block <= self.transformer.depth for block in self.aggregate):
            raise UserError(
                f"sizes: aggregate {self.aggregate} names a block that is not among the transformer's "
                f"{self.transformer.depth}; they are counted from 1"
            )


class ClassificationOutput(NamedTuple):
    """One pass for images (B, 3, H, W)."""

    logits: Tensor  # (B, classes)
    x_hat: Tensor  # (B, 3, H, W), cropped to the size of the input; not clamped
    bits_estimate: Tensor  # (B,), of the whole image, padding included
    latents: CodedLatents


class Normalisation(nn.Module):
    """Between images in [-1, 1] and normalised ones, both (B, 3, H, W); mean and std are of [0, 1] images."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 - self.mean) / self.std

    def undo(self, x: Tensor) -> Tensor:
        """Normalised -> [-1, 1]; values outside stay outside."""
        return 2 * (x * self.std + self.mean) - 1


class ClassificationModel(CompressionModel):
    """The whole system. Images of any size are padded by reflection to multiples of 16, as the latent codec does."""

    generative = False

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__()
        config.check()
        self.sizes = config
        self.normalisation = Normalisation()
        self.codec = MeanScaleCodec(config.encoder_widths, config.hyper_width)
        self.transformer = LatentTransformer(config.encoder_widths[-1], config.transformer)
        self.aggregation = FeatureAggregation(config.transformer.width, config.aggregate)
        self.g_s = decoder(config.transformer.width, config.decoder_widths)
        if config.start == "released":
            self.apply(_start_as_released)

    @property
    def config(self) -> dict:
        return {KEY: asdict(self.sizes)}

    @property
    def prior(self) -> FactorizedPrior:
        return self.codec.prior

    def estimate_bits(self, x: Tensor, level: float | None = None) -> Tensor:
        return self.codec(self.prepare(x)).bits

    def prepare(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> padded to multiples of 16 and normalised: what g_a takes."""
        return self.normalisation(reflect_pad(x, STRIDE))

    def reconstruct(self, y_hat: Tensor, level: float | None = None) -> Tensor:
        """Decoded latents (B, M, h, w) -> picture (B, 3, 16 h, 16 w), in [-1, 1] but not clamped; there is no level.

        Runs only the blocks that the aggregation reads.
        """
        return self._synthesise(self.transformer.features(y_hat, self.aggregation.depth), y_hat)

    def forward(self, x: Tensor, quantise: bool = True, noisy: bool = False) -> ClassificationOutput:
        """Images (B, 3, H, W) in [-1, 1], any size -> logits, picture, bits. For `quantise`, `noisy`: see the codec.

        Under autocast only the transformer and the decoder compute in low precision: rounding to integers and
        differences of cumulatives need the codec's float32.
        """
        with full_precision(x):
            latents = self.codec(self.prepare(x.float()), quantise, noisy)
        features = self.transformer.features(latents.y_hat)
        x_hat = self._synthesise(features, latents.y_hat)[..., : x.shape[2], : x.shape[3]]
        return ClassificationOutput(self.transformer.logits(features[-1]).float(), x_hat.float(), latents.bits, latents)

    def _synthesise(self, features: list[Tensor], y_hat: Tensor) -> Tensor:
        return self.normalisation.undo(self.g_s(self.aggregation(features, *y_hat.shape[2:])))


def _start_as_released(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class PictureClassifier(nn.Module):
    """Encoder and transformer of the model without a stream between them: the classifier of decoded pictures."""

    def __init__(self, widths: list[int], config: TransformerConfig) -> None:
        super().__init__()
        self.normalisation = Normalisation()
        self.g_a = encoder(widths)
        self.transformer = LatentTransformer(widths[-1], config)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], any size -> logits (B, classes)."""
        return self.transformer(self.g_a(self.normalisation(reflect_pad(x, STRIDE))))
