"""Assignment of detections to objects, the step that all scores, confusions and causes of errors share.

Why no ``+ 1``: VOC writes a box as its first and last pixel, both inside, so the devkit takes the width of pixels
3 … 7 as 7 − 3 + 1 = 5. Here a box is its edges, and the same five pixels lie between the edges 2 and 7, 7 − 2 = 5.
Every 1-based inclusive box (a, b) is stored as the edges (a − 1, b). So widths, heights, intersections, unions and IoUs
equal those of the devkit. Edges, unlike pixel numbers, can also be scaled to fractions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.require import require_whole_number


class Assignments(NamedTuple):
    """The outcome of each detection, in the order of the records. Neither true nor ignored means false."""

    object_rows: Int[np.ndarray, " detections"]
    """Row of the object with the highest IoU in the same image and class; -1 if there is no such object."""
    iou: Float[np.ndarray, " detections"]
    """IoU with that object, 0 … 1; 0 if there is no such object."""
    is_true: Bool[np.ndarray, " detections"]
    """True for the detection with the highest score that claims its object."""
    is_ignored: Bool[np.ndarray, " detections"]
    """True for a detection of a difficult object, which counts neither for nor against the score."""


def assign_detections(detections: DetectionRecords, objects: ObjectRecords, iou_threshold: float = 0.5) -> Assignments:
    """Decide for each detection whether it is true, false or ignored, by the rules of ``VOCevaldet.m``.

    A detection belongs to the object of its image and class with the highest IoU, even if that object is claimed
    already. (The first object wins if several have this IoU.) A detection with IoU ≥ ``iou_threshold`` is:

    * ignored if the object is difficult,
    * true if no detection with a higher score has claimed the object,
    * false otherwise.

    A detection with a lower IoU is false.

    The records are not checked here; call :func:`check_records` before.
    """
    pairs = pairs_of_same_image_and_class(detections, objects)
    object_rows, iou = best_objects(pairs, detections, objects)

    candidates = np.flatnonzero(iou >= iou_threshold)
    is_difficult = objects.difficult[object_rows[candidates]]
    is_ignored = np.zeros(len(detections.labels), dtype=bool)
    is_ignored[candidates[is_difficult]] = True

    # np.unique returns where each object occurs first, which in score order is the claim that counts.
    claims = best_first(detections, candidates[~is_difficult])
    _, first = np.unique(object_rows[claims], return_index=True)
    is_true = np.zeros(len(detections.labels), dtype=bool)
    is_true[claims[first]] = True
    return Assignments(object_rows, iou, is_true, is_ignored)


def best_first(detections: DetectionRecords, rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Return rows of detections sorted by falling score; equal scores keep their order."""
    return rows[np.argsort(-detections.scores[rows], kind="stable")]


class Pairs(NamedTuple):
    """Rows of detections and of objects that are compared with each other."""

    detection_rows: Int[np.ndarray, " pairs"]
    object_rows: Int[np.ndarray, " pairs"]


def pairs_of_same_image_and_class(detections: DetectionRecords, objects: ObjectRecords) -> Pairs:
    """Pair every detection with every object of its image and class; sorted by detection, then by object."""
    images, object_images = image_numbers(detections, objects)
    num_labels = 1 + max(int(detections.labels.max(initial=0)), int(objects.labels.max(initial=0)))
    return _pairs_of_same_group(images * num_labels + detections.labels, object_images * num_labels + objects.labels)


def pairs_of_same_image(detections: DetectionRecords, objects: ObjectRecords) -> Pairs:
    """Pair every detection with every object of its image; sorted by detection, then by object."""
    return _pairs_of_same_group(*image_numbers(detections, objects))


def image_numbers(
    detections: DetectionRecords, objects: ObjectRecords
) -> tuple[Int[np.ndarray, " detections"], Int[np.ndarray, " objects"]]:
    """Return the image of each detection and each object, numbered from 0 without gaps. Ids can be any integers."""
    _, images = np.unique(np.concatenate([detections.image_ids, objects.image_ids]), return_inverse=True)
    return images[: len(detections.image_ids)], images[len(detections.image_ids) :]


def _pairs_of_same_group(
    detection_groups: Int[np.ndarray, " detections"], object_groups: Int[np.ndarray, " objects"]
) -> Pairs:
    # Once sorted, the objects of a group lie side by side; each detection looks up where they start and their number.
    sorted_objects = np.argsort(object_groups, kind="stable")
    object_groups = object_groups[sorted_objects]
    starts = np.searchsorted(object_groups, detection_groups, side="left")
    counts = np.searchsorted(object_groups, detection_groups, side="right") - starts

    # A detection with n objects takes n rows: start, start + 1, …, start + n - 1.
    detection_rows = np.repeat(np.arange(len(detection_groups)), counts)
    first_pairs = np.cumsum(counts) - counts
    positions = np.arange(len(detection_rows)) + np.repeat(starts - first_pairs, counts)
    return Pairs(detection_rows, sorted_objects[positions])


def best_objects(
    pairs: Pairs, detections: DetectionRecords, objects: ObjectRecords
) -> tuple[Int[np.ndarray, " detections"], Float[np.ndarray, " detections"]]:
    """Return for each detection the object with the highest IoU among its pairs, and that IoU.

    The first among equals wins. A detection without pairs has object -1 and IoU 0.
    """
    pair_iou = iou_of_pairs(detections.boxes[pairs.detection_rows], objects.boxes[pairs.object_rows])
    # After sorting by detection and falling IoU, the first pair of each detection holds its object. The sort is stable
    # and pairs come in the order of the objects, so the first among equals stays first.
    order = np.lexsort((-pair_iou, pairs.detection_rows))
    rows, first = np.unique(pairs.detection_rows[order], return_index=True)
    best = order[first]
    object_rows, iou = np.full(len(detections.labels), -1), np.zeros(len(detections.labels))
    object_rows[rows], iou[rows] = pairs.object_rows[best], pair_iou[best]
    return object_rows, iou


def iou_of_pairs(a: Float[np.ndarray, "pairs 4"], b: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    """Compute the IoU of xyxy boxes row by row in float64; 0 where both boxes are empty.

    torchvision.ops compares all boxes with all boxes, and most of these pairs would be of different images.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    width, height = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).T
    intersection = width * height
    union = _area(a) + _area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _area(boxes: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, " boxes"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def check_records(detections: DetectionRecords, objects: ObjectRecords, num_classes: int) -> None:
    """Refuse records that would give a wrong score, or an error that does not name its cause.

    Raises:
        ValueError: naming the column, what was expected of it, and the first row that differs.
    """
    require_whole_number("num_classes", num_classes, 1)
    kinds = {
        "image_ids": np.integer,
        "labels": np.integer,
        "boxes": np.floating,
        "scores": np.floating,
        "difficult": np.bool_,
    }
    for argument, records in (("detections", detections), ("objects", objects)):
        for field, column in zip(records._fields, records, strict=True):
            name = f"{argument}.{field}"
            shape = (len(records.labels), 4) if field == "boxes" else (len(records.labels),)
            if column.shape != shape:
                raise ValueError(f"{name}: expected shape {shape} to go with the labels, got {column.shape}")
            if not np.issubdtype(column.dtype, kinds[field]):
                raise ValueError(f"{name}: expected type {kinds[field].__name__}, got {column.dtype}")
            _require_rows(name, "finite values", column, np.isfinite(column))
        labels, boxes = records.labels, records.boxes
        _require_rows(f"{argument}.labels", f"1 … {num_classes}", labels, (labels >= 1) & (labels <= num_classes))
        is_ordered = boxes[:, :2] <= boxes[:, 2:]
        _require_rows(f"{argument}.boxes", "left ≤ right and top ≤ bottom", boxes, is_ordered)


def _require_rows(name: str, expected: str, column: np.ndarray, is_valid: Bool[np.ndarray, "..."]) -> None:
    if not is_valid.all():
        row = np.argwhere(~is_valid)[0, 0]
        raise ValueError(f"{name}: expected {expected}, got {column[row]} in row {row}")
