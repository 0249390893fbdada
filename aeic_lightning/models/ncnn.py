"""Convolutional networks stored as ncnn's `.param` and `.bin`, run by PyTorch in float32.

Some PyPI packages hold trained upscalers in this form. Reading the two files needs neither ncnn nor a GPU. The layers
are those that these upscalers use; another layer is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError

MAGIC = "7767517"
HALF, SINGLE = 0x01306B47, 0
"""Tags of weights in 16 and 32 bits."""

ARITHMETIC: list[Callable[[Tensor, Any], Tensor]] = [torch.add, torch.sub, torch.mul, torch.div]


@dataclass(frozen=True)
class Layer:
    """A line of the `.param` file."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    options: dict[int, Any]
    weights: list[Tensor]


class NcnnNetwork(nn.Module):
    """The function from the blob `data` to the blob `output`, both (B, C, H, W).

    Args:
        path: of the `.param` file; its weights are in the `.bin` file beside it.

    Raises UserError where a file is missing or damaged, or has a layer that is unknown here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            lines, data = path.read_text().splitlines(), path.with_suffix(".bin").read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the network {path}: {error}") from error
        if not lines or lines[0].strip() != MAGIC:
            raise UserError(f"{path} is no network of ncnn: its first line is not {MAGIC}")
        reader = _Reader(path, data)
        self.layers = [_layer(line, reader) for line in lines[2:] if line.strip()]
        if reader.at != len(data):
            raise UserError(f"{path.with_suffix('.bin')} has {len(data) - reader.at} bytes more than its layers take")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The output for an input in the range that the network was trained on."""
        blobs = {"data": x}
        for layer in self.layers:
            if layer.kind == "Input":
                continue
            # Every blob is used once: copies are layers of their own (Split).
            result = _run(layer, [blobs.pop(name) for name in layer.inputs])
            blobs.update(dict.fromkeys(layer.outputs, result))
        return blobs["output"]


class _Reader:
    """Weights one after another."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path.with_suffix(".bin"), data, 0

    def take(self, count: int, kind: str = "<f4") -> Tensor:
        """`count` plain values, as float32."""
        size = np.dtype(kind).itemsize * count
        if self.at + size > len(self.data):
            raise UserError(f"{self.path} ends before its network does: install its package again")
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += -(-size // 4) * 4  # halves are padded to whole words
        return torch.from_numpy(values.astype(np.float32))

    def tagged(self, count: int) -> Tensor:
        """`count` values behind a word that says in which form they are."""
        tag = int.from_bytes(self.data[self.at : self.at + 4], "little")
        self.at += 4
        if tag not in (HALF, SINGLE):
            raise UserError(f"{self.path} has weights in a form that is unknown here ({tag:#x})")
        return self.take(count, "<f2" if tag == HALF else "<f4")


def _layer(line: str, reader: _Reader) -> Layer:
    kind, name, inputs, outputs, *rest = line.split()
    ends = int(inputs), int(inputs) + int(outputs)
    options = dict(_option(text) for text in rest[ends[1] :])
    weights: list[Tensor] = []
    if kind == "Convolution":
        width, kernel = options[0], (options.get(11, options[1]), options[1])
        weight = reader.tagged(options[6])
        weights = [weight.view(width, -1, *kernel)]
        weights += [reader.take(width)] if options.get(5) else []
        known = {0, 1, 4, 5, 6, 9, 10, 11}
        usual = options.get(9, 0) in (0, 2) and options.get(2, 1) == options.get(3, 1) == 1
        if not usual or set(options) - known - {2, 3}:
            raise UserError(f"{reader.path.with_suffix('.param')}: {name} is a convolution of a form unknown here")
    elif kind == "MemoryData":
        shape = [options[key] for key in (2, 1, 0) if options.get(key)]
        weights = [reader.take(int(np.prod(shape))).view(1, *shape)]
    elif kind == "PReLU":
        weights = [reader.take(options[0])]
    elif kind not in KINDS:
        raise UserError(f"{reader.path.with_suffix('.param')}: {name} is a layer unknown here ({kind})")
    return Layer(kind, rest[: ends[0]], rest[ends[0] : ends[1]], options, weights)


def _option(text: str) -> tuple[int, Any]:
    """`key=value`; a key of -23300 - k has a list, which begins with its length."""
    key, _, value = text.partition("=")
    if int(key) <= -23300:
        return -23300 - int(key), [float(part) for part in value.split(",")[1:]]
    return int(key), float(value) if any(sign in value for sign in ".e") else int(value)


def _run(layer: Layer, given: list[Tensor]) -> Tensor:
    options = layer.options
    if layer.kind == "MemoryData":
        return layer.weights[0]
    if layer.kind == "PReLU":
        return F.prelu(given[0], layer.weights[0])
    if layer.kind == "Convolution":
        bias = layer.weights[1] if len(layer.weights) > 1 else None
        result = F.conv2d(given[0], layer.weights[0], bias, padding=options.get(4, 0))
        return F.leaky_relu(result, options[10][0]) if options.get(9) == 2 else result
    return KINDS[layer.kind](options, given)


def _binary(options: dict[int, Any], given: list[Tensor]) -> Tensor:
    return ARITHMETIC[options.get(0, 0)](given[0], options[2] if options.get(1) else given[1])


def _eltwise(options: dict[int, Any], given: list[Tensor]) -> Tensor:
    if options.get(0, 0) != 1:
        raise UserError("a network of ncnn has an Eltwise that is no sum, which is unknown here")
    weights = options.get(1, [1.0] * len(given))
    return torch.stack([w * x for w, x in zip(weights, given, strict=True)]).sum(0)


KINDS: dict[str, Callable[[dict[int, Any], list[Tensor]], Tensor]] = {
    "Input": lambda options, given: given[0],
    "Split": lambda options, given: given[0],
    "Swish": lambda options, given: F.silu(given[0]),
    "Sigmoid": lambda options, given: given[0].sigmoid(),
    "BinaryOp": _binary,
    "Eltwise": _eltwise,
    "Concat": lambda options, given: torch.cat(given, dim=1),
    "PixelShuffle": lambda options, given: F.pixel_shuffle(given[0], options[0]),
    "Interp": lambda options, given: F.interpolate(given[0], scale_factor=(options[1], options[2]), mode="nearest"),
}
