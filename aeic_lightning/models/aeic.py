"""The whole compression model: latent codec and one-step decoder, from image to image."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor

from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import CodecConfig, CodecOutput, LatentCodec, Stored, StoredEncoder
from aeic_lightning.models.codec.context import FactorizedPrior
from aeic_lightning.models.codec.latent_codec import LATENT_STRIDE
from aeic_lightning.models.decoder import DecoderConfig, DecoderOutput, OneStepDecoder
from aeic_lightning.models.decoder.one_step import interpolated
from aeic_lightning.models.decoder.tiling import blend_evenly
from aeic_lightning.models.layers import full_precision, lowered, raised
from aeic_lightning.models.taps import Tap, hooked, own_taps

TILE = 2048
"""Side, in pixels, of the largest tiles that g_s takes of larger pictures."""

OVERLAP = 16
"""Of these tiles, in positions of y: the paper's g_s reaches 13 to 22 far, the last of them hardly."""


class AEICOutput(NamedTuple):
    """One pass of the model for images (B, 3, H, W): what the terms of a loss read."""

    x_hat: Tensor  # (B, 3, H, W), cropped to the size of the input
    bits_estimate: Tensor  # (B,), likelihood bits of the whole image, padding included
    codec: CodecOutput
    decoder: DecoderOutput
    taps: dict[str, Tensor]  # every declared tap by name, and the module paths that were asked for
    level: Tensor | None  # (B,), rate level of each image; None in a codec of one rate
    rate_weight: Tensor | None  # (B,), what multiplies lambda at each image's rate level; None in a codec of one rate


class LatentOutput(NamedTuple):
    """One pass as far as the decoder; the fields are `AEICOutput`'s."""

    bits_estimate: Tensor
    codec: CodecOutput
    taps: dict[str, Tensor]
    level: Tensor | None
    rate_weight: Tensor | None


REALISTIC = "realistic."
"""What the tensors of a second decoder begin with: no stream depends on them, and no training starts from them."""


class StoredDecoder(Stored):
    """The tensors of a decoder. The sender needs neither its networks nor their libraries."""


class AEIC(CompressionModel):
    """x -> codec -> l_T, l_res -> decoder -> x_hat.

    `realistic` is a second decoder of the same sizes, if there is one (`add_realistic`): `at_realism` paints
    with it. Training knows nothing of it.

    Args:
        codec: sizes of the codec.
        decoder: sizes of the decoder, or a `StoredDecoder` in its place: the model then sends, and makes no picture.
        encoder: what stands in the place of an encoder whose class is not here: the model then only receives.
    """

    generative = True

    def __init__(
        self, codec: CodecConfig, decoder: DecoderConfig | StoredDecoder, encoder: StoredEncoder | None = None
    ) -> None:
        super().__init__()
        self.realistic: OneStepDecoder | Stored | None = None
        self.codec = LatentCodec(codec, encoder)
        if isinstance(decoder, DecoderConfig):
            self.decoder = OneStepDecoder(codec.l_T_channels, codec.l_res_channels, decoder)
        else:
            self.decoder = cast(OneStepDecoder, decoder)  # a sender asks it for nothing but its tensors
            return
        self.encoder_taps = own_taps(self.codec.g_a, "codec.g_a", self.taps)

    encoder_taps: Sequence[Tap] = ()
    """Those that an encoder from elsewhere declares."""

    @property
    def config(self) -> dict:
        """The sizes as plain values, which a checkpoint carries, and which base weights it was trained on, if any."""
        config = {"codec": asdict(self.codec.config), "decoder": asdict(self.decoder.config)}
        config |= {"base": self.decoder.base_digests}
        return config if self.realistic is None else config | {"realistic": True}

    @property
    def prior(self) -> FactorizedPrior:
        return self.codec.prior

    @property
    def rate_levels(self) -> int:
        return 0 if self.codec.gains is None else self.codec.gains.levels

    def estimate_bits(self, x: Tensor, level: float | None = None) -> Tensor:
        output = self.codec(x, level)
        return output.bits_y + output.bits_z

    def draw_levels(self, count: int, level: Tensor | float | None = None) -> Tensor | None:
        return self.codec.levels(count, level)

    def load_base(self) -> None:
        self.decoder.load_base()
        self.to(memory_format=torch.channels_last)  # the base as well

    def for_decoding(self) -> "AEIC":
        if not isinstance(self.decoder, StoredDecoder):
            self.decoder.merge_adapter()
        return self

    def at_realism(self, realism: float | None) -> Self:
        if not isinstance(self.realistic, OneStepDecoder) or not realism or not 0 <= realism <= 1:
            return super().at_realism(realism)
        model = copy.copy(self)
        model._modules = self._modules | {"decoder": interpolated(self.decoder, self.realistic, realism)}
        return model

    def reconstruct(self, y_hat: Tensor, level: float | None = None) -> Tensor:
        codec, levels = self.codec, self.codec.levels(len(y_hat), level)
        features = blend_evenly(
            lambda y: torch.cat(codec.synthesise(y, levels), dim=1),
            y_hat, max(TILE // codec.stride, 2 * OVERLAP), OVERLAP, codec.stride // LATENT_STRIDE,
        )  # fmt: skip
        l_T, l_res = features.split([codec.config.l_T_channels, codec.config.l_res_channels], dim=1)
        if not self.decoder.is_large(l_T):
            return self.decoder(l_T, l_res).x_hat
        latents = self.decoder.denoise_evenly(l_T).add_(l_res)
        del features, l_T, l_res  # half as large as the picture to come
        return self.decoder.paint_evenly(latents)

    @property
    def taps(self) -> list[Tap]:
        """The taps that the parts declare."""
        return [*self.codec.taps, *self.decoder.denoiser.taps, *self.encoder_taps]

    def forward(self, x: Tensor, level: Tensor | float | None = None, tap_paths: Sequence[str] = ()) -> AEICOutput:
        """Images (B, 3, H, W) in [-1, 1] of any size -> x_hat of the same size, bits and taps.

        Under autocast only the decoder computes in low precision: rounding to integers and differences of cumulatives
        need the codec's float32. In `networks_in_bfloat16` g_a and g_s do as well, and taps are float32.

        Args:
            x: the images.
            level: the rate of a codec with `rate_levels` (`LatentCodec.levels`).
            tap_paths: modules whose outputs are taps as well.
        """
        own = {tap.name: str(tap.path) for tap in self.encoder_taps}
        with hooked(self, list({*tap_paths, *own.values()})) as outputs:
            with full_precision(x):
                codec = self.codec(x.float(), level)
            with lowered(x):
                decoder = self.decoder(codec.l_T, codec.l_res)
        taps = self._codec_taps(codec) | self._decoder_taps(decoder.l_0, decoder.hidden)
        taps |= {path: raised(outputs[path]) for path in tap_paths if path in outputs}
        taps |= {name: raised(outputs[path]) for name, path in own.items()}
        height, width = x.shape[2:]
        x_hat = decoder.x_hat.float()[..., :height, :width]
        return AEICOutput(
            x_hat, codec.bits_y + codec.bits_z, codec, decoder, taps, codec.level, self._rate_weight(codec)
        )

    def code(self, x: Tensor, level: Tensor | float | None = None) -> LatentOutput:
        """As `forward`, without the decoder: for terms that read the codec's taps and the bits alone."""
        own = {tap.name: str(tap.path) for tap in self.encoder_taps}
        with hooked(self, list(own.values())) as outputs, full_precision(x):
            codec = self.codec(x.float(), level)
        taps = self._codec_taps(codec) | {name: raised(outputs[path]) for name, path in own.items()}
        return LatentOutput(codec.bits_y + codec.bits_z, codec, taps, codec.level, self._rate_weight(codec))

    def compute_taps(self, x: Tensor, names: Collection[str], level: Tensor | float | None = None) -> dict[str, Tensor]:
        """Taps of images (B, 3, H, W) by name or module path, of a pass in one piece (tiles have none).

        It goes no further than needed: the denoiser runs if a tap of its own is asked for, the VAE decoder if a module
        inside it is.
        """
        declared = {tap.name for tap in self.taps}
        paths = [name for name in names if name not in declared]
        own = {tap.name: str(tap.path) for tap in self.encoder_taps if tap.name in names}
        wanted = set(names) - {tap.name for tap in self.codec.taps} - own.keys()
        with hooked(self, list({*paths, *own.values()})) as outputs:
            with full_precision(x):
                codec = self.codec(x.float(), level)
            taps = self._codec_taps(codec)
            if any(not name.startswith("codec.") for name in wanted):
                with lowered(x):
                    l_0, hidden = self.decoder.denoiser(codec.l_T)
                    taps |= self._decoder_taps(l_0, hidden)
                    if any(name.startswith("decoder.vae") for name in wanted):
                        self.decoder.vae(l_0 + codec.l_res)
        outputs = {name: raised(output) for name, output in outputs.items()}
        found = taps | outputs | {name: outputs[path] for name, path in own.items()}
        return {name: found[name] for name in names}

    def _rate_weight(self, output: CodecOutput) -> Tensor | None:
        if self.codec.gains is None or output.level is None:
            return None
        return self.codec.gains.rate_weight(output.level)

    def _codec_taps(self, output: CodecOutput) -> dict[str, Tensor]:
        return {tap.name: getattr(output, tap.name) for tap in self.codec.taps}

    def _decoder_taps(self, l_0: Tensor, hidden: list[Tensor]) -> dict[str, Tensor]:
        # A tiled pass has no hidden states.
        names = [tap.name for tap in self.decoder.denoiser.taps]
        return dict(zip(names, map(raised, [l_0, *hidden]), strict=False))
