"""Where experiments are: files, and variants within files.

A file may hold `variants: {enc: {...}, enc_dec: {...}}`, experiments that differ from the rest of it in these settings.
The variant `enc` of `student.yaml` is named as a file of its own would be: `student_enc.yaml`, or `student/enc.yaml`.
"""

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.own_classes import HOME


def find_experiment(file: str | Path, folder: str | Path = "") -> Path:
    """An experiment as named, relative to `folder`, or else the one of that name among this project's own.

    `tiny/teacher_stage1.yaml` and `experiments/tiny/teacher_stage1.yaml` are the same then.
    """
    named = Path(file).expanduser()
    path = Path(folder, named)
    if named.is_absolute() or locate(path):
        return path
    return next((own for own in (HOME / named, HOME / "experiments" / named) if locate(own)), path)


def locate(path: Path) -> tuple[Path, str] | None:
    """The file that holds an experiment, and the name of its variant in there, "" if it is the file itself; None where
    there is no such experiment. Raises UserError for a file that cannot be read."""
    if path.is_file():
        return path, ""
    return next((found for found in _around(path) if found[1] in variants(found[0])), None)


def variants_beside(path: Path) -> str:
    """For the message that there is no such experiment: those of the file whose variant it would be."""
    for file, name in _around(path):
        if known := variants(file):
            return f"; {file} has the variants {', '.join(known)}{did_you_mean(name, known)}"
    return ""


def variants(file: Path) -> dict[str, dict]:
    """Name -> settings of the variants in a file. Raises UserError as `read` does."""
    found = read(file).get("variants") or {}
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise UserError(f"{file}: variants is a mapping from names to settings, not {found!r}")
    return found


def read(file: Path) -> dict[str, Any]:
    """The content of a file, not to be changed. Raises UserError where it is no YAML mapping."""
    try:
        own = _parsed(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(own, dict):
        raise UserError(f"{file} holds no settings; an experiment file is a YAML mapping")
    return own


@lru_cache(maxsize=512)  # a sweep reads the same files for each of its runs
def _parsed(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _around(path: Path) -> Iterator[tuple[Path, str]]:
    """Files whose variant this path may name, and that variant's name."""
    words = path.stem.split("_")
    for end in range(len(words) - 1, 0, -1):
        file = path.with_name("_".join(words[:end]) + path.suffix)
        if file.is_file():
            yield file, "_".join(words[end:])
    file = path.parent.with_suffix(path.suffix) if path.parent.name else path
    if file.is_file():
        yield file, path.stem
