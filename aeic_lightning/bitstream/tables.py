"""Integer probability tables: one for each channel of z, one for each of the 64 scale levels of y.

A table spends 2^24 counts on the symbols `low`, `low + 1`, ... and, last, on an escape that announces a value outside.
Probabilities are computed in float64 and rounded to 12 binary digits before they become counts, so that the last digits
of a machine's exp or erfc do not reach the counts; the fingerprint of a stream covers the counts in any case.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from aeic_lightning.bitstream.wire import MEDIAN_STEPS, PRECISION, Table
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import LatentGrid
from aeic_lightning.models.codec.context import QUADTREE, SCALE_FLOOR, FactorizedPrior, GaussianConditional, Pattern

LEVELS = 64
LARGEST_SCALE = 256.0
TAIL = 2.0**-22  # probability below which a table leaves values to the escape
LARGEST_TABLE = 4096


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


def level_bounds() -> torch.Tensor:
    """float32 (63,): a raw scale belongs to the level that says how many bounds are at most the scale."""
    levels = scale_levels()
    # Rounded to 2^-20 for the reason given above.
    return torch.tensor([round(math.sqrt(a * b) * 2**20) / 2**20 for a, b in pairwise(levels)])


def gaussian_tables() -> list[Table]:
    """One table a level, of residuals y - mean."""
    tables = []
    for scale in scale_levels():
        reach = max(math.ceil(5.2 * scale), 1)
        edges = [math.erfc((k - 0.5) / (scale * math.sqrt(2))) / 2 for k in range(reach + 2)]
        right = [a - b for a, b in pairwise(edges)]
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
    medians: torch.Tensor  # float32 (1, M/2, 1, 1), multiples of 1/64
    bounds: torch.Tensor  # float32 (63,), between the scale levels
    z_tables: list[Table]
    y_tables: list[Table]
    pattern: Pattern = QUADTREE

    @classmethod
    def of(
        cls,
        grid: LatentGrid,
        skip_threshold: float | None,
        prior: FactorizedPrior,
        pattern: Pattern = QUADTREE,
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
        )

    @property
    def conditional(self) -> GaussianConditional:
        """What decides which symbols a stream holds."""
        return GaussianConditional(self.skip_threshold)

    def levels(self, scale: torch.Tensor) -> np.ndarray:
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
        }

    def to_bytes(self) -> bytes:
        """For the fingerprint, which is older than `multiple`, `z_stride` and `pattern`."""
        values = self.to_dict()
        values["stride"] = values.pop("multiple") // 2
        del values["z_stride"]
        if self.pattern == QUADTREE:
            del values["pattern"]
        return json.dumps(values, sort_keys=True).encode()
