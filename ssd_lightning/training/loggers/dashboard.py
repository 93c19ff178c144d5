"""What every dashboard can do, and how it begins and ends."""

import contextlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import pandas as pd
import yaml
from lightning.pytorch.loggers import Logger

from ssd_lightning.structures import DetectionRecords, ObjectRecords
from ssd_lightning.training.loggers.shown_pictures import ShownPictures

EMPTY_IS_NAN: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
"""And nothing else: a class may be called NA."""

FIGURES = ("validation_detections", "precision_recall", "per_class", "confusion")
"""Of a run folder, those that a dashboard has not got already from numbers."""


class Results(NamedTuple):
    """What a run folder tells of a run that is over."""

    numbers: dict[str, float]
    """``best/map_50`` and the other scores of the best checkpoint, its epoch and step; seconds and sizes."""
    choices: dict[str, str]
    """The option of each config group, what was given at the command line, and the seed."""
    by_class: pd.DataFrame
    """As :func:`ssd_lightning.review.score_by_class` makes it."""
    precision_recall: pd.DataFrame
    """Columns ``class``, ``score``, ``recall``, ``precision``; the best of a class first."""
    confusion: pd.DataFrame
    """Counts, a row for each true class and a column for each detected one, background last."""
    figures: dict[str, Path]
    checkpoint: Path


class Dashboard(Logger):
    """A logger that shows more than numbers. What is declared here is called on the first rank alone."""

    @abstractmethod
    def begin(self, config: dict[str, Any], git_commit: str | None) -> None:
        """A run begins, or goes on.

        Args:
            config: plain nested data.
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
        """Some pictures with their boxes, in pixels. After each validation the same ones."""

    @abstractmethod
    def show_results(self, results: Results, step: int) -> None: ...

    @abstractmethod
    def end(self, exit_code: int) -> None:
        """The run is over; 0 if it went well."""


def dashboards_of(trainer: lightning.Trainer) -> list[Dashboard]:
    """Those that this process writes to: none but on the first rank."""
    return [logger for logger in trainer.loggers if isinstance(logger, Dashboard)] if trainer.is_global_zero else []


@contextlib.contextmanager
def running(dashboards: Sequence[Dashboard], config: dict[str, Any], git_commit: str | None) -> Iterator[None]:
    """Within this they have begun; they end with the exit code that the process will have."""
    exit_code = 1
    try:
        for dashboard in dashboards:
            dashboard.begin(config, git_commit)
        yield
        exit_code = 0
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
    """From the files that ``ssd-train`` leaves in its run folder."""
    summary = json.loads((folder / "summary.json").read_text())
    numbers = {f"best/{key.removeprefix('val/')}": value for key, value in summary["scores"].items()}
    numbers |= {f"best/{key}": summary[f"best_{key}"] for key in ("epoch", "step")}
    numbers |= {key: summary[key] for key in ("train_seconds", "images_per_second", "parameters", "default_boxes")}
    overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    changed = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    return Results(
        numbers,
        choices={**summary["choices"], **changed, "seed": str(summary["seed"])},
        by_class=pd.read_csv(folder / "scores.csv", index_col="class", **EMPTY_IS_NAN),
        precision_recall=pd.read_csv(folder / "precision_recall.csv", **EMPTY_IS_NAN),
        confusion=pd.read_csv(folder / "confusion.csv", index_col="truth", **EMPTY_IS_NAN),
        figures={name: folder / "figures" / f"{name}.png" for name in FIGURES},
        checkpoint=folder / "checkpoints" / "best.ckpt",
    )
