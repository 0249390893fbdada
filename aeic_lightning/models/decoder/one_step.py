"""The receiver's decoder: one denoiser pass, plus l_res, through a VAE decoder."""

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aeic_lightning.errors import UserError
from aeic_lightning.models.decoder import stable_diffusion
from aeic_lightning.models.decoder.blocks import VAEDecoder
from aeic_lightning.models.decoder.config import DecoderConfig, PretrainedConfig, VAEConfig
from aeic_lightning.models.decoder.denoiser import Denoiser
from aeic_lightning.models.decoder.restoration import Restoration
from aeic_lightning.models.decoder.tiling import TilingConfig, blend_evenly, blend_tiles, fits

LARGE, OVERLAP = 256, 32
"""Largest tiles, in latents, of pictures whose config has none, and how far they overlap: of 2048 and 256 pixels."""


def vae_decoder(in_channels: int, config: VAEConfig) -> VAEDecoder:
    """latents (B, in_channels, h, w) -> image (B, 3, 8h, 8w)."""
    channels = (config.blend or 3) * config.patch**2
    decoder = VAEDecoder(in_channels, channels, config.widths, config.layers + 1, config.groups, config.attention)
    if config.restoration:
        decoder.conv_out = Restoration(config.widths[0], config.restoration)
    elif config.patch > 1:
        last: list[nn.Module] = [decoder.conv_out, nn.PixelShuffle(config.patch)]
        if config.blend:
            last.append(nn.Conv2d(config.blend, 3, 3, padding=1))
        decoder.conv_out = nn.Sequential(*last)
    return decoder


class DecoderOutput(NamedTuple):
    """x_hat (B, 3, 8h, 8w); l_0 and the hidden states are taps for distillation (none of these in a tiled pass)."""

    x_hat: Tensor
    l_0: Tensor
    hidden: list[Tensor]


class OneStepDecoder(nn.Module):
    """x_hat = vae(denoiser(l_T) + l_res), with l_T and l_res at stride 8.

    There is no noise schedule and no latent scaling: l_0 + l_res enters the VAE decoder as it is.

    With `config.pretrained` the base weights wait on the meta device until `load_base` (or `share_base`). They never
    enter `state_dict`, whose names do not depend on who else shares the base: `denoiser.trunk. ... .lora_A.weight`.
    """

    def __init__(self, l_T_channels: int, l_res_channels: int, config: DecoderConfig) -> None:
        super().__init__()
        config.vae.check()
        if config.tiling:
            config.tiling.check()
        if config.pretrained:
            config.pretrained.check()
        self.config = config
        base = config.pretrained
        self.denoiser = Denoiser(
            l_T_channels, l_res_channels, config.unet, lora=(base.rank, base.alpha) if base else None
        )
        vae = config.vae
        with torch.device("meta") if base else nullcontext():
            self.vae = vae_decoder(l_res_channels, vae)
        if config.gradient_checkpointing:
            self._checkpoint()
        self.base_digests: dict[str, str] | None = None
        self._base_ends: dict[str, Tensor] = {}
        if base:
            self.vae.requires_grad_(False)
            self.register_state_dict_post_hook(_leave_out_base)
            self.register_load_state_dict_pre_hook(_fill_in_base)
            self.train(self.training)

    def train(self, mode: bool = True) -> "OneStepDecoder":
        """A frozen base stays in evaluation mode."""
        super().train(mode)
        if self.config.pretrained:
            self.denoiser.trunk.eval()
            self.vae.eval()
        return self

    # ------------------------------------------------------------------ the frozen base

    @property
    def has_base(self) -> bool:
        """Whether the decoder can run: it has its base, or needs none."""
        return not self.vae.conv_in.weight.is_meta

    def load_base(self) -> None:
        """Read the base from `config.pretrained`, and start conv_in and conv_out from its own, widened.

        Does nothing where there is none to load, or it is there. Call it before a checkpoint is loaded. Raises
        UserError when files are missing or of other sizes, saying how to get them.
        """
        base = self.config.pretrained
        if base and not self.has_base:
            unet = stable_diffusion.read_unet(base.unet, self.config.unet)
            self.set_base(unet, stable_diffusion.read_vae_decoder(base.vae))

    def set_base(self, unet: dict[str, Tensor], vae: dict[str, Tensor]) -> None:
        """Take the base from tensors by name: a U-Net without time, text and cross-attention, and a VAE decoder.

        They are taken over, not copied. Raises UserError naming the first tensor that is missing, superfluous or of
        another shape.
        """
        base = cast(PretrainedConfig, self.config.pretrained)
        digests = stable_diffusion.base_digests(unet, vae)
        ends = {name: tensor for name, tensor in unet.items() if name.startswith(("conv_in.", "conv_out."))}
        trunk = {name: tensor for name, tensor in unet.items() if name not in ends}
        kernel = vae.get("conv_in.weight")
        if kernel is not None:
            vae = vae | {"conv_in.weight": widened(kernel, self.vae.conv_in.in_channels, dim=1)}

        # LoRA has put the base's own layers one level lower.
        wrapped = {name.replace(".base_layer.", "."): name for name in self.denoiser.trunk.state_dict()}
        wrapped = {plain: name for plain, name in wrapped.items() if ".lora_" not in plain}
        stable_diffusion.assign(self.denoiser.trunk, trunk, f"U-Net {base.unet}", wrapped)
        stable_diffusion.assign(self.vae, vae, f"VAE decoder {base.vae}")
        self.base_digests, self._base_ends = digests, ends
        self._start_ends()

    def share_base(self, other: "OneStepDecoder", name: str) -> None:
        """Work on the base of `other`, through a new adapter of this name. The adapter of `other` is frozen.

        Raises UserError when the two are not made for the same base.
        """
        ours, theirs = self.config, other.config
        if ours.pretrained is None or theirs.pretrained is None:
            raise UserError("a base can be shared only where both decoders have `pretrained`")
        if (ours.unet, ours.vae) != (theirs.unet, theirs.vae) or self._ends != other._ends:
            raise UserError("teacher and student cannot share a base of different sizes: give both the same decoder")
        self.denoiser.adapt(other.denoiser.trunk, name)
        self.vae = other.vae
        self.base_digests, self._base_ends = other.base_digests, other._base_ends
        self._start_ends()
        if ours.gradient_checkpointing:
            self._checkpoint()

    @property
    def _ends(self) -> tuple[int, int]:
        return self.denoiser.conv_in.in_channels, self.denoiser.conv_out.out_channels

    def _start_ends(self) -> None:
        """conv_in and conv_out from the base's four channels: kernels tiled and divided, biases tiled."""
        l_T_channels, l_res_channels = self._ends
        ends = self._base_ends
        bias = ends["conv_out.bias"]
        self.denoiser.conv_in.load_state_dict(
            {"weight": widened(ends["conv_in.weight"], l_T_channels, dim=1), "bias": ends["conv_in.bias"]}
        )
        self.denoiser.conv_out.load_state_dict(
            {
                "weight": widened(ends["conv_out.weight"], l_res_channels, dim=0),
                "bias": bias[torch.arange(l_res_channels) % len(bias)],
            }
        )

    def _checkpoint(self) -> None:
        self.denoiser.trunk.enable_checkpointing()
        self.vae.recompute = partial(checkpoint, use_reentrant=False)

    def merge_adapter(self) -> None:
        """Merge LoRA, if there is any, into the base: the same function up to rounding, quicker, and no longer trained.

        `state_dict` is the same before and after, bit for bit.
        """
        if self.denoiser.adapter is not None:
            self.denoiser.trunk.merge_lora(self.denoiser.adapter)

    # ------------------------------------------------------------------ the pass

    def forward(self, l_T: Tensor, l_res: Tensor) -> DecoderOutput:
        """Latents (B, C, h, w) -> x_hat, clamped to [-1, 1] in evaluation mode, where `config.tiling` holds as well.

        In training mode x_hat is not clamped, since a pixel beyond the range would get no gradient to come back.
        """
        self._check_base(l_T)
        if self.training:
            l_0, hidden = self.denoiser(l_T)
            return DecoderOutput(self.vae(l_0 + l_res), l_0, hidden)
        tiling = self.config.tiling
        if tiling is None or fits(l_T, min(tiling.unet_tile, tiling.vae_tile)):
            l_0, hidden = self.denoiser(l_T)
            return DecoderOutput(self.vae(l_0 + l_res).clamp(-1, 1), l_0, hidden)
        return self.decode_tiled(l_T, l_res, tiling)

    def _check_base(self, l_T: Tensor) -> None:
        if not self.has_base and not l_T.is_meta:
            raise UserError("the decoder has no base weights yet; call load_base() before the first image")

    def is_large(self, l_T: Tensor) -> bool:
        """Whether its picture is made in even tiles: above 4 megapixels, where the config has no others."""
        return self.config.tiling is None and not fits(l_T, LARGE)

    def denoise_evenly(self, l_T: Tensor) -> Tensor:
        """l_0 of l_T in even tiles."""
        self._check_base(l_T)
        return blend_evenly(lambda x: self.denoiser(x).l_0, l_T, LARGE, OVERLAP, scale=1)

    def paint_evenly(self, latents: Tensor) -> Tensor:
        """x_hat of l_0 + l_res in even tiles, clamped."""
        return blend_evenly(self.vae, latents, LARGE, OVERLAP, scale=8).clamp_(-1, 1)

    def decode_tiled(self, l_T: Tensor, l_res: Tensor, tiling: TilingConfig) -> DecoderOutput:
        """The pass in overlapping tiles, first of the denoiser, then of the VAE decoder; x_hat clamped, no hidden.

        Equal to the whole pass as far as the networks are local. Attention and GroupNorm are not: within a tile they
        see the tile, so that a tiled picture is another one than the whole pass gives, without seams. Memory beside
        the latents and the picture is that of one tile.
        """
        l_0 = self.denoise(l_T, tiling)
        return DecoderOutput(self.paint(l_0 + l_res, tiling).clamp_(-1, 1), l_0, [])

    def denoise(self, l_T: Tensor, tiling: TilingConfig) -> Tensor:
        """l_0 of l_T, in tiles."""
        return blend_tiles(lambda x: self.denoiser(x).l_0, l_T, tiling.unet_tile, tiling.unet_overlap, scale=1)

    def paint(self, latents: Tensor, tiling: TilingConfig) -> Tensor:
        """x_hat, not clamped, of l_0 + l_res, in tiles."""
        return blend_tiles(self.vae, latents, tiling.vae_tile, tiling.vae_overlap, scale=8)


@torch.no_grad()
def interpolated(first: OneStepDecoder, second: OneStepDecoder, share: float) -> OneStepDecoder:
    """A decoder whose weights lie between those of two whole ones of equal sizes; `share` 1 is the second."""
    decoder = copy.deepcopy(first)
    theirs = second.state_dict()
    for name, tensor in decoder.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], share)
    return decoder


def widened(kernel: Tensor, channels: int, dim: int) -> Tensor:
    """A kernel for `channels` channels along `dim` from one for fewer: channel c has kernel c mod n, times n/channels.

    Over copies of the same channels it gives what the narrow kernel gave.
    """
    n = kernel.shape[dim]
    return kernel.index_select(dim, torch.arange(channels, device=kernel.device) % n) * (n / channels)


def _is_kept(name: str, adapter: str | None) -> bool:
    """Whether a checkpoint holds a tensor of this name (below the decoder)."""
    if name.startswith("denoiser.trunk."):
        return f".{adapter}." in name and ".lora_" in name
    return not name.startswith("vae.")


def _leave_out_base(decoder: OneStepDecoder, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    adapter = decoder.denoiser.adapter
    for name in [name for name in state if name.startswith(prefix)]:
        tensor = state.pop(name)
        if _is_kept(name.removeprefix(prefix), adapter):
            # Named without the adapter, so that a student's checkpoint can be the next student's teacher.
            state[name.replace(f".{adapter}.weight", ".weight")] = tensor


def _fill_in_base(decoder: OneStepDecoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    adapter = decoder.denoiser.adapter
    for name in [name for name in state if ".lora_" in name and name.startswith(prefix)]:
        state[name.removesuffix(".weight") + f".{adapter}.weight"] = state.pop(name)
    # What a checkpoint does not hold stays as it is.
    for part, module in (("denoiser.trunk.", decoder.denoiser.trunk), ("vae.", decoder.vae)):
        for name, tensor in module.state_dict().items():
            if not _is_kept(part + name, adapter):
                state[prefix + part + name] = tensor
