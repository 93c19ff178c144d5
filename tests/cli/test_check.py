"""``ssd-check`` finds what is wrong, says so, and ends accordingly."""

import csv
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert, box_iou
from voc_xml import write_xml

from ssd_lightning.box_design.coverage import best_ious, coverage_by_class, coverage_by_size, sides
from ssd_lightning.cli import check as check_run
from ssd_lightning.cli.check import advice, truth_scored
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.data.formats.picture_checks import (
    odd_names,
    read_contents,
    repeated_objects,
    same_pictures,
    tiny_objects,
)
from ssd_lightning.data.formats.voc_folder import VOCFolder
from ssd_lightning.detector.default_boxes import DefaultBoxes

MODEL = ["model.image_size=64", "trainer=cpu"]


@pytest.fixture(autouse=True)
def figures(request: pytest.FixtureRequest) -> None:
    """Draw for one test alone."""
    if request.function is not test_nothing_wrong:
        request.getfixturevalue("empty_figures")


def write_noise(path: Path, seed: int, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures for training and two for scoring, nothing wrong with them."""
    root = tmp_path / "pictures"
    for seed, (split, name) in enumerate([*[("train", n) for n in "abcd"], *[("val", n) for n in "ef"]]):
        write_noise(root / split / f"{name}.png", seed)
        write_xml(root / split / f"{name}.xml", [("cat", 5, 5, 40, 40), ("dog", 20, 10, 60, 45)])
    return root


def findings(run_folder: Path) -> list[tuple[str, str]]:
    with (run_folder / "findings.csv").open(encoding="utf-8", newline="") as file:
        return [(row["what"], row["kind"]) for row in csv.DictReader(file)]


def check(run, folder: Path, *arguments: str):
    return run("ssd-check", "data=voc_folder", f"data.root={folder}", *MODEL, "hydra.run.dir=check", *arguments)


def test_nothing_wrong(run, folder: Path, tmp_path: Path):
    outcome = check(run, folder)
    assert outcome.exit_code == 0, outcome.error
    assert "4 pictures for training, 2 for scoring; 12 objects of 2 classes" in outcome.out
    assert "Next:    ssd-train" in outcome.out
    assert findings(tmp_path / "check") == []
    assert (tmp_path / "check" / "figures" / "data.png").stat().st_size > 10_000
    by_class = pd.read_csv(tmp_path / "check" / "classes.csv", index_col="class")
    assert by_class["objects"].to_dict() == {"cat": 6, "dog": 6, "all": 12}


def spoil_annotation(root: Path) -> None:
    (root / "train" / "a.xml").write_text("<annotation>")


def remove_picture(root: Path) -> None:
    (root / "val" / "e.png").unlink()


def cut_picture(root: Path) -> None:
    content = (root / "train" / "b.png").read_bytes()
    (root / "train" / "b.png").write_bytes(content[: len(content) // 2])


def spoil_middle_of_picture(root: Path) -> None:
    content = bytearray((root / "train" / "b.png").read_bytes())
    content[len(content) // 2] ^= 255
    (root / "train" / "b.png").write_bytes(content)


def repeat_across_splits(root: Path) -> None:
    shutil.copy(root / "train" / "c.png", root / "val" / "e.png")


def objects(*entries: tuple):
    def write(root: Path) -> None:
        write_xml(root / "train" / "a.xml", [("cat", 5, 5, 40, 40), *entries])

    return write


def tell_another_size(root: Path) -> None:
    path = write_xml(root / "train" / "a.xml", [("cat", 5, 5, 40, 40)])
    path.write_text(
        path.read_text().replace("</annotation>", "<size><width>48</width><height>64</height></size></annotation>")
    )


PROBLEMS = {
    "unreadable xml": (spoil_annotation, "unreadable", "a.xml: cannot be read as xml"),
    "missing picture": (remove_picture, "unreadable", "e.xml: filename: expected a picture"),
    "cut picture": (cut_picture, "unreadable", "b.png: cannot be read as a picture"),
    "picture spoilt in the middle": (spoil_middle_of_picture, "undecodable", "b.png: cannot be read as a picture"),
    "trained and scored on": (repeat_across_splits, "both", "e.png: expected a picture for scoring alone"),
    "reversed": (objects(("dog", 30, 5, 20, 9)), "reversed", "a.xml, object 2: expected xmin <= xmax"),
    "empty": (objects(("dog", 30, 5, 29, 9)), "empty", "a.xml, object 2: expected xmin <= xmax"),
    "outside": (objects(("dog", 30, 5, 90, 9)), "outside", "a.xml, object 2: expected a box inside a.png of 64×48"),
    "another size": (tell_another_size, "size", "a.xml: size: expected 64×48 pixels as a.png has upright, got 48×64"),
}


@pytest.mark.parametrize(("spoil", "kind", "text"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_problem_is_told_and_ends_with_1(run, folder: Path, tmp_path: Path, spoil, kind: str, text: str):
    spoil(folder)
    outcome = check(run, folder)
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.error
    assert f"Problem, {kind}: 1" in outcome.out
    assert text in outcome.out
    assert findings(tmp_path / "check") == [("problem", kind)]
    assert "got 1 problem, " in outcome.error


@pytest.mark.parametrize("kind", ["unreadable", "reversed", "empty", "outside", "size"])
def test_training_stops_at_the_start_with_the_same_words(run, folder: Path, kind: str):
    spoil, text = next((spoil, text) for spoil, of, text in PROBLEMS.values() if of == kind)
    spoil(folder)
    outcome = run("ssd-train", "data=voc_folder", f"data.root={folder}", *MODEL, "batch_size=2", "num_workers=0")
    assert outcome.exit_code == 1
    assert text in outcome.error
    assert "Traceback" not in outcome.error


@pytest.mark.parametrize(
    ("fix", "ends"), [("clip", {"outside": 0, "unreadable": 1}), ("skip", {"outside": 0, "unreadable": 0})]
)
def test_what_fix_deals_with_is_no_problem(run, folder: Path, tmp_path: Path, fix: str, ends: dict[str, int]):
    for number, (kind, exit_code) in enumerate(ends.items()):
        PROBLEMS[{"outside": "outside", "unreadable": "unreadable xml"}[kind]][0](folder)
        outcome = check(run, folder, f"data.fix={fix}", f"hydra.run.dir=check{number}")
        assert outcome.exit_code == exit_code, kind
        assert (f"Left to fix={fix}, {kind}: 1" in outcome.out) == (exit_code == 0)


@pytest.mark.slow
def test_the_advice_is_what_helps(run, folder: Path):
    objects(("dog", 30, 5, 90, 9))(folder)
    assert "Try data.fix=clip or data.fix=skip." in check(run, folder).error
    spoil_annotation(folder)
    assert "Try data.fix=skip." in check(run, folder, "hydra.run.dir=second").error
    repeat_across_splits(folder)
    assert "data.fix" not in check(run, folder, "hydra.run.dir=third").error


def turn_picture(root: Path) -> None:
    """Store the only pictures that are not square on their side, and tell the stored size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "train" / "a.png") as picture:
        picture.save(root / "train" / "a.png", exif=exif)
    path = write_xml(root / "train" / "a.xml", [("cat", 5, 5, 60, 40)])
    size = "<size><width>64</width><height>48</height></size>"
    path.write_text(path.read_text().replace("</annotation>", f"{size}</annotation>"))


def test_boxes_of_stored_pixels_are_proposed(run, folder: Path, tmp_path: Path):
    turn_picture(folder)
    outcome = check(run, folder)
    assert outcome.exit_code == 1
    assert "Try data.boxes_of=stored or data.fix=skip." in outcome.error
    assert ("problem", "turned") in findings(tmp_path / "check")
    assert check(run, folder, "data.boxes_of=stored", "hydra.run.dir=second").exit_code == 0


def test_a_picture_above_the_limit_is_a_finding(run, folder: Path, tmp_path: Path):
    for arguments, exit_code in ((["data.max_megapixels=0.003"], 1), (["data.max_megapixels=0.0031"], 0)):
        outcome = check(run, folder, *arguments, f"hydra.run.dir=check{exit_code}")
        assert outcome.exit_code == exit_code
    assert ("problem", "unreadable") in findings(tmp_path / "check1")


def test_pages_of_pictures_are_drawn_and_named(run, folder: Path, tmp_path: Path):
    objects(("dog", 30, 5, 90, 9))(folder)
    outcome = check(run, folder)
    for name in ("train_pictures.png", "val_pictures.png"):
        assert (tmp_path / "check" / "figures" / name).is_file()
        assert f"figures/{name}" in outcome.out


def test_skipping_is_no_advice_where_nothing_is_left(run, folder: Path, tmp_path: Path):
    for path in (folder / "val").glob("*.xml"):
        path.write_text("<foo/>")
    assert "data.fix=skip" not in check(run, folder).error
    outcome = check(run, folder, "data.fix=skip", "hydra.run.dir=second")
    assert outcome.exit_code == 1
    assert "expected at least one picture for scoring, got none" in outcome.error
    assert "Try" not in outcome.error
    assert findings(tmp_path / "second") == [("fixed", "unreadable")] * 2


def test_faults_of_what_is_scored_on_are_found_too(run, folder: Path):
    write_xml(folder / "val" / "e.xml", [("cat", 5, 5, 90, 40)])
    outcome = check(run, folder)
    assert outcome.exit_code == 1
    assert "e.xml, object 1: expected a box inside" in outcome.out


def test_when_nothing_is_right_it_is_told_as_well(run, folder: Path, tmp_path: Path):
    for path in (folder / "val").glob("*.xml"):
        path.write_text("<foo/>")
    outcome = check(run, folder)
    assert outcome.exit_code == 1
    assert "expected <annotation> as in VOC, got <foo>" in outcome.out
    assert "Nothing is left" in outcome.error
    assert findings(tmp_path / "check") == [("problem", "unreadable")] * 2


@pytest.mark.parametrize("command", ["ssd-check", "ssd-train"])
@pytest.mark.parametrize(("side", "purpose"), [("train", "training"), ("val", "scoring")])
def test_pictures_without_any_object_teach_and_tell_nothing(run, folder: Path, command: str, side: str, purpose: str):
    for path in (folder / side).glob("*.xml"):
        write_xml(path)
    outcome = run(command, "data=voc_folder", f"data.root={folder}", *MODEL, "num_workers=0")
    assert outcome.exit_code == 1
    assert f"data: expected at least one object in the pictures for {purpose}, got none" in outcome.error


def test_the_threshold_is_the_matchers(run, folder: Path):
    assert "no IoU of 0.5" in check(run, folder).out
    assert "no IoU of 0.9" in check(run, folder, "+matcher.iou_threshold=0.9", "hydra.run.dir=second").out


def test_the_truth_itself_is_perfect_and_what_is_not_is_told(monkeypatch: pytest.MonkeyPatch):
    parts = pictures([Path("a")], [2], [(0.1, 0.1, 0.5, 0.5), (0.2, 0.2, 0.9, 0.9)], [1, 2])
    assert truth_scored(parts, 2) == []
    monkeypatch.setattr(check_run, "score", lambda *_: {"map_50": 0.5, "map": 1.0})
    assert truth_scored(parts, 2) == [("scores", "map_50 of the ground truth itself: expected 1, got 0.5")]


def test_more_objects_of_a_class_than_coco_counts_are_no_problem():
    left = np.linspace(0, 0.9, 130)
    boxes = [(x, 0.1, x + 0.05, 0.5) for x in left.tolist()]
    assert truth_scored(pictures([Path("a"), Path("b")], [0, 130], boxes, [1] * 130), 1) == []


def test_remarks_are_no_problems(run, folder: Path, tmp_path: Path):
    shutil.copy(folder / "train" / "c.png", folder / "train" / "d.png")
    write_xml(folder / "train" / "a.xml", [("cat", 5, 5, 40, 40), ("cat", 5, 5, 40, 40), ("Cat", 5, 5, 40, 40)])
    outcome = check(run, folder)
    assert outcome.exit_code == 0, outcome.error
    assert findings(tmp_path / "check") == [("remark", kind) for kind in ("absent", "names", "same", "same")]
    assert "no object for scoring: 'Cat'" in outcome.out
    assert "may be one class: 'Cat', 'cat'" in outcome.out
    assert "a.png has 2 objects of one class with the same box" in outcome.out


def test_a_file_name_that_is_no_text(run, folder: Path, tmp_path: Path):
    name = b"caf\xe9"  # Latin-1
    for suffix in (b".xml", b".png"):
        Path(os.fsdecode(bytes(folder / "train" / "a") + suffix)).rename(
            os.fsdecode(bytes(folder / "train") + b"/" + name + suffix)
        )
    assert check(run, folder).exit_code == 0
    write_xml(
        Path(os.fsdecode(bytes(folder / "train") + b"/" + name + b".xml")), [("cat", 5, 5, 90, 40)], filename="a.png"
    )
    outcome = check(run, folder, "hydra.run.dir=second")
    assert outcome.exit_code == 1
    assert "caf\ufffd.xml, object 1: expected a box inside" in outcome.out
    assert name in (tmp_path / "second" / "findings.csv").read_bytes()


def test_bananas_too(run, bananas: Path, tmp_path: Path):
    root = shutil.copytree(bananas, tmp_path / "bananas")
    outcome = run("ssd-check", "data=banana", f"data.root={root}", *MODEL)
    assert outcome.exit_code == 0, outcome.error
    assert "12 pictures for training, 4 for scoring" in outcome.out
    labels = root / "bananas_train" / "label.csv"
    labels.write_text(labels.read_text() + "1.png,0,30,5,20,25\n2.png,0,5,5,99,25\n3.png,0,5,5,9\ngone.png,0,1,1,9,9\n")
    shutil.copy(root / "bananas_train" / "images" / "5.png", root / "bananas_val" / "images" / "1.png")
    (root / "bananas_val" / "images" / "2.png").write_bytes(b"no picture")
    outcome = run("ssd-check", "data=banana", f"data.root={root}", *MODEL, "hydra.run.dir=check")
    assert outcome.exit_code == 1
    kinds = ["reversed", "outside", "unreadable", "unreadable", "unreadable", "both"]
    assert sorted(findings(tmp_path / "check")) == sorted(("problem", kind) for kind in kinds)
    assert "label.csv, 1.png, object 2: expected xmin < xmax" in outcome.out
    assert "data.fix" not in outcome.error, "bananas have no such key"


# --- a data set of the user's own ---

OWN_PACKAGE = """
from pathlib import Path
import numpy as np
from ssd_lightning import AnnotatedPictures

class Squares:
    classes = ("small", "large", "Large")

    def __init__(self, root, fault=None):
        self.root, self.fault = Path(root), fault

    def prepare(self):
        pass

    def train(self):
        boxes, labels = np.tile([0.1, 0.1, 0.5, 0.5], (4, 1)), np.array([1, 2, 3, 2])
        if self.fault == "class":
            labels[0] = 4
        elif self.fault == "reversed":
            boxes[0] = boxes[0, [2, 1, 0, 3]]
        elif self.fault == "empty":
            boxes[0, 2] = boxes[0, 0]
        elif self.fault == "outside":
            boxes[0, 2] = 1.5
        return self.pictures("train", "abcd", boxes, labels)

    def val(self):
        return self.pictures("val", "ef", np.array([[0.2, 0.2, 0.9, 0.9]]), np.array([2]))

    def pictures(self, split, names, boxes, labels):
        paths = [self.root / split / f"{name}.png" for name in names]
        sizes = np.tile([40, 64] if self.fault == "size" else [48, 64], (len(paths), 1))
        counts = np.array([len(labels)] + [0] * (len(paths) - 1))
        return AnnotatedPictures(paths, sizes, counts, boxes, labels)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Arguments of a data set in a package beside this project."""
    packages, configs = tmp_path / "packages", tmp_path / "configs"
    (packages / "own_project").mkdir(parents=True)
    (packages / "own_project" / "__init__.py").write_text(OWN_PACKAGE)
    (configs / "data").mkdir(parents=True)
    (configs / "data" / "squares.yaml").write_text("_target_: own_project.Squares\nroot: null\nfault: null\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delitem(sys.modules, "own_project", raising=False)
    return ["--config-dir", str(configs), "data=squares", f"data.root={folder}", *MODEL]


OWN_FAULTS = {
    "class": "train/a.png, object 1: name: expected one of small, large, Large, got 'label 4'",
    "reversed": "train/a.png, object 1: expected xmin < xmax",
    "empty": "train/a.png, object 1: expected xmin < xmax",
    "outside": "train/a.png, object 1: expected a box inside a.png of 64×48 pixels",
    "size": "train/a.png: size: expected 64×48 pixels as a.png has, got 64×40",
    "unreadable": "b.png: cannot be read as a picture",
    "undecodable": "b.png: cannot be read as a picture",
    "both": "e.png: expected a picture for scoring alone",
}


@pytest.mark.parametrize("kind", OWN_FAULTS)
def test_faults_of_a_data_set_of_ones_own(run, own: list[str], folder: Path, tmp_path: Path, kind: str):
    spoil = {"unreadable": cut_picture, "undecodable": spoil_middle_of_picture, "both": repeat_across_splits}
    if kind in spoil:
        spoil[kind](folder)
    outcome = run("ssd-check", *own, f"data.fault={kind}", "hydra.run.dir=check")
    assert outcome.exit_code == 1
    assert OWN_FAULTS[kind] in outcome.out
    problems = {kind for what, kind in findings(tmp_path / "check") if what == "problem"}
    assert problems == {kind}
    assert "data.fix" not in outcome.error


def test_remarks_on_a_data_set_of_ones_own(run, own: list[str], folder: Path, tmp_path: Path):
    shutil.copy(folder / "train" / "c.png", folder / "train" / "d.png")
    outcome = run("ssd-check", *own, "hydra.run.dir=check")
    assert outcome.exit_code == 0, outcome.error
    assert [kind for _, kind in findings(tmp_path / "check")] == ["absent", "absent", "names", "same", "same"]


@pytest.mark.parametrize("overfit", [[], ["overfit_pictures=2"]])
def test_training_refuses_them_too(run, own: list[str], overfit: list[str]):
    outcome = run("ssd-train", *own, "data.fault=reversed", "batch_size=2", "num_workers=0", *overfit)
    assert outcome.exit_code == 1
    assert OWN_FAULTS["reversed"] in outcome.error


def test_one_job_for_each_value(run, folder: Path, tmp_path: Path):
    """Problems in one do not stop the next."""
    spoil_annotation(folder)
    outcome = run("ssd-check", "-m", "data=voc_folder", f"data.root={folder}", *MODEL, "data.fix=null,skip")
    assert outcome.exit_code == 1
    assert "got 1 problem, " in outcome.error
    [sweep] = (tmp_path / "runs/check").iterdir()
    assert findings(sweep / "0") == [("problem", "unreadable")]
    assert findings(sweep / "1") == [("fixed", "unreadable")]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["check"]


def test_a_folder_that_is_not_there(run, tmp_path: Path):
    outcome = run("ssd-check", "data=voc_folder", "data.root=nowhere")
    assert outcome.exit_code == 1
    assert re.search(rf"ssd-check: data.root: .*{tmp_path / 'nowhere'}", outcome.error)


# --- its parts ---


def test_names_that_may_be_one():
    assert odd_names(("Traffic light", "traffic_light", "cat")) == [
        ("names", "may be one class: 'Traffic light', 'traffic_light'")
    ]
    assert odd_names(("cat", "cats", "car", "person 1", "person 2", "banana", "orange")) == []
    for other in ("bananna", "banan", "bamana", "banaan"):
        assert odd_names(("banana", "apple", other)) == [("names", f"may be one class: 'banana', '{other}'")]


def test_objects_of_one_pixel():
    parts = pictures(
        [Path("a")], [3], [(0.5, 0.5, 0.5 + 1 / 64, 0.5 + 1 / 48), (0, 0, 0.5, 1 / 48), (0, 0, 1, 1)], [1, 1, 1]
    )
    assert tiny_objects(parts) == [("tiny", "a has objects of one pixel: 1")]


@pytest.mark.parametrize(
    ("fix", "kind", "advised"),
    [
        (None, "outside", "Try data.fix=clip or data.fix=skip."),
        ("clip", "unreadable", "Try data.fix=skip."),
        ("skip", "unreadable", ""),
        ("skip", "outside", ""),
        ("clip", "outside", "Try data.fix=skip."),
        (None, "both", ""),
    ],
)
def test_advice_that_was_followed_is_not_repeated(folder: Path, fix, kind: str, advised: str):
    assert advice([Finding(kind, "")], VOCFolder(folder, fix=fix)) == advised


def test_advice_about_pictures_that_are_turned(folder: Path):
    turned = [Finding("turned", "")]
    assert advice(turned, VOCFolder(folder)) == "Try data.boxes_of=stored or data.fix=skip."
    assert advice(turned, VOCFolder(folder, fix="skip", boxes_of="stored")) == "Try data.boxes_of=shown."
    assert advice(turned, VOCFolder(folder), leaves_nothing=True) == "Try data.boxes_of=stored."


def test_the_next_step_where_most_objects_have_no_default_box(run, folder: Path):
    assert "Next:    ssd-boxes" in check(run, folder, "+matcher.iou_threshold=0.99").out


def pictures(paths: list[Path], counts: list[int], boxes: list, labels: list[int]) -> AnnotatedPictures:
    return AnnotatedPictures(
        paths,
        np.tile([48, 64], (len(paths), 1)),
        np.array(counts),
        np.array(boxes, float).reshape(-1, 4),
        np.array(labels, int),
    )


def test_the_same_picture_under_three_names(tmp_path: Path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")]
    for path, seed in zip(paths, (0, 0, 0, 1), strict=True):
        write_noise(path, seed)
    train, val = pictures(paths[:2], [0, 0], [], []), pictures(paths[2:], [0, 0], [], [])
    in_both, twice = same_pictures({"training": train, "scoring": val}, read_contents(paths))
    assert [finding.kind for finding in in_both] == ["both"]
    assert str(paths[2]) in in_both[0].text
    assert [finding.text for finding in twice] == [f"{paths[1]} is the same picture as {paths[0]}"]


def test_objects_are_the_same_by_class_and_box_and_picture():
    box, other = (0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.6)
    parts = pictures([Path("a"), Path("b")], [4, 1], [box, box, box, other, box], [1, 1, 2, 1, 1])
    assert [finding.text for finding in repeated_objects(parts)] == ["a has 2 objects of one class with the same box"]
    assert repeated_objects(pictures([Path("a")], [0], [], [])) == []


@pytest.mark.parametrize("count", [0, 1, 700])
def test_best_iou_is_that_of_torchvision(count: int):
    torch.manual_seed(count)
    corners = torch.rand(count, 2, 2).sort(dim=1).values.flatten(1)
    default_boxes = DefaultBoxes([0.2, 0.5, 0.9], [[2], [2]])([(4, 4), (2, 2)], (64, 64))
    expected = box_iou(corners, box_convert(default_boxes, "cxcywh", "xyxy")).amax(dim=1) if count else torch.zeros(0)
    np.testing.assert_allclose(best_ious(corners.numpy(), default_boxes), expected, rtol=1e-5)


def test_coverage_by_hand():
    labels, best = np.array([1, 1, 3, 1]), np.array([0.4, 0.6, 0.5, 0.8], dtype=np.float32)
    table = coverage_by_class(labels, best, ["a", "b", "c"])
    assert table["objects"].tolist() == [3, 0, 1, 4]
    np.testing.assert_allclose(table["unreached"], [1 / 3, np.nan, 0, 1 / 4])
    np.testing.assert_allclose(table["mean best IoU"], [0.6, np.nan, 0.5, 0.575], rtol=1e-6)
    by_size = coverage_by_size(np.array([15.9, 16.0, 300.0, 31.0]), best)
    assert by_size["objects"].to_dict() == {"0 to 16": 1, "16 to 32": 2, "from 256": 1}


def test_sizes_are_in_pixels_of_the_input():
    boxes = np.array([[0, 0, 1, 1], [0.25, 0.5, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(sides(boxes, (100, 400)), [200, np.sqrt(50 * 100)])
