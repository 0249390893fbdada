"""h_s and the context network in arithmetic that gives the same bits on every machine.

A float network differs in its last digits between thread counts, instruction sets and libraries, for two reasons only:
sums are taken in another order, and functions like erf or exp are approximated in another way. Here

- every sum is one of integers so small that each partial sum is exact (below 2^24 in float32, 2^31 in int32, 2^53 in
  float64), so its order cannot matter;
- everything else is elementwise, one IEEE 754 operation at a time (add, subtract, multiply, divide, square root, round
  to nearest even), each correctly rounded on any conforming machine. No fused multiply-add, hence no addcmul or lerp;
- GELU is a table.

Before a sum, activations become integers of 15 bits (12 before a depthwise convolution, 8 where that is enough) by a
scale from their own largest magnitude, and weights integers of 8 bits or more by a scale for each output channel. No
data is needed to calibrate, and nothing saturates.

Layout: float32 (h, w, C), channels last, one image at a time, on the CPU.
"""

import math
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.bitstream.rows import by_rows
from aeic_lightning.codec.context import QuadtreeContext
from aeic_lightning.codec.layers import (
    Adapter,
    ChannelNorm,
    GatedCNN,
    InceptionDepthwise,
    InceptionNeXt,
    StarBlock,
    Up,
)

Layer = Callable[[Tensor], Tensor]

LIMIT = 2**14  # of activations before a matrix product
BYTE = 127  # the same where measurements showed 8 bits to cost no rate
DEPTHWISE_LIMIT = 2047  # of activations before a depthwise convolution
DEPTHWISE_SUM = 2**24 // DEPTHWISE_LIMIT  # most that the magnitudes of a depthwise kernel may add up to
GELU_STEPS = 1024  # table entries for a unit
GELU_END = 8  # gelu(v) = max(v, 0) to 1e-14 beyond
MEAN_STEPS = 256  # means, and so y_hat, are multiples of 1/256
MEAN_LIMIT = 2.0**23  # in those steps, so that they are exact in float32
TINY = 2.0**-60  # smallest peak, so that an all-zero row divides by something


@contextmanager
def exact_mode():
    """Switch off what could replace float32 by something shorter: autocast and reduced-precision convolutions."""
    conv = torch.backends.mkldnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        conv.fp32_precision = before


# ---------------------------------------------------------------------------------------------------- products


def product_int8(q: Tensor, weight: Tensor, limit: int) -> Tensor:
    """Integers (n, K) of at most `limit` times int8 (K, O) -> the exact products, rounded once to float32 (n, O)."""
    n, inside = q.shape
    if limit <= BYTE:
        out = _scratch.get(torch.int32, n, weight.shape[1])
        return torch._int_mm(q.to(torch.int8), weight, out=out).float()
    q = q.to(torch.int16)
    # q = 256 high + low, both signed bytes.
    limbs = _scratch.get(torch.int8, 2 * n, inside)
    limbs[:n] = q
    limbs[n:] = q.add_(128).bitwise_right_shift_(8)
    products = torch._int_mm(limbs, weight, out=_scratch.get(torch.int32, 2 * n, weight.shape[1]))
    return products[:n].add_(products[n:], alpha=256).float()


class _Scratch(threading.local):
    """Memory of the last product. New pages from the system would cost more than the product itself."""

    def __init__(self) -> None:
        self.memory: dict[torch.dtype, Tensor] = {}

    def get(self, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
        memory = self.memory.get(dtype)
        if memory is None or memory.numel() < rows * columns:
            with torch.inference_mode(False):  # usable in either mode
                memory = self.memory[dtype] = torch.empty(rows * columns, dtype=dtype)
        return memory[: rows * columns].view(rows, columns)


_scratch = _Scratch()


def product_float64(q: Tensor, weight: Tensor, limit: int) -> Tensor:
    """The same as `product_int8`, on any machine."""
    return (q.double() @ weight.double()).float()


@cache
def int8_is_exact() -> bool:
    """Whether this machine's int8 matrix product adds up without saturation (some old instruction sets do not)."""
    if not hasattr(torch, "_int_mm"):
        return False
    generator = torch.Generator().manual_seed(0)
    extreme = torch.full((64, 1024), 127, dtype=torch.int8)
    mixed = torch.randint(-127, 128, (64, 1024), dtype=torch.int8, generator=generator)
    for a in (extreme, -extreme, mixed):
        for b in (extreme, mixed):
            if not torch.equal(torch._int_mm(a, b.t()), (a.double() @ b.t().double()).to(torch.int32)):
                return False
    return True


def product(q: Tensor, weight: Tensor, limit: int) -> Tensor:
    """The product in the quickest way that is exact here."""
    if torch.compiler.is_exporting() or not torch.backends.mkldnn.enabled or not int8_is_exact():
        return product_float64(q, weight, limit)
    return product_int8(q, weight, limit)


# ---------------------------------------------------------------------------------------------------- layers


class Linear(nn.Module):
    """1x1 convolutions of one input, side by side: (n, K) float32 -> (n, O) float32.

    Args:
        convs: with weights of one size, a kernel larger than 1x1 being a longer row.
        limit: largest integer that an activation becomes: LIMIT, or BYTE where 8 bits are enough.
    """

    def __init__(self, *convs: nn.Conv2d, limit: int = LIMIT) -> None:
        super().__init__()
        self.limit = limit
        weight = torch.cat([conv.weight.detach().flatten(1) for conv in convs]).float().cpu()
        # 127 at most; less where the products could add up beyond 31 bits.
        total = weight.double().abs().sum(1, keepdim=True).float()
        step = torch.maximum(weight.abs().amax(1, keepdim=True) / 127, total / (2**31 // limit - 2048))
        step = step.clamp(min=TINY)
        self.register_buffer("weight", (weight / step).round().to(torch.int8).t().contiguous())  # (K, O)
        self.register_buffer("step", step.flatten() / limit)  # (O,)
        self.register_buffer("bias", torch.cat([conv.bias.detach() for conv in convs]).float().cpu())

    def forward(self, x: Tensor) -> Tensor:
        peak = x.abs().amax(-1, keepdim=True).clamp_(min=TINY)
        q = (x * (self.limit / peak)).round_()
        return product(q, self.weight, self.limit).mul_(peak).mul_(self.step).add_(self.bias)


class Depthwise(nn.Module):
    """Depthwise convolution with zero padding: (h, w, C) -> (h, w, C)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach().float().cpu()
        # Rounding may add 1/2 to every weight of the kernel.
        total = weight.double().abs().sum((1, 2, 3), keepdim=True).float()
        step = (total / (DEPTHWISE_SUM - weight[0].numel())).clamp(min=TINY)
        self.padding = conv.padding
        self.register_buffer("weight", (weight / step).round().to(torch.int16))
        self.register_buffer("step", step.flatten() / DEPTHWISE_LIMIT)
        self.register_buffer("bias", conv.bias.detach().float().cpu())

    def forward(self, x: Tensor) -> Tensor:
        peak = x.flatten(0, 1).abs().amax(0).clamp_(min=TINY)
        weight = self.weight.float().to(memory_format=torch.channels_last)
        q = (x * (DEPTHWISE_LIMIT / peak)).round_()
        out = F.conv2d(q.permute(2, 0, 1)[None], weight, padding=self.padding, groups=self.weight.shape[0])
        return out[0].permute(1, 2, 0).mul(peak).mul_(self.step).add_(self.bias)


class Inception(nn.Module):
    """`InceptionDepthwise`."""

    def __init__(self, module: InceptionDepthwise) -> None:
        super().__init__()
        self.split = module.split
        self.hw = Depthwise(module.dwconv_hw)
        self.w = Depthwise(module.dwconv_w)
        self.h = Depthwise(module.dwconv_h)

    def forward(self, x: Tensor) -> Tensor:
        same, hw, w, h = x.split(self.split, dim=-1)
        return torch.cat([same, self.hw(hw), self.w(w), self.h(h)], dim=-1)


class Norm(nn.Module):
    """`ChannelNorm` of (n, C): the mean and the variance are of integers, and exact."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_buffer("weight", norm.weight.detach().float().cpu())
        self.register_buffer("bias", norm.bias.detach().float().cpu())

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[-1]
        peak = x.abs().amax(-1, keepdim=True).clamp_(min=TINY)
        q = (x * (LIMIT / peak)).round_()
        wide = q.double()
        total = wide.sum(-1, keepdim=True)
        spread = (wide * wide).sum(-1, keepdim=True) * channels - total * total  # C^2 times the variance of q
        step = peak.double() / LIMIT
        deviation = (spread / channels**2 + self.eps / (step * step)).sqrt_()
        mean = (total / channels).float()
        return q.sub_(mean).mul_((1 / deviation).float()).mul_(self.weight).add_(self.bias)


class Gelu(nn.Module):
    """gelu(v) = max(v, 0) - |v| (1 - Phi(|v|)), the second term from a table at steps of 1/1024."""

    def __init__(self) -> None:
        super().__init__()
        # Rounded to 2^-24, far coarser than what implementations of erfc differ by.
        values = [-u * math.erfc(u / math.sqrt(2)) / 2 for u in (i / GELU_STEPS for i in range(GELU_END * GELU_STEPS))]
        table = torch.tensor([round(value * 2**24) / 2**24 for value in values] + [0.0], dtype=torch.float32)
        self.register_buffer("table", table)

    def forward(self, v: Tensor) -> Tensor:
        index = (v.abs() * GELU_STEPS).round_().clamp_(max=GELU_END * GELU_STEPS).to(torch.int32)
        return self.table.index_select(0, index.flatten()).view_as(v).add_(v.clamp(min=0))


class Star(nn.Module):
    """`StarBlock`."""

    def __init__(self, block: StarBlock) -> None:
        super().__init__()
        self.dwconv = Inception(block.dwconv)
        self.norm = Norm(block.norm)
        self.fc1 = Linear(block.fc1)
        self.fc2 = Linear(block.fc2)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        return by_rows(self._rows, x, self.dwconv(x))[0]

    def _rows(self, x: Tensor, mixed: Tensor) -> tuple[Tensor]:
        gate, value = self.fc1(self.norm(mixed)).chunk(2, dim=-1)
        return (self.fc2(self.gelu(gate).mul_(value)).add_(x),)


class Upsample(nn.Module):
    """`Up`: (h, w, K) -> (2h, 2w, O)."""

    def __init__(self, up: Up) -> None:
        super().__init__()
        self.conv = Linear(up.conv)

    def forward(self, x: Tensor) -> Tensor:
        h, w, _ = x.shape
        patches = F.unfold(x.permute(2, 0, 1)[None], 3, padding=1)[0].t().reshape(h, w, -1)
        (out,) = by_rows(lambda rows: (self.conv(rows),), patches)
        return out.reshape(h, w, -1, 2, 2).permute(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, -1)


class AdapterLayer(nn.Module):
    """`Adapter`."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        first, _, depthwise, _, last = adapter.branch1
        self.hidden = first.out_channels
        self.first = Linear(first, adapter.branch2)
        self.depthwise = Depthwise(depthwise)
        self.last = Linear(last)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        hidden, direct = by_rows(self._before, x)
        return by_rows(self._after, self.depthwise(hidden), direct)[0]

    def _before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.first(x)
        return self.gelu(out[:, : self.hidden]), out[:, self.hidden :]

    def _after(self, hidden: Tensor, direct: Tensor) -> tuple[Tensor]:
        return (self.last(self.gelu(hidden)).add_(direct),)


class NeXt(nn.Module):
    """`InceptionNeXt`."""

    def __init__(self, module: InceptionNeXt) -> None:
        super().__init__()
        self.depthconv = Inception(module.depthconv)
        self.conv1 = Linear(module.conv1, limit=BYTE)
        self.conv2 = Linear(module.conv2)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        return by_rows(self._rows, x, self.depthconv(x))[0]

    def _rows(self, x: Tensor, mixed: Tensor) -> tuple[Tensor]:
        return (self.conv2(self.gelu(self.conv1(mixed))).add_(x),)


class Gated(nn.Module):
    """`GatedCNN`."""

    def __init__(self, module: GatedCNN) -> None:
        super().__init__()
        self.norm = Norm(module.norm)
        self.fc1 = Linear(module.fc1, limit=BYTE)
        self.conv = Depthwise(module.conv)
        self.fc2 = Linear(module.fc2)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        gate, value = by_rows(self._before, x)
        return by_rows(self._after, x, gate, self.conv(value))[0]

    def _before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.fc1(self.norm(x)).chunk(2, dim=-1)
        return self.gelu(a), b

    def _after(self, x: Tensor, gate: Tensor, value: Tensor) -> tuple[Tensor]:
        return (self.fc2(gate * value).add_(x),)


class HyperSynthesis(nn.Module):
    """h_s: z_hat (1, M/2, h/4, w/4) -> phi (1, M, h, w)."""

    def __init__(self, h_s: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Upsample(m) if isinstance(m, Up) else Star(m) for m in h_s))

    def forward(self, z_hat: Tensor) -> Tensor:
        return from_tokens(self.layers(to_tokens(z_hat)))


class Context(nn.Module):
    """`QuadtreeContext`: the same loop around exact parameters. Means are multiples of 1/256."""

    steps = QuadtreeContext.steps
    forward = QuadtreeContext.forward

    def __init__(self, context: QuadtreeContext) -> None:
        super().__init__()
        self.adapter_in = nn.ModuleList(AdapterLayer(a) for a in context.adapter_in)
        self.g_c = nn.Sequential(*(m for layer in context.g_c for m in (NeXt(layer[0]), Gated(layer[1]))))
        self.adapter_out = nn.ModuleList(AdapterLayer(a) for a in context.adapter_out)

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return self.params_by(base, self.adapter_in[step], self.adapter_out[step])

    def params_by(self, base: Tensor, adapter_in: Layer, adapter_out: Layer) -> tuple[Tensor, Tensor]:
        """Mean and raw scale, each (1, M, h, w), by one step's adapters."""
        mean, scale = from_tokens(adapter_out(self.g_c(adapter_in(to_tokens(base))))).chunk(2, dim=1)
        return (mean * MEAN_STEPS).round_().clamp_(-MEAN_LIMIT, MEAN_LIMIT).div_(MEAN_STEPS), scale


def to_tokens(x: Tensor) -> Tensor:
    """(1, C, h, w) -> (h, w, C)."""
    return x[0].permute(1, 2, 0).contiguous()


def from_tokens(x: Tensor) -> Tensor:
    """(h, w, C) -> (1, C, h, w), as a view."""
    return x.permute(2, 0, 1)[None]
