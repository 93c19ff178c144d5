"""Checks of picture files and their ground truth: whether every picture can be decoded, and what occurs twice."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.cache import in_parallel
from ssd_lightning.data.formats.findings import Finding, check_objects
from ssd_lightning.data.pictures import picture_size, read_picture
from ssd_lightning.require import require_regular


class Content(NamedTuple):
    """The result of decoding a picture file."""

    digest: str
    """Hash of the file, the same for files of the same bytes; empty if it cannot be read."""
    size: tuple[int, int] | None
    """(height, width), upright; ``None`` if the file is no picture."""
    fault: Finding | None


def read_contents(paths: list[Path], max_megapixels: float | None = None) -> list[Content]:
    """Decode every picture once, in parallel, with a progress bar on a terminal.

    Args:
        paths: picture files.
        max_megapixels: see :func:`~ssd_lightning.data.pictures.read_header`.
    """
    return in_parallel(lambda path: _content(path, max_megapixels), paths, "Decoding pictures")


def _content(path: Path, max_megapixels: float | None) -> Content:
    digest = ""
    try:
        require_regular(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = picture_size(path, max_megapixels)
    except OSError as error:
        return Content("", None, Finding("unreadable", f"{path}: cannot be read as a picture ({error})"))
    except ValueError as error:
        return Content(digest, None, Finding("unreadable", str(error)))
    try:
        read_picture(path, max_megapixels=max_megapixels)
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
    right.findings, right.fixed, right.remarks = [], pictures.fixed, pictures.remarks
    right.max_megapixels = pictures.max_megapixels
    right.left_out = pictures.left_out or right.left_out
    return right, found


def same_pictures(
    splits: Mapping[str, AnnotatedPictures], contents: Sequence[Content]
) -> tuple[list[Finding], list[Finding]]:
    """Find pictures that occur in several splits, and pictures that occur twice in one of them.

    Args:
        splits: pictures by their purpose, such as ``training``.
        contents: the files of all splits, in the same order.
    """
    places: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    paths = ((purpose, path) for purpose, pictures in splits.items() for path in pictures.paths)
    for (purpose, path), content in zip(paths, contents, strict=True):
        if content.digest:
            places[content.digest][purpose].append(path)
    in_both = [
        Finding("both", f"{theirs[0]}: expected a picture for {other} alone, got one that is for {one}, too: {own[0]}")
        for sides in places.values()
        for (one, own), (other, theirs) in combinations(sides.items(), 2)
    ]
    twice = [
        Finding("same", f"{side[1]} is the same picture as {side[0]}")
        for sides in places.values()
        for side in sides.values()
        if len(side) > 1
    ]
    return in_both, twice


LONG_NAME = 5
"""Least length of names that may be one name with a typing error. Shorter names, as cat and car, are often alike."""


def odd_names(classes: tuple[str, ...]) -> list[Finding]:
    """Find classes whose names differ only in case, spaces or punctuation, or in one letter of a long name."""
    alike = defaultdict(list)
    for name in classes:
        alike["".join(character for character in name.casefold() if character.isalnum())].append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    pairs = combinations((key for key in alike if len(key) >= LONG_NAME), 2)
    groups += [[*alike[first], *alike[second]] for first, second in pairs if _may_be_mistyped(first, second)]
    return [Finding("names", f"may be one class: {', '.join(map(repr, names))}") for names in groups]


def _may_be_mistyped(first: str, second: str) -> bool:
    """Return True if names differ by one letter that is no digit, or by two swapped neighbours."""
    if abs(len(first) - len(second)) > 1:
        return False
    start = _common_start(first, second)
    one, other = first[start:], second[start:]
    end = _common_start(one[::-1], other[::-1])
    one, other = one[: len(one) - end], other[: len(other) - end]
    if any(character.isdigit() for character in one + other):
        return False
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def _common_start(first: str, second: str) -> int:
    pairs = zip(first, second, strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def absent_classes(pictures: AnnotatedPictures, classes: tuple[str, ...], purpose: str) -> list[Finding]:
    """Find classes without any object; ``purpose`` is what the pictures are for, such as ``training``."""
    counts = np.bincount(pictures.labels, minlength=len(classes) + 1)[1:]
    return [Finding("absent", f"no object for {purpose}: {classes[row]!r}") for row in np.flatnonzero(counts == 0)]


def tiny_objects(pictures: AnnotatedPictures) -> list[Finding]:
    """Find objects of at most one pixel, which may be mistaken clicks."""
    picture = np.repeat(np.arange(len(pictures)), pictures.counts)
    sides = (pictures.boxes[:, 2:] - pictures.boxes[:, :2]) * pictures.sizes[picture][:, ::-1]
    rows = np.flatnonzero((sides <= 1 + ROUNDING).all(axis=1))
    rows_of = Counter(picture[rows].tolist())
    return [Finding("tiny", f"{pictures.paths[row]} has objects of one pixel: {n}") for row, n in rows_of.items()]


ROUNDING = 1e-2
"""Pixels that a side may be too long because boxes are fractions in float32."""


def repeated_objects(pictures: AnnotatedPictures) -> list[Finding]:
    """Find objects of the same class with the same box in the same picture."""
    picture = np.repeat(np.arange(len(pictures)), pictures.counts)
    rows = np.column_stack((picture, pictures.labels, pictures.boxes))
    _, first, count = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return [
        Finding("same", f"{pictures.paths[picture[row]]} has {times} objects of one class with the same box")
        for row, times in sorted(zip(first[count > 1].tolist(), count[count > 1].tolist(), strict=True))
    ]
