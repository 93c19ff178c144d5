"""The cache of annotations: files that are read a second time, and files that are not."""

import logging
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from voc_xml import write_pair, write_picture, write_xml

from ssd_lightning.data.folders import DataFolder
from ssd_lightning.data.formats import cache as annotation_cache
from ssd_lightning.data.formats import voc_folder
from ssd_lightning.data.formats.annotations import Annotations, PictureAnnotation, as_columns
from ssd_lightning.data.formats.cache import Stored, cache_file, in_parallel, load, read_annotations, save, stamps
from ssd_lightning.data.formats.voc_folder import VOCFolder
from ssd_lightning.data.formats.voc_xml import read_xml


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Reader:
    """Reads, and counts the files that it has read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: str, files: DataFolder | None = None, most: float | None = None) -> PictureAnnotation:
        self.read.append(Path(path).name)
        return read_xml(path, files or DataFolder(Path(path).parent), most)

    def since(self) -> list[str]:
        """Names of the files that were read since it was asked last."""
        names, self.read = sorted(self.read), []
        return names


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures with 0 to 4 objects."""
    for number, name in enumerate("abcde"):
        write_pair(tmp_path / "data", name, [("cat" if n % 2 else "dog", 1 + n, 1, 9 + n, 9) for n in range(number)])
    return tmp_path / "data"


def xml_files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.xml"))


def read(folder: Path, reader: Reader, key: str = "key") -> Annotations:
    annotations, findings = read_annotations(xml_files(folder), reader, "voc", key)
    assert findings == []
    return annotations


def assert_same(one: Annotations, other: Annotations) -> None:
    """Compare annotations, except for unused names in the vocabulary."""
    for name, left, right in zip(one._fields, one, other, strict=True):
        if name not in ("names", "vocabulary"):
            np.testing.assert_array_equal(left, right, err_msg=name)
    assert [one.vocabulary[n] for n in one.names] == [other.vocabulary[n] for n in other.names]


def fresh(folder: Path) -> Annotations:
    """Read the annotations without any cache."""
    return as_columns([read_xml(path, DataFolder(folder)) for path in xml_files(folder)], "voc")


def assert_reads_again(folder: Path, reader: Reader, *names: str) -> None:
    """Check that the named files alone are read again, once, and that the result is as without a cache."""
    for expected in (list(names), []):
        assert_same(read(folder, reader), fresh(folder))
        assert reader.since() == expected


def test_a_second_run_reads_nothing_again(folder: Path, reader: Reader):
    assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")


def test_no_objects_at_all(tmp_path: Path, reader: Reader):
    write_pair(tmp_path, "a")
    assert_reads_again(tmp_path, reader, "a.xml")


def change_xml(folder: Path) -> None:
    write_xml(folder / "c.xml", [("bird", 3, 3, 4, 4)])


def touch_xml(folder: Path) -> None:
    status = os.stat(folder / "c.xml")
    os.utime(folder / "c.xml", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def change_xml_keeping_its_time(folder: Path) -> None:
    """Change an xml file, as a copy does that preserves times."""
    status = os.stat(folder / "c.xml")
    change_xml(folder)
    os.utime(folder / "c.xml", ns=(status.st_atime_ns, status.st_mtime_ns))


def change_picture(folder: Path) -> None:
    write_picture(folder / "c.png", 41, 21)


def give_a_picture_of_another_kind(folder: Path) -> None:
    (folder / "c.png").unlink()
    write_picture(folder / "c.jpg", 41, 21)


@pytest.mark.parametrize(
    "change", [change_xml, touch_xml, change_xml_keeping_its_time, change_picture, give_a_picture_of_another_kind]
)
def test_what_has_changed_is_read_again_and_nothing_else(folder: Path, reader: Reader, change):
    read(folder, reader)
    reader.since()
    change(folder)
    assert_reads_again(folder, reader, "c.xml")


def test_a_new_file_comes_into_its_place(folder: Path, reader: Reader):
    read(folder, reader)
    reader.since()
    write_pair(folder, "aa", [("ant", 1, 1, 9, 9)])  # also the first by its class
    assert_reads_again(folder, reader, "aa.xml")


def test_a_removed_file_is_gone_and_read_when_it_is_back(folder: Path, reader: Reader):
    read(folder, reader)
    reader.since()
    (folder / "b.xml").rename(folder / "b.away")
    assert_reads_again(folder, reader)
    (folder / "b.away").rename(folder / "b.xml")
    assert_reads_again(folder, reader)  # the same file as before
    (folder / "b.xml").unlink()
    change_xml(folder)
    assert_reads_again(folder, reader, "c.xml")


def test_everything_at_once(folder: Path, reader: Reader):
    read(folder, reader)
    reader.since()
    (folder / "d.xml").unlink()
    change_xml(folder)
    change_picture(folder)
    write_pair(folder, "bb", [("dog", 1, 1, 9, 9)])
    touched = folder / "a.xml"
    os.utime(touched, ns=(0, 0))
    assert_reads_again(folder, reader, "a.xml", "bb.xml", "c.xml")


def test_the_order_is_that_of_the_files_asked_for(folder: Path, reader: Reader):
    a, b, c, d, e = xml_files(folder)
    read_annotations([e, a, c], reader, "voc", "key")
    assert reader.since() == ["a.xml", "c.xml", "e.xml"]
    for asked in ([d, e, b, a, c], [c, a], [b, c, d], [a, a]):
        annotations, _ = read_annotations(asked, reader, "voc", "key")
        assert_same(annotations, as_columns([read_xml(path, DataFolder(folder)) for path in asked], "voc"))
    assert reader.since() == ["b.xml", "d.xml"]


def test_random_changes_are_all_noticed(tmp_path: Path, reader: Reader):
    rng = np.random.default_rng(0)
    for step in range(25):
        for name in rng.choice(list("abcdefgh"), rng.integers(0, 4), replace=False).tolist():
            if rng.random() < 0.3:
                (tmp_path / f"{name}.xml").unlink(missing_ok=True)
            else:
                objects = [(str(rng.choice(["cat", "dog", "cow"])), n + 1, 1, 9, 9) for n in range(rng.integers(0, 5))]
                write_pair(tmp_path, name, objects)
                os.utime(tmp_path / f"{name}.xml", ns=(step, step))
        assert_same(read(tmp_path, reader), fresh(tmp_path))
    reader.since()
    read(tmp_path, reader)
    assert reader.since() == []


def test_the_split_stays_right_when_files_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader):
    monkeypatch.setattr(voc_folder, "read_xml", reader)
    for split, names in (("train", "bdf"), ("val", "ace")):
        for name in names:
            write_pair(tmp_path / split, name, [(name, 1, 1, 9, 9)])

    def splits() -> tuple[list[str], list[str]]:
        data = VOCFolder(tmp_path)
        for pictures in (data.train(), data.val()):
            assert [path.stem for path in pictures.paths] == [data.classes[label - 1] for label in pictures.labels]
        return [path.stem for path in data.train().paths], [path.stem for path in data.val().paths]

    assert splits() == (["b", "d", "f"], ["a", "c", "e"])
    assert len(reader.since()) == 6
    (tmp_path / "train" / "d.xml").unlink()
    write_pair(tmp_path / "val", "b2", [("b2", 1, 1, 9, 9)])
    write_pair(tmp_path / "train", "a0", [("a0", 1, 1, 9, 9)])
    for asked in (["a0.xml", "b2.xml"], []):
        assert splits() == (["a0", "b", "f"], ["a", "b2", "c", "e"])
        assert reader.since() == asked


def test_a_class_that_is_no_longer_used_is_none(tmp_path: Path):
    write_pair(tmp_path / "train", "a", [("cat", 1, 1, 9, 9)])
    write_pair(tmp_path / "val", "b", [("dog", 1, 1, 9, 9)])
    assert VOCFolder(tmp_path).classes == ("cat", "dog")
    write_xml(tmp_path / "train" / "a.xml", [("horse", 1, 1, 9, 9)])
    data = VOCFolder(tmp_path)
    assert data.classes == ("dog", "horse")
    assert (data.train().labels.tolist(), data.val().labels.tolist()) == ([2], [1])


def test_what_cannot_be_read_is_found_every_time_until_it_can(folder: Path, reader: Reader):
    (folder / "b.xml").write_text("<annotation>")
    (folder / "d.png").rename(folder / "away")
    for asked in (["a.xml", "b.xml", "c.xml", "d.xml", "e.xml"], ["b.xml", "d.xml"], ["b.xml", "d.xml"]):
        annotations, findings = read_annotations(xml_files(folder), reader, "voc", "key")
        assert reader.since() == asked
        assert [Path(source).stem for source in annotations.sources] == ["a", "c", "e"]
        assert [(finding.kind, Path(finding.text.split(":")[0]).name) for finding in findings] == [
            ("unreadable", "b.xml"),
            ("unreadable", "d.xml"),
        ]
    (folder / "away").rename(folder / "d.png")
    write_xml(folder / "b.xml")
    assert_reads_again(folder, reader, "b.xml", "d.xml")


def test_a_picture_that_went_away_is_noticed(folder: Path, reader: Reader):
    read(folder, reader)
    (folder / "c.png").unlink()
    _, findings = read_annotations(xml_files(folder), reader, "voc", "key")
    assert [finding.kind for finding in findings] == ["unreadable"]


def test_nothing_can_be_read(tmp_path: Path, reader: Reader):
    (tmp_path / "a.xml").write_text("")
    for _ in range(2):
        annotations, findings = read_annotations(xml_files(tmp_path), reader, "voc", "key")
        assert (len(annotations.sources), len(findings)) == (0, 1)


def test_stamps(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"12345")
    os.utime(tmp_path / "a", ns=(0, 1_700_000_000_123_456_789))
    answer = stamps([str(tmp_path / "a"), str(tmp_path / "gone")])
    assert answer.tolist() == [[1_700_000_000_123_456_789, 5], [-1, -1]]
    assert stamps([]).shape == (0, 2)


# --- the file ---


def stored(*names: str) -> Stored:
    rows = [
        PictureAnnotation(name, name, (1, 2), (3, 4), ["cat", name], [(0, 0, 1, 1)] * 2, [True, False])
        for name in names
    ]
    columns = as_columns(rows, "coco")
    source_stamps = np.arange(2 * len(names)).reshape(-1, 2)
    return Stored(columns, source_stamps, -source_stamps, [f"{name}.png" for name in names])


NAMES = ["two words", " ", "größe – バナナ – 🍌", "new\nline", os.fsdecode(b"undecodable \xff\xe4.png"), "", "\ud83d"]
"""The last is what json makes of half a character."""


def test_every_column_comes_back_as_it_was():
    save("key", stored(*NAMES))
    assert load("key") is not None
    for one, other in zip(load("key"), stored(*NAMES), strict=True):
        parts = (one, other) if isinstance(one, tuple) else ([one], [other])
        for left, right in zip(*parts, strict=True):
            assert type(left) is type(right)
            np.testing.assert_array_equal(left, right)
            assert getattr(left, "dtype", None) == getattr(right, "dtype", None)


def test_no_rows_come_back_as_none():
    save("key", stored())
    known = load("key")
    assert known is not None
    assert (known.annotations.sources, known.annotations.vocabulary) == ([], [])
    assert known.annotations.boxes.shape == (0, 4)


def test_nothing_is_known_under_another_key():
    save("one", stored("a"))
    assert load("other") is None
    save("other", stored("b"))
    assert [load(key).annotations.sources for key in ("one", "other")] == [["a"], ["b"]]


def test_two_data_sets_have_two_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader, cache_folder: Path
):
    monkeypatch.setattr(voc_folder, "read_xml", reader)
    for name in ("one", "two"):
        write_pair(tmp_path / name / "train", "a", [(name, 1, 1, 9, 9)])
        write_pair(tmp_path / name / "val", "b")
    for asked in (["a.xml", "b.xml"] * 2, []):
        for name in ("one", "two"):
            assert VOCFolder(tmp_path / name).classes == (name,)
        assert reader.since() == sorted(asked)
    assert len(list(cache_folder.iterdir())) == 2


def test_a_folder_with_undecodable_bytes_in_its_name(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(voc_folder, "read_xml", reader)
    root = tmp_path / os.fsdecode(b"data \xff")
    try:
        write_pair(root / "train", os.fsdecode(b"a \xe4"), [("cat", 1, 1, 9, 9)], filename="x")
    except OSError:
        pytest.skip("no such names on this file system")
    write_pair(root / "val", "größe 1 バナナ")
    for asked in (2, 0):
        data = VOCFolder(root)
        assert [os.fsencode(path.name) for path in data.train().paths] == [b"a \xe4.png"]
        assert [path.name for path in data.val().paths] == ["größe 1 バナナ.png"]
        assert data.train()[0].image.shape == (20, 40, 3)
        assert len(reader.since()) == asked


@pytest.mark.parametrize("content", [b"", b"\0", b"This is no cache.", b"PK\x03\x04 and so on", None])
def test_a_damaged_cache_is_made_anew_with_a_warning(
    folder: Path, reader: Reader, caplog: pytest.LogCaptureFixture, content: bytes | None
):
    read(folder, reader)
    reader.since()
    whole = cache_file("key").read_bytes()
    cache_file("key").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with caplog.at_level(logging.WARNING):
        assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")
    (message,) = caplog.messages
    assert message.startswith(f"{cache_file('key')}: cannot be read")


def last_rows_missing(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: column[:-1] if column.ndim else column for name, column in columns.items()}


SPOILT_COLUMNS = {
    "one row less in each": last_rows_missing,
    "one picture less": lambda columns: {"sizes": columns["sizes"][:-1]},
    "one box less": lambda columns: {"boxes": columns["boxes"][1:]},
    "a text less": lambda columns: {"pictures": columns["pictures"][columns["pictures"].tolist().index(0) + 1 :]},
    "another count": lambda columns: {"counts": columns["counts"] + 1},
    "a negative count": lambda columns: {"counts": columns["counts"] + np.array([-1, 0, 0, 0, 1])},
    "an unknown class": lambda columns: {"names": columns["names"] + 7},
    "a class before the first": lambda columns: {"names": columns["names"] - 1},
    "no size": lambda columns: {"sizes": columns["sizes"] * 0},
    "no number": lambda columns: {"boxes": columns["boxes"] * np.nan},
    "another format": lambda columns: {"box_format": np.array("other")},
    "a column of one number": lambda columns: {"counts": np.array(3)},
    "a column more": lambda columns: {"more": np.zeros(3)},
}


@pytest.mark.parametrize("spoil", SPOILT_COLUMNS.values(), ids=SPOILT_COLUMNS)
def test_a_whole_file_with_columns_that_do_not_belong_together_is_made_anew(
    folder: Path, reader: Reader, caplog: pytest.LogCaptureFixture, spoil
):
    read(folder, reader)
    reader.since()
    with np.load(cache_file("key")) as file:
        columns = dict(file)
    np.savez(cache_file("key"), **{**columns, **spoil(columns)})
    with caplog.at_level(logging.WARNING):
        assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")
    (message,) = caplog.messages
    assert message.startswith(f"{cache_file('key')}: cannot be read")


def test_a_column_less_is_made_anew(folder: Path, reader: Reader):
    read(folder, reader)
    with np.load(cache_file("key")) as file:
        columns = dict(file)
    for name in columns:
        np.savez(cache_file("key"), **{other: column for other, column in columns.items() if other != name})
        reader.since()
        assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")


def test_a_pipe_in_place_of_the_cache_is_replaced(folder: Path, reader: Reader):
    read(folder, reader)
    reader.since()
    cache_file("key").unlink()
    os.mkfifo(cache_file("key"))
    assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")


def test_damage_of_any_byte_is_survived(folder: Path, reader: Reader):
    """Checksums of the zip file find it, or it does no harm."""
    read(folder, reader)
    whole, rng = cache_file("key").read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 50).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        cache_file("key").write_bytes(damaged)
        assert_same(read(folder, reader), fresh(folder))


def test_a_cache_of_another_layout_is_not_looked_at(folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch):
    read(folder, reader)
    reader.since()
    before = cache_file("key")
    monkeypatch.setattr(annotation_cache, "LAYOUT", annotation_cache.LAYOUT + 1)
    assert cache_file("key") != before
    assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")


def test_a_folder_that_nothing_can_be_written_to_is_survived(
    folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(read(folder, reader), fresh(folder))
            assert len(reader.since()) == 5
    assert any(message.startswith("Annotations are not cached: ") for message in caplog.messages)


@pytest.mark.parametrize("failing", ["savez", "fsync"])
def test_a_full_disk_leaves_nothing_behind(
    folder: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, caplog, failing: str
):
    read(folder, reader)
    reader.since()
    before = cache_file("key").read_bytes()
    change_xml(folder)

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr({"savez": np, "fsync": os}[failing], failing, full)
        for _ in range(2):
            assert_same(read(folder, reader), fresh(folder))
            assert reader.since() == ["c.xml"]
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert re.match(r"Annotations are not cached: .*No space left on device", message)
    assert list(cache_folder.iterdir()) == [cache_file("key")]
    assert cache_file("key").read_bytes() == before
    assert_reads_again(folder, reader, "c.xml")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert cache_file("key").parent == tmp_path / "cache"
    monkeypatch.delenv("SSD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file("key").parent == tmp_path / "xdg" / "ssd_lightning"
    for nothing in ("", None):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME") if nothing is None else monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache_file("key").parent == tmp_path / "home" / ".cache" / "ssd_lightning"


def test_a_cache_that_is_deleted_is_made_again(folder: Path, reader: Reader, cache_folder: Path):
    read(folder, reader)
    reader.since()
    shutil.rmtree(cache_folder)
    assert_reads_again(folder, reader, "a.xml", "b.xml", "c.xml", "d.xml", "e.xml")


# --- at the same time ---


def test_threads_that_write_and_read_at_the_same_time(cache_folder: Path, caplog: pytest.LogCaptureFixture):
    """Whoever reads finds one of the files that were written, whole."""
    names = [f"{number}" * 50_000 for number in range(4)]
    save("key", stored(names[0]))

    def write_and_read(number: int) -> str:
        save("key", stored(names[number % 4]))
        known = load("key")
        assert known is not None
        (source,), (picture,) = known.annotations.sources, known.annotations.pictures
        assert source == picture
        return source

    with ThreadPoolExecutor(8) as pool, caplog.at_level(logging.WARNING):
        assert set(pool.map(write_and_read, range(80))) <= set(names)
    assert caplog.messages == []
    assert list(cache_folder.iterdir()) == [cache_file("key")]


LENGTHS_AND_CLASSES = """
import sys
from ssd_lightning.data.formats.voc_folder import VOCFolder
print("imported", flush=True)
sys.stdin.readline()
data = VOCFolder(sys.argv[1])
print(len(data.train()), len(data.val()), data.classes)
"""


def test_processes_that_start_at_the_same_time(folder: Path, cache_folder: Path):
    """The jobs of a sweep start like this."""
    command = [sys.executable, "-c", LENGTHS_AND_CLASSES, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["imported\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["4 1 ('cat', 'dog')\n"] * 3
    assert len(list(cache_folder.iterdir())) == 1


@pytest.mark.parametrize("count", [0, 1, 200])
def test_in_parallel_keeps_the_order(count: int, capfd: pytest.CaptureFixture[str]):
    assert in_parallel(lambda number: number**2, range(count), "Squares") == [number**2 for number in range(count)]
    assert capfd.readouterr() == ("", "")


def test_in_parallel_raises_what_was_raised():
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda number: 1 // number, [1, 0, 2], "Divisions")
