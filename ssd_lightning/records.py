"""The types of single pictures and of whole data sets, in NumPy. They can be read and written without torch.

Boxes are ``xyxy`` (left, top, right, bottom).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

DRAW_THRESHOLD = 0.5
"""Lowest score of a detection that is drawn."""

BACKGROUND = "background"
"""Name of class 0 in tables and figures."""


class Sample(NamedTuple):
    """One picture of a data set and its objects, as NumPy arrays for decoding and augmentation."""

    image: UInt8[np.ndarray, "height width 3"] | Float[np.ndarray, "height width 3"]
    """Levels in 0 … 255, which are fractions after resizing without anti-aliasing."""
    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, " objects"]
    """1 … C."""
    difficult: Bool[np.ndarray, " objects"]


class Truth(NamedTuple):
    """The annotations of one picture, which are known before the picture is decoded."""

    size: tuple[int, int]
    """(height, width) in pixels, after the rotation that the file's EXIF data ask for."""
    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, " objects"]
    """1 … C."""
    difficult: Bool[np.ndarray, " objects"]


class ObjectRecords(NamedTuple):
    """Ground truth of a whole data set as flat arrays, one row per object."""

    image_ids: Int[np.ndarray, " objects"]
    labels: Int[np.ndarray, " objects"]
    """1 … C."""
    boxes: Float[np.ndarray, "objects 4"]
    """Edges (xyxy) in the unit of the detections. A VOC box of inclusive pixels 3 … 7 has edges 2 and 7."""
    difficult: Bool[np.ndarray, " objects"]


class DetectionRecords(NamedTuple):
    """Detections of a whole data set as flat arrays, one row per detection, in any order."""

    image_ids: Int[np.ndarray, " detections"]
    labels: Int[np.ndarray, " detections"]
    boxes: Float[np.ndarray, "detections 4"]
    scores: Float[np.ndarray, " detections"]


Records = TypeVar("Records", ObjectRecords, DetectionRecords)


def select(records: Records, rows: Bool[np.ndarray, " mask"] | Int[np.ndarray, " rows"] | slice) -> Records:
    """Return some rows of records, chosen by a mask, by positions in any order, or by a slice."""
    return type(records)(*(column[rows] for column in records))


def concatenate(parts: Sequence[Records]) -> Records:
    """Return the rows of several records, of at least one, as one."""
    return type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))
