"""Checks of what users and strangers give, with one form of message: numbers, names, regular files, YAML and JSON.

Commands import this module before torch, to answer at once.
"""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml

LARGEST_IMAGE = 4096
"""Longest side of the network's input in pixels. Above it, building the network takes all memory or hours."""

DEEPEST = 50
"""Largest number of nested lists and mappings; those of this project have 7."""

MOST_VALUES = 100_000
"""Largest number of values; a run with a thousand classes has 3,000."""

LONGEST_VALUE = 3_000
"""Largest number of characters in a value that can be a number: YAML reads 1:59:59 and longer in square time, and
Python prints no number of more than 4,300 digits."""

LARGEST_IN_PYTHON = 2**15
"""Largest number of bytes for the reader in Python, which takes some ten times as long as the one in C."""

LONGEST_CLASS_NAME = 200
"""Largest number of letters in the name of a class."""

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A half of a character, which escapes in JSON and bytes that are no text become."""

LONGEST_SHOWN = 60
"""Largest number of characters of a stranger's value in a message."""

LONGEST_REASON = 300
"""Largest number of characters of a reason in a message. Some of torch's errors list all tensors."""

NO_TEXT = re.compile(rb"\\u[dD][cC]")
"""The beginning of a byte of a file's name that is no text, which only the reader in Python takes."""

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]"
)
"""Control characters except newline and tab, characters that turn the direction of text, and halves of characters."""


def require_number(name: str, value: Any, interval: str) -> None:
    """Raise an error if ``value`` is not a number in ``interval``.

    Args:
        name: the argument, as in the code or on the command line.
        value: anything that a config can hold. NaN lies in no interval, and a bool is not a number.
        interval: such as ``(0, 1]``, where the round bracket excludes its end. Infinity is always excluded.

    Raises:
        ValueError: with the argument's name, the interval and the value.
    """
    if not _is_inside(value, interval):
        raise ValueError(f"{name}: expected a number {_in_words(interval)}, got {value}")


def require_numbers(name: str, values: Any, interval: str, length: int | None = None) -> None:
    """Raise an error if ``values`` is not a list of numbers in ``interval``.

    Args:
        name: as in :func:`require_number`.
        values: anything that a config can hold.
        interval: as in :func:`require_number`.
        length: number of the numbers; ``None``: any.

    Raises:
        ValueError: with the argument's name, the interval and the values.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or len(values) != (length or len(values)) or not all(_is_inside(one, interval) for one in values):
        count = "" if length is None else f"{length} "
        got = list(values) if is_list else values
        raise ValueError(f"{name}: expected a list of {count}numbers {_in_words(interval)}, got {got}")


def require_whole_numbers(name: str, values: Any, least: int, most: int) -> None:
    """Raise an error if ``values`` is not a list of whole numbers from ``least`` to ``most``, with at least one number.

    Raises:
        ValueError: with the argument's name, the limits and the values.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not is_list or not all(_is_a(value, Integral) and least <= value <= most for value in values):
        got = list(values) if is_list else values
        raise ValueError(f"{name}: expected a list of whole numbers of at least {least}, at most {most}, got {got}")


def require_part(name: str, value: Any) -> None:
    """Raise an error if ``value`` cannot be called, as text or a number of a config.

    Raises:
        ValueError: with the argument's name and the value.
    """
    if not callable(value):
        raise ValueError(f"{name}: expected a part, got {value}. Try a class by its _target_.")


def require_parts(name: str, values: Any) -> None:
    """Raise an error if ``values`` is not a list of parts that can be called. The list may be empty.

    Raises:
        ValueError: with the argument's name and the values.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(map(callable, values)):
        raise ValueError(f"{name}: expected a list of parts, each with its _target_, got {values}")


def require_texts(name: str, values: Any) -> None:
    """Raise an error if ``values`` is not a list of texts. A text alone would be a list of letters.

    Raises:
        ValueError: with the argument's name and the values.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name}: expected a list of names, got {values}")


def require_switch(name: str, value: Any) -> None:
    """Raise an error if ``value`` is neither true nor false. Python would take any text for true.

    Raises:
        ValueError: with the argument's name and the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value}")


def require_whole_number(name: str, value: Any, least: int, most: int = 2**63 - 1) -> None:
    """Raise an error if ``value`` is not a whole number of at least ``least``, and at most ``most``.

    Raises:
        ValueError: with the argument's name, the limits and the value.
    """
    if not _is_a(value, Integral) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name}: expected a whole number of at most {most}, got {value}")


def _is_inside(value: Any, interval: str) -> bool:
    least, most = map(float, interval[1:-1].split(","))
    if not _is_a(value, Real):
        return False
    # The comparison of a number of numpy gives no bool of Python.
    return bool(
        least < value < most or (value == least and interval[0] == "[") or (value == most and interval[-1] == "]")
    )


def _in_words(interval: str) -> str:
    least, most = map(float, interval[1:-1].split(","))
    if most == float("inf"):
        return f"of at least {least:g}" if interval[0] == "[" else f"above {least:g}"
    return f"in {interval}"


def require_names(name: str, value: Any) -> tuple[str, ...]:
    """Return a list of names as a tuple.

    Raises:
        ValueError: with the argument's name, if the value is no list, holds anything but texts, is empty, or has a name
            twice, or a name that is too long, or has half characters, which cannot be written to a file.
    """
    for text in value if isinstance(value, list) else [None]:
        if not isinstance(text, str):
            got = f"{in_short(text)} in it" if isinstance(value, list) else in_short(value)
            raise ValueError(f"{name}: expected a list of names, got {got}")
        if len(text) > LONGEST_CLASS_NAME or HALF_CHARACTER.search(text):
            raise ValueError(f"{name}: expected names of at most {LONGEST_CLASS_NAME} letters, got {in_short(text)}")
    if not value or len(set(value)) != len(value):
        raise ValueError(f"{name}: expected at least one name, and none twice, got {len(value)}")
    return tuple(value)


def require_limits(content: Any) -> None:
    """Raise an error if nested lists and mappings of a stranger are too deep, too large, or contain themselves.

    Raises:
        ValueError: if there are more than :data:`DEEPEST` levels or :data:`MOST_VALUES` values.
    """
    nodes, number = [content], 1
    for _ in range(DEEPEST + 1):
        parents = [node for node in nodes if isinstance(node, Mapping | list | tuple)]
        if not parents:
            return
        children = chain.from_iterable(node.values() if isinstance(node, Mapping) else node for node in parents)
        # A list that holds the same lists many times is small in a file, and has values of any number.
        nodes = list(islice(children, MOST_VALUES))
        number += len(nodes)
        if number > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES} values, got more")
    raise ValueError(f"expected at most {DEEPEST} levels, got more")


def in_short(value: Any) -> str:
    """Return a value of a stranger in one short line. Of other values than numbers and texts, only the kind is told."""
    if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN:
        return "a long number"  # Python refuses to write numbers of thousands of digits.
    if isinstance(value, str | int | float | None):
        shown = repr(value)
        return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
    return f"a {type(value).__name__}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 picture`` and ``2 pictures``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def one_line(reason: object) -> str:
    """Return an error, or another text that may hold values of a stranger, in one line of at most 300 characters."""
    return " ".join(str(reason).split())[:LONGEST_REASON]


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def visible(text: str) -> str:
    """Replace the characters of a stranger's text that would command a terminal, such as that of Esc, by their codes.

    Bytes of a file's name that are no text are kept, so that a printed name is the name of the same file.
    """
    shown = UNSEEN.sub(_code, text)
    # Two such bytes can be a control character together.
    return UNSEEN.sub(_code, shown.encode(errors="surrogateescape").decode(errors="surrogateescape"))


def visible_line(text: str) -> str:
    """Replace also newlines and tabs, so that a stranger's name cannot pretend to be a line of a command."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def _code(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def parse_yaml(content: bytes, as_text: bool = False, has_aliases: bool = False) -> Any:
    """Return the content of a YAML file that a stranger may have written. Any content is read or refused in a second.

    Args:
        content: the bytes of the file, in UTF-8 or UTF-16.
        as_text: True to keep numbers, dates and words such as ``no`` as text.
        has_aliases: True to allow aliases. By aliases of aliases, a small file can hold values of any number.

    Raises:
        ValueError: if the content is nested too deeply, has too many or too long values, aliases, or a key twice.
        yaml.YAMLError: if it is no YAML.
    """
    in_c, in_python = ("CBaseLoader", yaml.BaseLoader) if as_text else ("CSafeLoader", yaml.SafeLoader)
    loader = in_python if NO_TEXT.search(content) else getattr(yaml, in_c, in_python)
    if loader is in_python and len(content) > LARGEST_IN_PYTHON:
        raise ValueError(f"expected at most {LARGEST_IN_PYTHON} bytes, got {len(content)}")
    # Of each list and mapping that is being read, the number of nodes, and of a mapping the keys.
    counts: list[int] = []
    keys: list[set[str] | None] = []
    # The events are read first, since building the content of nested lists is recursive.
    for number, event in enumerate(yaml.parse(content, loader)):
        if isinstance(event, yaml.CollectionEndEvent):
            counts.pop()
            keys.pop()
        elif isinstance(event, yaml.NodeEvent):
            if counts:
                known = keys[-1]
                if known is not None and counts[-1] % 2 == 0 and isinstance(event, yaml.ScalarEvent):
                    # yaml itself keeps the last value of a key that is given twice.
                    if event.value in known:
                        raise ValueError(f"expected each key once, got {in_short(event.value)} twice")
                    known.add(event.value)
                counts[-1] += 1
            if isinstance(event, yaml.CollectionStartEvent):
                counts.append(0)
                keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
        if isinstance(event, yaml.AliasEvent) and not has_aliases:
            raise ValueError(f"expected no aliases, got *{event.anchor}")
        if len(counts) > DEEPEST:
            raise ValueError(f"expected at most {DEEPEST} levels, got more")
        if number > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES} values, got more")
        # A value in quotes is text, if no tag makes it a number.
        value = event.value if isinstance(event, yaml.ScalarEvent) and not event.implicit[1] else ""
        if len(value) > LONGEST_VALUE:
            raise ValueError(f"expected values of at most {LONGEST_VALUE} characters, got {value[:20]}…")
    return yaml.load(content, loader)


def _refusing_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"expected each key once, got {in_short(repeated)} twice")
    return found


def parse_json(content: str | bytes) -> Any:
    """Return the content of a JSON text that a stranger may have written.

    Raises:
        ValueError: if the content is no JSON, is nested too deeply, has too many values, or a key twice.
    """
    try:
        found = json.loads(content, object_pairs_hook=_refusing_repeated)
    except RecursionError as error:
        raise ValueError(f"expected at most {DEEPEST} levels, got more") from error
    require_limits(found)
    return found


KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
"""Kinds of entries in a folder that are not regular files, for messages."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise an error if a path is not a regular file or a link to one.

    Raises:
        OSError: if there is nothing, or it may not be looked at.
        ValueError: if there is something else, such as a named pipe; the message names the path.
    """
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{os.fspath(path)}: expected the name of a file, got one with a zero byte")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{os.fspath(path)}: expected a file, got {kind}")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the path is not a regular file, or the file is larger; the message names the path.
    """
    require_regular(path)
    size = os.stat(path).st_size
    if size > most:
        raise ValueError(f"{os.fspath(path)}: expected at most {most} bytes, got {size}")
    return Path(path).read_bytes()
