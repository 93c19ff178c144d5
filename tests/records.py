"""Records of detections and of objects from rows, and random data sets of them."""

import numpy as np

from ssd_lightning.records import DetectionRecords, ObjectRecords


def detection_records(*rows: tuple) -> DetectionRecords:
    """Return records from rows of (image, label, box, score)."""
    images, labels, boxes, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return DetectionRecords(*_ids_labels_boxes(images, labels, boxes), np.array(scores, dtype=np.float32))


def object_records(*rows: tuple) -> ObjectRecords:
    """Return records from rows of (image, label, box) or (image, label, box, difficult)."""
    rows = tuple(row if len(row) == 4 else (*row, False) for row in rows)
    images, labels, boxes, difficult = zip(*rows, strict=True) if rows else ((), (), (), ())
    return ObjectRecords(*_ids_labels_boxes(images, labels, boxes), np.array(difficult, dtype=bool))


def _ids_labels_boxes(images: tuple, labels: tuple, boxes: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array(images, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
    )
