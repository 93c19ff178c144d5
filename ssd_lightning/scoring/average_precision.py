"""Average precision of detections: PASCAL VOC's two versions in numpy, COCO's through torchmetrics.

Pure functions over the flat records of a whole data set (:class:`~ssd_lightning.structures.DetectionRecords`,
:class:`~ssd_lightning.structures.ObjectRecords`). The way from boxes to a score::

    records ── assign_detections ──> Assignments ── precision_recall_curves ──> Curve per class
                                                        ── average_curves ──> VOCAveragePrecision

:func:`voc_average_precision` goes all the way. Boxes meet objects in the first step alone, so a second interpolation
of the same curves is cheap::

    voc12 = voc_average_precision(detections, objects, num_classes=20)
    voc07 = average_curves(voc12.curves, voc12.num_objects, "11-point")
"""

import logging
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.scoring.assignment import assign_detections, check_records, image_numbers
from ssd_lightning.structures import DetectionRecords, ObjectRecords

RECALL_LEVELS = np.arange(11) / 10
"""Recall levels 0, 0.1, …, 1 of the 11-point average, each the float nearest to the decimal.

A recall of 3 objects out of 10 then equals level 0.3, as in the evaluation of SSD's Caffe code (``recall < j / 10.``).
The devkit's ``0:0.1:1`` has the level 0.30000000000000004 instead, of which such a recall falls short. The same holds
for ``np.arange(0, 1.1, 0.1)`` in Python ports, which also miss 0.6 and 0.7. The difference matters only for a recall of
exactly 0.3, and little when there are many objects.
"""


class Curve(NamedTuple):
    """Precision against recall of one class as the score threshold falls, one point per detection that counts.

    Detections of difficult objects change neither value and have no point.
    """

    recall: Float[np.ndarray, " points"]
    """Never falls. NaN if the class has no object that counts."""
    precision: Float[np.ndarray, " points"]
    scores: Float[np.ndarray, " points"]
    """Never rise."""


class PrecisionRecall(NamedTuple):
    """Curves of all classes. Index 0 is class 1."""

    curves: tuple[Curve, ...]
    num_objects: Int[np.ndarray, " classes"]
    """Number of objects that can be found; difficult objects are left out."""


class VOCAveragePrecision(NamedTuple):
    """Scores of all classes. Index 0 is class 1."""

    average_precision: Float[np.ndarray, " classes"]
    """0 … 1; NaN for a class without an object that counts."""
    mean: float
    """Mean over the classes with an average precision; NaN if there is no such class."""
    num_objects: Int[np.ndarray, " classes"]
    curves: tuple[Curve, ...]


def voc_average_precision(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    iou_threshold: float = 0.5,
    interpolation: Literal["11-point", "area"] = "area",
) -> VOCAveragePrecision:
    """Compute average precision as the PASCAL VOC development kit does (``VOCevaldet.m``, ``VOCap.m``).

    ``"11-point"`` is the protocol of VOC2007, ``"area"`` the protocol of VOC2010 and later. See
    :mod:`ssd_lightning.scoring.assignment` for the unit of the boxes and for the detections that count as true.

    Raises:
        ValueError: if columns differ in length, a box or score is not finite, or the edges of a box are swapped. Also
            if a label is outside 1 … ``num_classes``, ``iou_threshold`` outside (0, 1], or ``interpolation`` unknown.
    """
    curves, num_objects = precision_recall_curves(detections, objects, num_classes, iou_threshold)
    return average_curves(curves, num_objects, interpolation)


def average_curves(
    curves: tuple[Curve, ...],
    num_objects: Int[np.ndarray, " classes"],
    interpolation: Literal["11-point", "area"] = "area",
) -> VOCAveragePrecision:
    """Compute the average precision of each class, and its mean, from curves.

    Raises:
        ValueError: if ``interpolation`` is unknown.
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
    """Average the best precision at or beyond the recall levels 0, 0.1, …, 1.

    This is the VOC2007 average (Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section
    4.2). A level that the curve does not reach counts as 0, so a curve without points has 0. NaN if recall is NaN.
    """
    if np.isnan(curve.recall).any():
        return float("nan")
    first_points = np.searchsorted(curve.recall, RECALL_LEVELS)  # The first point with recall ≥ level.
    best_precision = np.append(_envelope(curve.precision), 0.0)
    return float(best_precision[first_points].mean())


def average_precision_area(curve: Curve) -> float:
    """Compute the area under the curve once precision is made to fall with recall: the average of VOC2010 and later.

    The sum equals that of ``VOCap.m`` in the VOC2012 devkit, whose sentinels at recall 0 and 1 add no area.
    A curve without points has 0. NaN if recall is NaN.
    """
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * _envelope(curve.precision)))


def precision_recall_curves(
    detections: DetectionRecords, objects: ObjectRecords, num_classes: int, iou_threshold: float = 0.5
) -> PrecisionRecall:
    """Compute precision and recall of every class at every score.

    Detections with equal scores keep the order of their rows and have a point each, as in the devkit.

    Raises:
        ValueError: as :func:`voc_average_precision`.
    """
    check_records(detections, objects, num_classes)
    require_number("iou_threshold", iou_threshold, "(0, 1]")

    _, _, is_true, is_ignored = assign_detections(detections, objects, iou_threshold)
    num_objects = np.bincount(objects.labels[~objects.difficult], minlength=num_classes + 1)[1:]

    rows = np.lexsort((-detections.scores, detections.labels))  # By class, the highest score first; the sort is stable.
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


def coco_average_precision(
    detections: DetectionRecords, objects: ObjectRecords, num_classes: int, max_detections: int = 100
) -> dict[str, float | Float[np.ndarray, " classes"]]:
    """Compute COCO's average precision and recall by ``torchmetrics`` with the ``faster_coco_eval`` backend.

    Boxes must be in pixels of the original picture: small, medium and large are areas below 32², up to 96² and above.
    (The other scores are the same in any unit.) Only the best ``max_detections`` per image and class count.

    VOC's difficult objects are passed as ``iscrowd``, COCO's only flag for "neither found nor missed". COCO then
    forgives more than VOC does. The overlap with a crowd is the share of the *detection* inside the crowd. So a small
    box in a large difficult object is ignored, where VOC counts a false detection. A detection also prefers an ordinary
    object to a crowd, even if the crowd overlaps more. Without difficult objects in the truth, their detections would
    be false; as ordinary objects they would have to be found.

    Returns:
        COCO's twelve figures, 0 … 1. Precision: ``map`` (mean over IoU 0.50, 0.55, …, 0.95), ``map_50``, ``map_75``,
        ``map_small``, ``map_medium`` and ``map_large``. Recall with so many detections: ``mar_1``, ``mar_10`` and
        ``mar_100``, where ``max_detections`` replaces 100, and 10 if it is lower. Recall by size: ``mar_small``,
        ``mar_medium`` and ``mar_large``. Each figure also has its values by class, as ``map_per_class``: an array
        whose index 0 is class 1. NaN where there is no object to score.

    Raises:
        ValueError: as :func:`voc_average_precision` for records, and if ``max_detections`` is less than 1.
    """
    check_records(detections, objects, num_classes)
    require_whole_number("max_detections", max_detections, 1)

    numbers = [1, min(10, max_detections), max_detections]  # COCO takes three numbers, ascending.
    recalls = tuple(dict.fromkeys(f"mar_{number}" for number in numbers))
    sizes = ("small", "medium", "large")
    keys = ("map", "map_50", "map_75", *(f"map_{size}" for size in sizes), *recalls, *(f"mar_{size}" for size in sizes))
    scores = dict.fromkeys(keys, float("nan"))
    by_class = {f"{key}_per_class": np.full(num_classes, np.nan) for key in keys}
    if len(objects.labels) == 0:  # Without any image, torchmetrics would warn.
        return {**scores, **by_class}

    # The backend logs its progress at the level of a program's own messages.
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    # The import takes five seconds, more than torch itself, and VOC scores do not need it.
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        # COCO's own numbers: the defaults of torchmetrics are rounded to float32 and miss a recall of exactly 0.3.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        max_detection_thresholds=numbers,
        extended_summary=True,  # It holds the scores of each class; `class_metrics` would evaluate each class again.
        sync_on_compute=False,  # The records are complete, and other ranks may not take part.
    )
    metric.warn_on_many_detections = False
    metric.update(*_per_image(detections, objects))
    result = metric.compute()

    # COCO writes -1 for "undefined".
    scores.update({key: float(result[key]) for key in keys if result[key] >= 0})
    classes = result["classes"].numpy().reshape(-1)  # A single class comes as a scalar.
    # Axes: IoU thresholds, recall levels (of precision alone), classes, areas (0: all) and numbers of detections.
    precision, recall = result["precision"].numpy(), result["recall"].numpy()
    parts = {"map": precision[..., 0, -1], "map_50": precision[:1, ..., 0, -1], "map_75": precision[5:6, ..., 0, -1]}
    parts |= {f"mar_{number}": recall[..., 0, place] for place, number in enumerate(numbers)}
    for area, size in enumerate(sizes, start=1):
        parts |= {f"map_{size}": precision[..., area, -1], f"mar_{size}": recall[..., area, -1]}
    for key, part in parts.items():
        axes = tuple(range(part.ndim - 1))
        by_class[f"{key}_per_class"][classes - 1] = np.where(part.min(axis=axes) < 0, np.nan, part.mean(axis=axes))
    return {**scores, **by_class}


class BestF1(NamedTuple):
    """The score threshold of a class with the highest F1."""

    f1: float
    """0 … 1; NaN for a class without an object that counts."""
    threshold: float
    """Lowest score of the detections that count; NaN without a true detection."""


def best_f1(curve: Curve) -> BestF1:
    """Return the highest F1, 2 · precision · recall / (precision + recall), and the highest threshold that has it."""
    if np.isnan(curve.recall).any():
        return BestF1(float("nan"), float("nan"))
    # Detections with equal scores count together, so only the last of them is a threshold.
    points = np.flatnonzero(np.append(curve.scores[1:] != curve.scores[:-1], True)[: len(curve.scores)])
    precision, recall = curve.precision[points], curve.recall[points]
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    if not f1.any():
        return BestF1(0.0, float("nan"))
    best = int(f1.argmax())
    return BestF1(float(f1[best]), float(curve.scores[points[best]]))


def _per_image(
    detections: DetectionRecords, objects: ObjectRecords
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Split records into the form of torchmetrics: a dict for each image that has a detection or an object."""
    detection_images, object_images = image_numbers(detections, objects)
    num_images = 1 + max(detection_images.max(initial=-1), object_images.max(initial=-1))

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


def _envelope(precision: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Return for each point the best precision at it or at any later point."""
    return np.maximum.accumulate(precision[::-1])[::-1]
