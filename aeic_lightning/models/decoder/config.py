"""Sizes of the decoder."""

from dataclasses import dataclass, field

from aeic_lightning.errors import UserError
from aeic_lightning.models.decoder.tiling import TilingConfig


@dataclass
class UNetConfig:
    """Sizes of the U-Net. The defaults are those of Stable Diffusion 2.1 (and SD-Turbo).

    Args:
        widths: channels of each resolution.
        heads: attention heads of each resolution.
        layers: resnets in a down block (an up block has one more).
        groups: groups of every GroupNorm.
        attention: whether each resolution has attention; null: all but the last. Its cost grows with the square of the
            image: small decoders for a CPU leave it to the coarser resolutions. The middle block always has it.
    """

    widths: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    heads: list[int] = field(default_factory=lambda: [5, 10, 20, 20])
    layers: int = 2
    groups: int = 32
    attention: list[bool] | None = None

    @property
    def attends(self) -> list[bool]:
        """Whether each resolution has attention."""
        return [i + 1 < len(self.widths) for i in range(len(self.widths))] if self.attention is None else self.attention

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if len(self.attends) != len(self.widths):
            raise UserError(
                f"decoder: {len(self.widths)} U-Net widths but {len(self.attends)} values of attention; "
                "give one for each"
            )
        if len(self.widths) != len(self.heads):
            raise UserError(f"decoder: {len(self.widths)} U-Net widths but {len(self.heads)} heads; give one for each")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise UserError(
                    f"decoder: U-Net width {width} is not a multiple of its {heads} heads and of {self.groups} groups"
                )

    @property
    def hidden_channels(self) -> list[int]:
        """Channels of h_0, h_1, ...: down blocks, mid block, up blocks."""
        return [*self.widths, self.widths[-1], *reversed(self.widths)]


@dataclass
class RestorationConfig:
    """Sizes of a restoration network that ends a VAE decoder (`restoration.Restoration`).

    Args:
        width: channels of its layers.
        layers: 3x3 convolutions between its first and its last.
        weights: trained ones, which a new run starts from before `init_from`: a `.param` file of ncnn, or
            PACKAGE/path/in/it for one in an installed package; null: random ones.
    """

    width: int = 64
    layers: int = 16
    weights: str | None = None


@dataclass
class VAEConfig:
    """Sizes of the VAE decoder. The defaults are those of the half-width decoder of the paper.

    Args:
        widths: channels from full resolution (first) to stride 8 (last); from stride `patch` on.
        layers: resnets in a block, less one.
        groups: groups of every GroupNorm; 0 leaves the norms out, which small decoders that are trained from scratch
            learn colours faster without.
        attention: whether the middle block, at stride 8, has attention.
        patch: the last convolution gives this many pixels in each direction at once (1, 2, 4 or 8). The blocks at full
            resolution, which cost a CPU the most for the least, go.
        blend: with a patch, channels at full resolution from which a 3x3 convolution makes the picture, so that
            neighbouring patches overlap; 0 puts the patches side by side, which leaves a pattern of their period.
        restoration: with a patch of 4, a network in place of the last convolution; null: none.
    """

    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 256])
    layers: int = 2
    groups: int = 32
    attention: bool = True
    patch: int = 1
    blend: int = 0
    restoration: RestorationConfig | None = None

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if self.patch not in (1, 2, 4, 8):
            raise UserError(f"decoder: the VAE decoder's patch is 1, 2, 4 or 8 pixels, not {self.patch}")
        if self.blend < 0 or (self.blend and self.patch == 1):
            raise UserError(
                f"decoder: the VAE decoder's blend is {self.blend}; it is 0 or a number of channels, and needs a patch "
                "above 1"
            )
        if self.restoration and (self.patch != 4 or self.blend):
            raise UserError("decoder: the VAE decoder's restoration takes a patch of 4 and no blend")
        if self.restoration and min(self.restoration.width, self.restoration.layers) < 1:
            raise UserError("decoder: the VAE decoder's restoration has a width and a number of layers above 0")
        strides = [stride for stride in (1, 2, 4, 8) if stride >= self.patch]
        if len(self.widths) != len(strides):
            raise UserError(
                f"decoder: the VAE decoder needs {len(strides)} widths (strides {', '.join(map(str, strides))}), "
                f"not {len(self.widths)}"
            )
        if self.groups and any(width % self.groups for width in self.widths):
            raise UserError(f"decoder: every VAE width must be a multiple of its {self.groups} groups")


@dataclass
class PretrainedConfig:
    """A frozen base, and LoRA over its U-Net. Of the decoder, then, only LoRA, conv_in and conv_out are trained and
    kept in checkpoints.

    Both names are looked for as a path, then in the folder AEIC_WEIGHTS (environment), then in the Hugging Face cache;
    nothing is downloaded.

    Args:
        unet: a diffusers folder (with `unet/`, or that folder itself), or a repository's name.
        vae: the state dict of a VAE decoder, as a file or as REPOSITORY/path/in/it.
        rank: of LoRA.
        alpha: LoRA's output is scaled by alpha / rank.
    """

    unet: str = "stabilityai/sd-turbo"
    vae: str = "Guaishou74851/AdcSR/weight/pretrained/halfDecoder.ckpt"
    rank: int = 32
    alpha: float = 8.0

    def check(self) -> None:
        """Raise UserError for an adapter that cannot be."""
        if self.rank < 1:
            raise UserError(f"decoder.pretrained: rank must be at least 1, not {self.rank}")


@dataclass
class DecoderConfig:
    """The one-step decoder.

    Args:
        unet: sizes of the denoiser.
        vae: sizes of the VAE decoder.
        pretrained: frozen weights under LoRA; null trains both networks whole, from random weights.
        gradient_checkpointing: keep less for the backward pass and compute it again: less memory, a third more time.
        tiling: in evaluation mode, tile what is larger than a tile. With null only pictures of streams are tiled, above
            4 megapixels, in tiles of at most 2048 pixels.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    pretrained: PretrainedConfig | None = None
    gradient_checkpointing: bool = False
    tiling: TilingConfig | None = None
