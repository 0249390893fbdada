"""Results sorted into what the page draws: sets of images, curves of one system, figures with their names."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aeic_lightning.study.results import RATE_LABELS, Result

# Labels that name a curve, in the order in which they are said; the others are said only where these do not suffice.
NAMING = ("role", "codec", "dataset", "depth", "arm")
# Order of arms on the page, and so of their colours; others follow by name.
ARMS = ("teacher", "none", "enc", "enc_dec")
BACKBONES = {
    "lite0": "EfficientNet-Lite0",
    "alex": "AlexNet",
    "vgg": "VGG-16",
    "inception": "Inception-v3",
    "": "",
}
STANDARD_BACKBONE = {"dists": "vgg", "fid": "inception", "kid": "inception"}


@dataclass(frozen=True)
class Metric:
    """How a figure is called on the page.

    Args:
        name: as in the results, for example `lpips_lite0`.
        title: with its unit, without its backbone.
        backbone: in words; empty for figures that need no network.
        higher: whether higher is better.
        kind: `distortion`, `perception` or `accuracy`.
    """

    name: str
    title: str
    backbone: str
    higher: bool
    kind: str

    @property
    def full(self) -> str:
        """Title and backbone."""
        return f"{self.title}, {self.backbone}" if self.backbone else self.title

    @property
    def digits(self) -> int:
        """Decimals that are worth printing."""
        return {"PSNR (dB)": 2, "FID": 1}.get(self.title, 4)


KNOWN = {
    "psnr": ("PSNR (dB)", True, "distortion"),
    "ms_ssim": ("MS-SSIM", True, "distortion"),
    "lpips": ("LPIPS", False, "perception"),
    "dists": ("DISTS", False, "perception"),
    "fid": ("FID", False, "perception"),
    "kid": ("KID", False, "perception"),
    "top1": ("top-1 accuracy", True, "accuracy"),
    "top5": ("top-5 accuracy", True, "accuracy"),
}


def find_metric(name: str) -> Metric | None:
    """A figure of quality by its name; None for rates, times and whatever else a result may hold."""
    base, _, backbone = (name, "", "") if name in KNOWN else name.rpartition("_")
    if base not in KNOWN or backbone not in BACKBONES:
        return None
    title, higher, kind = KNOWN[base]
    return Metric(name, title, BACKBONES[backbone or STANDARD_BACKBONE.get(base, "")], higher, kind)


def sample(result: Result, name: str) -> str:
    """What a figure was taken over, in words."""
    if name in result.metrics:
        count, word = result.metrics[name]["images"], "image"
    elif name in result.set_metrics:
        count, word = result.set_metrics[name].get("patches"), "patch"
    else:
        return "nothing"
    if count is None:
        return "the whole set"
    plural = {"image": "images", "patch": "patches"}[word]
    return f"{count} {word if count == 1 else plural}"


def label_text(key: str, item: Any) -> str:
    """One label in words: `depth 1`, but the bare value where the value says it all."""
    return str(item) if key in ("role", "arm", "codec", "dataset") else f"{key} {item}"


@dataclass(frozen=True)
class Curve:
    """One system at several rates.

    Args:
        name: in words, unique on its plot.
        labels: what all its results share.
        settings: results that differ in the seed alone, one list a rate, from the lowest rate up.
        rate: name of the rate that all of its results have, `bpp` where possible.
    """

    name: str
    labels: dict[str, Any]
    settings: list[list[Result]]
    rate: str | None

    @property
    def results(self) -> list[Result]:
        """All results of the curve."""
        return [result for setting in self.settings for result in setting]

    @property
    def kind(self) -> str:
        """What its results are, as in `Result`."""
        return self.results[0].kind

    @property
    def seeds(self) -> int:
        """Seeds of the setting that has the most."""
        return max(len(setting) for setting in self.settings)

    def points(self, name: str) -> list[tuple[float, float, list[Result]]]:
        """(rate, figure, results) of each setting, both means over its seeds, where the figure was measured."""
        rows = []
        for setting in self.settings:
            pairs = [(r.figure(self.rate), r.figure(name)) for r in setting] if self.rate else []
            pairs = [pair for pair in pairs if None not in pair]
            if len(pairs) == len(setting):
                x, y = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
                rows.append((x, y, setting))
        return sorted(rows, key=lambda row: row[0])


@dataclass(frozen=True)
class ImageSet:
    """Results on the same images; only these may be compared.

    Args:
        title: how many and which.
        names: of the images.
        curves: everything measured on them.
        metrics: figures that at least one curve has.
    """

    title: str
    names: list[str]
    curves: list[Curve]
    metrics: list[Metric]

    @property
    def results(self) -> list[Result]:
        """All results on these images."""
        return [result for curve in self.curves for result in curve.results]


def image_sets(results: Sequence[Result]) -> list[ImageSet]:
    """Sort results by the images that they were measured on (name, size and content), the largest group first."""
    groups: dict[frozenset, list[Result]] = {}
    for result in results:
        groups.setdefault(result.image_set, []).append(result)
    sets = []
    for key, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = sorted(name for name, *_ in key)
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        title = f"{len(names)} image{'s' * (len(names) != 1)}: {listed}" if names else "images not recorded"
        found = dict.fromkeys(name for r in members for name in (*r.metrics, *r.set_metrics))
        known = [m for name in found if (m := find_metric(name))]
        known.sort(key=lambda m: list(KNOWN).index(next(base for base in KNOWN if m.name.startswith(base))))
        sets.append(ImageSet(title, names, group(members), known))
    return sets


def group(results: Sequence[Result]) -> list[Curve]:
    """Curves: results whose labels agree but for the rate setting and the seed.

    Where those do not tell two results apart, runs called NAME_q1, NAME_q2 ... make one curve, and all others one each,
    under their own names. Sorted as the page shows them.
    """
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault((result.kind, tuple(sorted(_fixed(result).items()))), []).append(result)
    parts: list[list[Result]] = []
    for members in groups.values():
        if len({(_setting(r), r.labels.get("seed")) for r in members}) == len(members):
            parts.append(members)
            continue
        by_name: dict[str, list[Result]] = {}
        for result in members:
            by_name.setdefault(re.sub(r"_q\d+$", "", result.name), []).append(result)
        for same in by_name.values():
            parts += [same] if len({r.name for r in same}) == len(same) else [[r] for r in same]
    names = _names(parts)
    return sorted((_curve(name, members) for name, members in zip(names, parts, strict=True)), key=_place)


def _place(curve: Curve) -> tuple:
    """Teachers first, then by depth and arm; codecs for comparison last."""
    arm, depth = str(curve.labels.get("arm", "")), curve.labels.get("depth", 0)
    known = ARMS.index(arm) if arm in ARMS else len(ARMS)
    return curve.kind == "anchor", curve.labels.get("role") != "teacher", str(depth), known, arm


def _fixed(result: Result) -> dict[str, Any]:
    return {k: v for k, v in result.labels.items() if k not in (*RATE_LABELS, "seed")}


def _setting(result: Result) -> tuple:
    return tuple(result.labels.get(k) for k in RATE_LABELS)


def _curve(name: str, members: list[Result]) -> Curve:
    rates = ("bpp", "bpp_estimate")
    rate = next((rate for rate in rates if all(r.figure(rate) is not None for r in members)), None)
    settings: dict[tuple, list[Result]] = {}
    told_apart = len({(_setting(r), r.labels.get("seed")) for r in members}) == len(members)
    for result in members:
        settings.setdefault(_setting(result) if told_apart else (result.name,), []).append(result)
    ordered = sorted(settings.values(), key=lambda s: math.fsum(r.figure(rate) for r in s) / len(s) if rate else 0)
    return Curve(name, _fixed(members[0]), ordered, rate)


def _names(parts: list[list[Result]]) -> list[str]:
    """The shortest labels that tell curves apart; the run's name where labels do not.

    An arm of a study says more than the class that trained it, and stands in its place.
    """
    labels = [_fixed(members[0]) for members in parts]
    several = len({own.get("dataset") for own in labels}) > 1
    names = []
    for own in labels:
        keys = [k for k in NAMING if k in own and (k != "dataset" or several) and not (k == "role" and "arm" in own)]
        names.append(" · ".join(label_text(k, own[k]) for k in keys))
    # What is called alike gets one label more, the first that tells it apart.
    for key in dict.fromkeys(k for own in labels for k in own if k not in NAMING or k == "role"):
        alike = {name for name in names if names.count(name) > 1}
        longer = [
            f"{n} · {label_text(key, own[key])}" if key in own else n for n, own in zip(names, labels, strict=True)
        ]
        for name in alike:
            places = [i for i, other in enumerate(names) if other == name]
            if len({longer[i] for i in places}) == len(places):
                names = [longer[i] if i in places else other for i, other in enumerate(names)]
    said: list[str] = []
    for label, members in zip(names, parts, strict=True):
        own = re.sub(r"_q\d+$", "", members[0].name) if len(members) > 1 else members[0].name
        name = label if label and names.count(label) == 1 else " · ".join(filter(None, [label, own]))
        said.append(name if name not in said else f"{name} ({1 + sum(other.startswith(name) for other in said)})")
    return said
