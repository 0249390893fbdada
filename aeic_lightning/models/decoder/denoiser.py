"""The one-step denoiser: a Stable Diffusion U-Net without time, text and cross-attention, run once.

       l_T ──conv_in──> down 0 ─ down 1 ─ down 2 ─ down 3 ─ mid ─ up 0 ─ up 1 ─ up 2 ─ up 3 ──conv_out──> l_0
                          h_0      h_1      h_2      h_3    h_4   h_5    h_6    h_7    h_8

Nothing replaces the time embedding or the cross-attention (`blocks.py`).

At full size the trunk (all between conv_in and conv_out) is Stable Diffusion's and frozen, with LoRA beside its layers.
A teacher and a student then share one trunk, each with an adapter, a conv_in and a conv_out of its own:

       teacher: conv_in ─┐                            ┌─ conv_out
                         ├─ trunk + adapter of either ─┤
       student: conv_in ─┘                            └─ conv_out
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aeic_lightning.extras import require
from aeic_lightning.models.decoder.blocks import DownBlock, MidBlock, Recompute, Recomputing, Transformer, UpBlock
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


class UNetTrunk(nn.Module):
    """All of the U-Net between conv_in and conv_out: the part that a teacher and a student can share.

    Residual branches start at zero, so that a trunk trained from scratch begins as the identity.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        config.check()
        widths, groups = config.widths, config.groups
        heads = [n if attends else None for n, attends in zip(config.heads, config.attends, strict=True)]
        last = len(widths) - 1

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]  # channels of all that skips to the up blocks
        for i, (w_in, w_out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            self.down_blocks.append(DownBlock(w_in, w_out, config.layers, groups, heads[i], halves=i < last))
            skips += [w_out] * (config.layers + (i < last))

        top = widths[-1]
        self.mid_block = MidBlock(top, groups, 1e-5, lambda: Transformer(top, config.heads[-1], groups))

        self.up_blocks = nn.ModuleList()
        for i in range(last, -1, -1):
            own = [skips.pop() for _ in range(config.layers + 1)]
            self.up_blocks.append(UpBlock(widths[min(i + 1, last)], widths[i], own, groups, heads[i], doubles=i > 0))
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=1e-5)
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

        def recompute(function: Callable[..., Any], *args: Any) -> Any:
            name = self._active

            def run(*args: Any) -> Any:
                # By the time of the backward pass another adapter may have had its turn.
                if name is not None:
                    self.use_lora(name)
                return function(*args)

            return checkpoint(run, *args, use_reentrant=False)

        self.recompute_with(recompute)

    def recompute_with(self, recompute: Recompute) -> None:
        """Run resnets and transformers through this."""
        for module in self.modules():
            if isinstance(module, Recomputing):
                module.recompute = recompute

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
            own = [skips.pop() for _ in cast(nn.ModuleList, block.resnets)]
            # An odd size on the way down makes the next skip connection less than twice the size of x.
            x = block(x, own, skips[-1].shape[2:] if skips else None)
            hidden.append(x)
        return F.silu(self.conv_norm_out(x)), hidden


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
