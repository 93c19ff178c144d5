"""A pruner that a test chooses on a command line."""

import time
from pathlib import Path

import optuna


class PruneWhenPaused(optuna.pruners.BasePruner):
    """A pruner that finds no score good enough, once the job has written a file."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def prune(self, study: optuna.study.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Return True, but only after the file is there."""
        until = time.monotonic() + 120
        while not self.file.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return True
