"""Reading of one xml file in the style of PASCAL VOC."""

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ssd_lightning.data.folders import DataFolder, is_picture, picture_places
from ssd_lightning.data.formats import scalars
from ssd_lightning.data.formats.annotations import PictureAnnotation
from ssd_lightning.data.formats.scalars import brief, shown
from ssd_lightning.data.pictures import read_header
from ssd_lightning.require import read_bytes

LARGEST_XML = 64 * 2**20
"""Bytes of the largest xml file that is read. The annotation of an object has about 300 bytes."""

MOST_NAMED = 3
"""Number of texts in an error message."""

SLOW_ENCODINGS = frozenset({"idna", "punycode"})
"""Encodings of host names, whose decoding takes hours for a long text."""

Edges = tuple[float, float, float, float]


def read_xml(path: str, files: DataFolder, max_megapixels: float | None = None) -> PictureAnnotation:
    """Read one xml file.

    Args:
        path: the file.
        files: the data folder that holds the file and its picture.
        max_megapixels: see :func:`~ssd_lightning.data.pictures.read_header`.

    Raises:
        ValueError: if the file is no VOC-style xml, or its picture cannot be read; the message names the file.
    """
    root = _parsed(path, files)
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected <annotation> as in VOC, got <{brief(root.tag)}>")
    picture = _picture_of(path, _text(root, "filename", path), files)
    names, boxes, difficult = [], [], []
    polygons = 0
    for number, entry in enumerate(root.findall("object"), 1):
        place = f"{path}, object {number}"
        if scalars.flag(_text(entry, "deleted", place), f"{place}: deleted"):
            continue  # LabelMe keeps such objects.
        given = [box for box in entry.findall("bndbox") if len(box)]
        points = [] if given else _points(place, entry)
        polygons += bool(points)
        # Some tools write all boxes of a class into one object.
        for edges in [_around(points)] if points else [_edges(place, box) for box in given or [entry]]:
            names.append(scalars.class_name(_text(entry, "name", place), f"{place}: name"))
            boxes.append(edges)
            difficult.append(scalars.flag(_text(entry, "difficult", place), f"{place}: difficult"))
    for entry in root:
        # Such objects would be trained as background.
        if entry.tag != "object" and any(_plain_tag(part) in OF_AN_OBJECT for part in entry.iter()):
            raise ValueError(f"{path}: expected objects as <object> in <annotation>, got <{brief(entry.tag)}>")
    header = read_header(Path(picture), max_megapixels)
    return PictureAnnotation(
        path,
        picture,
        header.size,
        (scalars.side(_text(root, "size/height", path)), scalars.side(_text(root, "size/width", path))),
        names,
        boxes,
        difficult,
        orientation=header.orientation,
        polygons=polygons,
    )


OF_AN_OBJECT = {"object", "bndbox", "xmin"}
"""Tags by which an object is known in an element of another name."""


def _plain_tag(element: ElementTree.Element) -> str:
    """Return a tag in lower case and without its namespace; empty for a comment."""
    return element.tag.rpartition("}")[2].casefold() if isinstance(element.tag, str) else ""


def _parsed(path: str, files: DataFolder) -> ElementTree.Element:
    if files.relative(path) is None:
        raise ValueError(f"{path}: expected a file inside {files.root}")
    try:
        content = read_bytes(path, LARGEST_XML)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected an xml file, got none") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as xml ({error})") from error
    try:
        encoding = scalars.marked_encoding(content) or _declared_encoding(content)
        # The parser of Python refuses entities that become much longer than the file.
        return ElementTree.fromstring(content.decode(encoding) if encoding else content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: unknown encoding
        raise ValueError(f"{path}: cannot be read as xml ({error})") from error


def _declared_encoding(content: bytes) -> str | None:
    """Return the encoding in the declaration of an xml file; ``None``: UTF-8."""
    declared = re.match(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)["']""", content)
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    # A declaration that can be read byte by byte is not UTF-16, whatever it says.
    if name == "utf-8" or name.startswith("utf-16"):
        return None if name == "utf-8" else "utf-8"
    if name in SLOW_ENCODINGS:
        raise LookupError(f"unknown encoding: {name}")
    # Programs that declare gb2312 write characters of its successors.
    return "gb18030" if name in ("gb2312", "gbk") else name


def _text(entry: ElementTree.Element, tag: str, place: str) -> str:
    """Return the text of an element that must not occur with several texts; empty where it is missing."""
    texts = list(dict.fromkeys((found.text or "").strip() for found in entry.findall(tag)))
    if len(texts) > 1:
        raise ValueError(f"{place}: {tag}: expected one, got {', '.join(map(shown, texts[:MOST_NAMED]))}")
    return texts[0] if texts else ""


def _picture_of(path: str, named: str, files: DataFolder) -> str:
    """Find the picture by the name in the xml, or else by the name of the xml."""
    folder, _, name = (files.relative(path) or "").rpartition("/")
    stem = os.path.splitext(name)[0]
    places = picture_places(folder)
    own = next((found for place in places if (found := files.pictures_with_stem(f"{place}/{stem}".lstrip("/")))), [])
    if not own and is_picture(stem):
        own = [file for file in (files.find(stem, places),) if file is not None]
    told = files.find(named, places) if is_picture(named) else None
    if told is not None and (not own or told in own or _same_stem(told, own[0])):
        return files.path(told)
    if told is not None:
        raise ValueError(
            f"{path}: filename: expected the picture of this name, {own[0]}, got {told}, which is there, too"
        )
    if len(own) == 1:
        return files.path(own[0])
    only = files.only(named) if not own and is_picture(named) else None
    if only is not None:
        return files.path(only)
    there = ", ".join(own) or files.candidates(named)
    raise ValueError(
        f"{path}: filename: expected a picture beside it or in JPEGImages or images, got {shown(named or stem)}"
        + f", which may be {there}" * bool(there)
    )


def _same_stem(first: str, second: str) -> bool:
    stems = (os.path.splitext(file.rpartition("/")[2])[0].casefold() for file in (first, second))
    return next(stems) == next(stems)


def _edges(place: str, box: ElementTree.Element) -> Edges:
    left, top, right, bottom = (
        _coordinate(_text(box, name, place), f"{place}: {name}") for name in ("xmin", "ymin", "xmax", "ymax")
    )
    # The box goes from the left edge of the first pixel, counted from 1, to the right edge of the last pixel.
    return left - 1, top - 1, right, bottom


def _points(place: str, entry: ElementTree.Element) -> list[tuple[float, float]]:
    """Return the corners of the polygons of an object, as LabelMe and Roboflow write them; empty without any."""
    points = []
    for polygon in entry.findall("polygon"):
        texts = [(_text(point, "x", place), _text(point, "y", place)) for point in polygon.findall("pt")]
        numbered = {child.tag: (child.text or "").strip() for child in polygon}
        texts += [(text, numbered.get(f"y{tag[1:]}", "")) for tag, text in numbered.items() if re.match(r"x\d", tag)]
        points += [(_coordinate(x, f"{place}: polygon: x"), _coordinate(y, f"{place}: polygon: y")) for x, y in texts]
    return points


def _around(points: list[tuple[float, float]]) -> Edges:
    """Return the edges around the pixels of a polygon, which are counted as the pixels of a box."""
    across, down = zip(*points, strict=True)
    return min(across) - 1, min(down) - 1, max(across), max(down)


def _coordinate(text: str, place: str) -> float:
    value = scalars.coordinate(text)
    if not math.isfinite(value):
        raise ValueError(f"{place}: expected a number of pixels, got {shown(text)}")
    return value
