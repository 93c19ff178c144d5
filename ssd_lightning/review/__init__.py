"""Looking back at finished runs, from the files of their folders alone."""

from ssd_lightning.review.class_differences import compare_classes, draw_class_differences
from ssd_lightning.review.compare import compare_runs
from ssd_lightning.review.comparison_report import write_comparison
from ssd_lightning.review.confusion import confusion_matrix, confusion_table
from ssd_lightning.review.detections import StoredDetections, load_detections, save_detections
from ssd_lightning.review.error_figures import draw_error_costs, draw_worst_pictures
from ssd_lightning.review.errors import cost_in_ap, error_table, find_errors
from ssd_lightning.review.figures import draw_average_precision, draw_confusion, draw_precision_recall
from ssd_lightning.review.importance import importance
from ssd_lightning.review.missed import why_missed
from ssd_lightning.review.report import write_report
from ssd_lightning.review.run_figures import draw_importance, draw_learning_curves, draw_pareto
from ssd_lightning.review.runs import learning_curves, load_runs, pareto, run_labels
from ssd_lightning.review.scores import score_by_class, voc_columns
from ssd_lightning.review.seeds import over_seeds

__all__ = [
    "StoredDetections",
    "compare_classes",
    "compare_runs",
    "confusion_matrix",
    "confusion_table",
    "cost_in_ap",
    "draw_average_precision",
    "draw_class_differences",
    "draw_confusion",
    "draw_error_costs",
    "draw_importance",
    "draw_learning_curves",
    "draw_pareto",
    "draw_precision_recall",
    "draw_worst_pictures",
    "error_table",
    "find_errors",
    "importance",
    "learning_curves",
    "load_detections",
    "load_runs",
    "over_seeds",
    "pareto",
    "run_labels",
    "save_detections",
    "score_by_class",
    "voc_columns",
    "why_missed",
    "write_comparison",
    "write_report",
]
