"""Distances of pictures and images by the features of frozen networks: LPIPS, DISTS, semantic loss, class agreement.

- LPIPS: distance of unit-normalised deep features (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features
  as a Perceptual Metric", eq. 1).
- DISTS: structure and texture similarity of deep features (Ding et al. 2020, "Image Quality Assessment: Unifying
  Structure and Texture Similarity"), and its edge-aware form.
- Semantic loss: distance of image embeddings (AEIC trains with CLIP's).
- Agreement of classes: does a classifier that no loss has seen still see the same thing in the reconstruction?

Each pass of a network is made once for all who ask (`Pair`).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from aeic_lightning.errors import UserError
from aeic_lightning.files import package_folder
from aeic_lightning.models.backbones import Clip, Lite0, Lite2, TorchvisionFeatures, backbone_of
from aeic_lightning.models.frozen import Frozen, read_state_dict
from aeic_lightning.models.hed import HedFeatures

UNWEIGHTED = {"lite0": Lite0, "lite2": Lite2, "hed": HedFeatures}
LITE0_SIZE = 224  # larger images are reduced to it
LITE2_SIZE = 260  # the side of images that Lite2 was trained on; larger ones are reduced to it

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

    Args:
        x_hat, x: as above.
        maps_of_x: the features of `x` that pairs of the same images share; filled as they are computed.
    """

    def __init__(self, x_hat: Tensor, x: Tensor, maps_of_x: dict[Hashable, list[Tensor]] | None = None) -> None:
        self.x_hat, self.x = x_hat, x.detach()
        self.maps_of_x = {} if maps_of_x is None else maps_of_x
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
        maps_hat, key = network.features(x_hat), (network.key, view)
        if key not in self.maps_of_x:
            with torch.no_grad():
                self.maps_of_x[key] = network.features(x)
        return maps_hat, self.maps_of_x[key]

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


# ---------------------------------------------------------------------- LPIPS


class LPIPS(Distance):
    """sum_l mean_hw sum_c w_lc (f_lc / |f_l| - g_lc / |g_l|)^2, with |.| the norm over channels at a position.

    `alex` and `vgg` are the standard metrics (version 0.1): channel weights w from the `lpips` package. `lite0` and
    `lite2` have no learned weights: w_lc = 1/5 for every channel of each of EfficientNet-Lite's five stages, i.e. the
    mean over stages and positions of the squared distance of unit vectors, in [0, 4]. `hed` is the same mean over the
    five blocks of a VGG16 that was trained on for edges: no published LPIPS, and not comparable with `vgg`.

    Args:
        backbone: "lite0", "lite2", "hed", "alex" or "vgg"; the metric's name is lpips_ and that.
        weights: AlexNet's or VGG16's torchvision file; default: torch.hub's cache.

    Raises UserError when the backbone is unknown or its weights are missing.
    """

    def __init__(self, backbone: Literal["lite0", "lite2", "hed", "alex", "vgg"] = "lite0", weights: str | None = None):
        super().__init__()
        self.name = f"lpips_{backbone}"
        standard = {name: partial(TorchvisionFeatures, name) for name in ("alex", "vgg")}
        self.backbone = backbone_of("LPIPS", backbone, weights, UNWEIGHTED | standard)
        unweighted = [torch.full((1, c, 1, 1), 1 / 5) for c in self.backbone.channels]
        self.channel_weights = Frozen(
            nn.ParameterList(_lpips_weights(backbone) if backbone in standard else unweighted)
        )

    def compare(self, pair: Pair) -> Tensor:
        total = pair.x.new_zeros(())
        weights = cast(nn.ParameterList, self.channel_weights.net)
        for f, g, w in zip(*pair.features(self.backbone), weights, strict=True):
            # F.normalize has a zero gradient at a zero vector (dead ReLUs), where x / sqrt(sum x^2) has NaN.
            difference = F.normalize(f, dim=1, eps=1e-10) - F.normalize(g, dim=1, eps=1e-10)
            total = total + (w * difference.square()).sum(1).mean((1, 2))
        return total


def _lpips_weights(backbone: str) -> list[Tensor]:
    """Channel weights (1, C, 1, 1) of the five layers, from the `lpips` wheel (not imported: it pulls in a trainer)."""
    package = package_folder("lpips")
    state = read_state_dict(package / "weights" / "v0.1" / f"{backbone}.pth")
    return [state[f"lin{layer}.model.1.weight"] for layer in range(5)]


# ---------------------------------------------------------------------- DISTS


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
        self.name = "dists" if backbone == "vgg" else f"dists_{backbone}"
        vgg = partial(TorchvisionFeatures, "vgg", l2_pooling=True)
        self.backbone = backbone_of("DISTS", backbone, weights, UNWEIGHTED | {"vgg": vgg})
        channels = 3, *self.backbone.channels
        unweighted = [torch.full((c,), 1 / (12 * c)) for c in channels]
        alpha, beta = _dists_weights(channels) if backbone == "vgg" else (unweighted, unweighted)
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


def _dists_weights(channels: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """DISTS's alpha and beta by level, scaled to the sum 1, from the torchmetrics wheel."""
    package = package_folder("torchmetrics")
    state = read_state_dict(package / "functional" / "image" / "dists_models" / "weights.pt")
    total = state["alpha"].sum() + state["beta"].sum()
    alpha, beta = ((state[key].detach().flatten() / total).split(channels) for key in ("alpha", "beta"))
    return list(alpha), list(beta)


# ---------------------------------------------------------------------- embeddings and classes


class SemanticLoss(Distance):
    """|e(x_hat) - e(x)|, the L2 distance of unit-normalised image embeddings, in [0, 2].

    `clip`: ViT-B/32; the shorter side is resized to 224 (bilinear, antialiased) and the centre cropped. `lite0`: the
    pooled embedding of EfficientNet-Lite0, which takes any size and shape: the shorter side is resized to 224 in the
    same way when it is longer, and nothing is enlarged or cropped.

    Args:
        backbone: "lite0" or "clip"; the metric's name is semantic_lite0 or semantic_clip.
        weights: folder with CLIP; default: the Hugging Face cache.

    Raises UserError when the backbone is unknown or its weights are missing.
    """

    def __init__(self, backbone: Literal["lite0", "clip"] = "lite0", weights: str | None = None):
        super().__init__()
        self.name = f"semantic_{backbone}"
        self.backbone = backbone_of("the semantic loss", backbone, weights, {"lite0": Lite0, "clip": Clip})

    def compare(self, pair: Pair) -> Tensor:
        if isinstance(self.backbone, Clip):
            maps_hat, maps = pair.features(self.backbone, Square(self.backbone.size))
            embedded, reference = maps_hat[-1], maps[-1]
        else:
            view: View = reduced if min(pair.x.shape[2:]) > LITE0_SIZE else whole
            maps_hat, maps = pair.features(self.backbone, view)
            embedded = self.backbone.pool(maps_hat[-1])
            with torch.no_grad():
                reference = self.backbone.pool(maps[-1])
        # The norm's gradient at 0 is 0, so that equal images are safe.
        return torch.linalg.vector_norm(F.normalize(embedded, dim=1) - F.normalize(reference, dim=1), dim=1)


def reduced(x: Tensor) -> Tensor:
    """Images whose shorter side is reduced to `LITE0_SIZE`."""
    return transforms.resize(x, [LITE0_SIZE], antialias=True)


@dataclass(frozen=True)
class Square:
    """The view of the square in the middle of images whose shorter side is resized to `side`."""

    side: int

    def __call__(self, x: Tensor) -> Tensor:
        return transforms.center_crop(transforms.resize(x, [self.side], antialias=True), [self.side, self.side])


class ClassAgreement(nn.Module):
    """1 where the most likely ImageNet class of a reconstruction is that of its original, else 0.

    At the lowest rates a decoder paints sharp pictures of other things: LPIPS and FID may not notice. The classifier
    is EfficientNet-Lite2, which is held out from training (losses use Lite0, CLIP and VGG). The original's class need
    not be right: it is compared with itself. Images whose shorter side is longer than 260 pixels are resized to that
    (bilinear, antialiased); nothing is cropped. Chance is far below 1 %.

    Args:
        backbone: "lite2"; the metric's name is same_class_lite2, and its mean over images the share that agrees.
    """

    def __init__(self, backbone: Literal["lite2"] = "lite2") -> None:
        super().__init__()
        if backbone != "lite2":
            raise UserError(f"the agreement of classes has no backbone {backbone!r}: it is held out, on lite2")
        self.name = f"same_class_{backbone}"
        self.backbone = Lite2()

    @torch.no_grad()
    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """(B,) of 1.0 and 0.0 for images (B, 3, H, W) in [-1, 1]."""
        return (self._class(x_hat) == self._class(x)).float()

    def _class(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) > LITE2_SIZE:
            x = transforms.resize(x, [LITE2_SIZE], antialias=True)
        return self.backbone.logits(x).argmax(1)
