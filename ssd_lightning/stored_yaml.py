"""YAML that strangers may have written, read within limits: any content is read or refused within a second."""

import re
from typing import Any

import yaml

DEEPEST = 50
"""Largest number of nested lists and mappings; those of this project have 7."""

MOST_VALUES = 100_000
"""Largest number of values; a run with a thousand classes has 3,000."""

LONGEST_VALUE = 10_000
"""Largest number of characters in a value without quotes: YAML reads long numbers such as 1:59:59 in square time."""

LARGEST_IN_PYTHON = 2**16
"""Largest number of bytes for the reader in Python, which takes some ten times as long as the one in C."""

NO_TEXT = re.compile(rb"\\u[dD][cC]")
"""The beginning of a byte of a file's name that is no text, which only the reader in Python takes."""


def parse_yaml(content: bytes, as_text: bool = False, has_aliases: bool = False) -> Any:
    """Return the content of a YAML file.

    Args:
        content: the bytes of the file, in UTF-8 or UTF-16.
        as_text: True to keep numbers, dates and words such as ``no`` as text.
        has_aliases: True to allow aliases. By aliases of aliases, a small file can hold values of any number.

    Raises:
        ValueError: if the content is nested too deeply, or has too many or too long values, or aliases.
        yaml.YAMLError: if it is no YAML.
    """
    in_c, in_python = ("CBaseLoader", yaml.BaseLoader) if as_text else ("CSafeLoader", yaml.SafeLoader)
    loader = in_python if NO_TEXT.search(content) else getattr(yaml, in_c, in_python)
    if loader is in_python and len(content) > LARGEST_IN_PYTHON:
        raise ValueError(f"expected at most {LARGEST_IN_PYTHON} bytes, got {len(content)}")
    depth = 0
    # The events are read first, since building the content of nested lists is recursive.
    for number, event in enumerate(yaml.parse(content, loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) and not has_aliases:
            raise ValueError(f"expected no aliases, got *{event.anchor}")
        if depth > DEEPEST:
            raise ValueError(f"expected at most {DEEPEST} levels, got more")
        if number > MOST_VALUES:
            raise ValueError(f"expected at most {MOST_VALUES} values, got more")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > LONGEST_VALUE:
            raise ValueError(f"expected values of at most {LONGEST_VALUE} characters, got {event.value[:20]}…")
    return yaml.load(content, loader)
