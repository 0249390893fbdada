"""A study: results that are read and sorted into curves once, and whose BD-rates are computed once.

`sweep`, `compare`, `bd-rate`, `accuracy` and `report` are views of it: what one of them has asked for, the others get
without another bootstrap. This is the one place that says which results belong together and what they are called.
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.table import Metric
from aeic_lightning.study.bd_rate import BDRate, bd_quality, bd_rate
from aeic_lightning.study.results import (
    RATE_LABELS,
    Label,
    Result,
    agree,
    metrics_of,
    read_results,
    shared_rate,
)  # fmt: skip

# Labels that name a curve, in the order in which they are given; the others are added only where these do not suffice.
NAMING = ("role", "codec", "dataset", "depth", "encoder", "arm")
NEVER_NAMING = ("loss",)  # it keeps curves apart, but is too long for a name
# Order of arms in tables and plots, and so of their colours; others follow by name.
ARMS = ("teacher", "none", "enc", "enc_dec")


@dataclass(frozen=True)
class Curve:
    """One system at several rates.

    Attributes:
        name: unique among the curves that it was grouped with.
        labels: what all its results share.
        settings: results that differ in the seed alone, one list a rate, from the lowest rate up.
        rate: name of the rate that all of its results have, `bpp` where possible; None where there is none.
    """

    name: str
    labels: dict[str, Label]
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
    def encoder(self) -> Label | None:
        """What its encoder is known by: the depth of a StarEncoder, the class and arguments of any other."""
        return self.labels.get("depth", self.labels.get("encoder"))

    @property
    def seeds(self) -> int:
        """Seeds of the setting that has the most."""
        return max(len(setting) for setting in self.settings)

    def points(self, metric: str) -> list[tuple[float, float, list[Result]]]:
        """(rate, value, results) of each setting, both means over its seeds, where the metric was measured."""
        rows = []
        for setting in self.settings:
            pairs = [(r.value(self.rate), r.value(metric)) for r in setting] if self.rate else []
            pairs = [pair for pair in pairs if None not in pair]
            if len(pairs) == len(setting):
                x, y = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
                rows.append((x, y, setting))
        return sorted(rows, key=lambda row: row[0])


@dataclass(frozen=True)
class ImageSet:
    """Results on the same images; only these may be compared.

    Attributes:
        title: how many and which.
        names: of the images.
        curves: everything measured on them.
        metrics: those that at least one curve has.
    """

    title: str
    names: list[str]
    curves: list[Curve]
    metrics: list[Metric]

    @property
    def results(self) -> list[Result]:
        """All results on these images."""
        return [result for curve in self.curves for result in curve.results]


class Study:
    """Results, each once, with their curves and BD-rates.

    Args:
        results: any mixture; of equal ones the first counts.
        rates: BD-rates that are known already, with their curves, whose results keep their ids.
    """

    def __init__(
        self, results: Iterable[Result] = (), rates: dict[tuple, tuple[Curve, Curve, BDRate]] | None = None
    ) -> None:
        once: dict[str, Result] = {}
        for result in results:
            once.setdefault(repr((result.kind, result.name, result.labels, result.metrics, result.set_metrics)), result)
        self.results = list(once.values())
        self._rates = {} if rates is None else rates

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> "Study":
        """The results of run folders and result files."""
        return cls(read_results(paths))

    def with_more(self, results: Sequence[Result]) -> "Study":
        """A study of further results as well. Curves that are the same there have the same BD-rates."""
        return Study([*self.results, *results], self._rates) if results else self

    @cached_property
    def published(self) -> list[Result]:
        """Those from publications, of which nothing is known by image."""
        return [r for r in self.results if r.kind == "published"]

    @cached_property
    def sets(self) -> list[ImageSet]:
        """All others by the images that they were measured on, with their curves."""
        return image_sets([r for r in self.results if r.kind != "published"])

    @cached_property
    def curves(self) -> list[Curve]:
        """The curves of all results, whatever their images."""
        return group(self.results)

    def rates(
        self, reference: Curve, tests: Iterable[Curve], metrics: Sequence[str], equal_bits: bool = False, **options: Any
    ) -> list[BDRate]:
        """Every curve against the reference by every metric; one that is refused has its `reason`.

        Each is computed when it is first asked for.

        Args:
            reference, tests: the curves.
            metrics: names.
            equal_bits: find the BD-quality where the BD-rate is refused.
            options: of `bd_rate`.
        """
        rows = []
        for test, metric in itertools.product(tests, metrics):
            sides, names = (reference.results, test.results, metric), (reference.name, test.name)
            key = *names, *(tuple(map(id, side)) for side in sides[:2]), metric, *sorted(options.items())
            if key not in self._rates:
                try:
                    row = bd_rate(*sides, names=names, **options)
                except UserError as error:
                    row = BDRate(*names, metric, reason=str(error))
                self._rates[key] = reference, test, row
            *_, row = self._rates[key]
            if equal_bits and row.reason:
                if (*key, equal_bits) not in self._rates:
                    with suppress(UserError):
                        row = replace(row, equal_bits=bd_quality(*sides, names=names, **options))
                    self._rates[*key, equal_bits] = reference, test, row
                *_, row = self._rates[*key, equal_bits]
            rows.append(row)
        return rows


# ---------------------------------------------------------------------- grouping


def image_sets(results: Sequence[Result]) -> list[ImageSet]:
    """Sort results by the images that they were measured on (name, size and content), the largest group first."""
    groups: dict[frozenset, list[Result]] = {}
    for result in results:
        groups.setdefault(result.image_set, []).append(result)
    sets = []
    for key, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = sorted(name for name, *_ in key)
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        counted = f"{len(names)} image{'s' * (len(names) != 1)}{_sizes(key)}"
        title = f"{counted}: {listed}" if names else "images not recorded"
        if title in [s.title for s in sets]:
            title += f" (set {len(sets) + 1})"  # names and sizes of a set above, but other pixels
        sets.append(ImageSet(title, names, group(members), metrics_of(members)))
    return sets


def _sizes(images: frozenset[tuple]) -> str:
    """Heights and widths, said in a title: ` of 256x256`; of three and more how many."""
    sizes = sorted({(height, width) for _, height, width, _ in images if height and width})
    if len(sizes) > 2:
        return f" of {len(sizes)} sizes"
    return " of " * bool(sizes) + " and ".join(f"{height}x{width}" for height, width in sizes)


def group(results: Sequence[Result], by: Sequence[str] | None = None) -> list[Curve]:
    """Curves: results whose labels agree but for the rate setting and the seed, and whose runs had the same settings.

    Runs of the same labels and other settings (`study.experiment`) are not seeds of one experiment: they become curves
    of their own, which have what differs among their labels. Where labels and settings do not tell two results apart,
    runs called NAME_q1, NAME_q2 ... make one curve, and all others one each. In the order of tables and plots.

    Args:
        results: any mixture.
        by: the only labels that tell curves apart; default: all but the seed and `RATE_LABELS`.
    """
    return group_apart([results], by)[0]


def group_apart(sides: Sequence[Sequence[Result]], by: Sequence[str] | None = None) -> list[list[Curve]]:
    """The curves of several sets of results, which are not mixed; all names are unique. See `group`."""
    parts = [(side, *part) for side, results in enumerate(sides) for part in _parts(results, by)]
    names = _names([labels for _, _, labels in parts], [members for _, members, _ in parts])
    curves = [(side, _curve(name, own, labels)) for (side, own, labels), name in zip(parts, names, strict=True)]
    return [sorted((c for of, c in curves if of == side), key=_place) for side in range(len(sides))]


Part = tuple[list[Result], dict[str, Label]]
"""Results of one curve, and what they share."""
QUALITY = re.compile(r"_q\d+$")


def _parts(results: Sequence[Result], by: Sequence[str] | None) -> list[Part]:
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        kind = result.kind if by is None else ""
        groups.setdefault((kind, tuple(sorted(_fixed(result, by).items()))), []).append(result)
    parts: list[Part] = []
    for alike in groups.values():
        shared = _fixed(alike[0], by)
        if not _told_apart(alike) and any(QUALITY.search(r.name) for r in alike):
            by_name: dict[str, list[Result]] = {}
            for result in alike:
                by_name.setdefault(QUALITY.sub("", result.name), []).append(result)
            for same in by_name.values():
                once = len({r.name for r in same}) == len(same)
                parts += [(same, shared)] if once else [([r], shared) for r in same]
            continue
        for members, labels in _by_settings(alike):
            parts += [(own, shared | labels) for own in ([members] if _told_apart(members) else [[r] for r in members])]
    return parts


def _by_settings(members: Sequence[Result]) -> list[Part]:
    """The results of each experiment, with the settings in which it differs from the others."""
    keys = differing([r.settings for r in members])
    found: dict[tuple, list[Result]] = {}
    for result in members:
        found.setdefault(tuple(result.settings.get(key, "-") for key in keys), []).append(result)
    return [(own, dict(zip(keys, values, strict=True))) for values, own in found.items()]


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """The settings in which these differ. Those of which nothing is known, as of older results, differ in none."""
    known = [own for own in settings if own]
    names = dict.fromkeys(name for own in known for name in own)
    found = {name: {own.get(name) for own in known} for name in names}
    files = "files of "  # before the digest of a data folder: older runs have none, which says nothing
    return [name for name, values in found.items() if len(values - {None} if name.startswith(files) else values) > 1]


def _told_apart(members: Sequence[Result]) -> bool:
    return len({(_setting(r), r.labels.get("seed")) for r in members}) == len(members)


def _place(curve: Curve) -> tuple:
    """Teachers first, then by encoder and arm; codecs for comparison last."""
    arm, encoder = str(curve.labels.get("arm", "")), 0 if curve.encoder is None else curve.encoder
    known = ARMS.index(arm) if arm in ARMS else len(ARMS)
    return curve.kind == "anchor", curve.labels.get("role") != "teacher", _natural(str(encoder)), known, arm


def _natural(text: str) -> list[str | int]:
    """A key that sorts numbers within a text by their value: `width=8` before `width=16`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _fixed(result: Result, by: Sequence[str] | None) -> dict[str, Label]:
    if by is not None:
        return {k: result.labels[k] for k in by if k in result.labels}
    return {k: v for k, v in result.labels.items() if k not in (*RATE_LABELS, "seed")}


def _setting(result: Result) -> tuple:
    return tuple(result.labels.get(k) for k in RATE_LABELS)


def _curve(name: str, members: list[Result], labels: dict[str, Label]) -> Curve:
    rate = shared_rate(members)
    settings: dict[tuple, list[Result]] = {}
    told_apart = _told_apart(members)
    for result in members:
        settings.setdefault(_setting(result) if told_apart else (result.name,), []).append(result)
    ordered = sorted(settings.values(), key=lambda s: math.fsum(r.value(rate) or 0 for r in s) / len(s) if rate else 0)
    return Curve(name, labels, ordered, rate)


# ---------------------------------------------------------------------- names


def label_text(key: str, item: Label) -> str:
    """One label in words: `depth 1`, `arm none`, but the bare value where the value says it all."""
    return str(item) if key in ("role", "codec", "dataset", "encoder") else f"{key} {item}"


def _names(labels: list[dict[str, Label]], parts: list[list[Result]]) -> list[str]:
    """The shortest labels that tell curves apart; the name of the run where labels do not.

    An arm of a study says more than the class that trained it, and stands in its place.
    """
    several = len({own.get("dataset") for own in labels}) > 1
    names = []
    for own in labels:
        keys = [k for k in NAMING if k in own and (k != "dataset" or several) and not (k == "role" and "arm" in own)]
        names.append(" · ".join(label_text(k, own[k]) for k in keys))
    # What is called alike gets one label more, the first that tells it apart.
    for key in dict.fromkeys(k for own in labels for k in own if k not in (*NAMING[1:], *NEVER_NAMING)):
        alike = {name for name in names if names.count(name) > 1}
        longer = [
            f"{n} · {label_text(key, own[key])}" if key in own else n for n, own in zip(names, labels, strict=True)
        ]
        for name in alike:
            places = [i for i, other in enumerate(names) if other == name]
            if len({longer[i] for i in places}) == len(places):
                names = [longer[i] if i in places else other for i, other in enumerate(names)]
    runs = [_run_name(members) for members in parts]
    names = [
        run if (not label or names.count(label) > 1) and runs.count(run) == 1 else label or run
        for label, run in zip(names, runs, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({1 + names[:place].count(name)})"
        for place, name in enumerate(names)
    ]


def _run_name(members: Sequence[Result]) -> str:
    """What the names of a curve's runs have in common: the words between underscores that are equal in all."""
    words = [r.name.split("_") for r in members]
    common = "_".join(column[0] for column in zip(*words, strict=False) if len(set(column)) == 1)
    return common or members[0].name


# ---------------------------------------------------------------------- references


def matching(word: str, curves: Sequence[Curve]) -> list[Curve]:
    """Curves that a reference names: `role=teacher,depth=2`, by their name, or by that of one of their runs."""
    if "=" in word:
        wanted = dict(part.split("=", 1) for part in word.split(",") if "=" in part)
        found = [c for c in curves if agree(c.labels, wanted)]
        if found:
            return found
    return [c for c in curves if word == c.name or word in (r.name for r in c.results)]


def default_reference(curves: Sequence[Curve]) -> list[Curve]:
    """The teacher with the most rates, or else the first anchor that has several."""
    for kind in ("teacher", "anchor"):
        found = [c for c in curves if kind in (c.labels.get("role"), c.kind) and len(c.settings) > 1]
        if found:
            return [max(found, key=lambda c: len(c.settings))]
    return []
