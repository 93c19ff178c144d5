"""The names of splits, and splits that are drawn."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from annotation_row import row
from voc_xml import write_pair, write_picture, write_xml
from yolo_folder import write_yolo

from ssd_lightning.data.formats.annotations import as_columns
from ssd_lightning.data.formats.coco import COCO
from ssd_lightning.data.formats.csv_pictures import CSV
from ssd_lightning.data.formats.splits import Names, SplitData, Splits, as_list, usual_splits
from ssd_lightning.data.formats.voc import VOC
from ssd_lightning.data.formats.voc_folder import VOCFolder
from ssd_lightning.data.formats.yolo import YOLO

BOX = (1, 1, 9, 9)


def stems(data: SplitData) -> list[list[str]]:
    parts = (data.train(), data.val(), data.test())
    return [[] if part is None else [path.stem for path in part.paths] for part in parts]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train val", ("train", "val", None)),
        ("train test", ("train", "test", None)),
        ("train valid test", ("train", "valid", "test")),
        ("train validation test other", ("train", "validation", "test")),
        ("trainval test", ("trainval", "test", None)),
        ("train trainval test", ("train", "test", None)),
        ("train trainval val test", ("train", "val", "test")),
        ("train", ("train", None, None)),
        ("trainval", ("trainval", None, None)),
        ("val test", None),
        ("", None),
    ],
)
def test_usual_names(names: str, expected: tuple[str, str | None, str | None] | None):
    assert usual_splits(set(names.split())) == (None if expected is None else Names(*expected))


def test_names_may_be_numbers():
    assert [as_list(names) for names in (None, "a", ["a", "b"], 2007, [1, "b"])] == [
        None,
        ["a"],
        ["a", "b"],
        ["2007"],
        ["1", "b"],
    ]


# --- drawn ---


class Drawn(SplitData):
    """Pictures of one class each, without files."""

    def __init__(self, classes: Sequence[str], **settings) -> None:
        super().__init__("nowhere", **settings)
        self.names = classes

    def read(self) -> Splits:
        rows = [row((name, BOX), source=str(n), picture=str(n)) for n, name in enumerate(self.names)]
        return Splits(as_columns(rows, "voc"), None, None, [], [])


def counts(data: SplitData) -> list[Counter]:
    return [
        Counter(data.classes[label - 1] for label in part.labels) for part in (data.train(), data.val(), data.test())
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("val_share", "test_share"), [(0.2, 0.2), (0.1, 0.3), (0.5, 0.25)])
def test_three_splits_are_drawn_class_by_class(seed: int, val_share: float, test_share: float):
    """Each class has its share in each split, but for what cannot be divided."""
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.integers(10, 60)) for name in "abcd"}
    names = rng.permutation([name for name, size in sizes.items() for _ in range(size)]).tolist()
    data = Drawn(names, val_share=val_share, test_share=test_share, seed=seed)
    train, val, test = counts(data)
    assert train + val + test == Counter(names)
    total = len(names)
    assert abs(val.total() - val_share * total) <= 1
    assert abs(test.total() - test_share * total) <= 1
    for name, size in sizes.items():
        assert abs(test[name] - test_share * size) <= 2
        assert abs(val[name] - val_share * size) <= 3
    again = Drawn(names, val_share=val_share, test_share=test_share, seed=seed)
    assert stems(again) == stems(data)
    assert stems(Drawn(names, val_share=val_share, test_share=test_share, seed=seed + 100)) != stems(data)


def test_a_rare_class_is_in_every_split():
    data = Drawn(["rare"] * 3 + ["common"] * 300, val_share=1 / 3, test_share=1 / 3)
    assert [part["rare"] for part in counts(data)] == [1, 1, 1]


def test_without_a_share_for_a_test_the_draw_is_the_same():
    names = list("aabbbcccc" * 5)
    assert stems(Drawn(names, test_share=0.0)) == stems(Drawn(names))
    assert Drawn(names).test() is None


# --- the same for all formats ---


def voc_folder(root: Path, number: int) -> VOCFolder:
    for n in range(number):
        write_pair(root, f"{n}", [("cat", *BOX)])
    return VOCFolder(root, val_share=0.2, test_share=0.3)


def coco(root: Path, number: int) -> COCO:
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(number)],
        "annotations": [{"image_id": n, "category_id": 0, "bbox": [1, 1, 8, 8]} for n in range(number)],
        "categories": [{"id": 0, "name": "cat"}],
    }
    for n in range(number):
        write_picture(root / f"{n}.png")
    (root / "a.json").write_text(json.dumps(content))
    return COCO(root, "a.json", val_share=0.2, test_share=0.3)


def yolo(root: Path, number: int) -> YOLO:
    write_yolo(root, {f"{n}": "0 0.5 0.5 0.5 0.5" for n in range(number)}, "names: [cat]")
    return YOLO(root, val_share=0.2, test_share=0.3)


def csv(root: Path, number: int) -> CSV:
    for n in range(number):
        write_picture(root / f"{n}.png")
    rows = [f"{n}.png,cat,1,1,9,9" for n in range(number)]
    (root / "a.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))
    return CSV(root, val_share=0.2, test_share=0.3)


@pytest.mark.parametrize("make", [voc_folder, coco, yolo, csv])
def test_every_format_draws_three_splits(tmp_path: Path, make):
    train, val, test = stems(make(tmp_path, 10))
    assert sorted(train + val + test) == [str(n) for n in range(10)]
    assert (len(train), len(val), len(test)) == (5, 2, 3)


# --- VOC and COCO ---


def write_lists(root: Path, lists: dict[str, str]) -> None:
    for stem in "".join(lists.values()):
        write_xml(root / "Annotations" / f"{stem}.xml", [("cat", *BOX)])
        write_picture(root / "JPEGImages" / f"{stem}.png")
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name, content in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(content))


def test_lists_of_voc_with_a_test(tmp_path: Path):
    write_lists(tmp_path, {"train": "ab", "val": "c", "test": "d", "more": "e"})
    assert stems(VOCFolder(tmp_path)) == [["a", "b"], ["c"], ["d"]]
    assert stems(VOCFolder(tmp_path, test="more")) == [["a", "b"], ["c"], ["e"]]
    assert stems(VOCFolder(tmp_path, train="train", val="val")) == [["a", "b"], ["c"], []]
    assert stems(VOCFolder(tmp_path, train="train", val="val", test=["more", "test"])) == [
        ["a", "b"],
        ["c"],
        ["e", "d"],
    ]
    assert [sorted(part) for part in stems(VOCFolder(tmp_path, test="val"))] == [["a", "b"], ["d"], ["c"]]
    with pytest.raises(ValueError, match=r"^data\.test: expected names of lists or folders .*got nothing"):
        VOCFolder(tmp_path, test="nothing").train()


def test_a_list_of_pictures_without_xml_is_no_test(tmp_path: Path):
    write_lists(tmp_path, {"train": "ab", "val": "c", "test": "d"})
    (tmp_path / "Annotations" / "d.xml").unlink()
    assert VOCFolder(tmp_path).test() is None
    assert len(VOCFolder(tmp_path).train().findings) == 0
    (finding,) = VOCFolder(tmp_path, test="test").train().findings
    assert "d.xml" in finding.text


def test_folders_of_voc_with_a_test(tmp_path: Path):
    for folder, stem in (("train", "a"), ("valid", "b"), ("test", "c"), ("held", "d")):
        write_pair(tmp_path / folder, stem, [("cat", *BOX)])
    assert stems(VOCFolder(tmp_path)) == [["a"], ["b"], ["c"]]
    assert stems(VOCFolder(tmp_path, test="held")) == [["a"], ["b"], ["d"]]


def test_a_folder_for_a_test_takes_no_part_in_a_draw(tmp_path: Path):
    for n in range(5):
        write_pair(tmp_path, f"x{n}", [("cat", *BOX)])
        write_pair(tmp_path / "held", f"held{n}", [("cat", *BOX)])
    train, val, test = stems(VOCFolder(tmp_path, test="held"))
    assert (sorted(train + val), sorted(test)) == ([f"x{n}" for n in range(5)], [f"held{n}" for n in range(5)])


def test_voc_with_a_test(tmp_path: Path):
    write_lists(tmp_path / "VOCdevkit" / "VOC2007", {"train": "ab", "val": "c", "test": "d"})
    data = VOC(tmp_path, "2007/train", "2007/val", test="2007/test")
    data.prepare()
    assert stems(data) == [["a", "b"], ["c"], ["d"]]
    assert VOC(tmp_path, "2007/train", "2007/val").test() is None
    with pytest.raises(ValueError, match=r"^test: .*got '2007/nothing'"):
        VOC(tmp_path, "2007/train", "2007/val", test="2007/nothing")


def test_files_of_coco_with_a_test(tmp_path: Path):
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        coco(tmp_path / split if (tmp_path / split).mkdir() is None else tmp_path, 1)
        (tmp_path / split / "a.json").rename(tmp_path / split / "_annotations.coco.json")
        (tmp_path / split / "0.png").rename(tmp_path / split / f"{name}.png")
        path = tmp_path / split / "_annotations.coco.json"
        path.write_text(path.read_text().replace("0.png", f"{name}.png"))
    assert stems(COCO(tmp_path)) == [["a"], ["b"], ["c"]]
    files = [f"{split}/_annotations.coco.json" for split in ("train", "valid", "test")]
    assert stems(COCO(tmp_path, files[0], files[1])) == [["a"], ["b"], []]
    assert stems(COCO(tmp_path, files[2], files[1], test_annotations=files[0])) == [["c"], ["b"], ["a"]]
    with pytest.raises(ValueError, match=r"^data\.test_annotations: expected a file, got .*gone\.json"):
        COCO(tmp_path, files[0], files[1], test_annotations="gone.json").prepare()
    test = tmp_path / files[2]
    test.write_text(json.dumps({**json.loads(test.read_text()), "annotations": []}))
    assert COCO(tmp_path).test() is None
