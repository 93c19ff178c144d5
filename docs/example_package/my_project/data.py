"""A data format."""

from pathlib import Path

import numpy as np
import pandas as pd

from ssd_lightning import AnnotatedPictures
from ssd_lightning.data.pictures import picture_size


class CsvPictures:
    """Pictures with one csv file: ``picture,class,left,top,right,bottom``, in pixels.

    A data set has ``classes``, ``prepare()``, ``train()`` and ``val()``.

    Args:
        root: the folder of the csv file and the pictures.
        file: the name of the csv file.
        val_every: every picture of this number is for validation.
    """

    def __init__(self, root: str, file: str = "boxes.csv", val_every: int = 5) -> None:
        self.root = Path(root)
        self.file = self.root / file
        self.val_every = val_every

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels; the first has label 1."""
        return tuple(sorted(self._table()["class"].unique()))

    def prepare(self) -> None:
        """Check that the data is there. This is the place for a download."""
        if not self.file.is_file():
            raise ValueError(f"data.root: expected {self.file.name} in {self.root}, found none")

    def train(self) -> AnnotatedPictures:
        return self._pictures(lambda number: number % self.val_every != 0)

    def val(self) -> AnnotatedPictures:
        return self._pictures(lambda number: number % self.val_every == 0)

    def _table(self) -> pd.DataFrame:
        return pd.read_csv(self.file)

    def _pictures(self, is_chosen) -> AnnotatedPictures:
        by_picture = self._table().groupby("picture")
        chosen = [group for number, group in enumerate(by_picture) if is_chosen(number)]
        paths = [self.root / name for name, _ in chosen]
        sizes = np.array([picture_size(path) for path in paths])  # (height, width)
        counts = np.array([len(objects) for _, objects in chosen])
        objects = pd.concat([objects for _, objects in chosen])
        width_and_height = np.repeat(sizes[:, ::-1], counts, axis=0)
        boxes = objects[["left", "top", "right", "bottom"]].to_numpy() / np.tile(width_and_height, 2)
        labels = np.array([self.classes.index(name) + 1 for name in objects["class"]])
        return AnnotatedPictures(paths, sizes, counts, boxes, labels)
