"""The splits of a data set: pictures to train on, pictures to score on, and pictures for the test at the end."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import Annotations, BoxesOf, check_boxes_of, distinct, stratified
from ssd_lightning.data.formats.findings import Finding, Fix, check_fix
from ssd_lightning.require import require_number

logger = logging.getLogger(__name__)

SPLITS = (("train", ("val", "valid", "validation", "test")), ("trainval", ("test",)))
"""Possible names of the pictures to train on, and to score on with them. ``test`` after another one is the test."""


SPLIT_NAMES = {name for train, others in SPLITS for name in (train, *others)}
"""All these names."""

PURPOSES = ("training", "scoring", "the test")
"""The purposes of the splits, for messages."""


class Names(NamedTuple):
    """Names of the splits of a data set."""

    train: str
    val: str | None
    test: str | None


def usual_splits(names: Collection[str]) -> Names | None:
    """Return the names of splits among names in lower case; ``None`` if there are no pictures to train on."""
    found = [(train, [name for name in others if name in names]) for train, others in SPLITS if train in names]
    # A split to score on decides between train and trainval.
    for train, others in sorted(found, key=lambda names: not names[1]):
        return Names(train, others[0] if others else None, "test" if "test" in others[1:] else None)
    return None


def as_list(names: str | float | Iterable[str | float] | None) -> list[str] | None:
    """Return names, of which a single one may be given as a text, as a list."""
    if names is None:
        return None
    # A name such as 2007 is a number for the command line.
    return [str(name) for name in names] if isinstance(names, Iterable) and not isinstance(names, str) else [str(names)]


class Splits(NamedTuple):
    """The annotations of a data set, split by split, and what was found in reading them."""

    train: Annotations
    val: Annotations | None
    """``None``: a share of the pictures to train on is drawn."""
    test: Annotations | None
    """``None``: the data set has no test."""
    findings: list[Finding]
    remarks: list[Finding]

    def without_objects(self) -> list[tuple[str, str]]:
        """Return the sources and the pictures, each once, of the pictures without objects."""
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        empty = [(part, row) for part in parts for row in np.flatnonzero(part.counts == 0)]
        return list(dict.fromkeys((part.sources[row], part.pictures[row]) for part, row in empty))


class SplitData(ABC):
    """A data set whose splits are in files or drawn; subclasses provide a reader.

    Args:
        root: folder of the data.
        classes: names in the order of their labels. ``None``: all names that occur, sorted.
        difficult: whether difficult objects are trained on, as in the paper. In scoring they are neither found nor
            missed in any case.
        fix: treatment of faults, see :data:`~ssd_lightning.data.formats.findings.Fix`; ``None``: training stops at the
            first fault.
        val_share: share of the pictures to score on, which is drawn class by class if no split says otherwise.
        test_share: share of the pictures for a test, which is drawn in the same way; 0: no test is drawn.
        seed: seed of the draw.
        boxes_of: the pixels that boxes refer to where EXIF data turn a picture: ``shown``, as a viewer shows them, or
            ``stored``, as the file stores them.
        max_megapixels: largest picture that is read, in millions of pixels; ``None``: Pillow's own limit. A small file
            can be a picture that fills the memory.
    """

    searched = "annotated pictures"
    """Name of the parts of a split, for messages."""

    def __init__(
        self,
        root: Path | str,
        classes: Sequence[str] | None = None,
        difficult: bool = True,
        fix: Fix | None = None,
        val_share: float = 0.2,
        test_share: float = 0.0,
        seed: int = 0,
        boxes_of: BoxesOf = "shown",
        max_megapixels: float | None = None,
    ) -> None:
        check_fix(fix)
        check_boxes_of(boxes_of)
        if max_megapixels is not None:
            require_number("max_megapixels", max_megapixels, "(0, inf)")
        require_number("val_share", val_share, "(0, 1)")
        require_number("test_share", test_share, "[0, 1)")
        if val_share + test_share >= 1:
            raise ValueError(f"val_share + test_share: expected less than 1, got {val_share} + {test_share}")
        self.root = Path(root).expanduser()
        self.given_classes = None if classes is None else distinct(classes)
        self.difficult = difficult
        self.fix: Fix | None = fix
        self.val_share, self.test_share, self.seed = val_share, test_share, seed
        self.boxes_of: BoxesOf = boxes_of
        self.max_megapixels = max_megapixels

    @abstractmethod
    def read(self) -> Splits:
        """Read all annotations.

        Raises:
            ValueError: if a file with annotations of many pictures cannot be read.
        """

    def prepare(self) -> None:
        """Check that the folder exists; nothing is downloaded.

        Raises:
            ValueError: if the folder does not exist.
        """
        if not self.root.is_dir():
            raise ValueError(f"data.root: expected a folder, got {self.root}, which does not exist")

    @cached_property
    def annotations(self) -> Splits:
        """All annotations, with the splits that are drawn.

        Raises:
            ValueError: as :meth:`read`, or if there are no pictures in a split.
        """
        train, val, test, findings, remarks = self.read()
        found = len(train.sources)
        val_share = self.val_share
        if test is None and self.test_share:
            train, test = self._draw(train, self.test_share)
            val_share /= 1 - self.test_share
        if val is None:
            train, val = self._draw(train, val_share)
            drawn = f"{len(val.sources)} of {found} pictures are drawn for scoring"
            logger.info("%s: no split found, %s", self.root, drawn)
        for purpose, part in zip(PURPOSES, (train, val, test), strict=True):
            if part is not None and not part.sources and not findings:
                raise ValueError(f"data.root: expected {self.searched} for {purpose}, got none in {self.root}")
        return Splits(
            train.with_boxes_of(self.boxes_of),
            val.with_boxes_of(self.boxes_of),
            None if test is None else test.with_boxes_of(self.boxes_of),
            findings,
            remarks,
        )

    def _draw(self, annotations: Annotations, share: float) -> tuple[Annotations, Annotations]:
        kept, drawn = stratified(annotations, share, self.seed)
        return annotations.select(kept), annotations.select(drawn)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels."""
        if self.given_classes is not None:
            return self.given_classes
        train, val, test, *_ = self.annotations
        return tuple(sorted({name for part in (train, val, test) if part is not None for name in _used(part)}))

    def train(self) -> AnnotatedPictures:
        """Return the training pictures, with all findings."""
        train, _, _, _, remarks = self.annotations
        return self._with_findings(train, self.difficult, remarks)

    def val(self) -> AnnotatedPictures:
        """Return the pictures to score on, with all findings."""
        assert self.annotations.val is not None
        return self._with_findings(self.annotations.val)

    def test(self) -> AnnotatedPictures | None:
        """Return the pictures for the test at the end of a training, with all findings; ``None`` if there are none."""
        test = self.annotations.test
        return None if test is None else self._with_findings(test)

    def _with_findings(
        self, annotations: Annotations, difficult: bool = True, remarks: Sequence[Finding] = ()
    ) -> AnnotatedPictures:
        return annotated_pictures(
            annotations,
            self.classes,
            difficult,
            self.fix,
            self.annotations.findings,
            remarks,
            self.max_megapixels,
        )


def _used(annotations: Annotations) -> list[str]:
    """Return the class names that occur, without the empty name, so that objects without a name are findings."""
    return [name for name in (annotations.vocabulary[number] for number in np.unique(annotations.names)) if name]
