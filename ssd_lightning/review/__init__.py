"""Looking back at finished runs, from the files of their folders alone."""

from ssd_lightning.review.confusion import confusion_matrix, confusion_table
from ssd_lightning.review.detections import StoredDetections, load_detections, save_detections
from ssd_lightning.review.figures import draw_average_precision, draw_confusion, draw_precision_recall
from ssd_lightning.review.report import write_report
from ssd_lightning.review.scores import score_by_class, voc_columns

__all__ = [
    "StoredDetections",
    "confusion_matrix",
    "confusion_table",
    "draw_average_precision",
    "draw_confusion",
    "draw_precision_recall",
    "load_detections",
    "save_detections",
    "score_by_class",
    "voc_columns",
    "write_report",
]
