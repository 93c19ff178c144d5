"""Progress of a run whose output is not a terminal: exact lines with a fake clock, and those of the command."""

import re
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from command_line import QUICK, subprocess_command
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, Timer
from one_weight import BATCHES, OneWeight, odd_data, trainer_with
from run_folder import Trained

from ssd_lightning.structures import Batch
from ssd_lightning.training import progress
from ssd_lightning.training.progress import ProgressLines, Throughput, choose_progress

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)


class Clock(lightning.Callback):
    """A clock that each batch moves on, of training by ``seconds`` and of validation by 10 seconds."""

    def __init__(self, seconds: float = 2.0) -> None:
        self.now = 1000.0
        self.seconds = seconds

    def perf_counter(self) -> float:
        return self.now

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.now += self.seconds

    def on_validation_batch_end(self, *arguments: Any) -> None:
        self.now += 10


class Scored(OneWeight):
    """A model with a loss of 2.5 and a score of 0.25."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", torch.tensor(2.5))
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val/map_50", 0.25)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Train with a fake clock, and return the lines printed."""

    def train(
        *own: lightning.Callback, model: OneWeight | None = None, clock: Clock | None = None,
        display: ProgressLines | None = None, checkpoint: Path | None = None, **settings: Any,
    ) -> list[str]:  # fmt: skip
        clock = clock or Clock()
        monkeypatch.setattr(progress, "time", clock)
        trainer = trainer_with(clock, display or ProgressLines(), *own, enable_progress_bar=True, **settings)
        capsys.readouterr()
        trainer.fit(model or Scored(), odd_data(), ckpt_path=checkpoint, weights_only=True)
        return capsys.readouterr().out.splitlines()

    return train


METRICS = "train loss 2.500, AP50 0.250, 1.0 images/s"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Four steps take 8 seconds, and a validation takes 10 seconds.
        ({}, ["epoch 1 of 2, step 4 of 8, {}, 18 s left", "epoch 2 of 2, step 8 of 8, {}, 0 s left"]),
        ({"num_sanity_val_steps": 1, "epochs": 1}, ["epoch 1 of 1, step 4 of 4, {}, 0 s left"]),
        ({"epochs": -1, "max_steps": 6}, ["epoch 1 of 2, step 4 of 6, {}, 9 s left"]),
        ({"epochs": 9, "max_steps": 6}, ["epoch 1 of 2, step 4 of 6, {}, 9 s left"]),
        ({"epochs": 2, "max_steps": 99, "check_val_every_n_epoch": 2}, ["epoch 2 of 2, step 8 of 8, {}, 0 s left"]),
        (
            {"epochs": 1, "val_check_interval": 2},
            ["epoch 1 of 1, step 2 of 4, {}, 14 s left", "epoch 1 of 1, step 4 of 4, {}, 0 s left"],
        ),
        ({"epochs": 1, "accumulate_grad_batches": 3}, ["epoch 1 of 1, step 2 of 2, {}, 0 s left"]),
    ],
    ids=str,
)
def test_a_line_for_each_validation(lines, settings: dict[str, Any], expected: list[str]) -> None:
    assert lines(**settings) == [line.format(METRICS) for line in expected]


@pytest.mark.parametrize(
    ("seconds", "rate", "left"), [(0.5, "4.0", "12 s"), (63, "0.0", "4 min 22 s"), (900, "0.0", "1 h 00 min")]
)
def test_rates_and_durations(lines, seconds: float, rate: str, left: str) -> None:
    first, _ = lines(clock=Clock(seconds))
    assert first.endswith(f", {rate} images/s, {left} left")


def test_what_is_not_known_is_left_out(lines) -> None:
    """Neither an end nor scores, in a run that something else stops."""

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = True

    class Silent(OneWeight):
        def log(self, *arguments: Any, **settings: Any) -> None: ...

    assert lines(Stop(), model=Silent(), epochs=-1) == ["epoch 1, step 4, 1.0 images/s"]


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [
        (7.4, f"epoch 1, step 4, {METRICS}, 7 s left"),
        (-1.0, f"epoch 1, step 4, {METRICS}, 0 s left"),
        (99.0, f"epoch 1 of 2, step 4 of 8, {METRICS}, 18 s left"),
    ],
)
def test_a_time_limit_that_comes_first(lines, monkeypatch, remaining: float, expected: str) -> None:
    timer = Timer(timedelta(hours=1))
    monkeypatch.setattr(timer, "time_remaining", lambda: remaining)
    assert lines(timer)[0] == expected


def test_a_resumed_run_counts_its_own_steps(lines, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_last=True)
    assert len(lines(saving, epochs=1, clock=Clock(500))) == 1
    # A step takes 2 seconds and a quarter of the validation.
    expected = f"epoch 2 of 4, step {2 * BATCHES} of {4 * BATCHES}, {METRICS}, 36 s left"
    assert lines(epochs=4, checkpoint=tmp_path / "last.ckpt")[0] == expected


def test_validation_without_training_prints_nothing(capsys) -> None:
    trainer_with(ProgressLines(), enable_progress_bar=True).validate(Scored(), odd_data(), verbose=False)
    assert capsys.readouterr().out == ""


def test_only_the_first_rank_prints(lines) -> None:
    class SecondRank(ProgressLines):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            super().setup(SimpleNamespace(is_global_zero=False), pl_module, stage)

    assert lines(display=SecondRank()) == []


def test_images_of_all_ranks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    throughput = Throughput()
    throughput.add(12)
    clock.now += 2
    throughput.pause()
    clock.now += 100
    throughput.resume()
    clock.now += 2
    assert throughput.take() == 3
    clock.now += 4
    throughput.add(2)
    assert throughput.take() == 0.5


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, RichProgressBar), (False, ProgressLines)])
def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, kind: type) -> None:
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: is_terminal))
    assert type(choose_progress()) is kind


# --- by the command line ---


def test_the_command_prints_a_line_for_each_epoch(trained: Trained) -> None:
    printed = [line for line in trained.out.splitlines() if line.startswith("epoch ")]
    assert len(printed) == 2
    for epoch, line in enumerate(printed, 1):
        metrics = r"train loss \d+\.\d{3}, AP50 \d\.\d{3}, \d+\.\d images/s, \d+ s left"
        assert re.fullmatch(rf"epoch {epoch} of 2, step {3 * epoch} of 6, {metrics}", line)


@pytest.mark.usefixtures("empty_figures")
def test_progress_can_be_turned_off(run, bananas: Path) -> None:
    outcome = run(
        "ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "debug=fast", "trainer.enable_progress_bar=false"
    )
    assert outcome.exit_code == 0, outcome.error
    assert "step 1" not in outcome.out
    assert "progress" not in outcome.error


@pytest.mark.slow
def test_no_warning_of_a_library_is_on_the_screen(bananas: Path, tmp_path: Path) -> None:
    """The training is a process of its own, since pytest handles warnings itself."""
    command = subprocess_command("train", "data=banana", f"data.root={bananas}", *QUICK, "debug=fast")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 1 of 1" in done.stdout
    for word in ("Warning", "deprecated", "progress"):
        assert word not in done.stderr
