"""The sender's own part, g_a and h_a: as quick as it likes, since the receiver never repeats it."""

import copy
import itertools
from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.bitstream.products import by_rows
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.layers import Down, StarBlock
from aeic_lightning.models.parts import find_reach
from aeic_lightning.torch_settings import bfloat16_is_quicker

CHUNK = 1 << 20  # values at a time in the widest pointwise layer
NARROW = 32  # a Down of at most this many channels runs as one strided convolution
BAND_PIXELS = 1 << 22  # images above are analysed in bands of about this many pixels


class Sender:
    """x (1, 3, H, W) in [-1, 1] -> y, z of its padded form, both float32.

    A g_a of Downs and StarBlocks runs in a quick form: channels last, pointwise layers a few positions at a time, with
    `fast` in bfloat16 if a short timing finds that quicker here, which moves y by less than the rounding to come. Any
    other g_a runs its own forward in float32.

    Large images are taken in bands of rows, so that memory does not grow with the height. Each band takes along as many
    rows around it as g_a looks at, so the bands give what the whole image would, but for the order of additions. Where
    g_a looks at the whole image, that is taken in one piece.
    """

    def __init__(self, codec: LatentCodec, fast: bool = False) -> None:
        self.codec = codec
        self.is_quick = _is_quick(codec.g_a)
        self.dtype = torch.bfloat16 if fast and self.is_quick and bfloat16_is_quicker() else torch.float32
        plain = _laid_out(copy.deepcopy(codec.g_a).float().eval(), torch.contiguous_format)
        self.g_a = _quick(_sequence(plain), self.dtype) if self.is_quick else [plain]
        self.h_a = (
            _quick(codec.h_a, torch.float32)
            if _is_quick(codec.h_a)
            else [_laid_out(copy.deepcopy(codec.h_a).float().eval(), torch.contiguous_format)]
        )

    @cached_property
    def halo(self) -> int | None:
        """Rows of pixels around a band, a multiple of twice the stride; None where g_a looks at the whole image."""
        stride = self.codec.stride
        reach = _reach(_sequence(self.codec.g_a)) if self.is_quick else find_reach(cast(nn.Module, self.g_a[0]), stride)
        return None if reach is None else max(-(-reach // (2 * stride)), 1) * 2 * stride

    def __call__(self, x: Tensor, level: float | None = None) -> tuple[Tensor, Tensor]:
        """y and z of an image at a rate level, for a codec with several."""
        return self.at_level(self.analyse(x), level)

    @torch.inference_mode()
    def analyse(self, x: Tensor) -> Tensor:
        """y of g_a, on the codec's device, the same at every rate level. Raises UserError where it is not finite."""
        x = self.codec.pad(x.to(self.codec.prior.quantiles.device))
        small = x[0, 0].numel() <= BAND_PIXELS
        y = self._analyse(x) if small or self.halo is None else self._in_bands(x, self.halo)
        if not y.isfinite().all():
            raise UserError("g_a gives values that are not finite: the model has diverged; use an earlier checkpoint")
        return y

    @torch.inference_mode()
    def at_level(self, y: Tensor, level: float | None = None) -> tuple[Tensor, Tensor]:
        """y in steps of the quantiser, and z, at a rate level."""
        y = self.codec.scale_y(y, self.codec.levels(1, level))
        return y, self._hyper_analyse(y)

    def _in_bands(self, x: Tensor, halo: int) -> Tensor:
        height, width = x.shape[2:]
        stride = self.codec.stride
        rows = max(BAND_PIXELS // width, halo) // (2 * stride) * 2 * stride
        bands = []
        for top in range(0, height, rows):
            first, last = max(top - halo, 0), min(top + rows + halo, height)
            y = self._analyse(x[:, :, first:last])
            skip = (top - first) // stride
            bands.append(y[:, :, skip : skip + min(rows, height - top) // stride])
        return torch.cat(bands, dim=2)

    def _analyse(self, x: Tensor) -> Tensor:
        x = laid_out(x.to(self.dtype), torch.channels_last)
        for layer in self.g_a:
            x = layer(x)
        return x.float().contiguous()

    def _hyper_analyse(self, y: Tensor) -> Tensor:
        z = laid_out(self.codec.pad_y(y), torch.channels_last)
        for layer in self.h_a:
            z = layer(z)
        return z.contiguous()


def laid_out(x: Tensor, form: torch.memory_format) -> Tensor:
    """A copy of (B, C, H, W) whose strides are those of this form.

    `contiguous` keeps a tensor that may pass for either form, as one image or one channel does, with whatever strides
    it has. By these libraries choose their kernels, and by the kernel the order of sums.
    """
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=form).copy_(x)


def _laid_out(module: nn.Module, form: torch.memory_format) -> nn.Module:
    """The same module; what it holds of four dimensions is laid out in this form, all else row by row."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.layout == torch.strided:
            tensor.data = laid_out(tensor.data, form if tensor.dim() == 4 else torch.contiguous_format)
    return module


def _sequence(encoder: nn.Module) -> nn.Sequential:
    assert isinstance(encoder, nn.Sequential)
    return encoder


def _is_quick(part: nn.Module) -> bool:
    """Whether g_a or h_a is a plain sequence of Downs and StarBlocks, and of nothing derived from them."""
    if not isinstance(part, nn.Sequential) or type(part).forward is not nn.Sequential.forward:
        return False
    return all(type(module) in (Down, StarBlock) for module in part)


def _reach(layers: nn.Sequential) -> int:
    """Rows of pixels that a row of y sees beyond its own: a Down 1 at its input's resolution, a StarBlock 5."""
    reach, scale = 0, 1
    for module in layers:
        reach += 5 * scale if isinstance(module, StarBlock) else scale
        scale *= 1 if isinstance(module, StarBlock) else 2
    return reach


def _quick(layers: nn.Module, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """Copies of Downs and StarBlocks, in a form for one image, channels last."""
    copies = _sequence(_laid_out(copy.deepcopy(layers).to(dtype).eval(), torch.channels_last))
    return [_Star(module) if isinstance(module, StarBlock) else _down(cast(Down, module)) for module in copies]


class _Star:
    """`StarBlock` for images of one (1, C, H, W), channels last: the wide layers never exist as a whole."""

    def __init__(self, block: StarBlock) -> None:
        self.dwconv, self.norm = block.dwconv, block.norm
        weight = block.fc1.weight.flatten(1)
        # Two products whose results lie in one piece: gelu of every other half row would take twice as long.
        self.gate, self.value = zip(weight.chunk(2), cast(Tensor, block.fc1.bias).chunk(2), strict=True)
        self.fc2 = block.fc2.weight.flatten(1).contiguous(), block.fc2.bias
        self.rows = CHUNK // len(weight)

    def __call__(self, x: Tensor) -> Tensor:
        tokens, mixed = (part.permute(0, 2, 3, 1) for part in (x, self.dwconv(x)))
        (out,) = by_rows(self._rows, tokens, mixed, rows=self.rows)
        return out.permute(0, 3, 1, 2)

    def _rows(self, x: Tensor, mixed: Tensor) -> tuple[Tensor]:
        norm = self.norm
        mixed = F.layer_norm(mixed, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        wide = F.gelu(F.linear(mixed, *self.gate)).mul_(F.linear(mixed, *self.value))
        return (F.linear(wide, *self.fc2).add_(x),)


def _down(down: Down) -> Callable[[Tensor], Tensor]:
    """`Down`; where it has few channels, as a 4x4 convolution with stride 2.

    That takes 16/9 of the products, but none of the time that it takes to rearrange pixels into channels.
    """
    weight, bias = down.conv.weight, down.conv.bias
    quarter, inside = weight.shape[:2]
    if inside > NARROW:
        return down
    wide = weight.new_zeros(quarter, 2, 2, inside, 4, 4)
    for row in range(2):
        for column in range(2):
            wide[:, row, column, :, row : row + 3, column : column + 3] = weight
    wide = wide.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    bias = cast(Tensor, bias).repeat_interleave(4)
    return lambda x: F.conv2d(x, wide, bias, stride=2, padding=1)
