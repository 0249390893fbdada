"""From an image to bytes, from bytes to the same latents, and from those to a picture: for every kind of model."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from aeic_lightning.bitstream import container
from aeic_lightning.bitstream.exact import MEAN_STEPS, Context, HyperSynthesis, exact_mode
from aeic_lightning.bitstream.range_coder import LARGEST, SymbolReader, SymbolWriter
from aeic_lightning.bitstream.sender import Sender
from aeic_lightning.bitstream.tables import MEDIAN_STEPS, Tables
from aeic_lightning.errors import UserError
from aeic_lightning.images import to_uint8
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.timing import bfloat16_is_quicker

FORMAT = b"aeic arithmetic 2"  # changes whenever the same checkpoint would give other latents


class Encoded(NamedTuple):
    """One image as a file, and what it consists of."""

    data: bytes
    z_hat: Tensor  # (1, N, h/4, w/4) float32, as the receiver gets it
    y_hat: Tensor  # (1, M, h, w) float32, as the receiver gets it
    bits: float  # ideal code length of z and y by the tables
    coded: int  # symbols of y in the stream; the others were skipped
    escaped: int  # symbols of z and y outside of their tables
    level: float | None = None  # rate level, for a model that has several

    def integers(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Decoded.integers`."""
        return _integers(self.z_hat, self.y_hat)


class Decoded(NamedTuple):
    """What a file holds."""

    height: int  # of the image, pixels
    width: int
    z_hat: Tensor  # (1, M/2, h/4, w/4) float32
    y_hat: Tensor  # (1, M, h, w) float32
    level: float | None = None  # rate level, for a model that has several

    def integers(self) -> tuple[np.ndarray, np.ndarray]:
        """z_hat in steps of 1/64 and y_hat in steps of 1/256, int32, which hold them exactly."""
        return _integers(self.z_hat, self.y_hat)


@dataclass
class LatentCoder:
    """Latents to a file and back, around the networks and tables that both sides share.

    Args:
        hyper_synthesis: z_hat (1, N, h/s, w/s) -> phi (1, K, h, w), exact; s is the grid's `z_stride`, 4 for AEIC.
        context: (phi, code) -> y_hat, as `QuadtreeContext.forward`, exact.
        shared: tables and settings.
        fingerprint: SHA-256 of the model.
        levels: rate levels of the model, which its files then name; 0 for a single rate.
    """

    hyper_synthesis: Callable[[Tensor], Tensor]
    context: Callable[[Tensor, Callable[..., Tensor]], Tensor]
    shared: Tables
    fingerprint: bytes
    levels: int = 0

    def encode_latents(self, y: Tensor, z: Tensor, height: int, width: int, dial: int | None = None) -> Encoded:
        """The file of y (1, M, h, w) and z (1, M/2, h/4, w/4) of an image of `height` x `width` pixels.

        `dial` is the byte of the rate level (`dial_position`), for a model of several.
        """
        container.check_size(height, width)
        y, z = y.float().cpu(), z.float().cpu()
        if not (y.isfinite().all() and z.isfinite().all()):
            raise UserError("the latents are not finite: the model has diverged; use an earlier checkpoint")
        shared, writer = self.shared, SymbolWriter()
        count = 0

        def code(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            nonlocal count
            residual, coded = shared.conditional.quantise(y, mean, scale, mask)
            residual = residual.clamp(-LARGEST, LARGEST)
            where = _numbers(coded)
            writer.write(residual.take(where).numpy(), shared.levels(scale.take(where)), shared.y_tables)
            count += len(where)
            return residual + mean

        with exact_mode():
            symbols = (z - shared.medians).round().clamp(-LARGEST, LARGEST)
            writer.write(symbols.flatten().numpy(), _channels(symbols), shared.z_tables)
            z_hat = symbols + shared.medians
            y_hat = self._y_hat(z_hat, (y.shape[2], y.shape[3]), code)
        stream = container.Stream(height, width, _check(z_hat, y_hat), writer.getvalue(), dial)
        data = container.pack(stream, self.fingerprint)
        return Encoded(data, z_hat, y_hat, writer.bits, count, writer.escaped, dial_level(dial, self.levels))

    def decode(self, data: bytes) -> Decoded:
        """The latents of a file, the same on every machine.

        Raises UserError for a file of another model or version, a damaged one, and whenever the decoded latents are not
        those that the sender had.
        """
        stream = container.unpack(data, self.fingerprint, has_level=self.levels > 0)
        shared, reader = self.shared, SymbolReader(stream.payload)
        (h, w), (zh, zw) = shared.grid.sizes(stream.height, stream.width)

        def code(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            where = _numbers(mask & shared.conditional.is_coded(scale))
            values = torch.from_numpy(reader.read(shared.levels(scale.take(where)), shared.y_tables)).float()
            residual = torch.zeros(mean.shape).put_(where, values)
            return residual + mean

        wrong = (
            "the decoded latents are not the sender's (%s), so the picture would be wrong; run `verify` on this machine"
        )
        try:
            with exact_mode():
                z_hat = torch.zeros(1, len(shared.z_tables), zh, zw)
                symbols = torch.from_numpy(reader.read(_channels(z_hat), shared.z_tables)).float()
                z_hat = symbols.view_as(z_hat) + shared.medians
                y_hat = self._y_hat(z_hat, (h, w), code)
        except AssertionError as error:  # constriction's, for bytes that fit no symbol
            raise UserError(wrong % "the bytes fit no symbols") from error
        if _check(z_hat, y_hat) != stream.check:
            raise UserError(wrong % "their check value differs")
        return Decoded(stream.height, stream.width, z_hat, y_hat, dial_level(stream.level, self.levels))

    def _y_hat(self, z_hat: Tensor, size: tuple[int, int], code: Callable[..., Tensor]) -> Tensor:
        phi = self.hyper_synthesis(z_hat)[..., : size[0], : size[1]]
        return self.context(phi, code)


DIAL = 255
"""Highest position of the rate dial, which a file holds in one byte."""


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


class ImageSender(Protocol):
    """From an image to latents: what need not be the same on both sides."""

    def analyse(self, x: Tensor) -> Tensor:
        """Image (1, 3, H, W) in [-1, 1] -> y of its padded form, whatever the rate level."""
        ...

    def at_level(self, y: Tensor, level: float | None = None) -> tuple[Tensor, Tensor]:
        """y and z as they are quantised at a rate level; None for a model of one rate."""
        ...


class Coding(NamedTuple):
    """What a model gives to its `Bitstream`."""

    hyper_synthesis: nn.Module  # both as `LatentCoder` takes them
    context: nn.Module
    shared: Tables
    sender: ImageSender


@singledispatch
def coding(model: CompressionModel, fast: bool) -> Coding:
    """How a kind of model is coded: a package with a model of its own registers a function for its class here.

    With `fast` the sender computes in bfloat16; a function whose model cannot raises UserError.
    """
    raise TypeError(f"no coding is registered for {type(model).__name__}")


@coding.register
def _aeic_coding(model: AEIC, fast: bool) -> Coding:
    codec = model.codec
    shared = Tables.of(codec.grid, codec.conditional.skip_threshold, codec.prior)
    return Coding(HyperSynthesis(codec.h_s), Context(codec.context), shared, Sender(codec, fast))


class Bitstream(LatentCoder):
    """Writes and reads the streams of a model of any kind.

    Its h_s, context and tables are converted to exact arithmetic once, at the start: build a new Bitstream when
    the weights have changed. Works on the CPU, one image at a time.

    Args:
        model: any model that has a `coding`.
        fast: whether the sender computes in bfloat16; the receiver of a file needs not know.

    Raises UserError for a model whose weights are not finite, or with `fast` for one that has no such form.
    """

    def __init__(self, model: CompressionModel, fast: bool = False) -> None:
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"{name} is not finite: the model has diverged; use an earlier checkpoint")
        hyper_synthesis, context, shared, self.sender = coding(model, fast)
        digest = fingerprint([hyper_synthesis, context, model], shared)
        super().__init__(hyper_synthesis, context, shared, digest, model.rate_levels)

    def encode(self, x: Tensor, level: float | None = None) -> bytes:
        """The file of one image (1, 3, H, W) in [-1, 1], 1 to 8192 pixels a side.

        `level` sets the rate of a model with several: 0 (smallest files) to `levels` - 1, in 255 steps; the middle
        where none is given.
        """
        return self.encode_fully(x, level).data

    def file_size(self, x: Tensor, level: float | None = None) -> int:
        """Bytes of the file of one image; `bpp` is 8 times this over its pixels."""
        return len(self.encode(x, level))

    def encode_fully(self, x: Tensor, level: float | None = None) -> Encoded:
        """The file of one image, and the latents behind it."""
        container.check_size(*x.shape[2:])
        return self._at(dial_position(level, self.levels), self.sender.analyse(x), x)

    def encode_at(
        self, x: Tensor, *, bpp: float | None = None, max_bytes: int | None = None, level: float | None = None
    ) -> Encoded:
        """The best file of one image that is not larger than `bpp` or `max_bytes`, or the one at `level`.

        Files grow with the level, so it is found by bisection over the 256 positions of the dial; g_a runs once.
        Raises UserError for more than one of the three, and where no level gives so small a file.
        """
        if sum(value is not None for value in (bpp, max_bytes, level)) > 1:
            raise UserError("give one of bpp, max_bytes and level")
        height, width = x.shape[2:]
        if bpp is not None:
            max_bytes = container.bytes_within(bpp, height, width)
        if max_bytes is None:
            return self.encode_fully(x, level)
        container.check_size(height, width)
        y = self.sender.analyse(x)
        best = self._at(0 if self.levels else None, y, x)
        if len(best.data) > max_bytes:
            what = "the smallest file of this model" if self.levels else "this model has one rate, and its file"
            raise UserError(
                f"{max_bytes} bytes are too few for {width}x{height} pixels: {what} has {len(best.data)} bytes "
                f"({8 * len(best.data) / (height * width):.4f} bpp)"
            )
        low, high = 0, DIAL + 1 if self.levels else 1  # the file at `low` fits, that at `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            encoded = self._at(middle, y, x)
            if len(encoded.data) <= max_bytes:
                low, best = middle, encoded
            else:
                high = middle
        return best

    def _at(self, dial: int | None, y: Tensor, x: Tensor) -> Encoded:
        latents = self.sender.at_level(y, dial_level(dial, self.levels))
        return self.encode_latents(*latents, x.shape[2], x.shape[3], dial)


def fingerprint(modules: Iterable[nn.Module], shared: Tables) -> bytes:
    """SHA-256 of all that a stream and its picture depend on: weights, exact weights, tables, settings."""
    digest = hashlib.sha256(FORMAT)
    digest.update(shared.to_bytes())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            if name.endswith("prior.quantiles"):
                continue  # solved for, not trained: the tables speak for them
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


@torch.inference_mode()
def reconstruct(model: CompressionModel, decoded: Decoded, fast: bool = False) -> Tensor:
    """The picture of decoded latents, uint8 (3, H, W). Floating point: machines may differ in single levels.

    With `fast` the networks run in bfloat16, on a processor only if a short timing finds that quicker there.
    """
    return reconstruct_batch(model, [decoded], fast)[0]


def in_one_pass(one: Decoded, other: Decoded) -> bool:
    """Whether the pictures of two decoded files can be made in one pass: latents of one size, at one rate level."""
    return one.y_hat.shape == other.y_hat.shape and one.level == other.level


def in_passes(decoded: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Decoded files in groups of at most `size`, each of neighbours that are `in_one_pass`; the order stays."""
    group: list[Decoded] = []
    for one in decoded:
        if group and (len(group) == size or not in_one_pass(group[0], one)):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


@torch.inference_mode()
def reconstruct_batch(model: CompressionModel, decoded: Sequence[Decoded], fast: bool = False) -> list[Tensor]:
    """As `reconstruct`, for files of which any two are `in_one_pass`."""
    device = next(model.parameters()).device
    fast = fast and (device.type != "cpu" or bfloat16_is_quicker())
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        x_hat = model.reconstruct(torch.cat([one.y_hat for one in decoded]).to(device), decoded[0].level)
    return [to_uint8(x[:, : one.height, : one.width]).cpu() for x, one in zip(x_hat, decoded, strict=True)]


def _numbers(mask: Tensor) -> Tensor:
    """Where a (1, M, h, w) mask is true, in (channel, row, column) order."""
    return mask.flatten().nonzero().squeeze(1)


def _channels(z: Tensor) -> np.ndarray:
    """The channel number of every element of (1, C, h, w), flat."""
    return np.repeat(np.arange(z.shape[1], dtype=np.uint16), z[0, 0].numel())


def _integers(z_hat: Tensor, y_hat: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return (z_hat * MEDIAN_STEPS).int().contiguous().numpy(), (y_hat * MEAN_STEPS).int().contiguous().numpy()


def _check(z_hat: Tensor, y_hat: Tensor) -> bytes:
    return container.latents_check(*(part.astype("<i4").tobytes() for part in _integers(z_hat, y_hat)))
