"""The files of YOLO's data sets: text files with the objects of a picture, and the description of a whole data set."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ssd_lightning.data.formats import scalars
from ssd_lightning.data.formats.annotations import WRITINGS, PictureAnnotation, distinct, edges_of
from ssd_lightning.data.pictures import read_header
from ssd_lightning.require import parse_yaml, read_bytes

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest text file that is read. A line of an object has about 40 bytes."""

LARGEST_DESCRIPTION = 2**20
"""Bytes of the largest description of a data set. A name of a class has some 10 bytes."""

LONGEST = 50
"""Number of letters of a wrong value that a message shows."""

MOST_CLASSES = 10**6
"""Number from which a class number is a mistake."""

SHAPES = "class cx cy w h, or class x1 y1 x2 y2 … of a polygon"
"""The possible contents of a line."""

NOTHING = ("", "~", "null", "Null", "NULL")
"""Spellings of a missing value in yaml."""


SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Keys of a description for each split."""


class Description(NamedTuple):
    """The content of a ``data.yaml``."""

    path: str
    """The file, for messages."""
    names: dict[int, str]
    """Class names by number."""
    splits: dict[str, list[str]]
    """Folders or lists of the splits ``train``, ``val`` and ``test``, as they are written."""
    keypoints: int
    """Number of values after the box in a line that describes a pose."""


def lines_of(path: str) -> list[str]:
    """Return the lines of a text file without the spaces around them.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is no text; the message names it.
    """
    text = scalars.text_of(read_bytes(path, LARGEST_FILE), path)
    return [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def read_names(path: str) -> dict[int, str]:
    """Return the class names in a file with one name in each line, by number."""
    return _named([line for line in lines_of(path) if line], path)


def read_labels(path: str, picture: str, keypoints: int = 0, max_megapixels: float | None = None) -> PictureAnnotation:
    """Read the objects of one picture, whose classes are the numbers in the file as text.

    Args:
        path: the text file; if there is none, the picture has no objects.
        picture: its picture.
        keypoints: number of values after the box in a line that describes a pose.
        max_megapixels: see :func:`~ssd_lightning.data.pictures.read_header`.

    Raises:
        ValueError: if a line or the picture cannot be read; the message names the file and the line.
    """
    header = read_header(Path(picture), max_megapixels)
    try:
        lines = lines_of(path)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    objects = [
        _object(f"{path}, line {number}", line, keypoints, number) for number, line in enumerate(lines, 1) if line
    ]
    height, width = header.size
    told = np.array([one.edges for one in objects], dtype=np.float64).reshape(-1, 4)
    return PictureAnnotation(
        path,
        picture,
        header.size,
        (0, 0),
        [str(one.label) for one in objects],
        [(left, top, right, bottom) for left, top, right, bottom in (told * (width, height, width, height)).tolist()],
        [False] * len(objects),
        [one.line for one in objects],
        orientation=header.orientation,
        polygons=sum(one.is_polygon for one in objects),
    )


def has_labels(path: str) -> bool:
    """Return whether the first line of a text file describes an object."""
    try:
        first = next((line for line in lines_of(path) if line), "")
        return bool(first) and _object(path, first, 0, 1) is not None
    except (OSError, ValueError):
        return False


class _Object(NamedTuple):
    label: int
    edges: tuple[float, float, float, float]
    """xyxy, as fractions of the picture."""
    line: int
    is_polygon: bool


def _object(place: str, text: str, keypoints: int, line: int) -> _Object:
    first, *others = text.split()
    label = scalars.number(first)
    if not (0 <= label < MOST_CLASSES and label == int(label)):
        raise ValueError(
            f"{place}: expected the number of a class, got {first[:LONGEST]!r}. Try lines such as 0 0.5 0.5 0.2 0.1."
        )
    numbers = [scalars.number(other) for other in others]
    wrong = [other for other, number in zip(others, numbers, strict=True) if not math.isfinite(number)]
    if wrong:
        raise ValueError(f"{place}: expected numbers ({SHAPES}), got {wrong[0][:LONGEST]!r}")
    if len(numbers) == 4 + keypoints:
        (edges,) = edges_of(np.array([numbers[:4]]), WRITINGS["yolo"].order).tolist()
        return _Object(int(label), tuple(edges), line, is_polygon=False)
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{place}: expected {SHAPES}, got {len(others) + 1} values")
    across, down = numbers[::2], numbers[1::2]
    return _Object(int(label), (min(across), min(down), max(across), max(down)), line, is_polygon=True)


def read_description(path: str) -> Description:
    """Read a ``data.yaml``.

    Raises:
        ValueError: if the file cannot be read, or is no such description; the message names it.
    """
    try:
        text = scalars.text_of(read_bytes(path, LARGEST_DESCRIPTION), path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as yaml ({error})") from error
    try:
        # A class may be called "no" or "1.0".
        content = parse_yaml(text.encode(), as_text=True, has_aliases=True)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as yaml ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as names, train and val, got {_kind(content)}")
    names = _names(content.get("names", ""), path)
    count = content.get("nc", "")
    if names and isinstance(count, str) and count not in NOTHING and scalars.number(count) != len(names):
        raise ValueError(f"{path}: nc: expected {len(names)}, the number of names, got {count}")
    folder = content.get("path", "")
    start = f"{folder}/" if isinstance(folder, str) and folder not in NOTHING else ""
    splits = {}
    for split, keys in SPLIT_KEYS.items():
        value = next((content[key] for key in keys if key in content), "")
        entries = value if isinstance(value, list) else [] if value in NOTHING else [value]
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise ValueError(
                f"{path}: {split}: expected a folder or a list of pictures, or several, got {_kind(value)}"
            )
        if entries:
            splits[split] = [f"{start}{entry}" for entry in entries]
    return Description(path, names, splits, _keypoints(content.get("kpt_shape", ""), path))


def _names(value: Any, path: str) -> dict[int, str]:
    if isinstance(value, str) and value in NOTHING:
        return {}
    if isinstance(value, list):
        return _named(value, path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: names: expected a list of names, or names by number, got {_kind(value)}")
    numbers = [scalars.number(key) for key in value]
    if not all(0 <= number < MOST_CLASSES and number == int(number) for number in numbers):
        raise ValueError(f"{path}: names: expected names by number, such as 0: cat, got {_kind(next(iter(value)))}")
    if len(set(map(int, numbers))) < len(numbers):
        raise ValueError(f"{path}: names: expected each number once, got {_kind(', '.join(map(str, value)))}")
    return dict(zip(map(int, numbers), _named(list(value.values()), path).values(), strict=True))


def _named(names: list[Any], path: str) -> dict[int, str]:
    wrong = next(
        (name for name in names if not (isinstance(name, str) and name.strip() and scalars.is_text(name))), None
    )
    if wrong is not None:
        raise ValueError(f"{path}: names: expected a text for each class, got {_kind(wrong)}")
    try:
        return dict(enumerate(distinct(name.strip() for name in names))) if names else {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _keypoints(value: Any, path: str) -> int:
    if isinstance(value, str) and value in NOTHING:
        return 0
    sides = [scalars.number(side) for side in value] if isinstance(value, list) else []
    if not (sides and all(1 <= side < MOST_CLASSES and side == int(side) for side in sides)):
        raise ValueError(f"{path}: kpt_shape: expected two numbers such as [17, 3], got {_kind(value)}")
    return math.prod(map(int, sides))


def _kind(value: Any) -> str:
    """Return a value for a message; a nested one may be huge."""
    if isinstance(value, str):
        return repr(value[:LONGEST])
    return "nothing" if value is None else "a list" if isinstance(value, list) else "keys with values"
