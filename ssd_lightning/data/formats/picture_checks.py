"""Checks of picture files and their ground truth: whether every picture can be decoded, and what occurs twice."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.cache import in_parallel
from ssd_lightning.data.formats.findings import Finding, check_objects
from ssd_lightning.data.pictures import picture_size, read_picture


class Content(NamedTuple):
    """The result of decoding a picture file."""

    digest: str
    """Hash of the file, the same for files of the same bytes; empty if it cannot be read."""
    size: tuple[int, int] | None
    """(height, width), upright; ``None`` if the file is no picture."""
    fault: Finding | None


def read_contents(paths: list[Path]) -> list[Content]:
    """Decode every picture once, in parallel, with a progress bar on a terminal."""
    return in_parallel(_content, paths, "Decoding pictures")


def _content(path: Path) -> Content:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = picture_size(path)
    except OSError as error:
        return Content("", None, Finding("unreadable", f"{path}: cannot be read as a picture ({error})"))
    except ValueError as error:
        return Content(digest, None, Finding("unreadable", str(error)))
    try:
        read_picture(path)
    except ValueError as error:
        return Content(digest, size, Finding("undecodable", str(error)))
    return Content(digest, size, None)


def checked(
    pictures: AnnotatedPictures, classes: Sequence[str], contents: Sequence[Content]
) -> tuple[AnnotatedPictures, list[Finding]]:
    """Check the pictures of any data set against their files; return what is right, and all findings.

    Args:
        pictures: one split of the data set.
        classes: names in the order of their labels.
        contents: the files of ``pictures``.
    """
    sizes = [content.size or size for content, size in zip(contents, pictures.sizes.tolist(), strict=True)]
    annotations = pictures.annotations(classes, np.array(sizes, dtype=np.int64).reshape(-1, 2))
    found = [
        *pictures.findings,
        *(content.fault for content in contents if content.fault is not None),
        *check_objects(annotations, classes),
    ]
    right = annotated_pictures(annotations, classes)
    right.findings, right.fixed = [], pictures.fixed
    return right, found


def same_pictures(
    train: AnnotatedPictures, val: AnnotatedPictures, contents: list[Content]
) -> tuple[list[Finding], list[Finding]]:
    """Find pictures that occur in training and in scoring, and pictures that occur twice in one of the two.

    Args:
        train: pictures to train on.
        val: pictures to score on.
        contents: files of ``train``, then of ``val``.
    """
    places: dict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for row, (path, content) in enumerate(zip([*train.paths, *val.paths], contents, strict=True)):
        if content.digest:
            places[content.digest][row >= len(train)].append(path)
    in_both = [
        Finding(
            "both", f"{theirs[0]}: expected a picture that is only scored on, got one that is trained on as {own[0]}"
        )
        for own, theirs in places.values()
        if own and theirs
    ]
    twice = [
        Finding("same", f"{side[1]} is the same picture as {side[0]}")
        for sides in places.values()
        for side in sides
        if len(side) > 1
    ]
    return in_both, twice


def odd_names(classes: tuple[str, ...]) -> list[Finding]:
    """Find classes whose names differ only in case, spaces or punctuation."""
    alike = defaultdict(list)
    for name in classes:
        alike["".join(character for character in name.casefold() if character.isalnum())].append(name)
    return [Finding("names", f"may be one class: {', '.join(map(repr, n))}") for n in alike.values() if len(n) > 1]


def absent_classes(train: AnnotatedPictures, classes: tuple[str, ...]) -> list[Finding]:
    """Find classes without any object to train on."""
    counts = np.bincount(train.labels, minlength=len(classes) + 1)[1:]
    return [Finding("absent", f"no object to train on: {classes[row]!r}") for row in np.flatnonzero(counts == 0)]


def repeated_objects(pictures: AnnotatedPictures) -> list[Finding]:
    """Find objects of the same class with the same box in the same picture."""
    picture = np.repeat(np.arange(len(pictures)), pictures.counts)
    rows = np.column_stack((picture, pictures.labels, pictures.boxes))
    _, first, count = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return [
        Finding("same", f"{pictures.paths[picture[row]]} has {times} objects of one class with the same box")
        for row, times in sorted(zip(first[count > 1].tolist(), count[count > 1].tolist(), strict=True))
    ]
