"""Checks of numeric arguments."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ssd_lightning.require import require_number, require_whole_number


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1]", [0, 1, 0.5, 1e-300], [-1e-300, 1.0000001, math.inf, -math.inf]),
        ("(0, 1]", [1, 0.5, 1e-300], [0, -0.0, 2]),
        ("[0, 1)", [0, 0.9999999], [1, 1.0]),
        ("(0, 1)", [0.5], [0, 1]),
        ("[0, 0.5]", [0.5, 0.25], [0.51]),
        ("[1, inf)", [1, 1e300], [0.999, math.inf]),
    ],
)
def test_intervals(interval: str, inside: list[float], outside: list[float]):
    for value in inside:
        require_number("x", value, interval)
    for value in [*outside, math.nan]:
        with pytest.raises(ValueError, match=r"^x: expected a number .*, got"):
            require_number("x", value, interval)


@pytest.mark.parametrize("value", ["0.5", "abc", None, True, [0.5], 0.5j])
def test_values_that_are_not_numbers(value: object):
    for require in (lambda: require_number("x", value, "[0, 1]"), lambda: require_whole_number("x", value, 0)):
        with pytest.raises(ValueError, match=r"^x: expected a "):
            require()


def test_numbers_of_other_libraries():
    for value in (np.float32(0.5), np.float64(0.5), Fraction(1, 2), torch.tensor(0.5).item()):
        require_number("x", value, "[0, 1]")
        with pytest.raises(ValueError, match=r"^x: expected a number in \[0, 1\], got"):
            require_number("x", value + 1, "[0, 1]")
    for value in (np.int64(3), np.uint8(3)):
        require_whole_number("x", value, 3)
        with pytest.raises(ValueError, match=r"^x: expected a whole number of at least 4, got 3$"):
            require_whole_number("x", value, 4)


@pytest.mark.parametrize("value", [2, -1, 3.0, 3.5, math.inf, math.nan, np.float64(4)])
def test_whole_numbers(value: float):
    require_whole_number("x", 3, 3)
    require_whole_number("x", 10**12, 3)
    with pytest.raises(ValueError, match=r"^x: expected a whole number of at least 3, got"):
        require_whole_number("x", value, 3)


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ("(0, 1]", "x: expected a number in (0, 1], got abc"),
        ("[2, inf)", "x: expected a number of at least 2, got abc"),
        ("(0, inf)", "x: expected a number above 0, got abc"),
    ],
)
def test_messages(interval: str, message: str):
    with pytest.raises(ValueError, match="expected") as error:
        require_number("x", "abc", interval)
    assert str(error.value) == message
