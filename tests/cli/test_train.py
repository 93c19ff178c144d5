"""``ssd-train``: the run folder, what it prints, and the weights that it starts from."""

import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import QUICK
from PIL import Image
from run_folder import COMPLETE, Trained, files_of, summary_of
from torchvision import models

from ssd_lightning.cli import app, results
from ssd_lightning.cli.train import pruning_named
from ssd_lightning.detector import presets
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.scoring.average_precision import voc_average_precision
from ssd_lightning.scoring.stored_detections import load_detections
from ssd_lightning.signals import Pruned, StoppedBySignal
from ssd_lightning.training.checkpoint import load_detector


def test_nothing_of_lightning_is_shown_also_where_slurm_is_installed(
    run, bananas: Path, tmp_path: Path, monkeypatch, empty_figures, recwarn: pytest.WarningsRecorder
):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    shown: list[str] = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda _, record: shown.append(record.name))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO)  # as when Lightning is imported
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK)
    assert outcome.exit_code == 0, outcome.error
    assert [name for name in shown if name.startswith("lightning")] == []
    assert [str(warning.message) for warning in recwarn if "srun" in str(warning.message)] == []


def test_a_precision_that_is_slow_on_this_cpu_is_named(
    run, bananas: Path, monkeypatch: pytest.MonkeyPatch, empty_figures
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "trainer.precision=bf16-mixed")
    assert outcome.exit_code == 0, outcome.error
    lines = [line for line in outcome.out.splitlines() if line.startswith("trainer.precision: expected ")]
    assert [", got bf16-mixed" in line for line in lines] == [True]


class TestRunFolder:
    def test_is_complete(self, trained: Trained):
        files = files_of(trained.folder)
        assert files >= COMPLETE
        assert not [name for name in files if name.endswith((".part", ".log"))]

    def test_summary_agrees_with_the_stored_detections(self, trained: Trained):
        summary = summary_of(trained.folder)
        stored = load_detections(trained.folder / "detections.npz")
        again = voc_average_precision(stored.detections, stored.objects, 1)
        assert summary["scores"]["val/map_voc12"] == pytest.approx(again.mean, abs=1e-6)
        assert summary["classes"] == ["banana"]
        assert summary["default_boxes"] == 4 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
        assert summary["steps"] == 2 * 12 // 4
        assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
        assert [Path(path).name for path in stored.paths] == ["0.png", "1.png", "2.png", "3.png"]

    def test_metrics_hold_losses_and_scores_of_every_epoch(self, trained: Trained):
        rows = read_metrics(trained.folder / "metrics.csv")
        validated = [row for row in rows.values() if "val/map_50" in row]
        assert [row["epoch"] for row in validated][:2] == [0, 1]
        assert all(np.isfinite(row["val/loss"]) for row in validated)

    def test_figures_are_drawn(self, trained: Trained):
        for path in (trained.folder / "figures").glob("*.png"):
            pixels = np.asarray(Image.open(path).convert("L"))
            assert pixels.std() > 5, path

    def test_is_never_used_twice(self, run, trained: Trained, bananas: Path):
        kept = [trained.folder / name for name in ("summary.json", ".hydra/config.yaml")]
        before = [path.read_bytes() for path in kept]
        arguments = ["data=banana", f"data.root={bananas}", *QUICK, f"hydra.run.dir={trained.folder}", "seed=9"]
        outcome = run("ssd-train", *arguments)
        assert outcome.exit_code == 1
        assert outcome.message.startswith("ssd-train: hydra.run.dir: ")
        assert str(trained.folder) in outcome.message
        assert before == [path.read_bytes() for path in kept]


def test_prints_scores_where_the_results_are_and_the_next_command(trained: Trained):
    assert "AP50" in trained.out
    assert f"Results: {trained.folder}" in trained.out.replace("\n", "")
    assert "ssd-predict checkpoint=" in trained.out


def test_checkpoint_gives_the_model_back_without_configs(trained: Trained, monkeypatch: pytest.MonkeyPatch):
    for module in (app, presets):
        monkeypatch.setattr(module, "CONFIG_FOLDER", Path("nowhere"))
    detector = load_detector(trained.best)
    assert detector.classes == ("banana",)
    assert detector.model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 344, 2)


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_a_run_does_not_need_the_weights_it_began_with(run, bananas: Path, tmp_path: Path):
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    choices = [
        "data=banana", f"data.root={bananas}", *QUICK, "model.image_size=128", "batch_size=12", "backbone=resnet18",
        f"backbone.weights={tmp_path / 'resnet.pth'}", "model.frozen_batch_norm=true", "model.frozen_until=body.layer1",
        "parameter_groups=fine_tune",
    ]  # fmt: skip
    assert run("ssd-train", *choices, "hydra.run.dir=first").exit_code == 0
    first = tmp_path / "first/checkpoints/last.ckpt"
    outcome = run("ssd-train", *choices, f"pretrained={first}", "hydra.run.dir=second")
    assert outcome.exit_code == 0, outcome.error
    assert f"{first} (ssd_lightning)" in "".join(outcome.out.split("\n"))

    (tmp_path / "resnet.pth").unlink()
    shutil.rmtree(tmp_path / "first")
    resumed = run("ssd-train", f"resume={tmp_path / 'second'}", "trainer.max_epochs=2")
    assert resumed.exit_code == 0, resumed.error
    last = tmp_path / "second/checkpoints/last.ckpt"
    assert summary_of(tmp_path / "second")["steps"] == 2
    assert "model.backbone.body.layer1.0.conv1.weight" in torch.load(last, weights_only=True)["state_dict"]
    scored = run("ssd-evaluate", f"checkpoint={last}", "num_workers=0", "hydra.run.dir=scores")
    assert scored.exit_code == 0, scored.error
    found = run("ssd-predict", f"checkpoint={last}", f"source={bananas}", "num_workers=0", "hydra.run.dir=found")
    assert found.exit_code == 0, found.error


def test_the_commit_is_not_that_of_another_checkout_around_the_package(tmp_path: Path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    (tmp_path / "results.py").touch()
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert results.git_commit() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert results.git_commit() == head


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("running", "pruned", Pruned),
        ("running", "running", StoppedBySignal),
        # The job was pruned in its sweep, then resumed as a single run, and stopped by its user.
        ("pruned", "pruned", StoppedBySignal),
    ],
)
def test_a_signal_of_the_sweep_is_told_from_one_of_the_user(tmp_path: Path, before: str, after: str, error: type):
    write = (tmp_path / "job.json").write_text
    write(f'{{"status": "{before}", "reason": ""}}')

    def fit() -> None:
        write(f'{{"status": "{after}", "reason": "{"not good enough" if after != before else ""}"}}')
        raise StoppedBySignal(signal.SIGTERM, "saved in last.ckpt")

    with pytest.raises(StoppedBySignal, match=r"saved in last\.ckpt") as raised, pruning_named(tmp_path):
        fit()
    assert type(raised.value) is error
    if error is Pruned:
        assert "not good enough" in str(raised.value)
        assert raised.value.code == 0
