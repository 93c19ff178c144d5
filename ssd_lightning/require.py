"""Checks of numeric arguments, with one form of message.

Commands import this module before torch, to answer at once.
"""

from numbers import Integral, Real
from typing import Any


def require_number(name: str, value: Any, interval: str) -> None:
    """Raise an error if ``value`` is not a number in ``interval``.

    Args:
        name: the argument, as in the code or on the command line.
        value: anything that a config can hold. NaN lies in no interval, and a bool is not a number.
        interval: such as ``(0, 1]``, where the round bracket excludes its end. Infinity is always excluded.

    Raises:
        ValueError: with the argument's name, the interval and the value.
    """
    least, most = map(float, interval[1:-1].split(","))
    is_inside = _is_a(value, Real) and (
        least < value < most or (value == least and interval[0] == "[") or (value == most and interval[-1] == "]")
    )
    if not is_inside:
        expected = f"in {interval}"
        if most == float("inf"):
            expected = f"of at least {least:g}" if interval[0] == "[" else f"above {least:g}"
        raise ValueError(f"{name}: expected a number {expected}, got {value}")


def require_whole_number(name: str, value: Any, least: int) -> None:
    """Raise an error if ``value`` is not a whole number of at least ``least``.

    Raises:
        ValueError: with the argument's name, the lowest allowed number and the value.
    """
    if not (_is_a(value, Integral) and value >= least):
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value}")


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
