"""The rows of a table of boxes in a csv file: one row for each object, in columns of any name."""

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ssd_lightning.data.formats import scalars
from ssd_lightning.data.formats.annotations import Order
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.require import read_bytes

LARGEST_FILE = 4 * 2**30
"""Bytes of the largest csv file that is read."""

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
"""Names of the characters between columns."""

PICTURE_COLUMNS = (
    *(
        "filename",
        "file_name",
        "file",
        "image",
        "image_name",
        "img_name",
        "img",
        "image_path",
        "img_path",
        "image_file",
    ),
    *("path", "file_path", "filepath", "picture", "image_id", "imageid"),
)
"""Usual names of the column with the name of a picture, the likeliest first, as :func:`_plain` gives them."""

CLASS_COLUMNS = (
    *("class", "class_name", "classname", "label", "label_name", "labelname", "category", "category_name"),
    *("name", "object"),
)
"""Usual names of the column with the name of a class."""

SPLIT_COLUMNS = ("split", "subset", "set", "partition")
"""Usual names of the column with the name of a split."""

BOX_COLUMNS: tuple[tuple[Order, tuple[str, ...]], ...] = (
    ("xyxy", ("xmin", "ymin", "xmax", "ymax")),
    ("xyxy", ("x_min", "y_min", "x_max", "y_max")),
    ("xyxy", ("x1", "y1", "x2", "y2")),
    ("xyxy", ("left", "top", "right", "bottom")),
    ("xywh", ("left", "top", "width", "height")),
    ("xywh", ("x", "y", "width", "height")),
    ("xywh", ("x", "y", "w", "h")),
    ("xywh", ("bbox_x", "bbox_y", "bbox_width", "bbox_height")),
    ("cxcywh", ("cx", "cy", "w", "h")),
    ("cxcywh", ("cx", "cy", "width", "height")),
    ("cxcywh", ("x_center", "y_center", "width", "height")),
    ("cxcywh", ("center_x", "center_y", "width", "height")),
)
"""Usual names of the four columns of a box, and their order."""

SIZE_COLUMNS = (("image_width", "image_height"), ("img_width", "img_height"), ("width", "height"))
"""Usual names of the columns with the size of a picture."""

LONGEST, LONGEST_LINE = 50, 200
"""Numbers of letters of a wrong cell, and of a line of names, that a message shows."""

MISSING = ("", "nan", "na", "none", "null")
"""Spellings of an empty cell, in lower case."""


class Columns(NamedTuple):
    """Names of columns; ``None``: the usual ones."""

    picture: str | None = None
    label: str | None = None
    box: Sequence[str] | None = None
    split: str | None = None


class Row(NamedTuple):
    """One row of a table."""

    place: str
    """File and line, for messages."""
    line: int
    picture: str
    label: str
    """Name of the class; empty in a table without classes."""
    box: tuple[float, ...] | None
    """Four numbers; ``None``: the picture has no objects."""
    split: str
    told_size: tuple[int, int]
    """(height, width) of the picture; zeros where the table says nothing."""
    fault: Finding | None
    """The reason why the picture of this row cannot be used."""


class Table(NamedTuple):
    """The columns of a table that are read."""

    path: str
    names: list[str]
    picture: int
    label: int | None
    box: list[int]
    split: int | None
    size: list[int]
    """Columns with the width and the height of the picture; empty where there are none."""
    order: Order

    def row(self, cells: list[str], line: int) -> Row:
        """Return a row, possibly with a fault."""
        place = f"{self.path}, line {line}"
        cells = [cell.strip() for cell in cells]
        try:
            if len(cells) < len(self.names) or any(cells[len(self.names) :]):
                raise ValueError(f"{place}: expected {len(self.names)} columns, got {len(cells)}")
            box = self._box(cells, place)
            label = "" if self.label is None else cells[self.label]
            if box is not None and not scalars.is_text(label):
                raise ValueError(
                    f"{place}: {self.names[self.label or 0]}: expected text in UTF-8, got {label[:LONGEST]!r}"
                )
            size = (scalars.side(cells[column]) for column in reversed(self.size))
            told_size = (next(size, 0), next(size, 0))
            split = "" if self.split is None else cells[self.split]
            return Row(place, line, cells[self.picture], label, box, split, told_size, None)
        except ValueError as error:
            picture = cells[self.picture] if self.picture < len(cells) else ""
            return Row(place, line, picture, "", None, "", (0, 0), Finding("unreadable", str(error)))

    def _box(self, cells: list[str], place: str) -> tuple[float, ...] | None:
        if all(cells[column].lower() in MISSING for column in self.box):
            return None
        numbers = []
        for column in self.box:
            numbers.append(scalars.number(cells[column]))
            if not math.isfinite(numbers[-1]):
                raise ValueError(f"{place}: {self.names[column]}: expected a number, got {cells[column][:LONGEST]!r}")
        return tuple(numbers)


def read_rows(
    path: str,
    columns: Columns = Columns(),  # noqa: B008, it cannot be changed
    order: Order | None = None,
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
) -> tuple[Table, Iterator[Row]]:
    """Read a csv file.

    Args:
        path: the file, in UTF-8, or with a byte order mark.
        columns: names of the columns.
        order: order of the four numbers of a box; ``None``: as the names of their columns tell.
        delimiter: one of ``DELIMITERS``, or a character; ``None``: the one that makes the most of the first line.
        header: names of the columns of a file without a line of names.

    Raises:
        ValueError: if the file cannot be read as csv, or lacks a column; the message names the file.
    """
    try:
        text = scalars.text_of(read_bytes(path, LARGEST_FILE), path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise ValueError(f"{path}: expected text, got a zero byte")
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    delimiter = _delimiter(first) if delimiter is None else DELIMITERS.get(delimiter, delimiter)
    records = _records(text, delimiter, path)
    if header is None:
        _, names = next(records, (0, [""]))
    else:
        names = list(header)
        ahead = next(records, None)
        records = itertools.chain([] if ahead is None else [ahead], records)
    table = _table(path, [name.strip() for name in names], columns, order)
    return table, (table.row(cells, line) for line, cells in records)


def _delimiter(line: str) -> str:
    """Return the delimiter that makes the most columns of the first line."""
    # A cell of a csv file has a largest size.
    cells = {delimiter: next(csv.reader([line[:10_000]], delimiter=delimiter), []) for delimiter in DELIMITERS.values()}
    return max(cells, key=lambda delimiter: len(cells[delimiter]))


def _records(text: str, delimiter: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: cannot be read as csv ({error})") from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _table(path: str, names: list[str], columns: Columns, order: Order | None) -> Table:
    plain = [_plain(name) for name in names]

    def position(key: str, given: str | None, usual: Sequence[str], is_needed: bool) -> int | None:
        if given is not None and names.count(given) == 1:
            return names.index(given)
        wanted = usual if given is None else [_plain(given)]
        found = [name for name in wanted if name in plain]
        if found and plain.count(found[0]) == 1:
            return plain.index(found[0])
        if given is None and not found and not is_needed:
            return None
        got = f"{'several' if found else 'none'}; columns: {table_names(names)}"
        value = "[<column>,<column>,<column>,<column>]" if key == "box_columns" else "<column>"
        advice = "data.delimiter=<character>" if len(names) == 1 else f"data.{key}={value}"
        raise ValueError(f"{path}: expected one column {[*found, *wanted][0]}, got {got}. Try {advice}.")

    usual = next((box for _, box in BOX_COLUMNS if set(box) <= set(plain)), BOX_COLUMNS[0][1])
    box_names = tuple(columns.box or usual)
    own = next((own for own, box in BOX_COLUMNS if box == tuple(map(_plain, box_names))), BOX_COLUMNS[0][0])
    box = [position("box_columns", name, (), True) or 0 for name in box_names]
    picture = position("picture_column", columns.picture, PICTURE_COLUMNS, True) or 0
    label = position("class_column", columns.label, CLASS_COLUMNS, False)
    split = position("split_column", columns.split, SPLIT_COLUMNS, False)
    sizes = ([plain.index(name) for name in pair] for pair in SIZE_COLUMNS if set(pair) <= set(plain))
    size = next((pair for pair in sizes if not {picture, label, split, *box} & set(pair)), [])
    return Table(path, names, picture, label, box, split, size, order or own)


def table_names(names: Sequence[str]) -> str:
    """Return the names of columns for a message; a line that is no line of names may be long."""
    told = ", ".join(names)
    return told if len(told) <= LONGEST_LINE else f"{told[:LONGEST_LINE]} …"


def _plain(name: str) -> str:
    """Return the name of a column in the form in which names are compared."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
