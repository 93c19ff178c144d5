"""The few validation pictures that dashboards show again and again, so that one sees how they are learned."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ssd_lightning.data.datamodule import Pictures
from ssd_lightning.structures import DetectionRecords, ObjectRecords, Sample, Truth

LONGEST_SIDE = 640
"""Pixels to which a picture is reduced; it is shown anew after every validation."""

LEAST_SCORE = 0.05
MOST_DETECTIONS = 50
"""Of a picture, the best from that score on: a dashboard moves the threshold, but hardly to where all is noise."""

Records = TypeVar("Records", DetectionRecords, ObjectRecords)


def rows_to_show(objects: ObjectRecords, count: int) -> list[int]:
    """Pictures that hold objects, spread over the classes: of each in turn, the first that is not there yet."""
    turns = [
        (turn, label, row)
        for label in np.unique(objects.labels).tolist()
        for turn, row in enumerate(np.unique(objects.image_ids[objects.labels == label])[:count].tolist())
    ]
    return list(dict.fromkeys(row for _, _, row in sorted(turns)))[:count]


class ShownPictures:
    """Some pictures of a data set as a data set of their own, reduced and kept in memory.

    Args:
        pictures: the data set.
        rows: which of them.
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
        """Those of these pictures out of those of the whole data set, in pixels of the reduced pictures."""
        parts = []
        for place, (row, factor) in enumerate(zip(self._rows, self._factors, strict=True)):
            mine = type(records)(*(column[records.image_ids == row] for column in records))
            parts.append(
                mine._replace(
                    image_ids=np.full(len(mine.image_ids), place), boxes=mine.boxes * mine.boxes.dtype.type(factor)
                )
            )
        return type(records)(*map(np.concatenate, zip(*parts, strict=True)))


def worth_showing(detections: DetectionRecords) -> DetectionRecords:
    """Of each picture the best, the best first."""
    order = np.lexsort((-detections.scores, detections.image_ids))
    order = order[detections.scores[order] >= LEAST_SCORE]
    ids = detections.image_ids[order]
    place_in_picture = np.arange(len(ids)) - np.searchsorted(ids, ids)
    return DetectionRecords(*(column[order[place_in_picture < MOST_DETECTIONS]] for column in detections))
