"""VOC-style folders: what is read from them, how they are split, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd_lightning.data.annotations import AnnotatedPictures, annotated_pictures, as_columns
from ssd_lightning.data.voc import VOCFolder, read_xml

SHARED = Path(__file__).parents[2] / "shared" / "data"
Box = tuple[str, float, float, float, float]


def write_xml(path: Path, objects: Sequence[Box] = (), difficult: Sequence[int] = (), filename: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [*difficult, *[0] * len(objects)]
    entries = [
        f"<object><name>{name}</name><difficult>{flag}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for (name, left, top, right, bottom), flag in zip(objects, flags, strict=False)
    ]
    path.write_text(
        f"<annotation><filename>{filename or path.stem + '.png'}</filename>{''.join(entries)}</annotation>",
        encoding="utf-8",
    )
    return path


def write_picture(path: Path, width: int = 40, height: int = 20, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)
    return path


def write_pair(folder: Path, stem: str, objects: Sequence[Box] = (), **settings: Sequence[int]) -> Path:
    write_picture(folder / f"{stem}.png")
    return write_xml(folder / f"{stem}.xml", objects, **settings)


def one_sample(tmp_path: Path, objects: Sequence[Box], classes: Sequence[str] = ("cat", "dog"), **settings):
    return annotated_pictures(
        as_columns([read_xml(str(write_pair(tmp_path, "a", objects, **settings)))], "voc"), classes
    )[0]


def stems(pictures: AnnotatedPictures) -> list[str]:
    return [path.stem for path in pictures.paths]


def test_a_box_of_pixels_counted_from_1_with_the_last_one_included(tmp_path: Path):
    sample = one_sample(tmp_path, [("dog", 1, 1, 40, 20), ("cat", 11, 6, 20, 10)])
    np.testing.assert_allclose(sample.boxes, [[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]])
    assert sample.labels.tolist() == [2, 1]
    assert sample.difficult.tolist() == [False, False]
    assert sample.image.shape == (20, 40, 3)


def test_a_picture_without_objects_is_ordinary(tmp_path: Path):
    sample = one_sample(tmp_path, [])
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == sample.difficult.shape == (0,)


def test_a_box_of_one_pixel_is_a_box(tmp_path: Path):
    np.testing.assert_allclose(one_sample(tmp_path, [("cat", 40, 20, 40, 20)]).boxes, [[39 / 40, 19 / 20, 1, 1]])


@pytest.mark.parametrize("box", [(0, 0, 40, 20), (1, 1, 41, 21)])
def test_a_pixel_over_the_border_is_cut_off(tmp_path: Path, box):
    """As tools write it that count from 0."""
    np.testing.assert_allclose(one_sample(tmp_path, [("cat", *box)]).boxes, [[0, 0, 1, 1]])


def test_difficult_objects_are_scored_on_and_trained_on_if_wanted(tmp_path: Path):
    for split in ("train", "val"):
        write_pair(tmp_path / split, split, [("cat", 1, 1, 9, 9), ("dog", 2, 2, 8, 8)], difficult=[0, 1])
    for wanted in (True, False):
        data = VOCFolder(tmp_path, difficult=wanted)
        assert data.classes == ("cat", "dog")
        assert data.train()[0].difficult.tolist() == ([False, True] if wanted else [False])
        assert data.train()[0].labels.tolist() == ([1, 2] if wanted else [1])
        assert data.val()[0].difficult.tolist() == [False, True]


def test_lists_tell_what_is_for_training(tmp_path: Path):
    for stem in "abc":
        write_xml(tmp_path / "Annotations" / f"{stem}.xml", [("cat", 1, 1, 9, 9)])
        write_picture(tmp_path / "JPEGImages" / f"{stem}.png")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("c\na  -1\n")
    (lists / "val.txt").write_text("b\n\n")
    data = VOCFolder(tmp_path)
    assert stems(data.train()) == ["c", "a"]
    assert stems(data.val()) == ["b"]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_folders_tell_what_is_for_training(tmp_path: Path, name: str):
    write_pair(tmp_path / "train", "a", [("cat", 1, 1, 9, 9)])
    write_pair(tmp_path / name / "deeper", "b")
    data = VOCFolder(tmp_path)
    data.prepare()
    assert (stems(data.train()), stems(data.val())) == (["a"], ["b"])


def test_without_either_a_share_is_drawn_by_the_seed(tmp_path: Path):
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        write_pair(tmp_path, name, [("cat", 1, 1, 9, 9)])
    first, again, other = (VOCFolder(tmp_path, val_share=0.25, seed=seed) for seed in (0, 0, 1))
    assert len(first.val()) == 5
    assert sorted(stems(first.train()) + stems(first.val())) == names
    assert stems(again.val()) == stems(first.val())
    assert stems(other.val()) != stems(first.val())


def test_names_with_spaces_and_other_letters_and_a_path_of_another_computer(tmp_path: Path):
    write_picture(tmp_path / "größe 1.JPG")
    write_xml(tmp_path / "größe 1.xml")
    write_picture(tmp_path / "named.png")
    write_xml(tmp_path / "other.xml", filename="C:\\pictures\\named.png")
    found = [read_xml(str(path)) for path in sorted(tmp_path.glob("*.xml"))]
    assert [Path(annotation.picture).name for annotation in found] == ["größe 1.JPG", "named.png"]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_pictures_of_any_mode(tmp_path: Path, mode: str):
    write_picture(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}", mode=mode)
    pictures = annotated_pictures(as_columns([read_xml(str(write_xml(tmp_path / "a.xml")))], "voc"), ["cat"])
    assert pictures[0].image.shape == (20, 40, 3)


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ([("Cat", 1, 1, 9, 9)], ["object 1", "name", "cat, dog", "'Cat'"]),
        ([("cat", 1, 1, 9, 9), ("", 1, 1, 9, 9)], ["object 2", "name", "''"]),
        ([("cat", 9, 1, 8, 9)], ["object 1", "xmin <= xmax", "xmin=9", "xmax=8"]),
        ([("cat", 1, 9, 9, 8)], ["ymin <= ymax", "ymin=9"]),
        ([("cat", 1, 1, 42, 9)], ["inside a.png of 40×20", "xmax=42"]),
        ([("cat", 1, 1, 9, 22)], ["ymax=22"]),
        ([("cat", -1, 1, 9, 9)], ["xmin=-1"]),
        ([("cat", 41, 1, 41, 9)], ["xmin=41"]),
        ([("cat", "one", 1, 9, 9)], ["object 1", "xmin", "'one'"]),
        ([("cat", "nan", 1, 9, 9)], ["xmin", "'nan'"]),
    ],
)
def test_a_bad_object_is_named_with_its_file(tmp_path: Path, objects, told: list[str]):
    with pytest.raises(ValueError, match="object") as error:
        one_sample(tmp_path, objects)
    for part in ("a.xml", *told):
        assert part in str(error.value)


def test_bad_files_are_named(tmp_path: Path):
    (tmp_path / "broken.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"broken\.xml: cannot be read as xml"):
        read_xml(str(tmp_path / "broken.xml"))
    with pytest.raises(ValueError, match=r"gone\.xml: no such file"):
        read_xml(str(tmp_path / "gone.xml"))
    with pytest.raises(ValueError, match=r"alone\.xml: its picture alone\.png is neither"):
        read_xml(str(write_xml(tmp_path / "alone.xml")))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png: cannot be read as a picture"):
        read_xml(str(write_xml(tmp_path / "text.xml")))


def test_a_folder_without_either_side_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        VOCFolder(tmp_path / "nowhere").prepare()
    with pytest.raises(ValueError, match="0 annotated pictures for training and 0 for scoring"):
        VOCFolder(tmp_path).train()
    write_pair(tmp_path, "a")
    with pytest.raises(ValueError, match="1 annotated pictures for training and 0 for scoring"):
        VOCFolder(tmp_path).train()
    with pytest.raises(ValueError, match="val_share"):
        VOCFolder(tmp_path, val_share=1)


@pytest.mark.skipif(not (SHARED / "fruit-voc").is_dir(), reason="needs the fruit pictures")
def test_somebodys_fruit_as_it_lies_there():
    data = VOCFolder(SHARED / "fruit-voc")
    assert data.classes == ("apple", "banana", "orange")
    assert (len(data.train()), len(data.val())) == (240, 60)


@pytest.mark.skipif(not (SHARED / "VOCdevkit").is_dir(), reason="needs pictures of VOC2007")
def test_pictures_of_voc_2007():
    data = VOCFolder(SHARED / "VOCdevkit" / "VOC2007")
    assert len(data.classes) == 20
    assert (len(data.train()), len(data.val())) == (350, 150)
    assert any(data.val()[index].difficult.any() for index in range(150))
