"""FID and KID between patches of originals and of reconstructions (the HiFiC protocol), on 8-bit images."""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance

from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import write_whole
from aeic_lightning.images import from_uint8
from aeic_lightning.models.backbone_files import find_weights
from aeic_lightning.models.backbones import EfficientNetLite, Lite0, Lite2
from aeic_lightning.torch_settings import own_random_state

PATCHES_AT_ONCE = 32
KID_SUBSETS = 100

Features = tuple[np.ndarray, np.ndarray]
"""Of an original and of its reconstruction, (patches, D) each."""


class PatchDistances:
    """FID and KID of a set of images, on patches in two grids, the second shifted by half a patch both ways (Mentzer et
    al. 2020, appendix A.7). Images smaller than a patch give none.

    Both metrics fall with the number of patches, FID by bias: compare at equal numbers only. Features of the originals
    are computed once and kept, by the content of the image.

    Args:
        backbone: "lite0" or "lite2" (patches as they are), or "inception" (resized to 299; needs torch-fidelity and its
            weights).
        patch_size: side of a patch, pixels; even, 32 or more.
        min_patches: with fewer there is neither.
        min_images: likewise, of images that give patches: many patches of few images are no sample of photographs.
        kid_subset_size: patches of one KID subset. KID is the mean over 100 of them, or that of the whole set if it is
            no larger.
        weights: file or folder with the Inception weights; default: torch.hub's cache.
        cache_dir: folder for a file of the originals' features; None keeps them in memory alone.

    Raises UserError for settings out of range, and for a backbone whose weights are missing.
    """

    def __init__(
        self,
        backbone: Literal["lite0", "lite2", "inception"] = "lite0",
        patch_size: int = 256,
        min_patches: int = 400,
        min_images: int = 50,
        kid_subset_size: int = 1000,
        weights: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_options(patch_size, min_patches, min_images, kid_subset_size)
        self.backbone = backbone
        self.patch_size = patch_size
        self.min_patches = min_patches
        self.min_images = min_images
        self.kid_subset_size = kid_subset_size
        # Building a network may draw initial weights, even when a file then overwrites them.
        with own_random_state():
            self.network, self.features, self.suffix = feature_network(backbone, weights)
        self.digest = network_digest(self.network)
        file = f"patch_features_{backbone}_{patch_size}_{self.digest}.npz"
        self.originals = FeatureCache(Path(cache_dir) / file if cache_dir else None)

    @property
    def names(self) -> tuple[str, str]:
        """Of FID and KID, with the backbone if it is not the standard one."""
        return f"fid{self.suffix}", f"kid{self.suffix}"

    @property
    def info(self) -> dict[str, dict[str, Any]]:
        """Backbone, version and options of both."""
        options = {
            "patch_size": self.patch_size,
            "grids": 2,
            "min_patches": self.min_patches,
            "min_images": self.min_images,
        }
        shared = {
            "backbone": self.backbone,
            "weights": self.digest,
            "version": f"torchmetrics {version('torchmetrics')}",
        }
        kid = {"subset_size": self.kid_subset_size, "subsets": KID_SUBSETS, "degree": 3}
        return {name: shared | {"options": options | more} for name, more in zip(self.names, ({}, kid), strict=True)}

    @torch.no_grad()
    def of_pair(self, x: Tensor, x_hat: Tensor) -> Features:
        """Features of an original and its reconstruction, uint8 (3, H, W)."""
        pixels = hashlib.sha256(str(tuple(x.shape)).encode() + x.cpu().numpy().tobytes()).hexdigest()
        return self.originals.get(pixels, lambda: self._of(x)), self._of(x_hat)

    def _of(self, image: Tensor) -> np.ndarray:
        chunks = two_grids(image, self.patch_size).split(PATCHES_AT_ONCE)
        return np.concatenate([self.features(chunk).float().cpu().numpy() for chunk in chunks])

    def metrics(self, seen: Mapping[str, Features]) -> tuple[dict[str, dict[str, Any]], int, str | None]:
        """FID and KID of images by name (in the order of their names), the number of patches, and why there are none.

        {"fid...": {"value", "patches"}, "kid...": {"value", "std", "patches"}}, or {} and a reason.
        """
        real, fake = (np.concatenate(side) for side in zip(*(seen[name] for name in sorted(seen)), strict=True))
        images = sum(len(original) > 0 for original, _ in seen.values())
        if images < self.min_images:
            reason = f"{images} images with patches of {self.patch_size} pixels, below min_images={self.min_images}"
            return {}, len(real), reason
        if len(real) < self.min_patches:
            reason = f"{len(real)} patches of {self.patch_size} pixels, below min_patches={self.min_patches}"
            return {}, len(real), reason
        fid, kid, kid_std = distances(torch.from_numpy(real), torch.from_numpy(fake), self.kid_subset_size)
        shared = {"patches": len(real)}
        fid_name, kid_name = self.names
        return {fid_name: {"value": fid} | shared, kid_name: {"value": kid, "std": kid_std} | shared}, len(real), None


def check_options(patch_size: int, min_patches: int, min_images: int, kid_subset_size: int) -> None:
    """Raise UserError for settings out of range."""
    if patch_size < 32 or patch_size % 2:
        raise UserError(f"FID: patch_size must be even and at least 32, got {patch_size}")
    if min(min_patches, kid_subset_size) < 2:
        raise UserError("FID: min_patches and kid_subset_size start at 2")
    if min_images < 1:
        raise UserError(f"FID: min_images is {min_images}; it starts at 1")


def two_grids(image: Tensor, size: int) -> Tensor:
    """Whole patches of an image (3, H, W) in a grid from its corner and in one from (size/2, size/2): (N, 3, s, s).

    N = (H // s) (W // s) + ((H - s/2) // s) ((W - s/2) // s), a negative factor counting as none.
    """
    grids = []
    for shift in (0, size // 2):
        shifted = image[:, shift:, shift:]
        rows, columns = shifted.shape[1] // size, shifted.shape[2] // size
        whole = shifted[:, : rows * size, : columns * size]
        patches = whole.unflatten(1, (rows, size)).unflatten(3, (columns, size)) if rows and columns else None
        if patches is not None:  # (3, rows, s, columns, s)
            grids.append(patches.permute(1, 3, 0, 2, 4).flatten(0, 1))
    return torch.cat(grids) if grids else image.new_empty(0, 3, size, size)


def distances(real: Tensor, fake: Tensor, kid_subset_size: int = 1000) -> tuple[float, float, float]:
    """FID, mean KID and its standard deviation over 100 subsets, of features (N, D).

    In float64. KID's subsets come from a random stream of its own: the same features give the same values.
    """
    given: Any = nn.Identity()
    given.num_features = real.shape[1]
    # Every process holds all features, so nothing is left to synchronise.
    fid = FrechetInceptionDistance(given, sync_on_compute=False).set_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        subset_size = min(kid_subset_size, len(real), len(fake))
        # A subset as large as the set is the set: a hundred of them would be the same number a hundred times.
        subsets = 1 if subset_size == len(real) == len(fake) else KID_SUBSETS
        kid = KernelInceptionDistance(given, subsets=subsets, subset_size=subset_size, sync_on_compute=False)
    for metric in (fid, kid):
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
    with own_random_state():
        kid_mean, kid_std = kid.compute()
    return fid.compute().item(), kid_mean.item(), kid_std.item()


def feature_network(backbone: str, weights: str | None) -> tuple[nn.Module, Callable[[Tensor], Tensor], str]:
    """The network, its function of uint8 patches (N, 3, s, s) -> (N, D), and what it adds to the metrics' names."""
    if backbone in ("lite0", "lite2"):
        lite = (Lite0 if backbone == "lite0" else Lite2)(weights)
        return lite, partial(_lite_embedding, lite), f"_{backbone}"
    if backbone != "inception":
        raise UserError(f"FID: no backbone {backbone!r}: choose lite0, lite2 or inception")
    require("FID on Inception", "torch_fidelity")
    path = find_weights("inception", weights)
    inception = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    return inception, inception, ""


def _lite_embedding(lite: EfficientNetLite, patches: Tensor) -> Tensor:
    return lite.embedding(from_uint8(patches))


def network_digest(network: nn.Module) -> str:
    """12 hexadecimal digits that change with the weights."""
    digest = hashlib.sha256()
    for name, tensor in getattr(network, "net", network).state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class FeatureCache:
    """Features by image content, in memory and, with a path, in an .npz file."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, np.ndarray] = {}
        self.unsaved = False
        if path and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    self.known = dict(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise UserError(f"{path} is no readable feature cache: delete it") from error

    def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self.known:
            self.known[key] = compute()
            self.unsaved = True
        return self.known[key]

    def save(self) -> None:
        if self.unsaved and self.path:
            buffer = io.BytesIO()
            np.savez(buffer, **self.known)  # pyright: ignore[reportArgumentType] (keys are numbers)
            write_whole(self.path, buffer.getvalue())
            self.unsaved = False
