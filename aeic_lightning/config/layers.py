"""How a later experiment file changes an earlier one.

Mappings are merged key by key; everything else, lists included, is replaced. Two cases beside:

- a mapping with another `class_path` keeps those `init_args` of the earlier one that the new class takes as well;
- a mapping with numbers for keys changes elements of a list, as `--trainer.callbacks.1.init_args.every_n_steps=5` does.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aeic_lightning.errors import UserError
from aeic_lightning.own_classes import arguments_of, class_or_none

MISSING = "???"  # OmegaConf's mark of a value that a later file must give
PARTS = "model.init_args."
ASIDE = "init_args of another class"  # while merging: what the class does not take, in case that a later one does


def flat(value: Any, prefix: str = "", lists: bool = False) -> dict[str, Any]:
    """Nested settings as `model.init_args.codec` -> value. A list, and an empty mapping, is one value.

    With `lists`, a list that holds mappings is taken apart too: `trainer.callbacks.0.class_path`.
    """
    if isinstance(value, dict) and (value or not prefix):
        items = list(value.items())
    elif lists and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        return {prefix: value}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}.{key}".lstrip("."), lists).items()}


def merge(layers: Sequence[dict], sizes_alone: bool = False) -> DictConfig:
    """The settings of all layers, unresolved; a later layer wins. Raises UserError for an element that a list lacks.

    With `sizes_alone` the system's parts are right, and no class of Lightning is imported: a system keeps arguments
    that it does not take.
    """
    merged: Any = {}
    for layer in layers:
        merged = _merge(merged, layer, "", PARTS if sizes_alone else "")
    return OmegaConf.create(_without_aside(merged))


def _without_aside(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_aside(inner) for name, inner in value.items() if name != ASIDE}
    return [_without_aside(inner) for inner in value] if isinstance(value, list) else value


def _merge(old: Any, new: Any, key: str, within: str) -> Any:
    # `within`: where the classes are whose arguments count.
    if new == MISSING and old is not None:
        return old
    if isinstance(old, list) and isinstance(new, dict) and new and all(str(name).isdigit() for name in new):
        return _with_elements(old, new, key, within)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    other = "class_path" in old and new.get("class_path", old["class_path"]) != old["class_path"]
    if other and key.startswith(within):
        old = _with_arguments_of(new["class_path"], old)
    return old | {
        name: _merge(old[name], value, f"{key}.{name}".lstrip("."), within) if name in old else value
        for name, value in new.items()
    }


def _with_elements(old: list, new: dict, key: str, within: str) -> list:
    changed = list(old)
    for name, value in new.items():
        if int(name) >= len(old):
            raise UserError(f"{key}.{name} is set, but {key} is a list of {len(old)}, numbered from 0")
        changed[int(name)] = _merge(old[int(name)], value, f"{key}.{name}", within)
    return changed


def _with_arguments_of(class_path: str, old: dict) -> dict:
    """The mapping with those of its arguments that the class takes; the others are set aside."""
    kind, arguments = class_or_none(class_path), old.get("init_args") or {}
    if kind is None or not isinstance(arguments, dict):
        return old
    known = arguments_of(kind)
    arguments = old.get(ASIDE, {}) | arguments
    return old | {
        "init_args": {name: value for name, value in arguments.items() if name in known},
        ASIDE: {name: value for name, value in arguments.items() if name not in known},
    }
