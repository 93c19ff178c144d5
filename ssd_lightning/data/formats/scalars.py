"""Numbers, flags, names and texts as tools write them in xml and json."""

import codecs
import math
import reprlib
from collections.abc import Hashable
from typing import Any

from ssd_lightning.require import HALF_CHARACTER, LONGEST_CLASS_NAME

TRUE = frozenset({"1", "true", "yes"})
FALSE = frozenset({"0", "false", "no", "", "none", "null"})
"""Spellings of a flag, in lower case; a missing flag is false."""

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""First bytes of a text, and its encoding. The mark of UTF-32 begins with the mark of UTF-16."""


MOST_PIXELS = 10**9
"""Largest number that is read as a coordinate or a side in pixels; no picture is that large."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlevel = 3


def shown(value: object) -> str:
    """Return a value of a file for a message: on one line, and shortened if it is long."""
    return _short.repr(value)


def brief(value: object) -> str:
    """Return a name or an id for a message: as it is if it is a short text, else as :func:`shown`."""
    return value if isinstance(value, str) and len(value) <= 100 and value.isprintable() else shown(value)


def number(value: object) -> float:
    """Return a number that may be written as text; NaN for everything else."""
    if isinstance(value, int | float | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    return math.nan


def coordinate(value: object) -> float:
    """Return a coordinate in pixels; NaN for everything else, and for numbers that no picture has."""
    as_number = number(value)
    return as_number if abs(as_number) <= MOST_PIXELS else math.nan


def flag(value: object, place: str) -> bool:
    """Return a flag in any common spelling, such as ``1``, ``1.0``, ``true`` or ``yes``; a missing flag is false.

    Args:
        value: the flag in its file.
        place: file and name of the flag, for the message.

    Raises:
        ValueError: if the value is no flag.
    """
    text = str("" if value is None else value).strip().lower()
    as_number = number(text)
    if text in TRUE or as_number == 1:
        return True
    if text in FALSE or as_number == 0:
        return False
    raise ValueError(f"{place}: expected 0 or 1, got {shown(value)}")


def side(value: object) -> int:
    """Return the width or height in an annotation; 0, as some tools write themselves, where it says nothing.

    A number that no picture has becomes ``MOST_PIXELS``, which differs from the picture.
    """
    as_number = number(value)
    return min(round(as_number), MOST_PIXELS) if math.isfinite(as_number) and as_number > 0 else 0


def name(value: object) -> str:
    """Return the name of a class, which may be a number; empty where there is none."""
    return "" if value is None or isinstance(value, dict | list) else str(value)


def class_name(value: object, place: str) -> str:
    """Return the name of a class as :func:`name` does.

    Raises:
        ValueError: if the name is longer than ``LONGEST_CLASS_NAME``, or has half characters.
    """
    text = name(value)
    if len(text) > LONGEST_CLASS_NAME:
        told = f"expected at most {LONGEST_CLASS_NAME} characters, got {len(text)}"
        raise ValueError(f"{place}: {told}, beginning with {text[:20]!r}")
    if not is_text(text):
        raise ValueError(f"{place}: expected a text, got {shown(text)}")
    return text


def is_text(name: str) -> bool:
    """Return False for a text that was decoded from bytes that are not UTF-8; see :func:`text_of`."""
    return HALF_CHARACTER.search(name) is None


def identity(entry: dict[str, Any], key: str, place: str) -> Hashable:
    """Return the id under a key, a number or a text.

    Raises:
        ValueError: if there is none.
    """
    value = entry.get(key)
    if not isinstance(value, int | float | str) or isinstance(value, bool) or value != value:
        raise ValueError(f"{place}: {key}: expected a number or a text, got {shown(value)} in {shown(entry)}")
    return value


def marked_encoding(content: bytes) -> str | None:
    """Return the encoding of a text by its byte order mark, or by the zeros between its letters."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return encoding
    pair = content[:2]
    if len(pair) == 2 and 0 in pair and any(pair):
        return "utf-16-be" if pair[0] == 0 else "utf-16-le"
    return None


def text_of(content: bytes, path: str) -> str:
    """Decode a text by its byte order mark; without one, as UTF-8, where bytes of file names may be anything.

    Raises:
        ValueError: if the text is not in the encoding of its mark; the message names the file.
    """
    encoding = marked_encoding(content)
    try:
        return content.decode(encoding) if encoding else content.decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as text ({error})") from error
