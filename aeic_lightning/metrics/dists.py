"""DISTS: structure and texture similarity of deep features (Ding et al. 2020, "Image Quality Assessment: Unifying
Structure and Texture Similarity"), and its edge-aware form."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.files import package_folder
from aeic_lightning.metrics.pairs import Distance, Pair, Patches, View, whole
from aeic_lightning.models.backbones import Lite0, Lite2, TorchvisionFeatures
from aeic_lightning.models.frozen import Frozen, read_state_dict
from aeic_lightning.models.hed import HedFeatures

UNWEIGHTED = {"lite0": Lite0, "lite2": Lite2, "hed": HedFeatures}


class DISTS(Distance):
    """1 - sum_i sum_c (alpha_ic texture_ic + beta_ic structure_ic), over the image in [0, 1] and five feature maps.

    texture = (2 m_f m_g + c) / (m_f^2 + m_g^2 + c) compares the means over positions, structure = (2 cov + c) /
    (var_f + var_g + c) the rest; c = 1e-6 (eqs. 5-7). The weights sum to 1.

    `vgg` is the standard metric `dists` (learned alpha and beta, shipped with torchmetrics; 0 to 1). `lite0` is
    `dists_lite0`, and `lite2` is `dists_lite2`: EfficientNet-Lite's stages, each of the six levels with weight 1/6,
    half of it texture and half structure, evenly over its channels. Its features have both signs, so it lies in [0, 2].
    `dists_hed` is the same on the five blocks of a VGG16 that was trained on for edges (with maximum pooling): not the
    published metric.

    Args:
        backbone: "lite0", "lite2", "hed" or "vgg".
        weights: VGG16's torchvision file; default: torch.hub's cache.

    Raises UserError when the backbone is unknown or its weights are missing.
    """

    def __init__(self, backbone: Literal["lite0", "lite2", "hed", "vgg"] = "lite0", weights: str | None = None):
        super().__init__()
        if backbone in UNWEIGHTED:
            self.name = f"dists_{backbone}"
            self.backbone = UNWEIGHTED[backbone](weights)
            alpha = [torch.full((c,), 1 / (12 * c)) for c in (3, *self.backbone.channels)]
            beta = alpha
        elif backbone == "vgg":
            self.name = "dists"
            self.backbone = TorchvisionFeatures("vgg", weights, l2_pooling=True)
            alpha, beta = _learned_weights((3, *self.backbone.channels))
        else:
            raise UserError(f"DISTS has no backbone {backbone!r}: choose lite0, lite2, hed or vgg")
        self.level_weights = Frozen(nn.ModuleDict({"alpha": nn.ParameterList(alpha), "beta": nn.ParameterList(beta)}))

    def compare(self, pair: Pair, view: View = whole) -> Tensor:
        """The same of a view, of which there may be several to an image."""
        levels_hat, levels = (
            [(seen.float() + 1) / 2, *maps]
            for seen, maps in zip(pair.seen(view), pair.features(self.backbone, view), strict=True)
        )
        weights: Any = self.level_weights.net
        similarity = pair.x.new_zeros(())
        for f, g, a, b in zip(levels_hat, levels, weights["alpha"], weights["beta"], strict=True):
            f_mean, g_mean = f.mean((2, 3), keepdim=True), g.mean((2, 3), keepdim=True)
            # Centred before multiplying: E[fg] - E[f]E[g] loses its digits on flat maps.
            f, g = f - f_mean, g - g_mean
            texture = (2 * f_mean * g_mean + 1e-6) / (f_mean.square() + g_mean.square() + 1e-6)
            structure = (2 * (f * g).mean((2, 3)) + 1e-6) / (f.square().mean((2, 3)) + g.square().mean((2, 3)) + 1e-6)
            similarity = similarity + (a * texture.flatten(1) + b * structure).sum(1)
        return 1 - similarity


class EdgeAwareDISTS(Distance):
    """1.5 DISTS(image) + 0.5 DISTS(edges), each the mean over overlapping 224 x 224 patches; AEIC's training loss.

    Edges are the Sobel magnitude of the luma, as a grey image. Patches start every 168 pixels along a side, the last
    one aligned to the border, so that they overlap by a quarter or more and cover the image. A side below 224 is taken
    whole.

    Args:
        backbone, weights: as of DISTS. The metric's name is edge_dists_lite0 or edge_dists.
        whole: the image is one patch, whatever its size. Of 256 x 256 pixels four patches are three times the pixels.
    """

    patch = 224
    stride = 168
    called = "edge"

    def __init__(
        self, backbone: Literal["lite0", "vgg"] = "lite0", weights: str | None = None, whole: bool = False
    ) -> None:
        super().__init__()
        self.dists = DISTS(backbone, weights)
        self.whole = whole
        self.name = f"{self.called}_{self.dists.name}"

    def compare(self, pair: Pair) -> Tensor:
        picture, edges = (self.cut(view, *pair.x.shape[2:]) for view in self.compared())
        total = 1.5 * self.dists.compare(pair, picture) + 0.5 * self.dists.compare(pair, edges)
        return total.view(-1, len(pair.x)).mean(0)

    @classmethod
    def compared(cls) -> tuple[View, View]:
        """What DISTS takes in [-1, 1], (B, 3, H, W) each: the image and its edges."""
        return whole, edges

    def cut(self, view: View, height: int, width: int) -> View:
        """Patches of a view of images of this size; the view itself where one patch covers it."""
        if self.whole or max(height, width) <= self.patch:
            return view
        return Patches(tuple(self.starts(height)), tuple(self.starts(width)), self.patch, view)

    @classmethod
    def starts(cls, side: int) -> list[int]:
        """Where patches start along a side."""
        return patch_starts(side, cls.patch, cls.stride)


class ReleasedEdgeAwareDISTS(EdgeAwareDISTS):
    """Edge-aware DISTS as AEIC's released training code computes it, by which the paper's models were trained.

    It differs from `EdgeAwareDISTS` in four points. DISTS, made for [0, 1], gets the image in [-1, 1] as it is, and the
    edges unscaled. Edges are sqrt(g_h^2 + g_v^2 + 1e-6) of the luma of that image, by the plain Sobel kernels (1, 2, 1)
    and (-1, 0, 1), and thus go up to 9. The image is padded with zeros for them. As few patches as cover a side are
    spread evenly over it: a side of 512 has three, from 0, 144 and 288; one of 448 has two, from 0 and 224.

    The metric's name is released_edge_dists_lite0 or released_edge_dists.
    """

    called = "released_edge"

    @classmethod
    def compared(cls) -> tuple[View, View]:
        return released_picture, released_edges

    @classmethod
    def starts(cls, side: int) -> list[int]:
        count = -(-side // cls.patch)
        if count < 2:
            return [0]
        stride = cls.patch - (cls.patch * count - side) // (count - 1)
        return [min(i * stride, side - cls.patch) for i in range(count)]


def edges(x: Tensor) -> Tensor:
    """Sobel magnitude of the luma of (B, 3, H, W) in [-1, 1], as a grey image (B, 3, H, W) in [-1, 1]."""
    return 2 * sobel_magnitude(luma(x)).expand(-1, 3, -1, -1) - 1


def released_picture(x: Tensor) -> Tensor:
    """2x - 1: `DISTS` maps [-1, 1] to [0, 1], which this undoes, so that x is what the network and level 0 see."""
    return 2 * x.float() - 1


def released_edges(x: Tensor) -> Tensor:
    """The same of the edges, (B, 3, H, W), of a luma in [-1, 1] with zeros around."""
    horizontal, vertical = _gradients(F.pad(2 * luma(x) - 1, (1, 1, 1, 1)))
    magnitude = (16 * (horizontal.square() + vertical.square()) + 1e-6).sqrt()
    return 2 * magnitude.expand(-1, 3, -1, -1) - 1


def patch_starts(side: int, patch: int, stride: int) -> list[int]:
    """Starts of patches that cover [0, side): every `stride`, the last one aligned to the end."""
    last = max(side - patch, 0)
    return [*range(0, last, stride), last]


def luma(x: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> BT.601 luma (B, 1, H, W) in [0, 1]."""
    red, green, blue = ((x.float() + 1) / 2).split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def sobel_magnitude(x: Tensor) -> Tensor:
    """sqrt((g_h^2 + g_v^2) / 2) of (B, 1, H, W) in [0, 1]: in [0, 1], as scikit-image's `sobel`; edges replicated.

    g smooths with (1, 2, 1)/4 across and takes the difference of the pixels on both sides.
    """
    horizontal, vertical = _gradients(F.pad(x, (1, 1, 1, 1), mode="replicate"))
    # 1e-12: the gradient of the root at a flat pixel must be 0, not NaN.
    return ((horizontal.square() + vertical.square()) / 2 + 1e-12).sqrt()


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel responses, by (1, 2, 1)/4 and (-1, 0, 1), without the outermost pixels of x."""
    across = (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4
    down = (x[:, :, :, :-2] + 2 * x[:, :, :, 1:-1] + x[:, :, :, 2:]) / 4
    return across[:, :, :, 2:] - across[:, :, :, :-2], down[:, :, 2:] - down[:, :, :-2]


def _learned_weights(channels: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """DISTS's alpha and beta by level, scaled to the sum 1, from the torchmetrics wheel."""
    package = package_folder("torchmetrics")
    state = read_state_dict(package / "functional" / "image" / "dists_models" / "weights.pt")
    total = state["alpha"].sum() + state["beta"].sum()
    alpha, beta = ((state[key].detach().flatten() / total).split(channels) for key in ("alpha", "beta"))
    return list(alpha), list(beta)
