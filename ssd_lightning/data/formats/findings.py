"""Faults of a data set: their kinds, what ``fix`` does about them, and how they are found in annotations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from ssd_lightning.data.formats.annotations import Annotations, Format

BORDER = 1.0
"""Pixels that a box may reach over the edge of its picture, because tools count pixels from 0 or from 1."""

LARGE = 3
"""Least side of pictures in pixels in which boxes of fractions can be told from boxes of pixels."""

LEAST_BOXES = 5
"""Least number of boxes from which another order of their numbers is concluded."""

Fix = Literal["skip", "clip"]
"""The treatment of faults. ``skip`` leaves out faulty objects and objects of unknown classes. It also leaves out
pictures that cannot be read, or whose size differs from the annotation. ``clip`` cuts boxes at the edge of their
picture, and leaves out the objects of which nothing remains."""

Kind = Literal[
    "unreadable",
    "undecodable",
    "size",
    "class",
    "reversed",
    "empty",
    "outside",
    "both",
    "scores",
    "same",
    "names",
    "absent",
    "units",
    "tiny",
    "unannotated",
]
"""``unreadable``: the annotation, or the header or the end of its picture. ``undecodable``: the rest of the picture.
``both``: a picture is trained and scored on. ``scores``: the ground truth is not scored as perfect. ``same``: a
picture, or an object of one, occurs twice. ``names``: two class names may mean one class. ``absent``: a class has no
objects to train or to score on. ``units``: boxes are written in another format than the one that is read. ``tiny``:
an object of one pixel. ``unannotated``: a picture without annotation."""

FIXED: dict[str | None, frozenset[Kind]] = {
    None: frozenset(),
    "clip": frozenset({"reversed", "empty", "outside"}),
    "skip": frozenset({"unreadable", "size", "class", "reversed", "empty", "outside"}),
}
"""The kinds that each value of ``fix`` deals with."""


class Finding(NamedTuple):
    """A fault of a data set, which stops training unless ``fix`` deals with it."""

    kind: Kind
    text: str
    """The file, the object, what is expected and what is there."""


class FaultyObjects(NamedTuple):
    """Masks of the objects and pictures with each fault."""

    unknown_class: Bool[np.ndarray, " objects"]
    reversed_edges: Bool[np.ndarray, " objects"]
    empty: Bool[np.ndarray, " objects"]
    """Objects without width or height in float32, whose logarithm in the loss would be infinite."""
    outside: Bool[np.ndarray, " objects"]
    """Objects that reach over the edge of their picture by more than ``BORDER``, or lie beside it."""
    wrong_size: Bool[np.ndarray, " pictures"]
    """Pictures whose size differs from their annotation."""
    wrong_units: bool
    """True if all boxes are within the first pixel of their pictures, as fractions of a picture are."""


def faulty_objects(annotations: Annotations, classes: Sequence[str]) -> FaultyObjects:
    """Find the objects and pictures with faults; ``classes`` are the known names."""
    known = np.isin(annotations.vocabulary, list(classes)) if annotations.vocabulary else np.zeros(0, dtype=bool)
    left, top, right, bottom = annotations.boxes.T
    height, width = annotations.sizes[annotations.picture_of_object()].T
    reversed_edges = ~((left <= right) & (top <= bottom))  # NaN, too
    left_32, top_32, right_32, bottom_32 = annotations.fractions().T
    empty = ~reversed_edges & ((left_32 == right_32) | (top_32 == bottom_32))
    too_far = (np.minimum(left, top) < -BORDER) | (right > width + BORDER) | (bottom > height + BORDER)
    beside = (left >= width) | (top >= height) | (right <= 0) | (bottom <= 0)
    told = annotations.told_sizes
    return FaultyObjects(
        ~known[annotations.names],
        reversed_edges,
        empty,
        ~reversed_edges & ~empty & (too_far | beside),
        (told > 0).all(axis=1) & (told != annotations.sizes).any(axis=1),
        _are_fractions(annotations),
    )


def told_boxes(annotations: Annotations) -> Float[np.ndarray, "objects 4"]:
    """Return the four numbers of each box as its annotation writes them."""
    left, top, right, bottom = annotations.boxes.T
    if annotations.box_format == "coco":
        return np.stack((left, top, right - left, bottom - top), axis=1)
    first = 1 if annotations.box_format == "voc" else 0
    return np.stack((left + first, top + first, right, bottom), axis=1)


def _are_fractions(annotations: Annotations) -> bool:
    boxes = told_boxes(annotations)
    # Pictures of a pixel or two have such boxes in pixels.
    is_large = annotations.sizes[annotations.picture_of_object()].min(axis=1, initial=LARGE) >= LARGE
    has_fractions = bool((boxes != np.round(boxes)).any())
    return len(boxes) > 0 and bool(is_large.all()) and has_fractions and bool(((boxes >= 0) & (boxes <= 1)).all())


def _other_format(annotations: Annotations, faulty: FaultyObjects) -> str | None:
    """Return the order of numbers in which all boxes are right, where most are wrong in the format that is read."""
    wrong = faulty.reversed_edges | faulty.empty | faulty.outside
    if len(wrong) < LEAST_BOXES or 2 * wrong.sum() <= len(wrong):
        return None
    boxes = told_boxes(annotations)
    ends = boxes[:, 2:]
    if annotations.box_format != "coco":
        ends = boxes[:, :2] + ends
    sides = annotations.sizes[annotations.picture_of_object()][:, ::-1]
    is_right = (boxes[:, :2] < ends).all() and (boxes >= 0).all() and (ends <= sides + 1 + BORDER).all()
    if not is_right:
        return None
    return "xmin, ymin, xmax, ymax" if annotations.box_format == "coco" else "left, top, width, height"


EXTENT: dict[Format, str] = {
    "voc": "xmin <= xmax and ymin <= ymax",
    "coco": "a width and a height above 0",
    "edges": "xmin < xmax and ymin < ymax",
}
"""The condition on the edges of a box, in the words of each format."""


def check_objects(annotations: Annotations, classes: Sequence[str]) -> list[Finding]:
    """Return all faults, kind by kind, in the order of the pictures."""
    faulty = faulty_objects(annotations, classes)
    findings = []
    if faulty.wrong_units:
        first = f"{annotations.sources[annotations.picture_of_object()[0]]}, object 1"
        text = f"expected pixels, got {annotations.told_box(0)}; all boxes are within 0 … 1, like fractions"
        boxes = told_boxes(annotations)
        beyond = (boxes[:, :2] + boxes[:, 2:] > 1).any(axis=1).mean()
        if annotations.box_format != "coco" and (boxes[:, :2] > boxes[:, 2:]).any():
            text += " of left, top, width, height"
        elif annotations.box_format == "coco" and beyond > 0.5:
            text += " of xmin, ymin, xmax, ymax"
        findings.append(Finding("units", f"{first}: {text} of the picture"))
        faulty = faulty._replace(reversed_edges=np.zeros_like(faulty.reversed_edges), empty=np.zeros_like(faulty.empty))
    other = _other_format(annotations, faulty)
    if other is not None:
        first = annotations.sources[annotations.picture_of_object()[0]]
        findings.append(
            Finding("units", f"{first}: expected {EXTENT[annotations.box_format]}, got boxes that look like {other}")
        )
    for picture in np.flatnonzero(faulty.wrong_size):
        (told_height, told_width), (height, width) = annotations.told_sizes[picture], annotations.sizes[picture]
        is_turned = (told_height, told_width) == (width, height)
        findings.append(
            Finding(
                "size",
                f"{annotations.sources[picture]}: size: expected {width}×{height} pixels as "
                f"{Path(annotations.pictures[picture]).name} has{' upright' * is_turned}, "
                f"got {told_width}×{told_height}",
            )
        )
    pictures = annotations.picture_of_object()
    first_of_picture = np.cumsum(annotations.counts) - annotations.counts

    def add(kind: Kind, rows: Bool[np.ndarray, " objects"], told: Callable[[int], str]) -> None:
        for row in np.flatnonzero(rows).tolist():
            place = f"{annotations.sources[pictures[row]]}, object {row - first_of_picture[pictures[row]] + 1}"
            findings.append(Finding(kind, f"{place}: {told(row)}"))

    def class_told(row: int) -> str:
        return f"name: expected one of {', '.join(classes)}, got {annotations.vocabulary[annotations.names[row]]!r}"

    def extent_told(row: int) -> str:
        return f"expected {EXTENT[annotations.box_format]}, got {annotations.told_box(row)}"

    def outside_told(row: int) -> str:
        height, width = annotations.sizes[pictures[row]]
        picture = Path(annotations.pictures[pictures[row]]).name
        return f"expected a box inside {picture} of {width}×{height} pixels, got {annotations.told_box(row)}"

    add("class", faulty.unknown_class, class_told)
    add("reversed", faulty.reversed_edges, extent_told)
    add("empty", faulty.empty, extent_told)
    add("outside", faulty.outside, outside_told)
    return findings


def refuse(findings: Sequence[Finding]) -> None:
    """Raise an error with the first finding, if there is any.

    Raises:
        ValueError: with the text of the first finding and the number of the others.
    """
    if findings:
        more = f" ({len(findings) - 1} more. Try ssd-check, which lists them)" if len(findings) > 1 else ""
        raise ValueError(findings[0].text + more)


def printable(text: str) -> str:
    """Return a text whose file names may not be UTF-8 with a replacement for each byte that is not."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def check_fix(fix: str | None) -> None:
    """Refuse a value of ``fix`` that is none of :data:`Fix`."""
    if fix is not None and fix not in get_args(Fix):
        raise ValueError(f"fix: expected one of {', '.join(get_args(Fix))} or null, got {fix!r}")
