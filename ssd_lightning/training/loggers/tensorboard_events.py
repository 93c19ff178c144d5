"""The logger that writes event files for TensorBoard."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from ssd_lightning.data.pictures import read_picture
from ssd_lightning.drawing import draw_detections
from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.training.loggers.dashboard import Dashboard, Results
from ssd_lightning.training.loggers.shown_pictures import ShownPictures


class TensorBoardEvents(TensorBoardLogger, Dashboard):
    """Logger that writes event files into ``tensorboard`` of the run folder, for ``tensorboard --logdir <folders>``.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path | str) -> None:
        # The version is empty, since a progress bar would show it.
        super().__init__(folder, name="tensorboard", version="", default_hp_metric=False)
        self._config: dict[str, Any] | None = None

    def begin(self, config: dict[str, Any], git_commit: str | None) -> None:
        self._config = {**config, "git_commit": git_commit}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._config is not None:
            # This event makes TensorBoard drop what a run wrote for later steps before it was stopped and resumed.
            begins = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            self.experiment._get_file_writer().add_event(begins)
            self.experiment.add_text("config", f"```yaml\n{yaml.safe_dump(self._config, sort_keys=False)}\n```", step)
            self._config = None
        super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write pending events, but not the config, which the run folder has."""
        if self._experiment is not None:
            self._experiment.flush()

    def show_pictures(
        self,
        pictures: ShownPictures,
        detections: DetectionRecords,
        objects: ObjectRecords,
        classes: Sequence[str],
        step: int,
    ) -> None:
        canvas = FigureCanvasAgg(draw_detections(pictures, detections, objects, classes, count=len(pictures)))
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self.experiment.add_image("val/pictures", pixels, step, dataformats="HWC")

    def show_results(self, results: Results, step: int) -> None:
        self.log_hyperparams(results.choices, dict(results.numbers), step)
        self.experiment.add_text("results/by_class", markdown(results.by_class), step)
        for name, path in results.figures.items():
            self.experiment.add_image(f"figures/{name}", read_picture(path), step, dataformats="HWC")

    def show_reason(self, reason: str) -> None:
        self.experiment.add_text("ended", reason)

    def end(self, exit_code: int) -> None:
        if self._experiment is not None:
            self._experiment.close()


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown, which TensorBoard shows."""
    rows = [[str(table.index.name), *map(str, table.columns)], ["---"] + ["--:"] * len(table.columns)]
    rows += [[str(name), *map(_cell, values)] for name, *values in table.itertuples(name=None)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
