"""From an image to bytes, from bytes to the same latents, and from those to a picture: for every kind of model."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.coder import PRECISION, PayloadReader, PayloadWriter, Table
from aeic_lightning.bitstream.exact import HyperSynthesis, exact_context, exact_mode
from aeic_lightning.bitstream.sender import Sender
from aeic_lightning.bitstream.wire import (
    LARGEST,
    MEDIAN_STEPS,
    dial_level,
    dial_position,
)
from aeic_lightning.errors import UserError
from aeic_lightning.images import to_uint8
from aeic_lightning.models.aeic import AEIC, REALISTIC
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import LatentGrid
from aeic_lightning.models.codec.context import QUADTREE, SCALE_FLOOR, FactorizedPrior, GaussianConditional, Pattern
from aeic_lightning.torch_settings import bfloat16_is_quicker, own_settings

FORMAT = b"aeic arithmetic 2"  # changes whenever the same checkpoint would give other latents
LEVELS = 64
LARGEST_SCALE = 256.0
TAIL = 2.0**-22  # probability below which a table leaves values to the escape
LARGEST_TABLE = 4096


# ---------------------------------------------------------------------- tables

# Integer probability tables: one for each channel of z, one for each of the 64 scale levels of y. A table spends 2^24
# counts on the symbols `low`, `low + 1`, ... and, last, on an escape that announces a value outside. Probabilities are
# computed in float64 and rounded to 12 binary digits before they become counts, so that the last digits of a machine's
# exp or erfc do not reach the counts; the fingerprint of a stream covers the counts in any case.


def table(low: int, probabilities: np.ndarray, outside: float) -> Table:
    """The table of float64 `probabilities` of low, low + 1, ... and of all values `outside`."""
    mantissa, exponent = np.frexp(np.append(probabilities, outside))
    rounded = np.ldexp(np.rint(mantissa * 2**12), exponent - 12)
    counts = 1 + np.floor(rounded * (2**PRECISION - len(rounded))).astype(np.int64)
    counts[np.argmax(counts[:-1])] += 2**PRECISION - counts.sum()
    return Table(low, counts)


def scale_levels() -> np.ndarray:
    """The 64 scales of the Gaussian tables, float64, evenly spaced in log from 0.11 to 256."""
    step = math.log(LARGEST_SCALE / SCALE_FLOOR) / (LEVELS - 1)
    return np.array([SCALE_FLOOR * math.exp(step * i) for i in range(LEVELS)])


def level_bounds() -> Tensor:
    """float32 (63,): a raw scale belongs to the level that says how many bounds are at most the scale."""
    levels = scale_levels()
    # Rounded to 2^-20 for the reason given above.
    return torch.tensor([round(math.sqrt(a * b) * 2**20) / 2**20 for a, b in itertools.pairwise(levels)])


def gaussian_tables() -> list[Table]:
    """One table a level, of residuals y - mean."""
    tables = []
    for scale in scale_levels():
        reach = max(math.ceil(5.2 * scale), 1)
        edges = [math.erfc((k - 0.5) / (scale * math.sqrt(2))) / 2 for k in range(reach + 2)]
        right = [a - b for a, b in itertools.pairwise(edges)]
        right[0] = 1 - 2 * edges[1]
        tables.append(table(-reach, np.array(right[:0:-1] + right), 2 * edges[-1]))
    return tables


def medians(prior: FactorizedPrior) -> np.ndarray:
    """float32 (M/2,): the centre of each channel's rounding grid."""
    return np.rint(prior.quantiles[:, 1].detach().cpu().double().numpy() * MEDIAN_STEPS).astype(np.float32) / (
        MEDIAN_STEPS
    )


@torch.no_grad()
def prior_tables(prior: FactorizedPrior) -> list[Table]:
    """One table a channel, of z - median. Raises UserError for a prior that is not a density."""
    density = FactorizedPrior(prior.channels)
    density.load_state_dict({name: tensor.cpu() for name, tensor in prior.state_dict().items()})
    density.double()
    quantiles = density.quantiles.numpy()
    if not np.isfinite(quantiles).all():
        raise UserError("the prior's quantiles are not finite: the model has diverged; use an earlier checkpoint")
    centre = medians(prior).astype(np.float64)
    reach = np.abs(quantiles[:, [0, 2]] - centre[:, None]).max()
    reach = int(min(max(math.ceil(reach), 1), LARGEST_TABLE // 2))
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5 + torch.from_numpy(centre)[:, None]
    logits = density.logits(edges)
    # In the upper tail both sigmoids are near 1: mirror them there to keep the digits of the difference.
    # Where they cancel, either side will do: a sign of 0 would take the bin's probability away.
    sign = torch.where(logits[:, 1:] + logits[:, :-1] > 0, -1.0, 1.0).double()
    probabilities = ((sign * logits[:, 1:]).sigmoid() - (sign * logits[:, :-1]).sigmoid()).abs().numpy()
    tables = []
    below, above = logits.sigmoid().numpy(), (-logits).sigmoid().numpy()
    for channel, row in enumerate(probabilities):
        inside = np.flatnonzero(row >= TAIL)
        first, last = (inside[0], inside[-1]) if len(inside) else (reach, reach)
        outside = below[channel, first] + above[channel, last + 1]
        tables.append(table(int(first) - reach, row[first : last + 1], outside))
    return tables


@dataclass(frozen=True)
class Tables:
    """All integers and settings that the two sides share beside the networks."""

    grid: LatentGrid
    skip_threshold: float | None
    medians: Tensor  # float32 (1, M/2, 1, 1), multiples of 1/64
    bounds: Tensor  # float32 (63,), between the scale levels
    z_tables: list[Table]
    y_tables: list[Table]
    pattern: Pattern = QUADTREE
    by_rows: bool = False  # the order of a payload

    @classmethod
    def of(
        cls,
        grid: LatentGrid,
        skip_threshold: float | None,
        prior: FactorizedPrior,
        pattern: Pattern = QUADTREE,
        by_rows: bool = False,
    ) -> "Tables":
        """The tables of a codec whose prior's quantiles are up to date; `pattern` is its context model's."""
        return cls(
            grid,
            skip_threshold,
            torch.from_numpy(medians(prior)).reshape(1, -1, 1, 1),
            level_bounds(),
            prior_tables(prior),
            gaussian_tables(),
            pattern,
            by_rows,
        )

    @property
    def rows(self) -> int | None:
        """Rows of y in a band of a payload by rows: those of one row of z; None for one in another order."""
        return self.grid.z_stride if self.by_rows else None

    @property
    def conditional(self) -> GaussianConditional:
        """What decides which symbols a stream holds."""
        return GaussianConditional(self.skip_threshold)

    def levels(self, scale: Tensor) -> np.ndarray:
        """uint8: the level of each raw scale."""
        return torch.bucketize(scale, self.bounds, right=True, out_int32=True).numpy().astype(np.uint8)

    def to_dict(self) -> dict:
        """Plain numbers, for JSON."""
        return {
            "stride": self.grid.stride,
            "multiple": self.grid.multiple,
            "z_stride": self.grid.z_stride,
            "skip_threshold": self.skip_threshold,
            "precision": PRECISION,
            "medians_times_64": (self.medians.flatten() * MEDIAN_STEPS).int().tolist(),
            "level_bounds_times_2_to_20": (self.bounds.double() * 2**20).long().tolist(),
            "z": [{"low": t.low, "counts": t.counts.tolist()} for t in self.z_tables],
            "y": [{"low": t.low, "counts": t.counts.tolist()} for t in self.y_tables],
            "pattern": self.pattern,
            "by_rows": self.by_rows,
        }

    def to_bytes(self) -> bytes:
        """For the fingerprint, which is older than `multiple`, `z_stride`, `pattern` and `by_rows`."""
        values = self.to_dict()
        if not self.by_rows:
            del values["by_rows"]
        values["stride"] = values.pop("multiple") // 2
        del values["z_stride"]
        if self.pattern == QUADTREE:
            del values["pattern"]
        return json.dumps(values, sort_keys=True).encode()


# ---------------------------------------------------------------------- files


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
        hyper_synthesis: z_hat (B, N, h/s, w/s) -> phi (B, K, h, w), exact; s is the grid's `z_stride`, 4 for AEIC.
            B is 1 outside of the forms for a batch.
        context: (phi, code) -> y_hat, as `ContextModel.forward`, exact.
        shared: tables and settings.
        fingerprint: SHA-256 of the model.
        levels: rate levels of the model, which its files then name; 0 for a single rate.
        watch: told, step by step of a file that is written, of the residuals of y, their scales and which are coded.
    """

    hyper_synthesis: Callable[[Tensor], Tensor]
    context: Callable[[Tensor, Callable[..., Tensor]], Tensor]
    shared: Tables
    fingerprint: bytes
    levels: int = 0
    watch: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def encode_latents(self, y: Tensor, z: Tensor, height: int, width: int, dial: int | None = None) -> Encoded:
        """The file of y (1, M, h, w) and z (1, M/2, h/4, w/4) of an image of `height` x `width` pixels.

        `dial` is the byte of the rate level (`dial_position`), for a model of several.
        """
        return self.encode_latents_batch(y, z, height, width, [dial])[0]

    def encode_latents_batch(
        self, y: Tensor, z: Tensor, height: int, width: int, dials: Sequence[int | None]
    ) -> list[Encoded]:
        """As `encode_latents`, for y (B, M, h, w) and z (B, M/2, h/4, w/4) of images of one size: the same files."""
        wire.check_size(height, width)
        y, z = y.float().cpu(), z.float().cpu()
        if not (y.isfinite().all() and z.isfinite().all()):
            raise UserError("the latents are not finite: the model has diverged; use an earlier checkpoint")
        shared = self.shared
        writers = [PayloadWriter(shared.z_tables, shared.y_tables, shared.rows) for _ in dials]
        counts = [0 for _ in dials]

        def code(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            residual, coded = shared.conditional.quantise(y, mean, scale, mask)
            if self.watch:
                self.watch(residual, scale, coded)
            residual = residual.clamp(-LARGEST, LARGEST)
            for i, writer in enumerate(writers):
                where = _numbers(coded[i])
                levels = shared.levels(scale[i].take(where))
                writer.write_y(residual[i].take(where).numpy(), levels, where.numpy(), y.shape[2:])
                counts[i] += len(where)
            return residual + mean

        with exact_mode():
            symbols = (z - shared.medians).round().clamp(-LARGEST, LARGEST)
            for image, writer in zip(symbols, writers, strict=True):
                writer.write_z(image.numpy())
            z_hat = symbols + shared.medians
            y_hat = self._y_hat(z_hat, (y.shape[2], y.shape[3]), code)
        encoded = []
        parts = zip(z_hat.split(1), y_hat.split(1), dials, writers, counts, strict=True)
        for one_z, one_y, dial, writer, count in parts:
            check = wire.latents_check(one_z.numpy(), one_y.numpy(), shared.rows)
            stream = wire.Stream(height, width, check, writer.getvalue(), dial)
            data, level = wire.pack(stream, self.fingerprint), dial_level(dial, self.levels)
            encoded.append(Encoded(data, one_z, one_y, writer.bits, count, writer.escaped, level))
        return encoded

    def pass_of(self, data: bytes) -> tuple[Any, ...]:
        """What files have in common that can be decoded in one pass: size of the latents, rate level.

        Raises UserError for a file that is damaged, or of another model.
        """
        stream = self._unpack(data)
        return *self.shared.grid.sizes(stream.height, stream.width), stream.level

    def decode(self, data: bytes) -> Decoded:
        """The latents of a file, the same on every machine.

        Raises UserError for a file of another model or version, a damaged one, and whenever the decoded latents are not
        those that the sender had.
        """
        return self.decode_batch([data])[0]

    def decode_batch(self, files: Sequence[bytes]) -> list[Decoded]:
        """As `decode`, for files whose latents have one size (`pass_of`), in less time where the images are small.

        Raises UserError if any of them is damaged.
        """
        streams = [self._unpack(data) for data in files]
        shared = self.shared
        sizes, *others = {shared.grid.sizes(stream.height, stream.width) for stream in streams}
        if others:
            raise ValueError("the latents of these files have different sizes")
        (h, w), (zh, zw) = sizes

        def code(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            residual = torch.zeros(mean.shape)
            coded = mask & shared.conditional.is_coded(scale)
            for i, reader in enumerate(readers):
                where = _numbers(coded[i])
                values = reader.read_y(shared.levels(scale[i].take(where)), where.numpy(), (h, w))
                # put_ is refused under use_deterministic_algorithms.
                residual[i].view(-1)[where] = torch.from_numpy(values).float()
            return residual + mean

        wrong = (
            "the decoded latents are not the sender's (%s), so the picture would be wrong; run `verify` on this machine"
        )
        try:
            readers = [PayloadReader(s.payload, shared.z_tables, shared.y_tables, shared.rows) for s in streams]
            with exact_mode():
                z_hat = torch.zeros(len(files), len(shared.z_tables), zh, zw)
                for image, reader in zip(z_hat, readers, strict=True):
                    image.copy_(torch.from_numpy(reader.read_z(tuple(image.shape))))
                z_hat += shared.medians
                y_hat = self._y_hat(z_hat, (h, w), code)
        except AssertionError as error:  # constriction's, for bytes that fit no symbol
            raise UserError(wrong % "the bytes fit no symbols") from error
        decoded = []
        for stream, one_z, one_y in zip(streams, z_hat.split(1), y_hat.split(1), strict=True):
            if wire.latents_check(one_z.numpy(), one_y.numpy(), shared.rows) != stream.check:
                raise UserError(wrong % "their check value differs")
            level = dial_level(stream.level, self.levels)
            decoded.append(Decoded(stream.height, stream.width, one_z, one_y, level))
        return decoded

    def _unpack(self, data: bytes) -> wire.Stream:
        return wire.unpack(data, self.fingerprint, has_level=self.levels > 0)

    def _y_hat(self, z_hat: Tensor, size: tuple[int, int], code: Callable[..., Tensor]) -> Tensor:
        phi = self.hyper_synthesis(z_hat)[..., : size[0], : size[1]]
        return self.context(phi, code)


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
    shared = Tables.of(
        codec.grid, codec.conditional.skip_threshold, codec.prior, codec.context.pattern, codec.config.by_rows
    )
    return Coding(HyperSynthesis(codec.h_s), exact_context(codec.context), shared, Sender(codec, fast))


class Bitstream(LatentCoder):
    """Writes and reads the streams of a model of any kind.

    Its h_s, context and tables are converted to exact arithmetic once, at the start: build a new Bitstream when
    the weights have changed. The exact part works on the CPU.

    Args:
        model: any model that has a `coding`.
        fast: whether the sender computes in bfloat16; the receiver of a file needs not know.

    Raises UserError for a model whose weights are not finite, or with `fast` for one that has no such form.
    """

    @own_settings()
    def __init__(self, model: CompressionModel, fast: bool = False) -> None:
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"{name} is not finite: the model has diverged; use an earlier checkpoint")
        self.model = model
        hyper_synthesis, context, shared, self.sender = coding(model, fast)
        digest = fingerprint([hyper_synthesis, context, model], shared)
        super().__init__(hyper_synthesis, context, shared, digest, model.rate_levels)

    def encode(self, x: Tensor, level: float | None = None) -> bytes:
        """The file of one image (1, 3, H, W) in [-1, 1], 1 to 8192 pixels a side.

        `level` sets the rate of a model with several: 0 (smallest files) to `levels` - 1, in 255 steps; the middle
        where none is given.
        """
        return self.encode_fully(x, level).data

    def encode_fully(self, x: Tensor, level: float | None = None) -> Encoded:
        """The file of one image, and the latents behind it."""
        return self.encode_at(x, level=level)

    def encode_at(
        self, x: Tensor, *, bpp: float | None = None, max_bytes: int | None = None, level: float | None = None
    ) -> Encoded:
        """The best file of one image that is not larger than `bpp` or `max_bytes`, or the one at `level`.

        Files grow with the level, so it is found by bisection over the 256 positions of the dial; g_a runs once.
        Raises UserError for more than one of the three, and where no level gives so small a file.
        """
        return self.encode_batch(x, bpp=bpp, max_bytes=max_bytes, level=level)[0]

    @own_settings()
    def encode_batch(
        self, x: Tensor, *, bpp: float | None = None, max_bytes: int | None = None, level: float | None = None
    ) -> list[Encoded]:
        """As `encode_at`, for images (B, 3, H, W): the same files, in less time where the images are small.

        The exact part takes all images in one pass; g_a, whose last digits would change with the others in its batch,
        takes one after the other.
        """
        wire.check_order(bpp=bpp, max_bytes=max_bytes, level=level)
        height, width = x.shape[2:]
        wire.check_size(height, width)
        if bpp is not None:
            max_bytes = wire.bytes_within(bpp, height, width)
        dial = dial_position(level, self.levels)
        analysed = [self.sender.analyse(image) for image in x.split(1)]
        if max_bytes is None:
            return self._at([dial] * len(x), analysed, height, width)
        at = partial(self._at, analysed=analysed, height=height, width=width)
        return wire.best_within(at, lambda one: len(one.data), self.levels, len(x), max_bytes, (height, width))

    def _at(self, dials: Sequence[int | None], analysed: list[Tensor], height: int, width: int) -> list[Encoded]:
        levels = [dial_level(dial, self.levels) for dial in dials]
        latents = [self.sender.at_level(y, level) for y, level in zip(analysed, levels, strict=True)]
        y, z = (torch.cat(parts) for parts in zip(*latents, strict=True))
        return self.encode_latents_batch(y, z, height, width, dials)


def fingerprint(modules: Iterable[nn.Module], shared: Tables) -> bytes:
    """SHA-256 of all that a stream and its picture depend on: weights, exact weights, tables, settings.

    A second decoder, of realistic pictures, is left out: a model that is given one still reads its streams.
    """
    digest = hashlib.sha256(FORMAT)
    digest.update(shared.to_bytes())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            # Quantiles are solved for, not trained: the tables speak for them.
            if name.endswith("prior.quantiles") or name.startswith(REALISTIC):
                continue
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


@torch.inference_mode()
def reconstruct(model: CompressionModel, decoded: Decoded, fast: bool = False) -> Tensor:
    """The picture of decoded latents, uint8 (3, H, W). Floating point: machines may differ in single levels.

    With `fast` the networks run in bfloat16, on a processor only if a short timing finds that quicker there.
    """
    return reconstruct_batch(model, [decoded], fast)[0]


T = TypeVar("T")


def in_passes(items: Iterable[T], size: int, alike: Callable[[T], Any]) -> Iterator[list[T]]:
    """Items in groups of at most `size` neighbours for which `alike` is equal; the order stays."""
    if size < 1:
        raise UserError(f"size is {size}; a pass has at least 1")
    for _, same in itertools.groupby(items, alike):
        while group := list(itertools.islice(same, size)):
            yield group


@torch.inference_mode()
@own_settings()
def reconstruct_batch(model: CompressionModel, decoded: Sequence[Decoded], fast: bool = False) -> list[Tensor]:
    """As `reconstruct`, for files whose latents have one size and whose rate level is one (`LatentCoder.pass_of`)."""
    device = next(model.parameters()).device
    fast = fast and (device.type != "cpu" or bfloat16_is_quicker())
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        x_hat = model.reconstruct(torch.cat([one.y_hat for one in decoded]).to(device), decoded[0].level)
    return [to_uint8(x[:, : one.height, : one.width]).cpu() for x, one in zip(x_hat, decoded, strict=True)]


def _numbers(mask: Tensor) -> Tensor:
    """Where a (M, h, w) mask is true, in (channel, row, column) order."""
    return mask.flatten().nonzero().squeeze(1)


def _integers(z_hat: Tensor, y_hat: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return wire.integers_of(z_hat.contiguous().numpy(), y_hat.contiguous().numpy())
