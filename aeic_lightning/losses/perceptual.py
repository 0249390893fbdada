"""Perceptual terms: distances of picture and image by the features of a frozen network."""

from functools import partial
from typing import Literal

from aeic_lightning.errors import UserError
from aeic_lightning.losses.term import Description, DistanceTerm, Size
from aeic_lightning.metrics.dists import EdgeAwareDISTS, ReleasedEdgeAwareDISTS
from aeic_lightning.metrics.lpips import LPIPS
from aeic_lightning.metrics.semantic import SemanticLoss


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


FORMS: dict[str, type[EdgeAwareDISTS]] = {"ours": EdgeAwareDISTS, "released": ReleasedEdgeAwareDISTS}


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
