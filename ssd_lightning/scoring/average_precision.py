"""Average precision of detections: the two versions of PASCAL VOC, in NumPy.

Pure functions over the flat records of a whole data set (:class:`~ssd_lightning.records.DetectionRecords`,
:class:`~ssd_lightning.records.ObjectRecords`). The way from boxes to a score::

    records ── assign_detections ──> Assignments ── precision_recall_curves ──> Curve per class
                                                        ── average_curves ──> VOCAveragePrecision

:func:`voc_average_precision` goes all the way. Boxes meet objects in the first step alone, so a second interpolation
of the same curves is cheap::

    voc12 = voc_average_precision(detections, objects, num_classes=20)
    voc07 = average_curves(voc12.curves, voc12.num_objects, "11-point")
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.require import require_number
from ssd_lightning.scoring.assignment import assign_detections, check_records

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


def voc_columns(iou_threshold: float = 0.5) -> tuple[str, str]:
    """Return the names of the 11-point and the area average, with the IoU if it is not VOC's own."""
    at = "" if iou_threshold == 0.5 else f" at IoU {iou_threshold:g}"
    return f"VOC07 AP{at}", f"VOC12 AP{at}"


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


class BestF1(NamedTuple):
    """The score threshold of a class with the highest F1."""

    f1: float
    """0 … 1; NaN where the recall is NaN, and 0 without a true detection."""
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


def _envelope(precision: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Return for each point the best precision at it or at any later point."""
    return np.maximum.accumulate(precision[::-1])[::-1]
