"""Compress photographs to .aeic files with an exported send half.

    python send.py photo.jpg -o streams --bpp 0.1

`export` copies this file beside the graphs. It needs Python 3.11 and four packages, and nothing else of the project:
pip install numpy onnxruntime constriction pillow

The files are those of `compress` unless a value before quantisation lies so near to a half that two processors round it
differently; the receiver reads either.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from constriction import stream as coding  # pyright: ignore[reportAttributeAccessIssue] (compiled)

if __package__:
    from aeic_lightning.pictures import PictureError, read
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from pictures import PictureError, read  # pyright: ignore[reportMissingImports] (the folder beside this file)

VERSION, LARGEST_SIDE = 1, 8192
DIAL = 255  # highest position of the rate dial
LARGEST = 2**15  # magnitude of a symbol
MEDIAN_STEPS, MEAN_STEPS = 64, 256  # z_hat is a multiple of 1/64, y_hat one of 1/256
Uniform = coding.model.Uniform


class SendError(Exception):
    """Something that the user can mend."""


# ---------------------------------------------------------------------- images


def read_photo(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), as `compress` sees it. Raises SendError for what is no photograph."""
    try:
        pixels, remarks = read(path.read_bytes(), "it")
    except OSError as error:
        raise SendError(f"it cannot be read: {error.strerror or error}") from error
    except PictureError as error:
        raise SendError(str(error)) from error
    for remark in remarks:
        print(f"warning: {path}: {remark}", file=sys.stderr)
    if max(pixels.shape[:2]) > LARGEST_SIDE:
        raise SendError(f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels; a side has at most {LARGEST_SIDE}")
    return pixels


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """(1, 3, H, W) padded at the right and bottom to multiples, by reflection without the edge."""
    for axis in (2, 3):
        size = x.shape[axis]
        if size % multiple:
            position = np.arange(size + -size % multiple) % max(2 * (size - 1), 1)
            x = x.take(np.minimum(position, 2 * (size - 1) - position).clip(0), axis)
    return x


# ---------------------------------------------------------------------- symbols


class Table:
    """Probabilities of the symbols low, low + 1, ... and, last, of the escape."""

    def __init__(self, low: int, counts: list[int]) -> None:
        self.low, self.escape = low, len(counts) - 1
        self.model = coding.model.Categorical(np.array(counts, np.float64) - 1, perfect=False)


class Writer:
    """Range codes integers, each with a table of its own."""

    def __init__(self) -> None:
        self.encoder = coding.queue.RangeEncoder()

    def write(self, values: np.ndarray, numbers: np.ndarray, tables: list[Table]) -> None:
        """Code `values`, the i-th with `tables[numbers[i]]`: grouped by table, then what lies outside of the tables."""
        distances, signs = [], []
        for number in np.unique(numbers):
            table, group = tables[number], values[numbers == number].astype(np.int32)
            index = group - table.low
            outside = (index < 0) | (index >= table.escape)
            index[outside] = table.escape
            self.encoder.encode(index, table.model)
            group, last = group[outside], table.low + table.escape - 1
            distances.append(np.where(group < table.low, table.low - group, group - last))
            signs.append(group < table.low)
        distance = np.concatenate([np.zeros(0, np.int32), *distances]).astype(np.int32)
        if len(distance):
            lengths = np.frexp(distance.astype(np.float64))[1].astype(np.int32) - 1
            self.encoder.encode(lengths, Uniform(17))
            self.encoder.encode(np.concatenate(signs).astype(np.int32), Uniform(2))
            long = lengths > 0
            sizes = (1 << lengths[long]).astype(np.int32)
            self.encoder.encode(distance[long] - sizes, Uniform(), sizes)


def shortest_bytes(encoder: coding.queue.RangeEncoder) -> bytes:
    """The shortest bytes that, with zeros behind, lie in the coder's final interval.

    constriction ends on whole 32-bit words. Its sealed words and its state give the interval [low, low + range) of
    all continuations: of the numbers in it, take the one with most zero bytes at the end.
    """
    words = encoder.get_compressed()
    position, (low, size) = encoder.pos()
    if len(words) == 0:
        return b""
    sealed = int.from_bytes(words[: position + 1].astype(">u4").tobytes(), "big")
    # `sealed` is the start of the interval divided by 2^32, rounded up.
    start = (sealed << 32) - (-low % 2**32)
    length = 4 * (position + 2)
    for zeros in range(8, -1, -1):
        value = -(-start >> 8 * zeros)
        if value << 8 * zeros < start + size and value >> 8 * (length - zeros) == 0:
            return value.to_bytes(length - zeros, "big").rstrip(b"\0")
    raise AssertionError("unreachable: without zeros it is the start itself")


def varint(value: int) -> bytes:
    """7 bits per byte, lowest first; the top bit says that more follow."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# ---------------------------------------------------------------------- the sender


class Sender:
    """The graphs and tables of a send half. Raises SendError for a folder whose files are not those of its manifest."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            tables = json.loads((folder / "tables.json").read_text())
            for name, digest in manifest["files"].items():
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                    raise SendError(f"{folder / name} is not the file of its manifest; export again")
        except (OSError, ValueError, KeyError) as error:
            raise SendError(f"{folder} is no exported send half ({error}); name the folder `send`") from error
        if manifest["half"] != "send" or manifest["stream_version"] != VERSION:
            raise SendError(f"{folder} is the {manifest['half']} half, version {manifest['stream_version']}")
        self.fingerprint, self.levels = bytes.fromhex(manifest["fingerprint"]), manifest["levels"]
        self.multiple, self.threshold = tables["multiple"], tables["skip_threshold"]
        self.pattern = tables["pattern"]  # of each step and quarter of the channels: positions in 2x2 cells of y
        self.medians = np.array(tables["medians_times_64"], np.float32).reshape(1, -1, 1, 1) / np.float32(MEDIAN_STEPS)
        self.bounds = (np.array(tables["level_bounds_times_2_to_20"], np.float64) / 2**20).astype(np.float32)
        self.z_tables = [Table(t["low"], t["counts"]) for t in tables["z"]]
        self.y_tables = [Table(t["low"], t["counts"]) for t in tables["y"]]
        import onnxruntime  # here, since the package takes the coder's last step from this file and has no need of it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self.run: dict[str, Any] = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=providers).run
            for name in ("analysis", "hyper_synthesis", "context")
        }

    def encode(self, pixels: np.ndarray, dial: int | None = None) -> bytes:
        """The file of a photograph, uint8 (H, W, 3), at a position of the rate dial (0 to 255)."""
        x = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(127.5) - np.float32(1)
        inputs: dict[str, Any] = {"x": padded(x, self.multiple)}
        if dial is not None:
            inputs["level"] = np.array([dial * (self.levels - 1) / DIAL], np.float32)
        y, z = self.run["analysis"](None, inputs)
        height, width, _ = pixels.shape
        return self.encode_latents(y, z, height, width, dial)

    def encode_latents(self, y: np.ndarray, z: np.ndarray, height: int, width: int, dial: int | None) -> bytes:
        """The file of y (1, M, h, w) and z (1, M/2, h/4, w/4)."""
        writer = Writer()
        symbols = np.rint(z - self.medians).clip(-LARGEST, LARGEST)
        numbers = np.repeat(np.arange(symbols.shape[1]), symbols[0, 0].size)
        writer.write(symbols.flatten(), numbers, self.z_tables)
        z_hat = symbols + self.medians
        (phi,) = self.run["hyper_synthesis"](None, {"z_hat": z_hat})
        base = phi[..., : y.shape[2], : y.shape[3]]
        for step, quarters in enumerate(self.pattern):
            mask = np.zeros(y.shape, bool)
            for quarter, positions in zip(np.array_split(mask, 4, axis=1), quarters, strict=True):
                for row, column in positions:
                    quarter[..., row::2, column::2] = True
            inputs = {"base": np.ascontiguousarray(base)}
            if len(self.pattern) > 1:
                inputs["step"] = np.array([step])
            mean, scale = self.run["context"](None, inputs)
            coded = mask if self.threshold is None else mask & (scale >= np.float32(self.threshold))
            residual = np.where(coded, np.rint(y - mean), np.float32(0)).clip(-LARGEST, LARGEST)
            writer.write(residual[coded], np.searchsorted(self.bounds, scale[coded], side="right"), self.y_tables)
            base = np.where(mask, residual + mean, base) if len(self.pattern) > 1 else residual + mean
        latents = (z_hat * MEDIAN_STEPS).astype("<i4").tobytes() + (base * MEAN_STEPS).astype("<i4").tobytes()
        front = bytes([0xAE + VERSION]) + varint(height - 1) + varint(width - 1) + self.fingerprint[:2]
        back = (
            hashlib.sha256(latents).digest()[:3]
            + bytes([] if dial is None else [dial])
            + shortest_bytes(writer.encoder)
        )
        return front + hashlib.sha256(self.fingerprint + front + back).digest()[:3] + back

    def within(self, pixels: np.ndarray, most: int) -> bytes:
        """The best file of at most so many bytes. Raises SendError where the smallest one is larger."""
        best = self.encode(pixels, 0 if self.levels else None)
        if len(best) > most:
            raise SendError(f"{most} bytes are too few: the smallest file of this model has {len(best)} bytes")
        low, high = 0, DIAL + 1 if self.levels else 1  # the file at `low` fits, that at `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            data = self.encode(pixels, middle)
            if len(data) <= most:
                low, best = middle, data
            else:
                high = middle
        return best


def check(sender: Sender, golden: Path) -> None:
    """Raise SendError unless the golden streams come out of their latents."""
    for case in json.loads((golden / "golden.json").read_text())["cases"]:
        latents = np.load(golden / f"{case['name']}.sender.npy")
        y, z = np.split(latents, [int(np.prod(case["y_shape"]))])
        data = (golden / f"{case['name']}.aeic").read_bytes()
        dial = round(DIAL / 2) if sender.levels else None
        y, z = y.reshape(case["y_shape"]), z.reshape(case["z_shape"])
        if sender.encode_latents(y, z, case["height"], case["width"], dial) != data:
            raise SendError(f"golden stream {case['name']} is not reproduced on this machine")
        print(f"{case['name']}  {len(data)} bytes  reproduced")


def main(argv: list[str] | None = None) -> int:
    """0, or 2 if a photograph could not be sent."""
    parser = argparse.ArgumentParser(description="Compress photographs to .aeic files.")
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO")
    parser.add_argument("-o", "--out", type=Path, default=Path(), metavar="DIR", help="where the .aeic files go")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--bpp", type=float, metavar="R", help="the best picture of at most so many bits per pixel")
    rate.add_argument("--bytes", type=int, metavar="N", help="the best picture of at most so many bytes")
    rate.add_argument("--level", type=float, help="rate level, from 0 (smallest files); by default the middle one")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime (default: 1)")
    parser.add_argument("--check", type=Path, metavar="GOLDEN", help="reproduce the streams of an export's `golden`")
    args = parser.parse_args(argv)
    failed = 0
    try:
        sender = Sender(Path(__file__).resolve().parent, args.threads)
        if args.check:
            check(sender, args.check)
    except SendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in args.photos:
        try:
            data = _send(sender, path, args)
        except SendError as error:
            failed += 1
            print(f"error: {path}: {error}", file=sys.stderr)
            continue
        args.out.mkdir(parents=True, exist_ok=True)
        target = args.out / f"{path.stem}.aeic"
        part = target.with_suffix(".part")
        part.write_bytes(data)
        part.rename(target)  # whole or not at all
        print(f"{target}  {len(data)} bytes")
    return 2 if failed else 0


def _send(sender: Sender, path: Path, args: argparse.Namespace) -> bytes:
    pixels = read_photo(path)
    if args.bpp is not None and not 0 < args.bpp < float("inf"):
        raise SendError(f"--bpp is {args.bpp}; a rate is a finite number above 0")
    if args.bpp is not None or args.bytes is not None:
        most = args.bytes if args.bpp is None else int(args.bpp * pixels.shape[0] * pixels.shape[1] / 8)
        return sender.within(pixels, most)
    if not sender.levels:
        if args.level is not None:
            raise SendError("this model has one rate and takes no level")
        return sender.encode(pixels)
    highest = sender.levels - 1
    level = highest / 2 if args.level is None else args.level
    if not 0 <= level <= highest:
        raise SendError(f"level {level:g} is outside of 0 to {highest}, the levels of this model")
    return sender.encode(pixels, round(level * DIAL / highest))


if __name__ == "__main__":
    sys.exit(main())
