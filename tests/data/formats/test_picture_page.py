"""The page of pictures of ``ssd-check``: which pictures are chosen, and what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from annotation_row import row
from matplotlib.colors import to_hex
from PIL import Image

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import as_columns
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.data.formats.picture_page import FAULTY, MOST_PICTURES, choose_pictures, draw_pictures
from ssd_lightning.drawing import class_colour

ORDINARY = ("cat", (5, 5, 15, 15))


def pictures(folder: Path, *objects: list) -> AnnotatedPictures:
    """Pictures ``00.png``, … of 40×20 pixels with the given objects."""
    rows = []
    for number, own in enumerate(objects):
        path = folder / f"{number:02}.png"
        Image.new("RGB", (40, 20)).save(path)
        rows.append(row(*own, picture=str(path), source=str(path)))
    return annotated_pictures(as_columns(rows, "edges"), ["cat", "dog"], fix="skip")


def reasons(shown: list) -> dict[str, str]:
    return {picture.path.stem: picture.reason for picture in shown}


def test_each_suspicious_picture_has_its_reason(tmp_path: Path):
    many = [("cat", (n, n, n + 10, n + 10)) for n in range(4)]
    parts = pictures(
        tmp_path,
        [ORDINARY],
        [("cat", (5, 5, 7, 7))],
        [("cat", (0, 0, 39, 19))],
        [("cat", (0, 8, 38, 10))],
        many,
        [],
        [ORDINARY, ("wolf", (1, 1, 9, 9))],
        [("dog", (30, 1, 60, 9))],
        [ORDINARY],
    )
    found = reasons(choose_pictures(parts, [Finding("same", f"{tmp_path / '08.png'} has 2 objects")]))
    assert found == {
        "06": "faulty: unknown class",
        "07": "faulty: box outside",
        "08": "finding: same",
        "01": "smallest: 2×2 pixels",
        "02": "largest: 93% of the picture",
        "03": "longest: 19.0 to 1",
        "04": "most objects: 4",
        "05": "no objects",
        "00": "",
    }


def test_most_of_a_page_may_be_suspicious_but_not_all_of_it(tmp_path: Path):
    faulty = [[ORDINARY, ("wolf", (1, 1, 9, 9))] for _ in range(20)]
    shown = choose_pictures(pictures(tmp_path, *faulty, *([ORDINARY] for _ in range(20))))
    assert len(shown) == MOST_PICTURES
    assert sum(picture.reason.startswith("faulty") for picture in shown) == 5
    assert sum(not picture.reason for picture in shown) >= MOST_PICTURES // 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_pictures_are_all_shown_once(tmp_path: Path, count: int):
    shown = choose_pictures(pictures(tmp_path, *([ORDINARY] for _ in range(count))))
    assert sorted(reasons(shown)) == [f"{number:02}" for number in range(count)]


def test_boxes_are_drawn_where_they_are_and_faulty_ones_beyond_the_edge(tmp_path: Path):
    parts = pictures(tmp_path, [ORDINARY, ("dog", (30, 1, 60, 9))])
    figure = draw_pictures(choose_pictures(parts), ["cat", "dog"])
    (ax,) = (ax for ax in figure.axes if ax.patches)
    drawn = {to_hex(patch.get_edgecolor()).upper(): patch.get_bbox().extents.tolist() for patch in ax.patches}
    np.testing.assert_allclose(drawn[class_colour(1).upper()], [5, 5, 15, 15], atol=1e-4)
    np.testing.assert_allclose(drawn[FAULTY], [30, 1, 60, 9], atol=1e-4)
    assert ax.get_xlim() == (0, 50)  # a quarter more than the picture
    assert ax.get_title() == "00.png\nfaulty: box outside"


def test_a_picture_that_cannot_be_read_has_a_place(tmp_path: Path):
    parts = pictures(tmp_path, [ORDINARY], [ORDINARY])
    (tmp_path / "00.png").write_bytes(b"no picture")
    figure = draw_pictures(choose_pictures(parts), ["cat", "dog"])
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [["cannot be read"], ["cat"]]
    assert figure.axes[0].get_title().startswith("00.png")
