"""COCO-style json: what is read from it, where its pictures are looked for, how it is split, and what is refused."""

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from voc_xml import write_picture

from ssd_lightning.data.formats import coco
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.cache import cache_file
from ssd_lightning.data.formats.coco import COCO, read_json
from ssd_lightning.data.formats.findings import refuse

Box = Sequence[float]
Content = dict[str, Any]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content(
    pictures: dict[str, Sequence[tuple[str, Box]]], categories: Sequence[str] = ("cat", "dog"), **image: Any
) -> Content:
    """A json's content: ids of images from 1, of categories from 1, of annotations from 1."""
    number = {name: position for position, name in enumerate(categories, 1)}
    objects = [(n, *thing) for n, things in enumerate(pictures.values(), 1) for thing in things]
    return {
        "info": {"description": "what nobody reads"},
        "images": [{"id": n, "file_name": name, **image} for n, name in enumerate(pictures, 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": number[name], "bbox": list(box)}
            for n, (image, name, box) in enumerate(objects, 1)
        ],
        "categories": [{"id": n, "name": name, "supercategory": "none"} for name, n in number.items()],
    }


def write_json(path: Path, said: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    return path


def write_data(root: Path, said: Content, name: str = "labels.json", pictures: str = "") -> Path:
    """Write the json, and a picture of 40×20 pixels for each image."""
    for image in said["images"]:
        write_picture(root / pictures / image["file_name"])
    return write_json(root / name, said)


def truths(pictures: AnnotatedPictures) -> dict[str, list[tuple[int, list[float], bool]]]:
    """Return label, edges in pixels and the difficult flag of each object, by the name of its picture."""
    result = {}
    for index, path in enumerate(pictures.paths):
        (height, width), boxes, labels, difficult = pictures.truth(index)
        pixels = (boxes.astype(float) * (width, height, width, height)).round(3).tolist()
        result[path.name] = list(zip(labels.tolist(), pixels, difficult.tolist(), strict=True))
    return result


def both(data: COCO) -> tuple[list[str], list[str]]:
    train, val = ([path.name for path in pictures.paths] for pictures in (data.train(), data.val()))
    return train, val


# --- what is read ---


def test_ids_with_gaps_in_any_order_and_images_without_annotations(tmp_path: Path):
    """A box is left, top, width, height. Ids alone relate annotations to images and categories."""
    said = {
        "categories": [{"id": 90, "name": "dog"}, {"id": 0, "name": "never used"}, {"id": 7, "name": "cat"}],
        "images": [
            {"id": 500, "file_name": "c.png"},
            {"id": 3, "file_name": "a.png"},
            {"id": 44, "file_name": "b.png"},
        ],
        "annotations": [
            {"id": 12, "image_id": 500, "category_id": 7, "bbox": [1, 2, 3, 4]},
            {"id": 900_000_000_000, "image_id": 3, "category_id": 90, "bbox": [0, 0, 40, 20]},
            {"id": 1, "image_id": 500, "category_id": 90, "bbox": [5, 5, 1, 1]},
        ],
    }
    path = write_data(tmp_path, said)
    data = COCO(tmp_path, path, val_annotations=path)
    data.prepare()
    assert data.classes == ("never used", "cat", "dog")
    expected = {
        "c.png": [(2, [1, 2, 4, 6], False), (3, [5, 5, 6, 6], False)],
        "a.png": [(3, [0, 0, 40, 20], False)],
        "b.png": [],
    }
    for pictures in (data.train(), data.val()):
        assert [path.name for path in pictures.paths] == ["c.png", "a.png", "b.png"]
        assert truths(pictures) == expected
        assert pictures[0].image.shape == (20, 40, 3)


def test_random_data_against_a_slow_loop(tmp_path: Path):
    rng = np.random.default_rng(0)
    ids = rng.choice(1000, 15, replace=False).tolist()
    categories = {int(number): f"class {number}" for number in rng.choice(100, 6, replace=False)}
    for number in ids:
        write_picture(tmp_path / f"{number}.png", *rng.integers(30, 90, 2).tolist())
    annotations = [
        {
            "id": n,
            "image_id": int(rng.choice(ids[2:])),
            "category_id": int(rng.choice(list(categories))),
            "bbox": [*rng.uniform(0, 15, 2).tolist(), *rng.uniform(0.5, 15, 2).tolist()],
        }
        for n in range(60)
    ]
    said = {
        "categories": [{"id": n, "name": name} for n, name in categories.items()],
        "images": [{"id": n, "file_name": f"{n}.png"} for n in ids],
        "annotations": annotations,
    }
    path = write_data(tmp_path, {**said, "images": []}) and write_json(tmp_path / "labels.json", said)
    pictures = COCO(tmp_path, path, path).train()
    for index, number in enumerate(ids):
        assert pictures.paths[index].name == f"{number}.png"
        width, height = Image.open(tmp_path / f"{number}.png").size
        labels, boxes = [], []
        for entry in annotations:
            if entry["image_id"] == number:
                left, top, box_width, box_height = entry["bbox"]
                labels.append(sorted(categories).index(entry["category_id"]) + 1)
                edges = (left / width, top / height, (left + box_width) / width, (top + box_height) / height)
                boxes.append([float(np.float32(edge)) for edge in edges])
        assert pictures.truth(index).size == (height, width)
        assert pictures.truth(index).labels.tolist() == labels
        assert pictures.truth(index).boxes.tolist() == boxes


def test_crowds_are_left_out_in_training_and_difficult_in_scoring(tmp_path: Path):
    said = content({"a.png": [("cat", [1, 1, 4, 4]), ("dog", [2, 2, 9, 9]), ("cat", [3, 3, 1, 1])]})
    said["annotations"][0]["iscrowd"] = 0
    said["annotations"][1]["iscrowd"] = 1
    path = write_data(tmp_path, said)
    data = COCO(tmp_path, path, path)
    cats = [(1, [1, 1, 5, 5], False), (1, [3, 3, 4, 4], False)]
    assert truths(data.train()) == {"a.png": cats}
    assert truths(data.val()) == {"a.png": [cats[0], (2, [2, 2, 11, 11], True), cats[1]]}


def test_a_picture_with_nothing_but_a_crowd_is_one_without_objects(tmp_path: Path):
    said = content({"a.png": [("dog", [2, 2, 9, 9])]})
    said["annotations"][0]["iscrowd"] = 1
    path = write_data(tmp_path, said)
    assert truths(COCO(tmp_path, path, path).train()) == {"a.png": []}


def test_fractions_of_pixels_are_kept(tmp_path: Path):
    path = write_data(tmp_path, content({"a.png": [("cat", [1.25, 2.5, 3.375, 4.125])]}))
    assert truths(COCO(tmp_path, path, path).train()) == {"a.png": [(1, [1.25, 2.5, 4.625, 6.625], False)]}


def test_given_classes_in_another_order(tmp_path: Path):
    path = write_data(tmp_path, content({"a.png": [("cat", [1, 1, 2, 2]), ("dog", [2, 2, 2, 2])]}))
    data = COCO(tmp_path, path, path, classes=["dog", "cat"])
    assert data.classes == ("dog", "cat")
    assert data.train().labels.tolist() == data.val().labels.tolist() == [2, 1]


def test_skip_leaves_out_what_is_not_of_the_given_classes(tmp_path: Path):
    path = write_data(
        tmp_path, content({"a.png": [("cat", [1, 1, 2, 2]), ("dog", [2, 2, 2, 2])], "b.png": [("cat", [1, 1, 2, 2])]})
    )
    data = COCO(tmp_path, path, path, classes=["dog"], fix="skip")
    assert truths(data.train()) == {"a.png": [(1, [2, 2, 4, 4], False)], "b.png": []}
    refusal = (
        r"labels\.json, image 1 \(a\.png\), object 1: name: expected one of dog, got 'cat' "
        r"\(1 more\. Try ssd-check, which lists them\)$"
    )
    for fix in (None, "clip"):
        with pytest.raises(ValueError, match=refusal):
            refuse(COCO(tmp_path, path, path, classes=["dog"], fix=fix).train().findings)


def test_categories_of_scoring_go_by_their_names(tmp_path: Path):
    train = write_data(tmp_path, content({"a.png": [("dog", [1, 1, 2, 2])]}), "train.json")
    val = write_data(tmp_path, content({"b.png": [("dog", [1, 1, 2, 2])]}, ["dog", "cat"]), "val.json")
    other = write_data(tmp_path, content({"b.png": [("cow", [1, 1, 2, 2])]}, ["dog", "cow"]), "other.json")
    assert COCO(tmp_path, train, val).val().labels.tolist() == [2]
    told = r"other\.json, image 1 \(b\.png\), object 1: name: expected one of cat, dog, got 'cow'"
    with pytest.raises(ValueError, match=told):
        refuse(COCO(tmp_path, train, other).val().findings)


@pytest.mark.parametrize(
    ("told", "is_right"),
    [
        ({}, True),
        ({"width": 40, "height": 20}, True),
        ({"width": 40.0, "height": 20.0}, True),
        ({"width": 0, "height": 0}, True),
        ({"width": None, "height": None}, True),
        ({"width": "wide", "height": []}, True),
        ({"width": float("nan"), "height": float("inf")}, True),
        ({"width": 20, "height": 40}, False),
        ({"width": 80, "height": 40}, False),
    ],
)
def test_the_size_that_is_told(tmp_path: Path, told: dict, is_right: bool):
    path = write_data(tmp_path, content({"a.png": [("cat", [1, 1, 2, 2])]}, **told))
    data = COCO(tmp_path, path, path)
    if is_right:
        assert truths(data.train()) == {"a.png": [(1, [1, 1, 3, 3], False)]}
    else:
        told = r"labels\.json, image 1 \(a\.png\): size: expected 40×20 pixels as a\.png has"
        with pytest.raises(ValueError, match=told):
            refuse(data.train().findings)


def test_a_photograph_held_upright_and_annotated_as_it_is_stored(tmp_path: Path):
    path = write_data(tmp_path, content({"a.jpg": [("cat", [1, 1, 2, 2])]}, width=40, height=20))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"20×40 pixels as a\.jpg has upright, got 40×20\. Try data\.boxes_of="):
        refuse(COCO(tmp_path, path, path).train().findings)


# --- where things lie ---


def lay_out(root: Path, *files: str, pictures: Sequence[str]) -> None:
    """A json with one image each, which is ``a.png``, ``b.png``, …"""
    for name, folder, picture in zip(files, pictures, ("a.png", "b.png"), strict=False):
        write_data(root, content({picture: [("cat", [1, 1, 2, 2])]}), name, folder)


@pytest.mark.parametrize(
    ("files", "pictures"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017", "val2017")),
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("images", "images")),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
    ],
)
def test_known_layouts_are_found(tmp_path: Path, files, pictures):
    lay_out(tmp_path, *files, pictures=pictures)
    data = COCO(tmp_path)
    data.prepare()
    assert both(data) == (["a.png"], ["b.png"])
    assert data.train().paths == [tmp_path / pictures[0] / "a.png"]


@pytest.mark.parametrize("pictures", ["", "labels", "images", "labels/images", "images/some"])
def test_pictures_beside_the_json_in_the_root_and_in_its_folder_images(tmp_path: Path, pictures: str):
    said = content({"a.png": [], "b.png": []})
    write_data(tmp_path, said, "labels/some.json", pictures)
    data = COCO(tmp_path, "labels/some.json", val_share=0.5)
    (train,), (val,) = both(data)
    assert {train, val} == {"a.png", "b.png"}
    assert data.train().paths[0].parent == tmp_path / pictures


def test_given_folders_are_the_only_ones(tmp_path: Path):
    lay_out(tmp_path, "train.json", "val.json", pictures=("one", "two"))
    data = COCO(tmp_path, "train.json", "val.json", pictures="one", val_pictures=tmp_path / "two")
    assert [p.parent.name for p in (*data.train().paths, *data.val().paths)] == ["one", "two"]
    write_picture(tmp_path / "b.png")  # beside the json, but not in the folder that is given
    with pytest.raises(
        ValueError, match=r"val\.json, image 1 \(b\.png\): file_name: expected a picture in [^,]*one, got 'b\.png'"
    ):
        refuse(COCO(tmp_path, "train.json", "val.json", pictures="one").val().findings)
    write_picture(tmp_path / "one" / "b.png")
    assert COCO(tmp_path, "train.json", "val.json", pictures="one").val().paths == [tmp_path / "one" / "b.png"]


def test_paths_from_where_one_stands_and_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A path from the working directory comes before the same path in the root."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    lay_out(tmp_path / "own", "labels.json", pictures=("",))
    settings = {"annotations": "labels.json", "val_annotations": "labels.json"}
    assert COCO("../own", **settings).json_files()[0] == Path("../own/labels.json")
    assert COCO("../own", annotations=tmp_path / "own" / "labels.json").json_files()[0].is_absolute()
    lay_out(tmp_path / "here", "labels.json", pictures=("",))
    assert COCO("../own", **settings).json_files()[0] == Path("labels.json")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lay_out(tmp_path / "own", "labels.json", pictures=("",))
    assert COCO("~/own", "~/own/labels.json", "~/own/labels.json").train().paths == [tmp_path / "own" / "a.png"]


@pytest.mark.parametrize(
    "name", ["two words.png", "größe – バナナ.png", "deep/er/a.png", "deep\\er\\a.png", "#%&'.png"]
)
def test_any_name(tmp_path: Path, name: str):
    write_picture(tmp_path / name.replace("\\", "/"))
    path = write_json(tmp_path / "größe 1.json", content({name: [("cat", [1, 1, 2, 2])]}, ["cat", "größe 名"]))
    for _ in range(2):
        data = COCO(tmp_path, path, path)
        assert data.train().paths == [tmp_path / name.replace("\\", "/")]
        assert data.classes == ("cat", "größe 名")


def test_half_a_character_in_a_name_of_a_category(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content({"a.png": []}, ["\ud83d"])))
    # It could not be written to any file of a run.
    with pytest.raises(ValueError, match=r"labels\.json: categories: name: expected a text, got '\\ud83d'$"):
        _ = COCO(tmp_path, path, path).classes


def test_json_with_a_byte_order_mark(tmp_path: Path):
    path = write_data(tmp_path, content({"a.png": []}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert both(COCO(tmp_path, path, path)) == (["a.png"], ["a.png"])


# --- what tools write ---


def test_the_export_of_cvat(tmp_path: Path):
    for name, subset in (("Train", "images/Train"), ("Validation", "images/Validation")):
        picture = f"Data/{name}.bmp"
        write_data(tmp_path, content({picture: [("cat", [1, 1, 2, 2])]}), f"annotations/instances_{name}.json", subset)
    data = COCO(tmp_path)
    assert both(data) == (["Train.bmp"], ["Validation.bmp"])
    assert data.train().paths == [tmp_path / "images" / "Train" / "Data" / "Train.bmp"]


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("..\\..\\label-studio\\media\\upload\\4\\a.png", "images/a.png"),
        ("images\\1/a.png", "images/a.png"),
        ("/home/somebody/a.png", "a.png"),
        ("a.PNG", "images/a.png"),
        ("a.png", "deep/in/the/folder/a.png"),
        ("../a.png", "a.png"),
    ],
)
def test_file_names_of_another_computer(tmp_path: Path, name: str, picture: str):
    write_picture(tmp_path / picture)
    path = write_json(tmp_path / "annotations" / "result.json", content({name: []}))
    assert COCO(tmp_path, path, path).train().paths == [tmp_path / picture]


def test_nothing_outside_of_the_data_folder_is_read(tmp_path: Path):
    write_picture(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png"):
        path = write_json(tmp_path / "data" / "labels.json", content({name: []}))
        with pytest.raises(ValueError, match="file_name: expected a picture"):
            refuse(COCO(tmp_path / "data", path, path).train().findings)


def test_a_name_of_several_pictures_is_not_guessed(tmp_path: Path):
    for place in ("one", "two"):
        write_picture(tmp_path / place / "a.png")
    path = write_json(tmp_path / "labels.json", content({"a.png": []}))
    told = r"file_name: .* may be one/a\.png, two/a\.png\. Try data\.pictures"
    with pytest.raises(ValueError, match=told):
        refuse(COCO(tmp_path, path, path).train().findings)


def test_ids_of_any_type_and_annotations_without_id(tmp_path: Path):
    said = {
        "categories": [{"id": "k", "name": "dog"}, {"id": 0, "name": 0}],
        "images": [{"id": "x", "file_name": "a.png"}, {"id": 1, "file_name": "b.png", "width": "40", "height": 20.0}],
        "annotations": [
            {"image_id": "x", "category_id": 0.0, "bbox": [1, 1, 2, 2], "iscrowd": "false"},
            {"image_id": 1.0, "category_id": "k", "bbox": [1, 1, 2, 2], "iscrowd": "1"},
        ],
    }
    path = write_data(tmp_path, said)
    data = COCO(tmp_path, path, path)
    assert data.classes == ("0", "dog")
    assert truths(data.val()) == {"a.png": [(1, [1, 1, 3, 3], False)], "b.png": [(2, [1, 1, 3, 3], True)]}


def test_a_flag_that_is_none(tmp_path: Path):
    said = content({"a.png": [("cat", [1, 1, 2, 2])]})
    said["annotations"][0]["iscrowd"] = "perhaps"
    path = write_data(tmp_path, said)
    with pytest.raises(ValueError, match=r"annotation 1: iscrowd: expected 0 or 1, got 'perhaps'"):
        refuse(COCO(tmp_path, path, path).train().findings)


# --- the split ---


def test_a_share_is_drawn_by_the_seed(tmp_path: Path):
    names = [f"{number:02}.png" for number in range(20)]
    write_data(tmp_path, content({name: [("cat", [1, 1, 1 + n, 2])] for n, name in enumerate(names)}))
    first, again, other = (COCO(tmp_path, "labels.json", val_share=0.25, seed=seed) for seed in (0, 0, 1))
    train, val = both(first)
    assert (len(val), sorted(train + val)) == (5, names)
    assert (train, val) == (sorted(train), sorted(val))
    assert both(again) == (train, val)
    assert both(other)[1] != val
    for name, objects in {**truths(first.train()), **truths(first.val())}.items():
        assert objects == [(1, [1, 1, 2 + int(name[:2]), 3], False)]


def test_categories_are_those_of_the_json_whatever_is_drawn(tmp_path: Path):
    write_data(tmp_path, content({"a.png": [("dog", [1, 1, 2, 2])], "b.png": []}, ["ant", "cat", "dog"]))
    assert {COCO(tmp_path, "labels.json", val_share=0.5, seed=seed).classes for seed in range(4)} == {
        ("ant", "cat", "dog")
    }


# --- what is refused ---


def without(key: str) -> Callable[[Content], None]:
    return lambda said: said.pop(key)


def setting(kind: str, **values: object) -> Callable[[Content], None]:
    """Values of the last entry of a kind."""
    return lambda said: said[kind][-1].update(values)


def removing(kind: str, key: str) -> Callable[[Content], None]:
    return lambda said: said[kind][-1].pop(key)


LIST = "expected a list of objects, as in COCO, got"
BOX = ", image 2 (b.png), annotation 3: bbox: expected left, top, width, height in pixels, got "

ERRORS = {
    "no images": (without("images"), f": images: {LIST}"),
    "no annotations": (without("annotations"), f": annotations: {LIST}"),
    "no categories": (without("categories"), f": categories: {LIST}"),
    "images by name": (lambda said: said.update(images={"1": {}}), f": images: {LIST}"),
    "numbers for annotations": (lambda said: said.update(annotations=[1, 2]), f": annotations: {LIST}"),
    "category without id": (
        removing("categories", "id"),
        ": categories: id: expected a number or a text, got None in {'name': 'dog'",
    ),
    "category by a text and a number": (
        setting("categories", id="2"),
        ", annotation 2: category_id: expected one of [1, '2'], got 2",
    ),
    "category without name": (
        removing("categories", "name"),
        ": categories: expected a name for each, and each once, got ['cat', '']",
    ),
    "name of no text": (
        setting("categories", name=["dog"]),
        ": categories: expected a name for each, and each once, got ['cat', '']",
    ),
    "name twice": (
        setting("categories", name="cat"),
        ": categories: expected a name for each, and each once, got ['cat', 'cat']",
    ),
    "category id twice": (setting("categories", id=1), ": categories: expected each id once, got 1 more often"),
    "image id twice": (setting("images", id=1), ": images: expected each id once, got 1 more often"),
    "image without id": (
        removing("images", "id"),
        ": images: id: expected a number or a text, got None in {'file_name': 'b.png'",
    ),
    "image by a list": (setting("images", id=[2]), ": images: id: expected a number or a text, got [2] in"),
    "annotation without image": (
        removing("annotations", "image_id"),
        ", annotation 2: image_id: expected a number or a text, got None in",
    ),
    "image that is not there": (
        setting("annotations", image_id=7),
        ", annotation 2: image_id: expected an id of one of the images, got 7",
    ),
    "annotation without category": (
        removing("annotations", "category_id"),
        ", annotation 2: category_id: expected a number or a text, got None in",
    ),
    "category that is not there": (
        setting("annotations", category_id=0),
        ", annotation 2: category_id: expected one of [1, 2], got 0",
    ),
}


@pytest.mark.parametrize(("spoil", "text"), ERRORS.values(), ids=ERRORS)
def test_what_is_not_as_coco_has_it_is_an_error_of_the_file_whatever_fix_is(tmp_path: Path, spoil, text: str):
    said = content({"a.png": [("cat", [1, 1, 2, 2])], "b.png": [("dog", [1, 1, 2, 2])]})
    path = write_data(tmp_path, said)
    spoil(said)
    write_json(path, said)
    for fix in (None, "skip", "clip"):
        with pytest.raises(ValueError, match="expected") as error:
            refuse(COCO(tmp_path, path, path, fix=fix).train().findings)
        assert str(error.value).startswith(f"{path}{text}")


SPOILT_BOXES = {
    "no box": (removing("annotations", "bbox"), f"{BOX}None"),
    "empty box": (setting("annotations", bbox=[]), f"{BOX}[]"),
    "three numbers": (setting("annotations", bbox=[1, 2, 3]), f"{BOX}[1, 2, 3]"),
    "text": (setting("annotations", bbox=[1, 2, 3, "4"]), f"{BOX}[1, 2, 3, '4']"),
    "not a number": (setting("annotations", bbox=[1, 2, 3, float("nan")]), f"{BOX}[1, 2, 3, nan]"),
    "infinite": (setting("annotations", bbox=[1, 2, float("inf"), 4]), f"{BOX}[1, 2, inf, 4]"),
}


@pytest.mark.parametrize(("spoil", "text"), SPOILT_BOXES.values(), ids=SPOILT_BOXES)
def test_a_picture_with_a_box_that_is_none_cannot_be_read(tmp_path: Path, spoil, text: str):
    said = content({"a.png": [("cat", [1, 1, 2, 2])], "b.png": [("dog", [1, 1, 2, 2]), ("dog", [1, 1, 3, 3])]})
    path = write_data(tmp_path, said)
    spoil(said)
    write_json(path, said)
    for fix in (None, "clip"):
        with pytest.raises(ValueError, match="expected") as error:
            refuse(COCO(tmp_path, path, path, fix=fix).train().findings)
        assert str(error.value).startswith(f"{path}{text}")
    assert both(COCO(tmp_path, path, path, fix="skip")) == (["a.png"], ["a.png"])


@pytest.mark.parametrize("text", ["", "[", "{'a': 1}", "\0"])
def test_what_is_no_json(tmp_path: Path, text: str):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json: cannot be read as json \("):
        read_json(tmp_path / "labels.json", tmp_path)
    with pytest.raises(ValueError, match=r"gone\.json: cannot be read as json \(.*No such file"):
        read_json(tmp_path / "gone.json", tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"images"'])
def test_json_of_something_else(tmp_path: Path, text: str):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=rf"labels\.json: images: {LIST}"):
        read_json(tmp_path / "labels.json", tmp_path)


@pytest.mark.parametrize("name", [None, "", "gone.png", 17])
def test_pictures_that_are_not_there_or_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, name):
    said = content({"a.png": [("cat", [1, 1, 2, 2])], "b.png": [("dog", [1, 1, 2, 2])]})
    path = write_data(tmp_path, said)
    said["images"][0]["file_name"] = name
    write_json(path, said)
    told = f"{path}, image 1 ({name}): file_name: expected a picture in {tmp_path}, {tmp_path}/images, "
    for fix in (None, "clip"):
        with pytest.raises(ValueError, match="file_name") as error:
            refuse(COCO(tmp_path, path, path, fix=fix).train().findings)
        assert str(error.value).startswith(told)
        assert f"got {str(name or '')!r}" in str(error.value)
    with caplog.at_level(logging.WARNING):
        data = COCO(tmp_path, path, path, fix="skip")
        assert both(data) == (["b.png"], ["b.png"])
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert re.search(rf"^2 .*fix=skip.*{re.escape(told)}", message)
    assert [(finding.kind, finding.text.startswith(told)) for finding in data.annotations.findings] == [
        ("unreadable", True)
    ] * 2


def test_a_picture_that_is_none_is_named(tmp_path: Path):
    path = write_data(tmp_path, content({"a.png": []}))
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as a picture"):
        refuse(COCO(tmp_path, path, path).train().findings)


def test_nothing_to_train_or_to_score_on(tmp_path: Path):
    full = write_data(tmp_path, content({"a.png": [("cat", [1, 1, 2, 2])]}), "full.json")
    empty = write_json(tmp_path / "empty.json", content({}))
    text = "images: expected at least one for"
    with pytest.raises(ValueError, match=rf"empty\.json: {text} training, got none"):
        refuse(COCO(tmp_path, empty, full).train().findings)
    with pytest.raises(ValueError, match=rf"empty\.json: {text} scoring, got none"):
        refuse(COCO(tmp_path, full, empty).train().findings)
    with pytest.raises(ValueError, match=r"data\.root: .* scoring, got none"):
        refuse(COCO(tmp_path, full).val().findings)
    (tmp_path / "a.png").unlink()
    assert len(COCO(tmp_path, full, full, fix="skip").train()) == 0


def test_folders_and_files_that_are_not_there(tmp_path: Path):
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^data\.root: expected a folder, got .*nowhere"):
        COCO(tmp_path / "nowhere").prepare()
    layouts = (
        r"^data\.root: .* annotations/instances_train2017\.json and annotations/instances_val2017\.json"
        r".* train/_annotations\.coco\.json and valid/_annotations\.coco\.json, .*got .*data\.annotations=<file>"
    )
    with pytest.raises(ValueError, match=layouts):
        COCO(tmp_path).prepare()
    with pytest.raises(ValueError, match=r"^data\.annotations: expected a file, got .*gone\.json"):
        COCO(tmp_path, "gone.json").prepare()
    with pytest.raises(ValueError, match=r"^data\.val_annotations: expected a file, got .*gone\.json"):
        COCO(tmp_path, "labels.json", "gone.json").prepare()
    with pytest.raises(ValueError, match=r"^data\.annotations: expected a file, got "):
        COCO(tmp_path, tmp_path).prepare()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"val_share": 0}, r"^val_share: expected a number in \(0, 1\), got 0$"),
        ({"val_share": 1.0}, r"^val_share: expected a number in \(0, 1\), got 1\.0$"),
        (
            {"val_annotations": "b.json"},
            r"^annotations: expected a json file beside val_annotations=b\.json, got null$",
        ),
        ({"classes": []}, r"^classes: expected at least one name, and none twice, got \[\]$"),
        ({"classes": ["a", "a"]}, r"^classes: .*got \['a', 'a'\]$"),
    ],
)
def test_settings_that_cannot_be_right(tmp_path: Path, settings: dict, text: str):
    with pytest.raises(ValueError, match=text):
        COCO(tmp_path, **settings)


# --- read once ---


class Parser:
    def __init__(self) -> None:
        self.parsed: list[str] = []
        self.parse = coco._parsed

    def __call__(self, path: Path) -> Content:
        self.parsed.append(path.name)
        return self.parse(path)

    def since(self) -> list[str]:
        names, self.parsed = self.parsed, []
        return names


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Parser:
    parser = Parser()
    monkeypatch.setattr(coco, "_parsed", parser)
    return parser


def test_a_second_run_parses_nothing(tmp_path: Path, parser: Parser):
    train = write_data(tmp_path, content({"a.png": [("dog", [1, 1, 2, 2])]}, ["dog", "cat"]), "train.json")
    val = write_data(tmp_path, content({"b.png": []}), "val.json")
    told = [truths(side) for side in (COCO(tmp_path, train, val).train(), COCO(tmp_path, train, val).val())]
    parser.since()
    again = COCO(tmp_path, train, val)
    assert [truths(again.train()), truths(again.val())] == told
    assert again.classes == ("dog", "cat")
    assert parser.since() == []


def test_a_json_that_changed_is_parsed_again_and_no_other(tmp_path: Path, parser: Parser):
    train = write_data(tmp_path, content({"a.png": [("cat", [1, 1, 2, 2])]}), "train.json")
    val = write_data(tmp_path, content({"b.png": []}), "val.json")
    refuse(COCO(tmp_path, train, val).train().findings)
    parser.since()
    write_data(tmp_path, content({"a.png": [("dog", [2, 2, 3, 3])], "c.png": []}), "train.json")
    assert truths(COCO(tmp_path, train, val).train()) == {"a.png": [(2, [2, 2, 5, 5], False)], "c.png": []}
    assert parser.since() == ["train.json"]
    os.utime(train, ns=(0, 0))
    assert len(COCO(tmp_path, train, val).train()) == 2
    assert parser.since() == ["train.json"]


def test_a_picture_that_changed_or_went_away_is_noticed(tmp_path: Path, parser: Parser):
    path = write_data(tmp_path, content({"a.png": [("cat", [1, 1, 2, 2])], "b.png": []}))
    refuse(COCO(tmp_path, path, path).train().findings)
    write_picture(tmp_path / "a.png", 80, 60)
    parser.since()
    assert COCO(tmp_path, path, path).train().truth(0).size == (60, 80)
    assert parser.since() == ["labels.json"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"image 2 \(b\.png\): file_name: expected a picture in"):
        refuse(COCO(tmp_path, path, path).train().findings)
    write_picture(tmp_path / "b.png")
    assert len(COCO(tmp_path, path, path).train()) == 2


def test_a_json_that_had_no_images_yet(tmp_path: Path):
    path = write_json(tmp_path / "labels.json", content({}))
    assert read_json(path, tmp_path)[0].sources == []
    write_data(tmp_path, content({"a.png": []}))
    assert len(read_json(path, tmp_path)[0].sources) == 1


def test_the_same_json_with_other_pictures_is_another_data_set(tmp_path: Path):
    path = write_data(tmp_path, content({"a.png": []}), pictures="one")
    write_picture(tmp_path / "two" / "a.png", 7, 5)
    for _ in range(2):
        for folder, size in (("one", (20, 40)), ("two", (5, 7))):
            assert COCO(tmp_path, path, path, pictures=folder).train().truth(0).size == size


def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache_folder: Path, caplog: pytest.LogCaptureFixture):
    path = write_data(tmp_path, content({"a.png": [("cat", [1, 1, 2, 2])]}))
    told = truths(COCO(tmp_path, path, path).train())
    (cached,) = cache_folder.iterdir()
    assert cached == cache_file(f"coco {path} {tmp_path} None")
    cached.write_bytes(b"no cache")
    with caplog.at_level(logging.WARNING):
        assert truths(COCO(tmp_path, path, path).train()) == told
    assert [message.split(" (")[0] for message in caplog.messages] == [f"{cached}: cannot be read and is written again"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "data").mkdir()
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ValueError, match=rf"^data\.root: .* {tmp_path}/data.* \(Permission denied\)$"):
        COCO(tmp_path / "data").prepare()
