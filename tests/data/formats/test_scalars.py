"""Numbers, flags and names in all spellings, and encodings of texts."""

import pytest

from ssd_lightning.data.formats import scalars


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0", "true", "True", " yes\n"])
def test_true(value: object):
    assert scalars.flag(value, "place")


@pytest.mark.parametrize("value", [0, 0.0, False, None, "", "0", "0.0", "false", "False", "No"])
def test_false(value: object):
    assert not scalars.flag(value, "place")


@pytest.mark.parametrize("value", [2, -1, "maybe", [], {}, float("nan")])
def test_any_other_flag_is_an_error(value: object):
    with pytest.raises(ValueError, match=r"^place: expected 0 or 1, got "):
        scalars.flag(value, "place")


@pytest.mark.parametrize(
    ("value", "side"),
    [(200, 200), ("200.0", 200), (" 200 ", 200), (None, 0), ("many", 0), (-4, 0), ("inf", 0), ([], 0)],
)
def test_sides(value: object, side: int):
    assert scalars.side(value) == side


@pytest.mark.parametrize(("value", "name"), [(0, "0"), ("0", "0"), (None, ""), ("", ""), ([], ""), (1.5, "1.5")])
def test_a_name_is_its_text(value: object, name: str):
    assert scalars.name(value) == name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_texts_with_and_without_mark(encoding: str):
    assert scalars.text_of("a größe\nb".encode(encoding), "list.txt") == "a größe\nb"


def test_half_a_text_names_its_file():
    with pytest.raises(ValueError, match=r"^list\.txt: cannot be read as text"):
        scalars.text_of(b"\xff\xfea", "list.txt")
