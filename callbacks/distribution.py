"""FID and KID of a validation or test set, on patches (the HiFiC protocol)."""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance

from aeic_lightning import UserError
from aeic_lightning.evaluation.images import from_uint8, write_whole
from aeic_lightning.weights.backbones import Lite0, find_weights
from callbacks.base import OnEvaluation, Pair, gather, own_random_state

PATCHES_AT_ONCE = 32
KID_SUBSETS = 100


class PatchFID(OnEvaluation):
    """FID and KID between the patches of originals and of reconstructions, on 8-bit images.

    Patches are cut in two grids, the second shifted by half a patch both ways (Mentzer et al. 2020, appendix A.7);
    images smaller than a patch give none. Logs `val/fid_lite0`, `val/kid_lite0` and their number, `val/fid_patches`
    (`fid`, `kid` with Inception). Both fall with the number of patches, FID by bias: compare at equal numbers only.

    Features of the originals are computed once and kept, in memory and in a file of the cache folder, by the content
    of the image, the patch size and the network's weights. An image counts once over several processes. Memory:
    2 x 4 bytes x 1280 (2048) a patch, on the CPU: KID needs every feature vector anyway.

    Args:
        patch_size: side of a patch, pixels; even, 32 or more.
        min_patches: with fewer, both figures are left out, and a warning says so once. 400 is what 50 images of
            768x512 give at 256 pixels.
        backbone: "lite0" (patches as they are) or "inception" (resized to 299; needs torch-fidelity and its weights).
        every_n_validations: compute at every n-th validation, the first included; always at a test.
        kid_subset_size: patches of one KID subset. KID is the mean over 100 of them, or that of the whole set if it is
            no larger.
        weights: file or folder with the Inception weights; default: torch.hub's cache.
        cache_dir: folder of the cache file; default: the run folder. Runs on the same images can share one.
    """

    def __init__(
        self,
        patch_size: int = 256,
        min_patches: int = 400,
        backbone: Literal["lite0", "inception"] = "lite0",
        every_n_validations: int = 1,
        kid_subset_size: int = 1000,
        weights: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        if patch_size < 32 or patch_size % 2:
            raise UserError(f"PatchFID: patch_size must be even and at least 32, got {patch_size}")
        if min(min_patches, kid_subset_size) < 2 or every_n_validations < 1:
            raise UserError("PatchFID: min_patches and kid_subset_size start at 2, every_n_validations at 1")
        self.patch_size = patch_size
        self.min_patches = min_patches
        self.backbone = backbone
        self.every_n_validations = every_n_validations
        self.kid_subset_size = kid_subset_size
        self.weights = weights
        self.cache_dir = cache_dir
        self.figures: dict[str, dict[str, float]] = {}  # of the last validation or test that was measured
        self.network: nn.Module | None = None
        self.validations = 0
        self.warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.network is None:
            with own_random_state():
                self.network, self.features, self.suffix = feature_network(self.backbone, self.weights)
            file = f"patch_features_{self.backbone}_{self.patch_size}_{fingerprint(self.network)}.npz"
            self.originals = FeatureCache(Path(self.cache_dir or self.folder) / file)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.due = self.stage == "test" or self.validations % self.every_n_validations == 0
        self.validations += self.stage == "val"
        self.figures = {}
        self.seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # name -> features of original, of reconstruction
        if self.due:
            self.network.to(pl_module.device)

    def see(self, trainer: Trainer, pl_module: LightningModule, pair: Pair) -> None:
        if not self.due:
            return
        pixels = hashlib.sha256(str(tuple(pair.x.shape)).encode() + pair.x.cpu().numpy().tobytes()).hexdigest()
        original = self.originals.get(pixels, lambda: self._of(pair.x))
        self.seen[pair.name] = (original, self._of(pair.x_hat))

    def conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.due:
            return
        seen = {name: features for rank in gather(trainer, self.seen) for name, features in rank.items()}
        self.seen = {}
        if trainer.is_global_zero:
            self.originals.save()
        in_order = [seen[name] for name in sorted(seen)]
        real, fake = (np.concatenate(side) for side in zip(*in_order, strict=True))
        pl_module.log(f"{self.stage}/fid_patches", float(len(real)), sync_dist=True)
        if len(real) < self.min_patches:
            self._warn(f"{len(real)} patches of {self.patch_size} pixels, below min_patches={self.min_patches}")
            return
        fid, kid, kid_std = distances(torch.from_numpy(real), torch.from_numpy(fake), self.kid_subset_size)
        self.figures = {
            f"fid{self.suffix}": {"value": fid, "patches": len(real)},
            f"kid{self.suffix}": {"value": kid, "std": kid_std, "patches": len(real)},
        }
        for name, figure in self.figures.items():
            pl_module.log(f"{self.stage}/{name}", figure["value"], sync_dist=True)

    def _of(self, image: Tensor) -> np.ndarray:
        chunks = two_grids(image, self.patch_size).split(PATCHES_AT_ONCE)
        return np.concatenate([self.features(chunk).float().cpu().numpy() for chunk in chunks])

    def _warn(self, why: str) -> None:
        if not self.warned:
            rank_zero_warn(f"FID and KID are left out: {why}. Use more or larger images, or smaller patches.")
            self.warned = True


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

    In float64. KID's subsets come from a random stream of its own: the same features give the same figure.
    """
    given = nn.Identity()
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
    """The network, its function of uint8 patches (N, 3, s, s) -> (N, D), and what it adds to the figures' names."""
    if backbone == "lite0":
        lite0 = Lite0(weights)
        return lite0, partial(_lite0_embedding, lite0), "_lite0"
    if backbone != "inception":
        raise UserError(f"PatchFID: no backbone {backbone!r}: choose lite0 or inception")
    path = find_weights("inception", weights)
    try:
        inception = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
    except ModuleNotFoundError as error:
        raise UserError("FID on Inception needs a package more: run `pip install torch-fidelity`") from error
    return inception, inception, ""


def _lite0_embedding(lite0: Lite0, patches: Tensor) -> Tensor:
    return lite0.embedding(from_uint8(patches))


def fingerprint(network: nn.Module) -> str:
    """12 hexadecimal digits that change with the weights."""
    digest = hashlib.sha256()
    for name, tensor in getattr(network, "net", network).state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class FeatureCache:
    """Features by image content, in memory and in an .npz file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, np.ndarray] = {}
        self.unsaved = False
        if path.is_file():
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
        if self.unsaved:
            buffer = io.BytesIO()
            np.savez(buffer, **self.known)
            write_whole(self.path, buffer.getvalue())
            self.unsaved = False
