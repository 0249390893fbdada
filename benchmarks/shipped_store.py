"""What `python -m benchmarks.shipped` has measured so far, image by image, so that a run can stop and go on."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name, write_whole
from aeic_lightning.metrics.patches import Features
from aeic_lightning.output import finite_or_null

CROP = 192
"""Pixels a side of a crop in the picture."""


class Store:
    """A folder with two files for each image: its rows (JSON), and features and crops (npz), by rate and codec.

    Args:
        folder: made if it is not there.
        settings: what all rows depend on: models (digests by name), metrics and their versions.

    A model that is added later is measured alone. Raises UserError for a folder whose rows were measured with other
    settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        path = folder / "settings.json"
        try:
            known = json.loads(path.read_text()) if path.is_file() else None
        except ValueError as error:
            raise UserError(f"{path} is damaged: remove {folder}, or give another folder with --work") from error
        settings = json.loads(json.dumps(settings))
        if known is not None:  # each side gets the models that the other has more, so that shared names are compared
            settings["models"] = known["models"] | settings["models"]
            known["models"] = settings["models"] | known["models"]
        if known is not None and known != settings:
            part = min((key for key in {*known, *settings} if known.get(key) != settings.get(key)), default="")
            raise UserError(f"{folder} holds rows of other {part}: remove it, or give another folder with --work")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1))

    def read(self, name: str) -> "Measured":
        """What is known of an image; empty for one that is new."""
        rows, arrays = self._paths(name)
        if not rows.is_file():
            return Measured(name)
        try:
            with np.load(arrays, allow_pickle=False) as file:
                return Measured(name, json.loads(rows.read_text())["rows"], dict(file))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{rows} or {arrays.name} is damaged: remove both, and this image is measured again"
            ) from error

    def write(self, measured: "Measured") -> None:
        """Keep it. The rows come last: without them the image counts as new."""
        rows, arrays = self._paths(measured.name)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **measured.arrays)  # pyright: ignore[reportArgumentType] (keys are names)
        write_whole(arrays, buffer.getvalue())
        write_whole(rows, json.dumps({"name": measured.name, "rows": finite_or_null(measured.rows)}, indent=1))

    def _paths(self, name: str) -> tuple[Path, Path]:
        path = self.folder / file_name(name)
        return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.npz")


class Measured:
    """The rows, features and crops of one image, by rate and codec."""

    def __init__(
        self, name: str, rows: dict[str, dict[str, Any]] | None = None, arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        self.name = name
        self.rows = rows or {}
        self.arrays = arrays or {}

    @staticmethod
    def key(rate: float, codec: str) -> str:
        """Of a row."""
        return f"{rate:g} bpp, {codec}"

    def has(self, rate: float, codec: str) -> bool:
        """Whether it was measured."""
        return self.key(rate, codec) in self.rows

    def add(self, rate: float, codec: str, row: dict[str, Any], features: Features, crop: np.ndarray) -> None:
        """One more file of the image, with the crop (H, W, 3) of its picture."""
        key = self.key(rate, codec)
        self.rows[key] = row
        self.arrays["features"], self.arrays[f"features {key}"] = features
        self.arrays[f"crop {key}"] = crop

    def row(self, rate: float, codec: str) -> dict[str, Any]:
        """Of the file."""
        row = self.rows[self.key(rate, codec)]
        return {name: np.inf if name == "psnr" and value is None else value for name, value in row.items()}

    def features(self, rate: float, codec: str) -> Features:
        """Of the original and of the file's picture."""
        return self.arrays["features"], self.arrays[f"features {self.key(rate, codec)}"]

    def crop(self, rate: float | None = None, codec: str = "") -> np.ndarray:
        """Of the file's picture; of the original without a rate."""
        return self.arrays["crop" if rate is None else f"crop {self.key(rate, codec)}"]


def centre(image: np.ndarray) -> np.ndarray:
    """The crop in the middle of a picture (H, W, 3)."""
    height, width = image.shape[:2]
    top, left = max(height - CROP, 0) // 2, max(width - CROP, 0) // 2
    return image[top : top + CROP, left : left + CROP]


def spread(names: Sequence[str]) -> list[str]:
    """The names in an order whose every beginning is spread evenly over the list (van der Corput's, in base 2)."""
    bits = max(len(names) - 1, 1).bit_length()
    order = sorted(range(len(names)), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))
    return [sorted(names)[index] for index in order]


def digest(path: Path) -> str:
    """12 hexadecimal digits of a file, or of all files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.suffix == ".safetensors") if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()[:12]
