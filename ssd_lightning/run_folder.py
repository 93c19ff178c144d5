"""Names and files in the folders of runs and of sweeps that several rooms use. Quick to import."""

import csv
import io
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import yaml

from ssd_lightning.require import parse_json, parse_yaml, read_bytes

JOB_FILE = "job.json"
"""The file in a sweep job's folder that holds the state of the job."""

SWEEP_FILE = "multirun.yaml"
"""The file in a sweep's folder with the config of its last start. Hydra empties it before it is written."""

FIRST_START = f".{SWEEP_FILE}"
"""The file in a sweep's folder with the config of its first start, which is written once."""

SET_ASIDE = "set_aside"
"""The folder in a sweep that keeps the files of earlier attempts at jobs that were started again."""

LARGEST_CONFIG = 2**18
"""Largest number of bytes in a config of a run; a run with a thousand classes has 30 000."""

LARGEST_SUMMARY = 2**22
"""Largest number of bytes in a JSON file of a run; the summary of a run with a thousand classes has 30 000."""

LARGEST_METRICS = 2**28
"""Largest number of bytes in a ``metrics.csv``: a row for each of a million steps."""

LARGEST_NUMBER = 1e39
"""Largest size of a number that is not infinite: runs compute in float32, whose largest number is 3.4e38."""

CHECKPOINTS = ("best.ckpt", "last.ckpt")
"""Checkpoints of a run in the folder ``checkpoints``, the best first."""

OF_THE_SWEEP = ("jobs_at_once", "stop_sweep_on_failure", "resume_sweep", "trusted_packages")
"""Config keys that say how a sweep is run; they change nothing in a single job."""

TEST_SCORES = "test_scores.json"
"""The file in a run folder with the scores of the test. No other file holds them, so that they choose nothing."""

NEVER_PROPOSED = {
    *sys.stdlib_module_names,
    *("hydra", "lightning", "numpy", "omegaconf", "pandas", "ssd_lightning", "torch"),
}
"""Packages that no message proposes to trust: they are not a user's own, and much of their code is unsafe to call."""

PARTS = {
    *("Augmentation", "BrightnessContrast", "MinIoUCrop", "PhotometricDistortion", "ZoomIn", "ZoomOut"),
    *("Bananas", "COCO", "CSV", "GeneratedBananas", "VOC", "VOCFolder", "YOLO"),
    *("ExtraLayers", "SSD", "Tiny", "TorchvisionFeatures", "VGG16", "DepthwiseHead", "Head", "PostProcess"),
    *("AdaptiveMatcher", "AspectRatios", "BoxMatcher", "DefaultBoxes", "LinearScales"),
    *("BoxIoULoss", "FocalLoss", "L1", "MeanOverBoxesLoss", "MinedCrossEntropy", "MultiBoxLoss", "SmoothL1"),
}
"""Public names that a checkpoint, perhaps of a stranger, may build: parts that write nothing and run no other code."""

PARTS_OF_TRAINING = {
    *("AveragedWeights", "HeadsFirst", "RunCheckpoint", "SaveEverySteps", "StopOnNonFiniteLoss", "StopOnSignal"),
    *("MetricsFile", "ProgressLines", "TensorBoardEvents", "WandbRun", "choose_progress"),
    *("ParameterGroups", "constant", "one_cycle", "warmup_cosine", "warmup_multistep"),
}
"""Further public names that the config of a run may build. Some of them write to a folder."""

SCORE_NAMES = {"map_50": "AP50", "map_75": "AP75", "map": "AP", "map_voc07": "VOC07", "map_voc12": "VOC12"}
"""Names of the scores in tables. In ``metrics.csv`` and ``summary.json`` the keys are prefixed with ``val/``."""


class Metrics(NamedTuple):
    """The content of a ``metrics.csv``."""

    rows: dict[int, dict[str, float]]
    """Rows by step, without empty cells."""
    damage: str
    """Description of the rows that cannot be read, in one line; empty if there are none."""


def read_metrics(path: Path | str) -> dict[int, dict[str, float]]:
    """Return the rows of a ``metrics.csv`` that can be read; see :func:`parse_metrics`."""
    return parse_metrics(path).rows


def parse_metrics(path: Path | str) -> Metrics:
    """Read a ``metrics.csv``; there are no rows if the file is missing.

    A row that was cut, that has other cells than the first line, or a cell without a number, is left out.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is no regular file, such as a named pipe, or too large.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return Metrics({}, "")
    text = read_bytes(path, LARGEST_METRICS).decode(errors="replace")
    first, *lines = list(io.StringIO(text, newline="")) or [""]
    names = _cells(first)
    if "step" not in names or not first.endswith(("\n", "\r")):
        return Metrics({}, f"{path.name}: expected a column step in the first line, got {first[:80]!r}")
    rows: dict[int, dict[str, float]] = {}
    damaged = []
    for number, line in enumerate(lines, start=2):
        row = _row(names, line)
        if row is None:
            damaged.append(number)
        else:
            rows[int(row["step"])] = row
    told = f"{len(damaged)} of {len(lines)} rows cannot be read, the first in line {damaged[0]}" if damaged else ""
    return Metrics(rows, f"{path.name}: {told}" if told else "")


def _row(names: list[str], line: str) -> dict[str, float] | None:
    """Return the numbers of a line by column, or None if the line is damaged."""
    cells = _cells(line)
    # Every row is written with its end. Without the end, the last number may have lost digits.
    if len(cells) != len(names) or not line.endswith(("\n", "\r")):
        return None
    try:
        row = {name: _number(cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
    except ValueError:
        return None
    return row if isinstance(row.get("step"), int) and row["step"] >= 0 else None


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def read_config(path: Path | str) -> Any:
    """Read a YAML file of a run folder, which may come from a stranger.

    Runs write no aliases, so they are refused.

    Raises:
        ValueError: with the file, if it is missing, no regular file, too large, nested too deeply, has an alias, or is
            no YAML.
    """
    return _read(path, LARGEST_CONFIG, parse_yaml)


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON file of a run folder, which may come from a stranger.

    Raises:
        ValueError: with the file, if it is missing, no regular file, too large, nested too deeply, or holds no mapping.
    """
    return require_mapping(_read(path, LARGEST_SUMMARY, lambda content: parse_json(content.decode())), str(path))


def _read(path: Path | str, most: int, parse: Callable[[bytes], Any]) -> Any:
    """Return the parsed content of a file; all problems become one error that begins with the file."""
    try:
        return parse(read_bytes(path, most))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise ValueError(f"{path}: {reason.removeprefix(f'{path}: ')}") from error


def require_mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a value from a file if it is a mapping.

    Raises:
        ValueError: with the name, if it is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a mapping, got {'null' if value is None else type(value).__name__}")
    return value


def read_choices(folder: Path) -> dict[str, str]:
    """Return the option of each group that a run was composed from, as Hydra has written it.

    Raises:
        ValueError: with the file, if it cannot be read, or holds no options.
    """
    path = folder / ".hydra" / "hydra.yaml"
    content = require_mapping(read_config(path), str(path))
    for key in ("hydra", "runtime", "choices"):
        content = require_mapping(content.get(key), f"{path}: {key}")
    return require_choices(content, str(path))


def require_choices(choices: Any, name: str) -> dict[str, str]:
    """Return the chosen options of groups, without groups of Hydra itself and those without an option.

    Raises:
        ValueError: with the name, if they are no mapping of texts.
    """
    for group, option in require_mapping(choices, name).items():
        if not isinstance(group, str) or "." in group or isinstance(option, dict):
            raise ValueError(f"{name}: expected an option for each group, got {group!s:.40}: {option!s:.40}")
    return {group: str(option) for group, option in choices.items() if option is not None and "/" not in group}


def config_of_sweep(folder: Path) -> Path:
    """Return the file with the config of a sweep: that of its first start, since others may be cut by a full disk."""
    first = folder / FIRST_START
    return first if first.is_file() else folder / SWEEP_FILE


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


def run_of_file(path: Path) -> Path:
    """Return the run folder of a file in it, or in its ``checkpoints``, ``figures`` or ``.hydra``."""
    return path.parents[1] if path.parent.name in ("checkpoints", "figures", ".hydra") else path.parent


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
        with naming(path):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished_files(folder: Path) -> None:
    """Remove the unfinished files that killed processes have left in a run folder, or in the top folder of a sweep.

    These are the temporary files of :func:`written_whole`.

    Call this only while no other process writes there.
    """
    for place in (folder, folder / ".hydra", folder / "checkpoints"):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name a file or folder that is written in the block in the system's errors, as that of a full disk names none.

    Raises:
        OSError: naming the file and the reason that the system gives.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as a whole or not at all; see :func:`written_whole`."""
    with written_whole(path) as file:
        # A name of a file may hold bytes that are no text.
        file.write(text.encode(errors="surrogateescape"))


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
    """Return the number in a cell.

    Raises:
        ValueError: if there is none, or one that no run writes.
    """
    number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else float(text)
    if LARGEST_NUMBER < abs(number) < math.inf:
        raise ValueError(f"expected a number up to {LARGEST_NUMBER}, got {text}")
    return number
