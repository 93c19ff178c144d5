"""The files below a folder: hidden ones, links, and pictures by the names in annotations."""

from pathlib import Path

import pytest

from ssd_lightning.data.folders import DataFolder, picture_places, visible_files


def touch(root: Path, *files: str) -> DataFolder:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return DataFolder(root)


def test_nothing_hidden_is_listed_at_any_depth(tmp_path: Path):
    touch(tmp_path, "b/c.png", "a.png", "._a.png", ".idea/misc.xml", "b/.ipynb_checkpoints/c.png")
    assert visible_files(tmp_path) == ["a.png", "b/c.png"]


def test_a_hidden_folder_may_be_the_data_folder(tmp_path: Path):
    touch(tmp_path / ".data", "a.png")
    assert visible_files(tmp_path / ".data") == ["a.png"]


def test_links_to_folders_are_followed_once(tmp_path: Path):
    touch(tmp_path / "elsewhere", "a.png", "deep/b.png")
    touch(tmp_path / "data", "real/c.png")
    try:
        (tmp_path / "data" / "a link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "data" / "another").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "real", target_is_directory=True)
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data", target_is_directory=True)
    except OSError:
        pytest.skip("no links on this file system")
    assert visible_files(tmp_path / "data") == ["a link/a.png", "a link/deep/b.png", "real/c.png"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("images/1/a.png", "images/1/a.png"),
        ("1/a.png", "images/1/a.png"),
        ("images\\1/a.png", "images/1/a.png"),
        ("..\\..\\media\\upload\\1\\a.png", "images/1/a.png"),
        ("C:\\data\\1\\A.PNG", "images/1/a.png"),
        ("/home/somebody/images/1/a.png", "images/1/a.png"),
        ("a.png", None),
        ("2/a.png", None),
        ("../1/a.png", "images/1/a.png"),
        ("", None),
        ("..", None),
    ],
)
def test_find_by_a_name_with_folders_of_another_computer(tmp_path: Path, name: str, found: str | None):
    assert touch(tmp_path, "images/1/a.png", "images/b.png").find(name, ["labels", "", "images"]) == found


def test_nothing_outside_of_the_folder_is_found(tmp_path: Path):
    touch(tmp_path, "secret.png")
    files = touch(tmp_path / "data", "images/a.png")
    for name in ("../secret.png", "../../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png"):
        assert files.find(name, ["", "images"]) is None
        assert files.only(name) is None
    assert files.relative(tmp_path / "secret.png") is None


def test_the_only_file_of_a_name(tmp_path: Path):
    files = touch(tmp_path, "one/a.png", "two/a.png", "two/B.Jpg", "c.png", "two/C.png")
    assert files.only("x/b.jpg") == "two/B.Jpg"
    assert files.only("a.png") is None
    assert files.candidates("a.png") == "one/a.png, two/a.png"
    assert (files.only("c.png"), files.only("C.png")) == ("c.png", "two/C.png")


def test_pictures_of_a_stem(tmp_path: Path):
    files = touch(tmp_path, "images/a.jpg", "images/a.PNG", "images/A.bmp", "images/a.txt", "images/b.Jpg")
    assert files.pictures_with_stem("images/a") == ["images/a.PNG", "images/a.jpg"]
    assert files.pictures_with_stem("Images/B") == ["images/b.Jpg"]


def test_a_folder_of_pictures_mirrors_one_of_annotations_at_any_depth():
    places = picture_places("Annotations/cam1")
    assert places[0] == "Annotations/cam1"
    assert {"jpegimages/cam1", "images/cam1", "Annotations/images"} <= set(places)
