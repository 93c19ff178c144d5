"""VOC-style folders: what is read from them, how they are split, and what is refused; and VOC itself."""

import hashlib
import io
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from http_server import Server, answering, sending, serving, unreachable_url
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from places import SHARED
from voc_xml import Box, write_pair, write_picture, write_xml

from ssd_lightning.data.download import Archive, DownloadError
from ssd_lightning.data.folders import DataFolder
from ssd_lightning.data.formats import voc
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import PictureAnnotation, as_columns
from ssd_lightning.data.formats.findings import check_objects, refuse
from ssd_lightning.data.formats.voc import ARCHIVE_OF, VOC, VOC_CLASSES
from ssd_lightning.data.formats.voc_folder import VOCFolder
from ssd_lightning.data.formats.voc_xml import read_xml
from ssd_lightning.detector.presets import CONFIG_FOLDER


def read_one(path: str) -> PictureAnnotation:
    """Read an xml file in a data folder of its own, which may have a folder of annotations."""
    parent = Path(path).parent
    return read_xml(path, DataFolder(parent.parent if parent.name.lower().startswith("annot") else parent))


def one_sample(tmp_path: Path, objects: Sequence[Box], classes: Sequence[str] = ("cat", "dog"), **settings):
    rows = [read_one(str(write_pair(tmp_path, "a", objects, **settings)))]
    pictures = annotated_pictures(as_columns(rows, "voc"), classes)
    refuse(pictures.findings)
    return pictures[0]


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
    """Tools that count pixels from 0 write such boxes."""
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
    found = [read_one(str(path)) for path in sorted(tmp_path.glob("*.xml"))]
    assert [Path(annotation.picture).name for annotation in found] == ["größe 1.JPG", "named.png"]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_pictures_of_any_mode(tmp_path: Path, mode: str):
    write_picture(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}", mode=mode)
    pictures = annotated_pictures(as_columns([read_one(str(write_xml(tmp_path / "a.xml")))], "voc"), ["cat"])
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
        read_one(str(tmp_path / "broken.xml"))
    with pytest.raises(ValueError, match=r"gone\.xml: expected an xml file"):
        read_one(str(tmp_path / "gone.xml"))
    with pytest.raises(ValueError, match=r"alone\.xml: filename: expected a picture .*, got 'alone\.png'"):
        read_one(str(write_xml(tmp_path / "alone.xml")))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png: cannot be read as a picture"):
        read_one(str(write_xml(tmp_path / "text.xml")))


def test_a_folder_without_either_side_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"data\.root: .*nowhere"):
        VOCFolder(tmp_path / "nowhere").prepare()
    with pytest.raises(ValueError, match=r"data\.root: .*xml.* training, got none"):
        refuse(VOCFolder(tmp_path).train().findings)
    write_pair(tmp_path, "a")
    with pytest.raises(ValueError, match=r"data\.root: .* scoring, got none"):
        refuse(VOCFolder(tmp_path).train().findings)
    with pytest.raises(ValueError, match="val_share"):
        VOCFolder(tmp_path, val_share=1)


def test_an_empty_list_is_refused(tmp_path: Path):
    write_year(tmp_path, "2007", {"train": ["a"], "val": []})
    with pytest.raises(ValueError, match=r"data\.root: .*xml.* scoring, got none in .*VOC2007"):
        refuse(VOCFolder(tmp_path / "VOCdevkit" / "VOC2007").val().findings)


def test_names_in_lists_may_have_spaces_and_other_letters(tmp_path: Path):
    """VOC's lists of one class have a second column, which is -1, 0 or 1; here names may end like it."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    names = ["two words", "größe バナナ", "picture 1", "picture 2", "single"]
    write_year(tmp_path, "2007", {"train": names, "val": ["picture"]})
    assert stems(VOCFolder(root).train()) == names
    lines = "two words -1\r\ngröße バナナ  1\nsingle  0\npicture 1  1\n   \npicture 2\npicture -1"
    (root / "ImageSets" / "Main" / "train.txt").write_text("\ufeff" + lines, encoding="utf-8", newline="")
    expected = ["two words", "größe バナナ", "single", "picture 1", "picture 2", "picture"]
    assert stems(VOCFolder(root).train()) == expected


def test_undecodable_bytes_in_a_list(tmp_path: Path):
    name = os.fsdecode(b"a \xff")
    write_year(tmp_path, "2007", {"train": ["b"], "val": ["c"]})
    root = tmp_path / "VOCdevkit" / "VOC2007"
    try:
        write_picture(root / "JPEGImages" / f"{name}.png")
    except OSError:
        pytest.skip("no such names on this file system")
    write_xml(root / "Annotations" / f"{name}.xml", filename="x")
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"a \xff\n")
    assert stems(VOCFolder(root).train()) == [name]


def test_what_a_list_names_and_is_not_there(tmp_path: Path):
    write_year(tmp_path, "2007", {"train": ["a"], "val": ["b"]})
    root = tmp_path / "VOCdevkit" / "VOC2007"
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\nnot there\n")
    with pytest.raises(ValueError, match=r"not there\.xml: expected an xml file"):
        refuse(VOCFolder(root).train().findings)
    assert stems(VOCFolder(root, fix="skip").val()) == ["b"]


def test_a_picture_may_be_trained_and_scored_on_and_twice(tmp_path: Path):
    """Users do this to see whether a network can learn a few pictures by heart."""
    write_year(tmp_path, "2007", {"train": ["b", "a", "b"], "val": ["b", "c"]}, {"c": [("cat", 1, 1, 9, 9)]})
    data = VOCFolder(tmp_path / "VOCdevkit" / "VOC2007")
    assert (stems(data.train()), stems(data.val())) == (["b", "a", "b"], ["b", "c"])
    assert (data.train().counts.tolist(), data.val().counts.tolist()) == ([0, 0, 0], [0, 1])


def test_an_object_without_a_name_makes_no_class(tmp_path: Path):
    write_pair(tmp_path / "train", "a", [("cat", 1, 1, 9, 9), ("", 1, 1, 9, 9)])
    write_pair(tmp_path / "val", "b")
    data = VOCFolder(tmp_path)
    assert data.classes == ("cat",)
    with pytest.raises(ValueError, match=r"a\.xml, object 2: name: expected one of cat, got ''$"):
        refuse(data.train().findings)
    assert VOCFolder(tmp_path, fix="skip").train().labels.tolist() == [1]


def test_the_size_that_the_xml_tells(tmp_path: Path):
    """Its picture is stored as 40×20 and is 20×40 upright."""
    path = write_xml(tmp_path / "a.xml", [("cat", 1, 1, 9, 9)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png", exif=exif)
    whole = path.read_text()
    told = "20×40 pixels as a.png has upright, got 40×20. Try data.boxes_of=stored."
    answers = {
        "": [],
        "<size/>": [],
        "<size><width>0</width><height>0</height></size>": [],
        "<size><width>-40</width><height>many</height></size>": [],
        "<size><width> 20 </width><height>40</height><depth>3</depth></size>": [],
        "<size><width>40</width><height>20</height></size>": [told],
        "<size><width>10</width><height>20</height></size>": ["20×40 pixels as a.png has, got 10×20"],
    }
    for size, expected in answers.items():
        path.write_text(whole.replace("</annotation>", f"{size}</annotation>"))
        found = check_objects(as_columns([read_one(str(path))], "voc"), ["cat"])
        assert [finding.text for finding in found] == [f"{path}: size: expected {text}" for text in expected], size


def test_fractions_of_pixels_and_spaces_around_words(tmp_path: Path):
    """VOC2012 has fractions of pixels."""
    path = write_xml(tmp_path / "a.xml", [("\n cat ", " 1.5", "2.25 ", 10.75, 12)], difficult=[" 1\n"])
    write_picture(tmp_path / "a.png")
    annotation = read_one(str(path))
    assert (annotation.names, annotation.boxes, annotation.difficult) == (["cat"], [(0.5, 1.25, 10.75, 12)], [True])


def test_xml_in_other_encodings(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    text = f"<annotation><object><name>Bär</name>{box}</object></annotation>"
    for encoding in ("utf-8", "utf-16", "iso-8859-1"):
        header = f'<?xml version="1.0" encoding="{encoding}"?>'
        (tmp_path / "a.xml").write_bytes((header + text).encode(encoding))
        assert read_one(str(tmp_path / "a.xml")).names == ["Bär"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no xml",
        b"<annotation>",
        b"<annotation>\xff</annotation>",
        b'<?xml version="1.0" encoding="klingon"?><annotation/>',
        '<?xml version="1.0" encoding="shift_jis"?><annotation>Ä</annotation>'.encode(),
        b"\x89PNG\r\n\x1a\n",
        b'{"images": []}',
    ],
)
def test_what_is_no_xml(tmp_path: Path, content: bytes):
    write_picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.xml: cannot be read as xml \("):
        read_one(str(tmp_path / "a.xml"))


def test_a_folder_that_is_called_like_a_file(tmp_path: Path):
    """The folder is searched, and not read as a file."""
    write_pair(tmp_path / "train" / "b.xml", "a", [("cat", 1, 1, 9, 9)])
    write_pair(tmp_path / "val", "b")
    (tmp_path / "val" / "b.png").rename(tmp_path / "val" / "away")
    (tmp_path / "val" / "b.png").mkdir()
    write_picture(tmp_path / "val" / "b.bmp")
    data = VOCFolder(tmp_path)
    assert [path.name for path in (*data.train().paths, *data.val().paths)] == ["a.png", "b.bmp"]
    with pytest.raises(ValueError, match=r"b\.xml: expected a file, got a folder"):
        read_one(str(tmp_path / "train" / "b.xml"))


def test_hidden_files_are_passed_over(tmp_path: Path):
    """macOS puts such files beside each file on foreign disks."""
    for split in ("train", "val"):
        write_pair(tmp_path / split, split, [("cat", 1, 1, 9, 9)])
        (tmp_path / split / f"._{split}.xml").write_bytes(b"\0\5\x16\7")
    assert stems(VOCFolder(tmp_path).train()) == ["train"]


@pytest.mark.parametrize("stem", ["a", "a.b", "a.jpg"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".bmp", ".tif", ".webp", ".gif"])
def test_a_picture_of_any_kind_beside_its_xml_or_in_jpegimages(tmp_path: Path, stem: str, suffix: str):
    path = write_xml(tmp_path / "Annotations" / f"{stem}.xml", filename="another name.png")
    picture = write_picture(tmp_path / "JPEGImages" / f"{stem}{suffix}")
    assert read_one(str(path)).picture == str(picture)
    picture = write_picture(tmp_path / "Annotations" / f"{stem}{suffix}", 5, 6)
    assert (read_one(str(path)).picture, read_one(str(path)).size) == (str(picture), (6, 5))


def test_a_picture_of_one_pixel(tmp_path: Path):
    write_picture(tmp_path / "a.png", 1, 1)
    path = write_xml(tmp_path / "a.xml", [("cat", 1, 1, 1, 1)])
    sample = annotated_pictures(as_columns([read_one(str(path))], "voc"), ["cat"])[0]
    assert sample.image.shape == (1, 1, 3)
    assert sample.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("layout", ["loop", "parent", "xml"])
def test_links_that_go_in_circles(tmp_path: Path, layout: str):
    for split in ("train", "val"):
        write_pair(tmp_path / split, split, [("cat", 1, 1, 9, 9)])
    try:
        if layout == "loop":
            (tmp_path / "train" / "one").symlink_to("two")
            (tmp_path / "train" / "two").symlink_to("one")
        elif layout == "parent":
            (tmp_path / "train" / "up").symlink_to(tmp_path, target_is_directory=True)
        else:
            (tmp_path / "train" / "z.xml").symlink_to("z.xml")
    except OSError:
        pytest.skip("no links on this file system")
    data = VOCFolder(tmp_path, fix="skip")
    assert (stems(data.train()), stems(data.val())) == (["train"], ["val"])
    if layout == "xml":
        with pytest.raises(ValueError, match=r"z\.xml: cannot be read as xml \(.*symbolic links"):
            refuse(VOCFolder(tmp_path).train().findings)


def test_a_folder_of_data_that_is_a_link(tmp_path: Path):
    for split in ("train", "val"):
        write_pair(tmp_path / "elsewhere" / split, split)
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / split).symlink_to(tmp_path / "elsewhere" / split, target_is_directory=True)
    assert stems(VOCFolder(tmp_path / "data").val()) == ["val"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rather than left out without a word."""
    write_pair(tmp_path / "train" / "secret", "a")
    write_pair(tmp_path / "val", "b")
    scandir = os.scandir

    def guarded(path: str):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(ValueError, match=r"^data\.root: .*secret \(Permission denied\)$"):
        refuse(VOCFolder(tmp_path).train().findings)


@pytest.mark.skipif(os.geteuid() == 0, reason="may read everything")
def test_files_and_folders_without_permission_are_named(tmp_path: Path):
    write_pair(tmp_path / "train", "a")
    write_pair(tmp_path / "val", "b")
    (tmp_path / "val" / "b.xml").chmod(0)
    with pytest.raises(ValueError, match=r"b\.xml: cannot be read as xml \(.*Permission denied"):
        refuse(VOCFolder(tmp_path).train().findings)
    (tmp_path / "train").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"train \(Permission denied\)$"):
            refuse(VOCFolder(tmp_path).train().findings)
    finally:
        (tmp_path / "train").chmod(0o755)


def test_what_skip_leaves_out_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    things = [("cat", 1, 1, 9, 9), ("cat", 30, 1, 90, 9)]
    for split in ("train", "val"):
        for name in "abc":
            write_pair(tmp_path / split, f"{split}{name}", things)
    (tmp_path / "train" / "traina.png").unlink()
    (tmp_path / "val" / "valb.xml").write_text("<annotation>")
    for fix in (None, "clip"):
        with pytest.raises(ValueError, match=r"traina\.xml: filename: .* got 'traina\.png' \(\d more\. Try ssd-check"):
            refuse(VOCFolder(tmp_path, fix=fix).train().findings)
    with caplog.at_level(logging.WARNING):
        data = VOCFolder(tmp_path, fix="skip")
        assert (stems(data.train()), stems(data.val())) == (["trainb", "trainc"], ["vala", "valc"])
    assert data.train().counts.tolist() == data.val().counts.tolist() == [1, 1]
    # Two objects in the pictures of each split, and the two pictures that cannot be read.
    assert all(message.startswith("4 ") and "fix=skip" in message for message in caplog.messages[-2:])
    (tmp_path / "train" / "traina.xml").unlink()
    write_pair(tmp_path / "val", "valb", things)
    clipped = VOCFolder(tmp_path, fix="clip").train()
    np.testing.assert_allclose(clipped.truth(0).boxes, [[0, 0, 9 / 40, 9 / 20], [29 / 40, 0, 1, 9 / 20]])


# --- what tools write ---


def annotation(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{content}</annotation>", encoding="utf-8")
    return str(path)


def bndbox(*edges: int) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    return f"<bndbox>{''.join(f'<{t}>{e}</{t}>' for t, e in zip(tags, edges, strict=True))}</bndbox>"


def test_several_boxes_of_one_object_are_several_objects(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    thing = f"<object><name>car</name>{bndbox(1, 1, 9, 9)}{bndbox(2, 2, 8, 8)}</object>"
    found = read_one(annotation(tmp_path / "a.xml", thing))
    assert (found.names, found.boxes) == (["car", "car"], [(0, 0, 9, 9), (1, 1, 8, 8)])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"<object><name>car</name><name>bus</name>{bndbox(1, 1, 9, 9)}</object>", "object 1: name: .*'car', 'bus'"),
        ("<filename>a.png</filename><filename>b.png</filename>", "filename: .*'a.png', 'b.png'"),
        ("<size><width>40</width></size><size><width>50</width></size>", "size/width: .*'40', '50'"),
        (f"<object><name>car</name><difficult>2</difficult>{bndbox(1, 1, 9, 9)}</object>", "difficult: .*got '2'"),
    ],
)
def test_elements_that_disagree(tmp_path: Path, content: str, told: str):
    write_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.xml.*{told}"):
        read_one(annotation(tmp_path / "a.xml", content))


def test_the_same_element_twice_says_one_thing(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    size = "<size><width>40.0</width><height>20</height></size>"
    thing = f"<object><name>car</name><name>car</name><difficult>True</difficult>{bndbox(1, 1, 9, 9)}</object>"
    found = read_one(annotation(tmp_path / "a.xml", size * 2 + thing))
    assert (found.names, found.told_size, found.difficult) == (["car"], (20, 40), [True])


@pytest.mark.parametrize(
    ("xml", "picture"),
    [
        ("Annotations/cam1/0.xml", "JPEGImages/cam1/0.png"),
        ("annotations/0.xml", "images/0.png"),
        ("annots/0.xml", "images/0.png"),
        ("set/labels/0.xml", "set/images/0.png"),
        ("0.xml", "images/0.png"),
        ("0.xml", "0.Png"),
        ("a.xml", "0.PNG"),
        ("labels/a.xml", "somewhere/else/0.png"),
        ("0.png.xml", "0.png"),
    ],
)
def test_where_a_picture_may_be(tmp_path: Path, xml: str, picture: str):
    Image.new("RGB", (40, 20)).save(write_picture(tmp_path / "x.png").parent / "x.png")
    (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "x.png").rename(tmp_path / picture)
    path = write_xml(tmp_path / xml, filename="0.png")
    assert read_xml(str(path), DataFolder(tmp_path)).picture == str(tmp_path / picture)


def test_a_picture_that_may_be_several(tmp_path: Path):
    for place in ("one", "two"):
        write_picture(tmp_path / place / "0.png")
    path = str(write_xml(tmp_path / "labels" / "a.xml", filename="0.png"))
    with pytest.raises(ValueError, match=r"filename: .*got '0\.png', which may be one/0\.png, two/0\.png"):
        read_xml(path, DataFolder(tmp_path))


def test_a_name_and_a_filename_of_two_pictures(tmp_path: Path):
    for stem in "ab":
        write_picture(tmp_path / f"{stem}.png")
    with pytest.raises(ValueError, match=r"a\.xml: filename: expected .* a\.png, got b\.png"):
        read_one(str(write_xml(tmp_path / "a.xml", filename="b.png")))


def test_lists_with_folders_and_suffixes(tmp_path: Path):
    for stem in ("cam1/0", "cam2/0", "1", "2"):
        write_xml(tmp_path / "Annotations" / f"{stem}.xml")
        write_picture(tmp_path / "JPEGImages" / f"{stem}.png")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "Train.txt").write_text("cam1/0\r\ncam2\\0.jpg\r\n", encoding="utf-16")
    (lists / "val.txt").write_text("1.png\nJPEGImages/2.png\n")
    data = VOCFolder(tmp_path)
    names = [
        [str(path.relative_to(tmp_path / "JPEGImages")) for path in side.paths] for side in (data.train(), data.val())
    ]
    assert names == [["cam1/0.png", "cam2/0.png"], ["1.png", "2.png"]]


def test_a_list_that_leads_out_of_the_folder(tmp_path: Path):
    write_pair(tmp_path, "secret", [("cat", 1, 1, 9, 9)])
    write_year(tmp_path, "2007", {"train": ["a"], "val": ["b"]})
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for line in ("../../../secret", str(tmp_path / "secret")):
        (root / "ImageSets" / "Main" / "val.txt").write_text(f"{line}\n")
        with pytest.raises(ValueError, match=r"secret\.xml: expected a file inside"):
            refuse(VOCFolder(root).val().findings)


def test_lists_of_one_class_are_the_split(tmp_path: Path):
    write_year(tmp_path, "2007", {"all": list("abcd")})
    root = tmp_path / "VOCdevkit" / "VOC2007"
    (root / "ImageSets" / "Main" / "all.txt").unlink()
    for name, lines in {"dog_train": "a  1\nb -1", "cat_train": "a -1\nb  1\nc  0", "dog_val": "d  1"}.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    data = VOCFolder(root)
    assert (stems(data.train()), stems(data.val())) in ((["a", "b", "c"], ["d"]), (["c", "a", "b"], ["d"]))
    own = VOCFolder(root, train="dog_train", val=["dog_val", "cat_train.txt"])
    assert (stems(own.train()), stems(own.val())) == (["a", "b"], ["d", "a", "b", "c"])
    with pytest.raises(ValueError, match=r"data\.val: .*cat_train, dog_train, dog_val.*got nothing"):
        VOCFolder(root, train="dog_train", val="nothing").train()
    with pytest.raises(ValueError, match=r"train, val: expected"):
        VOCFolder(root, train="dog_train")


def test_lists_that_are_no_split_are_not_drawn_over(tmp_path: Path):
    write_year(tmp_path, "2007", {"mine": ["a", "b"], "other": ["c"]})
    with pytest.raises(ValueError, match=r"data\.root: expected lists .* got mine, other .*Try data\.train"):
        VOCFolder(tmp_path / "VOCdevkit" / "VOC2007").train()


def test_any_list_of_voc_can_be_named(tmp_path: Path):
    write_year(tmp_path, "2007", {"train": ["a", "b"], "car_train": ["a"], "my list": ["b"]})
    data = VOC(tmp_path, ["2007/car_train"], ["2007/my list"])
    data.prepare()
    assert (stems(data.train()), stems(data.val())) == (["a"], ["b"])
    with pytest.raises(ValueError, match=r"^val: .*got '\.\./2007'"):
        VOC(tmp_path, ["2007/train"], ["../2007"])


def test_folders_of_a_split_below_the_annotations(tmp_path: Path):
    for name in ("train/a", "val/b", "train/c"):
        write_xml(tmp_path / "Annotations" / f"{name}.xml")
        write_picture(tmp_path / "images" / f"{name}.png")
    data = VOCFolder(tmp_path)
    assert (stems(data.train()), stems(data.val())) == (["a", "c"], ["b"])


def test_a_drawn_split_has_its_share_of_each_class(tmp_path: Path):
    for number in range(40):
        write_pair(tmp_path, f"{number:02}", [("rare" if number < 10 else "usual", 1, 1, 9, 9)])
    for seed in range(3):
        assert np.bincount(VOCFolder(tmp_path, seed=seed).val().labels).tolist() == [0, 2, 6]


def test_hidden_xml_and_pictures_without_xml(tmp_path: Path):
    for split in ("train", "val"):
        write_pair(tmp_path / split, split)
        (tmp_path / split / ".ipynb_checkpoints").mkdir()
        (tmp_path / split / ".ipynb_checkpoints" / "0-checkpoint.xml").write_text("<foo/>")
        write_picture(tmp_path / split / "alone.png")
    (remark,) = VOCFolder(tmp_path).train().remarks
    assert remark.kind == "unannotated"
    assert "train/alone.png" in remark.text
    assert remark.text.endswith(": 2")


def test_folders_that_are_links(tmp_path: Path):
    for split in ("train", "val"):
        write_pair(tmp_path / "store" / split, split)
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "first").symlink_to(tmp_path / "store" / "train", target_is_directory=True)
    (tmp_path / "data" / "val").symlink_to(tmp_path / "store" / "val", target_is_directory=True)
    data = VOCFolder(tmp_path / "data")
    assert data.train().paths == [tmp_path / "data" / "train" / "first" / "train.png"]
    assert data.val().paths == [tmp_path / "data" / "val" / "val.png"]


@pytest.mark.parametrize("encoding", ["gb2312", "shift_jis", "big5", "euc-kr"])
def test_xml_in_encodings_of_several_bytes(tmp_path: Path, encoding: str):
    write_picture(tmp_path / "a.png")
    name = "가" if encoding == "euc-kr" else "中"
    thing = f"<object><name>{name}</name>{bndbox(1, 1, 9, 9)}</object>"
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{thing}</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert read_one(str(tmp_path / "a.xml")).names == [name]


def test_xml_that_declares_utf_16_and_is_utf_8(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_bytes('<?xml version="1.0" encoding="utf-16"?><annotation>ä</annotation>'.encode())
    assert read_one(str(tmp_path / "a.xml")).names == []


# --- VOC itself ---


def write_year(
    root: Path, year: str, lists: dict[str, Sequence[str]], objects: dict[str, Sequence[Box]] | None = None
) -> Path:
    """``VOCdevkit/VOC<year>`` in ``root``, with lists of pictures and with the pictures."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for part, names in lists.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
        for name in names:
            write_xml(folder / "Annotations" / f"{name}.xml", (objects or {}).get(name, []))
            write_picture(folder / "JPEGImages" / f"{name}.jpg")
    return folder


def test_the_classes_are_those_of_the_challenge():
    assert len(VOC_CLASSES) == len(set(VOC_CLASSES)) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert VOC("nowhere").classes == VOC_CLASSES


@pytest.mark.parametrize("given", ["parent", "devkit", "from inside", "from beside"])
def test_the_root_is_the_devkit_or_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str):
    write_year(tmp_path / "data", "2007", {"train": ["a"], "val": ["b"]}, {"a": [("cat", 1, 1, 40, 20)]})
    monkeypatch.chdir(tmp_path / "data" / ("VOCdevkit" if given == "from inside" else ""))
    root = {
        "parent": tmp_path / "data",
        "devkit": tmp_path / "data" / "VOCdevkit",
        "from inside": Path(),
        "from beside": "VOCdevkit/",
    }[given]
    data = VOC(root, ["2007/train"], ["2007/val"])
    data.prepare()
    assert data.train().paths == [tmp_path / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "a.jpg"]
    assert data.train().truth(0).labels.tolist() == [VOC_CLASSES.index("cat") + 1]
    assert data.train().truth(0).boxes.tolist() == [[0, 0, 1, 1]]
    assert stems(data.val()) == ["b"]


def test_pictures_of_two_years_in_the_order_of_the_parts(tmp_path: Path):
    """Pictures of the same name in two years are different pictures."""
    objects = {"a": [("cat", 1, 1, 9, 9)], "b": [("dog", 1, 1, 9, 9)], "c": []}
    write_year(tmp_path, "2007", {"trainval": ["c", "a"], "test": ["b"]}, objects)
    write_year(tmp_path, "2012", {"trainval": ["b", "a"]}, {"a": [("dog", 2, 2, 9, 9)], "b": [("cow", 1, 1, 9, 9)]})
    data = VOC(tmp_path)
    data.prepare()
    told = [(path.parts[-3], path.stem) for path in data.train().paths]
    assert told == [("VOC2007", "c"), ("VOC2007", "a"), ("VOC2012", "b"), ("VOC2012", "a")]
    assert data.train().counts.tolist() == [0, 1, 1, 1]
    assert [VOC_CLASSES[label - 1] for label in data.train().labels] == ["cat", "cow", "dog"]
    assert [(path.parts[-3], path.stem) for path in data.val().paths] == [("VOC2007", "b")]
    turned = VOC(tmp_path, train=["2012/trainval", "2007/trainval"], val=["2007/test"])
    assert [(path.parts[-3], path.stem) for path in turned.train().paths] == [*told[2:], *told[:2]]


def test_boxes_are_cut_and_difficult_objects_kept_as_in_the_paper(tmp_path: Path):
    folder = write_year(tmp_path, "2007", {"trainval": ["a"], "test": ["b"]})
    write_xml(folder / "Annotations" / "a.xml", [("cat", 31, 1, 99, 10), ("dog", 1, 1, 9, 9)], difficult=[0, 1])
    data = VOC(tmp_path, ["2007/trainval"])
    np.testing.assert_allclose(data.train().boxes[0], [0.75, 0, 1, 0.5])
    assert data.train().difficult.tolist() == [False, True]
    assert VOC(tmp_path, ["2007/trainval"], difficult=False).train().difficult.tolist() == [False]
    with pytest.raises(ValueError, match=r"a\.xml, object 1: expected a box inside a\.jpg of 40×20 pixels"):
        refuse(VOC(tmp_path, ["2007/trainval"], fix=None).train().findings)


@pytest.mark.parametrize(
    "part", ["2012/test", "2007", "2007/trainvals", "VOC2007/train", "2008/train", "", "2007/Train"]
)
@pytest.mark.parametrize("side", ["train", "val"])
def test_parts_that_there_are_not(part: str, side: str):
    with pytest.raises(ValueError, match=rf"^{side}: expected some of 2007/train, .*2012/trainval, .*, got '{part}'$"):
        VOC("nowhere", **{side: ["2007/train", part]})


@pytest.mark.parametrize(
    ("option", "train", "val"),
    [
        ("voc07", ["2007/trainval"], ["2007/test"]),
        ("voc12", ["2012/train"], ["2012/val"]),
        ("voc0712", ["2007/trainval", "2012/trainval"], ["2007/test"]),
    ],
)
def test_the_options_of_the_command_line(tmp_path: Path, option: str, train: list[str], val: list[str]):
    for part in (*train, *val):
        write_year(tmp_path, part[:4], {part[5:]: [part.replace("/", "_")]})
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", [f"data={option}", f"data_dir={tmp_path}"])
    data = instantiate(config.data, _convert_="all")
    assert isinstance(data, VOC)
    assert (data.parts, data.difficult) == ({"train": train, "val": val, "test": []}, True)
    data.prepare()
    assert stems(data.train()) == [part.replace("/", "_") for part in train]
    assert stems(data.val()) == [part.replace("/", "_") for part in val]


# --- what is not there is downloaded ---


def tar_of(folder: Path) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        archive.add(folder / "VOCdevkit", "VOCdevkit")
    return written.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of archives of VOC2007 in miniature; nothing else can be reached."""
    with serving() as server:
        server.default = answering(404)
        yield server


@pytest.fixture
def archives(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Archive]:
    """Archives by part. Both hold the same readme and share folders, as the real archives do."""
    parts = {"trainval": {"trainval": ["a", "c"], "train": ["a"], "val": ["c"]}, "test": {"test": ["b"]}}
    made = {}
    for name, lists in parts.items():
        folder = write_year(tmp_path / name, "2007", lists, {n: [("cat", 1, 1, 9, 9)] for n in "abc"})
        (folder.parent / "readme.txt").write_text("the same")
        content = tar_of(tmp_path / name)
        server.scripts[f"/{name}.tar"] = [sending(content)]
        archive = Archive(f"{name}.tar", (server.url(f"/{name}.tar"),), f"md5:{hashlib.md5(content).hexdigest()}")
        made |= {f"2007/{part}": archive for part in lists}
    monkeypatch.setattr(voc, "ARCHIVE_OF", made)
    return made


@pytest.mark.parametrize("root", ["data", "data/VOCdevkit"])
def test_two_archives_come_together_in_one_folder(tmp_path: Path, server: Server, archives, root: str):
    data = VOC(tmp_path / root, ["2007/trainval"], ["2007/test"])
    for _ in range(2):
        data.prepare()
        assert server.requests == ["/trainval.tar", "/test.tar"]
    assert (stems(data.train()), stems(data.val())) == (["a", "c"], ["b"])
    assert data.train().paths[0].parent == tmp_path / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages"
    assert data.val()[0].image.shape == (20, 40, 3)


def test_an_archive_of_several_parts_is_downloaded_once(tmp_path: Path, server: Server, archives):
    data = VOC(tmp_path / "data", ["2007/train", "2007/trainval"], ["2007/val"])
    data.prepare()
    assert server.requests == ["/trainval.tar"]
    assert (stems(data.train()), stems(data.val())) == (["a", "a", "c"], ["c"])


@pytest.mark.parametrize("root", ["", "VOCdevkit"])
def test_nothing_is_requested_for_what_is_there(tmp_path: Path, server: Server, archives, root: str):
    data = VOC(tmp_path / "trainval" / root, ["2007/train"], ["2007/val"])
    data.prepare()
    assert (stems(data.train()), stems(data.val())) == (["a"], ["c"])
    assert server.requests == []
    assert sorted(path.name for path in (tmp_path / "trainval").iterdir()) == ["VOCdevkit"]


def test_only_what_is_missing_is_requested(tmp_path: Path, server: Server, archives):
    data = VOC(tmp_path / "trainval", ["2007/trainval"], ["2007/test"])
    data.prepare()
    assert server.requests == ["/test.tar"]
    assert (stems(data.train()), stems(data.val())) == (["a", "c"], ["b"])


def test_only_its_own_folder_is_filled(tmp_path: Path, server: Server, archives):
    choice = {"train": ["2007/trainval"], "val": ["2007/test"]}
    with pytest.raises(
        ValueError, match=rf"^data\.root: .* VOCdevkit, got {tmp_path / 'typo'}\..*data\.root={tmp_path / 'own'}"
    ):
        VOC(tmp_path / "typo", **choice, download_to=tmp_path / "own").prepare()
    assert server.requests == []
    assert not (tmp_path / "typo").exists()
    # A devkit that lacks one part is no mistake.
    VOC(tmp_path / "trainval", **choice, download_to=tmp_path / "own").prepare()
    VOC(tmp_path / "own", ["2007/train"], ["2007/val"], download_to=tmp_path / "own").prepare()
    assert server.requests == ["/test.tar", "/trainval.tar"]


def test_an_archive_that_was_put_there_by_hand(tmp_path: Path, server: Server, archives):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.tar").write_bytes(tar_of(tmp_path / "test"))
    (tmp_path / "data" / "trainval.tar").write_bytes(tar_of(tmp_path / "trainval"))
    archive = archives["2007/test"]
    content = (tmp_path / "data" / "test.tar").read_bytes()
    assert f"md5:{hashlib.md5(content).hexdigest()}" == archive.checksum
    VOC(tmp_path / "data", ["2007/trainval"], ["2007/test"]).prepare()
    assert server.requests == []


@pytest.mark.parametrize("broken", ["gone", "not reached", "another file"])
def test_the_second_mirror_is_as_good(tmp_path: Path, server: Server, archives, monkeypatch, broken: str):
    first = {
        "gone": server.url("/gone.tar"),
        "not reached": unreachable_url("/test.tar"),
        "another file": server.url("/other.tar"),
    }[broken]
    server.scripts["/other.tar"] = [sending(b"an error page")] * 9
    archive = archives["2007/test"]
    monkeypatch.setitem(voc.ARCHIVE_OF, "2007/test", archive._replace(urls=(first, *archive.urls)))
    data = VOC(tmp_path / "trainval", ["2007/trainval"], ["2007/test"])
    data.prepare()
    assert stems(data.val()) == ["b"]
    assert server.requests[-1] == "/test.tar"


def test_the_error_tells_what_to_put_where(tmp_path: Path, server: Server, archives, monkeypatch):
    archive = archives["2007/test"]._replace(urls=(server.url("/gone.tar"), server.url("/away.tar")))
    monkeypatch.setitem(voc.ARCHIVE_OF, "2007/test", archive)
    with pytest.raises(DownloadError) as caught:
        VOC(tmp_path / "trainval" / "VOCdevkit", ["2007/trainval"], ["2007/test"]).prepare()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'trainval' / 'test.tar'}: ")
    assert [line.partition(": ")[0].strip() for line in lines[1:3]] == list(archive.urls)
    assert all("404" in line for line in lines[1:3])
    for part in (
        f"test.tar ({archive.checksum}) into {tmp_path / 'trainval'}",
        "VOCdevkit/VOC2007/ImageSets/Main/test.txt",
    ):
        assert part in lines[3]


def test_the_real_archives_have_several_mirrors_and_the_checksums_of_torchvision():
    """The checksums are those of ``torchvision.datasets.voc``, where 2007/test is ``2007-test``."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    for part, archive in ARCHIVE_OF.items():
        known = DATASET_YEAR_DICT["2007-test" if part == "2007/test" else part[:4]]
        assert (archive.name, archive.checksum) == (known["filename"], f"md5:{known['md5']}")
        assert len(archive.urls) == len(set(archive.urls)) >= 4
        assert all(url.endswith(f"/{archive.name}") for url in archive.urls)


# --- real pictures ---


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


@pytest.mark.skipif(not (SHARED / "VOCdevkit").is_dir(), reason="needs pictures of VOC2007")
@pytest.mark.parametrize("root", [SHARED, SHARED / "VOCdevkit"])
def test_pictures_of_voc_2007_in_their_own_layout(root: Path):
    data = VOC(root, train=["2007/train"], val=["2007/val"], fix=None)
    data.prepare()
    assert (len(data.train()), len(data.val())) == (350, 150)
    train, val, _, findings, _ = data.annotations
    assert [*findings, *check_objects(train, data.classes), *check_objects(val, data.classes)] == []
    assert {path.suffix for path in data.train().paths} == {".jpg"}
    for index in range(0, 350, 50):
        assert data.train().truth(index).size == data.train().image(index).shape[:2]
