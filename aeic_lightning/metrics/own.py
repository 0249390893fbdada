"""Metrics of the user's own, named by class path: `metrics: [{class_path: my_metric.MyMetric, higher: false}]`."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.metrics.table import KINDS, Metric, declare, find_metric
from aeic_lightning.own_classes import find_class, own_sources, source_digests

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
        return {"backbone": None, "version": version, "options": self.init_args, "metric": self.metric.described}


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
        if (known := find_metric(name)) and known != metric and not known.own:
            raise UserError(f"metrics: {name!r} is the name of a shipped metric; give yours another name")
        declare(metric)
        found.append(OwnMetric(metric, path, dict(entry.get("init_args") or {})))
    return found


def _snake(name: str) -> str:
    """`MyMetric` -> `my_metric`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
