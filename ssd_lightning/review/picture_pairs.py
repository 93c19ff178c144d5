"""The pictures on which two runs differ most, with what each of them finds there."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ssd_lightning.data.pictures import PictureError, read_picture
from ssd_lightning.scoring.error_figures import SHORT
from ssd_lightning.scoring.errors import FOUND, IGNORED, TRUE, Errors, find_errors, with_score
from ssd_lightning.scoring.stored_detections import StoredDetections
from ssd_lightning.structures import DRAW_THRESHOLD, DetectionRecords, ObjectRecords

SHOWN_SIDE = 480
"""Longest side of a stored picture in pixels: half the width of a page."""

JPEG_QUALITY = 82


class Box(NamedTuple):
    """A rectangle in pixels of the picture, and what is written at it."""

    left: float
    top: float
    width: float
    height: float
    text: str
    cause: str


class Side(NamedTuple):
    """What one run does with a picture."""

    objects: list[Box]
    """Truth; the cause is ``found``, ``ignored``, or why it was not found."""
    detections: list[Box]
    """The best come last, on top."""

    @property
    def told(self) -> str:
        found = sum(box.cause == FOUND for box in self.objects)
        missed = sum(box.cause not in (FOUND, IGNORED) for box in self.objects)
        false = sum(box.cause not in (TRUE, IGNORED) for box in self.detections)
        return f"{found} found, {missed} not found, {false} false"


class Pair(NamedTuple):
    """A picture, and what two runs do with it."""

    name: str
    width: int
    height: int
    source: str
    """The picture itself, reduced, as a data URI."""
    a: Side
    b: Side


class Pairs(NamedTuple):
    """What :func:`picture_pairs` found."""

    shown: list[Pair]
    differing: int
    """Pictures on which the runs differ at all."""
    missing: list[str]
    """Those that would have been shown, but cannot be read any more, with the reason."""


def picture_differences(
    errors_a: Errors,
    errors_b: Errors,
    seen_a: DetectionRecords,
    seen_b: DetectionRecords,
    objects: ObjectRecords,
    pictures: int,
) -> Float[np.ndarray, " pictures"]:
    """Of each picture: the objects that only one of two runs finds, and how much more one has in scores of false
    detections than the other."""
    weights = np.zeros(pictures)
    is_found_once = (errors_a.object_causes == FOUND) != (errors_b.object_causes == FOUND)
    np.add.at(weights, objects.image_ids[is_found_once], 1)
    false = np.zeros((2, pictures))
    for run, (errors, seen) in enumerate(((errors_a, seen_a), (errors_b, seen_b))):
        is_false = ~np.isin(errors.detection_causes, (TRUE, IGNORED))
        np.add.at(false[run], seen.image_ids[is_false], seen.scores[is_false])
    return weights + np.abs(false[1] - false[0])


def picture_pairs(
    a: StoredDetections,
    b: StoredDetections,
    count: int = 8,
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Pairs:
    """The pictures that differ most by :func:`picture_differences`, with the detections from ``score_threshold`` on.

    Args:
        a: stored detections of a run.
        b: of another, on the same pictures with the same truth, see :func:`ssd_lightning.review.compare_runs`.
        count: of pictures. Those that are alike are left out.
        iou_threshold: from which on a detection finds an object.
        score_threshold: of the detections that are looked at.

    Raises:
        ValueError: as :func:`ssd_lightning.review.find_errors`.
    """
    # Truth is the same, but its order may not be.
    objects = a.objects
    seen = [with_score(stored.detections, score_threshold) for stored in (a, b)]
    errors = [find_errors(records, objects, len(a.classes), iou_threshold) for records in seen]
    weights = picture_differences(errors[0], errors[1], seen[0], seen[1], objects, len(a.paths))
    order = np.argsort(-weights, kind="stable")
    order = order[weights[order] > 1e-6]
    pairs = Pairs([], len(order), [])
    for index in order.tolist():
        if len(pairs.shown) == count:
            break
        try:
            picture = _read_any(a.paths[index], b.paths[index])
        except PictureError as error:
            pairs.missing.append(str(error))
            continue
        sides = [_side(*each, objects, a.classes, index) for each in zip(seen, errors, strict=True)]
        height, width = picture.shape[:2]
        pairs.shown.append(Pair(Path(a.paths[index]).name, width, height, _data_uri(picture), *sides))
    return pairs


def _side(seen: DetectionRecords, errors: Errors, objects: ObjectRecords, classes: Sequence[str], index: int) -> Side:
    mine = np.flatnonzero(seen.image_ids == index)
    mine = mine[np.argsort(seen.scores[mine], kind="stable")]
    texts = []
    for row in mine:
        name = f"{classes[seen.labels[row] - 1]} " if len(classes) > 1 else ""
        short = SHORT.get(errors.detection_causes[row], "")
        texts.append(f"{name}{seen.scores[row]:.2f} {short}".strip())
    truth = np.flatnonzero(objects.image_ids == index)
    names = [classes[label - 1] for label in objects.labels[truth]]
    return Side(
        _boxes(objects.boxes[truth], names, errors.object_causes[truth]),
        _boxes(seen.boxes[mine], texts, errors.detection_causes[mine]),
    )


def _boxes(boxes: Float[np.ndarray, "boxes 4"], texts: list[str], causes: np.ndarray) -> list[Box]:
    return [
        Box(left, top, right - left, bottom - top, text, str(cause))
        for (left, top, right, bottom), text, cause in zip(boxes.tolist(), texts, causes, strict=True)
    ]


def _read_any(path_a: str, path_b: str) -> UInt8[np.ndarray, "height width 3"]:
    """One of the runs may have been trained where the pictures no longer are."""
    try:
        return read_picture(Path(path_a))
    except PictureError:
        if path_b == path_a:
            raise
        return read_picture(Path(path_b))


def _data_uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
