"""Unusual json files in the style of COCO: polygons, turned pictures, repeated keys, and files made to do harm."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from voc_xml import write_picture

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.coco import COCO, read_json

IMAGE, CATEGORY = {"id": 1, "file_name": "a.png"}, {"id": 1, "name": "cat"}
OBJECT: dict[str, Any] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 2.5, 27, 14.5]}


@pytest.fixture(autouse=True)
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return write_picture(tmp_path / "a.png")


def as_json(*objects: dict[str, Any], image: dict[str, Any] = IMAGE, category: dict[str, Any] = CATEGORY) -> str:
    return json.dumps({"images": [image], "annotations": objects, "categories": [category]})


def read(folder: Path, content: str | bytes, **settings) -> AnnotatedPictures:
    path = folder / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return COCO(folder, path, path, **settings).train()


def in_pixels(pictures: AnnotatedPictures) -> list[list[float]]:
    (height, width), boxes, *_ = pictures.truth(0)
    return (boxes.astype(float) * (width, height, width, height)).round(3).tolist()


# --- polygons ---


@pytest.mark.parametrize(
    "parts",
    [
        [[12, 2.5, 30, 9, 3, 17]],
        [[12, 2.5, 30, 9, 15, 9], [3, 17, 4, 16, 4, 17]],
        [12, 2.5, 30, 9, 3, 17],
    ],
)
@pytest.mark.parametrize("box", [None, [], "absent"])
def test_a_polygon_without_a_box_is_the_box_around_it(tmp_path: Path, parts: list, box: object):
    thing = {**OBJECT, "bbox": box, "segmentation": parts}
    if box == "absent":
        del thing["bbox"]
    for _ in range(2):  # read, and from the cache
        pictures = read(tmp_path, as_json(thing))
        assert pictures.findings == []
        assert in_pixels(pictures) == [[3, 2.5, 30, 17]]
        assert [remark.kind for remark in pictures.remarks] == ["polygon"]
        assert "1 object" in pictures.remarks[0].text


def test_a_box_beside_a_polygon_is_the_box(tmp_path: Path):
    pictures = read(tmp_path, as_json({**OBJECT, "segmentation": [[1, 1, 2, 2, 3, 1]]}))
    assert (in_pixels(pictures), pictures.remarks) == ([[3, 2.5, 30, 17]], [])


@pytest.mark.parametrize(
    "parts",
    [{"counts": [1, 2], "size": [20, 40]}, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [["1"] * 6], [[1, 2, 3, 4, 5, 1e300]]],
)
def test_what_no_box_can_be_made_of(tmp_path: Path, parts: object):
    (finding,) = set(read(tmp_path, as_json({**OBJECT, "bbox": None, "segmentation": parts})).findings)
    assert finding.kind == "unreadable"
    for part in ("labels.json", "annotation 1", "bbox", "segmentation"):
        assert part in finding.text


# --- pictures that are turned ---


def test_boxes_of_stored_pixels(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png", exif=exif)
    content = as_json(OBJECT, image={**IMAGE, "width": 40, "height": 20})
    kinds = {
        boxes_of: {f.kind for f in read(tmp_path, content, boxes_of=boxes_of).findings}
        for boxes_of in ("shown", "stored")
    }
    assert kinds == {"shown": {"turned", "outside"}, "stored": set()}
    # x becomes 20 - y, and y becomes x.
    assert in_pixels(read(tmp_path, content, boxes_of="stored")) == [[3, 3, 17.5, 30]]


def test_the_largest_picture_is_an_option(tmp_path: Path):
    content = as_json(OBJECT)
    for _ in range(2):
        (finding,) = set(read(tmp_path, content, max_megapixels=0.0007).findings)
        assert finding.kind == "unreadable"
        assert "40×20" in finding.text
        assert "data.max_megapixels" in finding.text
        assert read(tmp_path, content, max_megapixels=0.0008).findings == []


# --- the split that the names of the files say ---


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("instances_train2017.json", "instances_val2017.json"),
        ("instances_Train.json", "instances_Validation.json"),
        ("instances_Train.json", "instances_Val.json"),
        ("mine_train.json", "mine_valid.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("TRAIN.json", "val.json"),
    ],
)
def test_the_file_to_score_on_is_known_by_its_name(tmp_path: Path, train: str, val: str):
    write_picture(tmp_path / "b.png")
    for name, file_name in ((train, "a.png"), (val, "b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(as_json(OBJECT, image={**IMAGE, "file_name": file_name}))
    data = COCO(tmp_path, train)
    assert [[path.name for path in part.paths] for part in (data.train(), data.val())] == [["a.png"], ["b.png"]]
    given = COCO(tmp_path, train, train)
    assert [path.name for path in given.val().paths] == ["a.png"]


@pytest.mark.parametrize("other", ["constrained.json", "instances_test.json", "validated.json"])
def test_other_files_are_no_files_to_score_on(tmp_path: Path, other: str):
    for name in ("train.json", other):
        (tmp_path / name).write_text(as_json(OBJECT))
    assert COCO(tmp_path, "train.json").json_files()[1] is None


# --- repeated keys ---


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"images":', '"images": [], "images":', "labels.json: expected each key once, got 'images'"),
        ('"file_name":', '"id": 2, "file_name":', "labels.json: images: expected each key once, got 'id'"),
        ('"name":', '"name": "dog", "name":', "labels.json: categories: expected each key once, got 'name'"),
        (
            '"image_id":',
            '"image_id": 2, "image_id":',
            "labels.json: annotations: expected each key once, got 'image_id'",
        ),
    ],
)
def test_a_key_that_says_what_belongs_together_is_there_once(tmp_path: Path, old: str, new: str, told: str):
    with pytest.raises(ValueError, match="once") as error:
        read(tmp_path, as_json(OBJECT).replace(old, new, 1))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"bbox":', '"bbox": [1, 1, 2, 2], "bbox":', "annotation 1: expected each key once, got 'bbox'"),
        ('"file_name":', '"file_name": "b.png", "file_name":', "expected each key once, got 'file_name'"),
    ],
)
def test_another_repeated_key_makes_its_picture_a_finding(tmp_path: Path, old: str, new: str, told: str):
    pictures = read(tmp_path, as_json(OBJECT).replace(old, new, 1))
    assert {finding.kind for finding in pictures.findings} == {"unreadable"}
    assert told in pictures.findings[0].text


def test_a_repeated_key_that_nobody_reads_does_no_harm(tmp_path: Path):
    content = as_json({**OBJECT, "attributes": {"colour": 1}}).replace('"colour": 1', '"colour": 1, "colour": 2')
    assert read(tmp_path, content).findings == []


# --- files that strangers made ---

LONG = "x" * 100_000
HOSTILE = {
    "a coordinate of 401 digits": as_json(OBJECT).replace("[3,", f"[{10**400},"),
    "a coordinate beyond all pictures": as_json({**OBJECT, "bbox": [1e300, 1, 1, 1]}),
    "a coordinate that is true": as_json({**OBJECT, "bbox": [True, 1, 1, 1]}),
    "an integer of 100,000 digits": as_json(OBJECT).replace("[3,", f"[{'9' * 100_000},"),
    "200,000 lists in each other": "[" * 200_000,
    "200,000 lists in a box": as_json(OBJECT).replace("[3,", "[" * 200_000),
    "900 lists in a box": as_json(OBJECT).replace("[3,", "[" * 900 + "]" * 900 + ","),
    "900 lists for the images": '{"images": ' + "[" * 900 + "]" * 900 + "}",
    "a class of 100,000 letters": as_json(category={**CATEGORY, "name": LONG}),
    "an id of 100,000 letters": as_json({**OBJECT, "image_id": LONG}),
    "a picture of 100,000 letters": as_json(image={**IMAGE, "file_name": LONG}),
    "a picture in 50,000 folders": as_json(image={**IMAGE, "file_name": "b/" * 50_000}),
    "an id that is true": as_json({**OBJECT, "image_id": True}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_at_once_in_a_short_line(tmp_path: Path, content: str):
    start = time.perf_counter()
    try:
        findings = [finding.text for finding in read(tmp_path, content).findings]
    except ValueError as error:
        findings = [str(error)]
    assert time.perf_counter() - start < 2
    for text in findings:
        assert "labels.json" in text
        assert len(text.replace(str(tmp_path), "")) < 700
        assert "\n" not in text
    assert findings


def test_sizes_beyond_all_numbers_and_beyond_all_pictures(tmp_path: Path):
    nothing = read(tmp_path, as_json(image={**IMAGE, "width": 10**400, "height": 10**400}))
    assert nothing.findings == []
    too_large = read(tmp_path, as_json(image={**IMAGE, "width": 1e300, "height": 20}))
    assert {finding.kind for finding in too_large.findings} == {"size"}


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "link/../../secret.png", "..\\secret.png"])
def test_nothing_outside_of_the_data_folder_is_read(tmp_path: Path, name: str):
    write_picture(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    told = str(tmp_path / "secret.png") if name == "/secret.png" else name
    pictures = read(tmp_path / "data", as_json(image={**IMAGE, "file_name": told}))
    assert [finding.kind for finding in set(pictures.findings)] == ["unreadable"]
    assert pictures.paths == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_json_that_never_ends_is_not_opened(tmp_path: Path, make):
    make(tmp_path / "labels.json")
    with pytest.raises(ValueError, match=r"labels\.json: .*expected a file"):
        read_json(tmp_path / "labels.json", tmp_path)
    with pytest.raises(ValueError, match=r"^data\.annotations: expected a file, got .*labels\.json"):
        COCO(tmp_path, "labels.json").prepare()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just(10**400),
    st.text(max_size=3),
    st.sampled_from([1, "a.png"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
BOXES = st.lists(st.integers(-9, 50) | SCALARS, min_size=3, max_size=6)


def changed(part: dict[str, Any], *keys: str) -> st.SearchStrategy:
    """Objects with some keys of other values, and keys that are missing."""
    return st.fixed_dictionaries({}, optional={key: st.just(part.get(key)) | VALUES | BOXES for key in keys})


CONTENTS = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {
            "images": st.lists(changed(IMAGE, "id", "file_name", "width", "height"), max_size=2) | VALUES,
            "annotations": st.lists(
                changed(OBJECT, "id", "image_id", "category_id", "bbox", "segmentation", "iscrowd"), max_size=3
            ),
            "categories": st.lists(changed(CATEGORY, "id", "name"), max_size=2),
        }
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda parts, box: as_json({**OBJECT, "bbox": box, "segmentation": parts}).encode(), VALUES, BOXES | st.none()
    ),
)


@settings(max_examples=80, deadline=1000)
@given(content=CONTENTS)
def test_any_content_is_read_or_refused_with_the_name_of_the_file(made_once, content: bytes):
    folder = made_once("any_json", lambda folder: write_picture(folder / "a.png"))
    (folder / "labels.json").write_bytes(content)
    try:
        annotations, findings = read_json(folder / "labels.json", folder)
    except ValueError as error:
        assert "labels.json" in str(error)  # noqa: PT017  # most contents are no annotations
    else:
        assert len(annotations.names) == len(annotations.boxes) == annotations.counts.sum()
        assert all("labels.json" in finding.text or "a.png" in finding.text for finding in findings)
