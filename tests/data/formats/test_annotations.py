"""What annotations say of many pictures: in columns, checked, mended, and put beside their pictures."""

import logging
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd_lightning.data.formats.annotations import (
    AnnotatedPictures,
    Annotations,
    Finding,
    PictureAnnotation,
    annotated_pictures,
    as_columns,
    check_fix,
    check_objects,
    concatenate,
    distinct,
    refuse,
    refuse_unreadable,
)

Edges = tuple[float, float, float, float]


def row(
    *objects: tuple[str, Edges],
    source: str = "a.xml",
    picture: str = "pictures/a.png",
    size: tuple[int, int] = (20, 40),
    told_size: tuple[int, int] = (0, 0),
    difficult: Sequence[bool] = (),
) -> PictureAnnotation:
    """A picture of 40×20 pixels with objects, their edges counted from 0."""
    names, boxes = [name for name, _ in objects], [tuple(map(float, edges)) for _, edges in objects]
    flags = list(difficult) or [False] * len(objects)
    return PictureAnnotation(source, picture, size, told_size, names, boxes, flags)


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


# --- columns ---


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
    """Though each part numbers its names in its own way."""
    rng = random.Random(seed)
    parts = [random_rows(rng, count, names) for count, names in ((3, "xbq"), (0, "a"), (1, "ba"), (9, "abcx"))]
    columns = [as_columns(part, "coco") for part in parts]
    columns[2] = as_columns(parts[2], "coco", ["b", "z", "a"])
    for length in (1, 2, 4):
        joined = concatenate(columns[:length])
        assert as_rows(joined) == [each for part in parts[:length] for each in part]
        assert joined.vocabulary == sorted({name for part in columns[:length] for name in part.vocabulary})
        assert joined.box_format == "coco"


# --- findings ---

VOC_FINDINGS = {
    "class": (("dof", (0, 0, 9, 9)), "class", "name: expected one of cat, dog, got 'dof'"),
    "no name": (("", (0, 0, 9, 9)), "class", "name: expected one of cat, dog, got ''"),
    "other case": (("Cat", (0, 0, 9, 9)), "class", "name: expected one of cat, dog, got 'Cat'"),
    "right before left": (
        ("cat", (8, 0, 5, 9)),
        "reversed",
        "expected xmin <= xmax and ymin <= ymax, got xmin=9 ymin=1 xmax=5 ymax=9",
    ),
    "bottom above top": (
        ("cat", (0, 8.5, 5, 7.25)),
        "reversed",
        "expected xmin <= xmax and ymin <= ymax, got xmin=1 ymin=9.5 xmax=5 ymax=7.25",
    ),
    "no width": (
        ("cat", (5, 0, 5, 9)),
        "empty",
        "expected xmin <= xmax and ymin <= ymax, got xmin=6 ymin=1 xmax=5 ymax=9",
    ),
    "no height": (
        ("cat", (0, 7, 5, 7)),
        "empty",
        "expected xmin <= xmax and ymin <= ymax, got xmin=1 ymin=8 xmax=5 ymax=7",
    ),
    "too far left": (
        ("cat", (-2, 0, 9, 9)),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got xmin=-1 ymin=1 xmax=9 ymax=9",
    ),
    "too far up": (
        ("cat", (0, -1.5, 9, 9)),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got xmin=1 ymin=-0.5 xmax=9 ymax=9",
    ),
    "too far right": (
        ("cat", (0, 0, 1234567, 9)),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got xmin=1 ymin=1 xmax=1234567 ymax=9",
    ),
    "too far down": (
        ("cat", (0, 0, 9, 22)),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got xmin=1 ymin=1 xmax=9 ymax=22",
    ),
    "just beside": (
        ("cat", (40, 0, 41, 9)),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got xmin=41 ymin=1 xmax=41 ymax=9",
    ),
    "just above": (
        ("cat", (0, -1, 9, 0)),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got xmin=1 ymin=0 xmax=9 ymax=0",
    ),
}


@pytest.mark.parametrize(("thing", "kind", "text"), VOC_FINDINGS.values(), ids=VOC_FINDINGS)
def test_what_is_wrong_with_an_object_is_told_in_the_words_of_its_xml(thing, kind: str, text: str):
    """Pixels counted from 1, the last one included; objects counted from 1 in each picture."""
    right = ("dog", (0, 0, 40, 20))
    rows = [row(right, right, source="0.xml"), row(), row(right, thing, right, source="2.xml")]
    assert check_objects(as_columns(rows, "voc"), ["cat", "dog"]) == [Finding(kind, f"2.xml, object 2: {text}")]


COCO_FINDINGS = {
    "negative width": ((9, 1, 4, 9), "reversed", "expected a width and a height above 0, got bbox=[9, 1, -5, 8]"),
    "no height": ((9, 1.5, 14, 1.5), "empty", "expected a width and a height above 0, got bbox=[9, 1.5, 5, 0]"),
    "outside": (
        (10.1, 2.25, 10.1 + 31.2, 9),
        "outside",
        "expected a box inside a.png of 40×20 pixels, got bbox=[10.1, 2.25, 31.2, 6.75]",
    ),
}


@pytest.mark.parametrize(("edges", "kind", "text"), COCO_FINDINGS.values(), ids=COCO_FINDINGS)
def test_and_in_the_words_of_coco(edges: Edges, kind: str, text: str):
    columns = as_columns([row(), row(("cat", edges), source="a.json, image 7")], "coco")
    assert check_objects(columns, ["cat"]) == [Finding(kind, f"a.json, image 7, object 1: {text}")]


def test_a_width_that_float32_cannot_tell_is_none():
    """It would be trained on as a box without width, whose logarithm is infinite."""
    columns = as_columns([row(("cat", (30.0, 1.0, 30.0 + 1e-6, 9.0)))], "coco")
    assert [finding.kind for finding in check_objects(columns, ["cat"])] == ["empty"]
    assert len(annotated_pictures(columns, ["cat"], fix="clip").boxes) == 0
    thin = as_columns([row(("cat", (30.0, 1.0, 30.0 + 1e-4, 9.0)))], "coco")
    left, _, right, _ = annotated_pictures(thin, ["cat"]).boxes[0]
    assert left < right


@pytest.mark.parametrize(
    ("told", "size", "text"),
    [
        ((30, 50), (20, 40), "expected 40×20 pixels as a.png has, got 50×30"),
        ((20, 41), (20, 40), "expected 40×20 pixels as a.png has, got 41×20"),
        ((40, 20), (20, 40), "expected 40×20 pixels as a.png has upright, got 20×40"),
    ],
)
def test_another_size_than_the_picture_has(told, size, text: str):
    columns = as_columns([row(), row(source="b.xml", told_size=told, size=size)], "voc")
    assert check_objects(columns, []) == [Finding("size", f"b.xml: size: {text}")]


@pytest.mark.parametrize("told", [(0, 0), (0, 50), (50, 0), (20, 40)])
def test_a_size_of_0_tells_nothing(told: tuple[int, int]):
    assert check_objects(as_columns([row(told_size=told)], "voc"), []) == []


def test_several_faults_in_one_picture_are_all_told():
    faulty = row(
        ("cow", (5, 0, 5, 9)), ("cat", (0, 0, 5, 9)), ("cow", (9, 0, 99, 9)), ("cat", (9, 9, 8, 9)), told_size=(9, 9)
    )
    told = [
        (finding.kind, finding.text.split(":")[0]) for finding in check_objects(as_columns([faulty], "voc"), ["cat"])
    ]
    assert told == [
        ("size", "a.xml"),
        ("class", "a.xml, object 1"),
        ("class", "a.xml, object 3"),
        ("reversed", "a.xml, object 4"),
        ("empty", "a.xml, object 1"),
        ("outside", "a.xml, object 3"),
    ]


# --- what is done about them ---


def mended(rows: Sequence[PictureAnnotation], fix, **settings) -> list[tuple[str, list[list[float]]]]:
    """Of each picture its name, and label and edges in pixels of each object."""
    pictures = annotated_pictures(as_columns(rows, "voc"), ["cat", "dog"], fix=fix, **settings)
    result = []
    for index, path in enumerate(pictures.paths):
        (height, width), boxes, labels, _ = pictures.truth(index)
        pixels = (boxes.astype(float) * (width, height, width, height)).round(3)
        result.append(
            (path.name, [[label, *edges] for label, edges in zip(labels.tolist(), pixels.tolist(), strict=True)])
        )
    return result


def test_a_pixel_over_the_border_is_cut_whatever_fix_is():
    edges = [(-1, -1, 40, 20), (0, 0, 41, 21), (-0.5, -0.25, 40.75, 20.5)]
    rows = [row(*(("dog", box) for box in edges))]
    assert check_objects(as_columns(rows, "voc"), ["dog"]) == []
    for fix in (None, "skip", "clip"):
        assert mended(rows, fix) == [("a.png", [[2, 0, 0, 40, 20]] * 3)]


def test_boxes_are_exact_in_float32():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6000, (200, 2))
    edges = np.sort(rng.uniform(0, 1, (200, 2, 2)), axis=1).reshape(200, 4) * sizes[:, [1, 0, 1, 0]]
    rows = [row(("a", tuple(e)), size=tuple(s)) for e, s in zip(edges.tolist(), sizes.tolist(), strict=True)]
    pictures = annotated_pictures(as_columns(rows, "voc"), ["a"])
    assert pictures.boxes.dtype == np.float32
    for index, (box, (height, width)) in enumerate(zip(edges.tolist(), sizes.tolist(), strict=True)):
        sides = (width, height, width, height)
        expected = [np.float32(edge / side) for edge, side in zip(box, sides, strict=True)]
        assert pictures.truth(index).boxes.tolist() == [expected]


FAULTS: dict[str, tuple[tuple[str, Edges], list[list[float]] | None]] = {
    "right": (("dog", (1, 2, 3, 4)), [[2, 1, 2, 3, 4]]),
    "reversed": (("cat", (8, 0, 5, 9)), []),
    "reversed over the border": (("cat", (50, 0, -5, 9)), []),
    "empty": (("cat", (5, 0, 5, 9)), []),
    "outside": (("dog", (-5, 10, 9, 30)), [[2, 0, 10, 9, 20]]),
    "larger than the picture": (("cat", (-9, -9, 99, 99)), [[1, 0, 0, 40, 20]]),
    "beside": (("cat", (50, 0, 60, 9)), []),
    "just beside": (("cat", (40, 0, 41, 9)), []),
}
"""Objects of a picture of 40×20 pixels, and what ``clip`` leaves of each."""


@pytest.mark.parametrize(("thing", "clipped"), FAULTS.values(), ids=FAULTS)
def test_each_fault_by_itself(thing, clipped):
    """What is right stays, and so does a picture without any object left."""
    is_right = thing == FAULTS["right"][0]
    assert mended([row(thing)], "clip") == [("a.png", clipped)]
    assert mended([row(thing)], "skip") == [("a.png", clipped if is_right else [])]
    if not is_right:
        with pytest.raises(ValueError, match=r"^a\.xml, object 1: expected"):
            mended([row(thing)], None)


@pytest.mark.parametrize("seed", range(5))
def test_random_faults_in_one_picture_are_mended_one_by_one(seed: int):
    rng = random.Random(seed)
    chosen = [[rng.choice(list(FAULTS)) for _ in range(rng.choice([0, 1, 5]))] for _ in range(8)]
    rows = [row(*(FAULTS[name][0] for name in names), picture=str(n)) for n, names in enumerate(chosen)]
    for fix in ("skip", "clip"):
        expected = [
            (str(n), [o for name in names if fix == "clip" or name == "right" for o in FAULTS[name][1] or []])
            for n, names in enumerate(chosen)
        ]
        assert mended(rows, fix) == expected


def test_an_unknown_class_is_left_out_by_skip_and_by_nothing_else():
    rows = [row(("cow", (0, 0, 9, 9)), ("dog", (0, 0, 9, 9)))]
    assert mended(rows, "skip") == [("a.png", [[2, 0, 0, 9, 9]])]
    for fix in (None, "clip"):
        with pytest.raises(ValueError, match=r"^a\.xml, object 1: name: expected one of cat, dog, got 'cow'$"):
            mended(rows, fix)


def test_a_wrong_class_is_the_error_though_clip_would_deal_with_what_comes_before():
    rows = [row(("dog", (0, 0, 99, 9))), row(("cow", (0, 0, 99, 9)), source="b.xml")]
    with pytest.raises(ValueError, match=r"^b\.xml, object 1: name: .*got 'cow'$"):
        mended(rows, "clip")


def test_a_picture_of_another_size_is_left_out_by_skip_alone():
    """Where its boxes belong cannot be told."""
    rows = [row(("dog", (1, 2, 50, 4)), told_size=(30, 60)), row(("cat", (0, 0, 9, 9)), picture="b.png")]
    assert mended(rows, "skip") == [("b.png", [[1, 0, 0, 9, 9]])]
    with pytest.raises(ValueError, match=r"^a\.xml: size: expected"):
        mended(rows, "clip")
    with pytest.raises(ValueError, match=r"^a\.xml: size: .* \(1 more: ssd-check lists them\)$"):
        mended(rows, None)


def test_all_pictures_may_be_left_out():
    assert mended([row(("dog", (1, 2, 3, 4)), told_size=(30, 60))], "skip") == []


def test_the_error_is_the_first_and_tells_how_many_others_there_are():
    one, more = row(("cat", (9, 0, 5, 9))), row(("cow", (9, 0, 99, 9)), source="b.xml")
    with pytest.raises(ValueError, match=r"^a\.xml, object 1: [^()]*$"):
        mended([one], None)
    with pytest.raises(ValueError, match=r"^b\.xml, object 1: name.* \(2 more: ssd-check lists them\)$"):
        mended([one, more], None)


def test_what_is_mended_is_told_in_the_log(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        mended([row(FAULTS["right"][0])], "clip")
        assert caplog.messages == []
        mended([row(FAULTS["outside"][0], FAULTS["empty"][0])], "clip")
    (message,) = caplog.messages
    assert message.startswith("2 objects or pictures are not as they should be; fix=clip. The first: a.xml, object 2")


def test_difficult_objects_are_left_out_if_not_wanted():
    rows = [
        row(("cat", (0, 0, 1, 1)), ("dog", (0, 0, 2, 2)), difficult=[True, False]),
        row(("cat", (0, 0, 3, 3)), difficult=[True]),
    ]
    pictures = annotated_pictures(as_columns(rows, "voc"), ["cat", "dog"], difficult=False)
    assert pictures.counts.tolist() == [1, 0]
    assert pictures.difficult.tolist() == [False]
    assert mended(rows, None, difficult=False) == [("a.png", [[2, 0, 0, 2, 2]]), ("a.png", [])]
    wanted = annotated_pictures(as_columns(rows, "voc"), ["cat", "dog"])
    assert [wanted.truth(index).difficult.tolist() for index in range(2)] == [[True, False], [True]]


def test_labels_follow_the_order_of_the_classes():
    rows = [row(*((name, (0, 0, 9, 9)) for name in "abc"))]
    pictures = annotated_pictures(as_columns(rows, "voc"), ["c", "x", "a", "b"])
    assert pictures.labels.tolist() == [3, 4, 1]


def test_nothing_to_refuse():
    refuse([])
    refuse_unreadable([], None)
    with pytest.raises(ValueError, match=r"^first$"):
        refuse([Finding("class", "first")])


def test_what_cannot_be_read_is_left_out_by_skip_alone(caplog: pytest.LogCaptureFixture):
    findings = [Finding("unreadable", "first"), Finding("unreadable", "second")]
    for fix in (None, "clip"):
        with pytest.raises(ValueError, match=r"^first \(1 more: ssd-check lists them\)$"):
            refuse_unreadable(findings, fix)
    with caplog.at_level(logging.WARNING):
        refuse_unreadable([], "skip")
        refuse_unreadable(findings, "skip")
    assert caplog.messages == ["2 pictures are left out; fix=skip. The first: first"]


def test_a_wrong_fix_is_refused_by_all_data_sets(tmp_path: Path):
    """In a process of its own, without the type checker of the tests, which would refuse it first."""
    program = """
import sys
from ssd_lightning.data.formats.coco import COCO
from ssd_lightning.data.formats.voc import VOC, VOCFolder
for build in (VOCFolder, VOC, COCO):
    for fix in ("", "cut", "Skip", "null", 0, True):
        try:
            build(sys.argv[1], fix=fix)
        except ValueError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    told = [f"fix: expected one of skip, clip or null, got {fix!r}" for fix in ("", "cut", "Skip", "null", 0, True)]
    assert done.stdout.splitlines() == told * 3


def test_right_values_of_fix():
    for fix in (None, "skip", "clip"):
        check_fix(fix)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_classes_are_given_once_each(names: list[str]):
    with pytest.raises(ValueError, match="classes: expected at least one name, and none twice, got"):
        distinct(names)
    assert distinct(["b", "a"]) == ("b", "a")


# --- pictures with their truth ---


@pytest.fixture
def three_pictures(tmp_path: Path) -> AnnotatedPictures:
    """With 2, 0 and 1 objects."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    sizes = [(20, 40), (1, 1), (300, 200)]
    for path, (height, width) in zip(paths, sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    boxes = np.array([[0, 0, 0.5, 1], [0.25, 0.5, 1, 1], [0.1, 0.2, 0.3, 0.4]])
    return AnnotatedPictures(
        paths, np.array(sizes), np.array([2, 0, 1]), boxes, np.array([2, 1, 3]), np.array([False, True, False])
    )


def test_truth_image_and_item_agree(three_pictures: AnnotatedPictures):
    assert len(three_pictures) == 3
    expected = [([2, 1], [False, True]), ([], []), ([3], [False])]
    for index, (labels, difficult) in enumerate(expected):
        truth, sample = three_pictures.truth(index), three_pictures[index]
        assert truth.labels.tolist() == sample.labels.tolist() == labels
        assert truth.difficult.tolist() == sample.difficult.tolist() == difficult
        np.testing.assert_array_equal(truth.boxes, sample.boxes)
        np.testing.assert_array_equal(sample.image, three_pictures.image(index))
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(three_pictures.paths[index])))
        assert truth.size == sample.image.shape[:2]
    np.testing.assert_array_equal(three_pictures.truth(2).boxes, np.array([[0.1, 0.2, 0.3, 0.4]], dtype=np.float32))


def test_no_object_is_difficult_where_nothing_is_told(three_pictures: AnnotatedPictures):
    columns = (getattr(three_pictures, name) for name in ("paths", "sizes", "counts", "boxes", "labels"))
    pictures = AnnotatedPictures(*columns)
    assert pictures.difficult.tolist() == [False] * 3


def test_no_pictures():
    pictures = AnnotatedPictures([], np.zeros((0, 2), int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int))
    assert len(pictures) == 0


def test_thirty_megapixels_are_decoded_for_a_small_network_in_little_memory(tmp_path: Path):
    """Measured from outside, as Python knows nothing of what Pillow takes."""
    Image.new("RGB", (6000, 5000), (200, 30, 30)).save(tmp_path / "a.jpg")
    truth = np.array([[0.5, 0.5, 1, 1]])
    pictures = AnnotatedPictures([tmp_path / "a.jpg"], np.array([[5000, 6000]]), np.array([1]), truth, np.array([1]))
    assert pictures.image(0, (300, 300)).shape == (625, 750, 3)  # an eighth, and still twice as much as needed
    assert pictures.truth(0).size == (5000, 6000)
    program = (
        "import resource, sys; from pathlib import Path; from ssd_lightning.data.pictures import read_picture\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used(); read_picture(Path(sys.argv[1]), (300, 300)); print(used() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.jpg"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40_000  # kilobytes; the whole picture has 90 MB
