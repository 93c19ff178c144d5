"""Data sets without files."""

from pathlib import Path

import numpy as np

from ssd_lightning.structures import Sample, Truth


class InMemoryPictures:
    """Made by ``__getitem__`` of a subclass, which gives a :class:`Sample`."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def truth(self, index: int) -> Truth:
        image, *objects = self[index]
        return Truth(image.shape[:2], *objects)

    def image(self, index: int, least: tuple[int, int] | None = None) -> np.ndarray:
        return self[index].image
