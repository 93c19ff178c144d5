"""The tables and figures of a run folder that report its scores."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ssd_lightning.drawing import save_figure
from ssd_lightning.records import DRAW_THRESHOLD, DetectionRecords, ObjectRecords
from ssd_lightning.scoring.average_precision import PrecisionRecall, precision_recall_curves
from ssd_lightning.scoring.confusion import confusion_matrix, confusion_table
from ssd_lightning.scoring.csv_tables import write_table
from ssd_lightning.scoring.error_figures import draw_error_costs
from ssd_lightning.scoring.errors import cost_in_ap
from ssd_lightning.scoring.score_figures import (
    draw_average_precision,
    draw_confusion,
    draw_precision_recall,
    draw_score_thresholds,
)
from ssd_lightning.scoring.scores import MAX_DETECTIONS, score_by_class


def write_report(
    folder: Path | str,
    detections: DetectionRecords,
    objects: ObjectRecords,
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    draw_threshold: float = DRAW_THRESHOLD,
    coco_max_detections: int = MAX_DETECTIONS,
) -> pd.DataFrame:
    """Write ``scores.csv``, ``confusion.csv``, ``precision_recall.csv`` and ``error_costs.csv``, and their figures.

    Args:
        folder: the run folder. Figures go to its subfolder ``figures``.
        detections: detections of the whole data set, boxes in pixels.
        objects: the truth.
        classes: names; the class of label n is at n - 1.
        iou_threshold: lowest IoU at which a detection finds an object. COCO has its own.
        draw_threshold: lowest score of the detections in the confusion matrix and in the column ``errors shown``.
        coco_max_detections: number of detections per picture and class that COCO's scores count, the best first.

    Returns:
        The content of ``scores.csv``; see :func:`ssd_lightning.scoring.score_by_class`.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.average_precision.voc_average_precision`.
    """
    folder = Path(folder)
    table = score_by_class(detections, objects, classes, iou_threshold, coco_max_detections)
    counts = confusion_matrix(detections, objects, len(classes), iou_threshold, draw_threshold)
    curves = precision_recall_curves(detections, objects, len(classes), iou_threshold)
    costs = cost_in_ap(detections, objects, len(classes), iou_threshold, score_threshold=draw_threshold)
    write_table(table, folder / "scores.csv")
    write_table(costs, folder / "error_costs.csv")
    write_table(confusion_table(counts, classes), folder / "confusion.csv")
    write_table(_points(curves, classes), folder / "precision_recall.csv", index=False, float_format="%.6g")
    for name, figure in (
        ("precision_recall", draw_precision_recall(curves, classes, iou_threshold, draw_threshold)),
        ("score_thresholds", draw_score_thresholds(curves, classes, iou_threshold)),
        ("per_class", draw_average_precision(table, iou_threshold)),
        ("confusion", draw_confusion(counts, classes, iou_threshold, draw_threshold)),
        ("error_costs", draw_error_costs(costs, draw_threshold)),
    ):
        save_figure(figure, folder / "figures" / f"{name}.png")
    return table


def _points(curves: PrecisionRecall, classes: Sequence[str]) -> pd.DataFrame:
    """Return a row for each detection that counts, by class, the highest score first."""
    parts = [
        pd.DataFrame({"class": name, "score": curve.scores, "recall": curve.recall, "precision": curve.precision})
        for name, curve in zip(classes, curves.curves, strict=True)
    ]
    return pd.concat(parts)
