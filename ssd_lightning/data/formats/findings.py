"""Faults of a data set: their kinds, what ``fix`` does about them, and how they are found in annotations."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool

from ssd_lightning.data.formats.annotations import WRITINGS, Annotations, BoxesOf, Order, edges_of
from ssd_lightning.data.pictures import ON_THEIR_SIDE

BORDER = 1.0
"""Pixels that a box may reach over the edge of its picture, because tools count pixels from 0 or from 1."""

LARGE = 3
"""Least side of pictures in pixels in which boxes of fractions can be told from boxes of pixels."""

LEAST_PIXELS = 2
"""The largest number of a box of pixels is at least this. No box inside its picture has such a fraction."""

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
    "turned",
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
    "polygon",
    "background",
]
"""``unreadable``: the annotation, or the header or the end of its picture. ``undecodable``: the rest of the picture.
``size``: the annotation tells another size than the picture has. ``turned``: the size before EXIF data turn the
picture, or after; or the picture is turned, and no size tells to which pixels its boxes refer.
``both``: a picture is trained and scored on. ``scores``: the ground truth is not scored as perfect. ``same``: a
picture, or an object of one, occurs twice. ``names``: two class names may mean one class. ``absent``: a class has no
objects to train or to score on. ``units``: boxes are written in another format than the one that is read. ``tiny``:
an object of one pixel. ``unannotated``: a picture without annotation. ``polygon``: a box is made from a polygon.
``background``: a picture without objects."""

FIXED: dict[str | None, frozenset[Kind]] = {
    None: frozenset(),
    "clip": frozenset({"reversed", "empty", "outside"}),
    "skip": frozenset({"unreadable", "size", "turned", "class", "reversed", "empty", "outside"}),
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
    """True if all boxes are written in fractions of their picture where pixels are read, or the other way round."""


def faulty_objects(annotations: Annotations, classes: Sequence[str]) -> FaultyObjects:
    """Find the objects and pictures with faults; ``classes`` are the known names."""
    known = np.isin(annotations.vocabulary, list(classes)) if annotations.vocabulary else np.zeros(0, dtype=bool)
    left, top, right, bottom = annotations.boxes.T
    frames = annotations.frames()
    height, width = frames[annotations.picture_of_object()].T
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
        (told > 0).all(axis=1) & (told != frames).any(axis=1),
        _have_other_units(annotations),
    )


def _have_other_units(annotations: Annotations) -> bool:
    """Return whether all boxes are written in fractions of the picture in place of pixels, or the other way round."""
    boxes = annotations.told_boxes()
    if WRITINGS[annotations.box_format].in_fractions:
        return len(boxes) > 0 and bool((boxes.max(axis=1) >= LEAST_PIXELS).all())
    # Pictures of a pixel or two have such boxes in pixels.
    is_large = annotations.sizes[annotations.picture_of_object()].min(axis=1, initial=LARGE) >= LARGE
    has_fractions = bool((boxes != np.round(boxes)).any())
    return len(boxes) > 0 and bool(is_large.all()) and has_fractions and bool(((boxes >= 0) & (boxes <= 1)).all())


def _fitting_orders(annotations: Annotations, in_fractions: bool) -> list[Order]:
    """Return the orders of the four numbers with which all boxes are inside their pictures, in the given unit."""
    boxes = annotations.told_boxes()
    sides = annotations.frames()[annotations.picture_of_object()][:, ::-1]
    # Pixels may be counted from 1.
    border, most = (BORDER / sides, np.ones_like(sides)) if in_fractions else (np.full_like(sides, BORDER), sides + 1)
    fitting = []
    for order in ORDERS:
        edges = edges_of(boxes, order)
        start, end = edges[:, :2], edges[:, 2:]
        if (start < end).all() and (start >= -border).all() and (end <= most + border).all():
            fitting.append(order)
    return fitting


ORDERS: dict[Order, str] = {
    "xyxy": "xmin, ymin, xmax, ymax",
    "xywh": "left, top, width, height",
    "cxcywh": "centre, width, height",
}
"""The orders of the four numbers of a box, in words."""


def check_objects(annotations: Annotations, classes: Sequence[str]) -> list[Finding]:
    """Return all faults, kind by kind, in the order of the pictures."""
    faulty = faulty_objects(annotations, classes)
    pictures = annotations.picture_of_object().tolist()
    findings = _wrong_writing(annotations, faulty)
    if faulty.wrong_units:
        nothing = np.zeros_like(faulty.empty)
        faulty = faulty._replace(reversed_edges=nothing, empty=nothing, outside=nothing)
    frames = annotations.frames()
    turned = turned_sizes(annotations)
    for picture in np.flatnonzero(faulty.wrong_size):
        (told_height, told_width), (height, width) = annotations.told_sizes[picture], frames[picture]
        has = "is stored" if annotations.boxes_of == "stored" else "has"
        if annotations.boxes_of == "shown" and (told_height, told_width) == (width, height):
            has = "has upright"
        advice = f". Try data.boxes_of={turned.other}." if turned.pictures[picture] else ""
        findings.append(
            Finding(
                "turned" if advice else "size",
                f"{annotations.sources[picture]}: size: expected {width}×{height} pixels as "
                f"{Path(annotations.pictures[picture]).name} {has}, got {told_width}×{told_height}{advice}",
            )
        )

    def add(kind: Kind, rows: Bool[np.ndarray, " objects"], told: Callable[[int], str]) -> None:
        for row in np.flatnonzero(rows).tolist():
            findings.append(Finding(kind, f"{annotations.place(row, pictures[row])}: {told(row)}"))

    def class_told(row: int) -> str:
        return f"name: expected one of {', '.join(classes)}, got {annotations.vocabulary[annotations.names[row]]!r}"

    def extent_told(row: int) -> str:
        return f"expected {_extent(annotations)}, got {annotations.told_box(row, pictures[row])}"

    def outside_told(row: int) -> str:
        height, width = frames[pictures[row]]
        picture = Path(annotations.pictures[pictures[row]]).name
        told = annotations.told_box(row, pictures[row])
        return f"expected a box inside {picture} of {width}×{height} pixels, got {told}"

    add("class", faulty.unknown_class, class_told)
    add("reversed", faulty.reversed_edges, extent_told)
    add("empty", faulty.empty, extent_told)
    add("outside", faulty.outside, outside_told)
    return findings


class TurnedSizes(NamedTuple):
    """The pictures whose told size is right for the other value of ``boxes_of``."""

    other: BoxesOf
    pictures: Bool[np.ndarray, " pictures"]


def turned_sizes(annotations: Annotations) -> TurnedSizes:
    """Find pictures whose size is told as it is before EXIF data turn the picture, or after.

    None is found if the size of another turned picture is told as expected, because then no value of ``boxes_of`` is
    right for all.
    """
    told, frames = annotations.told_sizes, annotations.frames()
    is_turned = np.isin(annotations.orientations, ON_THEIR_SIDE) & (frames[:, 0] != frames[:, 1])
    other = is_turned & (told == frames[:, ::-1]).all(axis=1)
    if (is_turned & (told == frames).all(axis=1)).any():
        other = np.zeros_like(other)
    return TurnedSizes("shown" if annotations.boxes_of == "stored" else "stored", other)


def unusual_annotations(annotations: Annotations) -> list[Finding]:
    """Return remarks on the annotations, which may be meant as they are."""
    remarks = []
    told = annotations.told_sizes
    tells_nothing = (told == 0).any(axis=1) | ~np.isin(annotations.orientations, ON_THEIR_SIDE)
    unsure = np.flatnonzero((annotations.orientations != 1) & tells_nothing & (annotations.counts > 0))
    if len(unsure):
        first = annotations.pictures[unsure[0]]
        other = "shown" if annotations.boxes_of == "stored" else "stored"
        text = f"is turned by its EXIF data, and its boxes are read as of the picture as it is {annotations.boxes_of}"
        number = f"{len(unsure)} such picture{'s' * (len(unsure) != 1)} in all"
        remarks.append(Finding("turned", f"{first} {text}; {number}. If that is wrong, try data.boxes_of={other}."))
    made = annotations.polygons
    if made.any():
        first = annotations.sources[np.flatnonzero(made)[0]]
        objects = f"{made.sum()} object{'s' * int(made.sum() != 1)}"
        remarks.append(Finding("polygon", f"{first}: has a polygon without a box; boxes made from polygons: {objects}"))
    return remarks


def _wrong_writing(annotations: Annotations, faulty: FaultyObjects) -> list[Finding]:
    """Return findings about a unit, and about an order of the four numbers, that are not the ones that are read."""
    order, _, in_fractions, _, place = WRITINGS[annotations.box_format]
    has_keys = place == "line" and annotations.box_format != "yolo"
    if faulty.wrong_units:
        units = ("pixels", "fractions")
        read, other = reversed(units) if in_fractions else units
        bounds = f"at least {LEAST_PIXELS} somewhere" if in_fractions else "within 0 … 1"
        fitting = _fitting_orders(annotations, not in_fractions)
        in_order = f" in the order {ORDERS[fitting[0]]}" if fitting and order not in fitting else ""
        text = f"expected {read}, got {annotations.told_box(0, _first_picture(annotations))}"
        advice = f". Try data.unit={other}." if has_keys else ""
        source = annotations.place(0, _first_picture(annotations))
        return [Finding("units", f"{source}: {text}; all boxes are {bounds}, like {other}{in_order}{advice}")]
    wrong = faulty.reversed_edges | faulty.empty | faulty.outside
    if len(wrong) < LEAST_BOXES or 2 * wrong.sum() <= len(wrong):
        return []
    fitting = [other for other in _fitting_orders(annotations, in_fractions) if other != order]
    advice = f". Try data.box_format={fitting[0]}." if fitting and has_keys else ""
    text = f"expected {_extent(annotations)}, got boxes that look like"
    source = annotations.sources[_first_picture(annotations)]
    return [Finding("units", f"{source}: {text} {ORDERS[other]}{advice}") for other in fitting[:1]]


def _first_picture(annotations: Annotations) -> int:
    """Return the row of the first picture with an object."""
    return int(np.flatnonzero(annotations.counts)[0])


def _extent(annotations: Annotations) -> str:
    """Return the condition on the numbers of a box, in the words of its format."""
    order, _, _, first_pixel, _ = WRITINGS[annotations.box_format]
    if order != "xyxy":
        return "a width and a height above 0"
    # A box from a pixel to the same pixel, counted from 1, is one pixel wide.
    return "xmin <= xmax and ymin <= ymax" if first_pixel else "xmin < xmax and ymin < ymax"


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
    # Half characters of other kinds come from escapes in JSON.
    whole = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def check_fix(fix: str | None) -> None:
    """Refuse a value of ``fix`` that is none of :data:`Fix`."""
    if fix is not None and fix not in get_args(Fix):
        raise ValueError(f"fix: expected one of {', '.join(get_args(Fix))} or null, got {fix!r}")
