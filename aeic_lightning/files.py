"""Files that are written whole or not at all, the names that they get, and whether they can be written."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from aeic_lightning.errors import UserError

LONGEST = 100
"""Bytes of a file's name without its suffix; most file systems take 255."""
TAKEN = re.compile(r"_original$|^(test_)?step_\d+$", re.IGNORECASE)
"""Names that files beside the pictures of images have: an image called so gets another one."""
PLAIN = re.compile(r"[^\x00-\x1f\x7f<>:\"|?*\\\ud800-\udfff]*")
"""Without characters that some file system refuses, or that are no text."""


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside it first, then renamed. Makes the folder.

    What is no text in a string (bytes of a name that is not UTF-8) is written as an escape.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shorter than the longest names.
    beside = path.with_name(f".{_digest(path.name)}.{os.getpid()}")
    try:
        beside.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """One path component for an image's name, which may lie in sub-folders but not outside of the data folder.

    At most 100 bytes, without a suffix. No two images get the same: `a/b` becomes `a__b`, and a name that would be
    ambiguous so (`a__b`), is too long, or holds what a file system may refuse ends in a hash of the whole name.

    Raises UserError for a name that leads out of the folder.
    """
    parts = Path(name).parts
    if ".." in parts or Path(name).is_absolute() or not parts:
        raise UserError(f"{name!r} cannot name a file: it leads out of the folder")
    joined = "__".join(parts)
    plain = (
        "/".join(parts) == name
        and not any("__" in part or part.startswith("_") or part.endswith(("_", ".", " ")) for part in parts)
        and len(joined.encode(errors="backslashreplace")) <= LONGEST
        and PLAIN.fullmatch(joined)
        and not TAKEN.search(joined)
        and not re.search(r"~[0-9a-f]{8}$", joined)
    )
    if plain:
        return joined
    hashed = f"~{_digest(name)}"
    kept = re.sub(r"[^\w.~ -]", "_", joined)
    return kept.encode()[: LONGEST - len(hashed)].decode(errors="ignore") + hashed


def check_file_names(names: Iterable[str]) -> None:
    """Raise UserError where two images would be written to one file, or one to no file."""
    taken: dict[str, str] = {}
    for name in names:
        file = file_name(name)
        other = taken.setdefault(file, name)
        if other != name:
            raise UserError(f"{other!r} and {name!r} would both be written to {file}; rename one")


def check_can_write(path: str | Path, folder: bool = False) -> None:
    """Raise UserError where this file, or files in this folder, cannot be written; nothing is left behind.

    Called before long work, so that it is not lost in the end.
    """
    path = Path(os.path.abspath(path))
    if not folder and path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    there = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    place = there.parent if there == path and not folder else there
    if not place.is_dir():
        raise UserError(f"cannot write {path}: {place} is a file, not a folder; remove it or choose another name")
    longest = os.pathconf(place, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    missing = path.relative_to(place).parts
    if any(len(os.fsencode(part)) > longest for part in missing):
        raise UserError(f"cannot write {path}: a name may have {longest} bytes here; choose a shorter one")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error} ({place}); choose another place, or allow it there"
        ) from error


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def package_folder(package: str) -> Path:
    """Where an installed package lies, without importing it, which may take seconds. Raises UserError."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed; pip install {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])
