"""The commands, as a person uses them."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from banana_folder import write_banana_folder
from command_line import COMMANDS, QUICK, subprocess_command
from PIL import Image
from places import FIXTURES
from run_folder import COMPLETE, files_of, summary_of
from torchvision import models

from ssd_lightning.cli import errors, train
from ssd_lightning.cli.help import GROUPS
from ssd_lightning.cli.predict import find_pictures
from ssd_lightning.data.bananas import dataset as banana
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.scoring.average_precision import voc_average_precision
from ssd_lightning.scoring.errors import find_errors
from ssd_lightning.scoring.stored_detections import load_detections, save_detections
from ssd_lightning.structures import DetectionRecords, ObjectRecords
from ssd_lightning.training.checkpoint import load_detector


@pytest.fixture(scope="session")
def trained(bananas: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder made by a short training in a process of its own, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    arguments = ["data=banana", f"data.root={bananas}", *QUICK, "trainer.max_epochs=2", "hydra.run.dir=run"]
    done = subprocess.run(
        subprocess_command("train", *arguments), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_imports_nothing_heavy(self, name: str):
        program = (
            f"import sys; sys.argv = ['{name}', '--help']; from ssd_lightning.cli.commands import COMMANDS, {name[4:]}; {name[4:]}();"
            "assert not {'torch', 'lightning', 'matplotlib', 'pandas'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(name)
        assert re.search(r"\b(checkpoint|resume|runs)=", done.stdout)

    def test_lists_every_group_with_a_line_and_its_options(self, run):
        out = run("ssd-train", "--help").out
        for group, about in GROUPS.items():
            assert about in out
            for option in (CONFIG_FOLDER / group).glob("*.yaml"):
                assert option.stem in out

    def test_marks_the_options_that_the_default_experiment_chooses(self, run):
        out = run("ssd-train", "--help").out
        assert "banana_tiny*" in out
        assert "banana_generated*" in out


class TestTrain:
    def test_run_folder_is_complete(self, trained: tuple[Path, str]):
        folder, _ = trained
        files = files_of(folder)
        assert files >= COMPLETE
        assert not [name for name in files if "part" in name]

    def test_summary_agrees_with_the_stored_detections(self, trained: tuple[Path, str]):
        folder, _ = trained
        summary = summary_of(folder)
        stored = load_detections(folder / "detections.npz")
        again = voc_average_precision(stored.detections, stored.objects, 1)
        assert summary["scores"]["val/map_voc12"] == pytest.approx(again.mean, abs=1e-6)
        assert summary["classes"] == ["banana"]
        assert summary["default_boxes"] == 4 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
        assert summary["steps"] == 2 * 12 // 4
        assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
        assert [Path(path).name for path in stored.paths] == ["0.png", "1.png", "2.png", "3.png"]

    def test_metrics_hold_losses_and_scores_of_every_epoch(self, trained: tuple[Path, str]):
        rows = read_metrics(trained[0] / "metrics.csv")
        validated = [row for row in rows.values() if "val/map_50" in row]
        assert [row["epoch"] for row in validated][:2] == [0, 1]
        assert all(np.isfinite(row["val/loss"]) for row in validated)

    def test_ends_with_where_the_results_are_and_what_to_do_next(self, trained: tuple[Path, str]):
        folder, out = trained
        assert "AP50" in out
        assert f"Results: {folder}" in out.replace("\n", "")
        assert "ssd-predict checkpoint=" in out

    def test_figures_are_drawn(self, trained: tuple[Path, str]):
        for path in (trained[0] / "figures").glob("*.png"):
            pixels = np.asarray(Image.open(path).convert("L"))
            assert pixels.std() > 5, path

    def test_checkpoint_gives_the_model_back_in_a_process_without_configs(self, trained: tuple[Path, str], tmp_path):
        checkpoint = trained[0] / "checkpoints" / "best.ckpt"
        program = (
            "import sys, torch; from ssd_lightning.training.checkpoint import load_detector;"
            "import ssd_lightning.cli.app as app; app.CONFIG_FOLDER = None;"
            f"detector = load_detector({str(checkpoint)!r});"
            "print(detector.classes, tuple(detector.model(torch.zeros(1, 3, 64, 64)).logits.shape))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "('banana',) (1, 344, 2)", done.stderr

    def test_sweep_gives_each_job_a_folder(self, run, bananas: Path, tmp_path: Path):
        outcome = run(
            "ssd-train", "-m", "seed=0,1", "data=banana", f"data.root={bananas}", *QUICK, "hydra.sweep.dir=sweep"
        )
        assert outcome.exit_code == 0, outcome.error
        seeds = [json.loads((tmp_path / "sweep" / job / "summary.json").read_text())["seed"] for job in ("0", "1")]
        assert seeds == [0, 1]

    def test_run_folder_is_never_used_twice(self, run, trained: tuple[Path, str], bananas: Path):
        folder, _ = trained
        before = (folder / "summary.json").read_bytes(), (folder / ".hydra" / "config.yaml").read_bytes()
        outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, f"hydra.run.dir={folder}", "seed=9")
        assert outcome.exit_code == 1
        assert "holds a run already" in outcome.error
        assert before == ((folder / "summary.json").read_bytes(), (folder / ".hydra" / "config.yaml").read_bytes())


class TestResume:
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_interrupted_run_ends_as_the_undisturbed_one(self, bananas: Path, tmp_path: Path, number: signal.Signals):
        """With a worker and augmentation, the signal going to the whole process group as from a terminal."""
        arguments = [
            "data=banana",
            f"data.root={bananas}",
            "model.image_size=64",
            "batch_size=2",
            "num_workers=1",
            "trainer=cpu",
            "trainer.max_epochs=3",
            "trainer.log_every_n_steps=1",
            "augmentation=banana",
        ]

        def start(*more: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                subprocess_command("train", *more),
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        undisturbed = start(*arguments, "hydra.run.dir=undisturbed")
        out, _ = undisturbed.communicate(timeout=120)
        assert undisturbed.returncode == 0, out

        slow = ["+callbacks.slow._target_=slow_callback.SlowSteps"]
        interrupted = start_slowly(tmp_path, [*arguments, *slow, "hydra.run.dir=interrupted"])
        wait_for_step(tmp_path / "interrupted" / "step", 8)
        os.killpg(interrupted.pid, number)
        out, _ = interrupted.communicate(timeout=60)
        assert interrupted.returncode == 1, out
        assert f"stopped by {number.name}" in out
        steps_done = torch.load(tmp_path / "interrupted/checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert 8 <= steps_done < 18
        assert steps_done % 6 != 0, "the signal should come within an epoch"

        resumed = start("resume=interrupted", "~callbacks.slow")
        out, _ = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, out

        first, second = (
            torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
            for name in ("undisturbed", "interrupted")
        )
        assert first["global_step"] == second["global_step"] == 18
        assert first["state_dict"].keys() == second["state_dict"].keys()
        for name, value in first["state_dict"].items():
            assert torch.equal(value, second["state_dict"][name]), name
        assert first["optimizer_states"][0]["state"].keys() == second["optimizer_states"][0]["state"].keys()
        assert first["lr_schedulers"] == second["lr_schedulers"]
        rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("undisturbed", "interrupted")]
        assert rows[0] == rows[1]
        summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("undisturbed", "interrupted")]
        assert summaries[0]["scores"] == summaries[1]["scores"]

    def test_a_finished_run_stays_as_it_is_and_can_be_prolonged(self, run, trained: tuple[Path, str], tmp_path: Path):
        folder = tmp_path / "copy"
        shutil.copytree(trained[0], folder)
        before = summary_of(folder), read_metrics(folder / "metrics.csv")
        assert run("ssd-train", f"resume={folder}").exit_code == 0
        after = summary_of(folder), read_metrics(folder / "metrics.csv")
        assert before[0]["scores"] == after[0]["scores"]
        assert before[1] == after[1]
        for _ in range(2):  # the second time nothing is left to do
            outcome = run("ssd-train", f"resume={folder}", "trainer.max_epochs=3")
            assert outcome.exit_code == 0, outcome.error
            assert summary_of(folder)["steps"] == 3 * 12 // 4
        assert "max_epochs: 3" in (folder / ".hydra/config.yaml").read_text()

    @pytest.mark.parametrize(
        "other",
        [
            "-m", "data=banana", "hydra.run.dir=elsewhere", "optimizer.lr=1e-20", "+optimizer.eps=1e-3", "seed=1",
            "batch_size=2", "model.image_size=96", "~loss.alpha",
        ],
    )  # fmt: skip
    def test_other_choices_are_refused(self, run, trained: tuple[Path, str], other: str):
        outcome = run("ssd-train", f"resume={trained[0]}", other)
        assert outcome.exit_code == 1
        assert f"{other} is not possible" in outcome.error

    def test_folder_without_a_run_is_refused(self, run, tmp_path: Path):
        outcome = run("ssd-train", f"resume={tmp_path}")
        assert outcome.exit_code == 1
        assert str(tmp_path) in outcome.error
        assert "Traceback" not in outcome.error


SLOW_CALLBACK = """
import time
from pathlib import Path
import lightning

class SlowSteps(lightning.Callback):
    def on_train_batch_end(self, trainer, *args):
        (Path(trainer.default_root_dir) / "step").write_text(str(trainer.global_step))
        time.sleep(0.3)
"""


def start_slowly(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """A run whose steps take long enough to be interrupted, and that tells in a file at which step it is."""
    (folder / "slow_callback.py").write_text(SLOW_CALLBACK)
    return subprocess.Popen(
        subprocess_command("train", *arguments),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


def wait_for_step(path: Path, step: int, patience: float = 120) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if path.exists() and int(path.read_text() or 0) >= step:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{path} did not reach {step}")


class TestEvaluate:
    def test_scores_are_those_of_the_training_run(self, run, trained: tuple[Path, str], tmp_path: Path):
        folder, _ = trained
        outcome = run(
            "ssd-evaluate", f"checkpoint={folder}/checkpoints/best.ckpt", "num_workers=0", "hydra.run.dir=scores"
        )
        assert outcome.exit_code == 0, outcome.error
        written = json.loads((tmp_path / "scores/scores.json").read_text())["scores"]["mean"]
        summary = summary_of(folder)["scores"]
        assert written["VOC07 AP"] == pytest.approx(summary["val/map_voc07"], abs=1e-6)
        assert written["VOC12 AP"] == pytest.approx(summary["val/map_voc12"], abs=1e-6)
        assert written["COCO AP"] == pytest.approx(summary["val/map"], abs=1e-6)
        assert written["COCO AP50"] == pytest.approx(summary["val/map_50"], abs=1e-6)
        assert "banana" in (tmp_path / "scores/scores.csv").read_text()

    def test_why_objects_are_missed(self, run, trained: tuple[Path, str], tmp_path: Path):
        checkpoint = f"checkpoint={trained[0]}/checkpoints/best.ckpt"
        arguments = ["why_missed=true", "draw_threshold=0.9", "num_workers=0", "hydra.run.dir=scores"]
        outcome = run("ssd-evaluate", checkpoint, *arguments)
        assert outcome.exit_code == 0, outcome.error
        misses = pd.read_csv(tmp_path / "scores/misses.csv")
        stored = load_detections(tmp_path / "scores/detections.npz")
        seen = DetectionRecords(*(column[stored.detections.scores > 0.9] for column in stored.detections))
        causes = find_errors(seen, stored.objects, 1).object_causes
        missed = stored.objects.image_ids[~np.isin(causes, ("found", "ignored"))]
        assert len(missed)
        assert misses["picture"].tolist() == [stored.paths[image_id] for image_id in missed]
        assert set(misses["class"]) == {"banana"}
        reasons = misses["reason"].value_counts()
        assert reasons.sum() == len(missed)
        assert "Why objects are missed at a score of 0.9" in outcome.out
        assert all(f"{reason} " in outcome.out for reason in reasons.index)

    def test_other_data_and_settings(self, run, trained: tuple[Path, str], tmp_path: Path):
        other = write_banana_folder(tmp_path / "other", num_train=2, num_val=3, side=96)
        outcome = run(
            "ssd-evaluate",
            f"checkpoint={trained[0]}/checkpoints/best.ckpt",
            "data=banana",
            f"data.root={other}",
            "+postprocess.max_detections=1",
            "num_workers=0",
            "hydra.run.dir=scores",
        )
        assert outcome.exit_code == 0, outcome.error
        stored = load_detections(tmp_path / "scores/detections.npz")
        assert len(stored.paths) == 3
        assert len(stored.detections.scores) <= 3


class TestEvaluateStoredDetections:
    """``ssd-evaluate detections=…`` and what every run folder tells of its scores."""

    @pytest.fixture
    def published(self, tmp_path: Path) -> Path:
        """The sample of tests/fixtures, as a run would have stored it."""
        fixture = json.loads((FIXTURES / "average_precision.json").read_text())
        truth, found = np.array(fixture["objects"]), np.array(fixture["detections"])

        def edges(corner_and_size: np.ndarray) -> np.ndarray:
            """Inclusive pixels x … x + width, as published, to edges."""
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
            ["[b]object[/b] 物"],
        )
        return folder

    @pytest.mark.parametrize("source", ["published", "published/detections.npz"])
    def test_published_sample(self, run, published: Path, tmp_path: Path, source: str):
        outcome = run("ssd-evaluate", f"detections={source}", "iou_threshold=0.3", "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        table = pd.read_csv(tmp_path / "scores/scores.csv", index_col="class")
        assert table.index.tolist() == ["[b]object[/b] 物", "mean"]
        assert (100 * table["VOC12 AP at IoU 0.3"]).round(2).tolist() == [24.57] * 2
        assert (100 * table["VOC07 AP at IoU 0.3"]).round(2).tolist() == [26.84] * 2
        assert table["objects"].tolist() == [15, 15]
        assert json.loads((tmp_path / "scores/scores.json").read_text())["iou_threshold"] == 0.3
        assert "[b]object[/b] 物" in outcome.out
        assert "0.246" in outcome.out

    def test_says_what_it_wrote_and_what_to_do_next(self, run, published: Path, tmp_path: Path):
        outcome = run("ssd-evaluate", f"detections={published}", "hydra.run.dir=scores")
        assert {str(path.relative_to(tmp_path / "scores")) for path in (tmp_path / "scores").rglob("*.*")} >= {
            "scores.csv",
            "scores.json",
            "confusion.csv",
            "detections.npz",
            "figures/precision_recall.png",
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

    def test_score_threshold_leaves_out_what_scores_no_more(self, run, published: Path, tmp_path: Path):
        stored = load_detections(published / "detections.npz")
        threshold = float(np.median(stored.detections.scores))
        outcome = run("ssd-evaluate", f"detections={published}", f"score_threshold={threshold}", "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        kept = load_detections(tmp_path / "scores/detections.npz").detections.scores
        expected = stored.detections.scores[stored.detections.scores > threshold]
        np.testing.assert_array_equal(kept, expected)
        assert 0 < len(kept) < len(stored.detections.scores)

    def test_draw_threshold_is_that_of_the_confusion_matrix(self, run, published: Path, tmp_path: Path):
        run("ssd-evaluate", f"detections={published}", "draw_threshold=0", "hydra.run.dir=all")
        run("ssd-evaluate", f"detections={published}", "draw_threshold=1", "hydra.run.dir=none")
        found, missed = (
            pd.read_csv(tmp_path / name / "confusion.csv", index_col="truth").to_numpy().sum(axis=0)
            for name in ("all", "none")
        )
        stored = load_detections(published / "detections.npz")
        assert found[0] == len(stored.detections.scores)
        assert missed.tolist() == [0, 15]

    def test_a_training_run_scored_again_is_what_it_was(self, run, trained: tuple[Path, str], tmp_path: Path):
        folder = trained[0]
        outcome = run("ssd-evaluate", f"detections={folder}", "hydra.run.dir=scores")
        assert outcome.exit_code == 0, outcome.error
        for name in ("scores.csv", "confusion.csv"):
            assert (tmp_path / "scores" / name).read_text() == (folder / name).read_text()
        for name in ("precision_recall.png", "per_class.png", "confusion.png"):
            assert (folder / "figures" / name).exists()
        assert (tmp_path / "scores/figures/detections.png").exists()
        table = pd.read_csv(folder / "scores.csv", index_col="class")
        summary = summary_of(folder)["scores"]
        assert table.loc["mean", "VOC07 AP"] == pytest.approx(summary["val/map_voc07"], abs=1e-6)
        assert table.loc["mean", "COCO AP"] == pytest.approx(summary["val/map"], abs=1e-6)

    def test_thresholds_are_a_checkpoints_too(self, run, trained: tuple[Path, str], tmp_path: Path):
        """A score threshold afterwards is as good as one of post-processing, which keeps the best anyway."""
        checkpoint = f"checkpoint={trained[0]}/checkpoints/best.ckpt"
        quick = ("num_workers=0", "trainer=cpu", "iou_threshold=0.25")
        threshold = np.median(load_detections(trained[0] / "detections.npz").detections.scores)
        for setting, name in (("score_threshold", "after"), ("+postprocess.score_threshold", "within")):
            outcome = run("ssd-evaluate", checkpoint, *quick, f"{setting}={threshold}", f"hydra.run.dir={name}")
            assert outcome.exit_code == 0, outcome.error
        after, within = ((tmp_path / name / "scores.csv").read_text() for name in ("after", "within"))
        assert after == within
        assert "VOC12 AP at IoU 0.25" in after

    def test_one_job_for_each_threshold(self, run, published: Path, tmp_path: Path):
        arguments = [f"detections={published}", "-m", "iou_threshold=0.3,0.5", "hydra.sweep.dir=sweep"]
        outcome = run("ssd-evaluate", *arguments)
        assert outcome.exit_code == 0, outcome.error
        columns = [list(pd.read_csv(tmp_path / "sweep" / job / "scores.csv")) for job in ("0", "1")]
        assert "VOC12 AP at IoU 0.3" in columns[0]
        assert "VOC12 AP" in columns[1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "expected one of checkpoint=<file> and detections=<run folder>, got neither"),
            (["checkpoint=a.ckpt", "detections=published"], "got both"),
            (["detections=nowhere"], "detections: nowhere cannot be read as stored detections"),
            (["detections=."], "detections: detections.npz cannot be read"),
            (["detections=published", "data=banana"], "data: expected only with a checkpoint"),
            (["detections=published", "+postprocess.nms_threshold=1"], "postprocess: expected only with a checkpoint"),
            (["detections=published", "iou_threshold=0"], "iou_threshold: expected a number in (0, 1], got 0"),
            (["detections=published", "iou_threshold=half"], "iou_threshold: expected a number in (0, 1], got half"),
            (["detections=published", "iou_threshold=nan"], "iou_threshold: expected a number in (0, 1], got nan"),
            (["detections=published", "score_threshold=2"], "score_threshold: expected a number in [0, 1], got 2"),
            (["detections=published", "draw_threshold=null"], "draw_threshold: expected a number in [0, 1], got None"),
            (["detections=published", "why_missed=true"], "why_missed: expected only with a checkpoint"),
            (["checkpoint=a.ckpt", "why_missed=true", "draw_threshold=1"], "draw_threshold: expected a number below 1"),
            (["checkpoint=a.ckpt", "iou_threshold=2"], "iou_threshold: expected a number in (0, 1], got 2"),
        ],
    )
    def test_mistakes(self, run, published: Path, tmp_path: Path, arguments: list[str], message: str):
        outcome = run("ssd-evaluate", *arguments, "hydra.run.dir=scores")
        assert outcome.exit_code == 1
        last_line = outcome.error.strip().splitlines()[-1]
        assert last_line.startswith("ssd-evaluate: ")
        assert message in last_line
        assert "Traceback" not in outcome.error
        assert not (tmp_path / "scores").exists()

    def test_help_shows_how(self, run):
        out = run("ssd-evaluate", "--help").out
        assert "ssd-evaluate detections=<run folder> iou_threshold=0.3" in out
        assert "  iou_threshold=0.5" in out


class TestPredict:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        folder = tmp_path / "photos"
        (folder / "inner").mkdir(parents=True)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (48, 90, 3), dtype=np.uint8)
        colour = Image.fromarray(pixels)
        colour.save(folder / "colour.jpg")
        colour.convert("L").save(folder / "grey.png")
        colour.convert("P").save(folder / "palette.gif")
        colour.convert("RGBA").save(folder / "inner" / "alpha picture ü.png")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "sixteen.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        colour.save(folder / "turned.jpg", exif=exif)
        return folder

    def test_json_is_in_coco_style_for_pictures_of_all_kinds(self, run, trained, photos: Path, tmp_path: Path):
        checkpoint = trained[0] / "checkpoints/best.ckpt"
        outcome = run(
            "ssd-predict", f"checkpoint={checkpoint}", f"source={photos}", "hydra.run.dir=out", "batch_size=4"
        )
        assert outcome.exit_code == 0, outcome.error
        content = json.loads((tmp_path / "out/predictions.json").read_text())
        assert content["categories"] == [{"id": 1, "name": "banana"}]
        sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in content["images"]}
        assert sizes.pop("turned.jpg") == (48, 90)
        assert set(sizes.values()) == {(90, 48)}
        assert len(sizes) == 5
        ids = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        assert content["annotations"]
        for entry in content["annotations"]:
            left, top, width, height = entry["bbox"]
            limit = ids[entry["image_id"]]
            assert left >= 0
            assert top >= 0
            assert left + width <= limit[0] + 0.02
            assert top + height <= limit[1] + 0.02
            assert 0.01 < entry["score"] <= 1
        drawings = {path.name for path in (tmp_path / "out/drawings").rglob("*.jpg")}
        assert drawings == {f"{name}.jpg" for name in [*sizes, "turned.jpg"]}

    def test_agrees_with_the_detector_used_directly(self, run, trained, tmp_path: Path):
        pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "one.png")
        checkpoint = trained[0] / "checkpoints/best.ckpt"
        run("ssd-predict", f"checkpoint={checkpoint}", "source=one.png", "hydra.run.dir=out", "num_workers=0")
        content = json.loads((tmp_path / "out/predictions.json").read_text())
        detector = load_detector(checkpoint)
        with torch.no_grad():
            images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            detections = detector.postprocess(detector.model(images), detector.model.default_boxes)
        scores = detections.scores[0][detections.valid[0]]
        assert [entry["score"] for entry in content["annotations"]] == pytest.approx(scores.tolist(), abs=1e-4)

    def test_unreadable_pictures_are_listed_and_the_others_done(self, run, trained, photos: Path, tmp_path: Path):
        (photos / "broken.jpg").write_bytes((photos / "colour.jpg").read_bytes()[:300])
        (photos / "text.png").write_text("not a picture")
        checkpoint = trained[0] / "checkpoints/best.ckpt"
        outcome = run("ssd-predict", f"checkpoint={checkpoint}", f"source={photos}", "hydra.run.dir=out", "draw=false")
        assert outcome.exit_code == 1
        assert "2 of 8 pictures could not be read" in outcome.error
        assert "broken.jpg" in outcome.error
        assert "text.png" in outcome.error
        assert len(json.loads((tmp_path / "out/predictions.json").read_text())["images"]) == 6
        assert not (tmp_path / "out/drawings").exists()

    def test_what_a_folder_holds(self, photos: Path, monkeypatch):
        for name in ("._colour.jpg", ".thumbnails/a.jpg", "inner/.b.png", "notes.txt", "c.jpg.part"):
            (photos / name).parent.mkdir(exist_ok=True)
            shutil.copy(photos / "colour.jpg", photos / name)
        for name in ("d.JFIF", "e.avif", "f.mpo"):
            (photos / name).touch()
        expected = {"alpha picture ü.png", "colour.jpg", "d.JFIF", "e.avif", "f.mpo", "grey.png", "palette.gif"}
        assert {path.name for path in find_pictures([str(photos)])} == expected | {"sixteen.png", "turned.jpg"}
        # The folder that is asked for may be hidden, and so may a picture.
        assert [path.name for path in find_pictures([str(photos / ".thumbnails")])] == ["a.jpg"]
        assert [path.name for path in find_pictures([str(photos / "inner/.b.png")])] == [".b.png"]
        monkeypatch.chdir(photos.parent)
        photos.rename("2024")
        assert len(find_pictures([2024])) == 9

    @pytest.mark.parametrize("source", ["", "''", "[]", "null", "[a.png,null]", "[true,'']", "{a:1}"])
    def test_a_source_that_is_none(self, run, tmp_path: Path, source: str):
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
        outcome = run("ssd-predict", "checkpoint=a.ckpt", f"source={source}")
        assert outcome.exit_code == 1
        message = outcome.error.strip().splitlines()[-1]
        assert message.startswith("ssd-predict: source: expected a picture, a folder or a pattern, or a list of those")
        assert "Traceback" not in outcome.error

    @pytest.mark.parametrize("draw", ["true", "false"])
    def test_a_full_disk(self, run, trained, photos: Path, tmp_path: Path, draw: str):
        """The system refuses more than 10 kB in a file, which is enough for Hydra's."""
        Image.open(photos / "colour.jpg").resize((900, 480)).save(photos / "colour.jpg")
        arguments = [f"source={photos}/colour.jpg", f"draw={draw}", "num_workers=0", "hydra.run.dir=out"]
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, former[1]))
        try:
            outcome = run("ssd-predict", f"checkpoint={trained[0]}/checkpoints/best.ckpt", *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
        assert outcome.exit_code == 1
        name = "drawings/colour.jpg.jpg" if draw == "true" else "predictions.json"
        message = outcome.error.strip().splitlines()[-1]
        assert message == f"ssd-predict: {tmp_path / 'out' / name} could not be written: File too large"
        left = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".jpg", ".json", ".part")]
        assert left == []

    def test_one_job_for_each_value(self, run, trained, photos: Path, tmp_path: Path):
        """A picture that cannot be read in one does not stop the next."""
        (photos / "inner/broken.jpg").write_text("not a picture")
        outcome = run(
            "ssd-predict", "-m", f"checkpoint={trained[0]}/checkpoints/best.ckpt",
            f"source='{photos}/inner','{photos}/colour.jpg'", "num_workers=0", "draw=false",
        )  # fmt: skip
        assert outcome.exit_code == 1
        assert "1 of 2 pictures could not be read" in outcome.error
        assert "inner/broken.jpg" in outcome.error
        [sweep] = (tmp_path / "runs/predict").iterdir()
        for job in ("0", "1"):
            assert len(json.loads((sweep / job / "predictions.json").read_text())["images"]) == 1
        assert {path.name for path in tmp_path.iterdir()} == {"photos", "runs"}

    def test_pattern_and_list_of_sources(self, run, trained, photos: Path, tmp_path: Path):
        checkpoint = trained[0] / "checkpoints/best.ckpt"
        outcome = run(
            "ssd-predict",
            f"checkpoint={checkpoint}",
            f"source=['{photos}/*.png','{photos}/colour.jpg','{photos}/grey.png']",
            "hydra.run.dir=out",
            "num_workers=0",
        )
        assert outcome.exit_code == 0, outcome.error
        content = json.loads((tmp_path / "out/predictions.json").read_text())
        names = [Path(image["file_name"]).name for image in content["images"]]
        assert sorted(names) == ["colour.jpg", "grey.png", "sixteen.png"]


def test_a_run_stands_without_the_weights_it_began_with(run, bananas: Path, tmp_path: Path):
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    choices = [
        "data=banana", f"data.root={bananas}", *QUICK, "model.image_size=128", "backbone=resnet18",
        f"backbone.weights={tmp_path / 'resnet.pth'}", "model.frozen_batch_norm=true", "model.frozen_until=body.layer1",
        "parameter_groups=fine_tune",
    ]  # fmt: skip
    assert run("ssd-train", *choices, "hydra.run.dir=first").exit_code == 0
    first = tmp_path / "first/checkpoints/last.ckpt"
    outcome = run("ssd-train", *choices, f"pretrained={first}", "hydra.run.dir=second")
    assert outcome.exit_code == 0, outcome.error
    assert f"{first} (ssd_lightning)" in "".join(outcome.out.split("\n"))

    (tmp_path / "resnet.pth").unlink()
    first.unlink()
    resumed = run("ssd-train", f"resume={tmp_path / 'second'}", "trainer.max_epochs=2")
    assert resumed.exit_code == 0, resumed.error
    last = tmp_path / "second/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert json.loads((tmp_path / "second/summary.json").read_text())["steps"] == 6
    assert "model.backbone.body.layer1.0.conv1.weight" in state
    scored = run("ssd-evaluate", f"checkpoint={last}", "num_workers=0", "hydra.run.dir=scores")
    assert scored.exit_code == 0, scored.error
    found = run("ssd-predict", f"checkpoint={last}", f"source={bananas}", "num_workers=0", "hydra.run.dir=found")
    assert found.exit_code == 0, found.error


TRAIN_MISTAKES = {
    "numbers for an option": (["box_scales=[0.1,0.2]"], ["box_scales", "model.default_boxes.scales=[…]"]),
    "ratios for an option": (["aspect_ratios=[[2],[3]]"], ["aspect_ratios", "model.default_boxes.aspect_ratios=[…]"]),
    "unknown key": (["learning_rate=1"], ["learning_rate"]),
    "unknown group": (["backbones=tiny"], ["backbones"]),
    "unknown option": (["backbone=tinny"], ["backbone/tinny", "tiny"]),
    "bad grammar": (["optimizer.lr=[1"], ["[1"]),
    "unknown argument": (["+matcher.threshold=0.5"], ["matcher", "threshold"]),
    "boxes and network": (
        ["model.default_boxes.scales=[0.1,0.2,0.3]", "model.default_boxes.aspect_ratios=[[2],[2],[2]]"],
        ["aspect_ratios has 3 levels", "scales makes 2"],
    ),
    "backbone and box scales": (
        ["box_scales=ssd512"],
        ["scales makes 7 levels", "Tiny has 5", "one cell"],
    ),
    "backbone weights": (["backbone=resnet18", "backbone.weights=no.pth"], ["model.backbone", "no.pth", "DEFAULT"]),
    "frozen layer": (["model.frozen_until=conv9"], ["conv9", "levels.0"]),
    "pretrained": (["pretrained=no.ckpt"], ["pretrained", "no.ckpt"]),
    "levels": (
        ["model.default_boxes.scales=[0.1,0.2,0.3]", "model.default_boxes.aspect_ratios=[[2],[2]]"],
        ["the network gives 5 levels", "2"],
    ),
    "image size": (["model.image_size=0"], ["image_size", "0"]),
    "batch size": (["batch_size=0"], ["batch_size", "at least 1", "0"]),
    "workers": (["num_workers=-1"], ["num_workers", "-1"]),
    "learning rate": (["optimizer.lr=-0.1"], ["optimizer.lr", "at least 0", "-0.1"]),
    "NaN scale": (["model.default_boxes.scales=[0.2,nan,0.54,0.71,0.88,1.05]"], ["scales", "nan"]),
    "threshold": (["+matcher.iou_threshold=2"], ["iou_threshold", "(0, 1]", "2"]),
    "GPU": (["trainer=gpu"], ["trainer", "gpu"]),
    "data folder": (
        ["data.root=nowhere"],
        [
            "data.root: expected a folder that holds bananas_train and bananas_val, got /",
            "/nowhere",
            "/data/banana alone",
        ],
    ),
    "VOC's folder": (
        ["data=voc07", "data.root=nowhere"],
        ["data.root: expected a folder that holds VOCdevkit, got /", "/nowhere", "/data alone"],
    ),
    "nothing to choose the best on": (["+trainer.limit_val_batches=0"], ["trainer.limit_val_batches", "got 0"]),
    "no end": (["trainer.max_epochs=null"], ["max_epochs", "max_steps"]),
    "no epoch": (["trainer.max_epochs=0"], ["trainer.max_epochs", "at least 1"]),
    "half an epoch": (["trainer.max_epochs=1.5"], ["trainer.max_epochs", "whole number", "1.5"]),
    "batches for pictures": (["+trainer.overfit_batches=1"], ["trainer.overfit_batches", "overfit_pictures"]),
    "argument of another optimizer": (["+optimizer.momentum=0.9"], ["optimizer: ", "AdamW", "momentum"]),
    "argument of another schedule": (["+lr_scheduler.milestones=[1]"], ["lr_scheduler: ", "milestones"]),
}
TRAIN_MISTAKES |= {
    f"{value} for {key}": ([f"{key}={value}"], [f"{key}: ", "number", value.replace("null", "None")])
    for key, value in (
        ("batch_size", "abc"),
        ("batch_size", "null"),
        ("num_workers", "1.5"),
        ("seed", "null"),
        ("seed", "1.5"),
        ("optimizer.lr", "abc"),
        ("optimizer.lr", "null"),
        ("overfit_pictures", "abc"),
        ("lr_reference_batch", "abc"),
        ("dashboard_pictures", "abc"),
        ("trainer.log_every_n_steps", "abc"),
    )
}


def test_a_commit_is_that_of_the_package_and_not_of_a_checkout_around_it(tmp_path: Path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    (tmp_path / "train.py").touch()
    monkeypatch.setattr(train, "__file__", str(tmp_path / "train.py"))
    assert train._git_commit() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert train._git_commit() == head


class TestMistakes:
    @pytest.mark.parametrize("name", list(TRAIN_MISTAKES))
    def test_one_line_and_nothing_left_behind(self, run, bananas: Path, tmp_path: Path, name: str):
        if name == "GPU" and torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        arguments, expected = TRAIN_MISTAKES[name]
        settings = [setting for setting in QUICK if name != "GPU" or setting != "trainer=cpu"]
        outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *settings, "hydra.run.dir=run", *arguments)
        assert outcome.exit_code == 1
        assert "Traceback" not in outcome.error
        assert "Error executing job" not in outcome.error
        message = outcome.error.strip().splitlines()[-1]
        assert message.startswith("ssd-train: ")
        for part in expected:
            assert part in message
        assert not (tmp_path / "run").exists()

    def test_a_download_that_brings_nothing_leaves_nothing(self, run, tmp_path: Path, monkeypatch):
        monkeypatch.delenv("SSD_DATA", raising=False)
        archive = banana.ARCHIVE._replace(urls=("http://127.0.0.1:9/banana-detection.zip",))
        monkeypatch.setattr(banana, "ARCHIVE", archive)
        outcome = run("ssd-train", "data=banana", *QUICK, "hydra.run.dir=run")
        assert outcome.exit_code == 1
        assert "banana-detection.zip could not be downloaded" in outcome.error
        assert f"into {tmp_path / 'data/banana'} by hand" in outcome.error
        assert "Traceback" not in outcome.error
        assert list(tmp_path.iterdir()) == []

    def test_traceback_on_request(self, run, bananas: Path, monkeypatch):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        with pytest.raises(Exception, match="batch_size"):
            run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "batch_size=0")

    def test_output_folder_that_cannot_be_written(self, run, bananas: Path, tmp_path: Path):
        (tmp_path / "file").write_text("in the way")
        outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=file/run")
        assert outcome.exit_code == 1
        assert "file" in outcome.error
        assert "Traceback" not in outcome.error

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ("0.png,0,30,5,20,25", ["line 2", "xmin < xmax"]),
            ("0.png,0,5,5,20,250", ["line 2", "inside 0.png"]),
            ("0.png,3,5,5,20,25", ["line 2", "label", "3"]),
            ("0.png,0,five,5,20,25", ["line 2", "xmin", "five"]),
            ("99.png,0,5,5,20,25", ["line 2", "99.png is missing"]),
        ],
    )
    def test_bad_annotations_name_file_and_line(self, run, tmp_path: Path, row: str, expected: list[str]):
        root = write_banana_folder(tmp_path / "bad", num_train=2, num_val=1, side=64)
        labels = root / "bananas_train" / "label.csv"
        labels.write_text(f"img_name,label,xmin,ymin,xmax,ymax\n{row}\n")
        outcome = run("ssd-train", "data=banana", f"data.root={root}", *QUICK, "hydra.run.dir=run")
        assert outcome.exit_code == 1
        assert str(labels) in outcome.error
        for part in expected:
            assert part in outcome.error
        assert not (tmp_path / "run").exists()

    def test_corrupt_picture_is_named_before_training(self, run, tmp_path: Path):
        root = write_banana_folder(tmp_path / "bad", num_train=4, num_val=2, side=64)
        picture = root / "bananas_train" / "images" / "1.png"
        picture.write_bytes(picture.read_bytes()[:200])
        outcome = run("ssd-train", "data=banana", f"data.root={root}", *QUICK, "hydra.run.dir=run")
        assert outcome.exit_code == 1
        assert str(picture) in outcome.error
        assert "Traceback" not in outcome.error

    @pytest.mark.parametrize("name", ["ssd-evaluate", "ssd-predict"])
    def test_checkpoints_that_are_none(self, run, tmp_path: Path, name: str):
        more = ["source=x.png"] if name == "ssd-predict" else []
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
        (tmp_path / "text.ckpt").write_text("hello")
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        for file, expected in (
            ("missing.ckpt", "no file missing.ckpt"),
            ("text.ckpt", "text.ckpt cannot be read"),
            ("other.ckpt", "was not written by ssd-train"),
        ):
            outcome = run(name, f"checkpoint={file}", *more)
            assert outcome.exit_code == 1
            assert expected in outcome.error
            assert "Traceback" not in outcome.error

    def test_missing_arguments(self, run, tmp_path: Path):
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
        outcome = run("ssd-predict", "source=x.png")
        assert outcome.exit_code == 1
        assert "checkpoint" in outcome.error

    def test_source_without_pictures(self, run, trained, tmp_path: Path):
        (tmp_path / "empty").mkdir()
        checkpoint = f"checkpoint={trained[0]}/checkpoints/best.ckpt"
        for source in ("empty", "nowhere", "nowhere/*.jpg"):
            outcome = run("ssd-predict", checkpoint, f"source={source}")
            assert outcome.exit_code == 1
            assert f"source: no {'pictures' if source == 'empty' else 'such file'}" in outcome.error

    def test_loss_that_becomes_infinite(self, run, bananas: Path, tmp_path: Path):
        outcome = run(
            "ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "optimizer=sgd", "optimizer.lr=1e30",
            "lr_scheduler=constant", "trainer.max_epochs=20", "hydra.run.dir=run",
        )  # fmt: skip
        assert outcome.exit_code == 1
        assert "learning rate 1e+30" in outcome.error
        assert ".png" in outcome.error
        saved = torch.load(tmp_path / "run" / "non_finite_batch.pt", weights_only=True)
        assert saved["batch"]["images"].dtype == torch.uint8


def test_an_error_of_ours_is_not_taken_for_the_users(monkeypatch: pytest.MonkeyPatch):
    assert errors.explain(ValueError("a bad value")) == "a bad value"
    assert errors.explain(AssertionError("ours")) is None
    assert errors.explain(TypeError("ours")) is None


def text_file(path: Path) -> None:
    path.write_text("hello")


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def half_a_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def weights_of_something_else(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def checkpoint_of_another_model(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["ssd_lightning"]["model"]["default_boxes"]["scales"][0] = 0.1
    torch.save(content, path)


class TestFilesOfARunThatAreBad:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (text_file, "cannot be read as a checkpoint: it is no file of torch.save"),
            (empty_file, "cannot be read as a checkpoint: it is empty"),
            (half_a_file, "cannot be read as a checkpoint: it is damaged or incomplete"),
            (weights_of_something_else, "holds no run to go on with"),
            (checkpoint_of_another_model, "is of another model: model.default_boxes.scales is [0.1, "),
        ],
    )
    def test_a_checkpoint_to_go_on_from(self, run, trained: tuple[Path, str], tmp_path: Path, spoil, message: str):
        folder = tmp_path / "copy"
        shutil.copytree(trained[0], folder)
        last = folder / "checkpoints" / "last.ckpt"
        spoil(last)
        config = (folder / ".hydra" / "config.yaml").read_bytes()
        outcome = run("ssd-train", f"resume={folder}", "trainer.max_epochs=3")
        assert outcome.exit_code == 1
        assert outcome.error.strip().splitlines()[-1].startswith(f"ssd-train: checkpoint: {last} {message}")
        assert "Traceback" not in outcome.error
        assert (folder / ".hydra" / "config.yaml").read_bytes() == config

    @pytest.mark.parametrize("content", [b"a: [", b"", b"hello", b"- 1\n", b"\xff\xfe\x00"])
    def test_a_config_to_go_on_with(self, run, tmp_path: Path, content: bytes):
        for name in (".hydra/config.yaml", "checkpoints/last.ckpt"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_bytes(content)
        outcome = run("ssd-train", f"resume={tmp_path}")
        assert outcome.exit_code == 1
        [line] = outcome.error.strip().splitlines()
        assert str(tmp_path / ".hydra" / "config.yaml") in line

    def test_a_checkpoint_that_does_not_tell_how_it_was_trained(self, run, trained: tuple[Path, str], tmp_path: Path):
        content = torch.load(trained[0] / "checkpoints" / "best.ckpt", weights_only=True)
        data = content["ssd_lightning"].pop("config")["data"]
        torch.save(content, tmp_path / "bare.ckpt")
        settings = ["checkpoint=bare.ckpt", "trainer=cpu", "num_workers=0"]
        outcome = run("ssd-evaluate", *settings)
        assert outcome.exit_code == 1
        assert "checkpoint: bare.ckpt does not tell with which data it was trained" in outcome.error
        assert run("ssd-evaluate", *settings, "data=banana", f"data.root={data['root']}").exit_code == 0

    def test_no_checkpoint(self, run, tmp_path: Path):
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
        outcome = run("ssd-predict", "source=x.png", "checkpoint=null")
        assert outcome.exit_code == 1
        assert "checkpoint: expected a file, got null" in outcome.error
