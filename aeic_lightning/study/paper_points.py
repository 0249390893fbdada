"""AEIC's own results, as published by its authors: rate points, and the effect of their distillation.

Zhang, Liu, Chen: "Ultra-Low Bitrate Perceptual Image Compression with Shallow Encoder", CVPR 2026. The rates are
likelihood estimates, so they are called `bpp_estimate` here, and are not to be compared with the bytes of files.
Nothing is known by image.
"""

from aeic_lightning.errors import UserError
from aeic_lightning.study.results import Result

IMAGES = {"Kodak": 24, "DIV2K": 100, "CLIC": 428}
LAMBDAS = (32, 16, 8, 4, 2)

# Released result tables, at full size; LPIPS on AlexNet, DISTS on VGG, FID on patches of 256 pixels.
_RELEASED = {
    ("AEIC-ME", "Kodak"): {
        "bpp_estimate": (0.00564, 0.01011, 0.01684, 0.02602, 0.03760),
        "lpips_alex": (0.31142, 0.24419, 0.19780, 0.16377, 0.14270),
        "dists": (0.13988, 0.11639, 0.10054, 0.08766, 0.08206),
        "psnr": (20.00, 21.07, 22.04, 22.77, 23.30),
    },
    ("AEIC-SE", "Kodak"): {
        "bpp_estimate": (0.00410, 0.00791, 0.01433, 0.02407, 0.03702),
        "lpips_alex": (0.34155, 0.27327, 0.21539, 0.17500, 0.14680),
        "dists": (0.15487, 0.12743, 0.10768, 0.09150, 0.08149),
        "psnr": (18.99, 20.17, 21.30, 22.16, 22.90),
    },
    ("AEIC-ME", "DIV2K"): {
        "bpp_estimate": (0.00556, 0.00986, 0.01651, 0.02553, 0.03677),
        "lpips_alex": (0.28969, 0.23263, 0.18787, 0.15693, 0.13691),
        "dists": (0.10876, 0.09103, 0.07752, 0.06812, 0.06169),
        "fid": (16.86, 13.28, 10.84, 9.10, 8.08),
    },
    ("AEIC-SE", "DIV2K"): {
        "bpp_estimate": (0.00370, 0.00715, 0.01311, 0.02276, 0.03574),
        "lpips_alex": (0.31412, 0.25145, 0.20146, 0.16138, 0.13518),
        "dists": (0.11868, 0.09968, 0.08419, 0.06991, 0.06118),
        "fid": (19.62, 14.68, 11.35, 8.93, 7.70),
    },
    ("AEIC-ME", "CLIC"): {
        "bpp_estimate": (0.00463, 0.00784, 0.01287, 0.02002, 0.02958),
        "lpips_alex": (0.25422, 0.20288, 0.16299, 0.13460, 0.11645),
        "dists": (0.10524, 0.08672, 0.07219, 0.06250, 0.05642),
        "fid": (5.73, 4.59, 3.64, 3.03, 2.75),
    },
    ("AEIC-SE", "CLIC"): {
        "bpp_estimate": (0.00327, 0.00592, 0.01039, 0.01773, 0.02821),
        "lpips_alex": (0.27180, 0.21537, 0.17219, 0.13820, 0.11501),
        "dists": (0.11392, 0.09455, 0.07850, 0.06473, 0.05581),
        "fid": (7.35, 5.29, 4.00, 2.95, 2.45),
    },
}

DISTILLATION = {
    "none": {"lpips_alex": 8.47, "dists": 23.75, "fid": 22.10},
    "L_enc": {"lpips_alex": 3.92, "dists": 7.68, "fid": 4.75},
    "L_enc + L_dec": {"lpips_alex": 0.60, "dists": 2.55, "fid": 2.98},
}
"""BD-rate of the student against the teacher in % by arm of distillation, DIV2K at 768x512 (the paper's ablation)."""

_SET_METRICS = ("fid",)
_INFO = {
    "bpp_estimate": {"backbone": None, "options": {}},
    "psnr": {"backbone": None, "options": {}},
    "lpips_alex": {"backbone": "alex", "options": {}},
    "dists": {"backbone": "vgg", "options": {}},
    "fid": {"backbone": "inception", "options": {"patch_size": 256}},
}


def published(codec: str | None = None, dataset: str | None = None) -> list[Result]:
    """The released rate points, one result a lambda; those of one codec or data set if named.

    Args:
        codec: AEIC-ME (the teacher) or AEIC-SE (the student).
        dataset: Kodak, DIV2K (validation) or CLIC (2020 test).

    Raises UserError for a name that is none of these.
    """
    for given, known in ((codec, {c for c, _ in _RELEASED}), (dataset, {d for _, d in _RELEASED})):
        if given is not None and given not in known:
            raise UserError(f"no published points of {given!r}; there are {', '.join(sorted(known))}")
    chosen = [key for key in _RELEASED if codec in (None, key[0]) and dataset in (None, key[1])]
    return [_result(*key, point) for key in chosen for point in range(len(LAMBDAS))]


def _result(codec: str, dataset: str, point: int) -> Result:
    metrics = {name: values[point] for name, values in _RELEASED[codec, dataset].items()}
    return Result(
        name=f"{codec} {dataset} lambda {LAMBDAS[point]}",
        kind="published",
        labels={"codec": codec, "dataset": dataset, "lambda": LAMBDAS[point]},
        metrics={k: {"mean": v, "images": IMAGES[dataset]} for k, v in metrics.items() if k not in _SET_METRICS},
        set_metrics={k: {"value": v} for k, v in metrics.items() if k in _SET_METRICS},
        metric_info={name: _INFO[name] | {"version": "as published"} for name in metrics},
        notes=["published by the authors of AEIC; rates are likelihood estimates"],
    )
