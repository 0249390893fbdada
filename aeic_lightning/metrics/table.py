"""The metrics: what each is called, and whether higher is better. Tables, plots, BD-rates and callbacks read it.

Those of the user's own are named by class path: `metrics: [{class_path: my_metric.MyMetric, higher: false}]`.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.own_classes import find_class, own_sources, source_digests

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
        """Whether it is one of the user's own (`read_metrics`)."""
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


# ---------------------------------------------------------------------- of the user's own

KEYS = ("class_path", "init_args", "higher", "name", "title", "kind", "digits")


@dataclass(frozen=True)
class OwnMetric:
    """A metric of images that a class of the user's computes.

    The class is built once, and called with reconstruction and original, float32 (1, 3, H, W) in [-1, 1] of 8-bit
    images; it returns one number, or None for an image of which it says nothing. A torch.nn.Module is moved to the
    device of the images.

    Attributes:
        metric: what it is called in results, tables and plots, and whether higher is better.
        class_path, init_args: of the class.
    """

    metric: Metric
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The class, called with its arguments. Raises UserError where that cannot be."""
        kind = find_class(self.class_path, "metrics")
        try:
            inspect.signature(kind).bind(**self.init_args)
        except TypeError as error:
            said = f"{kind.__name__}{inspect.signature(kind)}: {error}"
            raise UserError(f"metrics: {said}; correct init_args") from error
        return kind(**self.init_args)

    @property
    def info(self) -> dict[str, Any]:
        """For `metric_info`: from it, readers of a result know the metric."""
        sources = source_digests(own_sources({"class_path": self.class_path}))
        digest = sources.get(self.class_path.rpartition(".")[0], "")
        version = f"{self.class_path} {digest[:12]}".strip()
        described = {"metric": self.metric.described} if self.metric.own else {}
        return {"backbone": None, "version": version, "options": self.init_args} | described


def read_metrics(entries: Sequence[Mapping[str, Any]] | None) -> list[OwnMetric]:
    """The metrics of a config, which are known by their names from then on. Raises UserError for what is none."""
    found = []
    for entry in entries or []:
        if not isinstance(entry, Mapping) or "class_path" not in entry or not isinstance(entry.get("higher"), bool):
            raise UserError(
                f"metrics: {entry!r}; write {{class_path: my_package.MyMetric, higher: true}}, where higher says "
                "whether higher values are better"
            )
        for key in entry:
            if key not in KEYS:
                hint = did_you_mean(str(key), KEYS) or f"; there are {', '.join(KEYS)}"
                raise UserError(f"metrics: no {key!r}{hint}")
        path = str(entry["class_path"])
        name = entry.get("name") or _snake(path.rpartition(".")[2])
        kind = entry.get("kind", "perception")
        if kind not in KINDS:
            raise UserError(f"metrics: {name} is of kind {kind!r}; there are {', '.join(KINDS)}")
        title = entry.get("title") or name.replace("_", " ")
        metric = Metric(name, title, "", entry["higher"], kind, entry.get("digits", 4))
        if name in [own.metric.name for own in found]:
            raise UserError(f"metrics: two are called {name!r}; give one a name")
        if (known := find_metric(name)) is None or known.own:
            declare(metric)
        elif path.startswith("aeic_lightning."):  # a shipped metric that needs a package
            metric = known
        elif known != metric:
            raise UserError(f"metrics: {name!r} is the name of a shipped metric; give yours another name")
        found.append(OwnMetric(metric, path, dict(entry.get("init_args") or {})))
    return found


def _snake(name: str) -> str:
    """`MyMetric` -> `my_metric`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
