"""Files that are written whole or not at all, and the names that they get."""

import os
from importlib.util import find_spec
from pathlib import Path

from aeic_lightning.errors import UserError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside it first, then renamed. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """One path component for an image's name, which may lie in sub-folders but not outside of the data folder."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"{name!r} cannot name a file: it leads out of the folder")
    return "__".join(Path(name).parts)


def package_folder(package: str) -> Path:
    """Where an installed package lies, without importing it, which may take seconds. Raises UserError."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed; pip install {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])
