"""The validation pictures that dashboards show after every validation."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ssd_lightning.data.data_set import Pictures
from ssd_lightning.records import DetectionRecords, ObjectRecords, Records, Sample, Truth, concatenate, select

LONGEST_SIDE = 640
"""Longest side in pixels of a shown picture. Larger pictures are reduced, since each validation stores a copy."""

LEAST_SCORE = 0.05
"""Lowest score of a shown detection. Viewers can raise the threshold on a dashboard."""
MOST_DETECTIONS = 50
"""Highest number of shown detections in a picture."""


def rows_to_show(objects: ObjectRecords, count: int) -> list[int]:
    """Choose pictures with objects, taking from each class in turn its first picture that is not chosen yet."""
    turns = [
        (turn, label, row)
        for label in np.unique(objects.labels).tolist()
        for turn, row in enumerate(np.unique(objects.image_ids[objects.labels == label])[:count].tolist())
    ]
    return list(dict.fromkeys(row for _, _, row in sorted(turns)))[:count]


class ShownPictures:
    """Reduced copies in memory of some pictures of a data set, as a data set of their own.

    Args:
        pictures: the data set.
        rows: the indices of the pictures.
    """

    def __init__(self, pictures: Pictures, rows: Sequence[int]) -> None:
        self._rows = list(rows)
        self._truths = [pictures.truth(row) for row in rows]
        self._factors = [min(1.0, LONGEST_SIDE / max(truth.size)) for truth in self._truths]
        self._images = [self._reduced(pictures, place) for place in range(len(self._rows))]
        self.paths = [pictures.paths[row] for row in rows]

    def _reduced(self, pictures: Pictures, place: int) -> UInt8[np.ndarray, "height width 3"]:
        height, width = (max(1, round(side * self._factors[place])) for side in self._truths[place].size)
        image = Image.fromarray(pictures.image(self._rows[place], (height, width)))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))

    def __len__(self) -> int:
        return len(self._rows)

    def truth(self, index: int) -> Truth:
        _, boxes, *others = self._truths[index]
        return Truth(self._images[index].shape[:2], boxes * np.float32(self._factors[index]), *others)

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        return self._images[index]

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image(index), *self.truth(index)[1:])

    def records(self, records: Records) -> Records:
        """Select the records of these pictures, with boxes in pixels of the reduced pictures."""
        parts = []
        for place, (row, factor) in enumerate(zip(self._rows, self._factors, strict=True)):
            mine = select(records, records.image_ids == row)
            parts.append(
                mine._replace(
                    image_ids=np.full(len(mine.image_ids), place), boxes=mine.boxes * mine.boxes.dtype.type(factor)
                )
            )
        return concatenate(parts)


def worth_showing(detections: DetectionRecords) -> DetectionRecords:
    """Select the detections to show: in each picture those with the highest scores, highest first."""
    order = np.lexsort((-detections.scores, detections.image_ids))
    order = order[detections.scores[order] >= LEAST_SCORE]
    ids = detections.image_ids[order]
    place_in_picture = np.arange(len(ids)) - np.searchsorted(ids, ids)
    return select(detections, order[place_in_picture < MOST_DETECTIONS])
