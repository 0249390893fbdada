"""Experiment files: YAML with includes, interpolation and command-line overrides, resolved by OmegaConf.

An experiment file may hold, besides LightningCLI's own sections (`model`, `data`, `trainer`, `seed_everything`):

- `include: [FILE, ...]`: files, relative to this one, that are merged first, in order;
- `vars: {...}`: values for `${vars.name}` anywhere in the files; dropped after resolving.

Overrides are merged before anything is resolved, so that they reach every value that refers to them.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from aeic_lightning import UserError


def load_config(files: list[str | Path], overrides: list[str] = ()) -> dict[str, Any]:
    """Merge files, then `key.sub=value` overrides, resolve, and return plain values without `vars`.

    Raises UserError for a missing file, bad YAML, or an interpolation that leads nowhere.
    """
    try:
        merged = OmegaConf.merge(*(_read(Path(file), ()) for file in files), OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{' + '.join(map(str, files))}: {' '.join(str(error).split())}") from error
    config.pop("vars", None)
    return config


def _read(path: Path, parents: tuple[Path, ...]) -> DictConfig:
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
    included = own.pop("include", None) or []
    return OmegaConf.merge(*(_read(path.parent / file, (*parents, path)) for file in included), own)


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
