"""The file ``detections.npz`` of a run folder: the detections of a validation, and its ground truth."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.require import require_regular
from ssd_lightning.run_folder import written_whole

FILE_NAME = "detections.npz"
"""Name of the file in a run folder."""

LARGEST_CONTENT = 2**30
"""Largest number of bytes when unpacked; those of COCO's 5,000 validation pictures have 40 million."""

LARGEST_PIXEL = 1e7
"""Largest coordinate of a box; a larger one is a damaged number."""


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
    with written_whole(Path(path)) as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            paths=np.array([str(p) for p in paths]),
            classes=np.array(list(classes)),
            **columns,
        )


def open_stored(path: Path | str) -> Any:
    """Open a file of :func:`save_detections`, for :func:`load_names` and :func:`load_objects`.

    Raises:
        OSError: if the file is missing.
        ValueError: if the path is no regular file, such as a named pipe, or the file holds something else.
    """
    require_regular(path)
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        raise ValueError("it holds a single array")
    # A small file can be unpacked to a thousand times its size.
    size = sum(member.file_size for member in content.zip.infolist())
    if size > LARGEST_CONTENT:
        content.close()
        raise ValueError(f"it holds {size} bytes, more than {LARGEST_CONTENT}")
    return content


def load_names(file: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the files of the pictures and the names of the classes from an open file of :func:`save_detections`.

    Raises:
        ValueError: if they are no texts.
    """
    return _texts(file, "paths"), _texts(file, "classes")


def load_objects(file: Any, paths: Sequence[str], classes: Sequence[str]) -> ObjectRecords:
    """Read the objects of an open file of :func:`save_detections`.

    Raises:
        ValueError: if the objects do not belong to these pictures and classes.
    """
    return ObjectRecords(*_columns(file, "objects", ObjectRecords._fields, paths, classes))


def _texts(file: Any, name: str) -> tuple[str, ...]:
    array = file[name]
    # An empty list has the type of a number.
    if array.ndim != 1 or (array.dtype.kind != "U" and len(array)):
        raise ValueError(f"{name}: expected texts, got {array.dtype} of shape {array.shape}")
    return tuple(array.tolist())


def _columns(
    file: Any, kind: str, names: Sequence[str], paths: Sequence[str], classes: Sequence[str]
) -> Iterator[np.ndarray]:
    """Yield the columns of records, and refuse values that no run writes."""
    count = len(file[f"{kind}.image_ids"])
    for name in names:
        column = file[f"{kind}.{name}"]
        types, shape, least, most = {
            "image_ids": ("iu", (count,), 0, len(paths) - 1),
            "labels": ("iu", (count,), 1, len(classes)),
            "boxes": ("f", (count, 4), -LARGEST_PIXEL, LARGEST_PIXEL),
            "scores": ("f", (count,), 0, 1),
            "difficult": ("b", (count,), 0, 1),
        }[name]
        if column.dtype.kind not in types or column.shape != shape:
            raise ValueError(f"{kind}.{name}: expected the shape {shape}, got {column.dtype} of shape {column.shape}")
        # NaN fails both comparisons.
        wrong = column[~((column >= least) & (column <= most))]
        if wrong.size:
            raise ValueError(f"{kind}.{name}: expected numbers in [{least:g}, {most:g}], got {wrong[0]:g}")
        yield column


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
        with open_stored(path) as file:
            paths, classes = load_names(file)
            detections = DetectionRecords(*_columns(file, "detections", DetectionRecords._fields, paths, classes))
            return StoredDetections(detections, load_objects(file, paths, classes), paths, classes)
    except Exception as error:  # numpy and zipfile raise a dozen types of errors for other files.
        # numpy's own message advises to load the file unsafely.
        no_npz = "it is no npz file, or holds pickled objects, which can run code"
        raise ValueError(
            f"detections: expected stored detections, got {path}, which cannot be read "
            f"({no_npz if 'allow_pickle' in str(error) else error}). Try the folder of a finished run."
        ) from error
