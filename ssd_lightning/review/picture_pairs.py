"""The pictures on which two runs differ most, with the detections of both."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ssd_lightning.data.pictures import PictureError, read_picture
from ssd_lightning.records import DRAW_THRESHOLD, DetectionRecords, ObjectRecords, select
from ssd_lightning.scoring.errors import FOUND, IGNORED, SHORT_NAMES, TRUE, Errors, find_errors
from ssd_lightning.scoring.stored_detections import StoredDetections

SHOWN_SIDE = 480
"""Longest side of a stored picture in pixels: half the width of a page."""

JPEG_QUALITY = 82

LABEL_BORDER = 2.5
"""Width of the coloured border of a text, at the longest side of a stored picture."""


class Label(NamedTuple):
    """The place of a text, in pixels of the picture."""

    left: float
    baseline: float
    size: float


class Box(NamedTuple):
    """A rectangle in pixels of the picture, with its text."""

    left: float
    top: float
    width: float
    height: float
    text: str
    cause: str
    label: Label | None
    """The place of the text; None where there is no room, and for objects."""


class Side(NamedTuple):
    """The objects of a picture, and the detections of one run."""

    objects: list[Box]
    """The truth; the cause is ``found``, ``ignored``, or the cause of the miss."""
    detections: list[Box]
    """Sorted by rising score, so that the best are drawn on top."""

    @property
    def summary(self) -> str:
        """The numbers of objects found and not found, and of false detections, as text."""
        found = sum(box.cause == FOUND for box in self.objects)
        missed = sum(box.cause not in (FOUND, IGNORED) for box in self.objects)
        false = sum(box.cause not in (TRUE, IGNORED) for box in self.detections)
        return f"{found} found, {missed} not found, {false} false"


class Pair(NamedTuple):
    """A picture, and both runs on it."""

    name: str
    width: int
    height: int
    source: str
    """The picture, reduced, as a data URI."""
    a: Side
    b: Side


class Pairs(NamedTuple):
    """The result of :func:`picture_pairs`."""

    shown: list[Pair]
    differing: int
    """Number of pictures on which the runs differ at all."""
    missing: list[str]
    """Pictures that cannot be read any more and are left out, with the reason."""


def picture_differences(
    errors_a: Errors,
    errors_b: Errors,
    seen_a: DetectionRecords,
    seen_b: DetectionRecords,
    objects: ObjectRecords,
    pictures: int,
) -> Float[np.ndarray, " pictures"]:
    """Measure how much two runs differ on each picture.

    The measure is a sum: the number of objects that only one run finds, and the difference between the total scores of
    the false detections of both runs.
    """
    weights = np.zeros(pictures)
    is_found_once = (errors_a.object_causes == FOUND) != (errors_b.object_causes == FOUND)
    np.add.at(weights, objects.image_ids[is_found_once], 1)
    false = np.zeros((2, pictures))
    for run, (errors, seen) in enumerate(((errors_a, seen_a), (errors_b, seen_b))):
        np.add.at(false[run], seen.image_ids[errors.is_false], seen.scores[errors.is_false])
    return weights + np.abs(false[1] - false[0])


def picture_pairs(
    a: StoredDetections,
    b: StoredDetections,
    count: int = 8,
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Pairs:
    """Find the pictures on which two runs differ most by :func:`picture_differences`.

    Args:
        a: stored detections of a run.
        b: stored detections of another run on the same pictures, see :func:`ssd_lightning.review.compare_runs`.
        count: highest number of pictures. Pictures without a difference are left out.
        iou_threshold: lowest IoU at which a detection finds an object.
        score_threshold: lowest score of the detections that are used.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.find_errors`.
    """
    # The objects are the same for both, but their order can differ.
    objects = a.objects
    seen = [select(stored.detections, stored.detections.scores >= score_threshold) for stored in (a, b)]
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
        height, width = picture.shape[:2]
        both = zip(seen, errors, strict=True)
        sides = [_side(*each, objects, a.classes, index, (height, width)) for each in both]
        pairs.shown.append(Pair(Path(a.paths[index]).name, width, height, _data_uri(picture), *sides))
    return pairs


def _side(
    seen: DetectionRecords,
    errors: Errors,
    objects: ObjectRecords,
    classes: Sequence[str],
    index: int,
    picture_size: tuple[int, int],
) -> Side:
    mine = np.flatnonzero(seen.image_ids == index)
    mine = mine[np.argsort(seen.scores[mine], kind="stable")]
    texts = []
    for row in mine:
        name = f"{classes[seen.labels[row] - 1]} " if len(classes) > 1 else ""
        short = SHORT_NAMES.get(errors.detection_causes[row], "")
        texts.append(f"{name}{seen.scores[row]:.2f} {short}".strip())
    truth = np.flatnonzero(objects.image_ids == index)
    names = [classes[label - 1] for label in objects.labels[truth]]
    labels = _labels(seen.boxes[mine], texts, objects.boxes[truth], picture_size)
    return Side(
        _boxes(objects.boxes[truth], names, errors.object_causes[truth], [None] * len(truth)),
        _boxes(seen.boxes[mine], texts, errors.detection_causes[mine], labels),
    )


def _labels(
    boxes: Float[np.ndarray, "boxes 4"],
    texts: list[str],
    objects: Float[np.ndarray, "objects 4"],
    picture_size: tuple[int, int],
) -> list[Label | None]:
    """Place the texts of detections, of which the last ones are the best."""
    # Matplotlib, which measures the texts, takes long to import.
    from ssd_lightning.drawing import FEW_BOXES, place_labels, text_size

    unit = max(picture_size) / SHOWN_SIDE
    size = (13 if len(boxes) <= FEW_BOXES else 9) * unit
    sizes = np.array([text_size(text, size) for text in texts]).reshape(-1, 2) + 2 * LABEL_BORDER * unit
    places = place_labels(boxes[::-1], sizes[::-1], picture_size, objects)[::-1]
    return [
        # The baseline of a text is about a fifth of its height above its lower edge.
        place and Label(place[0] + LABEL_BORDER * unit, place[1] + 0.8 * height, size)
        for place, (_, height) in zip(places, sizes.tolist(), strict=True)
    ]


def _boxes(
    boxes: Float[np.ndarray, "boxes 4"], texts: list[str], causes: np.ndarray, labels: Sequence[Label | None]
) -> list[Box]:
    return [
        Box(left, top, right - left, bottom - top, text, str(cause), label)
        for (left, top, right, bottom), text, cause, label in zip(boxes.tolist(), texts, causes, labels, strict=True)
    ]


def _read_any(path_a: str, path_b: str) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture from the path of either run: one of the runs may come from another machine."""
    # These pictures have been scored, so they are within the limit of their data set.
    try:
        return read_picture(Path(path_a), max_megapixels=math.inf)
    except PictureError:
        if path_b == path_a:
            raise
        return read_picture(Path(path_b), max_megapixels=math.inf)


def _data_uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
