"""The start and the end of a sweep, and where each of its jobs runs."""

import contextlib
import itertools
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.sweep import table
from ssd_lightning.cli.sweep.jobs import NAME, Jobs, Score
from ssd_lightning.require import require_whole_number
from ssd_lightning.run_folder import JOB_FILE, SET_ASIDE

_here: Jobs | None = None
"""Of the process that a sweep was started in."""


@contextlib.contextmanager
def local_jobs() -> Iterator[None]:
    """Within this the jobs of a sweep run here. A sweep that has begun ends with its table, however it ends.

    Without it, a job is run on behalf of a sweep elsewhere: that is how launchers of clusters do it.
    """
    global _here
    _here = jobs = Jobs(os.environ.get("HYDRA_FULL_ERROR") == "1")
    try:
        yield
    finally:
        try:
            jobs.end()
        finally:
            _here = None
            if jobs.folder is not None:
                end_sweep(jobs.folder, is_over=sys.exc_info()[0] is None)


def end_sweep(folder: Path, is_over: bool) -> None:
    """Show the table; exit with 1 if not all is done and nobody has said so."""
    left = [job for job in table.show(folder) if job.status != "finished"]
    if not left:
        return
    print(f"Next:    {NAME} {shlex.quote(f'resume_sweep={folder}')} runs what is not finished", flush=True)
    if is_over:
        counts = Counter(job.status for job in left)
        fail(NAME, ", ".join(f"{count} of the jobs {status}" for status, count in counts.items()))


class SweepStart(Callback):
    """Tells this process which sweep begins."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if _here is None:
            return
        launcher = config.hydra.launcher
        problem = None
        if "LOCAL_RANK" in os.environ:
            problem = "-m: a sweep starts the processes of each job itself; start it without torchrun"
        elif launcher.get("tasks_per_node", 1) != 1 or launcher.get("nodes", 1) != 1:
            problem = "hydra.launcher: expected tasks_per_node=1 and nodes=1, since each job starts its ranks itself"
        else:
            try:
                require_whole_number("jobs_at_once", config.jobs_at_once, 1)
            except ValueError as error:
                problem = str(error)
        if problem is not None:
            # Hydra turns exceptions of callbacks into warnings.
            fail(NAME, problem)
        # Optuna's storage tells of each of its own plugins.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        _here.begin(Path(config.hydra.sweep.dir).absolute(), config.jobs_at_once, config.stop_sweep_on_failure)


def run_job(config: DictConfig) -> Score | float | None:
    """Run one job of a sweep. Returns its score, AP at IoU 0.5; None if it has none."""
    sweep = Path(HydraConfig.get().sweep.dir).absolute()
    found = find_folder(config, sweep)
    if not isinstance(found, Path):
        return found
    if _here is not None:
        return _here.run(found)
    failed = [job.folder for job in table.read_jobs(sweep) if job.status == "failed"]
    if config.stop_sweep_on_failure and failed:
        print(f"{NAME}: not started, since stop_sweep_on_failure: {failed[0]} failed", file=sys.stderr)
        return None
    jobs = Jobs()
    jobs.begin(sweep, at_once=1, stop_on_failure=False)
    try:
        score = jobs.run(found)
        assert not isinstance(score, Score)
        return score
    except SystemExit:  # told to stop: the launcher wants to hear from every job
        return None
    finally:
        jobs.end()


def find_folder(config: DictConfig, sweep: Path) -> Path | float | None:
    """Where a job is to be run. Of one that needs no running, the score; None if it has none yet.

    Raises:
        ValueError: if two jobs of a sweep have the same folder.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if config.resume_sweep is not None:
        overrides = table.job_overrides(hydra_config.overrides.task)
        same = [job for job in table.read_jobs(sweep) if job.overrides == overrides]
        same.sort(key=lambda job: job.status != "finished")
        if same:
            known = same[0]
            assert known.folder is not None
            if known.status == "finished":
                return known.summary["scores"]["val/map_50"]
            if known.status == "running":
                print(f"{known.folder} is being run by another process", flush=True)
                return None
            if known.status == "failed" or not (known.folder / "checkpoints" / "last.ckpt").exists():
                set_aside(known.folder, sweep)
            folder = known.folder
        else:
            names = itertools.chain([folder.name], (f"{folder.name}_{number}" for number in itertools.count(2)))
            folder = next(path for path in map(folder.with_name, names) if not (path / JOB_FILE).exists())
    elif (folder / JOB_FILE).exists():
        raise ValueError(f"hydra.sweep.subdir: expected a folder for each job, but {folder} is that of two")
    if not (folder / ".hydra" / "config.yaml").exists():
        save_config(config, folder / ".hydra")
    return folder


def set_aside(folder: Path, sweep: Path) -> None:
    """Out of the way, so that the job can be run from its start; nothing is deleted."""
    target = next(
        path
        for number in itertools.count(1)
        if not (path := sweep / SET_ASIDE / f"{folder.relative_to(sweep)}_{number}").exists()
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def save_config(config: DictConfig, folder: Path) -> None:
    """As Hydra does, which for a sweep that is resumed must leave the files of earlier jobs alone."""
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.merge(config, {"resume_sweep": None}), folder / "config.yaml")
    hydra_config = OmegaConf.create({"hydra": HydraConfig.get()})
    OmegaConf.save(hydra_config, folder / "hydra.yaml")
    OmegaConf.save(hydra_config.hydra.overrides.task, folder / "overrides.yaml")
