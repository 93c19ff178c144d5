"""Errors as users get them: one short line that starts with a key."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(key: str, *parts: object) -> Iterator[None]:
    """Check that the block raises a ValueError ``key: expected …`` of one short line, which has all parts in it."""
    with pytest.raises(ValueError, match=f"^{key}: expected ") as caught:
        yield
    text = str(caught.value)
    assert [part for part in map(str, parts) if part not in text] == []
    assert "\n" not in text
    assert len(text) < 600 + sum(len(str(part)) for part in parts)
