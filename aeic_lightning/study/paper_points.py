"""Published results: the rate points of AEIC and of StableCodec, and the effect of AEIC's distillation.

Zhang, Liu, Chen: "Ultra-Low Bitrate Perceptual Image Compression with Shallow Encoder", CVPR 2026. StableCodec is what
that paper compares itself with; its points are those of `results/results.txt` in its authors' repository. The rates of
both are likelihood estimates, so they are called `bpp_estimate` here, and are not to be compared with the bytes of
files. Nothing is known by image.
"""

from aeic_lightning.errors import UserError
from aeic_lightning.study.results import Result

IMAGES = {"Kodak": 24, "DIV2K": 100, "CLIC": 428}
LAMBDAS = (32, 16, 8, 4, 2)
CODECS = ("AEIC-ME", "AEIC-SE", "StableCodec")

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
        "ms_ssim": (0.58295, 0.66216, 0.72879, 0.78113, 0.82160),
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
        "ms_ssim": (0.61080, 0.69052, 0.75836, 0.81446, 0.85351),
        "lpips_alex": (0.31412, 0.25145, 0.20146, 0.16138, 0.13518),
        "dists": (0.11868, 0.09968, 0.08419, 0.06991, 0.06118),
        "fid": (19.62, 14.68, 11.35, 8.93, 7.70),
        "kid": (0.0010406, 0.0006471, 0.0003889, 0.0001524, 0.0001199),
    },
    ("AEIC-ME", "CLIC"): {
        "bpp_estimate": (0.00463, 0.00784, 0.01287, 0.02002, 0.02958),
        "lpips_alex": (0.25422, 0.20288, 0.16299, 0.13460, 0.11645),
        "dists": (0.10524, 0.08672, 0.07219, 0.06250, 0.05642),
        "fid": (5.73, 4.59, 3.64, 3.03, 2.75),
    },
    ("AEIC-SE", "CLIC"): {
        "bpp_estimate": (0.00327, 0.00592, 0.01039, 0.01773, 0.02821),
        "ms_ssim": (0.70447, 0.76217, 0.81078, 0.85124, 0.88037),
        "lpips_alex": (0.27180, 0.21537, 0.17219, 0.13820, 0.11501),
        "dists": (0.11392, 0.09455, 0.07850, 0.06473, 0.05581),
        "fid": (7.35, 5.29, 4.00, 2.95, 2.45),
        "kid": (0.0012510, 0.0007672, 0.0005089, 0.0002478, 0.0001725),
    },
    ("StableCodec", "Kodak"): {
        "bpp_estimate": (0.00579, 0.00783, 0.01083, 0.01333, 0.01707, 0.02026, 0.02504, 0.02865, 0.03413),
        "psnr": (20.26975, 20.73231, 21.30513, 21.65274, 22.05493, 22.30099, 22.62900, 22.77507, 23.01050),
        "ms_ssim": (0.64343, 0.67603, 0.71202, 0.73357, 0.75725, 0.77358, 0.79089, 0.80005, 0.81223),
        "lpips_alex": (0.30967, 0.27342, 0.24439, 0.22848, 0.20691, 0.19517, 0.18207, 0.17433, 0.16643),
        "dists": (0.15184, 0.13822, 0.12456, 0.11674, 0.10794, 0.10302, 0.09807, 0.09652, 0.09165),
        "fid": (90.61, 81.76, 71.82, 64.92, 61.81, 59.79, 55.65, 54.38, 53.32),
    },
    ("StableCodec", "DIV2K"): {
        "bpp_estimate": (0.00573, 0.00780, 0.01095, 0.01361, 0.01767, 0.02101, 0.02619, 0.03013, 0.03591),
        "psnr": (19.85542, 20.31130, 20.96205, 21.34000, 21.79800, 22.02478, 22.43692, 22.58843, 22.82993),
        "ms_ssim": (0.67093, 0.70433, 0.74221, 0.76377, 0.78812, 0.80288, 0.82009, 0.82887, 0.83879),
        "lpips_alex": (0.28928, 0.26202, 0.23570, 0.21805, 0.19966, 0.18963, 0.17729, 0.16945, 0.16284),
        "dists": (0.12245, 0.11069, 0.10022, 0.09331, 0.08596, 0.08169, 0.07737, 0.07398, 0.07146),
        "fid": (17.64, 15.67, 13.81, 12.75, 11.73, 10.99, 10.14, 9.66, 9.45),
        "kid": (0.0010417, 0.0009072, 0.0007974, 0.0007604, 0.0006953, 0.0005824, 0.0005414, 0.0004887, 0.0004490),
    },
    ("StableCodec", "CLIC"): {
        "bpp_estimate": (0.00444, 0.00599, 0.00847, 0.01062, 0.01404, 0.01696, 0.02162, 0.02526, 0.03078),
        "psnr": (22.13283, 22.55640, 23.20240, 23.58286, 24.03297, 24.16144, 24.58483, 24.69041, 24.93470),
        "ms_ssim": (0.74809, 0.77197, 0.80038, 0.81641, 0.83517, 0.84592, 0.85926, 0.86571, 0.87374),
        "lpips_alex": (0.25620, 0.22932, 0.20408, 0.18759, 0.17050, 0.16251, 0.15081, 0.14392, 0.13803),
        "dists": (0.11940, 0.10723, 0.09722, 0.08969, 0.08205, 0.07794, 0.07333, 0.06987, 0.06739),
        "fid": (6.93, 5.97, 5.20, 4.78, 4.29, 4.15, 3.73, 3.52, 3.34),
        "kid": (0.0011285, 0.0008627, 0.0007879, 0.0006635, 0.0005876, 0.0005795, 0.0005176, 0.0004430, 0.0004134),
    },
}

DISTILLATION = {
    "none": {"lpips_alex": 8.47, "dists": 23.75, "fid": 22.10},
    "L_enc": {"lpips_alex": 3.92, "dists": 7.68, "fid": 4.75},
    "L_enc + L_dec": {"lpips_alex": 0.60, "dists": 2.55, "fid": 2.98},
}
"""BD-rate of the student against the teacher in % by arm of distillation, DIV2K at 768x512 (the paper's ablation)."""

_SET_METRICS = ("fid", "kid")
_INFO = {
    "bpp_estimate": {"backbone": None, "options": {}},
    "psnr": {"backbone": None, "options": {}},
    "ms_ssim": {"backbone": None, "options": {}},
    "lpips_alex": {"backbone": "alex", "options": {}},
    "dists": {"backbone": "vgg", "options": {}},
    "fid": {"backbone": "inception", "options": {"patch_size": 256}},
    "kid": {"backbone": "inception", "options": {"patch_size": 256}},
}


def published(codec: str | None = None, dataset: str | None = None) -> list[Result]:
    """The released rate points, one result per rate; those of one codec or data set if named.

    Args:
        codec: AEIC-ME (the teacher), AEIC-SE (the student) or StableCodec.
        dataset: Kodak, DIV2K (validation) or CLIC (2020 test).

    Raises UserError for a name that is none of these.
    """
    for given, known in ((codec, CODECS), (dataset, tuple(IMAGES))):
        if given is not None and given not in known:
            raise UserError(f"no published points of {given!r}; there are {', '.join(sorted(known))}")
    chosen = [key for key in _RELEASED if codec in (None, key[0]) and dataset in (None, key[1])]
    return [_result(*key, point) for key in chosen for point in range(len(_RELEASED[key]["bpp_estimate"]))]


def _result(codec: str, dataset: str, point: int) -> Result:
    metrics = {name: values[point] for name, values in _RELEASED[codec, dataset].items()}
    # StableCodec names no setting of its nine rates: they are numbered from the lowest on.
    setting, value = ("quality", point + 1) if codec == "StableCodec" else ("lambda", LAMBDAS[point])
    authors = codec.partition("-")[0]
    return Result(
        name=f"{codec} {dataset} {setting} {value}",
        kind="published",
        labels={"codec": codec, "dataset": dataset, setting: value},
        metrics={k: {"mean": v, "images": IMAGES[dataset]} for k, v in metrics.items() if k not in _SET_METRICS},
        set_metrics={k: {"value": v} for k, v in metrics.items() if k in _SET_METRICS},
        metric_info={name: _INFO[name] | {"version": "as published"} for name in metrics},
        notes=[f"published by the authors of {authors}; rates are likelihood estimates"],
    )
