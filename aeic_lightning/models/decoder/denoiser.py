"""The one-step denoiser: a Stable Diffusion U-Net without time, text and cross-attention, run once.

       l_T ──conv_in──> down 0 ─ down 1 ─ down 2 ─ down 3 ─ mid ─ up 0 ─ up 1 ─ up 2 ─ up 3 ──conv_out──> l_0
                          h_0      h_1      h_2      h_3    h_4   h_5    h_6    h_7    h_8

The blocks are the diffusers library's own; nothing replaces the time embedding or the cross-attention.

At full size the trunk (all between conv_in and conv_out) is Stable Diffusion's and frozen, with LoRA beside its layers.
A teacher and a student then share one trunk, each with an adapter, a conv_in and a conv_out of its own:

       teacher: conv_in ─┐                            ┌─ conv_out
                         ├─ trunk + adapter of either ─┤
       student: conv_in ─┘                            └─ conv_out
"""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.checkpoint import checkpoint

from aeic_lightning.extras import require
from aeic_lightning.models.decoder.config import UNetConfig
from aeic_lightning.models.taps import Tap

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

# The layers beside which the paper puts LoRA; `conv` is that of the down- and upsamplers.
LORA_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "conv"),
)


class DenoiserOutput(NamedTuple):
    """l_0 (B, l_res channels, h, w) and the hidden states, each after its block's sampler."""

    l_0: Tensor
    hidden: list[Tensor]


class UNetTrunk(ModelMixin):
    """All of the U-Net between conv_in and conv_out: the part that a teacher and a student can share."""

    _supports_gradient_checkpointing = True

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        config.check()
        widths, heads = config.widths, config.heads
        last = len(widths) - 1
        common = {
            "temb_channels": None,
            "resnet_eps": 1e-5,
            "resnet_act_fn": "silu",
            "resnet_groups": config.groups,
        }
        attention = {"cross_attention_dim": None, "use_linear_projection": True}

        self.down_blocks = nn.ModuleList()
        for i, (w_in, w_out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            sizes = {"in_channels": w_in, "out_channels": w_out, "num_layers": config.layers}
            sizes |= {"add_downsample": i < last, "downsample_padding": 1}
            if config.attends[i]:
                block = CrossAttnDownBlock2D(**sizes, **common, **attention, num_attention_heads=heads[i])
            else:
                block = DownBlock2D(**sizes, **common)
            self.down_blocks.append(block)

        self.mid_block = UNetMidBlock2DCrossAttn(
            in_channels=widths[-1], num_attention_heads=heads[-1], **common, **attention
        )

        self.up_blocks = nn.ModuleList()
        for i in range(last, -1, -1):
            sizes = {
                "in_channels": widths[max(i - 1, 0)],
                "out_channels": widths[i],
                "prev_output_channel": widths[min(i + 1, last)],
                "num_layers": config.layers + 1,
                "add_upsample": i > 0,
            }
            if config.attends[i]:
                block = CrossAttnUpBlock2D(**sizes, **common, **attention, num_attention_heads=heads[i])
            else:
                block = UpBlock2D(**sizes, **common)
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[0], eps=1e-5)

        # Residual branches start at zero, so that a trunk trained from scratch begins as the identity.
        module: Any
        for module in self.modules():
            if type(module).__name__ == "ResnetBlock2D":
                nn.init.zeros_(module.conv2.weight)
            elif type(module).__name__ == "Transformer2DModel":
                nn.init.zeros_(module.proj_out.weight)
        self._adapted = False
        self._active: str | None = None

    def add_lora(self, name: str, rank: int, alpha: float) -> None:
        """Freeze all that is there, other adapters included, and add a trainable adapter, active from now on.

        It starts as nothing: A is N(0, 1/rank^2), B zero; its output is scaled by alpha / rank. It is made on the
        default device, wherever the base lies, so that a base may come later.
        """
        require("LoRA", "peft")
        from peft import LoraConfig, inject_adapter_in_model  # only the paper's size has LoRA

        self.requires_grad_(False)
        lora_alpha: Any = alpha  # peft takes any number
        config = LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=list(LORA_LAYERS), init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is what is meant
            inject_adapter_in_model(config, self, name, low_cpu_mem_usage=True)
        self._adapted = True
        device = torch.get_default_device()
        for layer in self.lora_layers():
            a, b = cast(tuple[nn.Linear, nn.Linear], (layer.lora_A[name], layer.lora_B[name]))
            for matrix in (a, b):
                matrix.to_empty(device=device).requires_grad_(True)
            nn.init.normal_(a.weight, std=1 / rank)
            nn.init.zeros_(b.weight)
        self._active = None
        self.use_lora(name)

    def lora_layers(self) -> "list[LoraLayer]":
        """The layers that have adapters; none in a trunk that is trained whole."""
        if not self._adapted:
            return []
        from peft.tuners.lora import LoraLayer

        return [module for module in self.modules() if isinstance(module, LoraLayer)]

    def use_lora(self, name: str) -> None:
        """Let the next pass go through this adapter. What is trainable does not change."""
        if name != self._active:
            for layer in self.lora_layers():
                # Not layer.set_adapter(), which would also make the adapter trainable.
                layer._active_adapter = [name]
            self._active = name

    def merge_lora(self, name: str) -> None:
        """Add this adapter to the layers below it, for passes without gradients: one product per layer, not three.

        The adapter's own tensors stay as they are. A base that another adapter uses too must not be merged.
        """
        for layer in self.lora_layers():
            assert list(layer.lora_A) == [name], "the base is shared"
            layer.merge(adapter_names=[name])

    def enable_checkpointing(self) -> None:
        """Keep only the inputs of resnets and transformers for the backward pass, and compute the rest again there."""

        def recompute(module: nn.Module, *args: Any) -> Any:
            name = self._active

            def run(*args: Any) -> Any:
                # By the time of the backward pass another adapter may have had its turn.
                if name is not None:
                    self.use_lora(name)
                return module(*args)

            return checkpoint(run, *args, use_reentrant=False)

        self.enable_gradient_checkpointing(recompute)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, widths[0], h, w), any h and w -> the same shape before conv_out, and the hidden states."""
        skips, hidden = [x], []
        for block in self.down_blocks:
            x, new_skips = block(x)
            skips += new_skips
            hidden.append(x)
        x = self.mid_block(x)
        hidden.append(x)
        for block in self.up_blocks:
            own = tuple(skips.pop() for _ in cast(nn.ModuleList, block.resnets))[::-1]
            x = block(x, own, upsample_size=_upsample_size(x, skips[-1]) if skips else None)
            hidden.append(x)
        return F.silu(self.conv_norm_out(x)), hidden


def _upsample_size(x: Tensor, skip: Tensor) -> torch.Size | None:
    """The size of the next skip connection, which an odd size on the way down makes less than twice that of `x`.

    None where it is twice that of `x`, in an export for all sizes: diffusers divides a size that it is given, and
    torch.export's fast way gives up at that division.
    """
    known = zip(skip.shape[2:], x.shape[2:], strict=True)
    return None if all(statically_known_true(ours == 2 * theirs) for ours, theirs in known) else skip.shape[2:]


class Denoiser(nn.Module):
    """One pass l_T -> l_0: a trunk between its own conv_in and conv_out.

    Args:
        in_channels, out_channels: of l_T and l_0.
        config: sizes of the trunk.
        lora: (rank, alpha) of an adapter over a frozen trunk, whose own weights are left on the meta device for
            `OneStepDecoder.load_base`; None for a trunk that is trained whole, from random weights.
    """

    def __init__(
        self, in_channels: int, out_channels: int, config: UNetConfig, lora: tuple[int, float] | None = None
    ) -> None:
        super().__init__()
        self.lora = lora
        self.adapter: str | None = None
        self.conv_in = nn.Conv2d(in_channels, config.widths[0], 3, padding=1)
        if lora is None:
            self.trunk = UNetTrunk(config)
        else:
            with torch.device("meta"):
                trunk = UNetTrunk(config)
            self.adapt(trunk, "own")
        self.conv_out = nn.Conv2d(config.widths[0], out_channels, 3, padding=1)
        last = len(config.widths) - 1
        down = [min(level + 1, last) for level in range(last + 1)]  # each block but the last ends by halving
        levels = [*down, last, *(max(level - 1, 0) for level in reversed(range(last + 1)))]
        self.taps = [Tap("l_0", "decoder", out_channels, 8)]
        self.taps += [
            Tap(f"h_{n}", "decoder", channels, 8 * 2**level)
            for n, (channels, level) in enumerate(zip(config.hidden_channels, levels, strict=True))
        ]

    def adapt(self, trunk: UNetTrunk, name: str) -> None:
        """Work through an adapter of this name, newly made, on `trunk`, which may be another denoiser's as well."""
        assert self.lora is not None
        trunk.add_lora(name, *self.lora)
        self.trunk, self.adapter = trunk, name

    def forward(self, l_T: Tensor) -> DenoiserOutput:
        """l_T (B, in_channels, h, w) -> l_0 and h_0, h_1, ..."""
        if self.adapter is not None:
            self.trunk.use_lora(self.adapter)
        x, hidden = self.trunk(self.conv_in(l_T))
        return DenoiserOutput(self.conv_out(x), hidden)
