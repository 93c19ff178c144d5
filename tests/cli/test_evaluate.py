"""``ssd-evaluate``: scores of a checkpoint, and of stored detections."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from banana_folder import write_banana_folder
from command_line import Outcome, run_command
from places import FIXTURES
from run_folder import Trained, summary_of

from ssd_lightning.records import DetectionRecords, ObjectRecords, select
from ssd_lightning.scoring.errors import find_errors
from ssd_lightning.scoring.stored_detections import load_detections, save_detections

pytestmark = pytest.mark.usefixtures("empty_figures")


def write_few_bananas(root: Path, **settings: int) -> None:
    if not root.exists():
        write_banana_folder(root, num_train=2, num_val=2, side=64)


class TestCheckpoint:
    @pytest.fixture(scope="class")
    @classmethod
    def scored(cls, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
        """The run folder of one evaluation, and what it printed."""
        folder = tmp_path_factory.mktemp("work") / "scores"
        settings = ["why_missed=true", "draw_threshold=0.9", "num_workers=0"]
        outcome = run_command("ssd-evaluate", str(trained.folder), *settings, f"hydra.run.dir={folder}")
        assert outcome.exit_code == 0, outcome.error
        return folder, outcome

    def test_scores_are_those_of_the_training_run(self, scored: tuple[Path, Outcome], trained: Trained):
        folder, _ = scored
        written = json.loads((folder / "scores.json").read_text())["scores"]["mean"]
        summary = summary_of(trained.folder)["scores"]
        assert written["VOC07 AP"] == pytest.approx(summary["val/map_voc07"], abs=1e-6)
        assert written["VOC12 AP"] == pytest.approx(summary["val/map_voc12"], abs=1e-6)
        assert written["COCO AP"] == pytest.approx(summary["val/map"], abs=1e-6)
        assert written["COCO AP50"] == pytest.approx(summary["val/map_50"], abs=1e-6)
        assert "banana" in (folder / "scores.csv").read_text()

    def test_a_run_folder_stands_for_its_best_checkpoint(self, scored: tuple[Path, Outcome], trained: Trained):
        assert f"Weights: {trained.best}\n" in scored[1].out

    def test_why_objects_are_missed(self, scored: tuple[Path, Outcome]):
        folder, outcome = scored
        misses = pd.read_csv(folder / "misses.csv")
        stored = load_detections(folder / "detections.npz")
        seen = select(stored.detections, stored.detections.scores > 0.9)
        causes = find_errors(seen, stored.objects, 1).object_causes
        missed = stored.objects.image_ids[~np.isin(causes, ("found", "ignored"))]
        assert len(missed)
        assert misses["picture"].tolist() == [stored.paths[image_id] for image_id in missed]
        assert set(misses["class"]) == {"banana"}
        reasons = misses["reason"].value_counts()
        assert reasons.sum() == len(missed)
        assert "Reasons for missed objects, at a score of 0.9" in outcome.out
        assert all(f"{reason} " in outcome.out for reason in reasons.index)

    def test_other_data_and_settings(self, run, trained: Trained, tmp_path: Path):
        other = write_banana_folder(tmp_path / "other", num_train=2, num_val=3, side=96)
        settings = ["data=banana", f"data.root={other}", "+postprocess.max_detections=1", "num_workers=0"]
        outcome = run("ssd-evaluate", trained.checkpoint, *settings, "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        stored = load_detections(tmp_path / "scores/detections.npz")
        assert len(stored.paths) == 3
        assert len(stored.detections.scores) <= 3

    def test_a_score_threshold_has_one_effect_before_and_after(self, run, trained: Trained, tmp_path: Path):
        """Post-processing keeps the best detections anyway."""
        quick = ("num_workers=0", "device=cpu", "iou_threshold=0.25")
        threshold = np.median(load_detections(trained.folder / "detections.npz").detections.scores)
        for setting, name in (("score_threshold", "after"), ("+postprocess.score_threshold", "within")):
            outcome = run("ssd-evaluate", trained.checkpoint, *quick, f"{setting}={threshold}", f"hydra.run.dir={name}")
            assert outcome.exit_code == 0, outcome.error
        after, within = ((tmp_path / name / "scores.csv").read_text() for name in ("after", "within"))
        assert after == within
        assert "VOC12 AP at IoU 0.25" in after

    def test_stored_data_are_read_and_never_made(self, run, trained: Trained, tmp_path: Path):
        content = torch.load(trained.best, weights_only=True)
        content["ssd_lightning"]["config"]["data"] = {
            "_target_": "ssd_lightning.GeneratedBananas",
            "root": str(tmp_path / "new"),
        }
        torch.save(content, tmp_path / "other.ckpt")
        outcome = run("ssd-evaluate", "other.ckpt", "device=cpu", "num_workers=0")
        assert outcome.exit_code == 1
        assert outcome.message.startswith("ssd-evaluate: data: ")
        assert "other.ckpt" in outcome.message
        assert str(tmp_path / "new") in outcome.message
        assert not (tmp_path / "new").exists()
        # What is typed may be drawn.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssd_lightning.data.bananas.dataset.generate_bananas", write_few_bananas)
            typed = ["data=banana_generated", f"data.root={tmp_path / 'new'}"]
            assert run("ssd-evaluate", "other.ckpt", "device=cpu", "num_workers=0", *typed).exit_code == 0

    def test_a_checkpoint_without_its_data_needs_data(self, run, trained: Trained, tmp_path: Path):
        content = torch.load(trained.best, weights_only=True)
        data = content["ssd_lightning"].pop("config")["data"]
        torch.save(content, tmp_path / "bare.ckpt")
        settings = ["checkpoint=bare.ckpt", "device=cpu", "num_workers=0"]
        outcome = run("ssd-evaluate", *settings)
        assert outcome.exit_code == 1
        assert "bare.ckpt" in outcome.message
        assert "data" in outcome.message
        assert run("ssd-evaluate", *settings, "data=banana", f"data.root={data['root']}").exit_code == 0


class TestStoredDetections:
    @pytest.fixture
    def published(self, tmp_path: Path) -> Path:
        """A published sample, as a run would have stored it."""
        fixture = json.loads((FIXTURES / "average_precision.json").read_text())
        truth, found = np.array(fixture["objects"]), np.array(fixture["detections"])

        def edges(corner_and_size: np.ndarray) -> np.ndarray:
            """Convert inclusive pixels x … x + width, as published, to edges."""
            corner, size = np.split(corner_and_size, 2, axis=1)
            return np.concatenate([corner - 1, corner + size], axis=1).astype(np.float32)

        folder = tmp_path / "published"
        folder.mkdir()
        save_detections(
            folder / "detections.npz",
            DetectionRecords(
                found[:, 0].astype(int) - 1, np.ones(len(found), int), edges(found[:, 2:]), found[:, 1].astype("f4")
            ),
            ObjectRecords(truth[:, 0] - 1, np.ones(len(truth), int), edges(truth[:, 1:]), np.zeros(len(truth), bool)),
            [f"nowhere/{number}.png" for number in range(7)],
            ["[b]:banana:[/x] 物"],
        )
        return folder

    def test_published_sample(self, run, published: Path, tmp_path: Path):
        outcome = run("ssd-evaluate", f"detections={published}", "iou_threshold=0.3", "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        table = pd.read_csv(tmp_path / "scores/scores.csv", index_col="class")
        assert table.index.tolist() == ["[b]:banana:[/x] 物", "mean"]
        assert (100 * table["VOC12 AP at IoU 0.3"]).round(2).tolist() == [24.57] * 2
        assert (100 * table["VOC07 AP at IoU 0.3"]).round(2).tolist() == [26.84] * 2
        assert table["objects"].tolist() == [15, 15]
        assert json.loads((tmp_path / "scores/scores.json").read_text())["iou_threshold"] == 0.3
        assert "[b]:banana:[/x] 物" in outcome.out
        assert "0.246" in outcome.out

    def test_says_what_it_wrote_and_gives_the_next_command(self, run, published: Path, tmp_path: Path):
        outcome = run("ssd-evaluate", f"detections={published}", "hydra.run.dir=scores")
        assert {str(path.relative_to(tmp_path / "scores")) for path in (tmp_path / "scores").rglob("*.*")} >= {
            "scores.csv",
            "scores.json",
            "confusion.csv",
            "detections.npz",
            "figures/precision_recall.png",
            "figures/score_thresholds.png",
            "figures/per_class.png",
            "figures/confusion.png",
        }
        assert not (tmp_path / "scores/figures/detections.png").exists()
        assert "no detections are drawn" in outcome.out
        *_, results, advice = outcome.out.strip().splitlines()
        assert f"Results: {tmp_path / 'scores'}" in results
        assert advice.split(":", 1)[1].strip() == f"ssd-evaluate detections={tmp_path / 'scores'} iou_threshold=0.75"
        again = run("ssd-evaluate", *advice.split()[2:], "hydra.run.dir=again")
        assert again.exit_code == 0, again.error
        assert "VOC12 AP at IoU 0.75" in (tmp_path / "again/scores.csv").read_text()

    def test_score_threshold_leaves_out_lower_scores(self, run, published: Path, tmp_path: Path):
        """The confusion matrix counts every detection that is kept, because the draw threshold is 0."""
        stored = load_detections(published / "detections.npz")
        threshold = float(np.median(stored.detections.scores))
        settings = [f"score_threshold={threshold}", "draw_threshold=0"]
        outcome = run("ssd-evaluate", f"detections={published}/detections.npz", *settings, "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        kept = load_detections(tmp_path / "scores/detections.npz").detections.scores
        expected = stored.detections.scores[stored.detections.scores > threshold]
        np.testing.assert_array_equal(kept, expected)
        assert 0 < len(kept) < len(stored.detections.scores)
        confusion = pd.read_csv(tmp_path / "scores/confusion.csv", index_col="truth")
        assert confusion.to_numpy().sum(axis=0)[0] == len(kept)

    def test_coco_may_count_more_detections(self, run, published: Path, tmp_path: Path):
        outcome = run("ssd-evaluate", f"detections={published}", "coco_max_detections=300", "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        content = json.loads((tmp_path / "scores/scores.json").read_text())
        assert content["coco_max_detections"] == 300
        figures = {name.removeprefix("COCO ") for name in content["scores"]["mean"] if name.startswith("COCO")}
        assert figures >= {"AP", "AP50", "AP75", "AR1", "AR10", "AR300"}
        assert "AR300" in outcome.out
        assert run("ssd-evaluate", f"detections={published}", "coco_max_detections=0").exit_code == 1

    def test_thresholds_of_a_sweep_each_have_a_job(self, run, published: Path, tmp_path: Path):
        """All objects of the confusion matrix are missed, because the draw threshold is 1."""
        settings = ["-m", "iou_threshold=0.3,0.5", "draw_threshold=1"]
        outcome = run("ssd-evaluate", f"detections={published}", *settings, "hydra.sweep.dir=sweep")
        assert outcome.exit_code == 0, outcome.error
        columns = [list(pd.read_csv(tmp_path / "sweep" / job / "scores.csv")) for job in ("0", "1")]
        assert "VOC12 AP at IoU 0.3" in columns[0]
        assert "VOC12 AP" in columns[1]
        confusion = pd.read_csv(tmp_path / "sweep/0/confusion.csv", index_col="truth")
        assert confusion.to_numpy().sum(axis=0).tolist() == [0, 15]

    def test_a_training_run_has_the_same_scores_again(self, run, trained: Trained, tmp_path: Path):
        outcome = run("ssd-evaluate", f"detections={trained.folder}", "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        for name in ("scores.csv", "confusion.csv"):
            assert (tmp_path / "scores" / name).read_text() == (trained.folder / name).read_text()
        assert (tmp_path / "scores/figures/detections.png").exists()
        table = pd.read_csv(trained.folder / "scores.csv", index_col="class")
        summary = summary_of(trained.folder)["scores"]
        assert table.loc["mean", "VOC07 AP"] == pytest.approx(summary["val/map_voc07"], abs=1e-6)
        assert table.loc["mean", "COCO AP"] == pytest.approx(summary["val/map"], abs=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "key", "value"),
        [
            ([], "checkpoint", "neither"),
            (["checkpoint=a.ckpt", "detections=published"], "checkpoint", "both"),
            (["detections=nowhere"], "detections", "nowhere"),
            (["detections=."], "detections", "detections.npz"),
            (["detections=published", "data=banana"], "data", "banana"),
            (["detections=published", "+postprocess.nms_threshold=1"], "postprocess", "nms_threshold"),
            (["detections=published", "iou_threshold=0"], "iou_threshold", "(0, 1], got 0"),
            (["detections=published", "iou_threshold=half"], "iou_threshold", "(0, 1], got half"),
            (["detections=published", "iou_threshold=nan"], "iou_threshold", "(0, 1], got nan"),
            (["detections=published", "score_threshold=2"], "score_threshold", "[0, 1], got 2"),
            (["detections=published", "draw_threshold=null"], "draw_threshold", "[0, 1], got None"),
            (["detections=published", "why_missed=true"], "why_missed", "True"),
            (["checkpoint=a.ckpt", "why_missed=true", "draw_threshold=1"], "draw_threshold", "below 1"),
            (["checkpoint=a.ckpt", "iou_threshold=2"], "iou_threshold", "(0, 1], got 2"),
        ],
    )
    def test_mistakes(self, run, published: Path, tmp_path: Path, arguments: list[str], key: str, value: str):
        outcome = run("ssd-evaluate", *arguments, "hydra.run.dir=scores")
        assert outcome.exit_code == 1
        assert outcome.message.startswith(f"ssd-evaluate: {key}")
        assert value in outcome.message
        assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(("choice", "advice"), [("trainer=cpu", "device=cpu"), ("optimizer=sgd", "--help")])
def test_groups_of_the_training_are_refused_by_name(run, choice: str, advice: str):
    outcome = run("ssd-evaluate", "checkpoint=some.ckpt", choice)
    assert outcome.exit_code == 1
    group = choice.partition("=")[0]
    assert re.match(rf"ssd-evaluate: {group}: expected .* Try {advice}", outcome.message)
    assert "\n" not in outcome.message
