"""Picture files with their ground truth: what the splits of a data set are."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ssd_lightning.data.formats.annotations import Annotations
from ssd_lightning.data.formats.findings import (
    FIXED,
    FaultyObjects,
    Finding,
    Fix,
    Kind,
    check_objects,
    faulty_objects,
    printable,
    unusual_annotations,
)
from ssd_lightning.data.pictures import read_picture
from ssd_lightning.records import Sample, Truth

logger = logging.getLogger(__name__)


MOST_OBJECTS = 5000
"""Largest number of objects in a picture. Checks and scores compare all objects of a picture with each other."""

MOST_LEFT_OUT = 20
"""Number of pictures whose faulty boxes are kept to be drawn."""


class LeftOut(NamedTuple):
    """The faulty boxes of a picture, to be drawn."""

    path: Path
    kind: Kind
    """The first fault."""
    boxes: Float[np.ndarray, "objects 4"]
    """xyxy as fractions of the picture; not clipped."""


class AnnotatedPictures:
    """Picture files with their ground truth, by position; ``train()`` and ``val()`` of a data set return one.

    Args:
        paths: picture files.
        sizes: (height, width) of each picture in pixels, upright.
        counts: number of objects in each picture.
        boxes: boxes of all objects, picture by picture; xyxy as fractions of their picture.
        labels: labels of all objects, 1 … C.
        difficult: VOC's flag of all objects; ``None``: no object is difficult.
        findings: faults that were found in reading. Training refuses to start with any.
        fixed: faults that were found and dealt with.
        remarks: what may be meant as it is, and stops nothing.
        max_megapixels: largest picture that is decoded; see :func:`~ssd_lightning.data.pictures.read_header`.
        left_out: some of the pictures with faulty boxes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Int[np.ndarray, "pictures 2"],
        counts: Int[np.ndarray, " pictures"],
        boxes: Float[np.ndarray, "objects 4"],
        labels: Int[np.ndarray, " objects"],
        difficult: Bool[np.ndarray, " objects"] | None = None,
        findings: Sequence[Finding] = (),
        fixed: Sequence[Finding] = (),
        remarks: Sequence[Finding] = (),
        max_megapixels: float | None = None,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.paths = list(paths)
        self.sizes = sizes
        self.boxes = boxes.astype(np.float32)
        self.labels = labels
        self.difficult = np.zeros(len(labels), dtype=bool) if difficult is None else difficult
        self.counts = counts
        self.findings = list(findings)
        self.fixed = list(fixed)
        self.remarks = list(remarks)
        self.max_megapixels = max_megapixels
        self.left_out = list(left_out)
        self._end = np.cumsum(counts)
        self._start = self._end - counts

    def __len__(self) -> int:
        return len(self.paths)

    def truth(self, index: int) -> Truth:
        """Return the size and the objects of a picture, without decoding it."""
        rows = slice(self._start[index], self._end[index])
        height, width = self.sizes[index].tolist()
        return Truth((height, width), self.boxes[rows], self.labels[rows], self.difficult[rows])

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a picture, reduced as :func:`~ssd_lightning.data.pictures.read_picture` does."""
        return read_picture(self.paths[index], least, self.max_megapixels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image(index), *self.truth(index)[1:])

    def annotations(self, classes: Sequence[str], sizes: Int[np.ndarray, "pictures 2"] | None = None) -> Annotations:
        """Return the objects as annotations, so that all data sets are checked alike.

        Args:
            classes: names in the order of their labels; another label is named by its number.
            sizes: (height, width) of the picture files, where they have been read.
        """
        labels, names = np.unique(self.labels, return_inverse=True)
        height, width = np.repeat(self.sizes, self.counts, axis=0).T
        return Annotations(
            "edges",
            [str(path) for path in self.paths],
            [str(path) for path in self.paths],
            self.sizes if sizes is None else sizes,
            self.sizes,
            self.counts,
            [classes[label - 1] if 1 <= label <= len(classes) else f"label {label}" for label in labels.tolist()],
            names.astype(np.int64),
            self.boxes * np.stack((width, height, width, height), axis=1).astype(np.float64),
            self.difficult,
            np.arange(len(self.labels)) - np.repeat(self._start, self.counts) + 1,
            [""] * len(self),
            np.ones(len(self), dtype=np.int64),
            np.zeros(len(self), dtype=np.int64),
        )


def annotated_pictures(
    annotations: Annotations,
    classes: Sequence[str],
    difficult: bool = True,
    fix: Fix | None = None,
    findings: Sequence[Finding] = (),
    remarks: Sequence[Finding] = (),
    max_megapixels: float | None = None,
) -> AnnotatedPictures:
    """Return the pictures with all objects that are right or could be fixed, and with the findings about the others.

    Args:
        annotations: annotations of the pictures, in order.
        classes: names in the order of their labels.
        difficult: whether difficult objects are kept.
        fix: treatment of faults, see :data:`~ssd_lightning.data.formats.findings.Fix`; ``None``: every fault is one of
            the ``findings`` of the result, which stop training.
        findings: faults that the reader has found.
        remarks: what the reader has to say beside them.
        max_megapixels: see :class:`AnnotatedPictures`.

    Raises:
        ValueError: if a picture has more than :data:`MOST_OBJECTS` objects.
    """
    if len(annotations.counts) and annotations.counts.max() > MOST_OBJECTS:
        row = int(annotations.counts.argmax())
        raise ValueError(
            f"data: expected at most {MOST_OBJECTS} objects in a picture, got {annotations.counts[row]} in "
            f"{printable(str(annotations.pictures[row]))}. Try parts of the picture."
        )
    found = [*findings, *check_objects(annotations, classes)]
    remarks = [*remarks, *unusual_annotations(annotations)]
    fixed = [finding for finding in found if finding.kind in FIXED[fix]]
    if fixed:
        logger.warning(
            "%d %s faulty and treated with fix=%s. The first: %s",
            len(fixed),
            "object or picture is" if len(fixed) == 1 else "objects or pictures are",
            fix,
            printable(fixed[0].text),
        )
    faulty = faulty_objects(annotations, classes)
    left_out = _left_out(annotations, faulty)
    if faulty.wrong_size.any():
        annotations = annotations.select(np.flatnonzero(~faulty.wrong_size))
        faulty = faulty_objects(annotations, classes)
    boxes = annotations.fractions().clip(0, 1)
    left, top, right, bottom = boxes.T
    kept = ~np.full(len(boxes), faulty.wrong_units) & ~faulty.unknown_class & (left < right) & (top < bottom)
    if fix != "clip":
        kept &= ~faulty.outside
    if not difficult:
        kept &= ~annotations.difficult
    label_of = {name: label for label, name in enumerate(classes, 1)}
    labels = np.array([label_of.get(name, 0) for name in annotations.vocabulary], dtype=np.int64)
    return AnnotatedPictures(
        [Path(picture) for picture in annotations.pictures],
        annotations.sizes,
        np.bincount(annotations.picture_of_object()[kept], minlength=len(annotations.counts)),
        boxes[kept],
        labels[annotations.names[kept]],
        annotations.difficult[kept],
        [finding for finding in found if finding.kind not in FIXED[fix]],
        fixed,
        remarks,
        max_megapixels,
        left_out,
    )


def _left_out(annotations: Annotations, faulty: FaultyObjects) -> list[LeftOut]:
    """Return the first pictures with faults and their faulty boxes, or all boxes if the whole picture is left out."""
    pictures = annotations.picture_of_object()
    faults: dict[Kind, np.ndarray] = {
        "size": faulty.wrong_size[pictures],
        "class": faulty.unknown_class,
        "reversed": faulty.reversed_edges,
        "empty": faulty.empty,
        "outside": faulty.outside,
    }
    if faulty.wrong_units:
        faults = {"units": np.ones(len(pictures), dtype=bool)}
    is_faulty = np.any(list(faults.values()), axis=0)
    boxes = annotations.fractions()
    rows = [np.flatnonzero(is_faulty & (pictures == p)) for p in np.unique(pictures[is_faulty])[:MOST_LEFT_OUT]]
    return [
        LeftOut(
            Path(annotations.pictures[pictures[own[0]]]),
            next(kind for kind, is_kind in faults.items() if is_kind[own].any()),
            boxes[own],
        )
        for own in rows
    ]
