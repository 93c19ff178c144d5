"""Which class is taken for which: a confusion matrix of detections, with background as a class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from ssd_lightning.require import require_number
from ssd_lightning.scoring.average_precision import check_records, iou_of_pairs, pairs_of_same_image_and_class
from ssd_lightning.structures import DRAW_THRESHOLD, DetectionRecords, ObjectRecords

BACKGROUND = "background"


def confusion_matrix(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Int[np.ndarray, "labels labels"]:
    """Count objects and detections by the label of the truth (row) and of the detection (column), 0 is background.

    Detections with at least ``score_threshold`` choose in the order of their scores, of equal ones the first row first.
    Each joins the free object of its image with the highest IoU, the first of equals, whatever the class of either,
    if that IoU is at least ``iou_threshold``; the object is then free no more. A detection that finds none is of the
    background (row 0), an object that stays free is taken for background (column 0). The background itself is not
    counted: [0, 0] is 0.

    Difficult objects are neither found nor missed: they always stay free, whoever joins one is not counted, and neither
    are they. So a row sums up to the objects that count of its class.

    Unlike average precision, where a detection belongs to its best object even if that is taken, a detection of a
    crowd takes its second best here: of two objects that share a place, each can be found.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`.
    """
    check_records(detections, objects, num_classes)
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    detections = DetectionRecords(*(column[detections.scores >= score_threshold] for column in detections))

    # With all labels alike, pairs are those of the same image.
    pairs = pairs_of_same_image_and_class(
        detections._replace(labels=np.ones_like(detections.labels)),
        objects._replace(labels=np.ones_like(objects.labels)),
    )
    iou = iou_of_pairs(detections.boxes[pairs.detection_rows], objects.boxes[pairs.object_rows])
    near = np.flatnonzero(iou >= iou_threshold)
    detection_rows, object_rows = pairs.detection_rows[near], pairs.object_rows[near]
    # The last key counts first. The sort is stable, and pairs come in the order of the objects.
    order = np.lexsort((-iou[near], detection_rows, -detections.scores[detection_rows]))

    # Who comes later depends on who came before, so this is a loop, over the few pairs that overlap enough.
    found = [-1] * len(detections.labels)
    is_free = [True] * len(objects.labels)
    is_difficult = objects.difficult.tolist()
    for detection, row in zip(detection_rows[order].tolist(), object_rows[order].tolist(), strict=True):
        if found[detection] < 0 and is_free[row]:
            found[detection] = row
            is_free[row] = is_difficult[row]

    joined = np.array(found, dtype=np.int64)
    is_missed = np.array(is_free, dtype=bool) & ~objects.difficult
    # Of the object that each detection has joined. Where there is none, -1 takes what is appended: background.
    truth = np.append(objects.labels, 0)[joined]
    is_ignored = np.append(objects.difficult, False)[joined]
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(counts, (truth[~is_ignored], detections.labels[~is_ignored]), 1)
    counts[1:, 0] = np.bincount(objects.labels[is_missed], minlength=num_classes + 1)[1:]
    return counts


def confusion_table(counts: Int[np.ndarray, "labels labels"], classes: Sequence[str]) -> pd.DataFrame:
    """The matrix with names, background last."""
    names = [*classes, BACKGROUND]
    return pd.DataFrame(
        np.roll(counts, -1, axis=(0, 1)),
        index=pd.Index(names, name="truth"),
        columns=pd.Index(names, name="detection"),
    )
