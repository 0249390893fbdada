"""Training images streamed through Hugging Face `datasets`: for data sets that are larger than the disk."""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import DataLoader

from aeic_lightning.errors import UserError
from aeic_lightning.images import read_image
from datamodules.crops import Cropping, CropSampler, numbered_rng
from datamodules.hf_images import HuggingFaceImages, HuggingFaceRows, reasons, source_of

if TYPE_CHECKING:
    from datasets import IterableDataset


class HuggingFaceStream(HuggingFaceImages):
    """Training images that are read as they are needed and never stored; validation images are kept in memory.

    A hub name, or URLs in `data_files`, are read over the network piece by piece; local files work as well.

        path: someone/photos     train_split: train, val_split: validation
        path: webdataset         with data_files: {train: "https://host/train-{000..999}.tar"}, image_column: jpg
        path: parquet            with data_files: {train: train/*.parquet, validation: val.parquet}

    Sample k of a run is the k-th row of endless passes over the split. Each pass has an order of its own: the files
    are shuffled, and rows are drawn from a buffer of `shuffle_buffer` rows. The order follows from `seed` alone, and
    the crop from (seed, k), as in every data module: neither workers nor processes have an influence. Images are named
    by pass and place, "train-pass0-000042".

    The main process reads the rows and its workers decode them. A resumed run reads the rows before its first sample
    again, without decoding them. Each of several processes reads all rows and decodes its own.

    Args:
        path: hub name, or the kind of files.
        val_count: validation images: the first ones of `val_split`.
        shuffle_buffer: rows, still encoded, from which the next one is drawn; 1 keeps the order within a file.
        **kwargs: the arguments of `HuggingFaceImages` and of `ImageDataModule`. `samples_per_epoch` is needed: a stream
            has no length. `crops_by_area`, `cache`, `on_device` and `small_images: drop` need all images at once.

    Raises:
        UserError: as `HuggingFaceImages`, and for arguments that a stream does not have.
    """

    def __init__(self, path: str, val_count: int = 64, shuffle_buffer: int = 256, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        if self.samples_per_epoch is None:
            raise UserError("a stream has no length: set data.samples_per_epoch, such as 10000")
        for name, asked in (
            ("crops_by_area", self.crops_by_area), ("cache", self.cache), ("on_device", self.on_device),
            ("small_images: drop", self.small_images == "drop"),
        ):  # fmt: skip
            if asked:
                raise UserError(f"data.{name} needs all images at once, which a stream does not have; leave it out")
        if val_count < 1 or shuffle_buffer < 1:
            raise UserError(
                f"data.val_count is {val_count} and data.shuffle_buffer {shuffle_buffer}; both are at least 1"
            )
        self.val_count = val_count
        self.shuffle_buffer = shuffle_buffer
        self.train_rows: IterableDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train_split is not None:
            self.train_rows = self._open(self.train_split, streaming=True)
        self.val_images = self._first(self.val_split)
        self.test_images = self._first(self.test_split) or self.val_images

    def _first(self, split: str | None) -> HuggingFaceRows | None:
        if split is None:
            return None
        rows = list(islice(self._open(split, streaming=True), self.val_count))
        return HuggingFaceRows(rows, self.image_column, split, self.path, self.max_pixels)

    def train_dataloader(self) -> DataLoader:
        """Crops; see the class. Raises UserError when an epoch is shorter than a batch."""
        if self.train_rows is None:
            raise UserError("HuggingFaceStream has no training images; name data.train_split")
        assert self.samples_per_epoch is not None
        rank, world_size = self._rank()
        sampler = StreamSampler(
            self.train_rows,
            str(self.train_split),
            self.shuffle_buffer,
            self.samples_per_epoch,
            self.batch_size,
            self.seed,
            rank,
            world_size,
        )
        crops = StreamedCrops(self.image_column, self.path, self.max_pixels, **self._cropping())
        return self._crop_loader(crops, sampler)


class StreamedRow(NamedTuple):
    """A row that has been read and not decoded."""

    name: str
    row: dict[str, Any]


class StreamSampler(CropSampler):
    """Yields (row and the one after it, sample number) for one process, in the main process.

    See `CropSampler`, from which it has the numbers of samples; and `HuggingFaceStream` on the order of rows.
    """

    def __init__(
        self,
        rows: "IterableDataset",
        split: str,
        shuffle_buffer: int,
        samples_per_epoch: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(samples_per_epoch, samples_per_epoch, batch_size, seed, rank=rank, world_size=world_size)
        self.rows, self.split, self.shuffle_buffer = rows, split, shuffle_buffer
        self._stream: Iterator[StreamedRow] = iter(())
        self._next: StreamedRow | None = None
        self._place = -1
        """The sample that `_next` is of; the stream goes on from epoch to epoch."""

    def __iter__(self) -> Iterator[tuple[tuple[StreamedRow, StreamedRow], int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._place != self.start:
            self._stream = self._rows_from(self.start)
            self._next, self._place = next(self._stream), self.start
        for sample in range(self.start, self.start + self.samples_per_epoch):
            assert self._next is not None
            row, self._next = self._next, next(self._stream)
            self._place = sample + 1
            if sample % self.num_replicas == self.rank:
                yield (row, self._next), sample

    def _rows_from(self, start: int) -> Iterator[StreamedRow]:
        """The rows from sample `start` on, pass after pass."""
        number = 0
        while True:
            seed = int(numbered_rng(self.seed, 3, number).integers(2**31))
            place = -1
            for place, row in enumerate(self._pass(seed)):
                if start:
                    start -= 1
                else:
                    yield StreamedRow(f"{self.split}-pass{number}-{place:06d}", row)
            if place < 0:
                raise UserError(f'the split "{self.split}" has no rows; name another in data.train_split')
            number += 1

    def _pass(self, seed: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self.rows.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
        except Exception as error:  # no common class: network, file system, pyarrow
            raise UserError(f'reading the stream "{self.split}" failed: {reasons(error)}') from error

    @property
    def identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "global_batch_size": self.global_batch_size,
        }


class StreamedCrops(Cropping):
    """Random crops of rows: `dataset[(row, spare), sample]` is as `CropDataset` has it.

    A row that cannot be decoded raises, or, with `on_error: skip`, warns, and the row behind it takes its place.

    Args:
        column: of the images.
        origin: of the data set, for messages.
        max_pixels: images with more are refused.
        **cropping: see `Cropping`.
    """

    def __init__(self, column: str, origin: str, max_pixels: int, **cropping: Any) -> None:
        super().__init__(**cropping)
        self.column = column
        self.origin = origin
        self.max_pixels = max_pixels

    def __getitem__(self, key: tuple[tuple[StreamedRow, StreamedRow], int]) -> dict[str, Any]:
        rows, sample = key
        for name, row in rows:
            try:
                image = read_image(*source_of(row[self.column], f"{self.origin} {name}"), max_pixels=self.max_pixels)
            except UserError as error:
                if self.on_error == "raise":
                    raise
                warnings.warn(f"skipped a training image: {error}", stacklevel=2)
                continue
            return {"image": self.cut(image, sample), "name": name}
        names = " and ".join(row.name for row in rows)
        raise UserError(f"{self.origin} {names} cannot be decoded; check the training data")
