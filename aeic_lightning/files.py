"""Files: those that a command reads (images, streams, models), the names of those that it writes, whole or not at all.

Cheap to import, so that a missing file is found at once.
"""

import hashlib
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.output import is_first_process, shown

LONGEST = 100
"""Bytes of a file's name without its suffix; most file systems take 255."""
TAKEN = re.compile(r"_original$|^(test_)?step_\d+$", re.IGNORECASE)
"""Names that files beside the pictures of images have: an image called so gets another one."""
PLAIN = re.compile(r"[^\x00-\x1f\x7f<>:\"|?*\\\ud800-\udfff]*")
"""Without characters that some file system refuses, or that are no text."""
# What Pillow registers for the formats of `aeic_lightning.images`.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".pfm", ".gif", ".avif", ".avifs",
)  # fmt: skip
SAMPLE_PHOTOS = "sample-photos"
"""Instead of a folder: the three validation photographs that need none."""
CONFIG = "config.json"
"""Of a folder of weights."""


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


def package_folder(package: str, missing: str | None = None) -> Path:
    """Where an installed package lies, without importing it, which may take seconds.

    Raises UserError where there is none, with the words `missing` if they are given.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(missing or f"the package {package} is not installed; pip install {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


# ---------------------------------------------------------------------- images and streams


def require_images(source: str) -> None:
    """Raise UserError unless `source` is a folder, or the sample photographs."""
    if source != SAMPLE_PHOTOS and not Path(source).expanduser().is_dir():
        raise UserError(f"there is no folder {source}; give a folder of images, or {SAMPLE_PHOTOS}")


def find_images(root: Path) -> list[Path]:
    """Image files below `root`, sorted by path; links to folders are followed, each folder once.

    The first process reports on standard error how many other files were passed over, by suffix.
    """
    found, seen, others = [], set(), Counter()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(Path(folder, name))
            elif not name.startswith("."):
                others[Path(name).suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        more = ", ..." if len(others) > 5 else ""
        if is_first_process():
            passed = f"{others.total()} of {len(found) + others.total()} files in {root}: {kinds}{more}"
            print(shown(f"passed over {passed}"), file=sys.stderr)
    return sorted(found)


def image_names(root: Path, paths: list[Path]) -> list[str]:
    """Unique names: relative to `root`, with forward slashes, and without the suffix wherever that is unambiguous.

    Bytes that are not UTF-8 become escapes (`\\xff`), so that a name can be printed and recorded anywhere. Raises
    UserError where two names are equal then.
    """
    full = [_text(path.relative_to(root)) for path in paths]
    short = [_text(path.relative_to(root).with_suffix("")) for path in paths]
    count = Counter(short)
    names = [a if count[a] == 1 else b for a, b in zip(short, full, strict=True)]
    # a.png, a.jpg and a.png.tif: the third's short name is the first's full one.
    names = names if len(set(names)) == len(names) else full
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(f"two files below {root} are called {twice[0]}; rename one")
    return names


def _text(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


class Conversion(NamedTuple):
    """A file to read and the file to write from it."""

    source: Path
    target: Path


def conversions_of(
    sources: Sequence[str], folder: str, suffix: str, find: Callable[[Path], list[Path]], force: bool
) -> list[Conversion]:
    """A target in `folder` for every source; a source that is a folder stands for all that `find` finds in it.

    A target has the source's name and place below its folder, with another suffix. Where two files of a folder would
    then share one (a.png and a.jpg), they keep their own suffix as well (a.png.aeic).

    Raises UserError before anything is done: for a source that is missing, two sources with one target, or a target
    that exists (unless `force`).
    """
    conversions = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = find(source)
            if not inside:
                raise UserError(f"no file to read in {source} or below it")
            names = [path.relative_to(source) for path in inside]
            counts = Counter(name.with_suffix(suffix) for name in names)
            for path, name in zip(inside, names, strict=True):
                target = name.with_suffix(suffix)
                target = name.with_name(name.name + suffix) if counts[target] > 1 else target
                conversions.append(Conversion(path, Path(folder, target)))
        elif source.is_file():
            conversions.append(Conversion(source, Path(folder, source.stem + suffix)))
        else:
            raise UserError(f"no file or folder {source}; check the path")
    for target, count in Counter(conversion.target for conversion in conversions).items():
        if count > 1:
            one, other = [conversion.source for conversion in conversions if conversion.target == target][:2]
            raise UserError(f"{one} and {other} would both be written to {target}; rename one")
        if target.exists() and not force:
            raise UserError(f"{target} exists; remove it, write to another folder, or add --force")
        check_can_write(target)
    return conversions


def find_streams(root: Path) -> list[Path]:
    """The .aeic files below a folder, sorted."""
    return sorted(path for path in root.rglob("*.aeic") if path.is_file())


# ---------------------------------------------------------------------- models


def shipped_models() -> dict[str, Path]:
    """Name -> folder of the models that this installation carries."""
    folder = package_folder("aeic_lightning.zoo")
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))}


def locate(name: str | Path) -> Path:
    """The file or folder that `name` stands for: a path, or else the name of a shipped model."""
    path = Path(name).expanduser()
    return path if path.exists() else shipped_models().get(str(name), path)


def missing(name: str | Path) -> str:
    """What to say of a checkpoint that is not there."""
    known = shipped_models()
    shipped = f", or name a shipped model ({', '.join(known)})" if known else ""
    return f"no file {name}{did_you_mean(str(name), known)}; train it first or correct the path{shipped}"


def require_model(name: str | Path, role: str = "checkpoint") -> None:
    """Raise UserError when there is no such checkpoint or model; `role` names its part in the message."""
    if not locate(name).exists():
        raise UserError(f"{role}: {missing(name)}")
