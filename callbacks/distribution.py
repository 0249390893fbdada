"""FID and KID of a validation or test set, on patches (the HiFiC protocol)."""

from functools import cached_property
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from aeic_lightning.errors import UserError
from aeic_lightning.metrics.patches import Features, PatchDistances, check_options
from aeic_lightning.metrics.table import STANDARD_BACKBONE
from callbacks.base import EvaluatedImage, OnEvaluation, gather


class PatchFID(OnEvaluation):
    """FID and KID between the patches of originals and of reconstructions, on 8-bit images.

    See `PatchDistances`, which `evaluate` uses too. Logs `val/fid_lite0`, `val/kid_lite0` and their number,
    `val/fid_patches` (`fid`, `kid` with Inception). Both fall with the number of patches, FID by bias: compare at equal
    numbers only.

    Features of the originals are computed once and kept, in memory and in a file of the cache folder, by the content
    of the image, the patch size and the network's weights. An image counts once over several processes. Memory:
    2 x 4 bytes x 1280 (2048) a patch, on the CPU: KID needs every feature vector anyway.

    Args:
        patch_size: side of a patch, pixels; even, 32 or more.
        min_patches: with fewer, both metrics are left out, and a warning says so once. 400 is what 50 images of
            768x512 give at 256 pixels.
        min_images: likewise, of images that give patches: many patches of few images are no sample of photographs.
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
        min_images: int = 50,
        backbone: Literal["lite0", "inception"] = "lite0",
        every_n_validations: int = 1,
        kid_subset_size: int = 1000,
        weights: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        check_options(patch_size, min_patches, min_images, kid_subset_size)
        if every_n_validations < 1:
            raise UserError("PatchFID: every_n_validations starts at 1")
        self.every_n_validations = every_n_validations
        self.cache_dir = cache_dir
        self.options = {
            "backbone": backbone,
            "patch_size": patch_size,
            "min_patches": min_patches,
            "min_images": min_images,
            "kid_subset_size": kid_subset_size,
            "weights": weights,
        }
        self.metrics: dict[str, dict[str, float]] = {}  # of the last validation or test that was measured
        self.validations = 0
        self.warned = False

    def state_dict(self) -> dict:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict) -> None:
        self.validations = state_dict["validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        _ = self.patches  # or missing weights would be found after hours

    @cached_property
    def patches(self) -> PatchDistances:
        """The network, and the features of the originals. Built when a run is set up."""
        return PatchDistances(**self.options, cache_dir=self.cache_dir or self.folder)

    @property
    def measured(self) -> list[str]:
        suffix = "" if self.options["backbone"] == STANDARD_BACKBONE["fid"] else f"_{self.options['backbone']}"
        return [f"fid{suffix}", f"kid{suffix}"]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.due = self.stage == "test" or self.validations % self.every_n_validations == 0
        self.validations += self.stage == "val"
        self.metrics = {}
        self.seen: dict[str, Features] = {}
        if self.due:
            self.patches.network.to(pl_module.device)

    def see(self, trainer: Trainer, pl_module: LightningModule, image: EvaluatedImage) -> None:
        if self.due:
            self.seen[image.name] = self.patches.of_pair(image.x, image.x_hat)

    def conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.due:
            return
        seen = {name: features for rank in gather(trainer, self.seen) for name, features in rank.items()}
        self.seen = {}
        if trainer.is_global_zero:
            self.patches.originals.save()
        self.metrics, count, reason = self.patches.metrics(seen)
        pl_module.log(f"{self.stage}/fid_patches", float(count), sync_dist=True)
        if reason:
            self._warn(reason)
        for name, metric in self.metrics.items():
            pl_module.log(f"{self.stage}/{name}", metric["value"], sync_dist=True)

    def _warn(self, why: str) -> None:
        if not self.warned:
            rank_zero_warn(f"FID and KID are left out: {why}. Use more or larger images, or smaller patches.")
            self.warned = True
