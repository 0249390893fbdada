"""Parts of the codec that a config names by class path, as `{class_path: my_package.MyPart, init_args: {...}}`."""

import inspect
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError


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
    path = str(part["class_path"])
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{where}: {path} names no module; write the whole path, as in my_package.{path}")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise UserError(
            f"{where}: {path} cannot be imported ({error}); put it on PYTHONPATH or correct class_path"
        ) from error
    except AttributeError:
        raise UserError(f"{where}: module {module} has no {name}; correct class_path") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        expected = "torch.nn.Module" if base is nn.Module else f"{base.__module__}.{base.__name__}"
        raise UserError(f"{where}: {path} is not a {expected}; give a class of that kind")
    return found


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
def ask(module: nn.Module, where: str, channels: int, side: int, what: str, expected: str) -> Tensor:
    """What a part on the CPU gives for zeros (1, channels, side, side): one map (1, C, h, h).

    `what` and `expected` say in messages what it is given and must give. Raises UserError where it fails, or gives
    something else.
    """
    name = type(module).__name__
    try:
        out = evaluate(module, torch.zeros(1, channels, side, side))
    except Exception as error:
        raise UserError(f"{where}: {name} fails on {what}: {_line(error)}") from error
    if not isinstance(out, Tensor) or out.dim() != 4 or out.shape[2] != out.shape[3]:
        given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"{where}: {name} gives {given} for (1, {channels}, {side}, {side}); it must give {expected}")
    return out


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
