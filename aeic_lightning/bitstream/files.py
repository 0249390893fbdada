"""Which files a command reads, and where it writes."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from aeic_lightning.bitstream.wire import LARGEST_FILE
from aeic_lightning.errors import UserError
from aeic_lightning.files import check_can_write


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


def read_stream(path: Path) -> bytes:
    """The bytes of a file. Raises UserError for one that cannot be read or is far too large to be a stream."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:  # before it fills the memory
            raise UserError(f"{size} bytes are more than any stream has; it is no .aeic file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); check the path and its permissions") from error
