"""Boxes of a whole data set: what annotation files say, what is wrong with it, and the pictures with their truth.

Whatever the format, its reader gives an :class:`Annotations`, and the rest is the same for all::

    files ── reader ──> Annotations, findings ── check_objects ──> more findings
                                              ── annotated_pictures ──> AnnotatedPictures
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from ssd_lightning.data.pictures import read_picture
from ssd_lightning.structures import Sample, Truth

logger = logging.getLogger(__name__)

BORDER = 1.0
"""Pixels that a box may reach over the edge of its picture: tools count pixels from 0 or from 1."""

Fix = Literal["skip", "clip"]
"""What is done about objects that are wrong. ``skip``: they are left out, those of unknown classes too, and so are
pictures that cannot be read or have another size than their annotation says.
``clip``: boxes are cut at the edge of their picture, and left out where nothing remains."""

Format = Literal["voc", "coco"]
"""How an annotation writes a box: ``voc`` has first and last pixel counted from 1, ``coco`` corner, width, height."""


class PictureAnnotation(NamedTuple):
    """What is said about one picture."""

    source: str
    """Where: a file, or a file and a place in it."""
    picture: str
    size: tuple[int, int]
    """(height, width) of the picture itself, upright."""
    told_size: tuple[int, int]
    """(height, width) that the annotation says; zeros where it says nothing."""
    names: list[str]
    """Class of each object."""
    boxes: list[tuple[float, float, float, float]]
    """Edges in pixels: left, top, right, bottom."""
    difficult: list[bool]


class Annotations(NamedTuple):
    """The same of many pictures, as flat columns: a row for each picture, and a row for each object in their order."""

    box_format: Format
    sources: list[str]
    pictures: list[str]
    sizes: Int[np.ndarray, "pictures 2"]
    told_sizes: Int[np.ndarray, "pictures 2"]
    counts: Int[np.ndarray, " pictures"]
    """Objects of each picture."""
    vocabulary: list[str]
    """Class names: those that occur, sorted, or those that the source lists, in its order."""
    names: Int[np.ndarray, " objects"]
    """Positions in ``vocabulary``."""
    boxes: Float[np.ndarray, "objects 4"]
    difficult: Bool[np.ndarray, " objects"]

    def picture_of_object(self) -> Int[np.ndarray, " objects"]:
        """Row of the picture that each object is in."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def told_box(self, row: int) -> str:
        """An object's box as its annotation writes it."""
        left, top, right, bottom = self.boxes[row].tolist()
        if self.box_format == "voc":
            values = (f"{value:.10g}" for value in (left + 1, top + 1, right, bottom))
            return "xmin={} ymin={} xmax={} ymax={}".format(*values)
        return f"bbox=[{', '.join(f'{value:.10g}' for value in (left, top, right - left, bottom - top))}]"

    def fractions(self) -> Float32[np.ndarray, "objects 4"]:
        """Boxes as fractions of their picture, not cut at its edge."""
        height, width = self.sizes[self.picture_of_object()].T
        return (self.boxes / np.stack((width, height, width, height), axis=1)).astype(np.float32)

    def select(self, rows: Int[np.ndarray, " rows"]) -> "Annotations":
        """Those of some pictures, in that order."""
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
        )


def as_columns(
    rows: Sequence[PictureAnnotation], box_format: Format, vocabulary: list[str] | None = None
) -> Annotations:
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
    )


def concatenate(parts: Sequence[Annotations]) -> Annotations:
    """One after the other; at least one, all of one format."""
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
    )


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
]
"""``unreadable``: the annotation, or the header or the end of its picture. ``undecodable``: what is between those.
``both``: a picture is trained and scored on. ``scores``: the truth itself is not scored as perfect. ``same``: a
picture, or an object of one, is there twice. ``names``: of classes, that may be one. ``absent``: a class without
objects to train on."""

FIXED: dict[str | None, frozenset[Kind]] = {
    None: frozenset(),
    "clip": frozenset({"reversed", "empty", "outside"}),
    "skip": frozenset({"unreadable", "size", "class", "reversed", "empty", "outside"}),
}
"""What training does something about, by ``fix``."""


class Finding(NamedTuple):
    """Something wrong with a data set, for which training stops unless ``fix`` says what to do about it."""

    kind: Kind
    text: str
    """Names the file, the object, what is expected and what is there."""


class FaultyObjects(NamedTuple):
    """Which objects are wrong, and how."""

    unknown_class: Bool[np.ndarray, " objects"]
    reversed_edges: Bool[np.ndarray, " objects"]
    empty: Bool[np.ndarray, " objects"]
    """Without width or height, as float32 has it: a loss of their logarithm would be infinite."""
    outside: Bool[np.ndarray, " objects"]
    """Reaching over the edge of the picture by more than ``BORDER``, or altogether outside."""
    wrong_size: Bool[np.ndarray, " pictures"]
    """Pictures that are not as large as their annotation says."""


def faulty_objects(annotations: Annotations, classes: Sequence[str]) -> FaultyObjects:
    known = np.isin(annotations.vocabulary, list(classes)) if annotations.vocabulary else np.zeros(0, dtype=bool)
    left, top, right, bottom = annotations.boxes.T
    height, width = annotations.sizes[annotations.picture_of_object()].T
    reversed_edges = (right < left) | (bottom < top)
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
    )


def check_objects(annotations: Annotations, classes: Sequence[str]) -> list[Finding]:
    """All that is wrong, picture by picture within each kind."""
    faulty = faulty_objects(annotations, classes)
    findings = []
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
        is_voc = annotations.box_format == "voc"
        expected = "xmin <= xmax and ymin <= ymax" if is_voc else "a width and a height above 0"
        return f"expected {expected}, got {annotations.told_box(row)}"

    def outside_told(row: int) -> str:
        height, width = annotations.sizes[pictures[row]]
        picture = Path(annotations.pictures[pictures[row]]).name
        return f"expected a box inside {picture} of {width}×{height} pixels, got {annotations.told_box(row)}"

    add("class", faulty.unknown_class, class_told)
    add("reversed", faulty.reversed_edges, extent_told)
    add("empty", faulty.empty, extent_told)
    add("outside", faulty.outside, outside_told)
    return findings


class AnnotatedPictures:
    """Picture files with their truth, by position; what ``train()`` and ``val()`` of a data set return.

    Args:
        paths: of the pictures.
        sizes: (height, width) of each in pixels, upright.
        counts: objects of each picture.
        boxes: of all objects, one picture's after the other's; xyxy as fractions of their picture.
        labels: of all objects, 1 … C.
        difficult: VOC's flag of all objects; ``None``: no object is.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Int[np.ndarray, "pictures 2"],
        counts: Int[np.ndarray, " pictures"],
        boxes: Float[np.ndarray, "objects 4"],
        labels: Int[np.ndarray, " objects"],
        difficult: Bool[np.ndarray, " objects"] | None = None,
    ) -> None:
        self.paths = list(paths)
        self.sizes = sizes
        self.boxes = boxes.astype(np.float32)
        self.labels = labels
        self.difficult = np.zeros(len(labels), dtype=bool) if difficult is None else difficult
        self.counts = counts
        self._end = np.cumsum(counts)
        self._start = self._end - counts

    def __len__(self) -> int:
        return len(self.paths)

    def truth(self, index: int) -> Truth:
        """What is known without decoding."""
        rows = slice(self._start[index], self._end[index])
        height, width = self.sizes[index].tolist()
        return Truth((height, width), self.boxes[rows], self.labels[rows], self.difficult[rows])

    def image(self, index: int, least: tuple[int, int] | None = None) -> np.ndarray:
        """(height, width, 3), uint8; reduced as :func:`~ssd_lightning.data.pictures.read_picture` does."""
        return read_picture(self.paths[index], least)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image(index), *self.truth(index)[1:])


def annotated_pictures(
    annotations: Annotations,
    classes: Sequence[str],
    difficult: bool = True,
    fix: Fix | None = None,
) -> AnnotatedPictures:
    """Pictures with the objects that are right, or were made so.

    Args:
        annotations: of the pictures, in order.
        classes: names in the order of their labels.
        difficult: whether objects that are flagged as difficult are among them.
        fix: see :data:`Fix`; ``None``: whatever is wrong is an error.

    Raises:
        ValueError: naming the first that is wrong, and how many others are.
    """
    findings = check_objects(annotations, classes)
    refuse([finding for finding in findings if finding.kind not in FIXED[fix]])
    faulty = faulty_objects(annotations, classes)
    if fix == "skip" and faulty.wrong_size.any():
        annotations = annotations.select(np.flatnonzero(~faulty.wrong_size))
        faulty = faulty_objects(annotations, classes)
    if findings:
        logger.warning(
            "%d objects or pictures are not as they should be; fix=%s. The first: %s",
            len(findings),
            fix,
            printable(findings[0].text),
        )
    label_of_name = np.array([_label(name, classes) for name in annotations.vocabulary], dtype=np.int64)
    pictures = annotations.picture_of_object()
    boxes = annotations.fractions().clip(0, 1)
    left, top, right, bottom = boxes.T
    kept = ~faulty.unknown_class & (left < right) & (top < bottom)
    if fix == "skip":
        kept &= ~faulty.outside
    if not difficult:
        kept &= ~annotations.difficult
    return AnnotatedPictures(
        [Path(picture) for picture in annotations.pictures],
        annotations.sizes,
        np.bincount(pictures[kept], minlength=len(annotations.counts)),
        boxes[kept],
        label_of_name[annotations.names[kept]],
        annotations.difficult[kept],
    )


def refuse(findings: Sequence[Finding]) -> None:
    """Nothing, if there are none.

    Raises:
        ValueError: with the first of them.
    """
    if findings:
        more = f" ({len(findings) - 1} more: ssd-check lists them)" if len(findings) > 1 else ""
        raise ValueError(findings[0].text + more)


def refuse_unreadable(findings: Sequence[Finding], fix: Fix | None) -> None:
    """Nothing but a warning if what cannot be read is to be left out.

    Raises:
        ValueError: else, with the first of them.
    """
    if fix != "skip":
        refuse(findings)
    elif findings:
        logger.warning("%d pictures are left out; fix=skip. The first: %s", len(findings), printable(findings[0].text))


def printable(text: str) -> str:
    """What is left to be read of a text with names of files that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def check_fix(fix: str | None) -> None:
    if fix is not None and fix not in get_args(Fix):
        raise ValueError(f"fix: expected one of {', '.join(get_args(Fix))} or null, got {fix!r}")


def _label(name: str, classes: Sequence[str]) -> int:
    return classes.index(name) + 1 if name in classes else 0


def distinct(classes: Iterable[str]) -> tuple[str, ...]:
    """Given names of classes.

    Raises:
        ValueError: if there are none, or one of them twice.
    """
    if isinstance(classes, str):
        raise ValueError(f"classes: expected a list of names such as [{classes}], got {classes}")
    names = tuple(classes)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"classes: expected at least one name, and none twice, got {list(names)}")
    return names
