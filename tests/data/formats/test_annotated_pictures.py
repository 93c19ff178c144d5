"""Pictures with their ground truth: which objects are kept, clipped or left out, and what is reported."""

import logging
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from annotation_row import Edges, row
from PIL import Image

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import PictureAnnotation, as_columns
from ssd_lightning.data.formats.findings import Finding, check_objects, refuse

# --- faults ---


def mended(rows: Sequence[PictureAnnotation], fix, **settings) -> list[tuple[str, list[list[float]]]]:
    """Return each picture's name, and the label and the edges in pixels of its objects."""
    pictures = annotated_pictures(as_columns(rows, "voc"), ["cat", "dog"], fix=fix, **settings)
    refuse(pictures.findings)
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


@pytest.mark.parametrize("count", [5000, 5001])
def test_more_objects_in_a_picture_than_can_be_compared_are_refused(count: int):
    """The checks and scores of 300,000 objects in a picture would never end."""
    rows = [row(("dog", (1, 2, 3, 4))), row(*[("cat", (1, 2, 3, 4))] * count)]
    if count == 5000:
        assert annotated_pictures(as_columns(rows, "voc"), ["cat", "dog"]).counts.tolist() == [1, 5000]
        return
    with pytest.raises(ValueError, match=r"^data: expected at most 5000 objects .*, got 5001 in pictures/a\.png"):
        annotated_pictures(as_columns(rows, "voc"), ["cat", "dog"])


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
    """Right objects stay, and so does a picture without any object left."""
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
    """The right place of its boxes is unknown."""
    rows = [row(("dog", (1, 2, 50, 4)), told_size=(30, 60)), row(("cat", (0, 0, 9, 9)), picture="b.png")]
    assert mended(rows, "skip") == [("b.png", [[1, 0, 0, 9, 9]])]
    with pytest.raises(ValueError, match=r"^a\.xml: size: expected"):
        mended(rows, "clip")
    with pytest.raises(ValueError, match=r"^a\.xml: size: .* \(1 more\. Try ssd-check.*\)$"):
        mended(rows, None)


def test_all_pictures_may_be_left_out():
    assert mended([row(("dog", (1, 2, 3, 4)), told_size=(30, 60))], "skip") == []


def test_the_error_is_the_first_and_tells_how_many_others_there_are():
    one, more = row(("cat", (9, 0, 5, 9))), row(("cow", (9, 0, 99, 9)), source="b.xml")
    with pytest.raises(ValueError, match=r"^a\.xml, object 1: [^()]*$"):
        mended([one], None)
    with pytest.raises(ValueError, match=r"^b\.xml, object 1: name.* \(2 more\. Try ssd-check.*\)$"):
        mended([one, more], None)


def test_what_is_mended_is_told_in_the_log(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        mended([row(FAULTS["right"][0])], "clip")
        assert caplog.messages == []
        mended([row(FAULTS["outside"][0], FAULTS["empty"][0])], "clip")
    (message,) = caplog.messages
    assert re.match(r"2 .* fix=clip.* a\.xml, object 2", message)


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


def test_findings_of_the_reader_are_reported_first():
    found = [Finding("unreadable", "first"), Finding("unreadable", "second")]
    columns = as_columns([row(("cow", (0, 0, 9, 9)))], "voc")
    for fix in (None, "clip"):
        findings = annotated_pictures(columns, ["cat"], fix=fix, findings=found).findings
        assert [finding.kind for finding in findings] == ["unreadable", "unreadable", "class"]
    skipped = annotated_pictures(columns, ["cat"], fix="skip", findings=found)
    assert (skipped.findings, [finding.kind for finding in skipped.fixed]) == ([], ["unreadable"] * 2 + ["class"])


@pytest.mark.parametrize("kind", ["right", "reversed", "outside", "label", "size", "not a number"])
def test_pictures_of_any_data_set_can_be_checked(kind: str):
    """Boxes come back as fractions to the bit, and the labels by their names."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 5000, (50, 2))
    boxes = np.sort(rng.uniform(0, 1, (100, 2, 2)), axis=1).reshape(100, 4).astype(np.float32)
    labels = rng.integers(1, 4, 100)
    if kind == "reversed":
        boxes[7] = boxes[7][[2, 1, 0, 3]]
    elif kind == "outside":
        boxes[7, 2] = 1.5
    elif kind == "label":
        labels[7] = 4
    elif kind == "not a number":
        boxes[7, 0] = np.nan
    pictures = AnnotatedPictures([Path("a")] * 50, sizes, np.full(50, 2), boxes, labels)
    annotations = pictures.annotations("abc", sizes + (np.arange(50) == 3)[:, None] * (kind == "size"))
    right = annotated_pictures(annotations, "abc")
    expected = {"right": [], "label": ["class"], "not a number": ["reversed"]}.get(kind, [kind])
    assert [finding.kind for finding in right.findings] == expected
    kept = np.ones(100, bool)
    kept[{"right": [], "size": [6, 7]}.get(kind, [7])] = False
    np.testing.assert_array_equal(right.boxes, boxes[kept])
    np.testing.assert_array_equal(right.labels, labels[kept])


# --- pictures with their truth ---


@pytest.fixture
def three_pictures(tmp_path: Path) -> AnnotatedPictures:
    """Write three pictures, with 2, 0 and 1 objects."""
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
