"""Scores of a data set, collected batch by batch."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssd_lightning import collectives
from ssd_lightning.scoring.average_precision import (
    average_curves,
    coco_average_precision,
    precision_recall_curves,
    voc_average_precision,
)
from ssd_lightning.structures import Batch, DetectionRecords, Detections, ObjectRecords

NO_ID, NO_BOX = np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.float32)
NO_DETECTIONS = DetectionRecords(NO_ID, NO_ID, NO_BOX, np.zeros(0, dtype=np.float32))
NO_OBJECTS = ObjectRecords(NO_ID, NO_ID, NO_BOX, np.zeros(0, dtype=bool))
Records = TypeVar("Records", DetectionRecords, ObjectRecords)


class DetectionScores:
    """Detections and ground truth of a data set, and the scores of all of them.

    Everything is kept in pixels of the original pictures and scored at the end, since average precision is no mean over
    batches. A picture that comes twice, as padding by a distributed sampler, counts once. Of several ranks each updates
    with some of the pictures, and the first gets all of them by :meth:`gather`.

    Args:
        num_classes: without background.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        self._seen: set[int] = set()
        self._detections = [NO_DETECTIONS]
        self._objects = [NO_OBJECTS]

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take the ground truth and the detections of a batch. Copies to the host, so not for the training step."""
        ids = batch.image_ids.tolist()
        fresh = torch.tensor([self._is_fresh(i) for i in ids], dtype=torch.bool, device=batch.image_ids.device)
        objects = batch.objects
        self._objects.append(
            ObjectRecords(
                *_flatten(
                    objects.valid & fresh.unsqueeze(1),
                    batch.image_ids.unsqueeze(1).expand_as(objects.labels),
                    objects.labels,
                    _in_pixels(objects.boxes, batch.image_sizes),
                    objects.difficult,
                )
            )
        )
        self._detections.append(
            DetectionRecords(
                *_flatten(
                    detections.valid & fresh.unsqueeze(1),
                    batch.image_ids.unsqueeze(1).expand_as(detections.labels),
                    detections.labels,
                    _in_pixels(detections.boxes, batch.image_sizes),
                    detections.scores,
                )
            )
        )

    def _is_fresh(self, image_id: int) -> bool:
        if image_id in self._seen:
            return False
        self._seen.add(image_id)
        return True

    def gather(self) -> None:
        """Bring to the first rank what all have, in the order of image ids, as one process would have it."""
        if collectives.world_size() == 1:
            return
        ranks = collectives.gather((self._seen, self._detections, self._objects))
        if ranks is None:
            return
        self.reset()
        for seen, detections, objects in ranks:
            self._detections += [_without(self._seen, records) for records in detections]
            self._objects += [_without(self._seen, records) for records in objects]
            self._seen |= seen
        self._detections = [_in_order_of_ids(self.detections())]
        self._objects = [_in_order_of_ids(self.objects())]

    def detections(self) -> DetectionRecords:
        return DetectionRecords(*map(np.concatenate, zip(*self._detections, strict=True)))

    def objects(self) -> ObjectRecords:
        return ObjectRecords(*map(np.concatenate, zip(*self._objects, strict=True)))

    def compute(self) -> dict[str, float]:
        """``map_voc07``, ``map_voc12``, ``map_50``, ``map_75``, ``map``; see :func:`score`."""
        return score(self.detections(), self.objects(), self.num_classes)


def score(detections: DetectionRecords, objects: ObjectRecords, num_classes: int) -> dict[str, float]:
    """All protocols at once, boxes in pixels: VOC's 11 points and area at IoU 0.5, COCO's AP at 0.5, 0.75 and averaged.

    NaN where there is nothing to find.
    """
    voc12 = voc_average_precision(detections, objects, num_classes)
    voc07 = average_curves(voc12.curves, voc12.num_objects, "11-point")
    coco = coco_average_precision(detections, objects, num_classes)
    return {
        "map_voc07": voc07.mean,
        "map_voc12": voc12.mean,
        **{key: float(value) for key, value in coco.items() if key in ("map_50", "map_75", "map")},
    }


def _without(image_ids: set[int], records: Records) -> Records:
    keep = ~np.isin(records.image_ids, list(image_ids))
    return type(records)(*(column[keep] for column in records))


def _in_order_of_ids(records: Records) -> Records:
    order = records.image_ids.argsort(kind="stable")
    return type(records)(*(column[order] for column in records))


def _in_pixels(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    return boxes * image_sizes.flip(1).repeat(1, 2).unsqueeze(1)


def _flatten(keep: Tensor, *columns: Tensor) -> list[np.ndarray]:
    return [column[keep].cpu().numpy() for column in columns]


COCO_COLUMNS = {
    "COCO AP50": "map_50",
    "COCO AP75": "map_75",
    "COCO AP small": "map_small",
    "COCO AP medium": "map_medium",
    "COCO AP large": "map_large",
    "COCO AR100": "mar_100",
    "COCO AR small": "mar_small",
    "COCO AR medium": "mar_medium",
    "COCO AR large": "mar_large",
}
"""Numbers that COCO has of all classes together, and their keys in
:func:`ssd_lightning.scoring.average_precision.coco_average_precision`."""


def voc_columns(iou_threshold: float = 0.5) -> tuple[str, str]:
    """Names of the 11-point and the area average. They tell the IoU where it is not VOC's own."""
    at = "" if iou_threshold == 0.5 else f" at IoU {iou_threshold:g}"
    return f"VOC07 AP{at}", f"VOC12 AP{at}"


def score_by_class(
    detections: DetectionRecords, objects: ObjectRecords, classes: Sequence[str], iou_threshold: float = 0.5
) -> pd.DataFrame:
    """All protocols, a row for each class and a last one for their mean; boxes in pixels.

    ``objects`` are those that count, ``objects incl. difficult`` all. ``iou_threshold`` is that of the two VOC columns,
    see :func:`voc_columns`; COCO has its own. NaN for a class without objects that count, and in the columns of
    COCO that are of all classes together, everywhere but in the last row.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`.
    """
    curves, num_objects = precision_recall_curves(detections, objects, len(classes), iou_threshold)
    coco = coco_average_precision(detections, objects, len(classes))
    with_difficult = np.bincount(objects.labels, minlength=len(classes) + 1)[1:]
    columns = {
        "objects": np.append(num_objects, num_objects.sum()),
        "objects incl. difficult": np.append(with_difficult, with_difficult.sum()),
    }
    voc07 = average_curves(curves, num_objects, "11-point")
    voc12 = average_curves(curves, num_objects, "area")
    for column, voc in zip(voc_columns(iou_threshold), (voc07, voc12), strict=True):
        columns[column] = np.append(voc.average_precision, voc.mean)
    columns["COCO AP"] = np.append(coco["map_per_class"], coco["map"])
    for column, key in COCO_COLUMNS.items():
        columns[column] = np.append(np.full(len(classes), np.nan), coco[key])
    return pd.DataFrame(columns, index=pd.Index([*classes, "mean"], name="class"))
