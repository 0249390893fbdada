"""The metrics: what each is called, and whether higher is better. Tables, plots, BD-rates and callbacks read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aeic_lightning.errors import UserError

BACKBONES = {
    "lite0": "EfficientNet-Lite0",
    "lite2": "EfficientNet-Lite2",
    "alex": "AlexNet",
    "vgg": "VGG-16",
    "hed": "VGG-16 trained on for edges",
    "inception": "Inception-v3",
}
STANDARD_BACKBONE = {"dists": "vgg", "fid": "inception", "kid": "inception"}
"""The backbone of a metric whose name says none."""


KINDS = ("distortion", "perception", "accuracy")
"""Of metrics, in the order of their plots."""


@dataclass(frozen=True)
class Metric:
    """A metric of quality.

    Attributes:
        name: as in the results, for example `lpips_lite0`.
        title: with its unit, without its backbone.
        backbone: in words; empty for a metric that needs no network.
        higher: whether higher is better.
        kind: `distortion`, `perception` or `accuracy`.
        digits: decimals that are worth printing.
    """

    name: str
    title: str
    backbone: str
    higher: bool
    kind: str
    digits: int = 4

    @property
    def full(self) -> str:
        """Title and backbone."""
        return f"{self.title}, {self.backbone}" if self.backbone else self.title

    @property
    def own(self) -> bool:
        """Whether it is one of the user's own (`metrics.own`)."""
        return self.name in _own

    @property
    def described(self) -> dict[str, Any]:
        """As plain values, by which a result says what its own metrics are; see `declare`."""
        return {"title": self.title, "higher": self.higher, "kind": self.kind, "digits": self.digits}

    def text(self, value: float) -> str:
        """A value for a table or a plot; an accuracy in per cent."""
        return f"{value:.1%}" if self.kind == "accuracy" else f"{value:.{self.digits}f}"

    def difference(self, value: float) -> str:
        """The difference of two values, with its sign; of accuracies in percentage points."""
        return f"{100 * value:+.1f} points" if self.kind == "accuracy" else f"{value:+.{self.digits}f}"


METRICS = {
    "psnr": Metric("psnr", "PSNR (dB)", "", True, "distortion", 2),
    "ms_ssim": Metric("ms_ssim", "MS-SSIM", "", True, "distortion"),
    "ssimulacra2": Metric("ssimulacra2", "SSIMULACRA2", "", True, "perception", 2),
    "lpips": Metric("lpips", "LPIPS", "", False, "perception"),
    "dists": Metric("dists", "DISTS", "", False, "perception"),
    "fid": Metric("fid", "FID", "", False, "perception", 1),
    "kid": Metric("kid", "KID", "", False, "perception"),
    "same_class": Metric("same_class", "same top-1 class as the original", "", True, "accuracy"),
    "top1": Metric("top1", "top-1 accuracy", "", True, "accuracy"),
    "top5": Metric("top5", "top-5 accuracy", "", True, "accuracy"),
}
"""The shipped metrics, by the name without a backbone, in the order of tables."""

_own: dict[str, Metric] = {}


def declare(metric: Metric) -> None:
    """Make a metric of the user's own known by its name. Raises UserError if of one of the name the other is better."""
    if _own.setdefault(metric.name, metric).higher != metric.higher:
        raise UserError(
            f"metric {metric.name!r}: higher is better in one place and worse in another; correct `higher`, "
            "or give one of the two another `name`"
        )


def declare_all(info: Mapping[str, Mapping[str, Any]]) -> None:
    """The same for the own metrics of a result's `metric_info`."""
    for name, entry in info.items():
        if described := entry.get("metric"):
            declare(Metric(name, backbone="", **described))


def find_metric(name: str) -> Metric | None:
    """A metric of quality by its name in results; None for rates, times and whatever else a result may hold."""
    if name in _own:
        return _own[name]
    base, _, backbone = (name, "", "") if name in METRICS else name.rpartition("_")
    if base not in METRICS or (backbone and backbone not in BACKBONES):
        return None
    known = METRICS[base]
    words = BACKBONES.get(backbone or STANDARD_BACKBONE.get(base, ""), "")
    return Metric(name, known.title, words, known.higher, known.kind, known.digits)


def in_order(names: list[str]) -> list[Metric]:
    """The metrics of quality among these names, each once, in the order of `METRICS`; the user's own come last."""
    found = [metric for name in dict.fromkeys(names) if (metric := find_metric(name))]
    titles = [metric.title for metric in METRICS.values()]
    return sorted(found, key=lambda m: len(titles) if m.own else titles.index(m.title))
