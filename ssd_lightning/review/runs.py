"""Run folders as one table, the curves of their training, and the runs that no other beats in score and cost.

Only files are read, so the runs can come from other machines. ``stored_run.py`` reads one of them,
``settings.py`` rates the settings of the runs, and ``run_figures.py`` draws them.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssd_lightning.require import visible_line
from ssd_lightning.review.stored_run import RESULTS, StoredRun, read_run, run_folders, score_name
from ssd_lightning.run_folder import OF_THE_SWEEP, config_of_sweep, parse_metrics, read_config

CURVES = ("train/loss", "val/loss", "val/map_50")
"""Default keys of :func:`learning_curves`, as far as a run has logged them."""

LESS_IS_BETTER = ("val/loss", "class_error", "box_mae", "train_seconds", "parameters", "default_boxes")
"""Prefixes of the columns in which a lower value is better."""

NAMES = {
    "map": "AP, IoU 0.5 to 0.95",
    "map_50": "AP at IoU 0.5",
    "map_75": "AP at IoU 0.75",
    "map_voc07": "AP (VOC07)",
    "map_voc12": "AP (VOC12)",
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "train_seconds": "seconds of training",
    "images_per_second": "training images/s",
    "parameters": "parameters",
    "default_boxes": "default boxes",
}
"""Names of columns and metrics in text."""

MOST_NAMED = 4
"""Largest number of settings in a label."""


def load_runs(folders: Path | str | Iterable[Path | str], key: str = "folders") -> pd.DataFrame:
    """Read the runs of ``ssd-train`` in or below one or several folders into a table.

    Args:
        folders: may hold folders of other commands too, which are left out.
        key: the argument that gave them, for messages.

    Returns:
        A row for each run, whose index is its folder. Columns, in this order:

        * settings: the keys of the command line that differ between the runs. A group (``loss``) holds the chosen
          option; its keys (``loss.alpha``) follow if the option does not determine them. Lists are text, as they are
          typed. NaN if a run has no such key, or null.
        * ``status``: ``finished``; ``unfinished`` (running or interrupted, which look the same in a folder); the status
          of a sweep's job, such as ``failed: <reason>``; or ``broken: <reason>`` if a file cannot be read.
        * scores of the best checkpoint, or the last logged scores of an unfinished run. The prefix ``val/`` is left
          out except in ``val/loss…``, since ``loss`` is a setting, and in any other score with the name of a setting.
        * ``best_epoch`` (from 1), ``train_seconds``, ``images_per_second`` (of the training), ``parameters``,
          ``default_boxes``. NaN if a run is not finished.

    Raises:
        ValueError: if a folder does not exist, or there is no run in any folder.
    """
    given = [folders] if isinstance(folders, Path | str) else list(folders)
    for folder in given:
        if not Path(folder).is_dir():
            raise ValueError(f"{key}: expected folders that exist, got {folder}. Try the folder of a sweep.")
    found = dict.fromkeys(path for folder in given for path in run_folders(Path(folder)))
    runs = [read_run(folder) for folder in found]
    if not runs:
        raise ValueError(
            f"{key}: expected folders with runs of ssd-train, got {', '.join(map(str, given))}. "
            "Try the folder of a sweep."
        )

    table: dict[str, list[Any]] = _settings_that_differ(runs)
    settings = set(table)
    table["status"] = [run.status for run in runs]
    for key in dict.fromkeys(key for run in runs for key in run.scores):
        name = score_name(key)
        table[key if name in settings else name] = [run.scores.get(key, np.nan) for run in runs]
    for name in RESULTS:
        table[name] = [run.results.get(name, np.nan) for run in runs]
    return pd.DataFrame(table, index=pd.Index([str(run.folder) for run in runs], name="run")).infer_objects()


def settings_of(runs: pd.DataFrame) -> list[str]:
    """Return the names of the columns that are settings: those before ``status``.

    Raises:
        ValueError: if the table has no column ``status``.
    """
    if "status" not in runs.columns:
        raise ValueError(f"runs: expected the table of load_runs, got one without status: {list(runs.columns)}")
    return [str(name) for name in runs.columns[: runs.columns.get_loc("status")]]


def run_labels(runs: pd.DataFrame, settings: Sequence[str] | None = None) -> pd.Series:
    """Return a text for each run: its settings, as ``loss=focal, seed=1``.

    Keys are shortened to their last part if it is unique. Without any setting, or with more than four by default, the
    text is the folder, without the part that all folders share.

    Args:
        runs: the table of :func:`load_runs`.
        settings: columns to name; default: all settings.
    """
    columns = settings_of(runs) if settings is None else list(settings)
    if settings is None and len(columns) > MOST_NAMED:
        columns = []
    ends = [column.rpartition(".")[2] for column in columns]
    names = [end if ends.count(end) == 1 else column for end, column in zip(ends, columns, strict=True)]
    texts = [
        ", ".join(f"{name}={shown_value(row[column])}" for name, column in zip(names, columns, strict=True))
        for _, row in runs.iterrows()
    ]
    if not columns and len(runs):
        folders = [Path(str(folder)).absolute() for folder in runs.index]
        above = os.path.commonpath([folder.parent for folder in folders])
        texts = [visible_line(str(folder.relative_to(above))) for folder in folders]
    return pd.Series(texts, index=runs.index, name="label", dtype=object)


def learning_curves(runs: pd.DataFrame, keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the numbers that runs logged during training.

    Args:
        runs: the table of :func:`load_runs`, or any table with run folders as its index.
        keys: columns of ``metrics.csv``; default: those of ``train/loss``, ``val/loss`` and ``val/map_50`` that a run
            has logged.

    Returns:
        A row for each number. Columns: ``run``, ``step``, ``epoch`` (from 1), ``key``, ``value``. Runs that have logged
        nothing, or whose file is damaged, have no rows.

    Raises:
        ValueError: if no run has one of the given keys.
    """
    logged: dict[Any, dict[int, dict[str, float]]] = {}
    for folder in runs.index:
        logged[folder] = {}
        # The status in the table gives the reason of the damage.
        with contextlib.suppress(OSError, ValueError):
            logged[folder] = parse_metrics(Path(folder) / "metrics.csv").rows
    known = {key for metrics in logged.values() for row in metrics.values() for key in row} - {"step", "epoch"}
    for key in keys or ():
        if key not in known:
            raise ValueError(f"keys: expected one of {', '.join(sorted(known)) or 'no key'}, got {key!r}")
    rows = [
        (folder, step, row.get("epoch", np.nan) + 1, key, row[key])
        for key in (CURVES if keys is None else keys)
        for folder, metrics in logged.items()
        for step, row in metrics.items()
        if key in row
    ]
    return pd.DataFrame(rows, columns=["run", "step", "epoch", "key", "value"])


def pareto(runs: pd.DataFrame, score: str = "map_50", cost: str = "parameters") -> pd.DataFrame:
    """Return the runs on the Pareto front, the cheapest first.

    No other run is at least as good in both columns and better in one. A higher value is better, except for losses,
    errors, seconds, parameters and default boxes. Runs without one of the two numbers are left out.

    Args:
        runs: the table of :func:`load_runs`.
        score: a column of numbers.
        cost: a column of numbers.

    Raises:
        ValueError: if there is no such column.
    """
    kept = with_numbers(runs, score=score, cost=cost)
    # The sign makes a higher value better in both.
    values = np.stack(
        [kept[column].to_numpy(float) * (1 if more_is_better(column) else -1) for column in (score, cost)]
    )
    mine, others = values[:, :, None], values[:, None, :]
    is_beaten = np.any(np.all(others >= mine, axis=0) & np.any(others > mine, axis=0), axis=1)
    return kept[~is_beaten].sort_values([cost, score], ascending=not more_is_better(cost), kind="stable")


def objectives_of(runs: pd.DataFrame) -> list[str]:
    """Return what the searches that the runs are from have optimized, named as the columns of :func:`load_runs`.

    Args:
        runs: the table of :func:`load_runs`.
    """
    files = dict.fromkeys(config_of_sweep(folder) for run in runs.index for folder in Path(run).parents[:2])
    names: list[str] = []
    for file in files:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # Another kind of sweep, or a damaged file.
            names += map(str, read_config(file)["hydra"]["sweeper"]["objectives"])
    results = runs.columns[len(settings_of(runs)) + 1 :]
    return [name for name in dict.fromkeys(names) if name in results]


def more_is_better(column: str) -> bool:
    """Return whether a higher value of the column is better."""
    return not column.startswith(LESS_IS_BETTER)


def with_numbers(runs: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """Return the runs that have a number in all of the given columns.

    Args:
        runs: the table of :func:`load_runs`.
        columns: names of columns, by the argument that an error message names.

    Raises:
        ValueError: if a column is missing or does not hold numbers.
    """
    for argument, column in columns.items():
        if column not in runs.columns or not pd.api.types.is_numeric_dtype(runs[column]):
            numbers = [str(name) for name in runs.columns if pd.api.types.is_numeric_dtype(runs[name])]
            raise ValueError(f"{argument}: expected a column of numbers, one of {', '.join(numbers)}, got {column!r}")
    return runs.dropna(subset=list(columns.values()))


def _settings_that_differ(runs: list[StoredRun]) -> dict[str, list[Any]]:
    """Return the columns of the groups and of the keys that differ between runs."""
    # A run whose config cannot be read has no known differences.
    configs = [run.config for run in runs if run.config is not None]
    chosen = [run.choices for run in runs if run.choices]
    keys = dict.fromkeys(key for config in configs for key in config)
    keys = {key: None for key in keys if len({config.get(key) for config in configs}) > 1}
    # Keys of one part that are present in the same runs, and equal there, are represented by the first of them.
    absent: set[tuple[str, tuple[bool, ...]]] = set()
    for key in list(keys):
        values = [config.get(key) for config in configs]
        pattern = (key.partition(".")[0], tuple(value is None for value in values))
        if key in OF_THE_SWEEP or (len(set(values) - {None}) == 1 and pattern in absent):
            del keys[key]
        elif len(set(values) - {None}) == 1:
            absent.add(pattern)
    groups = dict.fromkeys(group for choices in chosen for group in choices)
    groups = {group: None for group in groups if len({choices.get(group) for choices in chosen}) > 1}
    both = [(run.config, run.choices) for run in runs if run.config is not None and run.choices]
    for key in list(keys):
        group = key.partition(".")[0]
        if group not in groups:
            continue
        pairs = {(choices.get(group), config.get(key)) for config, choices in both}
        is_determined = len(pairs) == len({option for option, _ in pairs})
        is_of_some_options = any(config.get(key) is None for config in configs)
        is_class = key.rpartition(".")[2] in ("_target_", "_partial_")
        if is_determined and (key == group or is_class or is_of_some_options):
            del keys[key]
        elif key == group:  # Numbers were given instead of an option.
            del groups[group]
    columns: dict[str, list[Any]] = {group: [run.choices.get(group, np.nan) for run in runs] for group in groups}
    return columns | {key: [(run.config or {}).get(key, np.nan) for run in runs] for key in keys}


UNSET = "–"
"""Text for a key that a run does not have, or that is null."""


def shown_value(value: Any) -> str:
    """Return the text of a setting in tables and labels."""
    if isinstance(value, float | np.floating):
        return UNSET if value != value else f"{value:.6g}"
    return UNSET if value is None else str(value)
