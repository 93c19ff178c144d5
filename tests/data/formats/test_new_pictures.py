"""A picture that is added later and is found in place of another, with and without a cache."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from voc_xml import write_picture, write_xml
from yolo_folder import write_text

from ssd_lightning.data.formats.coco import COCO
from ssd_lightning.data.formats.csv_pictures import CSV
from ssd_lightning.data.formats.splits import SplitData
from ssd_lightning.data.formats.voc_folder import VOCFolder
from ssd_lightning.data.formats.yolo import YOLO


def voc(root: Path) -> SplitData:
    write_xml(root / "Annotations" / "a.xml", [("cat", 1, 1, 9, 9)], filename="a.png")
    return VOCFolder(root, val_share=0.5)


def yolo(root: Path) -> SplitData:
    write_text(root / "data.yaml", "names: [cat]\ntrain: images/train\nval: images/val\n")
    write_text(root / "labels/train/a.txt", "0 .5 .5 .2 .2\n")
    return YOLO(root)


def coco(root: Path) -> SplitData:
    found = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    write_text(root / "labels.json", json.dumps(found))
    return COCO(root, annotations="labels.json", val_share=0.5)


def csv(root: Path) -> SplitData:
    write_text(root / "labels.csv", "filename,class,xmin,ymin,xmax,ymax\na.png,cat,1,1,9,9\n")
    return CSV(root, val_share=0.5)


FORMATS = {
    "voc": (voc, "old/a.png", "JPEGImages/a.png"),
    "yolo": (yolo, "images/train/sub/a.png", "images/train/a.png"),
    "coco": (coco, "thumbs/a.png", "images/a.png"),
    "csv": (csv, "thumbs/a.png", "a.png"),
}
"""Annotations of a picture, where it is at first, and where it is preferred."""


@pytest.mark.parametrize("name", FORMATS)
def test_the_cache_follows_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    make, first, second = FORMATS[name]
    root = tmp_path / "data"

    def found(cache: str, make: Callable[[Path], SplitData] = make) -> list[list[Path]]:
        monkeypatch.setenv("SSD_CACHE", str(tmp_path / cache))
        splits = make(root).read()
        return [[Path(path) for path in split.pictures] for split in (splits.train, splits.val) if split is not None]

    write_picture(root / first)
    if name == "yolo":
        write_picture(root / "images/val/b.png")
    assert root / first in found("one")[0]
    write_picture(root / second)
    assert found("one") == found("fresh")
    assert root / second in found("one")[0]
