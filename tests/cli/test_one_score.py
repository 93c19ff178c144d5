"""A checkpoint has one score: at the end of its training, in ``ssd-evaluate``, and by the boxes of ``ssd-predict``."""

import contextlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from banana_folder import write_banana_folder
from command_line import QUICK, run_command
from omegaconf import OmegaConf
from run_folder import summary_of

from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.scoring.stored_detections import load_detections
from ssd_lightning.training.checkpoint import load_detector

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures larger than the input of the network."""
    return write_banana_folder(tmp_path_factory.mktemp("bananas"), num_train=12, num_val=7, side=96)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in mixed precision, without anti-aliasing, with batches of other sizes than those of ``ssd-evaluate``."""
    work = tmp_path_factory.mktemp("work")
    arguments = ["data=banana", f"data.root={data}", *QUICK, "trainer.max_epochs=2", "optimizer.lr=0.01"]
    with contextlib.chdir(work):
        outcome = run_command(
            "ssd-train", *arguments, "trainer.precision=bf16-mixed", "model.antialias=false", "hydra.run.dir=run"
        )
    assert outcome.exit_code == 0, outcome.error
    return work / "run"


def test_evaluation_writes_the_scores_of_the_run_to_the_last_digit(run, folder: Path, tmp_path: Path) -> None:
    outcome = run("ssd-evaluate", str(folder / "checkpoints" / "best.ckpt"), "num_workers=0", "hydra.run.dir=scores")
    assert outcome.exit_code == 0, outcome.error
    for name in ("scores.csv", "confusion.csv", "precision_recall.csv", "error_costs.csv"):
        assert (tmp_path / "scores" / name).read_text() == (folder / name).read_text(), name
    written = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]["mean"]
    summary = summary_of(folder)
    for ours, column in {"val/map_50": "COCO AP50", "val/map": "COCO AP", "val/map_voc07": "VOC07 AP"}.items():
        assert written[column] == pytest.approx(summary["scores"][ours], rel=1e-6)
    assert summary["precision"] == "bf16-mixed"
    # The validations of the training were in its own precision.
    logged = [row["val/loss"] for row in read_metrics(folder / "metrics.csv").values() if "val/loss" in row]
    assert summary["scores"]["val/loss"] not in logged
    assert min(abs(summary["scores"]["val/loss"] / loss - 1) for loss in logged) < 0.05


def test_prediction_finds_the_detections_that_were_scored(run, folder: Path, data: Path, tmp_path: Path) -> None:
    stored = load_detections(folder)
    paths = Bananas(data).val().paths
    outcome = run(
        "ssd-predict", str(folder / "checkpoints" / "best.ckpt"), f"source=[{','.join(map(str, paths))}]",
        "num_workers=0", "draw=false", "hydra.run.dir=predictions",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert len(content["annotations"]) == len(stored.detections.scores) > 20
    for image_id, path in enumerate(paths):
        [number] = [image["id"] for image in content["images"] if image["file_name"] == str(path)]
        found = [entry for entry in content["annotations"] if entry["image_id"] == number]
        mine = stored.detections.image_ids == image_id
        order = np.argsort(-stored.detections.scores[mine], kind="stable")
        assert [entry["score"] for entry in found] == pytest.approx(stored.detections.scores[mine][order], abs=1e-5)
        boxes = stored.detections.boxes[mine][order]
        corners = np.array([entry["bbox"] for entry in found])
        np.testing.assert_allclose(corners[:, :2], boxes[:, :2], rtol=0, atol=0.01)


@pytest.mark.slow
def test_the_way_of_resizing_stays_with_the_weights(run, folder: Path, data: Path, tmp_path: Path) -> None:
    """A run that starts from the weights, and its resumption, have it without being told."""
    assert load_detector(folder / "checkpoints" / "best.ckpt").model.antialias is False
    outcome = run("ssd-train", "data=banana", f"data.root={data}", *QUICK, f"pretrained={folder}", "hydra.run.dir=next")
    assert outcome.exit_code == 0, outcome.error
    assert run("ssd-train", "resume=next", "trainer.max_epochs=2").exit_code == 0
    assert OmegaConf.load(tmp_path / "next" / ".hydra" / "config.yaml").model.antialias is False
    for name in ("best", "last"):
        path = tmp_path / "next" / "checkpoints" / f"{name}.ckpt"
        assert torch.load(path, weights_only=True)["ssd_lightning"]["config"]["model"]["antialias"] is False
        assert load_detector(path).model.antialias is False


@pytest.mark.slow
def test_a_run_and_its_resumption_print_no_warning_of_lightning(run, bananas: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arguments = ["data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=run"]
        assert run("ssd-train", *arguments).exit_code == 0
        assert run("ssd-train", "resume=run", "trainer.max_epochs=2").exit_code == 0
    messages = [str(warning.message) for warning in caught if "lightning/pytorch" in warning.filename]
    # Machines with more cores are advised to use more processes than the tests do.
    assert [message for message in messages if "many workers" not in message] == []
    rows = read_metrics(tmp_path / "run" / "metrics.csv").values()
    assert len([row for row in rows if "train/loss" in row]) == 2
