"""The banana data set: what is read, what is refused, and where it comes from."""

import hashlib
import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from banana_folder import write_banana_folder
from http_server import Server, sending, serving, unreachable_url
from PIL import Image

from ssd_lightning.data.bananas import dataset as banana
from ssd_lightning.data.bananas.dataset import Bananas, GeneratedBananas, read_bananas
from ssd_lightning.data.download import Archive, DownloadError
from ssd_lightning.data.formats.findings import refuse
from ssd_lightning.data.pictures import read_picture

HEADER = "img_name,label,xmin,ymin,xmax,ymax"
WIDTH, HEIGHT = 40, 20


def write_split(folder: Path, *rows: str, pictures: tuple[str, ...] = ("0.png", "1.png", "2.png")) -> Path:
    """Pictures of 40×20 pixels, and a label.csv with these lines under the header."""
    (folder / "images").mkdir(parents=True)
    for name in pictures:
        Image.new("RGB", (WIDTH, HEIGHT), "yellow").save(folder / "images" / name)
    (folder / "label.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


# --- what is read ---


def test_pictures_and_boxes_as_written(tmp_path: Path) -> None:
    root = write_banana_folder(tmp_path, num_train=3, num_val=2, side=64)
    pictures = read_bananas(root / "bananas_train")
    assert len(pictures) == 3
    for index in range(3):
        sample = pictures[index]
        assert pictures.paths[index] == root / "bananas_train" / "images" / f"{index}.png"
        np.testing.assert_array_equal(sample.image, read_picture(pictures.paths[index]))
        # The box is found anew from the pixels: yellow is where blue is dark and red is bright.
        rows, columns = np.nonzero((sample.image[..., 0] == 240) & (sample.image[..., 2] == 40))
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 64
        np.testing.assert_array_equal(sample.boxes, [found.astype(np.float32)])
        assert sample.labels.tolist() == [1]
        assert sample.difficult.tolist() == [False]
        assert (sample.boxes.dtype, sample.labels.dtype, sample.difficult.dtype) == (np.float32, np.int64, np.bool_)


def test_boxes_are_fractions_of_width_and_height(tmp_path: Path) -> None:
    sample = read_bananas(write_split(tmp_path / "a", "0.png,0,10,5,30,20"))[0]
    np.testing.assert_array_equal(sample.boxes, np.array([[0.25, 0.25, 0.75, 1.0]], dtype=np.float32))


def test_a_picture_without_a_row_has_no_objects(tmp_path: Path) -> None:
    pictures = read_bananas(write_split(tmp_path / "a", "1.png,0,1,2,3,4"))
    assert [len(pictures[index].labels) for index in range(3)] == [0, 1, 0]
    assert pictures[0].boxes.shape == (0, 4)
    assert pictures[0].difficult.shape == (0,)


def test_no_rows_at_all(tmp_path: Path) -> None:
    assert [len(sample.labels) for sample in read_bananas(write_split(tmp_path / "a"))] == [0, 0, 0]


def test_several_rows_for_one_picture_need_not_be_together(tmp_path: Path) -> None:
    rows = ("0.png,0,0,0,4,4", "1.png,0,1,2,3,4", "0.png,0,4,2,8,4", "0.png,0,0.5,0.5,39.5,19.5")
    sample = read_bananas(write_split(tmp_path / "a", *rows))[0]
    expected = np.array([(0, 0, 4, 4), (4, 2, 8, 4), (0.5, 0.5, 39.5, 19.5)]) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    np.testing.assert_allclose(sample.boxes, expected, rtol=1e-6)
    assert sample.labels.tolist() == [1, 1, 1]


def test_a_box_may_fill_the_picture(tmp_path: Path) -> None:
    sample = read_bananas(write_split(tmp_path / "a", f"0.png,0,0,0,{WIDTH},{HEIGHT}"))[0]
    assert sample.boxes.tolist() == [[0, 0, 1, 1]]


def test_pictures_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ("10.png", "2.png", "1.png", "100.png", "20.png")
    pictures = read_bananas(write_split(tmp_path / "a", pictures=names))
    assert [path.name for path in pictures.paths] == ["1.png", "2.png", "10.png", "20.png", "100.png"]


def test_other_files_beside_the_pictures_are_left_alone(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a", pictures=("0.JPG", "1.webp"))
    (folder / "images" / "Thumbs.db").write_bytes(b"?")
    assert [path.name for path in read_bananas(folder).paths] == ["0.JPG", "1.webp"]


@pytest.mark.parametrize(
    ("encoding", "newline"), [("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n")]
)
def test_spreadsheets_write_byte_order_marks_and_other_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    folder = write_split(tmp_path / "a", pictures=("é 1.png",))
    lines = [HEADER, "é 1.png, 0 ,10,5,30,20", "", '"é 1.png",0,0,0,4.0,4e0', ""]
    (folder / "label.csv").write_bytes(newline.join(lines).encode(encoding))
    expected = np.array([(10, 5, 30, 20), (0, 0, 4, 4)]) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    np.testing.assert_allclose(read_bananas(folder)[0].boxes, expected, rtol=1e-6)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a")
    (folder / "label.csv").write_text("xmax,remark,ymax,xmin,ymin,label,img_name\n30,ripe,20,10,5,0,1.png\n")
    np.testing.assert_allclose(read_bananas(folder)[1].boxes, [(0.25, 0.25, 0.75, 1)])


# --- what is refused ---


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # each caller looks at the text
        refuse(read_bananas(folder).findings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0.png,1,5,5,20,15", "label: .*got '1'"),
        ("0.png,-1,5,5,20,15", "label: .*got '-1'"),
        ("0.png,banana,5,5,20,15", "label: .*got 'banana'"),
        ("0.png,0.5,5,5,20,15", "label: .*got '0.5'"),
        ("0.png,²,5,5,20,15", "label: .*got '²'"),
        ("0.png,,5,5,20,15", "label: .*got ''"),
        ("0.png,0,five,5,20,15", "xmin: expected a number of pixels, got 'five'"),
        ("0.png,0,5,nan,20,15", "ymin: expected a number of pixels, got 'nan'"),
        ("0.png,0,5,5,inf,15", "xmax: expected a number of pixels, got 'inf'"),
        ("0.png,0,5,5,20,", "ymax: expected a number of pixels, got ''"),
        ("0.png,0,5,5,20", "ymax: expected a number of pixels, got ''"),
        ("0.png,0", "xmin: expected a number of pixels, got ''"),
        ("0.png", "label: .*got ''"),
        (",0,5,5,20,15", "img_name: .*got ''"),
        ("99.png,0,5,5,20,15", "img_name: expected a picture in .*images, got '99.png'"),
        ("images/0.png,0,5,5,20,15", "img_name: expected a picture in .*images, got 'images/0.png'"),
    ],
)
def test_a_bad_row_is_named_by_file_line_column_and_value(tmp_path: Path, row: str, words: str) -> None:
    folder = write_split(tmp_path / "a", "1.png,0,1,2,3,4", "2.png,0,1,2,3,4", row, "1.png,0,1,2,3,4")
    text = refusal(folder)
    assert text.startswith(f"{folder / 'label.csv'}, line 4: ")
    assert re.search(words, text)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0.png,0,30,5,20,25", "xmin < xmax .* xmin=30 .*xmax=20"),
        ("0.png,0,20,5,20,15", "xmin < xmax .* xmin=20 .*xmax=20"),
        ("0.png,0,5,15,20,15", "ymin < ymax.* ymin=15 .*ymax=15"),
        ("0.png,0,-2,5,20,15", "inside 0.png of 40×20 pixels, got xmin=-2"),
        ("0.png,0,5,-1.5,20,15", "inside 0.png of 40×20 pixels, got .*ymin=-1.5"),
        ("0.png,0,5,5,41.5,15", "inside 0.png of 40×20 pixels, got .*xmax=41.5"),
        ("0.png,0,5,5,20,22", "inside 0.png of 40×20 pixels, got .*ymax=22"),
    ],
)
def test_a_bad_box_is_named_by_file_picture_and_object(tmp_path: Path, row: str, words: str) -> None:
    folder = write_split(tmp_path / "a", "0.png,0,1,2,3,4", "2.png,0,1,2,3,4", row)
    text = refusal(folder)
    assert text.startswith(f"{folder / 'label.csv'}, 0.png, object 2: ")
    assert re.search(words, text)


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a", "", "", "0.png,0,5,5,20,")
    assert f"{folder / 'label.csv'}, line 4: ymax" in refusal(folder)


@pytest.mark.parametrize("length", [10, 20_000])
def test_a_quote_that_is_never_closed_is_named(tmp_path: Path, length: int) -> None:
    rows = ("0.png,0,1,2,3,4", "", '"1.png,0,1,2,3,4', *["2.png,0,1,2,3,4"] * length)
    folder = write_split(tmp_path / "a", *rows)
    assert refusal(folder).startswith(f"{folder / 'label.csv'}, line 4: cannot be read as csv (")
    (folder / "label.csv").write_text(f'"{HEADER}\n0.png,0,1,2,3,4\n')
    assert refusal(folder).startswith(f"{folder / 'label.csv'}, line 1: cannot be read as csv (")


def test_a_short_row_whose_missing_cell_is_the_name(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a")
    (folder / "label.csv").write_text("label,xmin,ymin,xmax,ymax,img_name\n0,1,2,3,4\n")
    assert f"{folder / 'label.csv'}, line 2: img_name" in refusal(folder)


@pytest.mark.parametrize("column", HEADER.split(","))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    folder = write_split(tmp_path / "a")
    (folder / "label.csv").write_text(HEADER.replace(column, "something") + "\n")
    text = refusal(folder)
    assert str(folder / "label.csv") in text
    assert f"got no {column}" in text
    assert ", ".join(HEADER.split(",")) in text


@pytest.mark.parametrize("column", ["img_name", "xmin"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, column: str) -> None:
    folder = write_split(tmp_path / "a")
    (folder / "label.csv").write_text(f"{HEADER},{column}\n")
    text = refusal(folder)
    assert str(folder / "label.csv") in text
    assert f"got {column} more often" in text


def test_an_empty_label_file_lacks_the_first_column(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a")
    (folder / "label.csv").write_text("")
    assert "got no img_name" in refusal(folder)


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a")
    (folder / "label.csv").write_bytes(f"{HEADER}\né.png,0,1,2,3,4\n".encode("latin-1"))
    text = refusal(folder)
    assert str(folder / "label.csv") in text
    assert "UTF-8" in text


@pytest.mark.parametrize("missing", ["label.csv", "images"])
def test_missing_parts_are_named(tmp_path: Path, missing: str) -> None:
    folder = write_split(tmp_path / "a")
    (folder / missing).rename(tmp_path / "elsewhere")
    assert refusal(folder).startswith(f"{folder / missing}: expected")


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "a", pictures=())
    assert refusal(folder).startswith(f"{folder / 'images'}: expected pictures")


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_corrupt_picture_is_named_at_the_start(tmp_path: Path, content: bytes) -> None:
    folder = write_split(tmp_path / "a", "0.png,0,1,2,3,4")
    (folder / "images" / "2.png").write_bytes(content)
    assert "images/2.png: cannot be read as a picture" in refusal(folder)


def test_a_truncated_picture_is_named_at_the_start(tmp_path: Path) -> None:
    root = write_banana_folder(tmp_path, num_train=2, num_val=1, side=64)
    picture = root / "bananas_train" / "images" / "1.png"
    picture.write_bytes(picture.read_bytes()[:-100])
    assert "images/1.png: cannot be read as a picture" in refusal(root / "bananas_train")


# --- where it comes from ---


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("asked for a download")

    monkeypatch.setattr(banana, "download_and_extract", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("place", [".", "banana-detection"])
def test_an_existing_folder_is_used_where_it_is(tmp_path: Path, place: str) -> None:
    write_banana_folder(tmp_path / place, num_train=3, num_val=2, side=64)
    data = Bananas(str(tmp_path))
    data.prepare()
    assert (len(data.train()), len(data.val())) == (3, 2)
    assert data.train().paths[0] == tmp_path / place / "bananas_train" / "images" / "0.png"
    assert data.classes == ("banana",)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("place", [".", "banana-detection"])
@pytest.mark.parametrize(("missing", "there"), [("train", "val"), ("val", "train")])
def test_the_half_that_is_missing_is_named(tmp_path: Path, place: str, missing: str, there: str) -> None:
    write_banana_folder(tmp_path / place, num_train=1, num_val=1, side=64)
    shutil.rmtree(tmp_path / place / f"bananas_{missing}")
    data = Bananas(tmp_path, download_to=tmp_path / "elsewhere")
    data.prepare()
    assert len(getattr(data, there)()) == 1
    folder = tmp_path / place / f"bananas_{missing}"
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'label.csv'}: expected")):
        getattr(data, missing)()


@pytest.mark.usefixtures("no_network")
def test_only_its_own_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "my_banannas").mkdir()
    data = Bananas(tmp_path / "my_banannas", download_to=tmp_path / "banana")
    expected = f"data.root: expected a folder that holds bananas_train and bananas_val, got {data.root}. "
    with pytest.raises(ValueError, match=re.escape(expected)):
        data.prepare()
    assert list(tmp_path.rglob("*")) == [data.root]


def test_an_archive_in_another_folder_is_unpacked_there(tmp_path: Path, archive: Archive) -> None:
    """The archive was put there by hand, or an earlier run was stopped after the download."""
    Bananas(tmp_path / "data").prepare()
    shutil.rmtree(tmp_path / "data" / "banana-detection")
    data = Bananas(tmp_path / "data", download_to=tmp_path / "banana")
    data.prepare()
    assert len(data.train()) == 3


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def archive(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """The archive of a small data set, in the layout of the real one, on a server of this machine."""
    write_banana_folder(tmp_path / "original", num_train=3, num_val=2, side=64)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted((tmp_path / "original").rglob("*")):
            archive.write(path, Path("banana-detection") / path.relative_to(tmp_path / "original"))
    server.default = sending(content.getvalue())
    checksum = f"sha1:{hashlib.sha1(content.getvalue()).hexdigest()}"
    made = Archive("banana-detection.zip", (server.url("/banana-detection.zip"),), checksum)
    monkeypatch.setattr(banana, "ARCHIVE", made)
    return made


def test_the_archive_is_downloaded_once(tmp_path: Path, server: Server, archive: Archive) -> None:
    data = Bananas(tmp_path / "data" / "banana")
    for _ in range(2):
        data.prepare()
        assert server.requests == ["/banana-detection.zip"]
    assert (len(data.train()), len(data.val())) == (3, 2)
    original = read_bananas(tmp_path / "original" / "bananas_val")
    np.testing.assert_array_equal(data.val()[1].image, original[1].image)
    np.testing.assert_array_equal(data.val()[1].boxes, original[1].boxes)


def test_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = unreachable_url("/banana-detection.zip")
    monkeypatch.setattr(banana, "ARCHIVE", banana.ARCHIVE._replace(urls=(url,)))
    with pytest.raises(DownloadError) as caught:
        Bananas(tmp_path / "data").prepare()
    text = str(caught.value)
    for part in ("banana-detection.zip", url, banana.ARCHIVE.checksum, str(tmp_path / "data"), "data=banana_generated"):
        assert part in text


def test_the_archive_is_pinned_to_the_one_of_the_book() -> None:
    """SHA-1 and address as in d2l's ``d2l.DATA_HUB['banana-detection']``."""
    assert banana.ARCHIVE.checksum == "sha1:5de26c8fce5ccdea9f91267273464dc968d20d72"
    assert banana.ARCHIVE.urls == ("http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip",)


# --- the generated stand-in ---


@pytest.mark.usefixtures("no_network")
def test_generated_bananas_are_made_once_and_can_be_read(tmp_path: Path) -> None:
    data = GeneratedBananas(tmp_path / "made", num_train=2, num_val=1, min_bananas=2, max_bananas=2, seed=1)
    data.prepare()
    assert (len(data.train()), len(data.val())) == (2, 1)
    for sample in (*data.train(), *data.val()):
        assert sample.image.shape == (256, 256, 3)
        assert sample.labels.tolist() == [1, 1]
        assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()
    written = data.train().paths[0].stat().st_mtime_ns
    data.prepare()
    assert data.train().paths[0].stat().st_mtime_ns == written


def test_pictures_without_bananas_can_be_asked_for(tmp_path: Path) -> None:
    data = GeneratedBananas(tmp_path / "made", num_train=1, num_val=1, min_bananas=0, max_bananas=0)
    data.prepare()
    assert [len(sample.labels) for sample in (*data.train(), *data.val())] == [0, 0]


def test_generated_bananas_do_not_write_over_another_data_set(tmp_path: Path) -> None:
    root = write_banana_folder(tmp_path / "mine", num_train=1, num_val=1, side=64)
    with pytest.raises(ValueError, match=str(root)):
        GeneratedBananas(root, num_train=1, num_val=1).prepare()
    assert len(Bananas(root).train()) == 1
