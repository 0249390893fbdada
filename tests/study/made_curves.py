"""Rate points that tests make."""

import numpy as np

from aeic_lightning.study.results import Result, summary_rows


def curve(rates, qualities, name="c", metric="psnr", seed=None, rate_name="bpp"):
    """Results of one curve: `rates` and `qualities` (points, images)."""
    made = []
    for point, (rate, quality) in enumerate(zip(np.atleast_2d(rates), np.atleast_2d(qualities), strict=True)):
        images = [
            {"name": f"i{i}", "height": 8, "width": 8, "crc32": i, rate_name: float(r), metric: float(q)}
            for i, (r, q) in enumerate(zip(rate, quality, strict=True))
        ]
        labels = {"lambda": point} | ({} if seed is None else {"seed": seed})
        made.append(Result(f"{name} {point}", "run", labels, summary_rows(images), images=images))
    return made


def column(*values):
    return np.array(values, dtype=float)[:, None]
