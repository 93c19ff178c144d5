"""Pictures whose boxes are the rows of csv files."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ssd_lightning.data.folders import DataFolder, picture_places
from ssd_lightning.data.formats.annotations import (
    WRITINGS,
    Annotations,
    BoxesOf,
    Format,
    Order,
    PictureAnnotation,
    as_columns,
    concatenate,
    edges_of,
)
from ssd_lightning.data.formats.cache import in_parallel, keep_annotations, known_annotations, limited_key, stamps
from ssd_lightning.data.formats.csv_rows import DELIMITERS, LONGEST_LINE, Columns, Row, read_rows, table_names
from ssd_lightning.data.formats.findings import Finding, Fix
from ssd_lightning.data.formats.splits import SPLIT_NAMES, SplitData, Splits, as_list, usual_splits
from ssd_lightning.data.pictures import PictureHeader, read_header
from ssd_lightning.require import counted, in_short

Unit = Literal["pixels", "fractions"]
"""The unit of the numbers of a box."""

SUFFIXES = (".csv", ".tsv")
"""Suffixes of the files that are searched for, in lower case."""


class CSV(SplitData):
    """Pictures with csv files that have one row for each object.

    A row names a picture, a class and a box. A row without a box is a picture without objects. The columns are found by
    their usual names, such as ``filename,class,xmin,ymin,xmax,ymax``, or are given. A column ``split``, the names of
    several files (``train.csv`` and ``val.csv``) or their folders tell the splits; otherwise a share is drawn. Pictures
    are searched for as those of :class:`~ssd_lightning.data.formats.coco.COCO` are.

    Args:
        root: folder that relative paths start from.
        annotations: csv files; ``None``: the only one in ``root``, or those with the names of splits.
        picture_column: column with the file name of the picture; ``None``: a usual name, such as ``filename``.
        class_column: column with the class; ``None``: a usual name, such as ``class``.
        box_columns: the four columns of a box; ``None``: usual names, such as ``xmin``, ``ymin``, ``xmax``, ``ymax``.
        split_column: column with the split; ``None``: a usual name, such as ``split``, if there is one.
        box_format: order of the four numbers; ``None``: as the names of the columns tell.
        unit: unit of the four numbers, ``pixels`` or ``fractions`` of the picture.
        delimiter: character between columns, or its name: ``comma``, ``semicolon``, ``tab``, ``bar``. ``None``: the one
            that the first line has.
        header: names of the columns of files without a line of names.
        pictures: folder of the pictures; ``None``: the usual places.
        classes: names in the order of their labels. ``None``: all names that occur, sorted. Without a column of
            classes, the only name.
        train: names of splits or files to train on. ``None``: the usual names.
        val: names of splits or files to score on. ``None`` beside ``train``: a share of ``train`` is drawn.
        test: names of splits or files for the test at the end of a training. ``None`` beside ``train``: no test.
        val_share: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        test_share: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        seed: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        fix: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        boxes_of: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        max_megapixels: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
    """

    searched = "rows with pictures"

    def __init__(
        self,
        root: Path | str,
        annotations: str | Sequence[str] | None = None,
        picture_column: str | None = None,
        class_column: str | None = None,
        box_columns: Sequence[str] | None = None,
        split_column: str | None = None,
        box_format: str | None = None,
        unit: str = "pixels",
        delimiter: str | None = None,
        header: Sequence[str] | None = None,
        pictures: Path | str | None = None,
        classes: Sequence[str] | None = None,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        val_share: float = 0.2,
        test_share: float = 0.0,
        seed: int = 0,
        fix: Fix | None = None,
        boxes_of: BoxesOf = "shown",
        max_megapixels: float | None = None,
    ) -> None:
        super().__init__(root, classes, True, fix, val_share, test_share, seed, boxes_of, max_megapixels)
        for key, value, known in (("box_format", box_format, get_args(Order)), ("unit", unit, get_args(Unit))):
            if value not in (None, *known):
                raise ValueError(f"{key}: expected one of {', '.join(known)}, got {value}")
        if delimiter is not None and len(DELIMITERS.get(delimiter, delimiter)) != 1:
            raise ValueError(f"delimiter: expected one character, or {', '.join(DELIMITERS)}, got {delimiter!r}")
        if box_columns is not None and (isinstance(box_columns, str) or len(box_columns) != 4):
            raise ValueError(f"box_columns: expected four columns, got {box_columns}")
        if val is not None and train is None:
            raise ValueError(f"train: expected splits or files beside val={val}, got null")
        self.csv_files = as_list(annotations)
        self.columns = Columns(picture_column, class_column, box_columns, split_column)
        self.box_format: Order | None = next((order for order in get_args(Order) if order == box_format), None)
        self.unit, self.delimiter, self.header = unit, delimiter, header
        self.pictures = None if pictures is None else Path(pictures).expanduser()
        self.given = {"train": as_list(train), "val": as_list(val), "test": as_list(test)}

    @cached_property
    def files(self) -> DataFolder:
        """Index of the files of the folder."""
        return DataFolder(self.root)

    def read(self) -> Splits:
        """Read the csv files."""
        found = [self._read_file(path) for path in self._paths()]
        formats = {annotations.box_format for annotations, _ in found}
        if len(formats) > 1:
            raise ValueError(f"data.box_format: expected files with the same columns, got {' and '.join(formats)}")
        everything = concatenate([annotations for annotations, _ in found])
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, (source, split) in enumerate(zip(everything.sources, everything.splits, strict=True)):
            for name in {split} if split else _names(self.files.relative(source) or source):
                rows_of[name].append(row)
        rows = self._rows_of_splits(rows_of, len(everything.sources), any(everything.splits))
        train, val, test = (None if own is None else everything.select(np.array(own, dtype=np.int64)) for own in rows)
        assert train is not None
        if test is not None and self.given["test"] is None and not test.counts.any():
            test = None  # The pictures of a test may have been published without their boxes.
        findings = [finding for _, more in found for finding in more]
        splits = Splits(train, val, test, findings, [])
        return splits._replace(remarks=_told_without_objects(splits))

    def _rows_of_splits(
        self, rows_of: dict[str, list[int]], count: int, are_told: bool
    ) -> tuple[list[int], list[int] | None, list[int] | None]:
        def named(split: str) -> list[int] | None:
            names = self.given[split]
            if names is None:
                return None
            folded = [_folded(name) for name in names]
            unknown = [name for name, key in zip(names, folded, strict=True) if key not in rows_of]
            if unknown:
                there = ", ".join(sorted(rows_of))
                raise ValueError(f"data.{split}: expected names of splits or files ({there}), got {unknown[0]}")
            return sorted({row for key in folded for row in rows_of[key]})

        train, val, test = named("train"), named("val"), named("test")
        if train is not None:
            return train, val, test
        held_out = set(test or ())
        usual = usual_splits({name for name, rows in rows_of.items() if not held_out.issuperset(rows)})
        if usual is not None and usual.val is not None:
            own = rows_of[usual.test] if usual.test is not None else None
            used = {*rows_of[usual.train], *rows_of[usual.val], *(own or ()), *held_out}
            others = sorted(name for name, rows in rows_of.items() if not used.issuperset(rows))
            if others and are_told:  # Such as a word that was mistyped, whose pictures would be left out.
                raise ValueError(
                    f"data.train: expected splits {', '.join(filter(None, usual))} alone, got also "
                    f"{', '.join(map(in_short, others[:5]))} in {counted(count - len(used), 'picture')}. "
                    f"Try data.train=[{usual.train}] data.val=[{usual.val}] to leave them out."
                )
            return rows_of[usual.train], rows_of[usual.val], test or own
        if usual is None and are_told and not held_out:
            there = ", ".join(sorted(rows_of))
            raise ValueError(f"data.train: expected splits train and val, got {there}. Try data.train=[<split>]")
        return [row for row in range(count) if row not in held_out], None, test

    def _paths(self) -> list[str]:
        """Return the csv files."""
        if self.csv_files is not None:
            given = [Path(name).expanduser() for name in self.csv_files]
            paths = [path if path.is_absolute() or path.exists() else self.root / path for path in given]
            missing = [path for path in paths if not path.exists()]
            if missing or not paths:
                raise ValueError(f"data.annotations: expected csv files, got {[*missing, 'none'][0]}, which is missing")
            return [str(path) for path in paths]
        there = [file for file in self.files.files if file.lower().endswith(SUFFIXES)]
        wanted = {_folded(name) for names in self.given.values() for name in names or ()} or SPLIT_NAMES
        found = there if len(there) == 1 else [file for file in there if _names(file) & wanted]
        if not found:
            told = ", ".join(there[:5]) or "none"
            raise ValueError(
                f"data.annotations: expected one csv file in {self.root}, or files of splits such as train.csv, "
                f"got {told}. Try data.annotations=<file>"
            )
        return [self.files.path(file) for file in found]

    def _read_file(self, path: str) -> tuple[Annotations, list[Finding]]:
        """Return the annotations in one file, and findings about its rows; an unchanged file is read once."""
        one_class = self.given_classes[0] if self.given_classes is not None and len(self.given_classes) == 1 else ""
        settings = (self.columns, self.box_format, self.unit, self.delimiter, self.header, self.pictures, one_class)
        key = limited_key(f"csv {Path(path).resolve()} {self.root.resolve()} {settings}", self.max_megapixels)
        stamp = stamps([path])
        files = self.files if self.pictures is None else self._own_folder()
        known = known_annotations(key, path, [files])
        if known is not None:
            return known, []
        table, rows = read_rows(path, self.columns, self.box_format, self.delimiter, self.header)
        if table.label is None and not one_class:
            raise ValueError(
                f"{path}: expected a column for the class, got {table_names(table.names)}. "
                f"Try data.class_column=<column>, or data.classes=[<name>] for pictures of one class."
            )
        search = _Search(files, path, self.pictures is None)
        rows_of: dict[tuple[str, str], list[Row]] = defaultdict(list)
        findings = []
        spoilt = set()
        for row in rows:
            picture = search.picture(row)
            if row.fault is not None:
                # A picture with a row that cannot be read has an unknown number of objects.
                spoilt.add(picture)
                findings.append(row.fault)
            elif isinstance(picture, Finding):
                findings.append(picture)
            else:
                rows_of[picture, row.split.casefold()].append(row)
        order: Format = f"{table.order} {self.unit}"  # type: ignore[assignment]
        units = [unit for unit in rows_of if unit[0] not in spoilt]

        def read(unit: tuple[str, str]) -> PictureAnnotation | Finding:
            picture, split = unit
            rows = rows_of[unit]
            try:
                header = read_header(Path(picture), self.max_megapixels)
            except ValueError as error:
                return Finding("unreadable", f"{rows[0].place}: {error}")
            one = one_class if table.label is None else None
            return _annotation(path, picture, header, rows, order, one)._replace(split=split)

        answers = in_parallel(read, units, "Reading pictures")
        annotations = as_columns([answer for answer in answers if isinstance(answer, PictureAnnotation)], order)
        findings = list(dict.fromkeys([*findings, *(answer for answer in answers if isinstance(answer, Finding))]))
        if not findings:
            keep_annotations(key, stamp, annotations, [files])
        return annotations, findings

    def _own_folder(self) -> DataFolder:
        given = self.pictures or Path()
        return DataFolder(given if given.is_absolute() or given.exists() else self.root / given)


def _annotation(
    path: str, picture: str, header: PictureHeader, rows: list[Row], box_format: Format, one_class: str | None
) -> PictureAnnotation:
    """Return the annotation of one picture from its rows."""
    height, width = header.size
    with_box = [row for row in rows if row.box is not None]
    numbers = np.array([row.box for row in with_box], dtype=np.float64).reshape(-1, 4)
    writing = WRITINGS[box_format]
    edges = edges_of(numbers, writing.order) * ((width, height, width, height) if writing.in_fractions else 1)
    boxes = [(left, top, right, bottom) for left, top, right, bottom in edges.tolist()]
    told = next((row.told_size for row in rows if row.told_size not in ((0, 0), header.size)), rows[0].told_size)
    names = [row.label if one_class is None else one_class for row in with_box]
    lines = [row.line for row in with_box]
    no_flags = [False] * len(with_box)
    return PictureAnnotation(
        path, picture, header.size, told, names, boxes, no_flags, lines, orientation=header.orientation
    )


class _Search:
    """The search for the pictures that one csv file names."""

    def __init__(self, files: DataFolder, path: str, in_usual_places: bool) -> None:
        self.files = files
        inside = files.relative(Path(path).parent)
        own = [] if inside is None else picture_places(inside)
        stem = Path(path).stem
        self.places = [*own[:1], "", "images", stem, f"images/{stem}", *own[1:]] if in_usual_places else [""]
        self._found: dict[tuple[str, str], str | Finding] = {}

    def picture(self, row: Row) -> str | Finding:
        """Return the path of the picture of a row, or the reason why there is none."""
        key = row.picture, row.split
        if key not in self._found:
            file = self._file(row)
            there = self.files.candidates(row.picture)
            hint = f", which may be {there}. Try data.pictures=<folder>" * bool(there)
            told = f"got {row.picture[:LONGEST_LINE]!r}{hint}"
            text = f"{row.place}: expected the name of a picture in {self.files.root}, {told}"
            self._found[key] = Finding("unreadable", text) if file is None else self.files.path(file)
        return self._found[key]

    def _file(self, row: Row) -> str | None:
        if not row.picture:
            return None
        split = row.split if row.split.isalnum() else ""
        places = [*self.places, *((split, f"images/{split}", f"{split}/images") if split else ())]
        found = self.files.find(row.picture, places) or self.files.only(row.picture)
        if found is not None:
            return found
        # Some tables have names without a suffix.
        name = row.picture.replace("\\", "/")
        stems = (self.files.pictures_with_stem(f"{place}/{name}".lstrip("/")) for place in dict.fromkeys(places))
        return next((pictures[0] for pictures in stems if len(pictures) == 1), None)


def _told_without_objects(splits: Splits) -> list[Finding]:
    """Return a remark on the pictures without objects."""
    empty = splits.without_objects()
    text = f"rows without a box make pictures without objects: {len(empty)}"
    return [Finding("background", f"{empty[0][1]}: {text}")] if empty else []


def _folded(name: str) -> str:
    """Return the name of a split or file in the form in which names are compared."""
    file = name.replace("\\", "/").rpartition("/")[2]
    return os.path.splitext(file)[0].casefold() if file.lower().endswith(SUFFIXES) else name.casefold()


def _names(file: str) -> set[str]:
    """Return the names of the splits that a csv file may be of: its own name, and its folders."""
    *folders, name = file.casefold().split("/")
    return {_folded(name), *folders}
