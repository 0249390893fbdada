"""What a term of the objective is, and the plain distortions.

To add a loss: one file with a subclass of `Term`, one line in the YAML.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.pairs import Distance, Pair
from aeic_lightning.models.backbone_files import require_backbone
from aeic_lightning.models.base import CompressionModel

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """What is known of a term without building it; `plan` and the results read it.

    Args:
        metric: the metric that training on the term improves directly, such as "lpips_vgg".
        backbone: the frozen network that it uses, as `metric_info` names it: lite0, vgg, clip ...
        sees: (images, height, width) of a batch -> those that pass through the backbone.
        trained: parameters of the term's own that a second optimizer trains.
        files: raises UserError where a file that the term needs, beside the backbone's, is missing.
    """

    metric: str | None = None
    backbone: str | None = None
    sees: Callable[[int, int, int], Size] = lambda images, height, width: (images, height, width)
    trained: int = 0
    files: Callable[[], None] | None = None

    def check_files(self) -> None:
        """Raise UserError, saying how to get it, for the first file that is missing."""
        if self.backbone:
            require_backbone(self.backbone)
        if self.files:
            self.files()


class Term(nn.Module):
    """One term of the objective.

    A subclass implements `forward`. It overrides `describe` if it uses a frozen network or files or is a metric, and
    `bind` if it compares taps. `tag` is the name under which it is logged, {name} being its name in the objective.
    """

    tag = "{name}"
    needs_picture = False
    """Whether `forward` reads `output.x_hat`."""
    of_single_images = False
    """Whether `forward` is a mean over the images, of x_hat and the image alone: it may then see a share of a batch."""

    _step: int | None = None
    _replayed = False

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def describe(cls, *_: Any, **arguments: Any) -> Description:
        """What the constructor's arguments, the default ones left out, say of the term; nothing is built."""
        return Description()

    @property
    def student_taps(self) -> list[str]:
        """Taps, by name or module path, that `forward` reads from `output.taps`. Known once bound."""
        return []

    @property
    def teacher_taps(self) -> list[str]:
        """Taps that `forward` reads from `teacher`. Known once bound."""
        return []

    @property
    def global_step(self) -> int | None:
        """Updates before the one that `forward` is for, as in an uninterrupted run after a resume; None outside of
        training. For a course of one's own, such as a temperature that falls.

        Raises UserError under `optimization.cuda_graph`, which replays one step without Python.
        """
        if self._replayed:
            raise UserError(
                f"{type(self).__name__} reads the step, which optimization.cuda_graph does not replay; leave it out"
            )
        return self._step

    def see_step(self, step: int | None, replayed: bool = False) -> None:
        """Told by the objective before `forward`."""
        self._step, self._replayed = step, replayed

    def bind(self, student: CompressionModel, teacher: CompressionModel | None) -> None:
        """Called once, before the optimizers are made, with the model that is trained and the teacher's, if any."""

    def updated(self, warm: bool) -> None:
        """Called after each update; `warm` when the warm-up of the term's weight is over."""

    def skipped(self) -> None:
        """Called where an update was not taken, since a loss or a gradient was not finite."""

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The term's value, a scalar before its weight, or that and further scalars to log by name.

        Args:
            batch: what the data module gives: "image" (B, 3, H, W) in [-1, 1], "name", "label" if there are classes;
                and "pair", which `pair_of` returns.
            output: what the model gives: x_hat, bits_estimate, taps; logits, if it classifies.
            teacher: the teacher's taps by name; None without a teacher.
        """
        raise NotImplementedError


class DistanceTerm(Term):
    """The mean over the images of a distance of picture and image by the features of a frozen network.

    All of them ask the batch's pair for features, so that each network sees each picture and each image once.
    """

    needs_picture = True
    of_single_images = True

    def __init__(self, metric: Distance) -> None:
        super().__init__()
        self.metric = metric

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return self.metric.compare(pair_of(batch, output)).mean()


def pair_of(batch: dict[str, Any], output: Any) -> Pair:
    """Picture and image of a batch: the pair that all terms of an objective share, or one of the term's own."""
    return batch["pair"] if "pair" in batch else Pair(output.x_hat, batch["image"])


class MSE(Term):
    """Mean squared error of images in [-1, 1]. AEIC: weight 2."""

    needs_picture = True
    of_single_images = True

    @classmethod
    def describe(cls) -> Description:
        return Description(metric="psnr")

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return (output.x_hat - batch["image"]).square().mean()


# The rows of JPEG's Cb and Cr for RGB (ITU-T T.871), without the offset.
CB_CR = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Chroma(Term):
    """Mean squared error of Cb and Cr, for images in [-1, 1].

    A small model that starts from random weights may learn shapes long before colours, which are a few percent of the
    squared error: it then stands on a plateau of grey pictures for thousands of steps. A weight of half of the MSE's,
    or more, takes it off within hundreds.
    """

    needs_picture = True
    of_single_images = True
    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.tensor(CB_CR), persistent=False)

    @classmethod
    def describe(cls) -> Description:
        return Description()

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        difference = output.x_hat - batch["image"]
        return torch.einsum("oc,bchw->bohw", self.matrix.to(difference), difference).square().mean()
