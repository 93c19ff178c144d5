"""What commands and reviews agree on about the folders of runs and of sweeps. Imports nothing that takes long."""

import csv
import os
from pathlib import Path

JOB_FILE = "job.json"
"""In the folder of a sweep's job, how the job goes."""

SET_ASIDE = "set_aside"
"""Folder of a sweep for what was left by jobs that were run again from their start."""

OF_THE_SWEEP = ("jobs_at_once", "stop_sweep_on_failure", "resume_sweep")
"""Keys that say how a sweep is run; they make no difference to a job."""

SCORE_NAMES = {"map_50": "AP50", "map_75": "AP75", "map": "AP", "map_voc07": "VOC07", "map_voc12": "VOC12"}
"""What tables call the scores. Their keys have ``val/`` before them in ``metrics.csv`` and ``summary.json``."""


def read_metrics(path: Path | str) -> dict[int, dict[str, float]]:
    """The rows of a ``metrics.csv`` by step, without empty cells; nothing if the file is missing."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [{key: _number(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
    return {int(row["step"]): row for row in rows}


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: no reader finds half of it, and a full disk leaves the former one.

    Raises:
        OSError: naming the file and what the system says.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)
