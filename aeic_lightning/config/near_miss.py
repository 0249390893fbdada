"""What is wrong with a setting, in one line, with the name that was probably meant.

jsonargparse says which word it does not know, some levels down in a chain of exceptions; what it would have known
follows from the signatures of the classes that the config names.
"""

import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_args, get_type_hints

from lightning import Trainer

from aeic_lightning.errors import UserError, did_you_mean

SECTIONS = ("model", "data", "trainer", "seed_everything", "ckpt_path", "vars", "include")
PACKAGES = ("aeic_lightning", "callbacks", "datamodules", "lightning", "torch", "torchmetrics")


def user_error(error: BaseException) -> UserError:
    """The UserError inside of jsonargparse's wrapping, or one made of the innermost reason."""
    chain = [error]
    while not isinstance(chain[-1], UserError) and (inner := chain[-1].__cause__ or chain[-1].__context__):
        chain.append(inner)
    reason = chain[-1]
    if isinstance(reason, UserError):
        return reason
    texts = [str(link) for link in chain]
    # The outermost exception tells the section, the innermost the setting within it.
    keys = list(dict.fromkeys(key for text in texts for key in re.findall(r'[Kk]ey "([\w.]+)"', text)))
    classes = re.findall(r"given class_path '([\w.]+)'", "\n".join(texts))
    where = ".init_args.".join(keys[:1] + keys[-1:] if len(keys) > 1 else keys)
    message = " ".join(texts[-1].split())
    message = re.sub(r"typing\.Literal\[([^]]*)\]", r"value among \1", re.sub(r"<class '(\w+)'>", r"\1", message))
    hint = _hint(message, classes[-1] if classes else None)
    return UserError((f"{where}: " if where and where not in message else "") + message + hint)


def _hint(message: str, class_path: str | None) -> str:
    if match := re.search(r"Subcommand '\w+' does not accept option '([\w.]+)'", message):
        section, _, name = match[1].partition(".")
        return did_you_mean(name, _arguments(Trainer)) if section == "trainer" else did_you_mean(section, SECTIONS)
    if match := re.search(r"(?:Group '(\w+)' does not accept option|Option) '([\w.]+)'", message):
        group, path = match[1], match[2].split(".")
        kind = _load(class_path) if class_path else None
        for step in ([group] if group else []) + path[:-1]:
            kind = _dataclass(_arguments(kind).get(step)) if kind else None
        return did_you_mean(path[-1], _arguments(kind)) if kind else ""
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return did_you_mean(match[2], [name for name in dir(import_module(match[1])) if not name.startswith("_")])
    if match := re.search(r"No module named '([\w.]+)'", message):
        parent, _, name = match[1].rpartition(".")
        if not parent:
            return did_you_mean(name, PACKAGES)
        return did_you_mean(name, [module.name for module in pkgutil.iter_modules(import_module(parent).__path__)])
    return ""


def _load(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _arguments(kind: Any) -> dict[str, Any]:
    """Names and types of what a class takes, those included that it hands on to its bases."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in fields(kind)}
    found: dict[str, Any] = {}
    for base in getattr(kind, "__mro__", ()):
        if "__init__" in vars(base) and base.__module__ != "builtins":
            found = dict(_named(base)) | found
    return found


def _named(base: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(base.__init__)
    for name, parameter in signature(base.__init__).parameters.items():
        if name != "self" and parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            yield name, hints.get(name)


def _dataclass(kind: Any) -> Any:
    """The dataclass in `Config` or `Config | None`."""
    return next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
