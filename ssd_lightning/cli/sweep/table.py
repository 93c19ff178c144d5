"""The table of a sweep, made from the files of its jobs.

``sweep.csv`` has a row for each job. ``seeds.csv`` has a row for each combination of the values beside the seed.
This module does not import torch, since the process of a sweep prints the table.
"""

import csv
import functools
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table

from ssd_lightning.cli.folder_lock import holder_of
from ssd_lightning.cli.screen import screen
from ssd_lightning.run_folder import (
    JOB_FILE,
    OF_THE_SWEEP,
    SCORE_NAMES,
    SET_ASIDE,
    config_of_sweep,
    natural_order,
    read_config,
    read_json,
    read_metrics,
    remove_unfinished_files,
    replace_text,
)
from ssd_lightning.scoring.csv_tables import cell

SCORES = {SCORE_NAMES[key]: f"val/{key}" for key in ("map_50", "map", "map_voc07", "map_voc12")}
"""Columns of the tables, and the keys of their values in ``summary.json``."""


ENDED = ("finished", "pruned")
"""States of jobs that a resumed sweep leaves alone."""


class Job(NamedTuple):
    """A job of a sweep."""

    overrides: dict[str, str]
    """The values by key, as on the command line."""
    status: str
    """waiting, running, finished, pruned, failed or interrupted."""
    reason: str = ""
    """The reason why the job is not finished, in one line."""
    seconds: float | None = None
    """The time that the job has run, over all attempts."""
    summary: dict[str, Any] = {}  # noqa: RUF012  # It is the default of a tuple, and never changed.
    folder: Path | None = None


def read_jobs(sweep: Path) -> list[Job]:
    """Return the jobs that have begun, in the order of their folders."""
    files = [path for path in sweep.rglob(JOB_FILE) if path.relative_to(sweep).parts[0] != SET_ASIDE]
    return [read_job(path.parent) for path in sorted(files, key=natural_order)]


def read_job(folder: Path) -> Job:
    """Return the job in a folder, by its files."""
    content = read_job_file(folder)
    status, reason = content.get("status", "running"), content.get("reason", "")
    if status == "running" and holder_of(folder) is None:
        status, reason = "interrupted", "its process has gone"
    summary = read_summary(folder)
    if status == "finished" and not summary:
        status, reason = "failed", "summary.json is missing or damaged"
    overrides = read_config(folder / ".hydra" / "overrides.yaml")
    return Job(job_overrides(overrides or []), status, reason, content.get("seconds"), summary, folder)


def read_job_file(folder: Path) -> dict[str, Any]:
    """Return ``status``, ``reason`` and ``seconds`` of a job. Empty before the job begins, and for a damaged file."""
    return _read_json(folder / JOB_FILE)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a finished run. Empty before the run ends, and for a damaged file."""
    summary = _read_json(folder / "summary.json")
    scores = summary.get("scores")
    is_whole = isinstance(scores, dict) and all(isinstance(scores.get(key), int | float) for key in SCORES.values())
    return summary if is_whole else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError:
        return {}


def job_overrides(arguments: Any) -> dict[str, str]:
    """Return the arguments of a job by key, without those that only concern the sweep."""
    pairs = (str(argument).lstrip("+").partition("=") for argument in arguments)
    return {key: value for key, _, value in pairs if key not in OF_THE_SWEEP}


def planned_jobs(sweep: Path) -> list[dict[str, str]]:
    """Return every job of a grid, begun or not. Empty for Optuna, which chooses the jobs one by one."""
    return _plan(sweep).jobs


def objectives_of(sweep: Path) -> dict[str, str]:
    """Return what a search by Optuna optimizes, each with ``maximize`` or ``minimize``. Empty for a grid."""
    return _plan(sweep).objectives


class _Plan(NamedTuple):
    """The jobs and the objectives that the file of a sweep names."""

    jobs: list[dict[str, str]]
    objectives: dict[str, str]


def _plan(sweep: Path) -> _Plan:
    file = config_of_sweep(sweep)
    return _read_plan(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read_plan(file: Path, changed_at: int) -> _Plan:
    """Return the plan in a file. It is cached, since reading takes long and every update of a table needs the plan."""
    config = OmegaConf.create(read_config(file)).hydra
    if not str(config.sweeper._target_).endswith(".BasicSweeper"):
        return _Plan([], dict(config.sweeper.get("objectives") or {}))
    arguments = [f"{key}={value}" for key, value in (config.sweeper.get("params") or {}).items()]
    hydra = GlobalHydra.instance()
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)
    overrides = parser.parse_overrides([*arguments, *config.overrides.task])
    [jobs] = BasicSweeper.split_arguments(overrides, None)
    return _Plan([job_overrides(job) for job in jobs], {})


def all_jobs(sweep: Path) -> list[Job]:
    """Return the jobs that have begun, and those of a grid that have not."""
    left = read_jobs(sweep)
    jobs = []
    for overrides in planned_jobs(sweep):
        begun = next((job for job in left if job.overrides == overrides), None)
        jobs.append(begun or Job(overrides, "waiting"))
        if begun is not None:
            left.remove(begun)
    return jobs + left


def varying_keys(jobs: list[Job]) -> list[str]:
    """Return the keys whose value is not the same for all jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def values_of(job: Job, objectives: Iterable[str]) -> list[float] | None:
    """Return the values of a finished job: scores of its validation, or numbers beside the scores in its summary.

    None for a job that is not finished, or whose summary lacks one.
    """
    scores = job.summary.get("scores", {})
    found: list[Any] = [
        scores.get(f"val/{name}") if name in SCORE_NAMES else job.summary.get(name) for name in objectives
    ]
    are_numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in found)
    return [float(value) for value in found] if job.status == "finished" and are_numbers else None


def mean_values(jobs: Sequence[Job], objectives: Iterable[str]) -> list[float] | None:
    """Return the mean of each value over the seeds. None without jobs, or if a job has no values."""
    values = [values_of(job, list(objectives)) for job in jobs]
    known = [each for each in values if each is not None]
    return [statistics.fmean(each) for each in zip(*known, strict=True)] if known and len(known) == len(jobs) else None


def on_front(values: Sequence[Sequence[float] | None], directions: Sequence[str]) -> list[bool]:
    """Return for each row True if no other row is at least as good in all values and better in one.

    Args:
        values: the objectives of each row; None for a row without results, which is not on the front.
        directions: ``maximize`` or ``minimize`` for each objective.
    """
    signs = [1 if direction == "maximize" else -1 for direction in directions]
    signed = [None if row is None else [s * value for s, value in zip(signs, row, strict=True)] for row in values]
    found = [row for row in signed if row is not None]
    return [
        row is not None
        and not any(other != row and all(a >= b for a, b in zip(other, row, strict=True)) for other in found)
        for row in signed
    ]


def rows_of_jobs(jobs: list[Job], objectives: Mapping[str, str], sweep: Path) -> list[dict[str, Any]]:
    """Return a row for each job: values that differ, scores (0 … 1), results, status, reason, folder.

    With several objectives, ``front`` is yes for the jobs that no other job beats in all of them. Where ``seed``
    varies, :func:`rows_over_seeds` has this column.

    ``job seconds`` are those of the whole process: more than the ``train_seconds`` of a run, which leave out its start.
    """
    keys = varying_keys(jobs)
    fronts = on_front([values_of(job, objectives) for job in jobs], list(objectives.values()))
    has_front = len(objectives) > 1 and "seed" not in keys
    return [
        {
            **{key: job.overrides.get(key) for key in keys},
            **scores_of(job),
            "job seconds": job.seconds,
            "parameters": job.summary.get("parameters"),
            **{name: job.summary.get(name) for name in objectives if name not in (*SCORE_NAMES, "parameters")},
            **({"front": "yes" if is_on_front else None} if has_front else {}),
            "status": job.status,
            "reason": job.reason,
            "folder": str(job.folder.relative_to(sweep)) if job.folder else None,
        }
        for job, is_on_front in zip(jobs, fronts, strict=True)
    ]


def scores_of(job: Job) -> dict[str, float | None]:
    """Return the scores of a job by column: the best ones, or the last ones of a pruned job. None for other jobs."""
    found = job.summary.get("scores", {}) if job.status == "finished" else {}
    if job.status == "pruned" and job.folder is not None:
        found = last_scores(job.folder)
    return {column: found.get(key) for column, key in SCORES.items()}


def last_scores(folder: Path) -> dict[str, float]:
    """Return the scores of the last validation of a run. Empty if there was none."""
    rows = [row for _, row in sorted(read_metrics(folder / "metrics.csv").items()) if "val/map_50" in row]
    return rows[-1] if rows else {}


def rows_over_seeds(jobs: list[Job], objectives: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the mean and the sample standard deviation (n − 1) over the finished seeds. Empty if no seed varies.

    With several objectives, ``front`` is yes for the rows that no other row beats in all of their means.
    """
    keys = varying_keys(jobs)
    if "seed" not in keys:
        return []
    keys.remove("seed")
    groups: dict[tuple[str | None, ...], list[Job]] = {}
    for job in jobs:
        of_group = groups.setdefault(tuple(job.overrides.get(key) for key in keys), [])
        if job.status == "finished":
            of_group.append(job)
    rows = []
    for values, of_group in groups.items():
        row: dict[str, Any] = {**dict(zip(keys, values, strict=True)), "seeds": len(of_group)}
        for column in SCORES:
            scores = [score for score in (scores_of(job)[column] for job in of_group) if score is not None]
            row[f"{column} mean"] = statistics.fmean(scores) if scores else None
            row[f"{column} std"] = statistics.stdev(scores) if len(scores) > 1 else None
        rows.append(row)
    if len(objectives) > 1:
        means = [mean_values(of_group, objectives) for of_group in groups.values()]
        fronts = on_front(means, list(objectives.values()))
        for row, of_row, is_on_front in zip(rows, means, fronts, strict=True):
            row |= {name: of_row and of_row[place] for place, name in enumerate(objectives) if name not in SCORE_NAMES}
            row["front"] = "yes" if is_on_front else None
    return rows


def update(sweep: Path) -> list[Job]:
    """Rewrite ``sweep.csv`` and ``seeds.csv``. Any process of the sweep may do so at any time."""
    from filelock import FileLock  # Imported here, since --help would wait for it.

    # The process that has read the jobs last must write last.
    with FileLock(sweep / ".table_lock"):
        remove_unfinished_files(sweep)
        jobs = all_jobs(sweep)
        objectives = objectives_of(sweep)
        of_jobs, over_seeds = rows_of_jobs(jobs, objectives, sweep), rows_over_seeds(jobs, objectives)
        for name, rows in (("sweep.csv", of_jobs), ("seeds.csv", over_seeds)):
            if rows:
                written = io.StringIO()
                writer = csv.DictWriter(written, list(rows[0]))
                writer.writerow({key: cell(key) for key in rows[0]})
                writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
                replace_text(sweep / name, written.getvalue())
    return jobs


def show(sweep: Path) -> list[Job]:
    """Print the current table, and return its jobs."""
    jobs = update(sweep)
    objectives = objectives_of(sweep)
    rows = rows_of_jobs(jobs, objectives, sweep)
    for row in rows:
        del row["reason"]
    counts = Counter(job.status for job in jobs)
    pruned = f", {counts['pruned']} pruned" if counts["pruned"] else ""
    _print_table(rows, f"{counts['finished']} of {len(jobs)} jobs finished{pruned}")
    over_seeds = rows_over_seeds(jobs, objectives)
    for row in over_seeds:
        for column in SCORES:
            mean, std = row.pop(f"{column} mean"), row.pop(f"{column} std")
            row[column] = None if mean is None else f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")
    if over_seeds:
        _print_table(over_seeds, "mean ± standard deviation over seeds")
    for job in jobs:
        if job.reason and job.folder is not None:
            screen().print(f"{job.folder.relative_to(sweep)} {job.status}: {job.reason}", soft_wrap=True)
    print(f"Results: {sweep / 'sweep.csv'}", flush=True)
    return jobs


def _print_table(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in rows[0] if rows else ():
        is_text = any(isinstance(row[column], str) for row in rows)
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_shown(column, value) for column, value in row.items()))
    # Long lines are better than the table that rich prints on a narrow terminal, without what does not fit.
    console = screen()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in SCORES and isinstance(value, float):
        return f"{value:.3f}"
    if column == "job seconds":
        return f"{value:.0f}"
    if column == "parameters":
        return f"{value / 1e6:.1f} M"
    # Optuna draws numbers of 17 digits.
    return f"{float(value):.4g}" if re.fullmatch(r"\d+\.\d{5,}(e-?\d+)?", str(value)) else str(value)
