"""Decode .aeic files to PNG with an exported receive half.

    python receive.py streams/photo.aeic -o pictures

`export` copies this file beside the graphs. It needs Python 3.11 and three packages, and nothing else of the project:
pip install numpy onnxruntime constriction

The latents are those of `decompress`, the pictures within 1 of 255.
"""

import argparse
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __package__:
    from aeic_lightning.bitstream import coder, wire
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import coder  # pyright: ignore[reportMissingImports] (beside this file, as those below)
    import wire  # pyright: ignore[reportMissingImports]

NOTICE = b"Synthesised by a generative decoder from a few hundred bytes: its details are plausible, not recorded."


class Decoded(NamedTuple):
    """What a file holds."""

    height: int  # of the image, pixels
    width: int
    z_hat: np.ndarray  # (1, N, h/r, w/r) float32
    y_hat: np.ndarray  # (1, M, h, w) float32
    dial: int | None  # position of the rate dial


class Receiver(wire.ExportedHalf):
    """The graphs and tables of a receive half."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        super().__init__(folder, "receive", threads)

    def decode(self, data: bytes) -> Decoded:
        """The latents of a file. Raises UserError for one that is damaged, or of another model."""
        stream = wire.unpack(data, self.fingerprint, has_level=self.levels > 0)
        size, z_size = self.sizes(stream.height, stream.width)

        def code(mean: np.ndarray, levels: np.ndarray, coded: np.ndarray) -> np.ndarray:
            residual = np.zeros(mean.shape, np.float32)
            residual[coded] = reader.read_y(levels, np.flatnonzero(coded), size)
            return residual

        try:
            reader = coder.PayloadReader(stream.payload, self.z_tables, self.y_tables, self.rows)
            z_hat = reader.read_z((len(self.z_tables), *z_size))[None].astype(np.float32) + self.medians
            y_hat = self.in_steps(z_hat, size, code)
        except AssertionError as error:  # constriction's, for bytes that fit no symbol
            raise wire.UserError("the bytes fit no symbols: the file is damaged") from error
        if wire.latents_check(z_hat, y_hat, self.rows) != stream.check:
            raise wire.UserError("the decoded latents are not the sender's, so the picture would be wrong")
        return Decoded(stream.height, stream.width, z_hat, y_hat, stream.level)

    def picture(self, decoded: Decoded) -> np.ndarray:
        """The picture of decoded latents, uint8 (H, W, 3)."""
        inputs = {"y_hat": decoded.y_hat} | self.level_input(decoded.dial)
        tiling = self.manifest.get("tiling")
        if tiling is None:
            (x_hat,) = self.run("synthesis", inputs)
        else:
            l_T, l_res = self.run("features", inputs)
            l_0 = blend_tiles(self._part("denoiser", "l_T"), l_T, tiling["unet_tile"], tiling["unet_overlap"], 1)
            x_hat = blend_tiles(self._part("vae", "latents"), l_0 + l_res, tiling["vae_tile"], tiling["vae_overlap"], 8)
        x_hat = x_hat[0, :, : decoded.height, : decoded.width].transpose(1, 2, 0)
        return np.rint((x_hat.clip(-1, 1) + 1) * np.float32(127.5)).astype(np.uint8)

    def _part(self, graph: str, name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: self.run(graph, {name: x})[0]


def blend_tiles(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tile: int, overlap: int, scale: int
) -> np.ndarray:
    """`function` over tiles of x (1, C, h, w), blended: see `models/decoder/tiling.py`, whose rules these are."""
    height, width = x.shape[2:]
    if height * width <= tile**2:
        return function(x)
    side = min(tile, height, width)
    tile = side if side >= 2 * overlap else tile
    total, weight = None, np.zeros((height * scale, width * scale), np.float32)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            out = function(x[:, :, top : top + tile, left : left + tile])
            if total is None:
                total = np.zeros((*out.shape[:2], *weight.shape), np.float32)
            rows = slice(top * scale, top * scale + out.shape[2])
            columns = slice(left * scale, left * scale + out.shape[3])
            window = _profile(out.shape[2])[:, None] * _profile(out.shape[3])
            total[:, :, rows, columns] += window * out
            weight[rows, columns] += window
    assert total is not None
    return total / weight


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _profile(size: int) -> np.ndarray:
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
    return np.exp(-np.square(position) / np.float32(2 * 0.1**2))


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 (H, W, 3)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = np.ones((height, 1 + 3 * width), np.uint8)  # filter 1: each value less the one to its left
    lines[:, 1:] = np.diff(pixels.astype(np.int16), axis=1, prepend=0).astype(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"tEXt", b"Comment\0" + NOTICE) + chunk(b"IDAT", zlib.compress(lines.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def check(receiver: Receiver, golden: Path) -> list[str]:
    """A line for each golden stream. Raises UserError unless its latents, and its picture within 1 of 255, come out."""
    lines = []
    for case in json.loads((golden / "golden.json").read_text())["cases"]:
        name = golden / case["name"]
        decoded = receiver.decode(Path(f"{name}.aeic").read_bytes())
        found = [part.tobytes() for part in wire.integers_of(decoded.z_hat, decoded.y_hat)]
        if found != [Path(f"{name}.{letter}.i32").read_bytes() for letter in "zy"]:
            raise wire.UserError(f"the exported receiver does not reproduce golden vector {case['name']}")
        picture = Path(f"{name}.picture.npy")
        if picture.exists():
            difference = receiver.picture(decoded).astype(int) - np.load(picture).transpose(1, 2, 0)
            if np.abs(difference).max() > 1:
                raise wire.UserError(f"the exported receiver does not reproduce the picture {picture.name}")
        lines.append(f"{case['name']}  {case['width']}x{case['height']}  reproduced")
    return lines


def main(argv: list[str] | None = None) -> int:
    """0, or 2 if a file could not be decoded."""
    parser = argparse.ArgumentParser(description="Decode .aeic files to PNG.")
    return wire.convert(Receiver, parser, check, _decode, argv)


def _decode(receiver: Receiver, path: Path, args: argparse.Namespace) -> tuple[str, bytes, str]:
    decoded = receiver.decode(path.read_bytes())
    return ".png", png(receiver.picture(decoded)), f"{decoded.width}x{decoded.height}"


if __name__ == "__main__":
    sys.exit(main())
