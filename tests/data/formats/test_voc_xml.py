"""Single xml files: polygons in place of boxes, and files that are made to hang, to crash or to fill the memory."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voc_xml import write_pair, write_picture, write_xml

from ssd_lightning.data.folders import DataFolder
from ssd_lightning.data.formats.annotations import PictureAnnotation
from ssd_lightning.data.formats.voc_folder import VOCFolder
from ssd_lightning.data.formats.voc_xml import LARGEST_XML, read_xml


def read(folder: Path, content: str | bytes) -> PictureAnnotation:
    """Read ``a.xml`` beside a picture of 40×20 pixels."""
    if not (folder / "a.png").exists():
        write_picture(folder / "a.png")
    text = content.encode() if isinstance(content, str) else content
    (folder / "a.xml").write_bytes(text)
    return read_xml(str(folder / "a.xml"), DataFolder(folder))


def of_object(inside: str) -> str:
    return f"<annotation><object><name>cat</name>{inside}</object></annotation>"


def numbered(*points: tuple[float, float]) -> str:
    """A polygon as Roboflow writes it."""
    tags = (f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(points, 1))
    return f"<polygon>{''.join(tags)}</polygon>"


def listed(*points: tuple[float, float]) -> str:
    """A polygon as LabelMe writes it."""
    tags = (f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
    return f"<polygon><username>somebody</username>{''.join(tags)}</polygon>"


POINTS = (12, 3.5), (30, 9), (4, 17)
BOX = "<bndbox><xmin>4</xmin><ymin>3.5</ymin><xmax>30</xmax><ymax>17</ymax></bndbox>"


@pytest.mark.parametrize(
    "content",
    [
        f"<Object><name>cat</name>{BOX}</Object>",
        f"<objekt><name>cat</name>{BOX}</objekt>",
        f'<object xmlns="u"><name>cat</name>{BOX}</object>',
        f"<objects><object><name>cat</name>{BOX}</object></objects>",
        f"<object><name>cat</name>{BOX}</object><object2><name>cat</name>{BOX}</object2>",
        "<item><xmin>1</xmin></item>",
    ],
)
def test_objects_under_another_tag_are_not_background(tmp_path: Path, content: str):
    with pytest.raises(ValueError, match=r"a\.xml: expected objects as <object> in <annotation>, got <"):
        read(tmp_path, f"<annotation>{content}</annotation>")


def test_a_picture_without_objects_is_background(tmp_path: Path):
    content = "<annotation><!-- object --><source><database>none</database></source></annotation>"
    assert read(tmp_path, content).boxes == []


@pytest.mark.parametrize("write", [numbered, listed])
def test_a_polygon_without_a_box_is_the_box_around_it(tmp_path: Path, write):
    expected = read(tmp_path, of_object(BOX))
    found = read(tmp_path, of_object(write(*POINTS)))
    assert (found.boxes, found.polygons) == (expected.boxes, 1) == ([(3, 2.5, 30, 17)], 1)
    several = read(tmp_path, of_object(write(*POINTS[:2]) + write(POINTS[2])))
    assert (several.boxes, several.polygons) == (expected.boxes, 1)
    assert read(tmp_path, of_object(f"<bndbox/>{write(*POINTS)}")).boxes == expected.boxes


def test_a_box_beside_a_polygon_is_the_box(tmp_path: Path):
    found = read(tmp_path, of_object(BOX + numbered((1, 1), (2, 2))))
    assert (found.boxes, found.polygons) == ([(3, 2.5, 30, 17)], 0)


@pytest.mark.parametrize(
    ("inside", "told"),
    [
        ("", "object 1: xmin: expected a number of pixels, got ''"),
        ("<polygon/>", "object 1: xmin: .*got ''"),
        ("<polygon><x1>1</x1></polygon>", "object 1: polygon: y: .*got ''"),
        ("<polygon><pt><x>1</x><y>far</y></pt></polygon>", "object 1: polygon: y: .*got 'far'"),
        ("<polygon><x1>nan</x1><y1>1</y1></polygon>", "object 1: polygon: x: .*got 'nan'"),
    ],
)
def test_a_polygon_that_is_none_is_told(tmp_path: Path, inside: str, told: str):
    with pytest.raises(ValueError, match=rf"a\.xml, {told}"):
        read(tmp_path, of_object(inside))


def test_objects_that_labelme_has_deleted_are_none(tmp_path: Path):
    things = f"<object><name>cat</name><deleted>1</deleted>{BOX}</object><object><name>dog</name>{BOX}</object>"
    assert read(tmp_path, f"<annotation>{things}</annotation>").names == ["dog"]


def test_polygons_are_remarked_and_nothing_else_is(tmp_path: Path):
    for split in ("train", "val"):
        write_picture(tmp_path / split / f"{split}.png")
        (tmp_path / split / f"{split}.xml").write_text(of_object(numbered(*POINTS)))
    data = VOCFolder(tmp_path)
    for _ in range(2):  # read, and from the cache
        for pictures in (data.train(), data.val()):
            assert pictures.findings == []
            assert [remark.kind for remark in pictures.remarks] == ["polygon"]
        data = VOCFolder(tmp_path)


# --- files that strangers made ---


def test_ten_thousand_corners_take_no_time(tmp_path: Path):
    content = of_object(numbered(*((n % 40, n % 20) for n in range(10_000))))
    start = time.perf_counter()
    assert read(tmp_path, content).boxes == [(-1, -1, 39, 19)]
    assert time.perf_counter() - start < 2


def bomb(depth: int) -> str:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, depth))
    return f'<!DOCTYPE a [<!ENTITY e0 "boom">{entities}]><annotation><filename>&e{depth - 1};</filename></annotation>'


HOSTILE = {
    "entities that grow": bomb(12),
    "a long entity many times": f'<!DOCTYPE a [<!ENTITY e "{"x" * 100_000}">]><annotation>{"&e;" * 9000}</annotation>',
    "an entity in another file": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
    "200,000 elements in each other": "<a>" * 200_000 + "</a>" * 200_000,
    "a name of 100,000 letters": f"<annotation><object><name>{'x' * 100_000}</name>{BOX}</object></annotation>",
    "a tag of 100,000 letters": f"<{'x' * 100_000}/>",
    "a number beyond all pictures": of_object(BOX.replace("30", "1e300")),
    "a number of 100,000 digits": of_object(BOX.replace("30", "9" * 100_000)),
    "a slow encoding": '<?xml version="1.0" encoding="punycode"?><annotation>' + "x" * 300_000 + "</annotation>",
    "an encoding of no text": '<?xml version="1.0" encoding="zlib"?><annotation/>',
    "a flag of 100,000 letters": of_object(f"{BOX}<difficult>{'x' * 100_000}</difficult>"),
    "100,000 names": of_object(BOX + "".join(f"<name>{n}</name>" for n in range(100_000))),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_at_once_in_a_short_line(tmp_path: Path, content: str):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"a\.xml") as error:
        read(tmp_path, content)
    assert time.perf_counter() - start < 2
    assert len(str(error.value).replace(str(tmp_path), "")) < 600
    assert "\n" not in str(error.value)


def test_a_size_beyond_all_pictures_is_another_size(tmp_path: Path):
    size = "<size><width>1e300</width><height>20</height></size>"
    for split in ("train", "val"):
        path = write_pair(tmp_path / split, split, [("cat", 1, 1, 9, 9)])
        path.write_text(path.read_text().replace("</annotation>", f"{size}</annotation>"))
    assert {finding.kind for finding in VOCFolder(tmp_path).train().findings} == {"size"}


@pytest.mark.parametrize("name", ["a.xml", "a.png"])
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
def test_files_that_never_end_are_not_opened(tmp_path: Path, name: str, kind: str):
    write_pair(tmp_path, "a", [("cat", 1, 1, 9, 9)])
    (tmp_path / name).unlink()
    if kind == "a device":
        (tmp_path / name).symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: expected a file, got {kind}$"):
        read_xml(str(tmp_path / "a.xml"), DataFolder(tmp_path))


def test_a_list_that_never_ends_is_not_opened(tmp_path: Path):
    write_pair(tmp_path, "a")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("train.txt", "val.txt"):
        os.mkfifo(tmp_path / "ImageSets" / "Main" / name)
    with pytest.raises(ValueError, match=r"val\.txt: expected a file, got a named pipe$"):
        VOCFolder(tmp_path).train()


def test_a_file_that_is_mostly_a_hole_does_not_fill_the_memory(tmp_path: Path):
    write_picture(tmp_path / "a.png")
    with (tmp_path / "a.xml").open("wb") as file:
        file.truncate(LARGEST_XML + 1)
    with pytest.raises(ValueError, match=rf"a\.xml: expected at most {LARGEST_XML} bytes, got {LARGEST_XML + 1}$"):
        read_xml(str(tmp_path / "a.xml"), DataFolder(tmp_path))


VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "1", "9e999", "true"]),
    st.text("a1.e-&<", max_size=5),
)
TAGS = st.sampled_from(
    [
        *("annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "polygon", "pt", "x", "y"),
        *("x1", "y1", "x2", "y2", "difficult", "deleted", "size", "width", "height", "filename"),
    ]
)
ELEMENTS = st.recursive(
    st.builds("<{0}>{1}</{0}>".format, TAGS, VALUES),
    lambda inner: st.builds("<{0}>{1}</{0}>".format, TAGS, st.lists(inner, max_size=5).map("".join)),
    max_leaves=15,
)
CONTENTS = st.one_of(
    st.binary(max_size=60),
    ELEMENTS.map(str.encode),
    st.lists(ELEMENTS, max_size=6).map(lambda parts: f"<annotation>{''.join(parts)}</annotation>".encode()),
    st.lists(ELEMENTS, max_size=6).map(lambda parts: of_object(BOX + "".join(parts)).encode("utf-16")),
)


@settings(max_examples=150, deadline=1000)
@given(content=CONTENTS)
def test_any_content_is_read_or_refused_with_the_name_of_the_file(made_once, content: bytes):
    folder = made_once("any_xml", lambda folder: write_picture(folder / "a.png"))
    try:
        found = read(folder, content)
    except ValueError as error:
        assert "a.xml" in str(error)  # noqa: PT017  # most contents are no annotations
    else:
        assert len(found.names) == len(found.boxes) == len(found.difficult)


def test_the_helper_writes_what_is_read(tmp_path: Path):
    """The contents above would prove nothing if none of them were read."""
    write_xml(tmp_path / "a.xml", [("cat", 4, 3.5, 30, 17)])
    assert read(tmp_path, (tmp_path / "a.xml").read_bytes()).boxes == read(tmp_path, of_object(BOX)).boxes
