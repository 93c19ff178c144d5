"""Rules for values on the command line. Tables of arguments are made of them, and torch is not imported."""

from collections.abc import Callable
from typing import Any

from ssd_lightning.require import require_number, require_whole_number

Rule = Callable[[str, Any], None]
"""A check of one value, which raises a ValueError that begins with the key."""


def whole(least: int) -> Rule:
    """Allow whole numbers of at least ``least``."""
    return lambda key, value: require_whole_number(key, value, least)


def number(interval: str) -> Rule:
    """Allow numbers in an interval."""
    return lambda key, value: require_number(key, value, interval)


def one_of(*options: Any) -> Rule:
    """Allow one of some values."""

    def rule(key: str, value: Any) -> None:
        # In Python 1 equals True.
        if not any(type(value) is type(option) and value == option for option in options):
            names = ", ".join(map(_as_typed, options))
            raise ValueError(f"{key}: expected {'one of ' if len(options) > 1 else ''}{names}, got {value}")

    return rule


def only(option: Any, advice: str) -> Rule:
    """Allow one value, since others would be ignored or would break what the commands do themselves."""

    def rule(key: str, value: Any) -> None:
        if type(value) is not type(option) or value != option:
            raise ValueError(f"{key}: expected {_as_typed(option)}, got {value}. Try {advice}.")

    return rule


def part(rule: Rule) -> Rule:
    """Allow a class by its ``_target_`` as well as what the rule allows."""
    return lambda key, value: None if isinstance(value, dict) and "_target_" in value else rule(key, value)


def _as_typed(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


switch = one_of(True, False)
"""Allow true and false."""
