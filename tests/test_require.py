"""Checks of numeric arguments."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import ssd_lightning.require as require_module
from ssd_lightning.require import (
    counted,
    in_short,
    one_line,
    parse_json,
    parse_yaml,
    require_limits,
    require_names,
    require_number,
    require_whole_number,
)


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


def test_names():
    assert require_names("x", ["b", "a"]) == ("b", "a")
    for value in ([], "ab", ("a",), None, 3, {"a": 1}, ["a", 1], [["a"]], ["a", "a"], ["a" * 201], ["a\ud800"]):
        with pytest.raises(ValueError, match=r"^x: expected .*names?.*, got"):
            require_names("x", value)


def test_limits_of_nested_values_count_from_one_too_many(monkeypatch: pytest.MonkeyPatch):
    depth = require_module.DEEPEST
    for read in (lambda text: parse_json(text), lambda text: parse_json(text.encode())):
        assert read("[" * depth + "]" * depth)
        for levels in (depth + 1, 900, 100_000):
            with pytest.raises(ValueError, match=f"at most {depth} levels"):
                read("[" * levels + "]" * levels)
        with pytest.raises(ValueError, match=r"line 1 column 2"):
            read("[")
    assert parse_json('{"a": [1e-05, "é", null]}') == {"a": [1e-05, "é", None]}
    monkeypatch.setattr(require_module, "MOST_VALUES", 4)
    require_limits({"a": 1, "b": [2]})
    with pytest.raises(ValueError, match="at most 4 values"):
        require_limits({"a": 1, "b": [2, 3]})
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueError, match=r"levels|values"):
        require_limits(endless)


def test_values_of_strangers_are_shown_in_one_short_line():
    for value in ("a\nb", "x" * 1000, [1] * 1000, {"a": "\n"}, 10**5000, torch.zeros(9, 9), None, 0.5):
        assert "\n" not in in_short(value)
        assert len(in_short(value)) <= require_module.LONGEST_SHOWN + 1
    assert (in_short("a"), in_short(3), in_short([1])) == ("'a'", "3", "a list")
    assert one_line(ValueError("a\n  b")) == "a b"
    assert len(one_line("a " * 1000)) <= require_module.LONGEST_REASON


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "b:\n- {c: 1, 'c': 2}", "{a: {b: 1}, a: {b: 1}}"])
def test_a_key_that_is_given_twice(text: str):
    with pytest.raises(ValueError, match=r"^expected each key once, got '[ac]' twice$"):
        parse_yaml(text.encode())
    as_json = text.replace("b:\n- ", "").replace("'", "")
    with pytest.raises(ValueError, match=r"^expected each key once, got '[ac]' twice$"):
        parse_json(re.sub(r"([abc])", r'"\1"', as_json))


def test_keys_of_several_mappings():
    text = "{a: {a: 1, b: [a, a, {a: 1}]}, b: {a: 1}, c: a}"
    expected = {"a": {"a": 1, "b": ["a", "a", {"a": 1}]}, "b": {"a": 1}, "c": "a"}
    assert parse_yaml(text.encode()) == expected
    assert parse_json(re.sub(r"([abc])", r'"\1"', text)) == expected


@pytest.mark.parametrize(
    ("number", "nouns", "expected"),
    [
        (0, ["picture"], "0 pictures"),
        (1, ["picture"], "1 picture"),
        (2, ["picture"], "2 pictures"),
        (1, ["class", "classes"], "1 class"),
        (3, ["class", "classes"], "3 classes"),
    ],
)
def test_counted(number: int, nouns: list[str], expected: str):
    assert counted(number, *nouns) == expected
