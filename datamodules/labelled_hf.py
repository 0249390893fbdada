"""Hugging Face data sets with classes."""

from typing import Any, cast

from aeic_lightning.errors import UserError
from datamodules.hf_images import HuggingFaceImages, HuggingFaceRows, library
from datamodules.labelled import LabelledData


class LabelledHuggingFace(LabelledData, HuggingFaceImages):
    """A data set of `datasets.load_dataset` with a column of classes: `ClassLabel`, whole numbers or words.

    A `ClassLabel` column brings the names and numbers of its classes. Numbers and words are numbered in their order.

    Args:
        label_column: column that holds the classes.
        **kwargs: the arguments of `LabelledData` and of `HuggingFaceImages`.

    Raises:
        UserError: in `setup`, for a missing column, a row without a class, or a class that training does not have; and
            whatever `HuggingFaceImages` raises.
    """

    def __init__(self, label_column: str = "label", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_column = label_column
        self._columns: dict[str | None, tuple[Any, list]] = {}

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        parts = {"train": self.train_images, "val": self.val_images, "test": self.test_images}
        splits = {"train": self.train_split, "val": self.val_split, "test": self.test_split or self.val_split}
        used = {part: self._columns[splits[part]] for part, images in parts.items() if images is not None}
        feature, values = next(iter(used.values()))
        if isinstance(feature, library().ClassLabel):
            classes: list = list(range(len(feature.names)))
            self.class_names = list(feature.names)
        else:
            classes = sorted(set(values))
            self.class_names = [str(name) for name in classes]
        number = {name: i for i, name in enumerate(classes)}
        for part, (_, column) in used.items():
            names = cast(HuggingFaceRows, parts[part]).names
            bad = next((i for i, value in enumerate(column) if value not in number), None)
            if bad is not None:
                raise UserError(
                    f"{self.path} {names[bad]} has the class {column[bad]!r}, which is none of the training images'"
                )
            self.labels[part] = {name: number[value] for name, value in zip(names, column, strict=True)}

    def _load(self, split: str | None) -> HuggingFaceRows | None:
        rows = super()._load(split)
        if rows is None:
            return None
        # From the cache that the images were read into.
        table: Any = library().load_dataset(
            self.path, self.name, data_dir=self.data_dir, data_files=self.data_files, split=split,
            revision=self.revision,
        )  # fmt: skip
        if self.label_column not in table.column_names:
            columns = ", ".join(table.column_names)
            raise UserError(f'data.label_column "{self.label_column}" is not in {self.path}; it has {columns}')
        self._columns[split] = table.features[self.label_column], list(table[self.label_column])
        return rows
