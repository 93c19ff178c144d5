"""The banana detection data set of Dive into Deep Learning (d2l.ai, section 14.6), and a generated stand-in.

Both have the same layout: ``bananas_{train,val}/images/N.png`` and ``label.csv`` beside ``images`` with the columns
``img_name, label, xmin, ymin, xmax, ymax`` in pixels, label 0 being the banana. A picture without a row has no objects.
"""

import csv
import io
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from ssd_lightning.data.bananas.generator import generate_bananas
from ssd_lightning.data.download import Archive, download_and_extract
from ssd_lightning.data.formats.annotations import AnnotatedPictures
from ssd_lightning.data.pictures import PICTURE_SUFFIXES, picture_size

CLASSES = ("banana",)
COLUMNS = ("img_name", "label", "xmin", "ymin", "xmax", "ymax")

FOLDER_IN_ARCHIVE = "banana-detection"

ARCHIVE = Archive(
    name="banana-detection.zip",
    urls=("http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip",),
    checksum="sha1:5de26c8fce5ccdea9f91267273464dc968d20d72",
)


class Bananas:
    """The real pictures: 1000 for training, 100 for validation.

    Args:
        root: folder that holds ``bananas_train`` and ``bananas_val``, or to which they are downloaded.
        download_to: the only folder to which they may be, so that no other is filled by mistake; ``None``: any.
    """

    classes = CLASSES

    def __init__(self, root: Path | str, download_to: Path | str | None = None) -> None:
        self.root = Path(root).expanduser()
        self.download_to = None if download_to is None else Path(download_to).expanduser()

    def prepare(self) -> None:
        """Download if need be. Called by one process of a machine.

        Raises:
            ValueError: if there are no bananas in ``root``, and it is not to be filled.
            DownloadError: saying which file to put where.
        """
        if any(self._split(name).is_dir() for name in ("train", "val")):
            return
        if not (self.download_to in (None, self.root) or (self.root / ARCHIVE.name).exists()):
            raise ValueError(
                f"data.root: expected a folder that holds bananas_train and bananas_val, got {self.root}; "
                f"they are downloaded to {self.download_to} alone"
            )
        hint = "Or use data=banana_generated, which needs no download."
        download_and_extract(ARCHIVE, self.root, PurePath(FOLDER_IN_ARCHIVE), hint=hint)

    def train(self) -> "BananaPictures":
        return BananaPictures(self._split("train"))

    def val(self) -> "BananaPictures":
        return BananaPictures(self._split("val"))

    def _split(self, name: str) -> Path:
        extracted = self.root / FOLDER_IN_ARCHIVE
        is_at_root = any((self.root / f"bananas_{split}").is_dir() for split in ("train", "val"))
        return (extracted if extracted.is_dir() and not is_at_root else self.root) / f"bananas_{name}"


class GeneratedBananas(Bananas):
    """Drawn bananas, with boxes as in the real data set; made once, in some seconds.

    Args:
        root: folder to write to.
        num_train, num_val: pictures of each split.
        min_bananas, max_bananas: in each picture.
        seed: of the drawing.
    """

    def __init__(
        self,
        root: Path | str,
        num_train: int = 1000,
        num_val: int = 100,
        min_bananas: int = 1,
        max_bananas: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(root)
        self.settings = {
            "num_train": num_train,
            "num_val": num_val,
            "min_bananas": min_bananas,
            "max_bananas": max_bananas,
            "seed": seed,
        }

    def prepare(self) -> None:
        generate_bananas(self.root, **self.settings)

    def _split(self, name: str) -> Path:
        return self.root / f"bananas_{name}"


class BananaPictures(AnnotatedPictures):
    """One split, as samples by position.

    Everything is read once at the start, so that a bad file stops a run before it begins.

    Args:
        folder: with ``images`` and ``label.csv``.

    Raises:
        ValueError: naming the file, the line and what is wrong with it.
    """

    classes = CLASSES

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        labels, images = folder / "label.csv", folder / "images"
        for path, what in ((labels, "a label.csv"), (images, "a folder images")):
            if not path.exists():
                raise ValueError(f"{path} is missing: a banana data set has {what} in {folder}")
        paths = sorted(
            (path for path in images.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES),
            key=lambda path: (len(path.name), path.name),
        )
        if not paths:
            raise ValueError(f"{images}: no pictures here")
        with ThreadPoolExecutor() as pool:
            sizes = dict(zip((path.name for path in paths), pool.map(picture_size, paths), strict=True))
        rows: dict[str, list[_Row]] = {path.name: [] for path in paths}
        for row in _read_rows(labels):
            if row.name not in rows:
                raise ValueError(f"{row.place}: picture {images / row.name} is missing")
            _check_box(row, *sizes[row.name])
            rows[row.name].append(row)
        in_order = [row for path in paths for row in rows[path.name]]
        super().__init__(
            paths,
            np.array([sizes[path.name] for path in paths]),
            np.array([len(rows[path.name]) for path in paths]),
            np.concatenate([_as_fractions(rows[path.name], *sizes[path.name]) for path in paths]),
            np.array([row.label + 1 for row in in_order], dtype=np.int64),
        )


class _Row(NamedTuple):
    place: str
    """File and line, for errors."""
    name: str
    label: int
    box: tuple[float, ...]


def _read_rows(path: Path) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from error
    reader = csv.DictReader(io.StringIO(text), restval="", strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: column {missing[0]} is missing, expected the columns {', '.join(COLUMNS)}")
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if not row["img_name"]:
                raise ValueError(f"{place}: img_name: expected the name of a picture, got ''")
            yield _Row(place, row["img_name"], _label(place, row["label"]), tuple(_edges(place, row)))
    except csv.Error as error:
        # After the last that was read, since a quote that is never closed goes on to the end.
        rest = enumerate(text.split("\n")[reader.line_num :], reader.line_num + 1)
        line = next(number for number, content in rest if content)
        raise ValueError(f"{path}, line {line}: cannot be read as csv ({error})") from error


def _label(place: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= len(CLASSES):
        raise ValueError(f"{place}: label: expected a whole number below {len(CLASSES)}, got {text!r}")
    return int(text)


def _edges(place: str, row: dict[str, str]) -> Iterator[float]:
    for column in COLUMNS[2:]:
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{place}: {column}: expected a number of pixels, got {row[column]!r}")
        yield value


def _check_box(row: _Row, height: int, width: int) -> None:
    left, top, right, bottom = row.box
    if not (left < right and top < bottom):
        raise ValueError(
            f"{row.place}: expected xmin < xmax and ymin < ymax, got xmin={left:g} xmax={right:g} "
            f"ymin={top:g} ymax={bottom:g}"
        )
    if min(left, top) < 0 or right > width or bottom > height:
        raise ValueError(
            f"{row.place}: expected a box inside {row.name} of {width}×{height} pixels, got xmin={left:g} ymin={top:g} "
            f"xmax={right:g} ymax={bottom:g}"
        )


def _as_fractions(rows: list[_Row], height: int, width: int) -> np.ndarray:
    boxes = np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4)
    return boxes / np.array([width, height, width, height], dtype=np.float32)
