"""The file ``detections.npz`` of a run folder: the detections of a validation, and its ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.structures import DetectionRecords, ObjectRecords

FILE_NAME = "detections.npz"
"""Name of the file in a run folder."""


class StoredDetections(NamedTuple):
    """Detections and objects of a data set, boxes in pixels of the original pictures."""

    detections: DetectionRecords
    objects: ObjectRecords
    paths: tuple[str, ...]
    """Files of the pictures; ``image_ids`` are positions in it."""
    classes: tuple[str, ...]
    """Names; the class of label n is at n - 1."""


def save_detections(
    path: Path | str,
    detections: DetectionRecords,
    objects: ObjectRecords,
    paths: Sequence[Path | str],
    classes: Sequence[str],
) -> None:
    """Write everything that is needed to score again, as a compressed ``npz`` file without pickled objects."""
    columns = {f"detections.{name}": column for name, column in detections._asdict().items()}
    columns |= {f"objects.{name}": column for name, column in objects._asdict().items()}
    np.savez_compressed(
        path, allow_pickle=False, paths=np.array([str(p) for p in paths]), classes=np.array(list(classes)), **columns
    )


def load_detections(path: Path | str) -> StoredDetections:
    """Read a file of :func:`save_detections`.

    Args:
        path: the file, or the run folder that it is in.

    Raises:
        ValueError: naming the file, if it is missing or holds something else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise ValueError("it holds a single array")
        with content as file:
            return StoredDetections(
                DetectionRecords(*(file[f"detections.{name}"] for name in DetectionRecords._fields)),
                ObjectRecords(*(file[f"objects.{name}"] for name in ObjectRecords._fields)),
                tuple(file["paths"].tolist()),
                tuple(file["classes"].tolist()),
            )
    except Exception as error:  # numpy and zipfile raise a dozen types of errors for other files.
        raise ValueError(
            f"detections: expected stored detections, got {path}, which cannot be read ({error}). "
            "Try the folder of a finished run."
        ) from error
