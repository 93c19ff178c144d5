"""Files of ``ssd-export`` in place of a checkpoint in the other commands."""

import json
import shutil
from pathlib import Path

import pytest
from random_detector import photo
from run_folder import Trained

pytestmark = pytest.mark.usefixtures("empty_figures")


def test_predictions_are_those_of_the_checkpoint(run, trained: Trained, exported_run: Path, tmp_path: Path):
    photo(48, 90).save(tmp_path / "photo.png")
    for name, weights in (("checkpoint", trained.best), ("exported", exported_run)):
        outcome = run("ssd-predict", str(weights), "photo.png", "num_workers=0", f"hydra.run.dir={name}")
        assert outcome.exit_code == 0, outcome.error
    expected, found = (
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("checkpoint", "exported")
    )
    assert found["categories"] == expected["categories"]
    assert len(found["annotations"]) == len(expected["annotations"]) > 0
    for mine, theirs in zip(found["annotations"], expected["annotations"], strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=2e-5)
        assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=0.02)
    assert (tmp_path / "exported/drawings/photo.png.jpg").exists()


def test_scores_are_those_of_the_checkpoint(run, trained: Trained, exported_run: Path, bananas: Path, tmp_path: Path):
    shutil.copy(exported_run, tmp_path / "my.onnx")
    outcome = run(
        "ssd-evaluate", "my.onnx", "data=banana", f"data.root={bananas}", "num_workers=0", "hydra.run.dir=out"
    )
    assert outcome.exit_code == 0, outcome.error
    found = json.loads((tmp_path / "out/scores.json").read_text())
    summary = json.loads((trained.folder / "summary.json").read_text())["scores"]
    assert found["pictures"] == 4
    assert found["scores"]["mean"]["COCO AP50"] == pytest.approx(summary["val/map_50"], abs=1e-4)
    assert found["scores"]["mean"]["VOC07 AP"] == pytest.approx(summary["val/map_voc07"], abs=1e-4)


@pytest.mark.parametrize(
    ("command", "arguments", "key"),
    [
        ("ssd-predict", ["source=photo.png", "postprocess.nms_threshold=0.3"], "postprocess"),
        ("ssd-predict", ["source=photo.png", "device=cuda"], "device"),
        ("ssd-evaluate", [], "data"),
        ("ssd-evaluate", ["data=banana", "why_missed=true"], "why_missed"),
        ("ssd-export", [], "checkpoint"),
    ],
)
def test_what_an_exported_file_cannot_do(
    run, exported_run: Path, command: str, arguments: list[str], key: str, tmp_path
):
    photo().save(tmp_path / "photo.png")
    outcome = run(command, f"checkpoint={exported_run}", *arguments)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"{command}: {key}: expected")


@pytest.mark.parametrize("command", ["ssd-predict", "ssd-evaluate"])
def test_a_damaged_file(run, command: str, tmp_path: Path):
    photo().save(tmp_path / "photo.png")
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x0a" + bytes(100))
    source = ["source=photo.png"] if command == "ssd-predict" else ["data=banana"]
    outcome = run(command, "checkpoint=damaged.onnx", *source)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"{command}: checkpoint: expected a file of ssd-export, got damaged.onnx")
