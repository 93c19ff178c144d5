"""Annotations in columns, compared with plain lists of rows."""

import random

import numpy as np
import pytest
from annotation_row import row

from ssd_lightning.data.formats.annotations import Annotations, PictureAnnotation, as_columns, concatenate, distinct


def random_rows(rng: random.Random, count: int, names: str = "abcde") -> list[PictureAnnotation]:
    rows = []
    for number in range(count):
        objects = [
            (rng.choice(names), tuple(sorted(rng.uniform(0, 20) for _ in range(4))))
            for _ in range(rng.choice([0, 0, 1, 1, 2, 30]))
        ]
        size, told = (rng.randint(20, 90), rng.randint(20, 90)), (rng.randint(0, 9), rng.randint(0, 9))
        flags = [rng.random() < 0.5 for _ in objects]
        name = f"{number} – {rng.random()}"
        rows.append(row(*objects, source=f"{name}.xml", picture=name, size=size, told_size=told, difficult=flags))
    return rows


def as_rows(annotations: Annotations) -> list[PictureAnnotation]:
    """The way back, object by object."""
    rows, first = [], 0
    for number, count in enumerate(annotations.counts.tolist()):
        objects = range(first, first + count)
        first += count
        rows.append(
            PictureAnnotation(
                annotations.sources[number],
                annotations.pictures[number],
                tuple(annotations.sizes[number].tolist()),
                tuple(annotations.told_sizes[number].tolist()),
                [annotations.vocabulary[annotations.names[i]] for i in objects],
                [tuple(annotations.boxes[i].tolist()) for i in objects],
                [bool(annotations.difficult[i]) for i in objects],
            )
        )
    assert first == len(annotations.names) == len(annotations.boxes) == len(annotations.difficult)
    return rows


@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_columns_hold_what_the_rows_say(count: int):
    rows = random_rows(random.Random(count), count)
    columns = as_columns(rows, "voc")
    assert as_rows(columns) == rows
    assert columns.vocabulary == sorted({name for each in rows for name in each.names})
    assert columns.boxes.dtype == np.float64  # pixels of large pictures stay exact
    expected = [number for number, each in enumerate(rows) for _ in each.names]
    assert columns.picture_of_object().tolist() == expected


def test_pictures_without_objects_are_rows_of_their_own():
    columns = as_columns([row(), row(("b", (0, 0, 1, 1))), row()], "voc")
    assert columns.counts.tolist() == [0, 1, 0]
    assert columns.boxes.shape == (1, 4)
    assert as_columns([row()], "voc").boxes.shape == (0, 4)


def test_a_given_vocabulary_keeps_its_order_and_what_is_never_used():
    columns = as_columns([row(("b", (0, 0, 1, 1)))], "coco", ["c", "b", "a"])
    assert columns.vocabulary == ["c", "b", "a"]
    assert columns.names.tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_select_is_that_of_plain_lists(seed: int):
    rng = random.Random(seed)
    rows = random_rows(rng, 12)
    columns = as_columns(rows, "voc")
    for length in (0, 1, 7, 30):  # more than there are: some are taken more than once
        chosen = [rng.randrange(len(rows)) for _ in range(length)]
        selected = columns.select(np.array(chosen, dtype=np.int64))
        assert as_rows(selected) == [rows[number] for number in chosen]
        assert (selected.vocabulary, selected.box_format) == (columns.vocabulary, "voc")
    assert as_rows(columns) == rows


@pytest.mark.parametrize("seed", range(5))
def test_concatenate_is_that_of_plain_lists(seed: int):
    """The parts number their names in different ways."""
    rng = random.Random(seed)
    parts = [random_rows(rng, count, names) for count, names in ((3, "xbq"), (0, "a"), (1, "ba"), (9, "abcx"))]
    columns = [as_columns(part, "coco") for part in parts]
    columns[2] = as_columns(parts[2], "coco", ["b", "z", "a"])
    for length in (1, 2, 4):
        joined = concatenate(columns[:length])
        assert as_rows(joined) == [each for part in parts[:length] for each in part]
        assert joined.vocabulary == sorted({name for part in columns[:length] for name in part.vocabulary})
        assert joined.box_format == "coco"


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_classes_are_given_once_each(names: list[str]):
    with pytest.raises(ValueError, match="classes: expected at least one name, and none twice, got"):
        distinct(names)
    assert distinct(["b", "a"]) == ("b", "a")
