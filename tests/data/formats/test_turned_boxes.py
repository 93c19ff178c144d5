"""Boxes of pictures that EXIF data turn: Pillow's own turning of a coloured rectangle is the right answer."""

from pathlib import Path

import numpy as np
import pytest
from annotation_row import row
from PIL import Image, ImageOps
from voc_xml import write_xml

from ssd_lightning.data.formats import splits
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import Annotations, as_columns, check_boxes_of
from ssd_lightning.data.formats.findings import check_objects
from ssd_lightning.data.formats.voc_folder import VOCFolder

STORED, SHOWN_ON_ITS_SIDE = (20, 40), (40, 20)
RECTANGLES = {"red": (3, 5, 15, 9), "blue": (20, 0, 40, 4)}
"""Edges in a stored picture of 40×20 pixels."""
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def write_rectangles(path: Path, orientation: int) -> Path:
    pixels = np.zeros((*STORED, 3), dtype=np.uint8)
    for name, (left, top, right, bottom) in RECTANGLES.items():
        pixels[top:bottom, left:right] = COLOURS[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def edges_as_shown(path: Path) -> dict[str, list[int]]:
    """The edges of each rectangle in the picture that Pillow has turned."""
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    edges = {}
    for name, colour in COLOURS.items():
        rows, columns = np.nonzero((shown == colour).all(axis=2))
        edges[name] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return edges


def in_pixels(pictures: AnnotatedPictures, index: int = 0) -> list[list[float]]:
    (height, width), boxes, *_ = pictures.truth(index)
    return (boxes.astype(float) * (width, height, width, height)).round(3).tolist()


def turned_row(orientation: int, *objects, **settings):
    size = STORED if orientation <= 4 else SHOWN_ON_ITS_SIDE
    return row(*objects, size=size, **settings)._replace(orientation=orientation)


def columns(*rows, boxes_of: str = "stored", box_format: str = "voc") -> Annotations:
    return as_columns(rows, box_format)._replace(boxes_of=boxes_of)


def kinds(annotations: Annotations) -> list[str]:
    return [finding.kind for finding in check_objects(annotations, ["red", "blue"])]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_turned_as_pillow_turns_the_picture(tmp_path: Path, orientation: int):
    path = write_rectangles(tmp_path / "a.png", orientation)
    picture = turned_row(orientation, *RECTANGLES.items(), picture=str(path), told_size=STORED)
    pictures = annotated_pictures(columns(picture), ["red", "blue"])
    assert pictures.findings == []
    assert in_pixels(pictures) == list(edges_as_shown(path).values())
    assert pictures.truth(0).size == pictures.image(0).shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_edge_of_the_picture_is_that_of_the_stored_one(orientation: int):
    """Both boxes reach over an edge: one to the right, one to the bottom."""
    right, below = ("red", (30, 2, 45, 8)), ("blue", (5, 12, 9, 27))
    picture = turned_row(orientation, right, below)
    assert kinds(columns(picture)) == ["outside", "outside"]
    cut = turned_row(orientation, ("red", (30, 2, 40, 8)), ("blue", (5, 12, 9, 20)))
    clipped, expected = (annotated_pictures(columns(p), ["red", "blue"], fix="clip") for p in (picture, cut))
    assert in_pixels(clipped) == in_pixels(expected)


@pytest.mark.parametrize(("edges", "kind"), [((9, 1, 5, 4), "reversed"), ((9, 1, 9, 4), "empty")])
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_faults_are_told_in_the_numbers_of_the_annotation(orientation: int, edges, kind: str):
    (finding,) = check_objects(columns(turned_row(orientation, ("red", edges)), box_format="edges"), ["red"])
    assert (finding.kind, finding.text.rpartition("got ")[2]) == (
        kind,
        "xmin={} ymin={} xmax={} ymax={}".format(*edges),
    )


@pytest.mark.parametrize(
    ("boxes_of", "told", "kind", "advice"),
    [
        ("shown", SHOWN_ON_ITS_SIDE, None, None),
        ("shown", STORED, "turned", "data.boxes_of=stored"),
        ("shown", (7, 7), "size", None),
        ("stored", STORED, None, None),
        ("stored", SHOWN_ON_ITS_SIDE, "turned", "data.boxes_of=shown"),
        ("stored", (7, 7), "size", None),
    ],
)
def test_the_told_size_says_which_pixels_are_meant(boxes_of: str, told, kind: str | None, advice: str | None):
    found = check_objects(columns(turned_row(6, told_size=told), boxes_of=boxes_of), [])
    assert [finding.kind for finding in found] == [kind] * (kind is not None)
    for finding in found:
        assert ("data.boxes_of" in finding.text) == (advice is not None)
        assert (advice or "") in finding.text


def test_a_swapped_size_without_exif_data_is_no_turned_picture():
    assert kinds(columns(turned_row(1, told_size=SHOWN_ON_ITS_SIDE), boxes_of="shown")) == ["size"]


def test_no_value_is_advised_where_none_is_right_for_all():
    """Else either value would advise the other one."""
    mixed = [turned_row(6, told_size=STORED), turned_row(6, told_size=SHOWN_ON_ITS_SIDE)]
    for boxes_of in ("stored", "shown"):
        (finding,) = check_objects(columns(*mixed, boxes_of=boxes_of), [])
        assert finding.kind == "size"
        assert "data.boxes_of" not in finding.text


def test_turned_pictures_without_a_telling_size_are_counted_in_a_remark():
    box = ("red", (1, 1, 9, 9))
    unsure = [turned_row(6, box), turned_row(3, box, told_size=STORED)]
    sure = [turned_row(1, box), turned_row(8, box, told_size=SHOWN_ON_ITS_SIDE), turned_row(5)]
    pictures = annotated_pictures(columns(*sure, *unsure, boxes_of="shown"), ["red"])
    (remark,) = pictures.remarks
    assert remark.kind == "turned"
    assert "2 such pictures" in remark.text
    assert "data.boxes_of=stored" in remark.text
    assert annotated_pictures(columns(*sure, boxes_of="shown"), ["red"]).remarks == []


def test_polygons_are_counted_in_a_remark():
    rows = [row(), row(("red", (1, 1, 9, 9)))._replace(polygons=1), row(source="b.xml")._replace(polygons=2)]
    (remark,) = annotated_pictures(as_columns(rows, "voc"), ["red"]).remarks
    assert remark.kind == "polygon"
    assert "a.xml" in remark.text
    assert "3 objects" in remark.text


# --- the key boxes_of of the data sets ---


def write_voc(root: Path, orientation: int) -> VOCFolder:
    for split in ("train", "val"):
        write_rectangles(root / split / f"{split}.png", orientation)
        boxes = [(name, left + 1, top + 1, right, bottom) for name, (left, top, right, bottom) in RECTANGLES.items()]
        path = write_xml(root / split / f"{split}.xml", boxes)
        size = f"<size><width>{STORED[1]}</width><height>{STORED[0]}</height></size>"
        path.write_text(path.read_text().replace("</annotation>", f"{size}</annotation>"))
    return VOCFolder(root, classes=["red", "blue"], boxes_of="stored")


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_data_sets_turn_boxes_of_stored_pixels(tmp_path: Path, orientation: int):
    for _ in range(2):  # read, and from the cache
        data = write_voc(tmp_path, orientation)
        for name, pictures in (("train", data.train()), ("val", data.val())):
            path = tmp_path / name / f"{name}.png"
            assert pictures.findings == []
            assert in_pixels(pictures) == list(edges_as_shown(path).values())


def test_the_same_cache_serves_both_values(tmp_path: Path):
    write_voc(tmp_path, 6).train()
    assert {finding.kind for finding in VOCFolder(tmp_path, ["red", "blue"]).train().findings} == {"outside", "turned"}
    assert write_voc(tmp_path, 6).train().findings == []


def test_fractions_of_stored_pixels_are_turned_too():
    fractions = {"yolo": (0.25, 0.5, 0.5, 0.75)}
    stored = turned_row(6, ("red", tuple(np.multiply(fractions["yolo"], (20, 40, 20, 40)))))
    pictures = annotated_pictures(as_columns([stored], "yolo").with_boxes_of("stored"), ["red"])
    np.testing.assert_allclose(pictures.boxes, [[0.25, 0.25, 0.5, 0.5]])


def test_another_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"^boxes_of: expected one of stored, shown, got 'upright'$"):
        check_boxes_of("upright")
    asked = []
    monkeypatch.setattr(splits, "check_boxes_of", asked.append)
    VOCFolder(tmp_path, boxes_of="stored")
    assert asked == ["stored"]
