"""Run folders as one table, the curves of their training, and the runs that no other beats in score and cost.

Only files are read, so the runs can come from other machines. ``settings.py`` rates the settings of the runs, and
``run_figures.py`` draws them.
"""

import contextlib
import json
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ssd_lightning.require import require_number, require_whole_number, visible_line
from ssd_lightning.run_folder import (
    JOB_FILE,
    LARGEST_NUMBER,
    OF_THE_SWEEP,
    SCORE_NAMES,
    SET_ASIDE,
    Metrics,
    config_of_sweep,
    flatten,
    natural_order,
    parse_metrics,
    read_choices,
    read_config,
    read_json,
    require_choices,
    require_mapping,
)

CURVES = ("train/loss", "val/loss", "val/map_50")
"""Default keys of :func:`learning_curves`, as far as a run has logged them."""

COSTS = ("train_seconds", "images_per_second", "parameters", "default_boxes")
"""Columns of :func:`load_runs` after the scores, named as in ``summary.json``."""

LESS_IS_BETTER = ("val/loss", "class_error", "box_mae", "train_seconds", "parameters", "default_boxes")
"""Prefixes of the columns in which a lower value is better."""

WHOLE = ("best_epoch", "parameters", "default_boxes")
"""Results that are whole numbers."""

RESULTS = ("best_epoch", *COSTS)
"""Results of a finished run beside its scores. All are at least 0."""

NO_SETTING = ("run", "status", "seeds", *RESULTS, *SCORE_NAMES)
"""Names of other columns in the tables of runs, which a setting cannot have."""

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

LARGEST_EXACT = 2**53
"""Largest whole number up to which a column of numbers holds each exactly. A larger one of a setting is text."""

MOST_SETTINGS = 1000
"""Largest number of settings of a run; all options of this project together have some 300."""

LONGEST_REASON = 200
"""Largest number of characters that describe a problem of a file."""

MOST_SCORES = 200
"""Largest number of scores of a run."""

SCORE_KEY = re.compile(r"val/(?!val/)[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}")
"""Keys of scores in the files of a run."""

MOST_NAMED = 4
"""Largest number of settings in a label."""


def load_runs(folders: Path | str | Iterable[Path | str]) -> pd.DataFrame:
    """Read the runs of ``ssd-train`` in or below one or several folders into a table.

    Args:
        folders: may hold folders of other commands too, which are left out.

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
            raise ValueError(f"folders: expected folders that exist, got {folder}")
    found = dict.fromkeys(path for folder in given for path in _run_folders(Path(folder)))
    runs = [_read_run(folder) for folder in found]
    if not runs:
        raise ValueError(
            f"folders: expected folders with runs of ssd-train, got {', '.join(map(str, given))}. "
            "Try the folder of a sweep."
        )

    table: dict[str, list[Any]] = _settings_that_differ(runs)
    settings = set(table)
    table["status"] = [run.status for run in runs]
    for key in dict.fromkeys(key for run in runs for key in run.scores):
        name = _score_name(key)
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


class _Run(NamedTuple):
    folder: Path
    status: str
    config: dict[str, Hashable] | None
    """Values by dotted key, without null values; None if the config cannot be read."""
    choices: dict[str, str]
    results: dict[str, float]
    scores: dict[str, float]
    """Scores by their keys in the files."""


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of training runs, in natural order. Folders inside a run are not searched."""
    for path, below, _ in os.walk(folder):
        at = Path(path)
        is_run = _exists(at / "summary.json") or _exists(at / ".hydra" / "config.yaml")
        if is_run and _is_training(at):
            yield at
        below[:] = [] if is_run else sorted((b for b in below if b[0] != "." and b != SET_ASIDE), key=natural_order)


def _exists(path: Path) -> bool:
    """Return whether there is anything: what is no readable file is reported when it is read."""
    return os.path.lexists(path)


def _is_training(folder: Path) -> bool:
    if any(_exists(folder / name) for name in ("summary.json", "metrics.csv", "checkpoints/last.ckpt")):
        return True
    # The run has just started, it failed at once, or the folder is of another command.
    try:
        return bool(read_config(folder / ".hydra" / "hydra.yaml")["hydra"]["job"]["name"] == "ssd-train")
    except (KeyError, TypeError, ValueError):
        return False


def _read_run(folder: Path) -> _Run:
    problems: list[str] = []
    metrics, summary, job = Metrics({}, ""), None, {}
    config, choices = None, None
    results: dict[str, float] = {}
    scores: dict[str, float] = {}
    file = folder / "metrics.csv"
    with _noting(problems, file):
        metrics = parse_metrics(file)
        problems += [metrics.damage] if metrics.damage else []
    file = folder / "summary.json"
    has_summary = _exists(file)
    if has_summary:
        with _noting(problems, file):
            summary = read_json(file)
            results = _numbers(problems, file, {name: summary[name] for name in RESULTS if name in summary})
            if "best_epoch" in results:
                # People count epochs from 1, files from 0.
                results["best_epoch"] += 1
        with _noting(problems, file):
            scores = _numbers(problems, file, require_mapping((summary or {}).get("scores", {}), "scores"))
        with _noting(problems, file):
            choices = _settings(require_choices((summary or {}).get("choices", {}), "choices"))
    else:
        file = folder / "metrics.csv"
        with _noting(problems, file):
            scores = _numbers(problems, file, _last_scores(metrics.rows))
    file = folder / ".hydra" / "config.yaml"
    if _exists(file):
        with _noting(problems, file):
            config = _settings(flatten(require_mapping(read_config(file), str(file))))
    file = folder / ".hydra" / "hydra.yaml"
    # A resumed run has no choices of its own; those of its start are beside its config.
    if not choices and _exists(file):
        with _noting(problems, file):
            choices = _settings(read_choices(folder))
    file = folder / JOB_FILE
    if _exists(file):
        with _noting(problems, file):
            job = read_json(file)
    status = "finished"
    if problems:
        status = f"broken: {'; '.join(problems)}"
    elif not has_summary:
        is_named = job.get("status") in ("failed", "interrupted", "pruned")
        reason = f": {job['reason']}" if job.get("reason") else ""
        status = f"{job['status']}{reason}" if is_named else "unfinished"
    return _Run(folder, visible_line(" ".join(status.split())), config, choices or {}, results, scores)


@contextlib.contextmanager
def _noting(problems: list[str], path: Path) -> Iterator[None]:
    """Note an error in the block as a problem of a file, named in the run folder, in place of an exception."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        # A stranger's value in the message can be long.
        problems.append(f"{path.name}: {reason.removeprefix(f'{path}: ')[:LONGEST_REASON]}")


def _numbers(problems: list[str], path: Path, values: Mapping[Any, Any]) -> dict[str, float]:
    """Return the results or scores of a file that can be right, and note the others as problems."""
    if len(values) > MOST_SCORES:
        raise ValueError(f"scores: expected at most {MOST_SCORES}, got {len(values)}")
    numbers = {}
    for name, value in values.items():
        with _noting(problems, path):
            number = _number(name, value)
            # A score is NaN where the data hold no such objects.
            if number == number:
                numbers[name] = number
    return numbers


def _number(name: str, value: Any) -> float:
    """Return a result or score as a number.

    Raises:
        ValueError: if it cannot be right, or its name is none of a score.
    """
    if name in RESULTS:
        if name in WHOLE:
            require_whole_number(name, value, 0)
        require_number(name, value, f"[0, {LARGEST_EXACT if name in WHOLE else LARGEST_NUMBER}]")
        return int(value) if name in WHOLE else float(value)
    if not SCORE_KEY.fullmatch(name) or _score_name(name) in ("status", *RESULTS):
        raise ValueError(f"{name[:40]}: expected the name of a score, such as val/map_50")
    if isinstance(value, float) and value != value:
        return value
    most = 1 if name.removeprefix("val/") in SCORE_NAMES else LARGEST_NUMBER
    require_number(name, value, f"[{-most}, {most}]")
    return float(value)


def _score_name(key: str) -> str:
    return key if key.startswith("val/loss") else key.removeprefix("val/")


def _last_scores(rows: dict[int, dict[str, float]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for row in rows.values():
        scores |= {key: value for key, value in row.items() if key.startswith("val/")}
    return scores


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file as values of a table, without null values.

    Raises:
        ValueError: if they are too many, or one has the name of another column.
    """
    if len(values) > MOST_SETTINGS:
        raise ValueError(f"expected at most {MOST_SETTINGS} settings, got {len(values)}")
    for key in values:
        if key in NO_SETTING or key.startswith("val/") or key.endswith(" std"):
            raise ValueError(f"{key[:40]}: expected the name of a setting, got that of a result")
    return {visible_line(key): _plain(value) for key, value in values.items() if value not in (None, {})}


def _plain(value: Any) -> Hashable:
    """Return a value of a setting as a number or a text."""
    if isinstance(value, str):
        return visible_line(value)
    if isinstance(value, int | float) and (isinstance(value, bool) or abs(value) <= LARGEST_EXACT):
        return value
    # NaN is a missing setting in the table, and a whole number of any length has no column of numbers.
    return str(value) if isinstance(value, int | float) else visible_line(json.dumps(value, default=str))


def _settings_that_differ(runs: list[_Run]) -> dict[str, list[Any]]:
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
