"""What only decoding tells: whether every picture can be read, and which are the same."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.data.formats.annotations import AnnotatedPictures, Finding
from ssd_lightning.data.formats.cache import in_parallel
from ssd_lightning.data.pictures import read_picture


class Content(NamedTuple):
    """Of one picture file."""

    digest: str
    """The same for files of the same bytes; empty if there is none."""
    error: str
    """Why it cannot be decoded; empty if it can."""


def read_contents(paths: list[Path]) -> list[Content]:
    """Every picture decoded once, in parallel, with a progress bar on a terminal."""
    return in_parallel(_content, paths, "Decoding pictures")


def _content(path: Path) -> Content:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return Content("", f"{path}: cannot be read as a picture ({error})")
    try:
        read_picture(path)
    except ValueError as error:
        return Content(digest, str(error))
    return Content(digest, "")


def undecodable(contents: list[Content]) -> list[Finding]:
    return [Finding("undecodable", content.error) for content in contents if content.error]


def same_pictures(
    train: AnnotatedPictures, val: AnnotatedPictures, contents: list[Content]
) -> tuple[list[Finding], list[Finding]]:
    """Pictures that are scored on after training on them, and pictures that are there twice on one side.

    Args:
        contents: of the pictures of ``train``, then of ``val``.
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
    """Classes whose names differ in case, spaces or punctuation alone."""
    alike = defaultdict(list)
    for name in classes:
        alike["".join(character for character in name.casefold() if character.isalnum())].append(name)
    return [Finding("names", f"may be one class: {', '.join(map(repr, n))}") for n in alike.values() if len(n) > 1]


def absent_classes(train: AnnotatedPictures, classes: tuple[str, ...]) -> list[Finding]:
    """Classes that cannot be learned."""
    counts = np.bincount(train.labels, minlength=len(classes) + 1)[1:]
    return [Finding("absent", f"no object to train on: {classes[row]!r}") for row in np.flatnonzero(counts == 0)]


def repeated_objects(pictures: AnnotatedPictures) -> list[Finding]:
    """Objects of the same class with the same box in the same picture."""
    picture = np.repeat(np.arange(len(pictures)), pictures.counts)
    rows = np.column_stack((picture, pictures.labels, pictures.boxes))
    _, first, count = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return [
        Finding("same", f"{pictures.paths[picture[row]]} has {times} objects of one class with the same box")
        for row, times in sorted(zip(first[count > 1].tolist(), count[count > 1].tolist(), strict=True))
    ]
