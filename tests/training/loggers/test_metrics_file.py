"""The table of metrics: one row for each step, whole at every moment, continued by a resumed run."""

import csv
import math
from pathlib import Path

import pytest
import torch

from ssd_lightning.run_folder import read_metrics
from ssd_lightning.training.loggers.metrics_file import MetricsFile


def cells(folder: Path) -> list[list[str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_one_row_for_each_step(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"epoch": 0, "train/loss": 2.5}, step=0)
    logger.log_metrics({"lr": 0.1}, step=0)
    logger.log_metrics({"epoch": 0, "train/loss": 1.5, "lr": 0.05}, step=1)
    logger.save()
    assert cells(tmp_path) == [
        ["step", "epoch", "lr", "train/loss"],
        ["0", "0", "0.1", "2.5"],
        ["1", "0", "0.05", "1.5"],
    ]


def test_columns_that_appear_later_are_empty_before(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"epoch": 0, "train/loss": 2.5}, step=0)
    logger.save()
    assert cells(tmp_path) == [["step", "epoch", "train/loss"], ["0", "0", "2.5"]]
    logger.log_metrics({"epoch": 0, "val/map": 0.75}, step=9)
    logger.save()
    assert cells(tmp_path) == [
        ["step", "epoch", "train/loss", "val/map"],
        ["0", "0", "2.5", ""],
        ["9", "0", "", "0.75"],
    ]
    assert read_metrics(tmp_path / "metrics.csv") == {
        0: {"step": 0, "epoch": 0, "train/loss": 2.5},
        9: {"step": 9, "epoch": 0, "val/map": 0.75},
    }


def test_a_metric_logged_again_at_a_step_is_replaced(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    for loss in (2.5, 1.5):
        logger.log_metrics({"train/loss": loss}, step=3)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv") == {3: {"step": 3, "train/loss": 1.5}}


def test_rows_are_in_the_order_of_steps(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    for step in (0, 20, 3, 100):
        logger.log_metrics({"a": float(step)}, step=step)
    logger.save()
    assert list(read_metrics(tmp_path / "metrics.csv")) == [0, 3, 20, 100]


@pytest.mark.parametrize("value", [0.1, 1e-30, -1.5e20, 1 / 3, 0, -7, 12345678901, math.inf, -math.inf, math.nan])
def test_numbers_come_back_as_they_were(tmp_path: Path, value: float) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": value}, step=1)
    logger.save()
    found = read_metrics(tmp_path / "metrics.csv")[1]["a"]
    assert found == value or (math.isnan(found) and math.isnan(value))
    assert type(found) is type(value)


def test_tensors_are_numbers_in_the_table(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": torch.tensor(0.25, dtype=torch.float64), "b": torch.tensor(3)}, step=0)
    logger.finalize("success")
    assert read_metrics(tmp_path / "metrics.csv") == {0: {"step": 0, "a": 0.25, "b": 3}}


def test_names_with_commas_and_quotes(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({'ap/"big, ripe" banana': 0.5}, step=0)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv") == {0: {"step": 0, 'ap/"big, ripe" banana': 0.5}}


def test_there_are_no_metrics_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == {}
    assert read_metrics(str(tmp_path / "metrics.csv")) == {}


def test_nothing_logged_is_nothing_written(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_made(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path / "runs" / "first")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    assert read_metrics(tmp_path / "runs" / "first" / "metrics.csv") == {0: {"step": 0, "a": 1.0}}


def test_what_lightning_asks_of_a_logger(tmp_path: Path) -> None:
    logger = MetricsFile(str(tmp_path))
    assert (logger.name, logger.version, logger.save_dir) == ("csv", "", str(tmp_path))


# --- resuming ---


def test_a_resumed_run_keeps_earlier_rows_and_replaces_the_others(tmp_path: Path) -> None:
    """A run is killed after step 4, and resumed from a checkpoint before step 2."""
    first = MetricsFile(tmp_path)
    for step in range(5):
        first.log_metrics({"epoch": step // 3, "train/loss": float(step), "only/before": 1.0}, step=step)
        first.save()
    resumed = MetricsFile(tmp_path)
    resumed.log_metrics({"epoch": 0, "train/loss": 20.0}, step=2)
    resumed.save()
    assert [(step, row["train/loss"]) for step, row in read_metrics(tmp_path / "metrics.csv").items()] == [
        (0, 0.0),
        (1, 1.0),
        (2, 20.0),
    ]
    resumed.log_metrics({"train/loss": 30.0, "only/after": 1.0}, step=3)
    resumed.save()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[0] == {"step": 0, "epoch": 0, "train/loss": 0.0, "only/before": 1.0}
    assert rows[3] == {"step": 3, "train/loss": 30.0, "only/after": 1.0}
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        ("step,epoch,a\n0,0,1.0\n1,0,2.0\n2,0", [0, 1]),
        ("step,epoch,a\n0,0,1.0\n1,0\n2,0,3.0,4.0\n3,0,4.0\n", [0, 3]),
        ("epoch,a\n0,1.0\n", []),
        ("", []),
    ],
)
def test_a_run_that_is_resumed_with_a_damaged_file_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str, kept: list[int]
) -> None:
    for copy in ("metrics_damaged.csv", "metrics_damaged1.csv"):
        (tmp_path / "metrics.csv").write_text(damaged)
        resumed = MetricsFile(tmp_path)
        resumed.log_metrics({"epoch": 0, "a": 9.0}, step=9)
        resumed.save()
        assert list(read_metrics(tmp_path / "metrics.csv")) == [*kept, 9]
        assert (tmp_path / copy).read_text() == damaged
        assert str(tmp_path / copy) in caplog.text


def test_a_run_from_the_start_in_the_same_folder_replaces_everything(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        logger = MetricsFile(tmp_path)
        for step in range(3 if loss == 1.0 else 1):
            logger.log_metrics({"train/loss": loss}, step=step)
        logger.save()
    assert read_metrics(tmp_path / "metrics.csv") == {0: {"step": 0, "train/loss": 2.0}}


# --- whole at every moment ---


def test_nothing_is_left_beside_the_table(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step=step)
        logger.save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_full_disk_leaves_the_former_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    before = (tmp_path / "metrics.csv").read_bytes()

    def run_full(self: csv.DictWriter, rows: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", run_full)
        logger.log_metrics({"a": 2.0}, step=1)
        with pytest.raises(OSError, match="No space left"):
            logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    logger.save()  # the disk has been tidied up
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2


def test_only_changes_are_written(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    (tmp_path / "metrics.csv").unlink()
    logger.save()
    assert not (tmp_path / "metrics.csv").exists()
