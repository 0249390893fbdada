"""Experiment files: YAML with includes, interpolation and command-line overrides, resolved by OmegaConf.

An experiment file may hold, besides LightningCLI's own sections (`model`, `data`, `trainer`, `seed_everything`):

- `include: [FILE, ...]`: files, relative to this one, that are merged first, in order;
- `vars: {...}`: values for `${vars.name}` anywhere in the files; dropped after resolving.

Overrides are merged before anything is resolved, so that they reach every value that refers to them.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from aeic_lightning.errors import UserError


def load_config(files: list[str | Path], overrides: list[str] = ()) -> dict[str, Any]:
    """Merge files, then `key.sub=value` overrides, resolve, and return plain values without `vars`.

    Raises UserError for a missing file, bad YAML, an interpolation that leads nowhere, or a `vars` entry that nothing
    refers to (a misspelt one would have no effect).
    """
    used: set[str] = set()
    try:
        own = OmegaConf.from_dotlist(list(overrides))
        merged = OmegaConf.merge(*(_read(Path(file), (), used) for file in files), own)
        _check_vars(merged, used | _references(own), files)
        config = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{' + '.join(map(str, files))}: {' '.join(str(error).split())}") from error
    config.pop("vars", None)
    return config


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known word is near."""
    near = get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _references(config: DictConfig) -> set[str]:
    """Names in `${vars.name}`, anywhere in a file."""
    return set(re.findall(r"\$\{vars\.(\w+)", str(OmegaConf.to_container(config, resolve=False))))


def _check_vars(merged: DictConfig, used: set[str], files: list[str | Path]) -> None:
    # References of every file count, those included that a later file has overridden.
    # A sweep gives `root` and `name` to every run.
    given = [str(name) for name in merged.get("vars") or {} if name not in ("root", "name")]
    unused = next((name for name in given if name not in used), None)
    if unused is not None:
        hint = did_you_mean(unused, used) or (f"; there are {', '.join(sorted(used))}" if used else "")
        raise UserError(f"{' + '.join(map(str, files))}: vars.{unused} is set, but nothing refers to it{hint}")


def _read(path: Path, parents: tuple[Path, ...], used: set[str]) -> DictConfig:
    if not path.is_file():
        raise UserError(f"no config file {path}" + (f", which {parents[-1]} includes" if parents else ""))
    if path.resolve() in (parent.resolve() for parent in parents):
        raise UserError(f"{path} includes itself by way of {parents[-1]}; take one include out")
    try:
        own = OmegaConf.load(path)
    except YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(own, DictConfig):
        raise UserError(f"{path} holds no settings; an experiment file is a YAML mapping")
    used |= _references(own)
    included = own.pop("include", None) or []
    return OmegaConf.merge(*(_read(path.parent / file, (*parents, path), used) for file in included), own)


def parse_overrides(words: list[str]) -> list[str]:
    """Command-line words `--a.b=c` or `--a.b c` (or `--flag` for true) -> OmegaConf's `a.b=c`."""
    overrides: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UserError(f"unexpected argument {word!r}; settings are written --section.name=value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        overrides.append(f"{key}={value}")
    return overrides
