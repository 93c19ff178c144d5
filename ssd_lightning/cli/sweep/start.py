"""The start and the end of a sweep, and the folder of each of its jobs."""

import contextlib
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.folder_lock import wait_until_free
from ssd_lightning.cli.run_folders import PATIENCE
from ssd_lightning.cli.sweep import table
from ssd_lightning.cli.sweep.jobs import NAME, Jobs
from ssd_lightning.require import require_whole_number
from ssd_lightning.run_folder import JOB_FILE, SET_ASIDE, replace_text

current_jobs: ContextVar[Jobs | None] = ContextVar("current_jobs", default=None)
"""The jobs of the sweep in this process. A variable, since Hydra creates the callback and calls the job."""


@contextlib.contextmanager
def local_jobs() -> Iterator[None]:
    """Run the jobs of a sweep from this process while the block runs, and end a sweep with its table.

    Outside such a block, a job belongs to a sweep of another process, such as a launcher of a cluster.
    """
    jobs = Jobs(os.environ.get("HYDRA_FULL_ERROR") == "1")
    token = current_jobs.set(jobs)
    try:
        yield
    finally:
        try:
            jobs.end()
        finally:
            current_jobs.reset(token)
            if jobs.folder is not None:
                end_sweep(jobs.folder, is_over=sys.exc_info()[0] is None)


def end_sweep(folder: Path, is_over: bool) -> None:
    """Print the table. Exit with 1 if the sweep is over and a job is not finished."""
    left = [job for job in table.show(folder) if job.status not in table.ENDED]
    if not left:
        return
    print(f"Next:    {NAME} {shlex.quote(f'resume_sweep={folder}')} runs the unfinished jobs", flush=True)
    if is_over:
        counts = Counter(job.status for job in left)
        fail(NAME, ", ".join(f"{count} of the jobs {status}" for status, count in counts.items()))


class SweepStart(Callback):
    """A callback of Hydra that checks the settings of a sweep and begins it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin the sweep in this process, unless a launcher runs its jobs elsewhere."""
        jobs = current_jobs.get()
        if jobs is None:
            return
        try:
            _check_settings(config)
        except ValueError as error:
            # Exits, since Hydra turns exceptions of callbacks into warnings.
            fail(NAME, str(error))
        # Optuna's storage logs each of its own plugins.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        jobs.begin(Path(config.hydra.sweep.dir).absolute(), config.jobs_at_once, config.stop_sweep_on_failure)


def _check_settings(config: DictConfig) -> None:
    launcher = config.hydra.launcher
    if "LOCAL_RANK" in os.environ:
        raise ValueError("-m: expected to start the ranks of each job, got LOCAL_RANK. Try without torchrun.")
    for key in ("tasks_per_node", "nodes"):
        if launcher.get(key, 1) != 1:
            raise ValueError(f"hydra.launcher.{key}: expected 1, since a job starts its own ranks, got {launcher[key]}")
    require_whole_number("jobs_at_once", config.jobs_at_once, 1)


def run_job(config: DictConfig) -> Path | None:
    """Run one job of a sweep, or start it in a sweep of this process.

    Returns:
        The folder of the job, whose files say how it ended. None if the job was not started.
    """
    sweep = Path(HydraConfig.get().sweep.dir).absolute()
    folder, has_ended = find_folder(config, sweep)
    if folder is None or has_ended:
        return folder
    here = current_jobs.get()
    if here is not None:
        here.run(folder, config.trusted_packages)
        return folder
    failed = [job.folder for job in table.read_jobs(sweep) if job.status == "failed"]
    if config.stop_sweep_on_failure and failed:
        print(f"{NAME}: not started, since stop_sweep_on_failure: {failed[0]} failed", file=sys.stderr)
        return None
    jobs = Jobs()
    jobs.begin(sweep, at_once=1, stop_on_failure=False)
    jobs.watch = jobs.prune_as_asked
    # The job may be stopped by a signal, and the launcher expects every job to return.
    with contextlib.suppress(SystemExit):
        try:
            jobs.run(folder, config.trusted_packages)
        finally:
            jobs.end()
    _queue_again(jobs.received)
    return folder


def _queue_again(received: signal.Signals | None) -> None:
    """Let submitit or SLURM queue this job again if it was stopped for that, as it has saved its step now.

    Args:
        received: the signal that has stopped the job, if any.
    """
    if received == signal.SIGUSR2 and "submitit" in sys.modules:
        from submitit.core.utils import UncompletedJobError

        # submitit ends this process, except if the job has reached its time limit too often.
        with contextlib.suppress(UncompletedJobError):
            os.kill(os.getpid(), received)
    elif received == signal.SIGTERM and "SLURM_JOB_ID" in os.environ and shutil.which("scontrol"):
        job = os.environ["SLURM_JOB_ID"]
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
        # A job of a greater priority takes its place. SLURM would queue this job again only if it did not end itself.
        is_preempted = re.search(r"PreemptTime=\d", shown) is not None
        if is_preempted and subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0:
            time.sleep(600)  # SLURM ends this process.


def _is_queued_again(folder: Path, overrides: dict[str, str]) -> bool:
    """Return True if SLURM has queued this job again, which has begun to write its folder already."""
    if current_jobs.get() is not None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return False
    return (folder / JOB_FILE).exists() and table.read_job(folder).overrides == overrides


def find_folder(config: DictConfig, sweep: Path) -> tuple[Path | None, bool]:
    """Return the folder of a job, and True if the job has ended. The folder is None if another process runs the job.

    Raises:
        ValueError: if two jobs of a sweep have the same folder, or a job's folder is not inside that of the sweep.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    if sweep.resolve() not in folder.resolve().parents:
        raise ValueError(f"hydra.sweep.subdir: expected a folder inside that of the sweep, got {folder}")
    overrides = table.job_overrides(hydra_config.overrides.task)
    is_queued_again = _is_queued_again(folder, overrides)
    if config.resume_sweep is not None or is_queued_again:

        def known_job() -> table.Job | None:
            # Another job may have the same values.
            return table.read_job(folder) if is_queued_again else _known_job(sweep, overrides)

        known = known_job()
        if known is not None and known.status == "running":
            # A job ends itself soon after the process of its sweep was killed.
            assert known.folder is not None
            if (holder := wait_until_free(known.folder, PATIENCE)) is not None:
                print(f"{known.folder} is being run {holder}", flush=True)
                return None, False
            known = known_job()
        if known is not None:
            assert known.folder is not None
            if known.folder != folder:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # Hydra has made an empty folder for the job.
            if known.status in table.ENDED:
                return known.folder, True
            if known.status == "failed" or not (known.folder / "checkpoints" / "last.ckpt").exists():
                set_aside(known.folder, sweep)
            folder = known.folder
        else:
            names = itertools.chain([folder.name], (f"{folder.name}_{number}" for number in itertools.count(2)))
            folder = next(path for path in map(folder.with_name, names) if not (path / JOB_FILE).exists())
            if (folder / ".hydra").exists():  # The process of the sweep was killed while it prepared the job.
                set_aside(folder, sweep)
    elif (folder / JOB_FILE).exists():
        raise ValueError(f"hydra.sweep.subdir: expected a folder for each job, got {folder} for two")
    if not (folder / ".hydra" / "config.yaml").exists():
        save_config(config, folder / ".hydra")
    return folder, False


def _known_job(sweep: Path, overrides: dict[str, str]) -> table.Job | None:
    """Return the job of a sweep with these values, one that has ended first; None if there is no such job."""
    same = [job for job in table.read_jobs(sweep) if job.overrides == overrides]
    return min(same, key=lambda job: job.status not in table.ENDED, default=None)


def set_aside(folder: Path, sweep: Path) -> None:
    """Move a job's folder away, so that the job can run from its start. Nothing is deleted."""
    target = next(
        path
        for number in itertools.count(1)
        if not (path := sweep / SET_ASIDE / f"{folder.relative_to(sweep)}_{number}").exists()
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def save_config(config: DictConfig, folder: Path) -> None:
    """Save the config of a job as Hydra does.

    In a resumed sweep Hydra itself saves nothing, since it would overwrite the files of finished jobs.
    """
    folder.mkdir(parents=True)
    replace_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.merge(config, {"resume_sweep": None})))
    hydra_config = OmegaConf.create({"hydra": HydraConfig.get()})
    replace_text(folder / "hydra.yaml", OmegaConf.to_yaml(hydra_config))
    replace_text(folder / "overrides.yaml", OmegaConf.to_yaml(hydra_config.hydra.overrides.task))
