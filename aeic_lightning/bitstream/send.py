"""Compress photographs to .aeic files with an exported send half.

    python send.py photo.jpg -o streams --bpp 0.1

`export` copies this file beside the graphs. It needs Python 3.11 and four packages, and nothing else of the project:
pip install numpy onnxruntime constriction pillow

The files are those of `compress` unless a value before quantisation lies so near to a half that two processors round it
differently; the receiver reads either.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

if __package__:
    from aeic_lightning.bitstream import coder, wire
    from aeic_lightning.pictures import PictureError, read
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import coder  # pyright: ignore[reportMissingImports] (beside this file, as those below)
    import wire  # pyright: ignore[reportMissingImports]
    from pictures import PictureError, read  # pyright: ignore[reportMissingImports]


def read_photo(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), as `compress` sees it. Raises wire.UserError for what is no photograph."""
    try:
        pixels, remarks = read(path.read_bytes(), "it")
    except OSError as error:
        raise wire.UserError(f"it cannot be read: {error.strerror or error}") from error
    except PictureError as error:
        raise wire.UserError(str(error)) from error
    for remark in remarks:
        print(f"warning: {path}: {remark}", file=sys.stderr)
    if max(pixels.shape[:2]) > wire.LARGEST_SIDE:
        raise wire.UserError(
            f"it has {pixels.shape[1]}x{pixels.shape[0]} pixels; a side has at most {wire.LARGEST_SIDE}"
        )
    return pixels


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """(1, 3, H, W) padded at the right and bottom to multiples, by reflection without the edge."""
    for axis in (2, 3):
        size = x.shape[axis]
        if size % multiple:
            position = np.arange(size + -size % multiple) % max(2 * (size - 1), 1)
            x = x.take(np.minimum(position, 2 * (size - 1) - position).clip(0), axis)
    return x


class Sender(wire.ExportedHalf):
    """The graphs and tables of a send half."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        super().__init__(folder, "send", threads)

    def encode(self, pixels: np.ndarray, dial: int | None = None) -> bytes:
        """The file of a photograph, uint8 (H, W, 3), at a position of the rate dial (0 to 255)."""
        x = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(127.5) - np.float32(1)
        y, z = self.run("analysis", {"x": padded(x, self.multiple)} | self.level_input(dial))
        return self.encode_latents(y, z, pixels.shape[0], pixels.shape[1], dial)

    def encode_latents(self, y: np.ndarray, z: np.ndarray, height: int, width: int, dial: int | None) -> bytes:
        """The file of y (1, M, h, w) and z (1, N, h/r, w/r)."""
        writer = coder.PayloadWriter(self.z_tables, self.y_tables, self.rows)
        symbols = np.rint(z - self.medians).clip(-wire.LARGEST, wire.LARGEST)
        writer.write_z(symbols[0])
        z_hat = symbols + self.medians

        def code(mean: np.ndarray, levels: np.ndarray, coded: np.ndarray) -> np.ndarray:
            residual = np.where(coded, np.rint(y - mean), np.float32(0)).clip(-wire.LARGEST, wire.LARGEST)
            writer.write_y(residual[coded], levels, np.flatnonzero(coded), y.shape[2:])
            return residual

        y_hat = self.in_steps(z_hat, y.shape[2:], code)
        check = wire.latents_check(z_hat, y_hat, self.rows)
        return wire.pack(wire.Stream(height, width, check, writer.getvalue(), dial), self.fingerprint)

    def within(self, pixels: np.ndarray, most: int) -> bytes:
        """The best file of at most `most` bytes. Raises UserError where the smallest one is larger."""
        height, width, _ = pixels.shape
        at = lambda dials: [self.encode(pixels, dial) for dial in dials]  # noqa: E731
        return wire.best_within(at, len, self.levels, 1, most, (height, width))[0]


def check(sender: Sender, golden: Path) -> list[str]:
    """A line for each golden stream. Raises UserError unless they come out of their latents."""
    lines = []
    for case in json.loads((golden / "golden.json").read_text())["cases"]:
        latents = np.load(golden / f"{case['name']}.sender.npy")
        y, z = np.split(latents, [int(np.prod(case["y_shape"]))])
        data = (golden / f"{case['name']}.aeic").read_bytes()
        dial = wire.dial_position(None, sender.levels)
        y, z = y.reshape(case["y_shape"]), z.reshape(case["z_shape"])
        if sender.encode_latents(y, z, case["height"], case["width"], dial) != data:
            raise wire.UserError(f"the exported sender does not reproduce golden vector {case['name']} on this machine")
        lines.append(f"{case['name']}  {len(data)} bytes  reproduced")
    return lines


def main(argv: list[str] | None = None) -> int:
    """0, or 2 if a photograph could not be sent."""
    parser = argparse.ArgumentParser(description="Compress photographs to .aeic files.")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--bpp", type=float, metavar="R", help="the best picture of at most R bits per pixel")
    rate.add_argument("--bytes", type=int, metavar="N", help="the best picture of at most N bytes")
    rate.add_argument("--level", type=float, help="rate level, from 0 (smallest files); by default the middle one")
    return wire.convert(Sender, parser, check, _send, argv)


def _send(sender: Sender, path: Path, args: argparse.Namespace) -> tuple[str, bytes, str]:
    pixels = read_photo(path)
    height, width, _ = pixels.shape
    if args.bpp is not None or args.bytes is not None:
        most = args.bytes if args.bpp is None else wire.bytes_within(args.bpp, height, width)
        data = sender.within(pixels, most)
    else:
        data = sender.encode(pixels, wire.dial_position(args.level, sender.levels))
    return ".aeic", data, f"{len(data)} bytes"


if __name__ == "__main__":
    sys.exit(main())
