"""The sender as C99 without floating point: `export --c`.

aeic_sender.h, aeic_sender.c   weights and code
send.c, Makefile               a command line for PPM and, with stb_image, JPEG: `make`, then `./send`
golden/                        small photographs and their streams; `make check` compares
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from aeic_lightning.bitstream.coder import Table
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.bitstream.wire import DIAL, MEDIAN_STEPS
from aeic_lightning.errors import UserError
from aeic_lightning.files import package_folder, write_whole
from aeic_lightning.images import from_uint8
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.codec.context import NoContext
from aeic_lightning.models.integer import (
    COARSE,
    LARGEST_Y,
    LATENT,
    PARAMS,
    POWERS_OF_TWO,
    IntegerBlock,
    IntegerConv,
    IntegerNetwork,
    OnGrid,
    log_gains,
)

GOLDEN = {"noise": (70, 33), "waves": (129, 200), "pixel": (1, 1)}
"""Height and width of the golden photographs."""
GOLDEN_DIALS = (0, 128, 255)


@dataclass
class Layer:
    """One `layer` of the C code."""

    kind: str
    size: int
    inputs: int
    outputs: int
    conv: IntegerConv | None = None
    adds: bool = False

    def write(self, name: str) -> tuple[str, str]:
        """Its arrays, and its entry in the table of layers."""
        conv = self.conv
        if conv is None:
            return "", f"{{{self.kind}, {self.size}, 0, 0, 0, {self.inputs}, {self.outputs}, 0, 0, 0, 0, 0}}"
        weight, bias, shift = conv.integers()
        zero = _zero(conv.before.low)
        bias = bias.long() - zero * weight.long().flatten(1).sum(1)
        flat = weight.flatten(1).t() if conv.kernel > 1 else weight.flatten(1)
        arrays = [
            _array("int8_t", f"{name}_weight", flat.flatten().tolist()),
            _array("int32_t", f"{name}_bias", bias.tolist()),
            _array("uint8_t", f"{name}_shift", shift.tolist()),
        ]
        low, high = conv.after.low, conv.after.high
        zero_out = _zero(low) if high < 256 else 0
        entry = (
            f"{{{self.kind}, {self.size}, {int(self.adds)}, {zero}, {zero_out}, {self.inputs}, {self.outputs}, "
            f"{low}, {high}, {name}_weight, {name}_bias, {name}_shift}}"
        )
        return "".join(arrays), entry


def _zero(low: int) -> int:
    """The byte that stands for 0."""
    return 128 if low < 0 else 0


def _array(kind: str, name: str, values: Iterable[int]) -> str:
    values = list(values)
    lines = [", ".join(map(str, values[i : i + 24])) for i in range(0, len(values), 24)]
    return f"static const {kind} {name}[{len(values)}] = {{\n" + ",\n".join(lines) + "};\n"


def layers_of(network: nn.Module, inputs: int) -> list[Layer]:
    """The layers of an `IntegerNetwork`, blocks taken apart."""
    layers: list[Layer] = []
    for module in _parts(network):
        if isinstance(module, IntegerConv):
            outputs, inside = module.weight.shape[:2]
            kind = "DEPTHWISE" if module.kernel > 1 else "POINTWISE"
            layers.append(Layer(kind, module.kernel, outputs if module.kernel > 1 else inside, outputs, module))
        elif isinstance(module, IntegerBlock):
            first, middle, last = (layers_of(nn.Sequential(part), inputs)[0] for part in module.children())
            last.adds = True
            layers += [first, middle, last]
        elif isinstance(module, nn.PixelUnshuffle):
            factor = module.downscale_factor
            layers.append(Layer("UNSHUFFLE", factor, inputs, inputs * factor**2))
        elif isinstance(module, nn.PixelShuffle):
            factor = module.upscale_factor
            layers.append(Layer("SHUFFLE", factor, inputs, inputs // factor**2))
        elif not (isinstance(module, OnGrid) and module.grid == COARSE):
            raise UserError(f"{module} has no form in C; take the layers of aeic_lightning.models.integer")
        inputs = layers[-1].outputs if layers else inputs
    return layers


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    return network.children()


def check(codec: LatentCodec) -> None:
    """Raise UserError for a codec whose sender is not in integers."""
    for name in ("g_a", "h_a", "h_s"):
        part = getattr(codec, name)
        ends = PARAMS if name == "h_s" else LATENT
        last = list(part.modules())[-1]
        integer = all(m.integer for m in part.modules() if isinstance(m, IntegerConv | OnGrid))
        if not (isinstance(part, IntegerNetwork) and integer and isinstance(last, IntegerConv) and last.after == ends):
            raise UserError(
                f"codec.{name} is {type(part).__name__}, which has no form in C; take the parts of experiments/micro"
            )
    if not isinstance(codec.context, NoContext):
        raise UserError(f"codec.context is {type(codec.context).__name__}; a sender in C takes NoContext")
    if not codec.config.by_rows:
        raise UserError("codec.by_rows is false; a sender in C writes streams by rows alone: train with codec.by_rows")


def model_source(bitstream: Bitstream, codec: LatentCodec) -> str:
    """The model as C: sizes, weights, tables."""
    check(codec)
    shared, levels = bitstream.shared, bitstream.levels
    networks = {
        "G_A": layers_of(codec.g_a, 3),
        "H_A": layers_of(codec.h_a, codec.channels),
        "H_S": layers_of(codec.h_s, codec.prior.channels),
    }
    bounds = [math.ceil(bound * 256) for bound in shared.bounds.double().tolist()]
    largest_scale = PARAMS.high + 256
    reachable = sum(bound <= largest_scale for bound in bounds) + 1
    threshold = shared.skip_threshold
    lowest = -(2**31) + 1 if threshold is None else math.ceil(min(float(np.float32(threshold)) * 256, 2**30))
    sizes = {
        "LEVELS": levels,
        "STRIDE": shared.grid.stride,
        "PADDING": shared.grid.multiple,
        "Z_STRIDE": shared.grid.z_stride,
        "Y_CHANNELS": codec.channels,
        "Z_CHANNELS": codec.prior.channels,
        "HIDDEN": networks["H_S"][-1].inputs,
        "Y_TABLES_COUNT": reachable,
        "LARGEST_Y": LARGEST_Y,
        "SKIP_THRESHOLD": lowest,
        "MOST_LAYERS": max(map(len, networks.values())),
        **{f"{name}_LAYERS": len(layers) for name, layers in networks.items()},
    }
    parts = [f"enum {{ {', '.join(f'{name} = {value}' for name, value in sizes.items())} }};\n"]
    for name, layers in networks.items():
        written = [layer.write(f"{name.lower()}_{i}") for i, layer in enumerate(layers)]
        parts += [arrays for arrays, _ in written]
        parts.append(f"static const layer {name}[] = {{\n" + ",\n".join(entry for _, entry in written) + "};\n")
    gains = log_gains(codec.gains.log_gain).flatten().tolist() if codec.gains else [0]
    parts += [
        _array("uint8_t", "FINGERPRINT", bitstream.fingerprint),
        _array("int16_t", "LOG_GAINS", gains),
        _array("uint16_t", "POWERS_OF_TWO", POWERS_OF_TWO),
        _array("int16_t", "Z_MEDIANS", (shared.medians.flatten() * MEDIAN_STEPS).int().tolist()),
        _array("int32_t", "LEVEL_BOUNDS", bounds),
        _tables("Z_TABLES", shared.z_tables),
        _tables("Y_TABLES", shared.y_tables[:reachable]),
    ]
    return "".join(parts)


def _tables(name: str, tables: Sequence[Table]) -> str:
    arrays = [
        _array("uint32_t", f"{name.lower()}_{i}", [0, *np.cumsum(table.counts).tolist()])
        for i, table in enumerate(tables)
    ]
    entries = [f"{{{table.low}, {len(table.counts)}, {name.lower()}_{i}}}" for i, table in enumerate(tables)]
    return "".join(arrays) + f"static const table {name}[] = {{\n" + ",\n".join(entries) + "};\n"


def export_c(bitstream: Bitstream, folder: Path) -> None:
    """Write the sender of an AEIC into a folder that exists. Raises UserError where it is not in integers."""
    source = model_source(bitstream, cast(AEIC, bitstream.model).codec)
    templates = package_folder("aeic_lightning.bitstream") / "c"
    for path in sorted(path for path in templates.iterdir() if path.is_file()):
        text = path.read_text().replace("@MODEL@\n", source)
        write_whole(folder / path.name, text)
    write_golden(bitstream, folder / "golden")


def write_golden(bitstream: Bitstream, folder: Path) -> None:
    """Photographs as PPM, and the streams that Python makes of them, NAME.POSITION.aeic, at three positions."""
    folder.mkdir()
    for name, (height, width) in GOLDEN.items():
        pixels = golden_pixels(name, height, width)
        write_whole(folder / f"{name}.ppm", b"P6\n%d %d\n255\n" % (width, height) + pixels.numpy().tobytes())
        x = from_uint8(pixels.permute(2, 0, 1)[None])
        for dial in GOLDEN_DIALS if bitstream.levels else (0,):
            level = dial * (bitstream.levels - 1) / DIAL if bitstream.levels else None
            write_whole(folder / f"{name}.{dial}.aeic", bitstream.encode(x, level))


def golden_pixels(name: str, height: int, width: int) -> Tensor:
    """uint8 (height, width, 3), from integers alone."""
    down, right, channel = torch.meshgrid(*map(torch.arange, (height, width, 3)), indexing="ij")
    if name == "waves":
        return (128 + ((down * (channel + 1) + right * 2) % 200 - 100).abs() - 50 + down // 3 % 40).to(torch.uint8)
    noise = (down * 7919 + right * 104729 + channel * 1299709 + 12345) * 1103515245 % 2**31
    return (noise // 2**16 % 256).to(torch.uint8)
