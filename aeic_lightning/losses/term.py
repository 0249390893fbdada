"""What a term of the objective is, the rate, the plain distortions, and perceptual terms.

To add a loss: one file with a subclass of `Term`, one line in the YAML.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.features import LPIPS, Distance, EdgeAwareDISTS, Pair, ReleasedEdgeAwareDISTS, SemanticLoss
from aeic_lightning.models.backbone_files import require_backbone
from aeic_lightning.models.base import CompressionModel

Size = tuple[int, int, int]
FASTEST = 1.0
"""Error of the rate, as a natural logarithm, above which the search goes no faster."""
WIDEST = math.log(1e4)
"""How far the search goes from the first lambda, either way."""

SETTLE = 100
"""Updates in which the integral part corrects an error once, by default."""


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


# ---------------------------------------------------------------------- rate


class Rate(Term):
    """Estimated bits per pixel: the likelihood bits of each image over the pixels of the crop, mean over the batch.

    Its weight is lambda. AEIC: 0.8 relaxed; 2, 4, 8, 16, 32 at the target rates; a larger one gives a smaller file. An
    output with `rate_weight` (B,) has each image's bits multiplied by it; `bpp_estimate` stays the plain mean.

    With a `target` the weight is where the search for lambda begins: a controller with a proportional and an integral
    part on log lambda, whose error is log(rate / target), the rate being a moving average over about ten updates. It
    begins to integrate when the weight's warm-up is over. The lambda of each update is logged as `lambda`, the average
    as `bpp_average`; both are in the checkpoint.

    Args:
        target: estimated bits per pixel of the training crops that are wanted; None for a fixed lambda.
        settle: updates in which the integral part corrects an error once. Larger is calmer; the rate follows lambda
            within some tens to hundreds of updates, and `settle` should not be less than that.
    """

    tag = "bpp_estimate"
    search: Tensor

    def __init__(self, target: float | None = None, settle: int = SETTLE) -> None:
        super().__init__()
        if target is not None and not 0 < target < math.inf:
            raise UserError(f"objective.rate: target must be a number of bits per pixel above 0, not {target}")
        if settle < 1:
            raise UserError(f"objective.rate: settle must be 1 or more updates, not {settle}")
        if target is None and settle != SETTLE:
            raise UserError("objective.rate: settle is of the search for a target, and there is none; leave it out")
        self.target, self.settle = target, settle
        self._seen: list[Tensor] = []  # rates of the batches of this update
        if target is not None:
            # Moving average of the rate (0: none yet), and the integral, in units of log lambda.
            self.register_buffer("search", torch.zeros(2, dtype=torch.float64))

    @classmethod
    def describe(cls, **_: Any) -> Description:
        return Description(metric="bpp_estimate")

    @property
    def factor(self) -> float:
        """What the search multiplies the weight by; 1 without a target."""
        if self.target is None:
            return 1.0
        average, integral = self.search.tolist()
        error = _clamped(math.log(average / self.target), FASTEST) if average else 0.0
        return math.exp(_clamped(integral + error, WIDEST))

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["image"].shape[2] * batch["image"].shape[3]
        bpp = output.bits_estimate.mean() / pixels
        weight = getattr(output, "rate_weight", None)
        if self.target is None:
            if weight is None:
                return bpp
            weighted = (weight * output.bits_estimate).mean() / pixels
            return weighted, {"bpp_estimate": bpp, "rate_weighted": weighted}
        if weight is not None:
            raise UserError("objective.rate: target is one rate, and this codec has rate_levels; drop one of them")
        if self.training:
            self._seen.append(bpp.detach())
        return self.factor * bpp, {"bpp_estimate": bpp}

    def updated(self, warm: bool) -> None:
        """One step of the search after an update of the model."""
        if self.target is None or not self._seen:
            return
        rate = torch.stack(self._seen).double().mean()
        self._seen = []
        if torch.distributed.is_initialized():  # one lambda for all processes
            torch.distributed.all_reduce(rate)
            rate /= torch.distributed.get_world_size()
        average, integral = self.search.tolist()
        average = 0.9 * average + 0.1 * rate.item() if average else rate.item()
        if warm:
            error = _clamped(math.log(max(average, 1e-12) / self.target), FASTEST)
            integral = _clamped(integral + error / self.settle, WIDEST)
        self.search.copy_(torch.tensor([average, integral], dtype=torch.float64))

    def skipped(self) -> None:
        """Forget the rates of an update that was not taken."""
        self._seen = []


def _clamped(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))


# ---------------------------------------------------------------------- perceptual: by the features of a frozen network


FORMS: dict[str, type[EdgeAwareDISTS]] = {"ours": EdgeAwareDISTS, "released": ReleasedEdgeAwareDISTS}


class LPIPSTerm(DistanceTerm):
    """Mean LPIPS over the batch. AEIC: weight 1 in stage 1, on VGG.

    Args:
        backbone: `lite0` needs no download; `alex` and `vgg` are the standard ones.
    """

    def __init__(self, backbone: Literal["lite0", "alex", "vgg"] = "lite0") -> None:
        super().__init__(LPIPS(backbone))

    @classmethod
    def describe(cls, backbone: str = "lite0") -> Description:
        return Description(metric=f"lpips_{backbone}", backbone=backbone)


class EdgeAwareDISTSTerm(DistanceTerm):
    """Mean edge-aware DISTS over the batch. AEIC: weight 1 in stages 2 and 3, on VGG, in the released form.

    Args:
        backbone: `lite0` needs no download; `vgg` is the standard one.
        form: `ours` takes images and edges in the range that DISTS is made for; `released` computes what AEIC's code
            does (`ReleasedEdgeAwareDISTS`), and is logged as released_edge_dists.
        whole: each crop is one patch, whatever its size: for crops that one patch of 224 nearly covers.
    """

    def __init__(
        self,
        backbone: Literal["lite0", "vgg"] = "lite0",
        form: Literal["ours", "released"] = "ours",
        whole: bool = False,
    ) -> None:
        if form not in FORMS:
            raise UserError(f"edge_dists: form is {' or '.join(FORMS)}, not {form!r}")
        super().__init__(FORMS[form](backbone, whole=whole))
        if form == "released":
            self.tag = "released_{name}"

    @classmethod
    def describe(cls, backbone: str = "lite0", form: str = "ours", whole: bool = False) -> Description:
        metric = "dists" if backbone == "vgg" else f"dists_{backbone}"
        sees = twice if whole else partial(patches, FORMS.get(form, EdgeAwareDISTS))
        return Description(metric=metric, backbone=backbone, sees=sees)


def twice(images: int, height: int, width: int) -> Size:
    """Pictures and their edges, whole."""
    return 2 * images, height, width


def patches(metric: type[EdgeAwareDISTS], images: int, height: int, width: int) -> Size:
    """Patches of picture and edges that pass through the network."""
    each = len(metric.starts(height)) * len(metric.starts(width))
    return 2 * images * each, min(height, metric.patch), min(width, metric.patch)


class SemanticTerm(DistanceTerm):
    """Mean distance of image embeddings over the batch. AEIC: weight 0.1, on CLIP.

    Args:
        backbone: `lite0` needs no download; `clip` is the paper's.
    """

    def __init__(self, backbone: Literal["lite0", "clip"] = "lite0") -> None:
        super().__init__(SemanticLoss(backbone))

    @classmethod
    def describe(cls, backbone: str = "lite0") -> Description:
        return Description(backbone=backbone, sees=resized if backbone == "lite0" else enlarged)


def resized(images: int, height: int, width: int) -> Size:
    """To 224 x 224, smaller images as they are: what EfficientNet-Lite0 sees."""
    return images, min(height, 224), min(width, 224)


def enlarged(images: int, height: int, width: int) -> Size:
    """To 224 x 224, always: what CLIP and DINOv3 see."""
    return images, 224, 224
