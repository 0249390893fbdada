"""Which files of a folder are images, and their names. Cheap to import, so that a missing file is found at once."""

import os
import sys
from collections import Counter
from pathlib import Path

from aeic_lightning.errors import UserError, shown
from aeic_lightning.run_folder import is_first_process

# What Pillow registers for the formats of `aeic_lightning.images`.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".pfm", ".gif", ".avif", ".avifs",
)  # fmt: skip


SAMPLE_PHOTOS = "sample-photos"
"""Instead of a folder: the three validation photographs that need none."""


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
