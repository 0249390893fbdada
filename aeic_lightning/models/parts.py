"""Parts of the codec that a config names by class path, as `{class_path: my_package.MyPart, init_args: {...}}`.

They are built and asked for what the rest of the codec has to know of them; of an encoder that is its channels, stride
and reach. Any `nn.Module` from images (B, 3, H, W) in [-1, 1] to y (B, M, H/s, W/s) can be one.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.frozen import keeping_modes
from aeic_lightning.own_classes import find_class, moved

OTHERS = ("context", "h_a", "h_s", "g_s")
STAR = "aeic_lightning.models.layers.StarEncoder"
PROBE_SIDE = 256  # pixels of the square image that an encoder is asked with


def part_class(part: dict[str, Any], where: str, base: type[nn.Module] = nn.Module) -> type[nn.Module]:
    """The class that `{class_path, init_args}` names; it is imported but not called.

    Args:
        part: what the config says.
        where: the setting, for messages: `codec.encoder`.
        base: what the class must derive from.

    Raises UserError for another form, for what cannot be imported, and for another kind of class.
    """
    if (
        not isinstance(part, dict)
        or "class_path" not in part
        or not set(part) <= {"class_path", "init_args"}
        or not isinstance(part.get("init_args") or {}, dict)
    ):
        name = f"My{where.rsplit('.', 1)[-1].title().replace('_', '')}"
        raise UserError(f"{where}: {part!r}; write {{class_path: my_package.{name}, init_args: {{...}}}}")
    return find_class(part["class_path"], where, base)


def build_part(part: dict[str, Any], where: str, *sizes: int, base: type[nn.Module] = nn.Module) -> nn.Module:
    """The part of `{class_path, init_args}`, built on the CPU: the constructors of many networks compute.

    `sizes` are what the codec gives to the class before its own arguments. Raises UserError where it cannot be built.
    """
    kind = part_class(part, where, base)
    arguments = part.get("init_args") or {}
    try:
        inspect.signature(kind).bind(*sizes, **arguments)
    except TypeError as error:
        raise UserError(f"{where}: {kind.__name__}{inspect.signature(kind)}: {error}; correct init_args") from error
    with torch.device("cpu"):
        try:
            return kind(*sizes, **arguments)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{where}: {kind.__name__} cannot be built: {_line(error)}") from error


@torch.no_grad()
def build_asked(
    part: dict[str, Any], where: str, sizes: tuple[int, ...], takes: tuple[str, int, int], gives: str, *size: int
) -> tuple[nn.Module, int, int]:
    """The part on the default device, and the size (C, h) of the map (1, C, h, h) that it gives for zeros.

    It is built and asked on the CPU, then moved: the constructors of many networks compute, which the meta device
    cannot.

    Args:
        part, where, sizes: see `build_part`.
        takes: name, channels and side of the zeros, as in ("an image", 3, 256).
        gives: what the part must give, for messages, as in "z (1, N, h/r, h/r)".
        size: C and h of that, where they are known.

    Raises UserError where the part cannot be built, fails, or gives something else.
    """
    device = torch.get_default_device()
    what, channels, side = takes
    zeros = f"{what} (1, {channels}, {side}, {side})"
    with torch.device("cpu"):
        module = build_part(part, where, *sizes)
        name = type(module).__name__
        try:
            out = evaluate(module, torch.zeros(1, channels, side, side))
        except Exception as error:
            raise UserError(f"{where}: {name} fails on {zeros}: {_line(error)}") from error
    shape = tuple(out.shape) if isinstance(out, Tensor) else ()
    if len(shape) != 4 or shape[2] != shape[3] or (size and shape[1:3] != size):
        raise UserError(f"{where}: {name} gives {shape or type(out).__name__} for {zeros}; it must give {gives}")
    return module.to(device), shape[1], shape[2]


def evaluate(module: nn.Module, x: Tensor) -> Any:
    """`module(x)` in evaluation mode; every part gets back the mode that it had."""
    with keeping_modes(module):
        return module.eval()(x)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---------------------------------------------------------------------- encoders


def build_encoder(encoder: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """The encoder of `{class_path, init_args}`, its channels M and its stride, asked with one image of zeros.

    Raises UserError where it cannot be built, or gives no (1, M, H/s, W/s) for an image (1, 3, H, W).
    """
    gives = "y (1, M, H/s, W/s) with one stride s"
    module, channels, side = build_asked(encoder, "codec.encoder", (), ("an image", 3, PROBE_SIDE), gives)
    if PROBE_SIDE % side:
        raise UserError(
            f"codec.encoder: {type(module).__name__} gives y of side {side} for an image of {PROBE_SIDE}; it must give "
            f"{gives}"
        )
    return module, channels, PROBE_SIDE // side


@torch.no_grad()
def find_reach(encoder: nn.Module, stride: int) -> int | None:
    """How many rows of pixels a row of y sees beyond its own, at most, as a multiple of the stride.

    Two strides of rows in the middle of a tall image are changed, once to other values and once to NaN, which passes
    through weights of zero as well: the rows of y that change tell the reach. Then a band of the image must give the
    rows of y that the whole image gives, which an encoder with positions or fixed windows need not. The weights are
    taken to be finite, the encoder to be in evaluation mode.

    Returns:
        None where the reach is unlimited (attention, statistics of the whole image) or a band gives another y: such an
        encoder takes each image in one piece.
    """
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    for cells in (16, 64):
        x = torch.rand(1, 3, cells * stride, 4 * stride, generator=generator).to(device) * 2 - 1
        middle = slice(cells // 2 * stride, (cells // 2 + 2) * stride)
        other, broken = x.clone(), x.clone()
        other[:, :, middle] = -x[:, :, middle].flip(2)
        broken[:, :, middle] = torch.nan
        y = encoder(x)
        changed = (encoder(other) != y) | encoder(broken).isnan()
        rows = changed.any(dim=(0, 1, 3)).nonzero().flatten().tolist()
        first, last = min(rows, default=cells // 2), max(rows, default=cells // 2)
        if first == 0 or last == cells - 1:
            continue
        reach = max(cells // 2 - first, last - cells // 2 - 1, 0)
        band = encoder(x[:, :, 2 * stride :])[:, :, reach:]
        whole = y[:, :, 2 + reach :]
        same = torch.allclose(band, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))
        return reach * stride if same else None
    return None


# ---------------------------------------------------------------------- labels


def encoder_labels(codec: Mapping[str, Any]) -> dict[str, int | str]:
    """The labels of the encoder in a `CodecConfig` as plain values.

    Other parts that are given by class path have a label of their name: {context: "CheckerboardContext width=56"}.
    A StarEncoder has `depth` (a number where all stages have the same, so that it sorts; else all, as in 1-1-2-2-2)
    and `widths`. Any other has `encoder`: its class and arguments, as in `MyEncoder width=48`.
    """
    encoder = codec.get("encoder")
    parts: dict[str, int | str] = {name: _part(codec[name]) for name in OTHERS if codec.get(name)}
    if encoder and moved(str(encoder.get("class_path"))) != STAR:
        return {"encoder": _part(encoder)} | parts
    star = (encoder.get("init_args") or {}) if encoder else codec
    labels: dict[str, int | str] = {}
    if depths := star.get("depths"):
        labels["depth"] = depths[0] if len(set(depths)) == 1 else _short(depths)
    if widths := star.get("widths"):
        labels["widths"] = _short(widths)
    return labels | parts


def _part(part: Mapping[str, Any]) -> str:
    name = str(part.get("class_path")).rsplit(".", 1)[-1]
    return " ".join([name, *(f"{key}={_short(value)}" for key, value in (part.get("init_args") or {}).items())])


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
