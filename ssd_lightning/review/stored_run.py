"""The files of one run folder as one record, with what is wrong in them."""

import contextlib
import json
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssd_lightning.require import require_number, require_whole_number, visible_line
from ssd_lightning.run_folder import (
    JOB_FILE,
    LARGEST_NUMBER,
    SCORE_NAMES,
    SET_ASIDE,
    Metrics,
    flatten,
    natural_order,
    parse_metrics,
    read_choices,
    read_config,
    read_json,
    require_choices,
    require_mapping,
)

WHOLE = ("best_epoch", "parameters", "default_boxes")
"""Results that are whole numbers."""

RESULTS = ("best_epoch", "train_seconds", "images_per_second", "parameters", "default_boxes")
"""Results of a finished run beside its scores, named as in ``summary.json``. All are at least 0."""

NO_SETTING = ("run", "status", "seeds", *RESULTS, *SCORE_NAMES)
"""Names of other columns in the tables of runs, which a setting cannot have."""

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


class StoredRun(NamedTuple):
    """A run as its folder has it."""

    folder: Path
    status: str
    config: dict[str, Hashable] | None
    """Values by dotted key, without null values; None if the config cannot be read."""
    choices: dict[str, str]
    results: dict[str, float]
    scores: dict[str, float]
    """Scores by their keys in the files."""


def run_folders(folder: Path) -> Iterator[Path]:
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


def read_run(folder: Path) -> StoredRun:
    """Read the files of a run folder; a file that cannot be read makes the run a broken one."""
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
    return StoredRun(folder, visible_line(" ".join(status.split())), config, choices or {}, results, scores)


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
    if not SCORE_KEY.fullmatch(name) or score_name(name) in ("status", *RESULTS):
        raise ValueError(f"{name[:40]}: expected the name of a score, such as val/map_50")
    if isinstance(value, float) and value != value:
        return value
    most = 1 if name.removeprefix("val/") in SCORE_NAMES else LARGEST_NUMBER
    require_number(name, value, f"[{-most}, {most}]")
    return float(value)


def score_name(key: str) -> str:
    """Return the name of a score's column: its key without ``val/``, except where it would look like a setting."""
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
