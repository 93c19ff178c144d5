"""Confusion matrix of detections, with background as a class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from ssd_lightning.records import BACKGROUND, DRAW_THRESHOLD, DetectionRecords, ObjectRecords, select
from ssd_lightning.require import require_number
from ssd_lightning.scoring.assignment import check_records, iou_of_pairs, pairs_of_same_image


def confusion_matrix(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Int[np.ndarray, "labels labels"]:
    """Count objects and detections by the label of the truth (row) and of the detection (column); 0 is background.

    Detections with at least ``score_threshold`` are matched in the order of their scores; equal scores keep their
    order. Each detection takes the free object of its image with the highest IoU, of any class, if that IoU is at least
    ``iou_threshold``. (The first object wins if several have this IoU.) A detection without an object is counted in row
    0, and an object without a detection in column 0. The background itself is not counted: [0, 0] is 0.

    Difficult objects are neither found nor missed. They always stay free, and their detections are not counted. So a
    row adds up to the objects of its class that count.

    Average precision assigns a detection to its best object even if that object is claimed. Here the detection takes
    its second best, so that each of two objects in the same place can be found.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`.
    """
    check_records(detections, objects, num_classes)
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    require_number("score_threshold", score_threshold, "[0, 1]")
    detections = select(detections, detections.scores >= score_threshold)

    pairs = pairs_of_same_image(detections, objects)
    iou = iou_of_pairs(detections.boxes[pairs.detection_rows], objects.boxes[pairs.object_rows])
    near = np.flatnonzero(iou >= iou_threshold)
    detection_rows, object_rows = pairs.detection_rows[near], pairs.object_rows[near]
    # The last key sorts first. The sort is stable, and pairs come in the order of the objects.
    order = np.lexsort((-iou[near], detection_rows, -detections.scores[detection_rows]))

    # A loop over the few pairs that overlap enough, since each match depends on the matches before it.
    found = [-1] * len(detections.labels)
    is_free = [True] * len(objects.labels)
    is_difficult = objects.difficult.tolist()
    for detection, row in zip(detection_rows[order].tolist(), object_rows[order].tolist(), strict=True):
        if found[detection] < 0 and is_free[row]:
            found[detection] = row
            is_free[row] = is_difficult[row]

    matched = np.array(found, dtype=np.int64)
    is_missed = np.array(is_free, dtype=bool) & ~objects.difficult
    # A detection without an object has row -1, which takes the appended value: background.
    truth = np.append(objects.labels, 0)[matched]
    is_ignored = np.append(objects.difficult, False)[matched]
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(counts, (truth[~is_ignored], detections.labels[~is_ignored]), 1)
    counts[1:, 0] = np.bincount(objects.labels[is_missed], minlength=num_classes + 1)[1:]
    return counts


def confusion_table(counts: Int[np.ndarray, "labels labels"], classes: Sequence[str]) -> pd.DataFrame:
    """Return the matrix with class names, background last."""
    names = [*classes, BACKGROUND]
    return pd.DataFrame(
        np.roll(counts, -1, axis=(0, 1)),
        index=pd.Index(names, name="truth"),
        columns=pd.Index(names, name="detection"),
    )
