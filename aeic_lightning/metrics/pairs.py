"""Pictures and the images that they stand for, as frozen networks see them: each pass is made once for all who ask."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

View = Callable[[Tensor], Tensor]
"""What of images (B, 3, H, W) passes through a network: a function of the module's, or a frozen data class."""


class Backbone(Protocol):
    """A frozen network of feature maps."""

    @property
    def key(self) -> Hashable:
        """Names the function that the network computes: networks of equal key give equal features."""
        ...

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images (B, 3, H, W) in [-1, 1]."""
        ...


def whole(x: Tensor) -> Tensor:
    """The view of the images as they are."""
    return x


@dataclass(frozen=True)
class Patches:
    """The view of square patches, (B, 3, H, W) -> (patches * B, 3, min(H, side), min(W, side)), patch by patch.

    Args:
        tops, lefts: where they start.
        side: of a patch.
        of: the view that they are cut from.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    side: int
    of: View = whole

    def __call__(self, x: Tensor) -> Tensor:
        x = self.of(x)
        return torch.cat(
            [x[:, :, top : top + self.side, left : left + self.side] for top in self.tops for left in self.lefts]
        )


class Pair:
    """Pictures x_hat and images x, (B, 3, H, W) in [-1, 1], with the features that comparisons ask for.

    A view, and a network's features of it, are computed when they are first asked for, and kept as long as the pair:
    those of `x_hat` with their graph, those of `x` without one.
    """

    def __init__(self, x_hat: Tensor, x: Tensor) -> None:
        self.x_hat, self.x = x_hat, x.detach()
        self.views: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self.known: dict[Hashable, tuple[list[Tensor], list[Tensor]]] = {}
        self.part_of: tuple[Pair, Tensor] | None = None

    def rows(self, rows: Tensor) -> "Pair":
        """The pair of some of the images, (n,) indices. Features that this pair has by then are not computed again."""
        part = Pair(self.x_hat[rows], self.x[rows])
        part.part_of = self, rows
        return part

    def seen(self, view: View = whole) -> tuple[Tensor, Tensor]:
        """A view of the pictures, and of the images."""
        key = view, torch.is_grad_enabled()
        if key not in self.views:
            x_hat = view(self.x_hat)
            with torch.no_grad():
                self.views[key] = x_hat, view(self.x)
        return self.views[key]

    def features(self, network: Backbone, view: View = whole) -> tuple[list[Tensor], list[Tensor]]:
        """A network's maps of a view of the pictures, and of the images."""
        # Maps that were made without a graph are not those that a gradient passes through.
        key = network.key, view, torch.is_grad_enabled()
        if key not in self.known:
            self.known[key] = self._of_larger(key) or self._computed(network, view)
        return self.known[key]

    def _computed(self, network: Backbone, view: View) -> tuple[list[Tensor], list[Tensor]]:
        x_hat, x = self.seen(view)
        maps_hat = network.features(x_hat)
        with torch.no_grad():
            return maps_hat, network.features(x)

    def _of_larger(self, key: Hashable) -> tuple[list[Tensor], list[Tensor]] | None:
        if self.part_of is None or key not in self.part_of[0].known:
            return None
        larger, rows = self.part_of
        # A view may stack several images of each.
        maps_hat, maps = (
            [f.unflatten(0, (-1, len(larger.x)))[:, rows].flatten(0, 1) for f in side] for side in larger.known[key]
        )
        return maps_hat, maps


class Distance(nn.Module):
    """A distance of pictures and images by the features of a frozen network."""

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Distance (B,) of images (B, 3, H, W) in [-1, 1]; 0 for equal images. Gradients reach `x_hat` alone."""
        return self.compare(Pair(x_hat, x))

    def compare(self, pair: Pair) -> Tensor:
        """The same, of a pair that others may ask for features as well."""
        raise NotImplementedError
