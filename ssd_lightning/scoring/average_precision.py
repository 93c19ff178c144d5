"""Average precision of detections: PASCAL VOC's two versions in numpy, COCO's through torchmetrics.

Pure functions over the flat records of a whole data set (:class:`~ssd_lightning.structures.DetectionRecords`,
:class:`~ssd_lightning.structures.ObjectRecords`); nothing is kept between calls. The way from boxes to a score::

    records ── assign_detections ──> Assignments ── precision_recall_curves ──> Curve per class
                                                        ── average_curves ──> VOCAveragePrecision

:func:`voc_average_precision` goes all the way. Boxes meet objects in the first step alone, so the other
interpolation costs nothing more::

    voc12 = voc_average_precision(detections, objects, num_classes=20)
    voc07 = average_curves(voc12.curves, voc12.num_objects, "11-point")

Why no ``+ 1``: VOC writes a box as its first and last pixel, both inside, so the devkit takes the width of pixels
3 … 7 as 7 − 3 + 1 = 5. Here a box is its edges, and the same five pixels lie between the edges 2 and 7, 7 − 2 = 5.
With every 1-based inclusive box (a, b) stored as the edges (a − 1, b) all widths, heights, intersections and unions
are the devkit's, and so is each IoU. Edges, unlike pixel numbers, can also be scaled to fractions of the image.
"""

import logging
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.structures import DetectionRecords, ObjectRecords

RECALL_LEVELS = np.arange(11) / 10
"""0, 0.1, …, 1 of the 11-point average, each the float nearest to the decimal.

A recall of 3 objects out of 10 is then equal to level 0.3, as the definition means it and as the evaluation in SSD's
Caffe code has it (``recall < j / 10.``). Adding up steps of 0.1 gives 0.30000000000000004 instead, in MATLAB's
``0:0.1:1`` of the devkit as in ``np.arange(0, 1.1, 0.1)`` of its Python ports (those also miss 0.6 and 0.7), and such a
recall falls just short of the level. It matters only where a recall is exactly 0.3, and little where objects are many.
"""


class Assignments(NamedTuple):
    """What became of each detection, in the order of the records. Neither true nor ignored means false."""

    object_rows: Int[np.ndarray, " detections"]
    """Row of the object with the highest IoU in the same image and class; -1 where there is none to compare with."""
    iou: Float[np.ndarray, " detections"]
    """Overlap with that object, 0 … 1; 0 where there is none."""
    is_true: Bool[np.ndarray, " detections"]
    """The best detection to claim its object."""
    is_ignored: Bool[np.ndarray, " detections"]
    """Found a difficult object: counts neither for nor against."""


class Curve(NamedTuple):
    """Precision against recall of one class as the score threshold falls: one point per detection that counts.

    Detections of difficult objects move neither value and have no point.
    """

    recall: Float[np.ndarray, " points"]
    """Never falls. NaN where the truth has no object that counts."""
    precision: Float[np.ndarray, " points"]
    scores: Float[np.ndarray, " points"]
    """Never rise."""


class PrecisionRecall(NamedTuple):
    """Curves of all classes; index 0 is class 1."""

    curves: tuple[Curve, ...]
    num_objects: Int[np.ndarray, " classes"]
    """Objects that can be found, difficult ones left out."""


class VOCAveragePrecision(NamedTuple):
    """Scores of all classes; index 0 is class 1."""

    average_precision: Float[np.ndarray, " classes"]
    """0 … 1; NaN for a class without a (non-difficult) object in the truth."""
    mean: float
    """Over the classes that have an average precision; NaN when none has."""
    num_objects: Int[np.ndarray, " classes"]
    curves: tuple[Curve, ...]


def voc_average_precision(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    interpolation: Literal["11-point", "area"] = "area",
) -> VOCAveragePrecision:
    """Average precision as the PASCAL VOC development kit computes it (``VOCevaldet.m``, ``VOCap.m``).

    ``"11-point"`` is the protocol of VOC2007, ``"area"`` that of VOC2010 and later. See :func:`assign_detections` for
    what counts as found, the head of this module for the unit of the boxes.

    Raises:
        ValueError: when columns differ in length, a box or score is not finite, the edges of a box are swapped, a label
            is outside 1 … ``num_classes``, ``iou_threshold`` is outside (0, 1], or ``interpolation`` is unknown.
    """
    curves, num_objects = precision_recall_curves(detections, objects, num_classes, iou_threshold)
    return average_curves(curves, num_objects, interpolation)


def average_curves(
    curves: tuple[Curve, ...],
    num_objects: Int[np.ndarray, " classes"],
    interpolation: Literal["11-point", "area"] = "area",
) -> VOCAveragePrecision:
    """One number per class and their mean, from curves that are there already.

    Raises:
        ValueError: when ``interpolation`` is unknown.
    """
    averages = {"11-point": average_precision_11_point, "area": average_precision_area}
    if interpolation not in averages:
        raise ValueError(f"interpolation: expected one of {', '.join(averages)}, got {interpolation!r}")
    average = averages[interpolation]

    has_truth = num_objects > 0
    average_precision = np.array([average(curve) for curve in curves])
    average_precision[~has_truth] = np.nan
    mean = float(average_precision[has_truth].mean()) if has_truth.any() else float("nan")
    return VOCAveragePrecision(average_precision, mean, num_objects, curves)


def average_precision_11_point(curve: Curve) -> float:
    """Mean over the recall levels 0, 0.1, …, 1 of the best precision at that recall or beyond.

    The VOC2007 average (Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section 4.2).
    A level that the curve does not reach counts as 0, so a curve without points has 0. NaN where recall is NaN.
    """
    if np.isnan(curve.recall).any():
        return float("nan")
    first_points = np.searchsorted(curve.recall, RECALL_LEVELS)  # the first with recall >= level
    best_precision = np.append(_envelope(curve.precision), 0.0)
    return float(best_precision[first_points].mean())


def average_precision_area(curve: Curve) -> float:
    """Area under the curve after precision is made to fall with recall; the average of VOC2010 and later.

    The same sum as ``VOCap.m`` of the VOC2012 devkit, whose sentinels at recall 0 and 1 add no area.
    A curve without points has 0. NaN where recall is NaN.
    """
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * _envelope(curve.precision)))


def precision_recall_curves(
    detections: DetectionRecords, objects: ObjectRecords, num_classes: int, iou_threshold: float = 0.5
) -> PrecisionRecall:
    """Precision and recall of every class at every score.

    Detections with equal scores keep the order of their rows, and each has a point of its own, as in the devkit.

    Raises:
        ValueError: as :func:`voc_average_precision`.
    """
    check_records(detections, objects, num_classes)
    require_number("iou_threshold", iou_threshold, "(0, 1]")

    _, _, is_true, is_ignored = assign_detections(detections, objects, iou_threshold)
    num_objects = np.bincount(objects.labels[~objects.difficult], minlength=num_classes + 1)[1:]

    rows = np.lexsort((-detections.scores, detections.labels))  # by class, best first; stable
    rows = rows[~is_ignored[rows]]
    is_true, scores = is_true[rows], detections.scores[rows]
    class_ends = np.searchsorted(detections.labels[rows], np.arange(1, num_classes), side="right")

    curves = []
    for true, class_scores, count in zip(
        np.split(is_true, class_ends), np.split(scores, class_ends), num_objects, strict=True
    ):
        num_true = np.cumsum(true)
        recall = num_true / count if count else np.full(len(true), np.nan)
        curves.append(Curve(recall, num_true / np.arange(1, len(true) + 1), class_scores))
    return PrecisionRecall(tuple(curves), num_objects)


def assign_detections(detections: DetectionRecords, objects: ObjectRecords, iou_threshold: float = 0.5) -> Assignments:
    """Decide for each detection whether it is true, false or ignored, by the rules of ``VOCevaldet.m``.

    A detection belongs to the object of its image and class with the highest IoU (the first of equals), taken or not.
    With IoU ≥ ``iou_threshold`` it is ignored if that object is difficult, true if no detection with a higher score
    has claimed the object, and false as a repetition otherwise. Below the threshold it is false.

    The records are taken as they are; :func:`precision_recall_curves` is the border that checks them.
    """
    pairs = pairs_of_same_image_and_class(detections, objects)
    pair_iou = iou_of_pairs(detections.boxes[pairs.detection_rows], objects.boxes[pairs.object_rows])

    # Sorted by detection, then falling IoU: the first pair of each detection holds its object. The sort is stable
    # and pairs come in the order of the objects, so the first of equals stays first.
    by_detection = np.lexsort((-pair_iou, pairs.detection_rows))
    rows, first = np.unique(pairs.detection_rows[by_detection], return_index=True)
    best = by_detection[first]

    num_detections = len(detections.labels)
    object_rows = np.full(num_detections, -1)
    object_rows[rows] = pairs.object_rows[best]
    iou = np.zeros(num_detections)
    iou[rows] = pair_iou[best]

    candidates = np.flatnonzero(iou >= iou_threshold)
    is_difficult = objects.difficult[object_rows[candidates]]
    is_ignored = np.zeros(num_detections, dtype=bool)
    is_ignored[candidates[is_difficult]] = True

    # np.unique returns where each object occurs first, which in score order is the claim that counts.
    claims = candidates[~is_difficult]
    claims = claims[np.argsort(-detections.scores[claims], kind="stable")]
    _, first = np.unique(object_rows[claims], return_index=True)
    is_true = np.zeros(num_detections, dtype=bool)
    is_true[claims[first]] = True
    return Assignments(object_rows, iou, is_true, is_ignored)


def coco_average_precision(
    detections: DetectionRecords, objects: ObjectRecords, num_classes: int, max_detections: int = 100
) -> dict[str, float | Float[np.ndarray, " classes"]]:
    """COCO's average precision and recall, by ``torchmetrics`` with the ``faster_coco_eval`` backend.

    Boxes must be in pixels of the original picture: small, medium and large are areas below 32², up to 96² and above.
    (The other scores are the same in any unit.) At most ``max_detections`` per image and class count, the best ones.

    VOC's difficult objects are passed as ``iscrowd``, COCO's only word for "neither found nor missed". It is a little
    kinder than VOC: the overlap with a crowd is the share of the *detection* inside it, so a small box within a large
    difficult object is forgiven at an IoU that VOC calls false, and a detection prefers an ordinary object to a crowd
    even where the crowd overlaps more. Leaving difficult objects out of the truth instead would punish whoever finds
    them, keeping them as ordinary objects would punish whoever does not.

    Returns:
        ``map`` (mean over IoU 0.50, 0.55, …, 0.95), ``map_50``, ``map_75``, ``map_small``, ``map_medium``,
        ``map_large``, ``mar_100`` (recall with ``max_detections`` = 100, else that number), ``mar_small``,
        ``mar_medium``, ``mar_large`` (with as many) as floats, 0 … 1, and ``map_per_class`` as an array whose index 0
        is class 1. NaN where the truth has no object to score.

    Raises:
        ValueError: as :func:`voc_average_precision` for records, and when ``max_detections`` is less than 1.
    """
    check_records(detections, objects, num_classes)
    require_whole_number("max_detections", max_detections, 1)

    sizes = ("small", "medium", "large")
    recall = f"mar_{max_detections}"
    keys = ("map", "map_50", "map_75", *(f"map_{size}" for size in sizes), recall, *(f"mar_{size}" for size in sizes))
    scores = dict.fromkeys(keys, float("nan"))
    map_per_class = np.full(num_classes, np.nan)
    if len(objects.labels) == 0:  # without any image torchmetrics would warn instead of answering
        return {**scores, "map_per_class": map_per_class}

    # The backend tells of its progress at the level of a program's own messages.
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    # Takes five seconds to import, more than torch itself, and whoever only wants VOC scores needs none of it.
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        # COCO's own numbers: torchmetrics' defaults are rounded to float32, and miss a recall of exactly 0.3 by that.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        max_detection_thresholds=[1, min(10, max_detections), max_detections],  # COCO wants three, ascending
        extended_summary=True,  # holds the scores of each class; `class_metrics` would evaluate every class anew
        sync_on_compute=False,  # the records are complete, and other ranks may not be here to answer
    )
    metric.warn_on_many_detections = False
    metric.update(*_per_image(detections, objects))
    result = metric.compute()

    # COCO writes -1 for "undefined". Axes: IoU thresholds, recall levels, classes, areas (0 is all), most detections.
    scores.update({key: float(result[key]) for key in keys if result[key] >= 0})
    precision = result["precision"][:, :, :, 0, -1].numpy()
    classes = result["classes"].numpy().reshape(-1)  # a single class comes as a scalar
    map_per_class[classes - 1] = np.where(precision.min(axis=(0, 1)) < 0, np.nan, precision.mean(axis=(0, 1)))
    return {**scores, "map_per_class": map_per_class}


def _per_image(
    detections: DetectionRecords, objects: ObjectRecords
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Detections and objects as torchmetrics takes them: a dict for each image that has at least one of either."""
    _, images = np.unique(np.concatenate([detections.image_ids, objects.image_ids]), return_inverse=True)
    detection_images, object_images = np.split(images, [len(detections.labels)])
    num_images = int(images.max(initial=-1)) + 1

    def split(images: np.ndarray, columns: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
        rows = np.argsort(images, kind="stable")
        sizes = np.bincount(images, minlength=num_images).tolist()
        parts = [torch.from_numpy(column[rows]).split(sizes) for column in columns.values()]
        return [dict(zip(columns, part, strict=True)) for part in zip(*parts, strict=True)]

    detection_columns = {
        "boxes": detections.boxes.astype(np.float64),
        "scores": detections.scores.astype(np.float64),
        "labels": detections.labels.astype(np.int64),
    }
    object_columns = {
        "boxes": objects.boxes.astype(np.float64),
        "labels": objects.labels.astype(np.int64),
        "iscrowd": objects.difficult.astype(np.int64),
    }
    return split(detection_images, detection_columns), split(object_images, object_columns)


class Pairs(NamedTuple):
    """Rows of the records that belong together."""

    detection_rows: Int[np.ndarray, " pairs"]
    object_rows: Int[np.ndarray, " pairs"]


def pairs_of_same_image_and_class(detections: DetectionRecords, objects: ObjectRecords) -> Pairs:
    """Every detection with every object of its image and class; sorted by detection, then by object."""
    num_detections = len(detections.labels)
    _, images = np.unique(np.concatenate([detections.image_ids, objects.image_ids]), return_inverse=True)
    labels = np.concatenate([detections.labels, objects.labels])
    groups = images * (int(labels.max(initial=0)) + 1) + labels  # one number per image and class
    detection_groups, object_groups = np.split(groups, [num_detections])

    # The objects of a group lie side by side once sorted; each detection finds where they start and how many they are.
    sorted_objects = np.argsort(object_groups, kind="stable")
    object_groups = object_groups[sorted_objects]
    starts = np.searchsorted(object_groups, detection_groups, side="left")
    counts = np.searchsorted(object_groups, detection_groups, side="right") - starts

    # A detection with n objects takes n rows: start, start + 1, …, start + n - 1.
    detection_rows = np.repeat(np.arange(num_detections), counts)
    first_pairs = np.cumsum(counts) - counts
    positions = np.arange(len(detection_rows)) + np.repeat(starts - first_pairs, counts)
    return Pairs(detection_rows, sorted_objects[positions])


def iou_of_pairs(a: Float[np.ndarray, "pairs 4"], b: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    """IoU of xyxy boxes row by row, in float64 whatever comes in; 0 where both boxes are empty.

    torchvision.ops compares all with all, which across the images of a data set would be mostly nothing.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    width, height = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).T
    intersection = width * height
    union = _area(a) + _area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _area(boxes: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, " boxes"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _envelope(precision: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """The best precision at each point or any later one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def check_records(detections: DetectionRecords, objects: ObjectRecords, num_classes: int) -> None:
    """Refuse what would end in a wrong score, or in an error that does not name its cause.

    Raises:
        ValueError: naming the column, what was expected of it, and the first row that is otherwise.
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
            name = f"`{argument}.{field}`"
            shape = (len(records.labels), 4) if field == "boxes" else (len(records.labels),)
            if column.shape != shape:
                raise ValueError(f"Expected {name} to have shape {shape} like `labels`, but got {column.shape}")
            if not np.issubdtype(column.dtype, kinds[field]):
                raise ValueError(f"Expected {name} to be of type {kinds[field].__name__}, but got {column.dtype}")
            _refuse_rows(~np.isfinite(column), column, f"{name} to be finite")
        labels, boxes = records.labels, records.boxes
        _refuse_rows((labels < 1) | (labels > num_classes), labels, f"`{argument}.labels` to be in 1 … {num_classes}")
        _refuse_rows(boxes[:, 2:] < boxes[:, :2], boxes, f"`{argument}.boxes` to have left ≤ right and top ≤ bottom")


def _refuse_rows(is_wrong: Bool[np.ndarray, "..."], column: np.ndarray, expectation: str) -> None:
    if is_wrong.any():
        row = np.argwhere(is_wrong)[0, 0]
        raise ValueError(f"Expected {expectation}, but row {row} is {column[row]}")
