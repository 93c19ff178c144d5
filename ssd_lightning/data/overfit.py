"""Training and scoring on the same few pictures, to see whether a detector can learn them by heart."""

import numpy as np
from jaxtyping import UInt8

from ssd_lightning.data.data_set import DetectionData, Pictures, refuse_faulty
from ssd_lightning.records import Sample, Truth
from ssd_lightning.require import require_whole_number


class FirstPictures:
    """The first ``count`` pictures of a data set.

    Raises:
        ValueError: if ``count`` is below 1.
    """

    def __init__(self, pictures: Pictures, count: int) -> None:
        require_whole_number("overfit_pictures", count, 1)
        self.pictures = pictures
        self.paths = list(pictures.paths)[:count]

    def __len__(self) -> int:
        return len(self.paths)

    def truth(self, index: int) -> Truth:
        """Return the ground truth of a picture."""
        return self.pictures.truth(index)

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a picture."""
        return self.pictures.image(index, least)

    def __getitem__(self, index: int) -> Sample:
        return self.pictures[index]


class OverfitData:
    """The first training pictures of ``data``, for training and for scoring."""

    def __init__(self, data: DetectionData, count: int) -> None:
        self.data = data
        self.count = count

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels."""
        return self.data.classes

    def prepare(self) -> None:
        """Download or generate what is missing."""
        self.data.prepare()

    def train(self) -> Pictures:
        """Return the first training pictures, if none of all of them is faulty."""
        pictures = self.data.train()
        refuse_faulty(pictures, self.classes)
        return FirstPictures(pictures, self.count)

    def val(self) -> Pictures:
        """Return the same pictures."""
        return self.train()
