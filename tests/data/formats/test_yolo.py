"""YOLO's text files: what is read from them, how pictures are found and split, and what is refused."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_xml import write_picture
from yolo_folder import DESCRIPTION, write_text, write_yolo

from ssd_lightning.data.formats import yolo
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.findings import refuse
from ssd_lightning.data.formats.yolo import YOLO
from ssd_lightning.data.formats.yolo_files import read_description, read_labels

BOX = "0 0.5 0.5 0.5 0.5\n"


def names(pictures: AnnotatedPictures | None) -> list[str]:
    return [] if pictures is None else [path.stem for path in pictures.paths]


def split(data: YOLO) -> tuple[list[str], list[str], list[str]]:
    return names(data.train()), names(data.val()), names(data.test())


def texts(pictures: AnnotatedPictures, kind: str) -> list[str]:
    return [finding.text for finding in (*pictures.findings, *pictures.remarks) if finding.kind == kind]


def objects(tmp_path: Path, text: str | bytes) -> list[tuple[str, list[float]]]:
    """Return class and edges in pixels of a text file beside a picture of 40×20 pixels."""
    write_picture(tmp_path / "a.png")
    found = read_labels(str(write_text(tmp_path / "a.txt", text)), str(tmp_path / "a.png"))
    return [(name, [round(edge, 3) for edge in box]) for name, box in zip(found.names, found.boxes, strict=True)]


# --- a text file ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 0.5 0.5 1 1", [("1", [0, 0, 40, 20])]),
        ("0 0.25 0.5 0.5 0.1\n1 0.1 0.1 0.2 0.2\n", [("0", [0, 9, 20, 11]), ("1", [0, 0, 8, 4])]),
        ("\ufeff0\t.5  .5 1. 1e0\r\n\r\n", [("0", [0, 0, 40, 20])]),
        ("0.0 0.5 0.5 1 1\r3 0.5 0.5 0.5 0.5", [("0", [0, 0, 40, 20]), ("3", [10, 5, 30, 15])]),
        ("0 0.5 0.5 1 1".encode("utf-16"), [("0", [0, 0, 40, 20])]),
        # A polygon: three or more corners.
        ("2 0.1 0.5 0.3 0.1 0.2 0.9", [("2", [4, 2, 12, 18])]),
        ("2 0 0 1 0 1 1 0 1", [("2", [0, 0, 40, 20])]),
        ("", []),
        (" \n\n", []),
    ],
)
def test_lines(tmp_path: Path, text: str | bytes, expected: list):
    assert objects(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("0 0.5 0.5 1", 1, "got 4 values"),
        (f"{BOX}\n\n0 0.5 0.5 1 1 0.9", 4, "got 6 values"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", 1, "got 8 values"),
        ("0", 1, "got 1 values"),
        ("0,0.5,0.5,1,1", 1, "got '0,0.5,0.5,1,1'"),
        ("cat 0.5 0.5 1 1", 1, "got 'cat'"),
        ("-1 0.5 0.5 1 1", 1, "got '-1'"),
        ("0.5 0.5 0.5 1 1", 1, "got '0.5'"),
        ("nan 0.5 0.5 1 1", 1, "got 'nan'"),
        ("1e300 0.5 0.5 1 1", 1, "got '1e300'"),
        (f"{BOX}0 0.5 nan 1 1", 2, "got 'nan'"),
        ("0 0.5 0.5 inf 1", 1, "got 'inf'"),
        ("0 0.5 x 1 1", 1, "got 'x'"),
        ("0 0.5 0.5 1 " + "1" * 9999, 1, f"got '{'1' * 50}'"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(tmp_path: Path, text: str, line: int, told: str):
    with pytest.raises(ValueError, match=rf"a\.txt, line {line}: expected .*") as error:
        objects(tmp_path, text)
    assert told in str(error.value)


def test_a_pose_has_its_box_before_its_keypoints(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 2", "val/b": BOX})
    write_text(tmp_path / "data.yaml", f"{DESCRIPTION}kpt_shape: [2, 3]\n")
    assert YOLO(tmp_path).train().boxes.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    with pytest.raises(ValueError, match=r"b\.txt, line 1"):
        refuse(YOLO(tmp_path).val().findings)


# --- names ---


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("[cat, dog]", ("cat", "dog")),
        ("{0: cat, 1: dog}", ("cat", "dog")),
        ("\n  1: dog\n  0: cat", ("cat", "dog")),
        ("{3: cat, 10: dog}", ("cat", "dog")),
        ("[no, 1.0, 'null', größe 1]", ("no", "1.0", "null", "größe 1")),
    ],
)
def test_names_in_a_description(tmp_path: Path, told: str, expected: tuple[str, ...]):
    described = read_description(str(write_text(tmp_path / "data.yaml", f"names: {told}\n")))
    assert tuple(described.names[number] for number in sorted(described.names)) == expected


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("names: [cat, cat]", "got .*cat"),
        ("names: [cat, '']", "names: "),
        ("names: [[cat]]", "names: .*a list"),
        ("names: cat", "names: .*'cat'"),
        ("names: {a: cat}", "names: .*'a'"),
        ("names: [cat]\nnc: 2", "nc: expected 1.*got 2"),
        ("names: [cat]\ntrain: {a: b}", "train: "),
        ("names: [cat]\nkpt_shape: 17", "kpt_shape: .*'17'"),
        ("- a\n- b", "keys such as names"),
        ("cat", "keys such as names"),
        ("", "keys such as names, .*nothing"),
        ("names: [cat", "yaml"),
        ("names: [cat, dog]\nnames: [dog, cat]", "once"),
        ("names: {0: cat, 0: dog}", "once"),
        ("names: {0: cat, 0.0: dog}", "once"),
        ("names: {0: cat, 00: dog}", "once"),
        ("a: &a [*a]", "yaml"),
        (b"names: [\xff]", "yaml"),
        ("[" * 5000, "yaml"),
        # Each list holds the one before ten times.
        (
            "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10 if n else ['x'])}]\n" for n in range(30))
            + "names: *a29",
            "names",
        ),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, text: str | bytes, key: str):
    with pytest.raises(ValueError, match=rf"data\.yaml: {key}|data\.yaml: .*{key}") as error:
        read_description(str(write_text(tmp_path / "data.yaml", text)))
    assert "\n" not in str(error.value)


def test_given_classes_choose_by_name_and_order(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": f"{BOX}1 0.5 0.5 0.5 0.5", "val/b": BOX})
    assert YOLO(tmp_path).train().labels.tolist() == [1, 2]
    assert YOLO(tmp_path, classes=["dog", "cat"]).train().labels.tolist() == [2, 1]
    chosen = YOLO(tmp_path, classes=["dog"], fix="skip")
    assert (chosen.train().labels.tolist(), [finding.kind for finding in chosen.val().fixed]) == ([1], ["class"])


def test_names_without_a_description(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": "1 0.5 0.5 0.5 0.5", "val/b": BOX}, description=None)
    assert YOLO(tmp_path, classes=["x", "y"]).train().labels.tolist() == [2]
    with pytest.raises(ValueError, match=r"data\.classes: .*Try data\.classes="):
        YOLO(tmp_path).train()
    write_text(tmp_path / "labels" / "train" / "classes.txt", "cat\ndog\n\n")
    assert YOLO(tmp_path).classes == ("cat", "dog")
    refuse(YOLO(tmp_path).train().findings)
    write_text(tmp_path / "labels" / "val" / "classes.txt", "dog\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt and .*classes\.txt"):
        _ = YOLO(tmp_path).classes


def test_several_descriptions(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX}, description=None)
    for name in ("one.yaml", "two.yml"):
        write_text(tmp_path / name, DESCRIPTION.replace("cat", name))
    with pytest.raises(ValueError, match=r"data\.description: .*one\.yaml, two\.yml"):
        _ = YOLO(tmp_path).classes
    assert YOLO(tmp_path, description="two.yml").classes == ("two.yml", "dog")
    write_text(tmp_path / "data.yaml", DESCRIPTION)
    assert YOLO(tmp_path).classes == ("cat", "dog")


# --- splits ---


@pytest.mark.parametrize(
    "description",
    [
        "train: images/train\nval: images/val\ntest: images/test",
        "path: ../datasets/x\ntrain: images/train\nval: images/val\ntest: images/test",
        "path: /elsewhere\ntrain: [images/train]\nval: C:\\x\\images\\val\ntest: ./images/test/",
        "train: ../images/train\nval: ../images/val\ntest: ../images/test",
        "train: train.txt\nval: images/val\ntest: images/Test",
        "train: images/train\nvalid: images/val\ntest: images/test",
        "",
        "train: ''\nval: null",
    ],
)
def test_where_the_splits_are(tmp_path: Path, description: str):
    write_yolo(tmp_path, {"train/a": BOX, "train/b": BOX, "val/c": BOX, "test/d": BOX})
    write_text(tmp_path / "data.yaml", f"names: [cat, dog]\n{description}")
    if "train.txt" in description:
        write_text(tmp_path / "train.txt", "./images/train/b.png\n/content/x/images/train/a.png\n\n")
    assert tuple(map(sorted, split(YOLO(tmp_path)))) == (["a", "b"], ["c"], ["d"])


def test_lists_of_darknet(tmp_path: Path):
    """Text files lie beside their pictures, and lists have another folder in front."""
    for name in "abc":
        write_picture(tmp_path / "obj_train_data" / f"{name}.png")
        write_text(tmp_path / "obj_train_data" / f"{name}.txt", BOX)
    write_text(tmp_path / "obj.names", "cat\n")
    write_text(tmp_path / "train.txt", "data/obj_train_data/b.png\ndata/obj_train_data/a.png\n")
    write_text(tmp_path / "valid.txt", "data/obj_train_data/c.png")
    data = YOLO(tmp_path)
    assert split(data) == (["b", "a"], ["c"], [])
    assert data.test() is None
    refuse(data.train().findings)


def test_a_list_that_names_another_file(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX}, DESCRIPTION.replace("images/train", "train.txt"))
    write_text(tmp_path / "train.txt", "images/train/a.png\ndata.yaml")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: .*'data\.yaml'"):
        refuse(YOLO(tmp_path).train().findings)


def test_a_list_with_a_picture_that_is_not_there(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX}, DESCRIPTION.replace("images/train", "train.txt"))
    write_text(tmp_path / "train.txt", "images/train/a.png\n\nimages/train/z.png")
    with pytest.raises(ValueError, match=r"train\.txt, line 3: .*'images/train/z\.png'"):
        refuse(YOLO(tmp_path).train().findings)
    assert names(YOLO(tmp_path, fix="skip").train()) == ["a"]


def test_given_splits_come_first(tmp_path: Path):
    write_yolo(tmp_path, {f"{part}/{part}{n}": BOX for part in ("train", "val", "more") for n in range(5)})
    own = YOLO(tmp_path, train=["images/val", "more"], val="train", test="more")
    train, val, test = split(own)
    assert (sorted({name[:-1] for name in train}), {name[:-1] for name in val}) == (["more", "val"], {"train"})
    assert {name[:-1] for name in test} == {"more"}
    drawn = YOLO(tmp_path, train="images/more")
    assert sorted(names(drawn.train()) + names(drawn.val())) == [f"more{n}" for n in range(5)]
    assert len(drawn.val()) == 1
    with pytest.raises(ValueError, match=r"^data\.val: .*got nowhere"):
        YOLO(tmp_path, train="more", val="nowhere").train()
    with pytest.raises(ValueError, match=r"^train: .*val=more"):
        YOLO(tmp_path, val="more")


def test_a_given_test_takes_no_part_in_a_draw(tmp_path: Path):
    write_yolo(tmp_path, {f"{part}/{part}{n}": BOX for part in ("x", "held") for n in range(5)}, "names: [cat]")
    train, val, test = split(YOLO(tmp_path, test="held"))
    assert (sorted(train + val), sorted(test)) == ([f"x{n}" for n in range(5)], [f"held{n}" for n in range(5)])


def test_a_description_with_one_folder_for_both(tmp_path: Path):
    write_yolo(tmp_path, {f"train/{n}": BOX for n in range(5)}, DESCRIPTION.replace("images/val", "images/train"))
    with pytest.raises(ValueError, match=r"data\.yaml: val: .*Try data\.train=images/train, "):
        YOLO(tmp_path).train()
    assert len(YOLO(tmp_path, train="images/train").val()) == 1


def test_a_described_folder_that_is_not_there(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX}, f"{DESCRIPTION}test: images/test\n")
    assert YOLO(tmp_path).test() is None
    write_text(tmp_path / "data.yaml", DESCRIPTION.replace("images/val", "images/valid"))
    with pytest.raises(ValueError, match=r"data\.yaml: val: .*got images/valid"):
        YOLO(tmp_path).val()


def test_a_test_without_labels_is_none_unless_it_is_given(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX, "test/c": None}, f"{DESCRIPTION}test: images/test\n")
    assert YOLO(tmp_path).test() is None
    assert texts(YOLO(tmp_path).train(), "background") == []
    given = YOLO(tmp_path, train="images/train", val="images/val", test="images/test").test()
    assert names(given) == ["c"]


# --- pictures and their text files ---


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("a.png", "a.txt"),
        ("A.PNG", "a.txt"),
        ("größe 1.jpg", "größe 1.txt"),
        ("a.b.png", "a.b.txt"),
        ("images/a.png", "labels/a.txt"),
        ("train/images/a.png", "train/labels/a.txt"),
        ("x/images/train/a.png", "x/labels/train/a.txt"),
        ("JPEGImages/a.png", "Labels/a.txt"),
        ("JPEGImages/a.png", "annotations/a.txt"),
        ("photos/a.png", "photos/labels/a.txt"),
        ("photos/a.png", "somewhere/else/a.txt"),
    ],
)
def test_where_the_text_file_is(tmp_path: Path, picture: str, label: str):
    write_picture(tmp_path / picture)
    write_text(tmp_path / label, BOX)
    for n in range(2):
        write_picture(tmp_path / "others" / f"{n}.png")
        write_text(tmp_path / "others" / f"{n}.txt", BOX)
    data = YOLO(tmp_path, ["cat"], train=str(Path(picture).parent) if "/" in picture else ".", val="others")
    row = [path.name for path in data.train().paths].index(Path(picture).name)
    assert data.train().truth(row).labels.tolist() == [1]


def test_labels_go_before_texts_beside_the_pictures(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX})
    write_text(tmp_path / "images" / "train" / "a.txt", "A caption.")
    refuse(YOLO(tmp_path).train().findings)
    assert YOLO(tmp_path).train().labels.tolist() == [1]


def test_the_text_file_of_another_picture_is_not_taken(tmp_path: Path):
    """Both pictures have one name."""
    write_yolo(tmp_path, {"train/1": None, "val/1": BOX, "train/2": BOX})
    data = YOLO(tmp_path)
    assert data.train().counts.tolist() == [0, 1]
    refuse(data.train().findings)


def test_old_labels_in_another_folder_are_not_taken(tmp_path: Path):
    """A picture of this folder has a text file in its place, so that the other picture has none."""
    write_yolo(tmp_path, {"train/a": BOX, "train/b": None, "val/c": BOX})
    write_text(tmp_path / "labels_old" / "b.txt", BOX)
    assert YOLO(tmp_path).train().counts.tolist() == [1, 0]


def test_two_pictures_of_one_name(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX, "train/c": None})
    write_picture(tmp_path / "images" / "train" / "c.jpg")
    refuse(YOLO(tmp_path).train().findings)
    write_picture(tmp_path / "images" / "train" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.txt: expected one picture .*a\.jpg and .*a\.png"):
        refuse(YOLO(tmp_path).train().findings)


def test_labels_without_their_picture(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "val/b": BOX})
    for name, text in {"gone": BOX, "empty": "", "readme": "0 is a cat"}.items():
        write_text(tmp_path / "labels" / "train" / f"{name}.txt", text)
    assert [text.split(": ")[0].endswith("gone.txt") for text in texts(YOLO(tmp_path).train(), "unreadable")] == [True]


def test_pictures_without_objects_are_counted(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "train/b": "", "train/c": None, "train/d": None, "val/e": BOX})
    data = YOLO(tmp_path)
    assert data.train().counts.tolist() == [1, 0, 0, 0]
    refuse(data.train().findings)
    (text,) = texts(data.train(), "background")
    assert "without objects: 3, of which 2" in text
    (again,) = texts(YOLO(tmp_path).train(), "background")
    assert again == text


def test_polygons_are_counted(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": f"{BOX}0 0 0 1 0 1 1\n1 0 0 1 0 1 1", "val/b": BOX})
    for _ in range(2):
        (text,) = texts(YOLO(tmp_path).train(), "polygon")
        assert "a.txt" in text
        assert "2 objects" in text


def test_nothing_hidden_and_nothing_outside_is_read(tmp_path: Path):
    write_yolo(tmp_path / "outside", {"train/z": BOX})
    root = write_yolo(tmp_path / "data", {"train/a": BOX, "val/b": BOX, "train/._c": BOX})
    assert names(YOLO(root).train()) == ["a"]
    for entry in ("../outside/images/train", str(tmp_path / "outside" / "images" / "train")):
        # The path without its first folders leads to a folder inside.
        write_text(root / "data.yaml", DESCRIPTION.replace("images/train", entry))
        assert names(YOLO(root).train()) == ["a"]
    write_text(root / "data.yaml", DESCRIPTION.replace("images/train", "../outside"))
    with pytest.raises(ValueError, match=r"data\.yaml: train: .*got \.\./outside"):
        YOLO(root).train()
    write_text(root / "train.txt", "../outside/images/train/z.png")
    write_text(root / "data.yaml", DESCRIPTION.replace("images/train", "train.txt"))
    with pytest.raises(ValueError, match=r"train\.txt, line 1"):
        refuse(YOLO(root).train().findings)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": BOX, "train/b": None, "val/c": BOX})
    os.mkfifo(tmp_path / "labels" / "train" / "b.txt")
    with pytest.raises(ValueError, match=r"b\.txt: expected a file, got a named pipe"):
        refuse(YOLO(tmp_path).train().findings)


# --- checks ---


@pytest.mark.parametrize(
    ("line", "kind", "told"),
    [
        ("2 0.5 0.5 0.5 0.5", "class", "got '2, a number without a name in "),
        ("0 0.5 0.5 0 0.5", "empty", "cx=0.5 cy=0.5 w=0 h=0.5"),
        ("0 0.5 0.5 -0.5 0.5", "reversed", "cx=0.5 cy=0.5 w=-0.5 h=0.5"),
        ("0 1.2 0.5 0.5 0.5", "outside", "cx=1.2 cy=0.5 w=0.5 h=0.5"),
        ("0 -0.1 0.5 0.1 0.5", "outside", "cx=-0.1 cy=0.5 w=0.1 h=0.5"),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path: Path, line: str, kind: str, told: str):
    write_yolo(tmp_path, {"train/a": f"{BOX}\n{line}\n", "val/b": BOX})
    (finding,) = YOLO(tmp_path).train().findings
    assert finding.kind == kind
    assert "a.txt, line 3: " in finding.text
    assert told in finding.text
    assert len(YOLO(tmp_path, fix="skip").train().labels) == 1


def test_pixels_in_place_of_fractions(tmp_path: Path):
    write_yolo(tmp_path, {"train/a": "0 20 10 20 10\n0 2 2 2 2", "val/b": BOX})
    kinds = [finding.kind for finding in YOLO(tmp_path).train().findings]
    assert kinds == ["units"]
    assert "line 1: expected fractions, got cx=20 cy=10 w=20 h=10" in YOLO(tmp_path).train().findings[0].text


def test_corners_in_place_of_centres(tmp_path: Path):
    lines = "".join(f"0 0.5 0.{n} 0.8 0.9\n" for n in range(1, 6))
    write_yolo(tmp_path, {"train/a": lines, "val/b": BOX})
    first = YOLO(tmp_path).train().findings[0]
    assert (first.kind, first.text.endswith("xmin, ymin, xmax, ymax")) == ("units", True)


def test_a_random_folder_against_a_slow_loop(tmp_path: Path):
    rng = np.random.default_rng(0)
    expected = {}
    for n in range(12):
        boxes = [(int(rng.integers(2)), *rng.uniform(0.3, 0.5, 2), *rng.uniform(0.1, 0.5, 2)) for _ in range(n % 4)]
        text = "".join(f"{label} {cx!r} {cy!r} {w!r} {h!r}\n" for label, cx, cy, w, h in
                       [(b[0], *map(float, b[1:])) for b in boxes])  # fmt: skip
        write_yolo(tmp_path, {f"{'val' if n % 3 == 0 else 'train'}/{n}": text})
        expected[str(n)] = [
            (label + 1, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) for label, cx, cy, w, h in boxes
        ]
    for _ in range(2):
        data = YOLO(tmp_path)
        for pictures in (data.train(), data.val()):
            for row, path in enumerate(pictures.paths):
                truth = pictures.truth(row)
                assert truth.labels.tolist() == [label for label, _ in expected[path.stem]]
                told = np.reshape([box for _, box in expected[path.stem]], (-1, 4))
                np.testing.assert_allclose(truth.boxes, told, atol=1e-6)
        assert sorted(names(data.train()) + names(data.val())) == sorted(expected)


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_yolo(tmp_path, {"train/a": BOX, "train/b": None, "val/c": BOX})
    YOLO(tmp_path).train()
    read: list[str] = []
    monkeypatch.setattr(
        yolo, "read_labels", lambda path, *more: (read.append(Path(path).stem), read_labels(path, *more))[1]
    )
    assert len(YOLO(tmp_path).train().labels) == 1
    assert read == []
    write_text(tmp_path / "labels" / "train" / "b.txt", BOX)
    assert len(YOLO(tmp_path).train().labels) == 2
    assert read == ["b"]
    write_text(tmp_path / "data.yaml", DESCRIPTION.replace("cat", "lion"))
    assert YOLO(tmp_path).classes == ("lion", "dog")
    assert YOLO(tmp_path).train().labels.tolist() == [1, 1]
    assert read == ["b"]


# --- whatever bytes there are ---

LINES = st.lists(st.lists(st.sampled_from(["0", "1", "-1", "0.5", "nan", "1e400", "x", "\ufeff", ""])).map(" ".join))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=80), LINES.map(lambda lines: "\n".join(lines).encode())))
def test_labels_of_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.getbasetemp() / "any_labels"
    if not folder.exists():
        write_picture(folder / "a.png")
    path = str(write_text(folder / "a.txt", content))
    began = time.perf_counter()
    try:
        found = read_labels(path, str(folder / "a.png"))
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        message = path
        assert len(found.names) == len(found.boxes) == len(found.numbers or [])
        assert np.isfinite(np.array(found.boxes)).all()
    assert path in message
    assert time.perf_counter() - began < 1


YAML = st.text(alphabet=list("namestriv:[]{}&*!|>'\"-#?,.0 \n\t"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), YAML.map(str.encode), YAML.map(lambda text: f"names: {text}".encode())))
def test_descriptions_of_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = str(write_text(tmp_path_factory.getbasetemp() / "any.yaml", content))
    began = time.perf_counter()
    try:
        described = read_description(path)
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        message = path
        assert all(isinstance(name, str) and name for name in described.names.values())
    assert path in message
    assert time.perf_counter() - began < 1
