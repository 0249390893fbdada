"""A study: results that are read and sorted into curves once, and whose BD-rates are computed once.

`sweep`, `compare`, `bd-rate`, `accuracy` and `report` are views of it: what one of them has asked for, the others get
without another bootstrap.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from aeic_lightning.study.bd_rate import BDRate, bd_rates
from aeic_lightning.study.curves import Curve, ImageSet, group, group_apart, image_sets
from aeic_lightning.study.results import Result, read_results


class Study:
    """Results, each once, with their curves and BD-rates.

    Args:
        results: any mixture; of equal ones the first counts.
        rates: BD-rates that are known already, with their curves, whose results keep their ids.
    """

    def __init__(
        self, results: Iterable[Result], rates: dict[tuple, tuple[Curve, Curve, BDRate]] | None = None
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

    def sides(self, first: Sequence[Result], second: Sequence[Result], by: Sequence[str] | None) -> list[list[Curve]]:
        """The curves of two sides that are not mixed (`curves.group_apart`)."""
        return group_apart([first, second], by)

    def rates(
        self,
        reference: Curve,
        tests: Iterable[Curve],
        metrics: Sequence[str],
        *,
        equal_bits: bool = False,
        **options: Any,
    ) -> list[BDRate]:
        """As `bd_rate.bd_rates`; each is computed when it is first asked for."""
        rows = []
        for test in tests:
            for metric in metrics:
                asked = metric, tuple(sorted(options.items()))
                sides = _key(reference), _key(test)
                plain, full = ((*sides, *asked, with_bits) for with_bits in (False, True))
                # One that is not refused is the same with and without equal bits.
                found = self._rates.get(full) or self._rates.get(plain)
                if found is None or (equal_bits and found[2].reason and full not in self._rates):
                    (row,) = bd_rates(reference, [test], [metric], equal_bits=equal_bits, **options)
                    found = self._rates[full if equal_bits else plain] = reference, test, row
                rows.append(found[2])
        return rows


def _key(curve: Curve) -> tuple:
    return curve.name, *map(id, curve.results)
