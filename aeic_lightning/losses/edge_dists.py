"""Edge-aware DISTS as a term."""

from functools import partial
from typing import Any, Literal

from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.losses.term import Description, Size, Term
from aeic_lightning.metrics.dists import EdgeAwareDISTS, ReleasedEdgeAwareDISTS

FORMS: dict[str, type[EdgeAwareDISTS]] = {"ours": EdgeAwareDISTS, "released": ReleasedEdgeAwareDISTS}


class EdgeAwareDISTSTerm(Term):
    """Mean edge-aware DISTS over the batch. AEIC: weight 1 in stages 2 and 3, on VGG, in the released form.

    Args:
        backbone: `lite0` needs no download; `vgg` is the standard one.
        form: `ours` takes images and edges in the range that DISTS is made for; `released` computes what AEIC's code
            does (`ReleasedEdgeAwareDISTS`), and is logged as released_edge_dists.
    """

    needs_picture = True
    of_single_images = True

    def __init__(self, backbone: Literal["lite0", "vgg"] = "lite0", form: Literal["ours", "released"] = "ours") -> None:
        super().__init__()
        if form not in FORMS:
            raise UserError(f"edge_dists: form is {' or '.join(FORMS)}, not {form!r}")
        if form == "released":
            self.tag = "released_{name}"
        self.metric = FORMS[form](backbone)

    @classmethod
    def describe(cls, backbone: str = "lite0", form: str = "ours") -> Description:
        metric = "dists" if backbone == "vgg" else f"dists_{backbone}"
        return Description(metric=metric, backbone=backbone, sees=partial(patches, FORMS.get(form, EdgeAwareDISTS)))

    def forward(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> Tensor:
        return self.metric(output.x_hat, batch["image"]).mean()


def patches(metric: type[EdgeAwareDISTS], images: int, height: int, width: int) -> Size:
    """Patches of picture and edges that pass through the network."""
    each = len(metric.starts(height)) * len(metric.starts(width))
    return 2 * images * each, min(height, metric.patch), min(width, metric.patch)
