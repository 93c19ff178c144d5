"""COCO's average precision and recall, by ``torchmetrics``."""

import logging

import numpy as np
import torch
from jaxtyping import Float

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.require import require_whole_number
from ssd_lightning.scoring.assignment import check_records, image_numbers


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
