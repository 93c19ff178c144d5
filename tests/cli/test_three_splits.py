"""A third split: checked with the others, scored once after the training, and never used for choosing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import QUICK, run_command
from PIL import Image
from yolo_folder import write_text

from ssd_lightning.run_folder import read_metrics
from ssd_lightning.scoring.stored_detections import load_detections
from ssd_lightning.training.loggers.dashboard import read_results

pytestmark = pytest.mark.usefixtures("empty_figures")

CSV = "filename,class,xmin,ymin,xmax,ymax,split"


def write_three(root: Path) -> Path:
    """Write 4 pictures for training, 2 for scoring and 3 for a test, with a bright square in each."""
    rows = [CSV]
    rng = np.random.default_rng(0)
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 3):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        left, top = rng.integers(2, 30, 2).tolist()
        pixels[top : top + 30, left : left + 30] = 255
        root.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append(f"{number}.png,square,{left},{top},{left + 30},{top + 30},{split}")
    write_text(root / "labels.csv", "\n".join(rows))
    return root


@pytest.fixture(scope="session")
def three(made_once) -> Path:
    return made_once("three_splits", lambda folder: write_three(folder / "data")) / "data"


@pytest.fixture(scope="module")
def tested(three: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a run with a test."""
    folder = tmp_path_factory.mktemp("tested") / "run"
    outcome = run_command("ssd-train", "data=csv", f"data.root={three}", *QUICK, f"hydra.run.dir={folder}")
    assert outcome.exit_code == 0, outcome.error
    return folder, outcome.out


@pytest.mark.slow
def test_a_run_scores_its_test_in_files_of_their_own(tested: tuple[Path, str], three: Path):
    folder, out = tested
    content = json.loads((folder / "test_scores.json").read_text())
    assert content["pictures"] == 3
    assert {"test/map_50", "test/map_75", "test/map", "test/map_voc07", "test/loss"} <= content["scores"].keys()
    assert not any(key.startswith("val/") for key in content["scores"])
    stored = load_detections(folder / "test_detections.npz")
    assert [Path(path).name for path in stored.paths] == ["6.png", "7.png", "8.png"]
    assert len(load_detections(folder / "detections.npz").paths) == 2
    by_class = pd.read_csv(folder / "test_scores.csv", index_col="class")
    assert by_class.loc["square", "objects"] == 3
    assert by_class.loc["mean", "COCO AP50"] == pytest.approx(content["scores"]["test/map_50"], abs=1e-6)
    assert "4 + 2 + 3 pictures" in out
    assert "test on 3 pictures" in out


def test_dashboards_show_the_scores_of_a_test(tested: tuple[Path, str]):
    numbers = read_results(tested[0]).numbers
    assert numbers["test/map_50"] == json.loads((tested[0] / "test_scores.json").read_text())["scores"]["test/map_50"]
    assert "best/map_50" in numbers


def test_nothing_is_chosen_by_a_test(tested: tuple[Path, str]):
    folder, _ = tested
    summary = json.loads((folder / "summary.json").read_text())
    assert not any(key.startswith("test/") for key in summary["scores"])
    assert not any(key.startswith("test/") for row in read_metrics(folder / "metrics.csv").values() for key in row)


def test_the_test_can_be_scored_again(run, tested: tuple[Path, str], tmp_path: Path):
    folder, _ = tested
    best = f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}"
    outcome = run("ssd-evaluate", best, "split=test", "num_workers=0", "device=cpu", "hydra.run.dir=scores")
    assert outcome.exit_code == 0, outcome.error
    expected = json.loads((folder / "test_scores.json").read_text())["scores"]
    written = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert (written["split"], written["pictures"]) == ("test", 3)
    for column, key in {"COCO AP50": "map_50", "COCO AP": "map", "VOC07 AP": "map_voc07"}.items():
        assert written["scores"]["mean"][column] == pytest.approx(expected[f"test/{key}"], abs=1e-6)
    again = run("ssd-evaluate", f"detections={folder / 'test_detections.npz'}", "hydra.run.dir=again")
    assert again.exit_code == 0, again.error
    assert (tmp_path / "again" / "scores.csv").read_text() == (tmp_path / "scores" / "scores.csv").read_text()


def test_what_cannot_be_scored(run, tested: tuple[Path, str], bananas: Path, trained):
    best = f"checkpoint={tested[0] / 'checkpoints' / 'best.ckpt'}"
    for arguments, told in {
        (best, "split=train"): "split: expected one of val, test, got train",
        (trained.checkpoint, "split=test"): "split: expected val, got test",
        (f"detections={tested[0]}", "split=test"): "split: expected no value with detections=",
    }.items():
        outcome = run("ssd-evaluate", *arguments, "num_workers=0", "device=cpu")
        assert outcome.exit_code == 1
        assert told in outcome.message


def test_without_a_test_there_are_no_such_files(trained):
    assert not list(trained.folder.glob("test_*"))
    assert "12 + 4 pictures" in trained.out


# --- checks ---


def check(run, folder: Path):
    return run("ssd-check", "data=csv", f"data.root={folder}", "model.image_size=64", "hydra.run.dir=check")


def test_nothing_wrong_with_three_splits(run, three: Path):
    outcome = check(run, three)
    assert outcome.exit_code == 0, outcome.error
    assert "4 pictures for training, 2 for scoring, 3 for the test; 9 objects of 1 class" in outcome.out


@pytest.mark.parametrize(("other", "purpose"), [("0.png", "training"), ("4.png", "scoring")])
def test_pictures_of_a_test_are_in_no_other_split(run, three: Path, tmp_path: Path, other: str, purpose: str):
    """A copy is found by ssd-check, and the same file by ssd-train."""
    root = shutil.copytree(three, tmp_path / "data")
    shutil.copy(root / other, root / "6.png")
    outcome = check(run, root)
    assert outcome.exit_code == 1
    assert f"6.png: expected a picture for the test alone, got one that is for {purpose}, too" in outcome.out
    lines = (root / "labels.csv").read_text().splitlines()
    write_text(root / "labels.csv", "\n".join([*lines, f"{other},square,1,1,9,9,test"]))
    outcome = run("ssd-train", "data=csv", f"data.root={root}", *QUICK)
    assert outcome.exit_code == 1
    assert f"data: expected other pictures for the test than for {purpose}, got " in outcome.message


@pytest.mark.parametrize("command", ["ssd-check", "ssd-train"])
def test_faults_of_a_test_stop_before_the_training(run, three: Path, tmp_path: Path, command: str):
    root = shutil.copytree(three, tmp_path / "data")
    lines = (root / "labels.csv").read_text().splitlines()
    write_text(root / "labels.csv", "\n".join([*lines, "8.png,square,1,1,99,9,test"]))
    outcome = run(command, "data=csv", f"data.root={root}", *QUICK)
    assert outcome.exit_code == 1
    assert "labels.csv, line 11: expected a box inside 8.png of 64×64 pixels" in outcome.out + outcome.error


def test_a_test_without_objects_is_refused(run, three: Path, tmp_path: Path):
    root = shutil.copytree(three, tmp_path / "data")
    lines = [
        f"{n}.png,,,,,,test" if n >= 6 else line
        for n, line in enumerate((root / "labels.csv").read_text().splitlines()[1:])
    ]
    write_text(root / "labels.csv", "\n".join([CSV, *lines]))
    settings = ["data.train=[train]", "data.val=[val]", "data.test=[test]"]
    outcome = run("ssd-train", "data=csv", f"data.root={root}", *settings, *QUICK)
    assert outcome.exit_code == 1
    assert "data: expected at least one object in the pictures for the test, got none" in outcome.message
