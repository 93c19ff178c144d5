"""A data set as the config group ``data`` gives it, and the checks that it passes before it is trained or scored on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.findings import check_objects, refuse
from ssd_lightning.records import Sample, Truth


@runtime_checkable
class Pictures(Protocol):
    """Pictures with their ground truth, by position.

    :class:`~ssd_lightning.data.formats.annotated_pictures.AnnotatedPictures` are such pictures in files.
    """

    paths: list[Path]

    def __len__(self) -> int: ...

    def truth(self, index: int) -> Truth:
        """Return the ground truth without decoding the picture, so that augmentation can plan first."""

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a picture, possibly reduced, but not below ``least`` (height, width); ``None``: not reduced."""

    def __getitem__(self, index: int) -> Sample:
        """Return the picture in its own size with its ground truth."""


@runtime_checkable
class DetectionData(Protocol):
    """A data set: one entry of the config group ``data``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels; the first has label 1."""

    def prepare(self) -> None:
        """Download or generate what is missing; one process of a machine calls this."""

    def train(self) -> Pictures:
        """Return the pictures to train on."""

    def val(self) -> Pictures:
        """Return the pictures to score on."""


@runtime_checkable
class TestedData(Protocol):
    """A data set that can have pictures for a test, which are scored once, after the training."""

    def test(self) -> Pictures | None:
        """Return the pictures for the test; ``None``: this data set has none."""


def refuse_unusable(splits: Mapping[str, Pictures], classes: tuple[str, ...]) -> None:
    """Refuse data that no training and no scoring can use.

    Args:
        splits: pictures by their purpose in the words of messages, such as ``scoring``.
        classes: names of the object classes.

    Raises:
        ValueError: if there are no pictures for a purpose, the data have a fault that ``fix`` does not deal with, or a
            class is named ``background``.
    """
    for purpose, pictures in splits.items():
        refuse_faulty(pictures, classes)
        if len(pictures) == 0:
            raise ValueError(f"data: expected at least one picture for {purpose}, got none")
    if "background" in classes:
        raise ValueError(
            "data: expected classes of objects, got one called background, which is the name of label 0. "
            "Try another name, or leave the class out."
        )


def refuse_faulty(pictures: Pictures, classes: tuple[str, ...]) -> None:
    """Refuse pictures in files of which one is faulty, or has a faulty object.

    Raises:
        ValueError: with the first fault.
    """
    if isinstance(pictures, AnnotatedPictures):
        refuse([*pictures.findings, *check_objects(pictures.annotations(classes), classes)])


def refuse_data_without_objects(splits: Mapping[str, Pictures]) -> None:
    """Refuse data without a single object to train on, to score on, or in a test.

    Args:
        splits: pictures by their purpose in the words of messages.

    Raises:
        ValueError: naming the purpose that lacks objects.
    """
    for purpose, pictures in splits.items():
        if not any(len(pictures.truth(row).labels) for row in range(len(pictures))):
            raise ValueError(f"data: expected at least one object in the pictures for {purpose}, got none")
