"""The interface of dashboards, and the results that dashboards show at the end of a run."""

import contextlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import pandas as pd
from lightning.pytorch.loggers import Logger

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.run_folder import TEST_SCORES, read_config
from ssd_lightning.scoring.csv_tables import read_table
from ssd_lightning.signals import Pruned
from ssd_lightning.training.loggers.shown_pictures import ShownPictures

EMPTY_IS_NAN: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
"""Settings of pandas that read only empty cells as NaN, since a class may be called NA."""

FIGURES = ("validation_detections", "precision_recall", "per_class", "confusion")
"""Figures of a run folder that a dashboard cannot draw from numbers."""


class Results(NamedTuple):
    """Results of a finished run, as read from its run folder."""

    numbers: dict[str, float]
    """Scores of the best checkpoint such as ``best/map_50``, its epoch and step, training time and model size.

    Scores of a test, such as ``test/map_50``, where the run has one."""
    choices: dict[str, str]
    """Option of each config group, arguments of the command line, and the seed."""
    by_class: pd.DataFrame
    """Table of ``scores.csv``, with a row for each class."""
    precision_recall: pd.DataFrame
    """Columns ``class``, ``score``, ``recall``, ``precision``, with the highest score of a class first."""
    confusion: pd.DataFrame
    """Counts with a row for each true class and a column for each detected class, background last."""
    figures: dict[str, Path]
    """Files of figures by name."""
    checkpoint: Path


class Dashboard(Logger):
    """Logger that shows more than numbers. The methods of this class are called only on the first rank."""

    @abstractmethod
    def begin(self, config: dict[str, Any], git_commit: str | None) -> None:
        """Begin a run or resume it.

        Args:
            config: the config of the run as plain data.
            git_commit: version of the code.
        """

    @abstractmethod
    def show_pictures(
        self,
        pictures: ShownPictures,
        detections: DetectionRecords,
        objects: ObjectRecords,
        classes: Sequence[str],
        step: int,
    ) -> None:
        """Show some pictures with their boxes in pixels. Each validation shows the same pictures."""

    @abstractmethod
    def show_results(self, results: Results, step: int) -> None:
        """Show the results of the finished run."""

    @abstractmethod
    def show_reason(self, reason: str) -> None:
        """Show why the run ended before its last epoch."""

    @abstractmethod
    def end(self, exit_code: int) -> None:
        """End the run; the exit code 0 means success."""


def dashboards_of(trainer: lightning.Trainer) -> list[Dashboard]:
    """Return the dashboards of a trainer on the first rank, and none on the other ranks."""
    return [logger for logger in trainer.loggers if isinstance(logger, Dashboard)] if trainer.is_global_zero else []


@contextlib.contextmanager
def running(dashboards: Sequence[Dashboard], config: dict[str, Any], git_commit: str | None) -> Iterator[None]:
    """Begin the run on dashboards, and end it with the exit code that the process will have."""
    exit_code = 1
    try:
        for dashboard in dashboards:
            dashboard.begin(config, git_commit)
        yield
        exit_code = 0
    except Pruned as error:
        exit_code = error.code
        for dashboard in dashboards:
            dashboard.show_reason(str(error))
        raise
    except KeyboardInterrupt:
        exit_code = 130
        raise
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 1
        raise
    finally:
        for dashboard in dashboards:
            dashboard.end(exit_code)


def read_results(folder: Path) -> Results:
    """Read the results from a run folder of ``ssd-train``."""
    summary = json.loads((folder / "summary.json").read_text())
    numbers = {f"best/{key.removeprefix('val/')}": value for key, value in summary["scores"].items()}
    numbers |= {f"best/{key}": summary[f"best_{key}"] for key in ("epoch", "step")}
    numbers |= {key: summary[key] for key in ("train_seconds", "images_per_second", "parameters", "default_boxes")}
    tested = folder / TEST_SCORES
    numbers |= json.loads(tested.read_text())["scores"] if tested.exists() else {}
    overrides = read_config(folder / ".hydra" / "overrides.yaml")
    changed = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    return Results(
        numbers,
        choices={**summary["choices"], **changed, "seed": str(summary["seed"])},
        by_class=read_table(folder / "scores.csv", index_col="class", **EMPTY_IS_NAN),
        precision_recall=read_table(folder / "precision_recall.csv", **EMPTY_IS_NAN),
        confusion=read_table(folder / "confusion.csv", index_col="truth", **EMPTY_IS_NAN),
        figures={name: folder / "figures" / f"{name}.png" for name in FIGURES},
        checkpoint=folder / "checkpoints" / "best.ckpt",
    )
