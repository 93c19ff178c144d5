"""Dashboards: what they show, read from the files of runs, and a training whose dashboard fails."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
import wandb
import yaml
from command_line import QUICK, run_command, subprocess_command
from hydra import compose, initialize_config_dir
from in_memory import InMemoryPictures
from PIL import Image
from places import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib.module import unset_globals
from wandb_stand_in import Run, StandIn, Way, runs_in

from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.records import DetectionRecords, ObjectRecords, Sample, select
from ssd_lightning.review import load_runs
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.scoring.stored_detections import load_detections
from ssd_lightning.signals import Pruned
from ssd_lightning.structures import Batch, Objects
from ssd_lightning.training.loggers.dashboard import Dashboard, Results, running
from ssd_lightning.training.loggers.show import ShowOnDashboards
from ssd_lightning.training.loggers.shown_pictures import ShownPictures, rows_to_show, worth_showing
from ssd_lightning.training.loggers.tensorboard_events import TensorBoardEvents
from ssd_lightning.training.loggers.wandb_run import WandbRun, sweep_and_job, thinned

STEP = "trainer/global_step"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path_factory: pytest.TempPathFactory):
    """Let wandb find no login, and write into folders of the test instead of the user's."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("NETRC", str(home / "netrc"))
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
        monkeypatch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
        monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
        wandb.teardown()  # what it has read of other variables
        yield
        wandb.teardown()
        unset_globals()  # a run whose service was killed
    for name in ("WANDB_SERVICE", "WANDB_ERROR_REPORTING"):
        os.environ.pop(name, None)


def arguments(bananas: Path, *more: str) -> list[str]:
    data = ["data=banana", f"data.root={bananas}", *QUICK, "trainer.log_every_n_steps=2", "hydra.run.dir=run"]
    return [*data, *more]


@pytest.fixture(scope="module")
def offline(bananas: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a run with two dashboards, within the repository of another project."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "somebodys.txt").write_text("a version")
    git = ["git", "-C", str(folder), "-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *command], check=True)
    (folder / "somebodys.txt").write_text("another version")
    loggers = ["logger=[wandb_offline,tensorboard]", "logger.wandb.log_model=true", "trainer.max_epochs=2"]
    loggers.append("matcher=ignore_near")  # The second epoch is the best.
    loggers.append("++postprocess.max_detections=200")  # More points than a curve shows.
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.setenv("XDG_DATA_HOME", str(folder / "home"))
        wandb.teardown()  # what it has read of other variables
        outcome = run_command("ssd-train", *arguments(bananas, *loggers))
        wandb.teardown()
    assert outcome.exit_code == 0, outcome.error
    return folder / "run", outcome.out + outcome.error


@pytest.fixture(scope="module")
def shown(offline: tuple[Path, str]) -> Run:
    [run] = runs_in(offline[0])
    return run


@pytest.fixture(scope="module")
def events(offline: tuple[Path, str]) -> EventAccumulator:
    return read_events(offline[0])


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


class TestWandb:
    @pytest.mark.slow
    def test_has_all_metrics_at_their_steps(self, shown: Run, offline: tuple[Path, str]):
        rows = read_metrics(offline[0] / "metrics.csv")
        known = {(row[STEP], key): value for row in shown.history for key, value in row.items()}
        told = {(step, key): value for step, row in rows.items() for key, value in row.items() if key != "step"}
        assert {"train/loss_localization", "val/map_50", "val/map_voc07", "lr-AdamW"} <= {key for _, key in told}
        for (step, key), value in told.items():
            assert known[step, key] == pytest.approx(value, rel=1e-6), (step, key)
        [of_all] = [metric for metric in shown.of_type("metric") if metric.glob_name == "*"]
        assert of_all.step_metric == STEP

    def test_counts_images_a_second_while_training(self, shown: Run):
        rates = {row[STEP]: row["train/images_per_second"] for row in shown.history if "train/images_per_second" in row}
        assert list(rates) == [1, 3, 5]
        assert all(1 < rate < 1e5 for rate in rates.values())

    def test_shows_the_same_pictures_after_each_validation(self, shown: Run):
        shows = [row for row in shown.history if "val/pictures.captions" in row]
        scored = [row[STEP] for row in shown.history if "val/map_50" in row]
        assert [row[STEP] for row in shows] == scored
        assert len(shows) == 2
        for row in shows:
            assert row["val/pictures.captions"] == ["0.png", "1.png", "2.png", "3.png"]
            for name, picture in zip(row["val/pictures.filenames"], range(4), strict=True):
                pixels = np.asarray(Image.open(shown.files / name).convert("RGB"))
                assert pixels.shape == (64, 64, 3), picture

    def test_boxes_are_wandbs_own(self, shown: Run, offline: tuple[Path, str], bananas: Path):
        last = [row for row in shown.history if "val/pictures.all_boxes" in row][-1]
        boxes = [
            {layer: json.loads((shown.files / file["path"]).read_text())["box_data"] for layer, file in layers.items()}
            for layers in last["val/pictures.all_boxes"]
        ]
        with (bananas / "bananas_val" / "label.csv").open() as file:
            labelled = {row["img_name"]: row for row in csv.DictReader(file)}
        for name, of_picture in zip(last["val/pictures.captions"], boxes, strict=True):
            [truth] = of_picture["truth"]
            expected = [float(labelled[name][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")]
            assert edges(truth) == pytest.approx(expected, abs=0.01)
            assert (truth["class_id"], truth["box_caption"], truth["domain"]) == (1, "banana", "pixel")

        # The last epoch is the best, so that the stored detections are those of the last validation.
        assert json.loads((offline[0] / "summary.json").read_text())["best_epoch"] == 1
        stored = load_detections(offline[0] / "detections.npz").detections
        for place, of_picture in enumerate(boxes):
            mine = np.flatnonzero(stored.image_ids == place)
            mine = mine[stored.scores[mine].argsort(kind="stable")[::-1]][:50]
            mine = mine[stored.scores[mine] >= 0.05]
            found = of_picture["detections"]
            assert len(found) == len(mine) > 0
            assert [box["scores"]["score"] for box in found] == pytest.approx(stored.scores[mine].tolist())
            assert {tuple(np.round(edges(box), 2)) for box in found} == {
                tuple(np.round(edge, 2)) for edge in stored.boxes[mine].tolist()
            }
            assert found[0]["box_caption"] == f"banana {found[0]['scores']['score']:.2f}"
        own = [item.value_json for record in shown.of_type("config") for item in record.update if item.key == "_wandb"]
        names = json.loads(own[-1])["bounding_box/class_labels"]
        assert names["val/pictures_wandb_delimeter_detections"]["value"] == {"1": "banana"}

    def test_has_the_config_as_nested_data(self, shown: Run, offline: tuple[Path, str]):
        saved = yaml.safe_load((offline[0] / ".hydra/config.yaml").read_text())
        config = shown.config
        for key in ("optimizer", "matcher", "batch_size", "seed", "lr_scheduler", "trainer"):
            assert config[key] == saved[key], key
        assert config["model"]["default_boxes"]["scales"] == saved["box_scales"]
        assert config["choices"]["matcher"] == "ignore_near"
        # The folder of a run is no setting, and would make any two runs differ.
        assert str(offline[0]) not in json.dumps(config)

    def test_is_named_and_tagged(self, shown: Run, offline: tuple[Path, str]):
        assert (shown.run.project, shown.run.display_name) == ("ssd_lightning", "banana_tiny run")
        assert list(shown.run.tags) == ["banana_tiny"]
        assert shown.run.run_group == ""
        assert shown.run.run_id == (offline[0] / "wandb_id.txt").read_text().strip()

    def test_knows_the_version_of_the_code_but_not_the_code(self, shown: Run):
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
        assert shown.config["git_commit"] == commit
        told = {record.git.commit for record in shown.of_type("environment")} - {""}
        assert told == {commit} - {None}
        names = [path.name for path in shown.files.parent.rglob("*") if path.is_file()]
        assert not [name for name in names if name.endswith((".py", ".patch", ".diff"))]

    def test_has_the_results_in_tables(self, shown: Run, offline: tuple[Path, str]):
        folder = offline[0]
        [numbers] = [row for row in shown.history if "best/map_50" in row]
        summary = json.loads((folder / "summary.json").read_text())
        assert numbers[STEP] == summary["steps"] == 6
        assert numbers["best/map_50"] == summary["scores"]["val/map_50"]
        assert (numbers["parameters"], numbers["best/epoch"]) == (summary["parameters"], 1)
        [row] = [row for row in shown.history if "results/by_class.path" in row]
        expected = pd.read_csv(folder / "scores.csv")
        found = table(shown, row, "results/by_class")
        assert list(found) == list(expected)
        assert found["VOC12 AP"].tolist() == pytest.approx(expected["VOC12 AP"].tolist())
        confusion = table(shown, row, "results/confusion_table").set_index(["truth", "detection"])["count"]
        counts = pd.read_csv(folder / "confusion.csv", index_col="truth")
        assert {pair: int(count) for pair, count in confusion.items()} == counts.stack().to_dict()
        curve = table(shown, row, "results/precision_recall_table")
        points = pd.read_csv(folder / "precision_recall.csv")
        assert 200 < len(points) <= 400
        assert curve["recall"].tolist() == pytest.approx(points["recall"].tolist()[::2])
        for name in ("precision_recall", "per_class", "confusion", "validation_detections"):
            stored = (shown.files / numbers[f"figures/{name}.path"]).read_bytes()
            assert stored == (folder / "figures" / f"{name}.png").read_bytes()

    def test_keeps_the_best_checkpoint_if_asked(self, shown: Run, offline: tuple[Path, str]):
        [model] = [record for record in shown.of_type("artifact") if record.type == "model"]
        assert set(model.aliases) == {"best", "latest"}
        [entry] = model.manifest.contents
        assert entry.path == "best.ckpt"
        assert Path(entry.local_path).read_bytes() == (offline[0] / "checkpoints/best.ckpt").read_bytes()
        assert Path(entry.local_path).is_relative_to(offline[0])

    def test_writes_into_the_run_folder_alone_and_prints_little(self, offline: tuple[Path, str]):
        folder, printed = offline
        assert {path.name for path in folder.parent.iterdir()} == {"run", "cache", "somebodys.txt", ".git"}
        lines = [line for line in printed.splitlines() if "wandb" in line.lower()]
        assert len(lines) == 1, lines
        assert f"wandb sync {folder / 'wandb'}" in lines[0]
        assert "v_num" not in printed

    def test_ended_well(self, shown: Run):
        assert shown.exit_codes == [0]


def edges(box: dict[str, Any]) -> list[float]:
    return [box["position"][edge] for edge in ("minX", "minY", "maxX", "maxY")]


def table(shown: Run, row: dict[str, Any], key: str) -> pd.DataFrame:
    content = json.loads((shown.files / row[f"{key}.path"]).read_text())
    return pd.DataFrame(content["data"], columns=content["columns"])


class TestTensorBoard:
    def test_has_all_metrics_at_their_steps(self, events: EventAccumulator, offline: tuple[Path, str]):
        known = {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
        for step, row in read_metrics(offline[0] / "metrics.csv").items():
            for key, value in row.items():
                if key != "step":
                    assert known[step, key] == pytest.approx(value, rel=1e-6), (step, key)
        assert known[6, "best/map_50"] > 0
        assert (5, "ap_by_class/banana") in known

    def test_shows_pictures_at_each_validation_and_figures_at_the_end(self, events: EventAccumulator):
        assert [event.step for event in events.Images("val/pictures")] == [2, 5]
        assert {tag for tag in events.Tags()["images"] if tag.startswith("figures/")} == {
            "figures/validation_detections",
            "figures/precision_recall",
            "figures/per_class",
            "figures/confusion",
        }

    def test_has_config_and_table_as_text(self, events: EventAccumulator, offline: tuple[Path, str]):
        [config] = events.Tensors("config/text_summary")
        text = config.tensor_proto.string_val[0].decode()
        assert yaml.safe_load(text.strip("`").removeprefix("yaml"))["batch_size"] == 4
        [by_class] = events.Tensors("results/by_class/text_summary")
        rows = by_class.tensor_proto.string_val[0].decode().splitlines()
        assert rows[0].startswith("| class | objects |")
        assert rows[2].startswith("| banana | 4 | 4 | ")
        assert len({row.count("|") for row in rows}) == 1

    def test_runs_can_be_compared_by_what_they_chose(self, offline: tuple[Path, str]):
        plugins = read_events(offline[0]).summary_metadata["_hparams_/session_start_info"].plugin_data
        assert b"ignore_near" in plugins.content
        assert b"trainer.max_epochs" in plugins.content


@pytest.mark.slow
class TestResume:
    def test_the_same_run_goes_on(self, run, offline: tuple[Path, str], tmp_path: Path):
        folder = tmp_path / "copy"
        shutil.copytree(offline[0], folder, symlinks=True)
        assert run("ssd-train", f"resume={folder}", "trainer.max_epochs=3").exit_code == 0
        first, second = runs_in(folder)
        assert first.run.run_id == second.run.run_id == (folder / "wandb_id.txt").read_text().strip()
        assert second.config["trainer"]["max_epochs"] == 3
        assert [row[STEP] for row in second.history if "val/map_50" in row] == [8]
        assert [event.step for event in read_events(folder).Scalars("val/map_50")] == [2, 5, 8]
        # Steps were logged that no checkpoint has, as after a kill. These steps are not shown twice.
        shutil.copy(offline[0] / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt")
        assert run("ssd-train", f"resume={folder}").exit_code == 0
        assert [event.step for event in read_events(folder).Scalars("lr-AdamW")] == [1, 3, 5, 7]
        assert [event.step for event in read_events(folder).Images("val/pictures")] == [2, 5, 8]


class Signals(lightning.Callback):
    """Sends SIGTERM after the first step."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Fails(lightning.Callback):
    def on_train_batch_end(self, *arguments: Any) -> None:
        raise ValueError("a failure of this test")


class KillsTheServiceOfWandb(lightning.Callback):
    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        [service] = [line.split()[0] for line in listed.stdout.splitlines() if "wandb-core" in line]
        os.kill(int(service), signal.SIGKILL)
        time.sleep(0.5)


@pytest.mark.slow
class TestEnds:
    @pytest.mark.parametrize(
        ("name", "error", "exit_code"),
        [("Signals", "stopped by SIGTERM", 128 + signal.SIGTERM), ("Fails", "a failure of this test", 1)],
    )
    def test_a_run_that_fails_is_shown_as_failed(
        self, run, bananas: Path, tmp_path: Path, name: str, error: str, exit_code: int
    ):
        more = ["logger=wandb_offline", f"+callbacks.ends._target_={__name__}.{name}"]
        outcome = run("ssd-train", *arguments(bananas, *more))
        assert outcome.exit_code == exit_code
        assert error in outcome.error
        [shown] = runs_in(tmp_path / "run")
        assert shown.exit_codes == [1]

    def test_the_service_of_wandb_dies(self, run, bananas: Path, tmp_path: Path):
        more = ["logger=wandb_offline", f"+callbacks.ends._target_={__name__}.KillsTheServiceOfWandb"]
        outcome = run("ssd-train", *arguments(bananas, *more))
        assert outcome.exit_code == 0, outcome.error
        assert (outcome.out + outcome.error).count("its process has ended") == 1
        assert len(read_metrics(tmp_path / "run/metrics.csv")) >= 2

    @pytest.mark.parametrize("fails", [False, True])
    def test_two_ranks_are_one_run(self, bananas: Path, tmp_path: Path, fails: bool):
        (tmp_path / "on_rank_one.py").write_text(
            "import lightning\n"
            "class Fails(lightning.Callback):\n"
            "    def on_train_batch_end(self, trainer, *arguments):\n"
            "        if trainer.global_rank == 1:\n"
            "            raise ValueError('a failure of rank 1')\n"
        )
        more = ["logger=[wandb_offline,tensorboard]", "trainer=ddp_cpu", "trainer.precision=32-true", "batch_size=2"]
        more += ["+callbacks.ends._target_=on_rank_one.Fails"] * fails
        done = subprocess.run(
            subprocess_command("train", *arguments(bananas, *more)),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == int(fails), done.stderr
        [shown] = runs_in(tmp_path / "run")
        assert shown.exit_codes == [int(fails)]
        if not fails:
            rates = [row["train/images_per_second"] for row in shown.history if "train/images_per_second" in row]
            assert len(rates) == 1
            assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2, "one while training, one at the end"

    def test_each_job_of_a_sweep_is_a_run_of_its_group(self, run, bananas: Path, tmp_path: Path):
        """The second job fails."""
        settings = ["logger=wandb_offline", "optimizer=sgd", "lr_scheduler=constant", "trainer.max_epochs=4"]
        data = [argument for argument in arguments(bananas, *settings) if not argument.startswith("hydra.run.dir")]
        outcome = run("ssd-train", "-m", "optimizer.lr=0.0001,1000000.0", *data, "hydra.sweep.dir=the_sweep")
        assert outcome.exit_code == 1
        [well], [failed] = (runs_in(tmp_path / "the_sweep" / job) for job in ("0", "1"))
        assert (well.exit_codes, failed.exit_codes) == ([0], [1])
        assert [shown.run.run_group for shown in (well, failed)] == ["the_sweep"] * 2
        names = [shown.run.display_name for shown in (well, failed)]
        assert names == ["0 optimizer.lr=0.0001", "1 optimizer.lr=1000000.0"]
        assert well.run.run_id != failed.run.run_id


def test_what_cannot_be_shown_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    board = WandbRun(tmp_path, "bananas", offline=True)
    board.begin({"name": "run"}, None)
    names = ["count", "truth", "background"]  # which columns are called, too
    results = Results(
        numbers={"best/map_50": 0.5},
        choices={},
        by_class=pd.DataFrame({"objects": [1, 2]}, index=pd.Index(names[:2], name="class")),
        precision_recall=pd.DataFrame({"class": names[:2], "score": 0.5, "recall": 1.0, "precision": 1.0}),
        confusion=pd.DataFrame(np.eye(3, dtype=int), index=pd.Index(names, name="truth"), columns=names),
        figures={},
        checkpoint=tmp_path / "none.ckpt",
    )
    board.show_results(results, 1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for _ in range(2):
        board.show_results(results._replace(figures={"gone": tmp_path / "gone.png"}), 2)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "gone.png" in warning
    board.end(0)


def test_a_pruned_run_ends_well_and_says_why(tmp_path: Path):
    boards = [WandbRun(tmp_path, "bananas", offline=True), TensorBoardEvents(tmp_path)]

    def fit() -> None:
        for board in boards:
            board.log_metrics({"val/map_50": 0.5}, 1)
        raise Pruned("validation 2 was not good enough", "saved in last.ckpt")

    with pytest.raises(Pruned), running(boards, {"name": "run"}, None):
        fit()
    [shown] = runs_in(tmp_path)
    assert shown.exit_codes == [0]
    updates = [item for each in shown.of_type("summary") for item in each.update]
    ended = [json.loads(item.value_json) for item in updates if item.key == "ended"]
    text = read_events(tmp_path).Tensors("ended/text_summary")[0].tensor_proto.string_val[0].decode()
    for told in (*ended, text):
        assert "pruned: validation 2 was not good enough" in told
        assert "saved in last.ckpt" in told
    assert len(ended) == 1


class TestServers:
    """Runs with a server on this machine instead of the server of Weights & Biases."""

    def train(self, run, bananas: Path, monkeypatch: pytest.MonkeyPatch, server: StandIn, *more: str) -> Any:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        return run("ssd-train", *arguments(bananas, "logger=wandb", "+logger.wandb.init_timeout=3", *more))

    @pytest.mark.slow
    def test_answers(self, run, bananas: Path, tmp_path: Path, monkeypatch):
        with StandIn() as server:
            outcome = self.train(run, bananas, monkeypatch, server)
        assert outcome.exit_code == 0, outcome.error
        lines = [line for line in (outcome.out + outcome.error).splitlines() if "wandb" in line]
        name = (tmp_path / "run/wandb_id.txt").read_text().strip()
        assert [f"{server.url}/somebody/ssd_lightning/runs/{name}" in line for line in lines] == [True]
        began = server.named("UpsertBucket")[0]
        assert (began["name"], began["displayName"]) == (name, "banana_tiny run")
        assert json.loads(began["config"])["optimizer"]["value"]["lr"] == 0.005
        last = server.named(f"/files/somebody/ssd_lightning/{name}/file_stream")[-1]
        assert (last["complete"], last["exitcode"]) == (True, 0)
        uploaded = [name for name, _ in server.requests if name.startswith("/uploaded/media/images/val/pictures")]
        assert len(uploaded) == 4
        assert [given["input"]["artifactTypeName"] for given in server.named("CreateArtifact")] == ["run_table"] * 3

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["hangs", "fails"])
    def test_never_answers(self, run, bananas: Path, tmp_path: Path, monkeypatch, way: Way):
        began = time.monotonic()
        with StandIn(way) as server:
            outcome = self.train(run, bananas, monkeypatch, server)
        assert outcome.exit_code == 0, outcome.error
        assert time.monotonic() - began < 40
        [line] = [line for line in (outcome.out + outcome.error).splitlines() if "wandb" in line]
        assert f"{server.url} does not accept the run" in line
        assert f"upload it with wandb sync {tmp_path / 'run/wandb'}" in line
        shown = runs_in(tmp_path / "run")[-1]
        assert shown.files.parent.name.startswith("offline-run-")
        assert shown.exit_codes == [0]
        assert [row for row in shown.history if "best/map_50" in row]

    @pytest.mark.slow
    def test_disappears(self, run, bananas: Path, tmp_path: Path, monkeypatch):
        """wandb asks the server at the end, for about 20 s, whether there are tables already."""
        began = time.monotonic()
        with StandIn(leaves_after="/files") as server:
            outcome = self.train(run, bananas, monkeypatch, server, "+logger.wandb.finish_timeout=2")
        assert outcome.exit_code == 0, outcome.error
        assert time.monotonic() - began < 60
        printed = outcome.out + outcome.error
        assert f"wandb sync --include-online {tmp_path / 'run/wandb'} uploads the rest" in printed
        [shown] = runs_in(tmp_path / "run")
        assert shown.exit_codes == [0]
        assert [row for row in shown.history if "best/map_50" in row]

    @pytest.mark.slow
    def test_an_offline_run_is_uploaded_later_by_one_command(self, offline: tuple[Path, str], tmp_path: Path):
        """The command is the one that the run has printed."""
        folder = tmp_path / "copy"
        shutil.copytree(offline[0], folder, symlinks=True)
        with StandIn() as server:
            done = subprocess.run(
                [sys.executable, "-m", "wandb", "sync", str(folder / "wandb")],
                cwd=tmp_path,
                env=os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        [uploaded] = {given["name"] for given in server.named("UpsertBucket")}
        assert uploaded == (folder / "wandb_id.txt").read_text().strip()
        streamed = server.named(f"/files/somebody/ssd_lightning/{uploaded}/file_stream")
        rows = [
            json.loads(row)
            for content in streamed
            for row in content.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        ]
        assert [row[STEP] for row in rows if "val/map_50" in row] == [2, 5]
        assert streamed[-1]["exitcode"] == 0
        assert "/uploaded/media/images/val/" in " ".join(name for name, _ in server.requests)

    def test_nobody_is_logged_in(self, run, tmp_path: Path):
        outcome = run("ssd-train", "logger=wandb", "data=banana", "data.root=nowhere", "hydra.run.dir=run")
        assert outcome.exit_code == 1
        message = outcome.error.strip().splitlines()[-1]
        for part in ("ssd-train: ", "wandb login", "WANDB_API_KEY", "logger=wandb_offline"):
            assert part in message
        assert "Traceback" not in outcome.error
        assert not (tmp_path / "run").exists(), "before any work"


@pytest.mark.usefixtures("empty_figures")
class TestNoLogger:
    def test_everything_else_works(self, run, bananas: Path, tmp_path: Path):
        outcome = run("ssd-train", *arguments(bananas, "logger=none"))
        assert outcome.exit_code == 0, outcome.error
        folder = tmp_path / "run"
        assert not (folder / "metrics.csv").exists()
        assert not (folder / "figures/curves.png").exists()
        assert (folder / "figures/validation_detections.png").exists()
        runs = load_runs(folder)
        assert runs["status"].tolist() == ["finished"]


class TestSweepAgent:
    @pytest.fixture
    def definition(self) -> dict[str, Any]:
        return yaml.safe_load((ROOT / "docs/wandb_sweep.yaml").read_text())

    def test_its_command_is_one_of_ssd_train(self, definition: dict[str, Any]):
        def a_value(parameter: dict[str, Any]) -> Any:
            return parameter["values"][-1] if "values" in parameter else parameter["max"]

        given = {key: {"value": a_value(parameter)} for key, parameter in definition["parameters"].items()}
        variables = {**create_sweep_command_args({"args": given}), "program": [definition["program"]]}
        name, *overrides = [
            part
            for chunk in create_sweep_command(definition["command"])
            for part in (variables[chunk[2:-1]] if chunk.startswith("${") else [chunk])
        ]
        assert name == "ssd-train"
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train", overrides)
        assert config.optimizer.lr == definition["parameters"]["optimizer.lr"]["max"]
        assert config.loss.classification._target_.endswith("FocalLoss")
        assert config.matcher._target_.endswith("AdaptiveMatcher")
        assert "wandb" in config.logger

    def test_every_value_composes(self, definition: dict[str, Any]):
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            assert (
                compose("train", ["optimizer.lr=0.0003"]).optimizer.lr
                == definition["parameters"]["optimizer.lr"]["min"]
            )
            for group in ("matcher", "loss"):
                options = definition["parameters"][group]["values"]
                configs = [compose("train", [f"{group}={option}"])[group] for option in options]
                assert all(configs[0] != other for other in configs[1:])

    @pytest.mark.slow
    def test_a_run_is_that_of_the_agent(self, run, bananas: Path, tmp_path: Path, monkeypatch):
        """`wandb agent` gives the id of the run in a variable."""
        monkeypatch.setenv("WANDB_SWEEP_ID", "the_sweep")
        monkeypatch.setenv("WANDB_RUN_ID", "of_agent")
        outcome = run("ssd-train", *arguments(bananas, "logger=wandb_offline", "dashboard_pictures=0"))
        assert outcome.exit_code == 0, outcome.error
        [shown] = runs_in(tmp_path / "run")
        assert not [row for row in shown.history if "val/pictures.captions" in row]
        assert (shown.run.run_id, shown.run.sweep_id) == ("of_agent", "the_sweep")
        assert (tmp_path / "run/wandb_id.txt").read_text() == "of_agent\n"
        metric = yaml.safe_load((ROOT / "docs/wandb_sweep.yaml").read_text())["metric"]["name"]
        assert [row for row in shown.history if metric in row]


def test_jobs_are_named_by_what_varies(tmp_path: Path):
    job = tmp_path / "the_sweep" / "seeds" / "3"
    (job / ".hydra").mkdir(parents=True)
    (job / "job.json").write_text("{}")
    overrides = yaml.safe_dump({"hydra": {"overrides": {"task": ["loss=multibox,focal", "batch_size=4"]}}})
    (tmp_path / "the_sweep/multirun.yaml").write_text(overrides)
    (job / ".hydra/overrides.yaml").write_text(yaml.safe_dump(["loss=focal", "batch_size=4", "optimizer.lr=0.01"]))
    assert sweep_and_job(job) == ("the_sweep", "seeds/3 loss=focal optimizer.lr=0.01")
    # A folder that is alone, or copied out of its sweep, is a run folder like any other.
    (tmp_path / "the_sweep/multirun.yaml").rename(tmp_path / "elsewhere.yaml")
    assert sweep_and_job(job) == (None, None)
    assert sweep_and_job(tmp_path) == (None, None)


class Recorder(Dashboard):
    """Keeps the numbers."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.append((step, metrics))

    def log_hyperparams(self, *arguments: Any) -> None: ...

    def begin(self, *arguments: Any) -> None: ...

    def show_pictures(self, *arguments: Any) -> None: ...

    def show_results(self, *arguments: Any) -> None: ...

    def show_reason(self, *arguments: Any) -> None: ...

    def end(self, *arguments: Any) -> None: ...


def test_images_a_second_are_those_of_training_on_all_ranks(monkeypatch: pytest.MonkeyPatch):
    recorder, clock = Recorder(), iter([0.0, 0.0, 10.0, 110.0, 112.0, 112.0])
    monkeypatch.setattr("ssd_lightning.training.progress.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    epoch = SimpleNamespace(_batches_that_stepped=7)
    trainer = Mock(
        spec=lightning.Trainer,
        loggers=[recorder],
        is_global_zero=True,
        world_size=2,
        sanity_checking=True,  # no pictures
        fit_loop=SimpleNamespace(epoch_loop=epoch),
        _logger_connector=SimpleNamespace(should_update_logs=False),
    )
    no = torch.zeros(4, 1, dtype=torch.bool)
    objects = Objects(torch.zeros(4, 1, 4), no.long(), difficult=no, valid=no)
    batch = Batch(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), objects, torch.arange(4), torch.full((4, 2), 8))
    callback = ShowOnDashboards(8)
    callback.on_train_start(trainer, None)
    callback.on_train_batch_end(trainer, None, None, batch, 0)
    callback.on_validation_start(trainer, None)
    callback.on_validation_end(trainer, None)
    trainer._logger_connector.should_update_logs = True
    callback.on_train_batch_end(trainer, None, None, batch, 1)
    # 2 ranks × 2 batches × 4 pictures in 10 + 2 seconds; the next batch adds to the same step.
    callback.on_train_batch_end(trainer, None, None, batch, 2)
    assert recorder.numbers == [(7, {"train/images_per_second": 16 / 12})]


class Grey(InMemoryPictures):
    """Two grey pictures, of 1280×720 and 50×100 pixels."""

    paths = [Path("large.jpg"), Path("small.jpg")]  # noqa: RUF012

    def __getitem__(self, index: int) -> Sample:
        height, width = ((720, 1280), (100, 50))[index]
        box = np.array([[10, 20, 30, 40]], dtype=np.float32) / np.array([width, height, width, height], np.float32)
        label, easy = np.array([1]), np.array([False])
        return Sample(np.full((height, width, 3), 100 * index, dtype=np.uint8), box, label, easy)


class TestPictures:
    def test_are_spread_over_the_classes(self):
        ids, labels = np.array([7, 3, 3, 5, 9, 1]), np.array([1, 1, 2, 1, 3, 1])
        objects = ObjectRecords(ids, labels, np.zeros((6, 4), np.float32), np.zeros(6, dtype=bool))
        assert rows_to_show(objects, 3) == [1, 3, 9]
        assert rows_to_show(objects, 9) == [1, 3, 9, 5, 7]
        assert rows_to_show(objects, 0) == []
        assert rows_to_show(select(objects, slice(0)), 3) == []

    def test_are_reduced_with_their_boxes(self):
        pictures = ShownPictures(Grey(), [1, 0])
        assert [pictures.image(place).shape for place in (0, 1)] == [(100, 50, 3), (360, 640, 3)]
        assert [int(pictures.image(place).mean()) for place in (0, 1)] == [100, 0]
        assert [path.name for path in pictures.paths] == ["small.jpg", "large.jpg"]
        boxes = np.array([[10, 20, 30, 40]] * 3, dtype=np.float32)
        objects = ObjectRecords(np.array([0, 1, 2]), np.array([1, 2, 3]), boxes, np.zeros(3, dtype=bool))
        records = pictures.records(objects)
        assert records.image_ids.tolist() == [0, 1]
        assert records.labels.tolist() == [2, 1]
        assert records.boxes.tolist() == [[10, 20, 30, 40], [5, 10, 15, 20]]

    def test_have_their_best_detections(self):
        scores = np.linspace(0, 1, 200, dtype=np.float32)
        ids = np.repeat([0, 1], 100)
        detections = DetectionRecords(ids, np.ones(200, np.int64), np.zeros((200, 4), np.float32), scores)
        found = worth_showing(detections)
        assert np.bincount(found.image_ids).tolist() == [50, 50]
        assert found.scores[:50].tolist() == scores[50:100][::-1].tolist()
        few = select(detections, slice(20))
        assert worth_showing(few).scores.min() >= 0.05

    def test_are_not_fewer_than_none(self):
        with pytest.raises(ValueError, match="dashboard_pictures: expected a whole number of at least 0, got -1"):
            ShowOnDashboards(-1)

    def test_curves_are_thinned_evenly_and_short_ones_kept(self):
        curves = pd.DataFrame({"class": ["a"] * 1000 + ["b"] * 3, "recall": range(1003)})
        found = thinned(curves)
        assert found["recall"].tolist() == [*range(0, 1000, 5), 1000, 1001, 1002]
        many = pd.DataFrame({"class": np.repeat(np.arange(500), 100), "recall": range(50_000)})
        assert len(thinned(many)) == 500 * 20
