"""h_s and the context network in arithmetic that gives the same bits on every machine.

A float network differs in its last digits between thread counts, instruction sets and libraries, for two reasons only:
sums are taken in another order, and functions like erf or exp are approximated in another way. Here

- every sum is one of integers so small that each partial sum is exact (below 2^24 in float32, 2^31 in int32, 2^53 in
  float64), so its order cannot matter;
- everything else is elementwise, one IEEE 754 operation at a time (add, subtract, multiply, divide, square root, round
  to nearest even), each correctly rounded on any conforming machine. No fused multiply-add, hence no addcmul or lerp,
  and no float32 square root or reciprocal, which runtimes approximate;
- GELU is a table.

Before a sum, activations become integers of 15 bits (12 before a depthwise convolution, 8 where that is enough) by a
scale from their own largest magnitude, and weights integers of 8 bits or more by a scale for each output channel. No
data is needed to calibrate, and nothing saturates.

Layout: float32 (B, h, w, C), channels last, on the CPU. What each image becomes does not depend on the others.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import cache, partial, singledispatch
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.bitstream.products import BYTE, LIMIT, Weights, by_rows, in_parallel, in_pieces, product
from aeic_lightning.bitstream.wire import MEAN_STEPS
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec.context import (
    AT_ONCE,
    ContextModel,
    GridContext,
    NoContext,
    Pattern,
    Position,
    code_in_steps,
)
from aeic_lightning.models.integer import IntegerNetwork
from aeic_lightning.models.layers import (
    Adapter,
    ChannelNorm,
    ContextLayer,
    GatedCNN,
    InceptionDepthwise,
    InceptionNeXt,
    Pointwise,
    StarBlock,
    Up,
)
from aeic_lightning.torch_settings import own_settings

Layer = Callable[[Tensor], Tensor]

DEPTHWISE_LIMIT = 2047  # of activations before a depthwise convolution
DEPTHWISE_SUM = 2**24 // DEPTHWISE_LIMIT  # most that the magnitudes of a depthwise kernel may add up to
GELU_STEPS = 1024  # table entries for a unit
GELU_END = 8  # gelu(v) = max(v, 0) to 1e-14 beyond
PIECES = 2  # that the channels of a depthwise convolution are cut into
MEAN_LIMIT = 2.0**23  # in those steps, so that they are exact in float32
TINY = 2.0**-60  # smallest peak, so that an all-zero row divides by something


@contextmanager
def exact_mode():
    """Switch off what could replace float32 by something shorter: autocast, reduced-precision products."""
    with torch.inference_mode(), own_settings():
        yield


def to_integers(x: Tensor, limit: int, dim: int | tuple[int, ...] = -1) -> tuple[Tensor, Tensor]:
    """Integers of at most `limit` and the peaks along `dim`: x is about integers times peak / limit."""
    peak = x.abs().amax(dim, keepdim=True).clamp_(min=TINY)
    # limit / peak would be limit * (1 / peak), and runtimes approximate reciprocals.
    return (x * (torch.full((), float(limit)) / peak)).round_(), peak


class Linear(nn.Module):
    """A 1x1 convolution: (..., K) float32 -> (..., O) float32.

    Args:
        conv: a kernel larger than 1x1 is a longer row.
        limit: largest integer that an activation becomes: LIMIT, or BYTE where 8 bits are enough.
        gelu: the first outputs, this many, are in units of 1/GELU_STEPS, for `Gelu`.
        norm: what stands before, whose weight and bias are taken over.
    """

    weight: Tensor
    step: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, limit: int = LIMIT, gelu: int = 0, norm: ChannelNorm | None = None) -> None:
        super().__init__()
        assert conv.bias is not None
        self.limit = limit
        weight, bias = conv.weight.detach().flatten(1).float().cpu(), conv.bias.detach().float().cpu()
        if norm is not None:
            # Rounded to 2^-20, far coarser than what the order of these sums changes.
            moved = (weight.double() * norm.bias.detach().double().cpu()).sum(1)
            bias = bias + ((moved * 2**20).round() / 2**20).float()
            weight = weight * norm.weight.detach().float().cpu()
        # 127 at most; less where the products could add up beyond 31 bits.
        total = weight.double().abs().sum(1, keepdim=True).float()
        step = torch.maximum(weight.abs().amax(1, keepdim=True) / 127, total / (2**31 // limit - 2048))
        step = step.clamp(min=TINY)
        self.register_buffer("weight", (weight / step).round().to(torch.int8).t().contiguous())  # (K, O)
        unit = torch.ones(len(weight))
        unit[:gelu] = GELU_STEPS
        self.register_buffer("step", step.flatten() / limit * unit)  # (O,)
        self.register_buffer("bias", bias * unit)
        self.parts: dict[int | None, tuple[Weights, Tensor, Tensor]] = {}  # weights, steps and biases by quarter

    def forward(self, x: Tensor, quarter: int | None = None) -> Tensor:
        """All outputs, or one quarter of the first half and of the second: (..., O / 4)."""
        q, peak = to_integers(x, self.limit)
        if torch.compiler.is_exporting():
            weight, step, bias = self._part(quarter)
            return (q.double() @ weight.double()).float().mul_(peak).mul_(step).add_(bias)
        if quarter not in self.parts:
            weight, step, bias = self._part(quarter)
            self.parts[quarter] = Weights(weight), step, bias
        weights, step, bias = self.parts[quarter]
        out = product(q.reshape(-1, q.shape[-1]), weights, self.limit)
        return out.view(*q.shape[:-1], -1).mul_(peak).mul_(step).add_(bias)

    def _part(self, quarter: int | None) -> tuple[Tensor, Tensor, Tensor]:
        whole = self.weight, self.step, self.bias
        if quarter is None:
            return whole
        weight, step, bias = (part.unflatten(-1, (2, 4, -1))[..., quarter, :].flatten(-2) for part in whole)
        return weight, step, bias


class Depthwise(nn.Module):
    """Depthwise convolutions with zero padding, each of its share of the channels: `sums`, then `finish`.

    Args:
        convs: of equally many channels each.
        gelu: the outputs are in units of 1/GELU_STEPS, for `Gelu`.
    """

    step: Tensor
    bias: Tensor

    def __init__(self, *convs: nn.Conv2d, gelu: bool = False) -> None:
        super().__init__()
        self.padding = [conv.padding for conv in convs]
        steps = []
        for number, conv in enumerate(convs):
            weight = conv.weight.detach().float().cpu()
            # Rounding may add 1/2 to every weight of the kernel.
            total = weight.double().abs().sum((1, 2, 3), keepdim=True).float()
            step = (total / (DEPTHWISE_SUM - weight[0].numel())).clamp(min=TINY)
            self.register_buffer(f"weight{number}", (weight / step).round().to(torch.int16))
            steps.append(step.flatten())
        unit = GELU_STEPS if gelu else 1
        self.register_buffer("step", torch.cat(steps) / DEPTHWISE_LIMIT * unit)
        biases = [conv.bias.detach() for conv in convs if conv.bias is not None]
        self.register_buffer("bias", torch.cat(biases).float().cpu() * unit)

    def sums(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, h, w, C) -> the sums, integers, in pieces (B, h, w, c) of the C channels; the value (B, 1, C) of one."""
        weights = [getattr(self, f"weight{number}").float() for number in range(len(self.padding))]
        # Cores share the pieces; in a graph they would only add nodes.
        pieces = 1 if len(weights[0]) % PIECES or torch.compiler.is_exporting() else PIECES
        weights = [part for weight in weights for part in weight.chunk(pieces)]
        paddings = [padding for padding in self.padding for _ in range(pieces)]
        sums, peaks = zip(*in_parallel(_sums, weights, paddings, x.chunk(len(weights), dim=-1)), strict=True)
        return list(sums), torch.cat(peaks, dim=-1).mul_(self.step)

    def finish(self, one: Tensor, *sums: Tensor) -> Tensor:
        """The outputs (B, n, C) at n positions of the sums."""
        return torch.cat(sums, dim=-1).mul_(one).add_(self.bias)


def _sums(weight: Tensor, padding: tuple[int, int], x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of (B, h, w, c) by one depthwise kernel, and the peaks (B, 1, c)."""
    q, peak = to_integers(x, DEPTHWISE_LIMIT, (1, 2))
    weight = weight.to(memory_format=torch.channels_last)
    sums = F.conv2d(q.permute(0, 3, 1, 2), weight, padding=padding, groups=len(weight))
    return sums.permute(0, 2, 3, 1), peak.squeeze(1)


class Inception(nn.Module):
    """`InceptionDepthwise`: `sums` of the whole, then `finish` of any positions."""

    def __init__(self, module: InceptionDepthwise) -> None:
        super().__init__()
        self.untouched = module.split[0]
        self.convs = Depthwise(module.dwconv_hw, module.dwconv_w, module.dwconv_h)

    def sums(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `Depthwise.sums`, of the channels that are not left untouched."""
        return self.convs.sums(x[..., self.untouched :])

    def finish(self, one: Tensor, x: Tensor, *sums: Tensor) -> Tensor:
        """The outputs (B, n, C) at n positions of x and the sums."""
        return torch.cat([x[..., : self.untouched], self.convs.finish(one, *sums)], dim=-1)


class Norm(nn.Module):
    """`ChannelNorm` of (..., C) but for weight and bias, which the next `Linear` holds. Mean and variance are exact."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.channels, self.eps = norm.normalized_shape[0], norm.eps
        self.limit = min(math.isqrt(2**24 // self.channels), LIMIT)  # the sum of squares is below 2^24

    def forward(self, x: Tensor) -> Tensor:
        q, peak = to_integers(x, self.limit)
        total = q.sum(-1, keepdim=True)
        spread = q.square_().sum(-1, keepdim=True).mul_(self.channels).sub_(total * total).clamp_(min=0)
        step = peak.mul_(1 / (self.limit * self.channels))
        # In float64: runtimes approximate the square root of float32.
        deviation = spread.mul_(step).mul_(step).double().add_(self.eps).sqrt_()
        return x.sub(total.mul_(step)).mul_((torch.ones((), dtype=torch.float64) / deviation).float())


class Gelu(nn.Module):
    """gelu(v) = v Phi(v) of 1024 v, Phi from a table at steps of 1/1024."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", self.make_table())

    @staticmethod
    @cache
    def make_table() -> Tensor:
        """Phi at -GELU_END ... GELU_END in steps of 1 / GELU_STEPS, divided by GELU_STEPS; one for all layers."""
        # Rounded to 2^-24, far coarser than what implementations of erfc differ by.
        end = GELU_END * GELU_STEPS
        values = [math.erfc(-i / GELU_STEPS / math.sqrt(2)) / 2 for i in range(1 - end, end)]
        table = torch.tensor([0.0, *(round(value * 2**24) / 2**24 for value in values), 1.0], dtype=torch.float32)
        return table / GELU_STEPS

    def forward(self, v: Tensor) -> Tensor:
        end = GELU_END * GELU_STEPS
        index = v.clamp(-end, end).add_(end + 0.5).to(torch.int32)  # towards zero
        return self.table.index_select(0, index.flatten()).view_as(v).mul_(v)


class Star(nn.Module):
    """`StarBlock`."""

    def __init__(self, block: StarBlock) -> None:
        super().__init__()
        self.dwconv = Inception(block.dwconv)
        self.norm = Norm(block.norm)
        self.fc1 = Linear(block.fc1, gelu=block.fc1.out_channels // 2, norm=block.norm)
        self.fc2 = Linear(block.fc2)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        sums, one = self.dwconv.sums(x)
        return by_rows(partial(self._rows, one), x, *sums)[0]

    def _rows(self, one: Tensor, x: Tensor, *sums: Tensor) -> tuple[Tensor]:
        gate, value = self.fc1(self.norm(self.dwconv.finish(one, x, *sums))).chunk(2, dim=-1)
        return (self.fc2(self.gelu(gate).mul_(value)).add_(x),)


class Upsample(nn.Module):
    """`Up`: (B, h, w, K) -> (B, 2h, 2w, O)."""

    def __init__(self, up: Up) -> None:
        super().__init__()
        self.conv = Linear(up.conv)

    def forward(self, x: Tensor) -> Tensor:
        count, h, w, _ = x.shape
        (out,) = by_rows(lambda rows: (self.conv(rows),), patches(x, 3))
        return out.reshape(count, h, w, -1, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(count, 2 * h, 2 * w, -1)


class AdapterLayer(nn.Module):
    """`Adapter`."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        first, _, depthwise, _, last = cast(Iterable[nn.Conv2d], adapter.branch1)
        self.first = Linear(first, gelu=first.out_channels)
        self.depthwise = Depthwise(depthwise, gelu=True)
        self.last = Linear(last)
        self.direct = Linear(adapter.branch2)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        sums, one = self.depthwise.sums(self._hidden(x))
        return by_rows(partial(self._after, one, None), x, *sums)[0]

    def coded(self, x: Tensor, positions: Sequence[Sequence[Position]]) -> Tensor:
        """(B, 2M, h, w): what `forward` gives at these positions of each quarter, else 0. Each half of 2M has four."""
        sums, one = self.depthwise.sums(self._hidden(x))
        count, h, w, _ = x.shape
        out = x.new_zeros(count, 2, 4, len(self.last.bias) // 8, h, w)

        def fill(quarter: int, row: int, column: int) -> None:
            here = [part[:, row::2, column::2].flatten(1, 2) for part in (x, *sums)]
            (values,) = self._after(one, quarter, *here)
            values = values.view(count, h // 2, w // 2, 2, -1).permute(0, 3, 4, 1, 2)
            out[:, :, quarter, :, row::2, column::2] = values

        in_parallel(fill, *zip(*((q, *at) for q, here in enumerate(positions) for at in here), strict=True))
        return out.view(count, -1, h, w)

    def _hidden(self, x: Tensor) -> Tensor:
        return by_rows(lambda rows: (self.gelu(self.first(rows)),), x)[0]

    def _after(self, one: Tensor, quarter: int | None, x: Tensor, *sums: Tensor) -> tuple[Tensor]:
        hidden = self.gelu(self.depthwise.finish(one, *sums))
        return (self.last(hidden, quarter).add_(self.direct(x, quarter)),)


class GatedNeXt(nn.Module):
    """`ContextLayer`, its two halves in one: (B, h, w, C) -> (B, h, w, C)."""

    def __init__(self, first: InceptionNeXt, second: GatedCNN) -> None:
        super().__init__()
        self.depthconv = Inception(first.depthconv)
        self.conv1 = Linear(first.conv1, limit=BYTE, gelu=first.conv1.out_channels)
        self.conv2 = Linear(first.conv2, limit=BYTE)
        self.norm = Norm(second.norm)
        self.fc1 = Linear(second.fc1, limit=BYTE, gelu=second.fc1.out_channels // 2, norm=second.norm)
        self.conv = Depthwise(second.conv)
        self.fc2 = Linear(second.fc2, limit=BYTE)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        sums, one = self.depthconv.sums(x)
        x, gate, value = by_rows(partial(self._before, one), x, *sums)
        sums, one = self.conv.sums(value)
        return by_rows(partial(self._after, one), x, gate, *sums)[0]

    def _before(self, one: Tensor, x: Tensor, *sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv2(self.gelu(self.conv1(self.depthconv.finish(one, x, *sums)))).add_(x)
        a, b = self.fc1(self.norm(x)).chunk(2, dim=-1)
        return x, self.gelu(a), b

    def _after(self, one: Tensor, x: Tensor, gate: Tensor, *sums: Tensor) -> tuple[Tensor]:
        return (self.fc2(self.conv.finish(one, *sums).mul_(gate)).add_(x),)


class Convolution(nn.Module):
    """A convolution of stride 1 or a transposed one of stride 2: (B, h, w, K) -> (B, h, w, O) or (B, 2h, 2w, O)."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.kernel = conv.kernel_size[0]
        self.upsamples = isinstance(conv, nn.ConvTranspose2d)
        fits = conv.kernel_size == (self.kernel, self.kernel) and self.kernel % 2 and conv.groups == 1
        fits &= conv.padding == (self.kernel // 2,) * 2 and conv.dilation == (1, 1) and conv.bias is not None
        if isinstance(conv, nn.ConvTranspose2d):
            fits &= conv.stride == (2, 2) and conv.output_padding == (1, 1)
            # It is the convolution, by the mirrored kernel, of its input with zeros between the values.
            matrix = _with_weight(conv.weight.detach().transpose(0, 1).flip(2, 3), cast(Tensor, conv.bias))
        else:
            fits &= conv.stride == (1, 1) and conv.padding_mode == "zeros"
            matrix = conv
        if not fits:
            raise UserError(
                f"{conv} has no exact form; h_s and the context take convolutions of an odd square kernel, padded by "
                "half of it with zeros, of stride 1 (transposed ones: of stride 2, with output_padding 1), with a bias"
            )
        self.conv = Linear(matrix)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsamples:
            wide = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
            wide[:, ::2, ::2] = x
            x = wide
        (out,) = by_rows(lambda rows: (self.conv(rows),), patches(x, self.kernel) if self.kernel > 1 else x)
        return out


def _with_weight(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
    conv.weight, conv.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.detach())
    return conv


class LeakyReLU(nn.Module):
    """One multiplication: the same everywhere. A ReLU has the slope 0."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * self.slope)


class PlainGelu(Gelu):
    """GELU of values that are in no units."""

    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v * GELU_STEPS)  # a power of two, so exact


def exact_form(module: nn.Module) -> nn.Module:
    """The exact form of h_s or a part of it, from tokens (B, h, w, C) to tokens (`exact_layer`).

    Raises UserError for a layer that has none, such as one that is derived from a known one and computes another thing.
    """
    kind = next((kind for kind in type(module).__mro__ if kind in exact_layer.registry), object)
    if kind is object or type(module).forward is kind.forward:  # pyright: ignore[reportAttributeAccessIssue]
        return exact_layer(module)
    raise UserError(
        f"{type(module).__name__} has a forward of its own, other than {kind.__name__}'s, and no exact form; register "
        "one with aeic_lightning.bitstream.exact.exact_layer"
    )


@singledispatch
def exact_layer(module: nn.Module) -> nn.Module:
    """The exact form of a layer of h_s, from tokens (B, h, w, C) to tokens.

    A package with a layer of its own registers a function for its class here; its sums must be of integers, and
    everything else one elementwise operation at a time (see the top of this file).

    Raises UserError for a layer that has none.
    """
    raise UserError(
        f"{type(module).__name__} has no exact form, without which a stream decodes on the sender's machine alone; h_s "
        "takes sequences of Up, StarBlock, Adapter, ContextLayer, Conv2d, ConvTranspose2d, ReLU, LeakyReLU and GELU"
    )


exact_layer.register(StarBlock, Star)
exact_layer.register(Up, Upsample)
exact_layer.register(Adapter, AdapterLayer)
exact_layer.register(ContextLayer, lambda layer: GatedNeXt(*layer))
exact_layer.register(nn.Conv2d, Convolution)
exact_layer.register(Pointwise, Convolution)
exact_layer.register(nn.ConvTranspose2d, Convolution)
exact_layer.register(nn.LeakyReLU, lambda layer: LeakyReLU(layer.negative_slope))
exact_layer.register(nn.ReLU, lambda layer: LeakyReLU(0.0))
exact_layer.register(nn.Identity, lambda layer: nn.Identity())


@exact_layer.register
def _gelu(module: nn.GELU) -> nn.Module:
    if module.approximate != "none":
        raise UserError(f"{module} has no exact form; take the plain GELU")
    return PlainGelu()


@exact_layer.register
def _sequence(module: nn.Sequential) -> nn.Module:
    return nn.Sequential(*map(exact_form, module))


class Integers(nn.Module):
    """`IntegerNetwork`, which is exact as it is."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).float().cpu().eval()

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.network(from_tokens(x)))


exact_layer.register(IntegerNetwork, Integers)


class HyperSynthesis(nn.Module):
    """h_s: z_hat (B, N, h/4, w/4) -> phi (B, K, h, w)."""

    def __init__(self, h_s: nn.Module) -> None:
        super().__init__()
        self.layers = exact_form(h_s)

    def forward(self, z_hat: Tensor) -> Tensor:
        with in_pieces():
            return from_tokens(self.layers(to_tokens(z_hat)))


class ExactContext(nn.Module):
    """The loop of a context model around exact parameters. Means are multiples of 1/256."""

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        self.pattern = pattern

    def forward(self, phi: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """As `ContextModel.forward`."""
        return code_in_steps(self.pattern, self.params, phi, code)

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and raw scale, each (B, M, h, w), where the step codes."""
        raise NotImplementedError


class Context(ExactContext):
    """`GridContext`."""

    def __init__(self, context: GridContext) -> None:
        super().__init__(context.pattern)
        self.adapter_in = nn.ModuleList(AdapterLayer(cast(Adapter, a)) for a in context.adapter_in)
        self.g_c = nn.Sequential(*(GatedNeXt(*cast(tuple[InceptionNeXt, GatedCNN], layer)) for layer in context.g_c))
        self.adapter_out = nn.ModuleList(AdapterLayer(cast(Adapter, a)) for a in context.adapter_out)

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and raw scale, each (B, M, h, w); zero where the step codes nothing."""
        with in_pieces():
            adapter_out = cast(AdapterLayer, self.adapter_out[step])
            return self.params_by(base, self.adapter_in[step], partial(adapter_out.coded, positions=self.pattern[step]))

    def params_by(self, base: Tensor, adapter_in: Layer, adapter_out: Layer) -> tuple[Tensor, Tensor]:
        """Mean and raw scale, each (B, M, h, w), by one step's adapters: tokens to tokens, and to (B, 2M, h, w)."""
        mean, scale = adapter_out(self.g_c(adapter_in(to_tokens(base)))).chunk(2, dim=1)
        return on_mean_grid(mean), scale


class PhiContext(ExactContext):
    """One step. `split` takes means and scales from phi, as `NoContext.params` does."""

    def __init__(self, split: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
        super().__init__(AT_ONCE)
        self.split = split

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        mean, scale = self.split(base, step)
        return on_mean_grid(mean), scale


@singledispatch
def exact_context(context: ContextModel) -> ExactContext:
    """The exact form of a context model; a package with one of its own registers a function for its class here.

    Raises UserError for one that has none.
    """
    raise UserError(
        f"codec.context: {type(context).__name__} has no exact form, without which a stream decodes on the sender's "
        "machine alone; derive it from GridContext, or register one with aeic_lightning.bitstream.exact.exact_context"
    )


exact_context.register(GridContext, Context)
exact_context.register(NoContext, lambda context: PhiContext(context.params))


def on_mean_grid(mean: Tensor) -> Tensor:
    """Means rounded to multiples of 1/256."""
    return (mean * MEAN_STEPS).round_().clamp_(-MEAN_LIMIT, MEAN_LIMIT).div_(MEAN_STEPS)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def from_tokens(x: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), as a view."""
    return x.permute(0, 3, 1, 2)


def patches(x: Tensor, kernel: int) -> Tensor:
    """What a convolution sees at each position: (B, h, w, C) -> (B, h, w, C * kernel * kernel)."""
    count, h, w, _ = x.shape
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=kernel // 2)
    return unfolded.transpose(1, 2).reshape(count, h, w, -1)
