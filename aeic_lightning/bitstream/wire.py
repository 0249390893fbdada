"""What a stream is, in numpy: the header, the rate dial, and the graphs of an export; `coder.py` has its payload.

The package codes by these two modules, and `export` copies them beside `send.py` and `receive.py`; they need numpy and
constriction, and onnxruntime for `ExportedHalf`. docs/bitstream.md is the description of the format.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING or __package__:
    from aeic_lightning.bitstream.coder import Table, read_varint, varint
    from aeic_lightning.errors import UserError
else:
    from coder import Table, read_varint, varint

    class UserError(Exception):
        """Something that the user can mend."""


MAGIC = 0xAE  # the version is added: 0xAE is version 0
VERSION = 1
LARGEST_SIDE = 8192
LARGEST_FILE = 1 << 28
DIAL = 255  # highest position of the rate dial, which a file holds in one byte
LARGEST = 2**15  # magnitude of a symbol
MEDIAN_STEPS = 64  # medians of z, and so z_hat, are multiples of 1/64
MEAN_STEPS = 256  # means, and so y_hat, are multiples of 1/256
_MODEL, _FILE, _LATENTS = 2, 3, 3  # bytes of the three check values
Found = TypeVar("Found")

# ---------------------------------------------------------------------- the file


class Stream(NamedTuple):
    """The fields of a file."""

    height: int
    width: int
    check: bytes  # of the decoded latents
    payload: bytes
    level: int | None = None  # 0..255, position of the rate dial; None for a model of one rate


def pack(stream: Stream, fingerprint: bytes) -> bytes:
    """The file of a stream that the model of this fingerprint wrote."""
    check_size(stream.height, stream.width)
    front = bytes([MAGIC + VERSION]) + varint(stream.height - 1) + varint(stream.width - 1) + fingerprint[:_MODEL]
    back = stream.check + (b"" if stream.level is None else bytes([stream.level])) + stream.payload
    return front + _file_check(fingerprint, front, back) + back


def unpack(data: bytes, fingerprint: bytes, has_level: bool = False) -> Stream:
    """The fields of a file; the files of a model of many rates have a level.

    Raises UserError unless this model wrote it and every byte is as it was.
    """
    if not data:
        raise UserError("the file is empty; compress the image again")
    if len(data) > LARGEST_FILE:
        raise UserError(f"{len(data)} bytes are more than a stream of {LARGEST_SIDE}x{LARGEST_SIDE} pixels can have")
    if data[0] != MAGIC + VERSION:
        raise UserError(
            f"the file starts with byte 0x{data[0]:02x}, not 0x{MAGIC + VERSION:02x}: it is no .aeic stream of "
            f"version {VERSION}, or it is damaged"
        )
    try:
        height, at = read_varint(data, 1)
        width, at = read_varint(data, at)
    except IndexError:
        raise UserError("the file ends within its header; it is damaged") from None
    height, width = height + 1, width + 1
    model_end = at + _MODEL
    file_end = model_end + _FILE
    latents_end = file_end + _LATENTS
    if latents_end + has_level > len(data):
        raise UserError("the file ends within its header; it is damaged")
    if height > LARGEST_SIDE or width > LARGEST_SIDE:
        raise UserError(
            f"the header says {width}x{height} pixels, more than {LARGEST_SIDE} a side; the file is damaged"
        )
    if data[at:model_end] != fingerprint[:_MODEL]:
        raise UserError(
            f"the stream was written with another checkpoint (model {data[at:model_end].hex()}, this one is "
            f"{fingerprint[:_MODEL].hex()}), or its header is damaged; decode it with the checkpoint that wrote it"
        )
    if data[model_end:file_end] != _file_check(fingerprint, data[:model_end], memoryview(data)[file_end:]):
        raise UserError("the check value of the file is wrong: it is damaged, cut short or longer than it was")
    level = data[latents_end] if has_level else None
    return Stream(height, width, data[file_end:latents_end], data[latents_end + has_level :], level)


def model_of(data: bytes) -> bytes:
    """The first bytes of the fingerprint of the model that wrote a file. Raises UserError where there are none."""
    try:
        _, at = read_varint(data, 1)
        _, at = read_varint(data, at)
    except IndexError:
        at = len(data)
    if not data or data[0] != MAGIC + VERSION or len(data) < at + _MODEL:
        raise UserError(f"it is no .aeic stream of version {VERSION}, or it is damaged")
    return data[at : at + _MODEL]


def check_size(height: int, width: int) -> None:
    """Raise UserError for an image that no stream can hold."""
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise UserError(f"an image of {width}x{height} pixels; a stream holds 1 to {LARGEST_SIDE} a side")


def check_rate(bpp: float) -> None:
    """Raise UserError for bits per pixel that no file has."""
    check_number("bpp", bpp)
    if not bpp > 0:
        raise UserError(f"{bpp:g} bpp: a rate is above 0")


def check_order(**given: float | None) -> None:
    """Raise UserError for more than one of what a file can be ordered by, or for a value that is no finite number."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        *others, last = given
        raise UserError(f"give one of {', '.join(others)} and {last}")
    for name, value in chosen.items():
        check_number(name, value)


def check_number(name: str, value: object) -> None:
    """Raise UserError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it is a finite number")


def bytes_within(bpp: float, height: int, width: int) -> int:
    """The most bytes that a file of `bpp` bits per pixel has. Raises UserError as `check_rate`."""
    check_rate(bpp)
    return int(bpp * height * width / 8)


def integers_of(z_hat: np.ndarray, y_hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decoded latents in steps of 1/64 and of 1/256, int32, little-endian, which hold them exactly."""
    return (z_hat * MEDIAN_STEPS).astype("<i4"), (y_hat * MEAN_STEPS).astype("<i4")


def latents_check(z_hat: np.ndarray, y_hat: np.ndarray, rows: int | None = None) -> bytes:
    """The check value of decoded latents (1, C, h, w); by rows where y is coded in bands of so many."""
    z, y = integers_of(z_hat, y_hat)
    if rows is None:
        return hashlib.sha256(z.tobytes() + y.tobytes()).digest()[:_LATENTS]
    digests = (_digest_by_rows(part, step) for part, step in ((z, 1), (y, rows)))
    return hashlib.sha256(b"".join(digests)).digest()[:_LATENTS]


def _digest_by_rows(values: np.ndarray, rows: int) -> bytes:
    digest = hashlib.sha256()
    for top in range(0, values.shape[2], rows):
        digest.update(values[:, :, top : top + rows].tobytes())
    return digest.digest()


def _file_check(fingerprint: bytes, front: bytes, back: bytes | memoryview) -> bytes:
    """Over the whole fingerprint and every other byte of the file, before and after the check."""
    digest = hashlib.sha256(fingerprint)
    digest.update(front)
    digest.update(back)
    return digest.digest()[:_FILE]


# ---------------------------------------------------------------------- the rate dial


def dial_position(level: float | None, levels: int) -> int | None:
    """The byte of a rate level: the nearest of 256 positions from 0 to `levels` - 1; the middle one for None.

    None for a model of one rate. Raises UserError for a level that the model does not have.
    """
    if not levels:
        if level is not None:
            raise UserError("this model has one rate and takes no level; train one with codec.rate_levels")
        return None
    level = (levels - 1) / 2 if level is None else level
    if not 0 <= level <= levels - 1:
        raise UserError(f"level {level:g} is outside of 0 to {levels - 1}, the levels of this model")
    return round(level * DIAL / (levels - 1))


def dial_level(position: int | None, levels: int) -> float | None:
    """The rate level of a file's byte; None for a model of one rate."""
    return None if position is None else position * (levels - 1) / DIAL


def best_within(
    encode_at: Callable[[list[int | None]], list[Found]],
    size: Callable[[Found], int],
    levels: int,
    images: int,
    most: int,
    pixels: tuple[int, int],
) -> list[Found]:
    """The best file of at most `most` bytes for each of several images, by bisection over the dial.

    Args:
        encode_at: one file for each image, at these positions of the dial; None in a model of one rate.
        size: bytes of a file.
        levels: of the model; 0 for one rate.
        images: how many there are.
        most: bytes of a file.
        pixels: height and width of the images.

    Raises UserError where the smallest file is larger.
    """
    best = encode_at([0 if levels else None] * images)
    for smallest in map(size, best):
        if smallest > most:
            height, width = pixels
            what = "the smallest file of this model" if levels else "this model has one rate, and its file"
            raise UserError(
                f"{most} bytes are too few for {width}x{height} pixels: {what} has {smallest} bytes "
                f"({8 * smallest / (height * width):.4f} bpp)"
            )
    # Of each image, the file at `low` fits, that at `high` does not; the distances are the same for all.
    low, high = [0] * images, [DIAL + 1 if levels else 1] * images
    while high[0] - low[0] > 1:
        middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        for i, encoded in enumerate(encode_at([*middle])):
            if size(encoded) <= most:
                low[i], best[i] = middle[i], encoded
            else:
                high[i] = middle[i]
    return best


# ---------------------------------------------------------------------- exports

_A, _B, _C, _D = (0, 0), (0, 1), (1, 0), (1, 1)
OLD_PATTERN = [
    [[at] for at in step] for step in ((_A, _B, _C, _D), (_D, _C, _B, _A), (_C, _D, _A, _B), (_B, _A, _D, _C))
]
"""Of exports that do not name theirs: AEIC's four steps. Step -> quarter of the channels -> (row, column) in 2x2."""


class ExportedHalf:
    """A folder `send` or `receive` of an export: its tables, and its graphs in onnxruntime.

    Raises UserError for a folder whose files are not those of its manifest.
    """

    def __init__(self, folder: str | Path, half: str, threads: int = 1) -> None:
        self.folder, self.threads = Path(folder), threads
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_text())
            files = self.manifest["files"]
            wrong = [name for name, digest in files.items() if sha256(self.folder / name) != digest]
            tables = json.loads((self.folder / "tables.json").read_text())
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} is not an exported half ({error}); give a folder that `export` wrote") from error
        if wrong:
            raise UserError(f"{self.folder / wrong[0]} is not the file of its manifest; export again")
        if self.manifest["half"] != half or self.manifest["stream_version"] != VERSION:
            raise UserError(
                f"{folder} is the {self.manifest['half']} half for streams of version "
                f"{self.manifest['stream_version']}; the {half} half for version {VERSION} is needed"
            )
        self.fingerprint, self.levels = bytes.fromhex(self.manifest["fingerprint"]), self.manifest["levels"]
        self.stride, self.threshold = tables["stride"], tables["skip_threshold"]
        self.multiple, self.z_stride = tables.get("multiple", 2 * self.stride), tables.get("z_stride", 4)
        self.pattern = tables.get("pattern", OLD_PATTERN)
        self.medians = np.array(tables["medians_times_64"], np.float32).reshape(1, -1, 1, 1) / np.float32(MEDIAN_STEPS)
        self.bounds = (np.array(tables["level_bounds_times_2_to_20"], np.float64) / 2**20).astype(np.float32)
        self.z_tables, self.y_tables = (
            [Table(t["low"], np.array(t["counts"], np.int64)) for t in tables[letter]] for letter in "zy"
        )
        self.rows = self.z_stride if tables.get("by_rows") else None
        self._graphs: dict[str, Any] = {}

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of a graph, which is opened once."""
        if name not in self._graphs:
            import onnxruntime  # here: the package codes by this module without it

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            path, providers = self.folder / f"{name}.onnx", ["CPUExecutionProvider"]
            self._graphs[name] = onnxruntime.InferenceSession(path, options, providers=providers)
        return self._graphs[name].run(None, {name: np.ascontiguousarray(value) for name, value in inputs.items()})

    def level_input(self, dial: int | None) -> dict[str, np.ndarray]:
        """The input `level` of the graphs of a model of many rates."""
        return {} if dial is None else {"level": np.array([dial_level(dial, self.levels)], np.float32)}

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of y and of z for an image of `height` x `width` pixels, padding included."""
        h, w = (-(-side // self.multiple) * self.multiple // self.stride for side in (height, width))
        return (h, w), (-(-h // self.z_stride), -(-w // self.z_stride))

    def context(self, base: np.ndarray, step: int) -> list[np.ndarray]:
        """Mean and raw scale of one step, each (1, M, h, w)."""
        return self.run("context", {"base": base} | ({"step": np.array([step])} if len(self.pattern) > 1 else {}))

    def in_steps(
        self,
        z_hat: np.ndarray,
        size: tuple[int, int],
        code: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """y_hat (1, M, h, w) of `size`, predicted from z_hat in the steps of the context model.

        `code` (mean, levels of the scales there, where a stream holds a symbol) gives the residuals, 0 elsewhere.
        """
        (phi,) = self.run("hyper_synthesis", {"z_hat": z_hat})
        base = phi[..., : size[0], : size[1]]
        for step, quarters in enumerate(self.pattern):
            mean, scale = self.context(base, step)
            mask = np.zeros(mean.shape, bool)
            for quarter, positions in zip(np.array_split(mask, 4, axis=1), quarters, strict=True):
                for row, column in positions:
                    quarter[..., row::2, column::2] = True
            coded = mask if self.threshold is None else mask & (scale >= np.float32(self.threshold))
            y_hat = code(mean, np.searchsorted(self.bounds, scale[coded], side="right"), coded) + mean
            base = np.where(mask, y_hat, base) if len(self.pattern) > 1 else y_hat
        return base


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Half = TypeVar("Half", bound=ExportedHalf)


def convert(
    half: Callable[[Path, int], Half],
    parser: argparse.ArgumentParser,
    check: Callable[[Half, Path], list[str]],
    one: Callable[[Half, Path, argparse.Namespace], tuple[str, bytes, str]],
    argv: list[str] | None,
) -> int:
    """The command line of an exported half: `files` into a folder. 0, or 2 if one could not be converted.

    Args:
        half: opens the folder of this file, with a number of threads.
        parser: has the arguments of this half alone.
        check: a line for each golden vector of a folder; raises UserError for one that is not reproduced.
        one: of a file: the suffix of what is written of it, its bytes, and what is printed of it.
        argv: the command line's words; None for the process's own.
    """
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("-o", "--out", type=Path, default=Path(), metavar="DIR", help="where the new files go")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime (default: 1)")
    parser.add_argument("--check", type=Path, metavar="GOLDEN", help="reproduce what is in an export's `golden`")
    args = parser.parse_args(argv)
    failed = 0
    try:
        opened = half(Path(__file__).resolve().parent, args.threads)
        if args.check:
            print(*check(opened, args.check), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in args.files:
        try:
            suffix, data, about = one(opened, path, args)
        except (UserError, OSError) as error:
            failed += 1
            print(f"error: {path}: {error}", file=sys.stderr)
            continue
        args.out.mkdir(parents=True, exist_ok=True)
        target = args.out / f"{path.stem}{suffix}"
        part = target.with_suffix(".part")
        part.write_bytes(data)
        part.rename(target)  # whole or not at all
        print(f"{target}  {about}")
    return 2 if failed else 0
