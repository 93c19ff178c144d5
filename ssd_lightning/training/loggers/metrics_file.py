"""The logger that writes the metrics of a run into one table."""

import csv
import io
import itertools
import logging
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ssd_lightning.run_folder import parse_metrics, replace_text

logger = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Logger that writes ``metrics.csv``, with a row for each logged step and a column for each metric.

    Lightning's CSVLogger writes a row for each call, and deletes the former file when a run is resumed. This logger
    keeps the rows before the first step of the resumed run. It rewrites the file as a whole, so that readers never find
    half of it.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        self._changed = False
        self._resumed = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder has the config already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        step = int(step or 0)
        if not self._resumed:
            self._rows = {at: row for at, row in self._saved().items() if at < step}
            self._resumed = True
        row = self._rows.setdefault(step, {"step": step})
        row.update({key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()})
        self._changed = True

    def _saved(self) -> dict[int, dict[str, float]]:
        """Return the rows of the run so far. Keep a copy of a file with damaged rows, since it is written anew."""
        found = parse_metrics(self.path)
        if found.damage:
            names = (f"metrics_damaged{number or ''}.csv" for number in itertools.count())
            copy = next(path for path in map(self.path.with_name, names) if not path.exists())
            shutil.copyfile(self.path, copy)
            logger.warning("%s. The other rows are continued, and %s keeps the file as it was.", found.damage, copy)
        return found.rows

    @rank_zero_only
    def save(self) -> None:
        if not self._changed:
            return
        columns = sorted({key for row in self._rows.values() for key in row} - {"step", "epoch"})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = io.StringIO()
        writer = csv.DictWriter(written, ["step", "epoch", *columns])
        writer.writeheader()
        writer.writerows(row for _, row in sorted(self._rows.items()))
        replace_text(self.path, written.getvalue())
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
