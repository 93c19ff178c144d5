"""Scores of a data set by the protocols of VOC and COCO, and the collection of its records batch by batch.

:func:`score` gives the few numbers that training logs, :func:`score_by_class` a table with a row for each class.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssd_lightning import collectives
from ssd_lightning.records import DetectionRecords, ObjectRecords, Records, concatenate, select
from ssd_lightning.scoring.average_precision import (
    VOCAveragePrecision,
    average_curves,
    best_f1,
    voc_average_precision,
    voc_columns,
)
from ssd_lightning.scoring.coco_average_precision import coco_average_precision
from ssd_lightning.structures import Batch, Detections

MAX_DETECTIONS = 100
"""COCO's own limit of detections per picture and class."""


def coco_columns(max_detections: int = MAX_DETECTIONS) -> dict[str, str]:
    """Return the columns of COCO's twelve figures and their keys in :func:`coco_average_precision`.

    The last of the three numbers of detections is ``max_detections``.
    """
    recalls = dict.fromkeys((1, min(10, max_detections), max_detections))
    return {
        "COCO AP": "map",
        "COCO AP50": "map_50",
        "COCO AP75": "map_75",
        "COCO AP small": "map_small",
        "COCO AP medium": "map_medium",
        "COCO AP large": "map_large",
        **{f"COCO AR{number}": f"mar_{number}" for number in recalls},
        "COCO AR small": "mar_small",
        "COCO AR medium": "mar_medium",
        "COCO AR large": "mar_large",
    }


def score(
    detections: DetectionRecords, objects: ObjectRecords, num_classes: int, coco_max_detections: int = MAX_DETECTIONS
) -> dict[str, float]:
    """Compute the mean scores over all classes; boxes in pixels.

    COCO's scores count the best ``coco_max_detections`` of each picture and class.

    Returns:
        VOC's averages at IoU 0.5, 11 points (``map_voc07``) and area (``map_voc12``); COCO's AP at IoU 0.5
        (``map_50``), at 0.75 (``map_75``) and averaged over IoU (``map``). NaN if there is no object to find.
    """
    scores = _all_protocols(detections, objects, num_classes, 0.5, coco_max_detections)
    return {
        "map_voc07": scores.voc07.mean,
        "map_voc12": scores.voc12.mean,
        **{key: float(scores.coco[key]) for key in ("map", "map_50", "map_75")},
    }


def score_by_class(
    detections: DetectionRecords,
    objects: ObjectRecords,
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    coco_max_detections: int = MAX_DETECTIONS,
) -> pd.DataFrame:
    """Compute the scores of each class; boxes in pixels.

    Args:
        detections: detections of a data set.
        objects: the truth.
        classes: names; the class of label n is at n - 1.
        iou_threshold: IoU threshold of the two VOC columns, see :func:`voc_columns`, and of F1. COCO has its own.
        coco_max_detections: number of detections per picture and class that COCO's scores count, the best first.

    Returns:
        A row for each class, and a last row ``mean``. ``objects`` is the number of objects that count,
        ``objects incl. difficult`` the number of all. ``best F1`` is the highest F1 of a class over all score
        thresholds, and ``best F1 at score`` its threshold. NaN for a class without objects that count.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`.
    """
    scores = _all_protocols(detections, objects, len(classes), iou_threshold, coco_max_detections)
    num_objects = scores.voc12.num_objects
    with_difficult = np.bincount(objects.labels, minlength=len(classes) + 1)[1:]
    columns = {
        "objects": np.append(num_objects, num_objects.sum()),
        "objects incl. difficult": np.append(with_difficult, with_difficult.sum()),
    }
    for column, voc in zip(voc_columns(iou_threshold), (scores.voc07, scores.voc12), strict=True):
        columns[column] = np.append(voc.average_precision, voc.mean)
    f1, thresholds = np.reshape([best_f1(curve) for curve in scores.voc12.curves], (len(classes), 2)).T
    f1[num_objects == 0] = thresholds[num_objects == 0] = np.nan
    columns["best F1"] = np.append(f1, f1[num_objects > 0].mean() if num_objects.any() else np.nan)
    columns["best F1 at score"] = np.append(thresholds, np.nan)
    for column, key in coco_columns(coco_max_detections).items():
        columns[column] = np.append(scores.coco[f"{key}_per_class"], scores.coco[key])
    return pd.DataFrame(columns, index=pd.Index([*classes, "mean"], name="class"))


class _Scores(NamedTuple):
    voc07: VOCAveragePrecision
    voc12: VOCAveragePrecision
    coco: dict[str, Any]


def _all_protocols(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float,
    coco_max_detections: int,
) -> _Scores:
    voc12 = voc_average_precision(detections, objects, num_classes, iou_threshold)
    voc07 = average_curves(voc12.curves, voc12.num_objects, "11-point")
    return _Scores(voc07, voc12, coco_average_precision(detections, objects, num_classes, coco_max_detections))


_NO_ID, _NO_BOX = np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.float32)
NO_DETECTIONS = DetectionRecords(_NO_ID, _NO_ID, _NO_BOX, np.zeros(0, dtype=np.float32))
"""Records of no detection."""
NO_OBJECTS = ObjectRecords(_NO_ID, _NO_ID, _NO_BOX, np.zeros(0, dtype=bool))
"""Records of no object."""


class DetectionScores:
    """Detections and ground truth of a data set, collected batch by batch, and their scores.

    Average precision is not a mean over batches. So all records are kept, in pixels of the original pictures, and
    scored at the end. A picture that comes twice, as padding of a distributed sampler, counts once. With several ranks,
    each rank calls :meth:`update` with some of the pictures, and :meth:`gather` brings all of them to the first rank.

    Args:
        num_classes: without background.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget all records."""
        self._seen: set[int] = set()
        self._detections = [NO_DETECTIONS]
        self._objects = [NO_OBJECTS]

    def update(self, batch: Batch, detections: Detections) -> None:
        """Add the ground truth and the detections of a batch.

        The records are copied to the host, which waits for the GPU; do not call this in the training step.
        """
        new = [self._is_new(image_id) for image_id in batch.image_ids.tolist()]
        is_new = torch.tensor(new, dtype=torch.bool, device=batch.image_ids.device).unsqueeze(1)
        objects = batch.objects
        self._objects.append(
            ObjectRecords(
                *_flatten(
                    objects.valid & is_new,
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
                    detections.valid & is_new,
                    batch.image_ids.unsqueeze(1).expand_as(detections.labels),
                    detections.labels,
                    _in_pixels(detections.boxes, batch.image_sizes),
                    detections.scores,
                )
            )
        )

    def _is_new(self, image_id: int) -> bool:
        if image_id in self._seen:
            return False
        self._seen.add(image_id)
        return True

    def gather(self) -> None:
        """Bring the records of all ranks to the first rank, sorted by image id, as a single process would have them."""
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
        self._detections = [_sorted_by_image(self.detections())]
        self._objects = [_sorted_by_image(self.objects())]

    @property
    def pictures(self) -> int:
        """Number of pictures so far, also of those without objects and detections."""
        return len(self._seen)

    def detections(self) -> DetectionRecords:
        """Return all detections so far."""
        return concatenate(self._detections)

    def objects(self) -> ObjectRecords:
        """Return all objects so far."""
        return concatenate(self._objects)

    def compute(self) -> dict[str, float]:
        """Compute ``map_voc07``, ``map_voc12``, ``map_50``, ``map_75`` and ``map``; see :func:`score`."""
        return score(self.detections(), self.objects(), self.num_classes)


def _without(image_ids: set[int], records: Records) -> Records:
    return select(records, ~np.isin(records.image_ids, list(image_ids)))


def _sorted_by_image(records: Records) -> Records:
    return select(records, records.image_ids.argsort(kind="stable"))


def _in_pixels(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    return boxes * image_sizes.flip(1).repeat(1, 2).unsqueeze(1)


def _flatten(keep: Tensor, *columns: Tensor) -> list[np.ndarray]:
    return [column[keep].cpu().numpy() for column in columns]
