"""What the image data modules share: arguments, loaders, resuming and several processes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from aeic_lightning.errors import UserError
from aeic_lightning.images import MAX_PIXELS, image_size, read_image
from datamodules.crops import CropDataset, CropLoader, Cropping, CropSampler, ImageLoader, ImageSource, WholeImages
from datamodules.packed import PackedCrops
from datamodules.worker_signals import check_that_workers_can_start, leave_signals_to_the_main_process

Z_STRIDE = 128
"""Crops are a multiple of it, so that no latent holds padding in training."""


class ImageFiles:
    """Images that lie in files: an `ImageSource`."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str], max_pixels: int = MAX_PIXELS) -> None:
        self.paths = list(paths)
        self.names = list(names)
        self.max_pixels = max_pixels

    def read(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], max_pixels=self.max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.paths[index], max_pixels=self.max_pixels)


class Selected:
    """Some images of a source: an `ImageSource`."""

    def __init__(self, images: ImageSource, indices: Sequence[int]) -> None:
        self.images = images
        self.indices = list(indices)
        self.names = [images.names[i] for i in self.indices]

    def read(self, index: int) -> np.ndarray:
        return self.images.read(self.indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(self.indices[index])


class ImageDataModule(LightningDataModule):
    """Random training crops, and whole images for validation and test.

    Batches are {"image": float32 (B, 3, H, W) in [-1, 1], "name": list[str]}. Training: B = batch_size, H = W =
    crop_size. Validation and test: B = 1, every image once, in order, at its own size. A subclass sets `train_images`,
    `val_images` and `test_images` in `setup`; what stays None is missing.

    **Randomness.** Sample k of a run (which image, which crop, which flips) follows from (seed, k) alone; see
    `datamodules.crops`. The number of workers has no influence, nor does the number of processes as long as
    batch_size x processes stays the same.

    **Resuming.** `train_dataloader` starts at sample (batches trained so far) x batch_size x processes. Lightning
    restores that count (`fit_loop.epoch_loop.batch_progress.total.processed`) before it asks for the first batch, in
    the middle and at the end of an epoch. A resumed run sees the samples that the uninterrupted one would have seen;
    the system needs to do nothing. A changed seed, crop, batch or number of images is warned about. Outside a Trainer
    set `loader.next_sample`.

    **Several processes.** The samplers know their rank, and Lightning leaves them in place. Validation images are dealt
    out without padding, so that none counts twice. Ranks may therefore differ by one image: average with torchmetrics,
    which adds up sums and counts, not with `self.log(..., sync_dist=True)`, which in Lightning 2.6 divides by a count
    that was averaged over the ranks and rounded down (three images on two ranks: a mean 1.5 times too large).

    Args:
        crop_size: side of the square training crops in pixels, a multiple of 128.
        batch_size: training crops a step and process.
        samples_per_epoch: crops that make an epoch, over all processes; None means as many as there are images. Rounded
            down to whole steps.
        crops_by_area: draw images in proportion to their area instead of equally often. Reads the header of every
            training image at the start.
        horizontal_flip: mirror one training crop in two, left to right.
        vertical_flip: mirror one training crop in two, top to bottom.
        small_images: what to do with training images that have a side below crop_size: "enlarge" them until a crop
            fits, or "drop" them, which reads the header of every training image at the start and says how many.
        max_zoom_out: training crops show up to this many times their side, reduced to their size; 1 for none.
        shuffle_channels: permute red, green and blue of training crops: colours that few photographs do not hold.
        val_max_size: [height, width] of which at most the centre of a validation or test image is taken; null keeps the
            full size. Metrics on centre crops are not comparable with metrics on full-size images.
        on_error: what to do with a training image that cannot be read: "raise", or "skip" to take the next one instead,
            with a warning for each file and the sum at the end. Validation and test images always raise.
        max_pixels: images with more pixels are refused.
        cache: keep decoded training images in memory (in every worker).
        on_device: read all training images at the start and keep them as bytes on the device that trains, three a
            pixel, where crops are cut, zoomed and flipped, a batch in one call; workers are of no use then. The crops
            are the same, with `max_zoom_out` up to one of 255 levels.
        num_workers: processes that decode and crop; 0 does it in the training process.
        worker_timeout: seconds in which a batch must come from a worker; without one the run ends and says so. More for
            images that take longer to fetch.
        pin_memory: put batches in page-locked memory, for faster copies to a GPU.
        seed: of order, crops and flips; non-negative.

    Raises:
        UserError: for arguments that cannot work together.
    """

    def __init__(
        self,
        crop_size: int = 256,
        batch_size: int = 8,
        samples_per_epoch: int | None = None,
        crops_by_area: bool = False,
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        small_images: Literal["enlarge", "drop"] = "enlarge",
        max_zoom_out: float = 1.0,
        shuffle_channels: bool = False,
        val_max_size: list[int] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
        cache: bool = False,
        on_device: bool = False,
        num_workers: int = 0,
        worker_timeout: int = 60,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if crop_size < 1 or crop_size % Z_STRIDE:
            raise UserError(f"data.crop_size is {crop_size}; it must be a positive multiple of {Z_STRIDE}")
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}; it must be at least 1")
        if max_zoom_out < 1:
            raise UserError(f"data.max_zoom_out is {max_zoom_out}; it must be at least 1 (no zoom)")
        if num_workers < 0 or seed < 0:
            raise UserError(f"data.num_workers is {num_workers} and data.seed {seed}; neither may be negative")
        if worker_timeout < 1:
            raise UserError(f"data.worker_timeout is {worker_timeout}; it is at least 1 second")
        if on_error not in ("raise", "skip"):
            raise UserError(f'data.on_error is "{on_error}"; it must be "raise" or "skip"')
        if small_images not in ("enlarge", "drop"):
            raise UserError(f'data.small_images is "{small_images}"; it must be "enlarge" or "drop"')
        if val_max_size is not None and (len(val_max_size) != 2 or min(val_max_size) < 1):
            raise UserError(f"data.val_max_size is {val_max_size}; it must be [height, width] in pixels, or null")
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.crops_by_area = crops_by_area
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.small_images = small_images
        self.max_zoom_out = max_zoom_out
        self.shuffle_channels = shuffle_channels
        self.val_max_size = val_max_size
        self.on_error: Literal["raise", "skip"] = on_error
        self.max_pixels = max_pixels
        self.cache = cache
        self.on_device = on_device
        self.num_workers = num_workers
        self.worker_timeout = worker_timeout
        self.pin_memory = pin_memory
        self.seed = seed

        self.train_images: ImageSource | None = None
        self.val_images: ImageSource | None = None
        self.test_images: ImageSource | None = None
        self._crops: CropDataset | None = None

    @property
    def skipped(self) -> list[str]:
        """Names of the training images that could not be read so far, by any worker of this process."""
        return [] if self._crops is None else self._crops.skipped

    def train_dataloader(self) -> DataLoader:
        """Crops; see the class. Raises UserError when an epoch is shorter than a batch, or no image is large enough."""
        images = self._require(self.train_images, "training")
        if self.small_images == "drop":
            images = self._large_enough(images)
        rank, world_size = self._rank()
        self._crops = self._dataset(images)
        sampler = CropSampler(
            num_images=len(images.names),
            samples_per_epoch=len(images.names) if self.samples_per_epoch is None else self.samples_per_epoch,
            batch_size=self.batch_size,
            seed=self.seed,
            weights=self._shares(images),
            rank=rank,
            world_size=world_size,
        )
        return self._crop_loader(self._crops, sampler)

    def val_dataloader(self) -> DataLoader:
        """Whole images, one a batch."""
        return self._whole(WholeImages(self._require(self.val_images, "validation"), self.val_max_size))

    def test_dataloader(self) -> DataLoader:
        """Whole images, one a batch."""
        return self._whole(WholeImages(self._require(self.test_images, "test"), self.val_max_size))

    def predict_dataloader(self) -> DataLoader:
        """The test images."""
        return self.test_dataloader()

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._crops is not None and self.skipped:
            shown = ", ".join(self.skipped[:10]) + (", ..." if len(self.skipped) > 10 else "")
            print(f"{len(self.skipped)} of {len(self._crops)} training images could not be read: {shown}")

    def _dataset(self, images: ImageSource) -> CropDataset:
        """Where training samples come from."""
        if self.on_device:
            return PackedCrops(images=images, **self._cropping())
        return CropDataset(images, cache=self.cache, **self._cropping())

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if isinstance(self._crops, PackedCrops) and "window" in batch:
            batch["image"] = self._crops.cut_all(batch.pop("window"))
        return batch

    def _whole(self, images: WholeImages, batch_size: int = 1) -> DataLoader:
        """The loader of validation and test images."""
        rank, world_size = self._rank()
        if len(images) < world_size:
            raise UserError(f"{len(images)} image(s) for {world_size} processes; evaluate with trainer.devices=1")
        sampler = UnrepeatedDistributedSampler(images, num_replicas=world_size, rank=rank, shuffle=False)
        return ImageLoader(images, batch_size=batch_size, sampler=sampler, **self._loader_options())

    def _require(self, images: ImageSource | None, kind: str) -> ImageSource:
        if images is None:
            raise UserError(f"{type(self).__name__} has no {kind} images; name them in the data section")
        return images

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _sizes(self, images: ImageSource) -> list[tuple[int, int] | None]:
        """(height, width) of each image; None for a broken header: skipped images are met, and counted, when read."""
        sizes: list[tuple[int, int] | None] = []
        for i in range(len(images.names)):
            try:
                sizes.append(images.size(i))
            except UserError:
                if self.on_error == "raise":
                    raise
                sizes.append(None)
        return sizes

    def _shares(self, images: ImageSource) -> np.ndarray | None:
        """What images are drawn in proportion to, (number of images,); None for equally often."""
        return self._areas(images) if self.crops_by_area else None

    def _areas(self, images: ImageSource) -> np.ndarray:
        return np.array([1.0 if size is None else float(np.prod(size)) for size in self._sizes(images)])

    def _large_enough(self, images: ImageSource) -> ImageSource:
        sizes = self._sizes(images)
        kept = [i for i, size in enumerate(sizes) if size is None or min(size) >= self.crop_size]
        if not kept:
            raise UserError(
                f"all {len(sizes)} training images have a side below data.crop_size, {self.crop_size} pixels; "
                "lower it, or set data.small_images to enlarge"
            )
        if len(kept) < len(sizes):
            rank_zero_only(print)(
                f"dropped {len(sizes) - len(kept)} of {len(sizes)} training images: a side below data.crop_size, "
                f"{self.crop_size} pixels",
                file=sys.stderr,
            )
        return Selected(images, kept)

    def _cropping(self) -> dict[str, Any]:
        """The arguments of `Cropping`."""
        return {
            "crop_size": self.crop_size,
            "seed": self.seed,
            "horizontal_flip": self.horizontal_flip,
            "vertical_flip": self.vertical_flip,
            "on_error": self.on_error,
            "max_zoom_out": self.max_zoom_out,
            "shuffle_channels": self.shuffle_channels,
        }

    def _crop_loader(self, crops: Cropping, sampler: CropSampler) -> CropLoader:
        """The loader that goes on behind the batches that the trainer has counted."""

        def first() -> int:
            batches = 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore
            return batches * sampler.global_batch_size

        return CropLoader(crops, sampler, first, batch_size=self.batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        if self.num_workers:
            check_that_workers_can_start()
        return {
            "num_workers": self.num_workers,
            "timeout": self.worker_timeout if self.num_workers else 0,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.pin_memory,
            "worker_init_fn": leave_signals_to_the_main_process if self.num_workers else None,
        }
