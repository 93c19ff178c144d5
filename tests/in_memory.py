"""Data sets without files."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from ssd_lightning.records import Sample, Truth


class InMemoryPictures(ABC):
    """A data set whose pictures are made on access."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def truth(self, index: int) -> Truth:
        image, *objects = self[index]
        return Truth(image.shape[:2], *objects)

    def image(self, index: int, least: tuple[int, int] | None = None) -> np.ndarray:
        return self[index].image
