"""The latent codec: image -> y, z -> (bits) -> y_hat -> l_T, l_res.

x ──g_a──> y ──────────────(quantise)──────────> y_hat ──g_s──> l_T  (to the denoiser)
           │                    ▲                          └──> l_res (added to its output)
          h_a              mean, scale
           ▼                    │
           z ──(quantise)──h_s──> phi ──context steps
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.codec.context import (
    NOTHING_CODED,
    ContextModel,
    FactorizedPrior,
    GaussianConditional,
    GridContext,
    QuadtreeContext,
    add_noise,
    bits,
    round_ste,
)
from aeic_lightning.models.integer import integer_gain
from aeic_lightning.models.layers import (
    Down,
    GainUnits,
    HyperAnalysis,
    HyperSynthesis,
    StarEncoder,
    SynthesisTransform,
    Up,
    lowered,
    raised,
)
from aeic_lightning.models.parts import (
    STAR,
    build_asked,
    build_encoder,
    build_part,
    encoder_labels,
    part_class,
)
from aeic_lightning.models.taps import Tap
from aeic_lightning.own_classes import moved

LATENT_STRIDE = 8  # of l_T and l_res, the latent space of the diffusion decoder


@dataclass
class CodecConfig:
    """Sizes of the latent codec. The defaults are AEIC-SE's.

    The encoder g_a is a StarEncoder, for which `widths` and `depths` are the short spelling, or any module that
    `encoder` names. All other sizes follow from its channels M and its stride. The other parts have classes of their
    own in the same way, given as {class_path, init_args}; the codec gives each the sizes named below before its
    init_args. h_s and the context run in exact arithmetic on both sides, which knows the layers of `models/layers.py`
    and PyTorch's convolutions and activations (`bitstream/exact.py`).

    Args:
        widths: channels of StarEncoder after each of its stages; each stage halves the resolution, the last is M.
        depths: StarBlocks in each stage of StarEncoder, the encoder depth of a sweep.
        context_width: channels inside the context network g_c of QuadtreeContext.
        context_depth: layers of g_c.
        synthesis_widths: channels of g_s after its adapter and each Up.
        synthesis_depths: StarBlocks of g_s at each width.
        l_T_channels: channels of l_T, the denoiser's input.
        l_res_channels: channels of l_res, the VAE decoder's input.
        skip_threshold: raw scales below it are not coded, the residual is 0 on both sides; None codes every symbol.
        rate_levels: for one model of many rates: what multiplies lambda at each level, falling, as in [8, 2, 0.5]
            (`GainUnits`); None for a codec of one rate, as in the paper.
        encoder: another encoder, as {class_path: my_package.MyEncoder, init_args: {...}}; `widths` and `depths` then
            have no meaning and become None. Image (B, 3, H, W) in [-1, 1] -> y (B, M, H/s, W/s): see
            docs/howto_encoder.md.
        z_only: send z alone, for rates below all others (under 0.005 bpp at AEIC's sizes): no symbol of y is coded, and
            y_hat is the mean that the context model predicts from z_hat, in training, estimate and stream.
        by_rows: streams in bands of rows, so that a sender's memory need not grow with the height (docs/bitstream.md).
            Only for a context model of one step, `NoContext`; costs two or three bytes a file.
        start: the weights that training begins with. `ours` keeps the variance through the resampling convolutions,
            starts residual branches at zero and scales near 1, so that short trainings begin to learn at once;
            `pytorch`, as the release, leaves all convolutions as PyTorch makes them.
        context: another context model than QuadtreeContext, a `ContextModel` (`models/codec/context.py`) of M.
            `context_width` and `context_depth` then have no meaning and become None.
        h_a: another module y (B, M, h, w) -> z (B, N, h/r, w/r), r a power of two, of M; by default `HyperAnalysis`.
        h_s: another module z_hat (B, N, h/r, w/r) -> phi (B, K, h, w), of N and K, where K is what the context model
            takes; by default `HyperSynthesis`.
        g_s: another module y_hat (B, M, h, w) -> (B, K, H/8, W/8), of M and K = l_T_channels + l_res_channels.
            `synthesis_widths` and `synthesis_depths` then have no meaning and become None.
    """

    widths: list[int] | None = field(default_factory=lambda: [32, 64, 128, 192, 256])
    depths: list[int] | None = field(default_factory=lambda: [1, 1, 1, 1, 1])
    context_width: int | None = 512
    context_depth: int | None = 3
    synthesis_widths: list[int] | None = field(default_factory=lambda: [1024, 768, 512])
    synthesis_depths: list[int] | None = field(default_factory=lambda: [2, 2, 2])
    l_T_channels: int = 320
    l_res_channels: int = 256
    skip_threshold: float | None = 0.08
    rate_levels: list[float] | None = None
    encoder: dict[str, Any] | None = None
    z_only: bool = False
    by_rows: bool = False
    start: Literal["ours", "pytorch"] = "ours"
    context: dict[str, Any] | None = None
    h_a: dict[str, Any] | None = None
    h_s: dict[str, Any] | None = None
    g_s: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.context, dict):
            self.context_width = self.context_depth = None
        if isinstance(self.g_s, dict):
            self.synthesis_widths = self.synthesis_depths = None
        if not isinstance(self.encoder, dict):
            return
        arguments = self.encoder.get("init_args") or {}
        if moved(str(self.encoder.get("class_path"))) == STAR and set(arguments) == {"widths", "depths"}:
            self.encoder, self.widths, self.depths = None, arguments["widths"], arguments["depths"]
        else:
            self.widths = self.depths = None

    @property
    def labels(self) -> dict[str, int | str]:
        """What tells this encoder from others: depth and widths, or its class and arguments; other parts likewise."""
        return encoder_labels(vars(self))

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The parts that are given by class path, by their setting."""
        given = {name: getattr(self, name) for name in ("encoder", "context", "h_a", "h_s", "g_s")}
        return {name: part for name, part in given.items() if part is not None}

    def find_parts(self, encoder: bool = True) -> None:
        """Import the classes of all parts, of the `encoder` too. Raises UserError naming the first that is missing."""
        for name, part in self.parts.items():
            if encoder or name != "encoder":
                part_class(part, f"codec.{name}", ContextModel if name == "context" else nn.Module)

    @property
    def channels(self) -> int:
        """M, the channels of y. An encoder that is named by class path is built to find out."""
        return cast(list[int], self.widths)[-1] if self.encoder is None else build_encoder(self.encoder)[1]

    def check(self) -> None:
        """Raise UserError where the sizes do not fit together."""
        if self.start not in ("ours", "pytorch"):
            raise UserError(f"codec: start is ours or pytorch, not {self.start!r}")
        widths, depths = self.widths or [], self.depths or []
        if self.encoder is None and not widths:
            raise UserError("codec: no widths and no encoder; give widths and depths, or encoder")
        if len(widths) != len(depths):
            raise UserError(f"codec: {len(widths)} widths but {len(depths)} depths; give one depth for every stage")
        synthesis_widths, synthesis_depths = self.synthesis_widths or [], self.synthesis_depths or []
        inside = [] if self.context_width is None else [self.context_width]
        if any(width < 8 or width % 4 for width in [*widths, *inside, *synthesis_widths]):
            raise UserError("codec: every width must be a multiple of 4 and at least 8; change widths in the config")
        if self.context is None and (self.context_width is None or self.context_depth is None):
            raise UserError("codec: no context; give context_width and context_depth, or context")
        if len(synthesis_widths) != len(synthesis_depths):
            raise UserError("codec: synthesis_widths and synthesis_depths differ in length; give one depth a width")

    def check_encoder(self, channels: int, stride: int) -> None:
        """Raise UserError where an encoder of this many channels and this stride does not fit the rest of the codec."""
        if channels % 8 or channels < 16:
            raise UserError(
                f"codec: the encoder gives {channels} channels, but M must be a multiple of 8 and at least 16, "
                "since z has M/2 channels; change the encoder's last width"
            )
        if stride < LATENT_STRIDE or stride & (stride - 1):
            raise UserError(
                f"codec: the encoder's stride is {stride}, but must be {LATENT_STRIDE} times a power of two, since "
                f"g_s doubles the resolution of y until stride {LATENT_STRIDE}"
            )
        needed, given = (stride // LATENT_STRIDE).bit_length(), len(self.synthesis_widths or [])
        if self.g_s is None and given != needed:
            raise UserError(
                f"codec: an encoder of stride {stride} and {given} widths of g_s do not end at "
                f"stride {LATENT_STRIDE}; g_s needs {needed} widths: change synthesis_widths and synthesis_depths"
            )


class CodecOutput(NamedTuple):
    """Every named tensor of one pass, for an image of H x W padded to multiples of twice the stride s of y.

    All but the bits and the level are taps for distillation. Sizes below are those of the padded image.
    """

    y: Tensor  # (B, M, H/s, W/s), before quantisation
    z: Tensor  # (B, N, H/4s, W/4s), before quantisation; N = M/2 unless h_a is another
    phi: Tensor  # (B, M, H/s, W/s); 2M channels without a context
    y_hat: Tensor  # (B, M, H/s, W/s)
    l_T: Tensor  # (B, l_T_channels, H/8, W/8)
    l_res: Tensor  # (B, l_res_channels, H/8, W/8)
    bits_y: Tensor  # (B,), likelihood estimate
    bits_z: Tensor  # (B,), likelihood estimate
    level: Tensor | None = None  # (B,), rate level of each image; None in a codec of one rate


@dataclass(frozen=True)
class LatentGrid:
    """Where the positions of y and z lie on an image.

    Args:
        stride: pixels from one position of y to the next.
        multiple: images are padded to multiples of this many pixels, of which `stride` is a divisor.
        z_stride: positions of y for each position of z, along each side.
    """

    stride: int
    multiple: int
    z_stride: int

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of y and of z for an image of `height` x `width` pixels, padding included."""
        h, w = (-(-side // self.multiple) * self.multiple // self.stride for side in (height, width))
        return (h, w), (-(-h // self.z_stride), -(-w // self.z_stride))


class Stored(nn.Module):
    """Tensors under their names: the fingerprint of a stream covers them, and nothing computes with them."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *parents, last = name.split(".")
            module: nn.Module = self
            for parent in parents:
                children = dict(module.named_children())
                if parent not in children:
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            module.register_buffer(last, tensor)


class StoredEncoder(Stored):
    """The tensors of an encoder whose class is not here: a receiver decodes without it.

    Args:
        state: its tensors.
        channels, stride: of y.
        reason: what keeps it from being run, which whoever asks for y is told.
    """

    def __init__(self, state: Mapping[str, Tensor], channels: int, stride: int, reason: str) -> None:
        super().__init__(state)
        self.channels, self.stride, self.reason = channels, stride, reason

    def forward(self, x: Tensor) -> Tensor:
        raise UserError(f"this model decodes here but does not compress: {self.reason}")


class LatentCodec(nn.Module):
    """Sender and receiver halves of the codec around one entropy model.

    In training mode the rate is that of y + U(-1/2, 1/2), while y_hat is rounded with a straight-through gradient. In
    evaluation mode both are of the rounded values, which a stream would hold.
    """

    def __init__(self, config: CodecConfig, encoder: StoredEncoder | None = None) -> None:
        super().__init__()
        config.check()
        self.config = config
        if encoder is not None:
            self.g_a, channels, stride = encoder, encoder.channels, encoder.stride
        elif config.encoder is None:
            self.g_a = StarEncoder(*cast(tuple[list[int], list[int]], (config.widths, config.depths)))
            channels, stride = self.g_a.channels, self.g_a.stride
        else:
            self.g_a, channels, stride = build_encoder(config.encoder)
        config.check_encoder(channels, stride)
        self.channels, self.stride = channels, stride  # of y
        self.h_a, z_channels, self.z_stride = _hyper_analysis(config, channels)
        self.prior = FactorizedPrior(z_channels)
        # The context model says what h_s has to give, and is built after it: here only to be asked.
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            phi_channels = _context(config, channels).phi_channels
        self.h_s = _hyper_synthesis(config, z_channels, phi_channels, self.z_stride)
        self.context = _context(config, channels)
        steps = len(self.context.pattern)
        if config.by_rows and steps > 1:
            raise UserError(
                f"codec.by_rows: {type(self.context).__name__} goes over the whole image in {steps} steps; "
                "take NoContext, or by_rows: false"
            )
        self.conditional = GaussianConditional(NOTHING_CODED if config.z_only else config.skip_threshold)
        self.gains = GainUnits(channels, config.rate_levels) if config.rate_levels else None
        self.g_s = _synthesis(config, channels, stride)
        self.taps = [
            Tap("y", "encoder", channels, self.stride),
            Tap("z", "encoder", z_channels, self.z_stride * self.stride),
            Tap("phi", "encoder", phi_channels, self.stride),
            Tap("y_hat", "encoder", channels, self.stride),
            Tap("l_T", "decoder", config.l_T_channels, LATENT_STRIDE),
            Tap("l_res", "decoder", config.l_res_channels, LATENT_STRIDE),
        ]
        self._init_weights()

    def _init_weights(self) -> None:
        # A part from elsewhere keeps the weights that it gave itself.
        ours = (StarEncoder, HyperAnalysis, HyperSynthesis, SynthesisTransform, GridContext)
        parts = [part for part in (self.g_a, self.h_a, self.h_s, self.g_s, self.context) if isinstance(part, ours)]
        if self.config.start == "pytorch":
            for part in parts:
                for module in part.modules():
                    if isinstance(module, nn.Conv2d):
                        module.reset_parameters()
            return
        # Keep the variance through the resampling convolutions. With PyTorch's default each shrinks it threefold, y
        # starts far below 1/2, rounding turns all of it into zeros and training stands still for a long while.
        for part in parts:
            for module in part.modules():
                if isinstance(module, (Down, Up)):
                    nn.init.normal_(module.conv.weight, std=module.conv.weight[0].numel() ** -0.5)
        if isinstance(self.g_a, StarEncoder):
            last = [module.conv.weight for module in self.g_a.children() if isinstance(module, Down)][-1]
            nn.init.normal_(last, std=2 * last[0].numel() ** -0.5)

    def pad(self, x: Tensor) -> Tensor:
        """Pad at the right and bottom by reflection to multiples of twice the stride of y."""
        return reflect_pad(x, self.grid.multiple)

    @property
    def grid(self) -> LatentGrid:
        """Where y and z lie on an image."""
        return LatentGrid(self.stride, 2 * self.stride, self.z_stride)

    def hyper_encode(self, y: Tensor) -> Tensor:
        """y (B, M, h, w) -> z."""
        return self.h_a(self.pad_y(y))

    def pad_y(self, y: Tensor) -> Tensor:
        """What h_a takes: y with zeros at the right and bottom, to multiples of its stride, 4 for the paper's."""
        height, width = y.shape[2:]
        return F.pad(y, (0, -width % self.z_stride, 0, -height % self.z_stride))

    def hyper_decode(self, z_hat: Tensor, height: int, width: int) -> Tensor:
        """z_hat -> phi, cropped to the `height` x `width` of y."""
        return self.h_s(z_hat)[..., :height, :width]

    def levels(self, batch: int, level: Tensor | float | None = None) -> Tensor | None:
        """The rate level of each image, (B,); None in a codec of one rate.

        Without a `level`, crops in training get one drawn each, and images in evaluation the middle one. Raises
        UserError for a level where there are none, or outside of 0 to the number of levels less one.
        """
        if self.gains is None:
            if level is not None:
                raise UserError("this codec has one rate; a level is for a model trained with codec.rate_levels")
            return None
        if level is None and self.training:
            return self.gains.draw(batch)
        if isinstance(level, Tensor) and level.is_cuda:
            return level.expand(batch)  # as an earlier call gave them: a look at them would make the GPU wait
        highest = self.gains.levels - 1
        level = torch.as_tensor(highest / 2 if level is None else level, dtype=torch.float32)
        if not ((level >= 0) & (level <= highest)).all():
            raise UserError(f"level {level.tolist()} is outside of 0 to {highest}, the levels of this model")
        return level.to(self.gains.log_gain.device, non_blocking=True).expand(batch)

    def scale_y(self, y: Tensor, level: Tensor | None) -> Tensor:
        """y of g_a in steps of the quantiser: times the gains of `level` (B,)."""
        if self.gains is None:
            return y
        scaled, level = y * self.gains.gain(_given(level)), _given(level)
        if not getattr(self.g_a, "integer", False):
            return scaled
        exact = integer_gain(y, self.gains.log_gain, level)
        return scaled + (exact - scaled).detach() if torch.is_grad_enabled() else exact

    def synthesise(self, y_hat: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y_hat -> l_T, l_res."""
        if self.gains is not None:
            y_hat = y_hat * self.gains.inverse(_given(level))
        with lowered(y_hat):
            features = self.g_s(y_hat)
        l_T, l_res = raised(features).split([self.config.l_T_channels, self.config.l_res_channels], dim=1)
        return l_T, l_res

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> CodecOutput:
        """Images (B, 3, H, W) in [-1, 1], any size -> all named tensors and the estimated bits of each image.

        `level` is the rate level, one or (B,), where the codec has several; see `levels`.
        """
        level = self.levels(len(x), level)
        # An integer encoder is exact in float32 alone.
        with nullcontext() if getattr(self.g_a, "integer", False) else lowered(x):
            y = self.g_a(self.pad(x))
        y = self.scale_y(raised(y), level)
        return self.from_latents(y, self.hyper_encode(y), level)

    def from_latents(self, y: Tensor, z: Tensor, level: Tensor | None = None) -> CodecOutput:
        """As `forward`, of y in steps of the quantiser and z, whatever they were computed from.

        `level` is (B,), as `levels` gives it.
        """
        z_hat = self.prior.quantise(z)
        phi = self.hyper_decode(z_hat, *y.shape[2:])
        bits_z = bits(self.prior.likelihood(add_noise(z) if self.training else z_hat))

        noisy_y = add_noise(y) if self.training else None
        bits_y = torch.zeros_like(bits_z)

        def code(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            nonlocal bits_y
            if self.config.z_only:
                return mean
            if noisy_y is None:
                residual, coded = self.conditional.quantise(y, mean, scale, mask)
                likelihood = self.conditional.likelihood(residual, torch.zeros_like(mean), scale)
            else:
                residual, coded = round_ste(y - mean), mask
                likelihood = self.conditional.likelihood(noisy_y, mean, scale)
            bits_y = bits_y + bits(torch.where(coded, likelihood, 1.0))
            return residual + mean

        y_hat = self.context(phi, code)
        l_T, l_res = self.synthesise(y_hat, level)
        return CodecOutput(y, z, phi, y_hat, l_T, l_res, bits_y, bits_z, level)


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) at the right and bottom to multiples of `multiple`, by reflection without the edge.

    A side too small to reflect once is reflected again and again (a zigzag over its pixels); one pixel is repeated.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        if size % multiple:
            target = size + -size % multiple
            position = torch.arange(target, device=x.device) % max(2 * (size - 1), 1)
            x = x.index_select(dim, torch.minimum(position, 2 * (size - 1) - position).clamp(min=0))
    return x


PROBE = 32
"""Side of the y that the parts of a config are asked with."""


def _hyper_analysis(config: CodecConfig, channels: int) -> tuple[nn.Module, int, int]:
    """h_a, the channels of z, and the positions of y for each of z, along each side."""
    if config.h_a is None:
        return HyperAnalysis(channels), channels // 2, 4
    takes = ("y", channels, PROBE)
    module, z_channels, side = build_asked(config.h_a, "codec.h_a", (channels,), takes, "z (1, N, h/r, h/r)")
    if PROBE % side:
        raise UserError(
            f"codec.h_a: {type(module).__name__} gives z of side {side} for y of side {PROBE}; it must divide "
            "the sides of y by a power of two"
        )
    return module, z_channels, PROBE // side


def _hyper_synthesis(config: CodecConfig, z_channels: int, phi_channels: int, z_stride: int) -> nn.Module:
    if config.h_s is None:
        if z_stride != 4:
            raise UserError(f"codec.h_a: z has {z_stride} positions of y along each side, h_s 4; give an h_s as well")
        return HyperSynthesis(z_channels, phi_channels)
    takes, gives = ("z", z_channels, PROBE // z_stride), f"phi (1, {phi_channels}, {PROBE}, {PROBE})"
    return build_asked(config.h_s, "codec.h_s", (z_channels, phi_channels), takes, gives, phi_channels, PROBE)[0]


def _context(config: CodecConfig, channels: int) -> ContextModel:
    if config.context is None:
        return QuadtreeContext(channels, *cast(tuple[int, int], (config.context_width, config.context_depth)))
    module = build_part(config.context, "codec.context", channels, base=ContextModel)
    return cast(ContextModel, module.to(torch.get_default_device()))


def _synthesis(config: CodecConfig, channels: int, stride: int) -> nn.Module:
    features = config.l_T_channels + config.l_res_channels
    if config.g_s is None:
        sizes = cast(tuple[list[int], list[int]], (config.synthesis_widths, config.synthesis_depths))
        return SynthesisTransform(channels, features, *sizes)
    side = 8 * stride // LATENT_STRIDE
    gives = f"l_T and l_res together, (1, {features}, {side}, {side})"
    return build_asked(config.g_s, "codec.g_s", (channels, features), ("y", channels, 8), gives, features, side)[0]


def _given(level: Tensor | None) -> Tensor:
    assert level is not None, "a codec of several rates is asked at a level: see `LatentCodec.levels`"
    return level
