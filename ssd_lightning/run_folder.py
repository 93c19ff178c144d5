"""Names and files in the folders of runs and of sweeps that several rooms use. Quick to import."""

import csv
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

JOB_FILE = "job.json"
"""The file in a sweep job's folder that holds the state of the job."""

SET_ASIDE = "set_aside"
"""The folder in a sweep that keeps the files of earlier attempts at jobs that were started again."""

CHECKPOINTS = ("best.ckpt", "last.ckpt")
"""Checkpoints of a run in the folder ``checkpoints``, the best first."""

OF_THE_SWEEP = ("jobs_at_once", "stop_sweep_on_failure", "resume_sweep", "trusted_packages")
"""Config keys that say how a sweep is run; they change nothing in a single job."""

TEST_SCORES = "test_scores.json"
"""The file in a run folder with the scores of the test. No other file holds them, so that they choose nothing."""

SCORE_NAMES = {"map_50": "AP50", "map_75": "AP75", "map": "AP", "map_voc07": "VOC07", "map_voc12": "VOC12"}
"""Names of the scores in tables. In ``metrics.csv`` and ``summary.json`` the keys are prefixed with ``val/``."""


def read_metrics(path: Path | str) -> dict[int, dict[str, float]]:
    """Return the rows of a ``metrics.csv`` by step, without empty cells; an empty dictionary if the file is missing."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [{key: _number(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
    return {int(row["step"]): row for row in rows}


def checkpoint_in(folder: Path, key: str) -> Path:
    """Return the best checkpoint of a run folder, or the last one if none was chosen by its score.

    Args:
        folder: the run folder, or its folder ``checkpoints``.
        key: the argument that named the folder, for messages.

    Raises:
        ValueError: if there is no checkpoint, with the jobs that have one if the folder is that of a sweep.
    """
    for name in CHECKPOINTS:
        for path in (folder / "checkpoints" / name, folder / name):
            if path.is_file():
                return path
    jobs = sorted((path.parents[1] for path in folder.glob("*/checkpoints/best.ckpt")), key=natural_order)
    advice = f"Try {key}={jobs[0]}." if jobs else "Try the folder of a run that has been validated once."
    raise ValueError(f"{key}: expected a run folder with checkpoints/best.ckpt, got {folder}, which has none. {advice}")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write a file as a whole or not at all.

    Readers never find half of the file, and a full disk leaves the former file. The bytes go to a hidden file in the
    same folder, which gets the final name once they are on the disk.

    Yields:
        The open file to write to.

    Raises:
        OSError: naming the file and the reason that the system gives.
    """
    part = path.with_name(f".{path.name}.{threading.get_native_id()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished_files(folder: Path) -> None:
    """Remove what killed processes have left of :func:`written_whole` in a run folder, or in a sweep's folder itself.

    Call this only while no other process writes there.
    """
    for place in (folder, folder / ".hydra", folder / "checkpoints"):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as a whole or not at all; see :func:`written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode())


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by dotted key, as on the command line."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        key: value
        for name, inner in config.items()
        for key, value in flatten(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def natural_order(name: Path | str) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them, such as 9 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(name))]


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)
