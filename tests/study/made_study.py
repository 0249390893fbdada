"""Results of a study whose figures follow a formula."""

import math
import random

from aeic_lightning.study.results import Result, summary_rows

LAMBDAS = (0.5, 1.0, 2.0, 4.0)
HOSTILE = "<script>window.hacked=1<img src=x onerror=alert(1)>"
IMAGES = {"cat": (24, 40), 'a <b>bold</b> & "quoted" dog': (40, 24)}
COSTS = {1: (1000.0, 1400.0), 2: (4000.0, 5000.0)}


def measure(role, depth, arm, rate, seed, worse, name=None, estimate=True, **labels):
    """A result whose figures follow a formula: `worse` is the share of bits that it spends beyond the teacher."""
    draw = random.Random(f"{role}{depth}{arm}{rate}{seed}")
    rows = []
    for i, (image, (height, width)) in enumerate(IMAGES.items()):
        bpp = 0.1 * rate**-0.7 * (1 + worse) * (1 + 0.2 * i) * draw.uniform(0.97, 1.03)
        level = math.log10(100 * bpp / (1 + worse))
        row = {"name": image, "height": height, "width": width, "crc32": i, "bytes": 40, "bpp": bpp}
        rows.append(row | {"bpp_estimate": 0.9 * bpp, "psnr": 20 + 3 * level, "lpips_lite0": 1.2 - 0.3 * level})
        if not estimate:
            del rows[-1]["bpp_estimate"]
    labels = {"role": role, "depth": depth, "arm": arm, "lambda": rate, "seed": seed} | labels
    costs = {"encoder_macs_per_pixel": dict(zip(("g_a", "encode"), COSTS[depth], strict=True))} if depth else None
    return Result(
        name=name or f"{role}_depth={depth}_arm={arm}_lambda={rate}_seed={seed}",
        kind="run",
        labels={k: v for k, v in labels.items() if v is not None},
        metrics=summary_rows(rows, ("bytes",)),
        set_metrics={"fid_lite0": {"value": 100.0 + rate, "patches": 45}},
        images=rows,
        metric_info={"lpips_lite0": {"backbone": "lite0", "version": {"lpips": "0.1.4"}, "options": {}}},
        costs=costs,
        command=f"python -m aeic_lightning fit --config {role}.yaml --vars.name={name or rate}",
        step=280,
    )


def made_study():
    """A teacher, and students of two depths and arms: four rates, two seeds. One has a name that is a script."""
    results = [measure("teacher", 2, None, rate, seed, 0.0) for rate in LAMBDAS for seed in (0, 1)]
    for depth in (1, 2):
        for arm, worse in (("none", 0.3), ("enc", 0.1)):
            for rate in LAMBDAS:
                for seed in (0, 1):
                    first = depth == 1 and arm == "enc" and rate == 1.0 and seed == 0
                    results.append(
                        measure("student", depth, arm, rate, seed, worse / depth, HOSTILE if first else None)
                    )
    return results
