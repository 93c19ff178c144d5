"""Faults of annotations, in the words of their format, and the values of ``fix``."""

from pathlib import Path

import pytest
from annotation_row import Edges, row

from ssd_lightning.data.formats import splits
from ssd_lightning.data.formats.annotated_pictures import annotated_pictures
from ssd_lightning.data.formats.annotations import as_columns
from ssd_lightning.data.formats.coco import COCO
from ssd_lightning.data.formats.findings import Finding, check_fix, check_objects, refuse
from ssd_lightning.data.formats.voc import VOC
from ssd_lightning.data.formats.voc_folder import VOCFolder

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
    """Training would see a box without width, whose logarithm is infinite."""
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


@pytest.mark.parametrize("box_format", ["voc", "coco", "edges"])
def test_fractions_of_the_picture_are_no_pixels(box_format):
    offset = 1 if box_format == "voc" else 0
    rows = [row(("cat", (0.25 - offset, 0.5 - offset, 0.5, 0.75)), ("cat", (0.0 - offset, 0.0 - offset, 1.0, 1.0)))]
    (finding,) = check_objects(as_columns(rows, box_format), ["cat"])
    assert finding.kind == "units"
    for fix in (None, "clip", "skip"):
        pictures = annotated_pictures(as_columns(rows, box_format), ["cat"], fix=fix)
        assert [found.kind for found in pictures.findings] == ["units"]
        assert len(pictures.boxes) == 0


def test_one_box_of_pixels_among_small_ones_is_in_pixels():
    rows = [row(("cat", (0.25, 0.25, 0.75, 0.75)), ("cat", (3, 3, 9, 9)))]
    assert check_objects(as_columns(rows, "edges"), ["cat"]) == []


@pytest.mark.parametrize(
    ("box_format", "told"), [("voc", "left, top, width, height"), ("coco", "xmin, ymin, xmax, ymax")]
)
def test_boxes_in_the_order_of_another_format(box_format, told: str):
    things = [("cat", (30 + n, 10, 35 + n, 18)) for n in range(5)]
    if box_format == "voc":
        things = [("cat", (left, top, right - left, bottom - top)) for _, (left, top, right, bottom) in things]
    else:
        things = [("cat", (left, top, left + right, top + bottom)) for _, (left, top, right, bottom) in things]
    found = check_objects(as_columns([row(*things)], box_format), ["cat"])
    assert (found[0].kind, found[0].text.endswith(told)) == ("units", True)


def test_nothing_to_refuse():
    refuse([])
    with pytest.raises(ValueError, match=r"^first$"):
        refuse([Finding("class", "first")])


def test_the_error_is_the_first_finding_and_the_number_of_others():
    findings = [Finding("unreadable", "first"), Finding("class", "second"), Finding("class", "third")]
    with pytest.raises(ValueError, match=r"^first \(2 more\. Try ssd-check, which lists them\)$"):
        refuse(findings)


@pytest.mark.parametrize("fix", ["", "cut", "Skip", "null"])
def test_a_wrong_fix_is_refused(fix: str):
    with pytest.raises(ValueError, match=rf"^fix: expected one of skip, clip or null, got {fix!r}$"):
        check_fix(fix)


@pytest.mark.parametrize("build", [VOCFolder, VOC, COCO])
def test_all_data_sets_check_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build):
    asked = []
    monkeypatch.setattr(splits, "check_fix", asked.append)
    build(tmp_path, fix="clip")
    assert asked == ["clip"]


def test_right_values_of_fix():
    for fix in (None, "skip", "clip"):
        check_fix(fix)
