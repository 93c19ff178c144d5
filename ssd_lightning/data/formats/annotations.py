"""The columns in which the annotations of a whole data set travel, whatever its format.

A reader of a format returns :class:`Annotations`, and the rest is the same for all::

    files ── reader ──> Annotations ── annotated_pictures ──> AnnotatedPictures with its findings
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from ssd_lightning.data.formats.scalars import class_name
from ssd_lightning.data.pictures import ON_THEIR_SIDE

Order = Literal["xyxy", "xywh", "cxcywh"]
"""The four numbers of a box: its edges, its left upper corner with width and height, or its centre with them."""

Format = Literal[
    "voc",
    "coco",
    "edges",
    "yolo",
    "xyxy pixels",
    "xywh pixels",
    "cxcywh pixels",
    "xyxy fractions",
    "xywh fractions",
    "cxcywh fractions",
]
"""The way in which an annotation writes a box. ``voc``: the first and last pixel, counted from 1. ``coco``: corner,
width and height. ``edges``: the four edges in pixels. ``yolo``: centre, width and height as fractions of the picture.
The other ones are columns of a table."""


class Writing(NamedTuple):
    """The details of a :data:`Format`."""

    order: Order
    template: str
    """The words of a message around the four numbers."""
    in_fractions: bool = False
    """True for fractions of the picture, False for pixels."""
    first_pixel: int = 0
    """Number of the first pixel of a row."""
    place: Literal["object", "line"] = "object"
    """The places in a source that are numbered."""


_EDGES, _CORNER, _CENTRE = "xmin={} ymin={} xmax={} ymax={}", "x={} y={} w={} h={}", "cx={} cy={} w={} h={}"

WRITINGS: dict[Format, Writing] = {
    "voc": Writing("xyxy", _EDGES, first_pixel=1),
    "coco": Writing("xywh", "bbox=[{}, {}, {}, {}]"),
    "edges": Writing("xyxy", _EDGES),
    "yolo": Writing("cxcywh", _CENTRE, in_fractions=True, place="line"),
    "xyxy pixels": Writing("xyxy", _EDGES, place="line"),
    "xywh pixels": Writing("xywh", _CORNER, place="line"),
    "cxcywh pixels": Writing("cxcywh", _CENTRE, place="line"),
    "xyxy fractions": Writing("xyxy", _EDGES, in_fractions=True, place="line"),
    "xywh fractions": Writing("xywh", _CORNER, in_fractions=True, place="line"),
    "cxcywh fractions": Writing("cxcywh", _CENTRE, in_fractions=True, place="line"),
}


BoxesOf = Literal["stored", "shown"]
"""The pixels that boxes refer to, where EXIF data turn a picture: as a file stores them, or as a viewer shows them."""

MIRRORED_ACROSS = (2, 3, 6, 7)
"""EXIF orientations in which left and right are swapped, after width and height."""

MIRRORED_DOWN = (3, 4, 7, 8)
"""EXIF orientations in which top and bottom are swapped, after width and height."""


def turned_boxes(
    boxes: Float[np.ndarray, "objects 4"],
    sizes: Int[np.ndarray, "objects 2"],
    orientations: Int[np.ndarray, " objects"],
) -> Float[np.ndarray, "objects 4"]:
    """Turn boxes of stored pixels with their pictures.

    Args:
        boxes: edges in pixels of the picture as it is stored.
        sizes: (height, width) of the picture of each box as it is shown.
        orientations: EXIF orientation of the picture of each box.

    Returns:
        The edges in pixels of the picture as it is shown.
    """
    on_their_side, across, down = (
        np.isin(orientations, group)[:, None] for group in (ON_THEIR_SIDE, MIRRORED_ACROSS, MIRRORED_DOWN)
    )
    left, top, right, bottom = np.where(on_their_side, boxes[:, [1, 0, 3, 2]], boxes).T
    height, width = sizes.T
    left, right = np.where(across.T, (width - right, width - left), (left, right))
    top, bottom = np.where(down.T, (height - bottom, height - top), (top, bottom))
    return np.stack((left, top, right, bottom), axis=1)


def edges_of(numbers: Float[np.ndarray, "objects 4"], order: Order) -> Float[np.ndarray, "objects 4"]:
    """Return the edges of boxes, in the unit of their numbers."""
    first, second = numbers[:, :2], numbers[:, 2:]
    if order == "xyxy":
        return numbers
    start = first if order == "xywh" else first - second / 2
    return np.concatenate((start, start + second), axis=1)


class PictureAnnotation(NamedTuple):
    """The annotation of one picture."""

    source: str
    """The annotation file, or the file and the place in it, for messages."""
    picture: str
    """Path of the picture."""
    size: tuple[int, int]
    """(height, width) of the picture itself, upright."""
    told_size: tuple[int, int]
    """(height, width) in the annotation; zeros where it says nothing."""
    names: list[str]
    """Class of each object."""
    boxes: list[tuple[float, float, float, float]]
    """Edges of each object in pixels: left, top, right, bottom."""
    difficult: list[bool]
    """VOC's flag of each object."""
    numbers: list[int] | None = None
    """Number of the line of each object; ``None``: the objects are counted from 1."""
    split: str = ""
    """Name of the split that the picture belongs to; empty where the annotation says nothing."""
    orientation: int = 1
    """EXIF orientation of the picture, 1 … 8."""
    polygons: int = 0
    """Number of objects without a box, whose box goes around their polygon."""


class Annotations(NamedTuple):
    """The annotations of many pictures as flat columns: one row per picture, or one per object in the same order."""

    box_format: Format
    sources: list[str]
    pictures: list[str]
    sizes: Int[np.ndarray, "pictures 2"]
    told_sizes: Int[np.ndarray, "pictures 2"]
    counts: Int[np.ndarray, " pictures"]
    """Number of objects in each picture."""
    vocabulary: list[str]
    """Class names: the names that occur, sorted, or the list of the source, in its order."""
    names: Int[np.ndarray, " objects"]
    """Class of each object, as a position in ``vocabulary``."""
    boxes: Float[np.ndarray, "objects 4"]
    difficult: Bool[np.ndarray, " objects"]
    numbers: Int[np.ndarray, " objects"]
    """Number of each object in its source, for messages; see :class:`PictureAnnotation`."""
    splits: list[str]
    """Name of the split of each picture; empty where its annotation says nothing."""
    orientations: Int[np.ndarray, " pictures"]
    """EXIF orientation of each picture, 1 … 8."""
    polygons: Int[np.ndarray, " pictures"]
    """Number of objects in each picture whose box goes around their polygon."""
    boxes_of: BoxesOf = "shown"
    """The pixels that boxes and told sizes refer to."""

    def picture_of_object(self) -> Int[np.ndarray, " objects"]:
        """Return the row of the picture that each object is in."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def place(self, row: int, picture: int) -> str:
        """Return the source and the place in it of an object, which is in a picture of known row."""
        return f"{self.sources[picture]}, {WRITINGS[self.box_format].place} {self.numbers[row]}"

    def told_boxes(self) -> Float[np.ndarray, "objects 4"]:
        """Return the four numbers of each box as its annotation writes them."""
        return _told(self.boxes, self._sides(), WRITINGS[self.box_format])

    def told_box(self, row: int, picture: int) -> str:
        """Return the box of an object, which is in a picture of known row, in the words of its annotation."""
        writing = WRITINGS[self.box_format]
        (numbers,) = _told(self.boxes[[row]], np.tile(self.frames()[[picture], ::-1], 2), writing).tolist()
        return writing.template.format(*(f"{number:.10g}" for number in numbers))

    def frames(self) -> Int[np.ndarray, "pictures 2"]:
        """Return (height, width) of the pixels that the boxes of each picture refer to."""
        is_swapped = np.isin(self.orientations, ON_THEIR_SIDE) & (self.boxes_of == "stored")
        return np.where(is_swapped[:, None], self.sizes[:, ::-1], self.sizes)

    def _sides(self) -> Int[np.ndarray, "objects 4"]:
        """Return width, height, width, height of the pixels that each box refers to."""
        return np.tile(self.frames()[self.picture_of_object()][:, ::-1], 2)

    def fractions(self) -> Float32[np.ndarray, "objects 4"]:
        """Return the boxes as fractions of their picture as it is shown, not clipped."""
        rows = self.picture_of_object()
        boxes = self.boxes
        if self.boxes_of == "stored":
            boxes = turned_boxes(boxes, self.sizes[rows], self.orientations[rows])
        return (boxes / np.tile(self.sizes[rows][:, ::-1], 2)).astype(np.float32)

    def with_boxes_of(self, boxes_of: BoxesOf) -> "Annotations":
        """Return the same numbers as boxes of other pixels; they have been read as of the picture as it is shown."""
        other = self._replace(boxes_of=boxes_of)
        # Boxes of shown pixels stay exactly as they have been read.
        if boxes_of == "shown" or not WRITINGS[self.box_format].in_fractions:
            return other
        return other._replace(boxes=self.boxes / self._sides() * other._sides())

    def select(self, rows: Int[np.ndarray, " rows"]) -> "Annotations":
        """Return the annotations of some pictures, in the order of ``rows``."""
        counts = self.counts[rows]
        first = (np.cumsum(self.counts) - self.counts)[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        objects = np.repeat(first, counts) + within
        return self._replace(
            sources=[self.sources[row] for row in rows],
            pictures=[self.pictures[row] for row in rows],
            sizes=self.sizes[rows],
            told_sizes=self.told_sizes[rows],
            counts=counts,
            names=self.names[objects],
            boxes=self.boxes[objects],
            difficult=self.difficult[objects],
            numbers=self.numbers[objects],
            splits=[self.splits[row] for row in rows],
            orientations=self.orientations[rows],
            polygons=self.polygons[rows],
        )


def _told(
    boxes: Float[np.ndarray, "objects 4"], sides: Int[np.ndarray, "objects 4"], writing: Writing
) -> Float[np.ndarray, "objects 4"]:
    """Return edges in pixels as numbers of another way of writing."""
    start, end = boxes[:, :2], boxes[:, 2:]
    if writing.order == "xyxy":
        numbers = np.concatenate((start + writing.first_pixel, end), axis=1)
    else:
        numbers = np.concatenate((start if writing.order == "xywh" else (start + end) / 2, end - start), axis=1)
    return numbers / sides if writing.in_fractions else numbers


def as_columns(
    rows: Sequence[PictureAnnotation], box_format: Format, vocabulary: list[str] | None = None
) -> Annotations:
    """Put the annotations of pictures into columns; ``vocabulary`` defaults to the names that occur, sorted."""
    if vocabulary is None:
        vocabulary = sorted({name for row in rows for name in row.names})
    number = {name: position for position, name in enumerate(vocabulary)}
    return Annotations(
        box_format,
        [row.source for row in rows],
        [row.picture for row in rows],
        np.array([row.size for row in rows], dtype=np.int64).reshape(-1, 2),
        np.array([row.told_size for row in rows], dtype=np.int64).reshape(-1, 2),
        np.array([len(row.names) for row in rows], dtype=np.int64),
        vocabulary,
        np.array([number[name] for row in rows for name in row.names], dtype=np.int64),
        np.array([box for row in rows for box in row.boxes], dtype=np.float64).reshape(-1, 4),
        np.array([flag for row in rows for flag in row.difficult], dtype=bool),
        np.array([n for row in rows for n in row.numbers or range(1, len(row.names) + 1)], dtype=np.int64),
        [row.split for row in rows],
        np.array([row.orientation for row in rows], dtype=np.int64),
        np.array([row.polygons for row in rows], dtype=np.int64),
    )


def concatenate(parts: Sequence[Annotations]) -> Annotations:
    """Join at least one set of columns, all of one format and of one kind of pixels, one after the other."""
    vocabulary = sorted({name for part in parts for name in part.vocabulary})
    number = {name: position for position, name in enumerate(vocabulary)}
    renumbered = [np.array([number[n] for n in part.vocabulary], dtype=np.int64)[part.names] for part in parts]
    return Annotations(
        parts[0].box_format,
        [source for part in parts for source in part.sources],
        [picture for part in parts for picture in part.pictures],
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.told_sizes for part in parts]),
        np.concatenate([part.counts for part in parts]),
        vocabulary,
        np.concatenate(renumbered),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.difficult for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        [split for part in parts for split in part.splits],
        np.concatenate([part.orientations for part in parts]),
        np.concatenate([part.polygons for part in parts]),
        parts[0].boxes_of,
    )


def stratified(
    annotations: Annotations, share: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " val"]]:
    """Divide pictures at random, so that about the same share of the pictures of each class is in either part.

    Pictures are sorted by their rarest class, at random within it, and the second part takes evenly spaced ones.

    Args:
        annotations: annotations of all pictures.
        share: share of the pictures in the second part.
        seed: seed of the draw.

    Returns:
        The rows of both parts, in order.
    """
    rng = np.random.default_rng(seed)
    number = len(annotations.counts)
    pairs = np.unique(np.stack((annotations.picture_of_object(), annotations.names), axis=1), axis=0)
    pictures_of_class = np.bincount(pairs[:, 1], minlength=len(annotations.vocabulary))
    rank = np.empty(len(pictures_of_class), dtype=np.int64)
    rank[np.argsort(pictures_of_class, kind="stable")] = np.arange(len(rank))
    rarest = np.full(number, len(rank))
    np.minimum.at(rarest, pairs[:, 0], rank[pairs[:, 1]])
    order = np.lexsort((rng.permutation(number), rarest))
    count = round(share * number)
    val = np.zeros(number, dtype=bool)
    val[order[((np.arange(count) + rng.random()) * number / max(count, 1)).astype(np.int64)]] = True
    return np.flatnonzero(~val), np.flatnonzero(val)


def check_boxes_of(boxes_of: str) -> None:
    """Refuse a value of ``boxes_of`` that is none of :data:`BoxesOf`."""
    if boxes_of not in get_args(BoxesOf):
        raise ValueError(f"boxes_of: expected one of {', '.join(get_args(BoxesOf))}, got {boxes_of!r}")


def distinct(classes: Iterable[str]) -> tuple[str, ...]:
    """Return given class names as a tuple.

    Raises:
        ValueError: if there are none, a name occurs twice, or a name is too long.
    """
    if isinstance(classes, str):
        raise ValueError(f"classes: expected a list of names such as [{classes}], got {classes}")
    names = tuple(classes)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"classes: expected at least one name, and none twice, got {list(names)}")
    for name in names:
        class_name(name, "classes")
    return names
