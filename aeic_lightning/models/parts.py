"""Parts of the codec that a config names by class path, as `{class_path: my_package.MyPart, init_args: {...}}`."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.own_classes import find_class


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
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return module(x)
    finally:
        for part, training in modes.items():
            part.training = training


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
