"""The detections of a validation, and its ground truth, in one small file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.structures import DetectionRecords, ObjectRecords


class StoredDetections(NamedTuple):
    """Boxes are in pixels of the original pictures; ``image_ids`` are positions in ``paths``."""

    detections: DetectionRecords
    objects: ObjectRecords
    paths: tuple[str, ...]
    classes: tuple[str, ...]


def save_detections(
    path: Path | str,
    detections: DetectionRecords,
    objects: ObjectRecords,
    paths: Sequence[Path | str],
    classes: Sequence[str],
) -> None:
    """Write everything that scoring anew needs, as a compressed ``npz`` without pickled objects."""
    columns = {f"detections.{name}": column for name, column in detections._asdict().items()}
    columns |= {f"objects.{name}": column for name, column in objects._asdict().items()}
    np.savez_compressed(
        path, allow_pickle=False, paths=np.array([str(p) for p in paths]), classes=np.array(list(classes)), **columns
    )


def load_detections(path: Path | str) -> StoredDetections:
    """Read what :func:`save_detections` wrote.

    Raises:
        ValueError: naming the file, if it is missing or something else.
    """
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
    except Exception as error:  # numpy and zipfile raise a dozen kinds for files that are something else
        raise ValueError(f"detections: {path} cannot be read as stored detections ({error})") from error
