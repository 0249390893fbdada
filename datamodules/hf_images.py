"""Images from Hugging Face `datasets`: a hub name, parquet files or an image folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.images import MAX_PIXELS, image_size, read_image
from datamodules.base import ImageDataModule

if TYPE_CHECKING:
    from datasets import Dataset


def library() -> Any:
    """The library `datasets`. Raises UserError, with the command to install it, where it is missing."""
    require("a Hugging Face data set", "datasets")
    import datasets
    import datasets.config

    # Otherwise it reports every use of "parquet" or "imagefolder" to a server, local files or not.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


class HuggingFaceImages(ImageDataModule):
    """Images from `datasets.load_dataset`; an image's name is split and row, such as "train-000042".

    The table stays on disk (memory-mapped), and rows are decoded in the workers by the same reader as files are. A hub
    name is looked up in the local cache or fetched, as `datasets` is set up; with HF_HUB_OFFLINE=1 nothing is fetched.

        path: parquet            with data_files: {train: train/*.parquet, validation: val.parquet}
        path: imagefolder        with data_dir: photos       (photos/train/..., photos/validation/...)
        path: someone/photos     a name on the hub

    Args:
        path: hub name, or the kind of local files.
        name: configuration of the data set, where it has several.
        data_dir: folder of local files.
        data_files: local files by split.
        revision: commit, tag or branch on the hub; name one, so that a run can be repeated.
        image_column: column that holds the images: encoded bytes, a path, or `datasets`' Image feature.
        train_split: split to train on, slices such as "train[:90%]" included; null without one.
        val_split: split for validation; null without one.
        test_split: split for test; null takes the validation images.
        **kwargs: the arguments of `ImageDataModule`.

    Raises:
        UserError: when the data set, a split or the column cannot be had, or train and evaluation are the same split.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        data_dir: str | None = None,
        data_files: dict[str, str] | None = None,
        revision: str | None = None,
        image_column: str = "image",
        train_split: str | None = "train",
        val_split: str | None = "validation",
        test_split: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        library()  # told before anything is loaded
        if train_split is not None and train_split in (val_split, test_split):
            raise UserError(f"data.train_split is also an evaluation split ({train_split}); name another, or a slice")
        self.path = path
        self.name = name
        self.data_dir = data_dir
        self.data_files = data_files
        self.revision = revision
        self.image_column = image_column
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split

    def setup(self, stage: str | None = None) -> None:
        self.train_images = self._load(self.train_split)
        self.val_images = self._load(self.val_split)
        self.test_images = self._load(self.test_split) or self.val_images

    def _load(self, split: str | None) -> "HuggingFaceRows | None":
        if split is None:
            return None
        return HuggingFaceRows(self._open(split), self.image_column, split, self.path, self.max_pixels)

    def _open(self, split: str, streaming: bool = False) -> Any:
        """The column of images of a split, not decoded: a `Dataset`, or an `IterableDataset` if `streaming`."""
        try:
            table = library().load_dataset(
                self.path,
                self.name,
                data_dir=self.data_dir,
                data_files=self.data_files,
                split=split,
                revision=self.revision,
                streaming=streaming,
            )
            columns = table.column_names or list(next(iter(table), {}))  # of some streams the rows alone know
        except Exception as error:  # no common class: hub, network, file system, pyarrow and split names
            raise UserError(
                f'cannot load split "{split}" of data set {self.path}: {reasons(error)}'
                "; check data.path, data_dir or data_files and the split, and that the data are in the cache if offline"
            ) from error
        if self.image_column not in columns:
            has = ", ".join(columns)
            raise UserError(f'data.image_column "{self.image_column}" is not in {self.path}; it has {has}')
        try:
            return table.select_columns([self.image_column]).cast_column(
                self.image_column, library().Image(decode=False)
            )
        except Exception as error:
            raise UserError(
                f'data.image_column "{self.image_column}" of {self.path} does not hold images '
                f"({table.features[self.image_column]}); name another column"
            ) from error


class HuggingFaceRows:
    """Rows of one split, a `Dataset` or a list: an `ImageSource`."""

    def __init__(
        self, table: "Dataset | list[Any]", column: str, split: str, origin: str, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.table = table
        self.column = column
        self.origin = origin
        self.max_pixels = max_pixels
        self.names = [f"{split}-{i:06d}" for i in range(len(table))]

    def read(self, index: int) -> np.ndarray:
        return read_image(*self._source(index), max_pixels=self.max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        return image_size(*self._source(index), max_pixels=self.max_pixels)

    def _source(self, index: int) -> tuple[bytes | Path, str]:
        label = f"{self.origin} {self.names[index]}"
        try:
            row = self.table[index][self.column]
        except Exception as error:  # no common class: pyarrow, file system
            raise UserError(f"cannot read {label}: {reasons(error)}; replace or remove the row") from error
        return source_of(row, label)


def source_of(row: dict[str, Any] | None, label: str) -> tuple[bytes | Path, str]:
    """What `read_image` takes of a row that is not decoded, and how messages call it. Raises UserError for no image."""
    if row is None or (row["bytes"] is None and row["path"] is None):
        raise UserError(f"cannot decode {label}: the row holds no image; replace or remove it")
    if row["bytes"] is not None:
        return row["bytes"], label
    return Path(row["path"]), f"{label} ({row['path']})"


def reasons(error: BaseException) -> str:
    """The error and what caused it, outermost first: `datasets` says what went wrong only in the inner ones."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return ", caused by ".join(dict.fromkeys(f"{type(e).__name__}: {' '.join(str(e).split())}" for e in chain))
