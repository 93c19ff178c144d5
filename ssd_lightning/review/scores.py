"""Scores of a data set, class by class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ssd_lightning.average_precision import average_curves, coco_average_precision, precision_recall_curves
from ssd_lightning.structures import DetectionRecords, ObjectRecords

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
:func:`ssd_lightning.average_precision.coco_average_precision`."""


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
        ValueError: as :func:`ssd_lightning.average_precision.voc_average_precision`.
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
