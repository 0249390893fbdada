"""Training crops that depend on (seed, sample number) only, and whole images for evaluation.

A run is one endless stream of samples, numbered 0, 1, 2, ... . Which image sample k shows, where it is cropped and
whether it is flipped follow from (seed, k) alone: not from workers, processes, epochs or global random state. An epoch
is merely the next stretch of the stream, and a resumed run goes on with the next number.

    stream   0 1 2 3 | 4 5 6 7 | 8 9 ...       batch_size 2, two processes: a step takes four samples,
    rank     0 1 0 1   0 1 0 1   0 1 ...       the same four that one process takes with batch_size 4
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from aeic_lightning.errors import RunError, UserError


class ImageSource(Protocol):
    """A numbered collection of images with unique names. Must be picklable: the workers decode."""

    names: list[str]

    def read(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8; raises UserError."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), without decoding; raises UserError."""
        ...


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]; `((x + 1) * 127.5).round()` gives the bytes back."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 127.5 - 1


def centre_crop(image: np.ndarray, max_height: int, max_width: int) -> np.ndarray:
    """The middle of (H, W, 3), at most `max_height` x `max_width`; a side within its limit stays whole."""
    height, width = min(image.shape[0], max_height), min(image.shape[1], max_width)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


class CropSampler(DistributedSampler):
    """Yields (image index, sample number) for one process: samples start + rank, start + rank + world_size, ...

    The images pass in shuffled cycles: in each stretch of `num_images` samples every image appears once. With `weights`
    a cycle holds image i floor or ceil(num_images * weights[i] / sum(weights)) times (systematic sampling), so that
    over many cycles the shares follow the weights, and an image with a small weight is missing from some cycles.

    It is a DistributedSampler so that Lightning does not put one of its own in its place; `Trainer` may have
    `use_distributed_sampler` either way. `set_epoch` has no effect: sample numbers take the place of epochs.

    Args:
        num_images: how many images there are.
        samples_per_epoch: samples of all processes together in one pass over the sampler. Rounded down to whole
            global batches (`batch_size * world_size`); since the stream goes on, no image is lost by this.
        batch_size: samples of one process in one step.
        seed: of the order, non-negative.
        weights: (num_images,) positive shares, or None for equal ones.
        rank, world_size: this process, and the number of them.

    Raises:
        UserError: when an epoch is shorter than one global batch.
    """

    def __init__(
        self,
        num_images: int,
        samples_per_epoch: int,
        batch_size: int,
        seed: int = 0,
        weights: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(cast(Dataset, range(num_images)), num_replicas=world_size, rank=rank, seed=seed)
        self.global_batch_size = batch_size * world_size
        steps = samples_per_epoch // self.global_batch_size
        if steps == 0:
            raise UserError(
                f"an epoch of {samples_per_epoch} samples holds no batch of {batch_size} x {world_size} process(es)"
                f"; set data.samples_per_epoch to {self.global_batch_size} or more, or lower data.batch_size"
            )
        self.samples_per_epoch = steps * self.global_batch_size
        self.num_images = num_images
        self.weights = weights
        self.start = 0
        """The sample that the next pass begins with, over all processes."""

    @property
    def identity(self) -> dict[str, int]:
        """What the order depends on."""
        return {"seed": self.seed, "images": self.num_images, "global_batch_size": self.global_batch_size}

    def __len__(self) -> int:
        return self.samples_per_epoch // self.num_replicas

    def __iter__(self) -> Iterator[tuple[int, int]]:
        cycle, order = -1, np.empty(0, np.int64)
        for sample in range(self.start + self.rank, self.start + self.samples_per_epoch, self.num_replicas):
            if sample // self.num_images != cycle:
                cycle = sample // self.num_images
                order = self._order(cycle)
            yield int(order[sample % self.num_images]), sample

    def _order(self, cycle: int) -> np.ndarray:
        rng = numbered_rng(self.seed, 0, cycle)
        if self.weights is None:
            return rng.permutation(self.num_images)
        edges = np.cumsum(self.weights) / np.sum(self.weights) * self.num_images
        picks = np.searchsorted(edges, rng.random() + np.arange(self.num_images), side="right")
        # The last edge may fall short of num_images by rounding.
        return rng.permutation(np.minimum(picks, self.num_images - 1))


class Cropping(Dataset):
    """How the crop that is sample number k is cut out of an image: position and flips follow from (seed, k).

    An image with a side shorter than the crop is enlarged first, by the smallest factor with which the crop fits
    (Lanczos).

    Args:
        crop_size: side of the square crop in pixels.
        seed: of the crops, non-negative.
        horizontal_flip, vertical_flip: whether to mirror one sample in two.
        on_error: what a subclass does with an image that cannot be read: "raise" or "skip".
        max_zoom_out: a crop shows up to this many times the side, reduced to the crop's size (Lanczos; log-uniform).
        shuffle_channels: permute red, green and blue at random.
    """

    def __init__(
        self,
        crop_size: int,
        seed: int = 0,
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        max_zoom_out: float = 1.0,
        shuffle_channels: bool = False,
    ) -> None:
        self.crop_size = crop_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.on_error = on_error
        self.max_zoom_out = max_zoom_out
        self.shuffle_channels = shuffle_channels

    def cut(self, image: np.ndarray, sample: int) -> torch.Tensor:
        """Sample number `sample` out of an image (H, W, 3) uint8: float32 (3, crop, crop) in [-1, 1]."""
        rng, zoom, channels = self._begin(sample)
        image = self._random_crop(image, rng, zoom)
        if self.shuffle_channels:
            image = image[..., channels]
        horizontal, vertical = self._flips(rng)
        if horizontal:
            image = image[:, ::-1]
        if vertical:
            image = image[::-1]
        return to_tensor(image)

    def _begin(self, sample: int) -> tuple[np.random.Generator, float, np.ndarray]:
        """What places and flips of a sample are drawn from, its zoom, and the order of its channels."""
        # A stream of its own, so that switching these on does not move crops and flips.
        extra = numbered_rng(self.seed, 2, sample)
        zoom, channels = self.max_zoom_out ** extra.random(), extra.permutation(3)
        return numbered_rng(self.seed, 1, sample), zoom, channels

    def _flips(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether to mirror left to right, and top to bottom."""
        # Both are drawn always, so that switching one flip on does not move the other.
        horizontal, vertical = rng.random(2) < 0.5
        return bool(self.horizontal_flip and horizontal), bool(self.vertical_flip and vertical)

    def _random_crop(self, image: np.ndarray, rng: np.random.Generator, zoom: float) -> np.ndarray:
        size, image = self.crop_size, self._enlarged(image)
        top, left, side = self._window(image.shape[0], image.shape[1], rng, zoom)
        window = image[top : top + side, left : left + side]
        if side == size:
            return window
        return np.asarray(Image.fromarray(window).resize((size, size), Image.Resampling.LANCZOS))

    def _enlarged(self, image: np.ndarray) -> np.ndarray:
        """The image, or a larger one in which a crop fits."""
        size, sides = self.crop_size, image.shape[:2]
        if min(sides) >= size:
            return image
        factor = size / min(sides)
        height, width = (max(size, math.ceil(side * factor - 1e-6)) for side in sides)
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))

    def _window(self, height: int, width: int, rng: np.random.Generator, zoom: float) -> tuple[int, int, int]:
        """Top, left and side of what a crop shows of an image of this size."""
        side = min(round(self.crop_size * zoom), height, width)
        top, left = rng.integers(0, [height - side + 1, width - side + 1])
        return top, left, side


class CropDataset(Cropping):
    """Random crops: `dataset[index, sample]` is {"image": float32 (3, crop, crop) in [-1, 1], "name": str}.

    Args:
        images: where the images come from.
        crop_size, seed: see `Cropping`.
        cache: keep decoded images in memory, in each worker by itself.
        **cropping: see `Cropping`. "raise" stops at a broken image. "skip" takes the next image that can be read in its
            place, warns once for each broken image, and lists it in `skipped`.
    """

    def __init__(
        self, images: ImageSource, crop_size: int, seed: int = 0, cache: bool = False, **cropping: Any
    ) -> None:
        super().__init__(crop_size, seed, **cropping)
        self.images = images
        self.cache: dict[int, np.ndarray] | None = {} if cache else None
        # Shared memory: every worker sees what another one found, and so does the main process.
        self._broken = torch.zeros(len(images.names), dtype=torch.bool).share_memory_()

    @property
    def skipped(self) -> list[str]:
        """Names of the broken images that were met so far, by any worker of this process."""
        return [self.images.names[i] for i in self._broken.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self.images.names)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, sample = key
        index, image = self._read(index)
        return {"image": self.cut(image, sample), "name": self.images.names[index]}

    def _read(self, index: int) -> tuple[int, np.ndarray]:
        for i in ((index + step) % len(self) for step in range(len(self))):
            if self._broken[i]:
                continue
            if self.cache is not None and i in self.cache:
                return i, self.cache[i]
            try:
                image = self.images.read(i)
            except UserError as error:
                if self.on_error == "raise":
                    raise
                self._broken[i] = True
                warnings.warn(f"skipped a training image: {error}", stacklevel=2)
                continue
            if self.cache is not None:
                self.cache[i] = image
            return i, image
        raise UserError(f"none of the {len(self)} training images can be read; check the training data")


class WholeImages(Dataset):
    """Images as they are: `dataset[index]` is {"image": float32 (3, H, W) in [-1, 1], "name": str}.

    A broken image always raises: a mean over fewer images is another mean.

    Args:
        images: where the images come from.
        max_size: (height, width), of which at most the centre is taken; None keeps the full size.
    """

    def __init__(self, images: ImageSource, max_size: Sequence[int] | None = None) -> None:
        self.images = images
        self.max_size = max_size

    def __len__(self) -> int:
        return len(self.images.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images.read(index)
        if self.max_size is not None:
            image = centre_crop(image, *self.max_size)
        return {"image": to_tensor(image), "name": self.images.names[index]}


class ImageLoader(DataLoader):
    """A DataLoader that gives a worker's UserError back as the one line that it was, without the traceback.

    Where a worker has died, or gives nothing for `timeout` seconds, all are ended and RunError says so.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except UserError as error:
            # PyTorch puts the worker's traceback, whose last line is the message, in the text of the error.
            prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
            raise UserError(str(error).strip().splitlines()[-1].removeprefix(prefix)) from error
        except RuntimeError as error:
            said = " ".join(str(error).split())
            if not said.startswith("DataLoader"):  # by PyTorch: "timed out after", "worker (pid(s) 1, 2) exited", ...
                raise
            for worker in getattr(self._iterator, "_workers", ()):
                worker.kill()  # one that is stopped or hangs would be waited for at the end
            raise RunError(
                f"the workers that read images gave no batch ({said}); num_workers=0 shows what they do, less of them "
                "take less memory, and a larger worker_timeout waits longer"
            ) from error


class CropLoader(ImageLoader):
    """Batches of crops that go on where the stream stands, epoch after epoch.

    `next_sample` is the first sample, over all processes, that has not been handed out. It starts at `first_sample` and
    grows by the global batch with each batch; batches that workers have prepared in advance do not count.
    `first_sample` may be a function, which is asked when the first pass begins: a loader may be built before a resumed
    run has read how far it was.
    """

    def __init__(
        self, dataset: Cropping, sampler: CropSampler, first_sample: int | Callable[[], int] = 0, **kwargs: Any
    ) -> None:
        super().__init__(dataset, sampler=sampler, drop_last=True, **kwargs)
        self._crops, self._order = dataset, sampler
        self._first_sample = first_sample
        self._next_sample: int | None = None

    @property
    def next_sample(self) -> int:
        if self._next_sample is not None:
            return self._next_sample
        return self._first_sample() if callable(self._first_sample) else self._first_sample

    @next_sample.setter
    def next_sample(self, sample: int) -> None:
        self._next_sample = sample

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._order.start = self.next_sample = self.next_sample
        for batch in super().__iter__():
            self.next_sample += self._order.global_batch_size
            yield batch

    def state_dict(self) -> dict[str, int]:
        """What the stream depends on. Lightning keeps it in checkpoints; the position is in its batch count."""
        return self._order.identity | {"crop_size": self._crops.crop_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn when a resumed run does not see the samples that the run before it would have seen."""
        mine = self.state_dict()
        changed = [f"{key} was {state[key]}, is {mine[key]}" for key in mine if state.get(key, mine[key]) != mine[key]]
        if changed:
            warnings.warn(f"the resumed run sees other training samples: {'; '.join(changed)}", stacklevel=2)


def numbered_rng(seed: int, stream: int, number: int) -> np.random.Generator:
    """The random numbers of one sample or cycle; what they are for has a stream of its own."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, number)))
