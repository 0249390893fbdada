"""An encoder from its class path, and what the rest of the codec has to know of it: channels, stride, reach."""

import inspect
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError

PROBE_SIDE = 256  # pixels of the square image that an encoder is asked with


def encoder_class(encoder: dict[str, Any]) -> type[nn.Module]:
    """The class that `{class_path, init_args}` names; it is imported but not called.

    Raises UserError for another form, for what cannot be imported, and for what is no `nn.Module`.
    """
    if (
        not isinstance(encoder, dict)
        or "class_path" not in encoder
        or not set(encoder) <= {"class_path", "init_args"}
        or not isinstance(encoder.get("init_args") or {}, dict)
    ):
        raise UserError(f"codec.encoder: {encoder!r}; write {{class_path: my_package.MyEncoder, init_args: {{...}}}}")
    path = str(encoder["class_path"])
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"codec.encoder: {path} names no module; write the whole path, as in my_package.{path}")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise UserError(
            f"codec.encoder: {path} cannot be imported ({error}); put it on PYTHONPATH or correct class_path"
        ) from error
    except AttributeError:
        raise UserError(f"codec.encoder: module {module} has no {name}; correct class_path") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"codec.encoder: {path} is not a torch.nn.Module; give the class of an encoder")
    return found


def build_encoder(encoder: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """The encoder of `{class_path, init_args}`, its channels M and its stride, asked with one image of zeros.

    It is built and asked on the CPU, then moved to the default device: the constructors of many networks compute, which
    the meta device cannot.

    Raises UserError where it cannot be built, or gives no (1, M, H/s, W/s) for an image (1, 3, H, W).
    """
    kind = encoder_class(encoder)
    arguments = encoder.get("init_args") or {}
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"codec.encoder: {kind.__name__}{inspect.signature(kind)}: {error}; correct init_args"
        ) from error
    device = torch.get_default_device()
    with torch.device("cpu"):
        try:
            module = kind(**arguments)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"codec.encoder: {kind.__name__} cannot be built: {_line(error)}") from error
        channels, stride = _ask(module, kind.__name__)
    return module.to(device), channels, stride


@torch.no_grad()
def _ask(module: nn.Module, name: str) -> tuple[int, int]:
    try:
        y = _evaluate(module, torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE))
    except Exception as error:
        raise UserError(
            f"codec.encoder: {name} fails on an image of {PROBE_SIDE} x {PROBE_SIDE} pixels: {_line(error)}"
        ) from error
    if not isinstance(y, Tensor) or y.dim() != 4 or y.shape[2] != y.shape[3] or PROBE_SIDE % y.shape[2]:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise UserError(
            f"codec.encoder: {name} gives {given} for (1, 3, {PROBE_SIDE}, {PROBE_SIDE}); it must give "
            "y (1, M, H/s, W/s) with one stride s"
        )
    return y.shape[1], PROBE_SIDE // y.shape[2]


def _evaluate(module: nn.Module, x: Tensor) -> Any:
    """`module(x)` in evaluation mode; every part gets back the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return module(x)
    finally:
        for part, training in modes.items():
            part.training = training


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---------------------------------------------------------------------- reach


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
