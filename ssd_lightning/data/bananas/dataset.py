"""The banana detection data set of Dive into Deep Learning (d2l.ai, section 14.6), and a generated stand-in.

Both have the same layout: ``bananas_{train,val}/images/N.png``, and beside ``images`` a ``label.csv`` with the columns
``img_name, label, xmin, ymin, xmax, ymax`` in pixels, label 0 being the banana. A picture without a row has no objects.
"""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from ssd_lightning.data.bananas.generator import generate_bananas
from ssd_lightning.data.download import Archive, download_and_extract
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import PictureAnnotation, as_columns
from ssd_lightning.data.formats.cache import in_parallel
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.data.pictures import PICTURE_SUFFIXES, picture_size
from ssd_lightning.require import read_bytes

CLASSES = ("banana",)

COLUMNS = ("img_name", "label", "xmin", "ymin", "xmax", "ymax")

FOLDER_IN_ARCHIVE = "banana-detection"
"""The folder in the archive that holds both splits."""

ARCHIVE = Archive(
    name="banana-detection.zip",
    urls=("http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip",),
    checksum="sha1:5de26c8fce5ccdea9f91267273464dc968d20d72",
)


LARGEST_LABELS = 2**30
"""Bytes of the largest ``label.csv`` that is read."""


class Bananas:
    """The real pictures: 1000 for training, 100 for validation.

    Args:
        root: folder that holds ``bananas_train`` and ``bananas_val``, or is to be filled with them.
        download_to: the only folder that a download may fill, so that a mistyped ``root`` is found; ``None``: any.
    """

    classes = CLASSES

    def __init__(self, root: Path | str, download_to: Path | str | None = None) -> None:
        self.root = Path(root).expanduser()
        self.download_to = None if download_to is None else Path(download_to).expanduser()

    def prepare(self) -> None:
        """Download the data set if it is not there.

        Raises:
            ValueError: if there are no bananas in ``root``, and ``root`` is not the folder for downloads.
            DownloadError: if the archive cannot be downloaded; the message says which file to put where.
        """
        if any(self._split(name).is_dir() for name in ("train", "val")):
            return
        if not (self.download_to in (None, self.root) or (self.root / ARCHIVE.name).exists()):
            raise ValueError(
                f"data.root: expected a folder that holds bananas_train and bananas_val, got {self.root}. "
                f"Try data.root={self.download_to}, the only folder for downloads."
            )
        hint = "Or use data=banana_generated, which needs no download."
        download_and_extract(ARCHIVE, self.root, PurePath(FOLDER_IN_ARCHIVE), hint=hint)

    def train(self) -> AnnotatedPictures:
        """Return the training pictures, with all findings."""
        return read_bananas(self._split("train"))

    def val(self) -> AnnotatedPictures:
        """Return the pictures to score on, with all findings."""
        return read_bananas(self._split("val"))

    def _split(self, name: str) -> Path:
        extracted = self.root / FOLDER_IN_ARCHIVE
        is_at_root = any((self.root / f"bananas_{split}").is_dir() for split in ("train", "val"))
        return (extracted if extracted.is_dir() and not is_at_root else self.root) / f"bananas_{name}"


class GeneratedBananas(Bananas):
    """Drawn bananas in the layout of the real data set; they are drawn once, within seconds.

    Args:
        root: folder to write to.
        num_train: number of pictures to train on.
        num_val: number of pictures to score on.
        min_bananas: smallest number of bananas in a picture.
        max_bananas: largest number of bananas in a picture.
        seed: seed of the drawing.
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
        """Draw the pictures if they are not there."""
        generate_bananas(self.root, **self.settings)

    def _split(self, name: str) -> Path:
        return self.root / f"bananas_{name}"


def read_bananas(folder: Path) -> AnnotatedPictures:
    """Read one split, with the header of every picture, so that faults are found before a run begins.

    Args:
        folder: folder with ``images`` and ``label.csv``.

    Raises:
        ValueError: if ``images`` or ``label.csv`` is missing or not in this layout. Faults of single rows and pictures
            are findings of the result.
    """
    labels, images = folder / "label.csv", folder / "images"
    for path in (labels, images):
        if not path.exists():
            raise ValueError(f"{path}: expected {path.name} in every split of a banana data set, got none")
    paths = sorted(
        (path for path in images.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES),
        key=lambda path: (len(path.name), path.name),
    )
    if not paths:
        raise ValueError(f"{images}: expected pictures, got none")
    findings = []
    rows: dict[str, list[_Row]] = {path.name: [] for path in paths}
    for row in _read_rows(labels):
        if isinstance(row, _Row) and row.name not in rows:
            row = Finding("unreadable", f"{row.place}: img_name: expected a picture in {images}, got {row.name!r}")
        if isinstance(row, _Row):
            rows[row.name].append(row)
        else:
            findings.append(row)
    annotations = []
    for path, size in zip(paths, in_parallel(_size, paths, "Reading pictures"), strict=True):
        if isinstance(size, Finding):
            findings.append(size)
            continue
        own = rows[path.name]
        names, boxes = [CLASSES[row.label] for row in own], [row.box for row in own]
        source = f"{labels}, {path.name}"
        annotations.append(PictureAnnotation(source, str(path), size, (0, 0), names, boxes, [False] * len(own)))
    return annotated_pictures(as_columns(annotations, "edges"), CLASSES, findings=findings)


def _size(path: Path) -> tuple[int, int] | Finding:
    try:
        return picture_size(path)
    except ValueError as error:
        return Finding("unreadable", str(error))


class _Row(NamedTuple):
    place: str
    """File and line, for messages."""
    name: str
    label: int
    box: tuple[float, float, float, float]


def _read_rows(path: Path) -> Iterator[_Row | Finding]:
    try:
        text = read_bytes(path, LARGEST_LABELS).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from error
    reader = csv.DictReader(io.StringIO(text), restval="", strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got no {missing[0]}")
        repeated = [column for column in COLUMNS if list(reader.fieldnames or ()).count(column) > 1]
        if repeated:
            raise ValueError(f"{path}: expected each column once, got {repeated[0]} more often")
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            try:
                label, (left, top, right, bottom) = _label(row["label"]), _edges(row)
                yield _Row(place, row["img_name"], label, (left, top, right, bottom))
            except ValueError as error:
                yield Finding("unreadable", f"{place}: {error}")
    except csv.Error as error:
        # A quote that is never closed reaches to the end of the file: the faulty line follows the last one read.
        rest = enumerate(text.split("\n")[reader.line_num :], reader.line_num + 1)
        line = next(number for number, content in rest if content)
        raise ValueError(f"{path}, line {line}: cannot be read as csv ({error})") from error


def _label(text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= len(CLASSES):
        raise ValueError(f"label: expected a whole number below {len(CLASSES)}, got {text!r}")
    return int(text)


def _edges(row: dict[str, str]) -> Iterator[float]:
    for column in COLUMNS[2:]:
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{column}: expected a number of pixels, got {row[column]!r}")
        yield value
