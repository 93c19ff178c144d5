"""``ssd-train -m``: every job of a sweep is a process of its own.

Hydra composes the jobs and saves the config of each in its folder; here a child process runs that config as an ordinary
single run. So a job may have any number of devices, and nothing of one job is left in memory for the next. The process
of the sweep itself imports neither torch nor Lightning.

What is known of a job lies in its folder, in ``job.json`` beside the files of its run; the table is made from those.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.arguments import require_whole_number
from ssd_lightning.cli import sweep_table
from ssd_lightning.cli.command import fail, require_plugins, run_in_folder
from ssd_lightning.cli.paths import quote, value_of
from ssd_lightning.run_folder import JOB_FILE, OF_THE_SWEEP, SET_ASIDE, replace_text

NAME = "ssd-train"

CHILD = [sys.executable, "-m", "ssd_lightning.cli.train"]
"""What runs a job."""

OF_A_RANK = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
"""Variables by which a process knows that it is one of several. A job starts its own."""

EXIT_CODES_OF_STOPPING = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)

NOT_OF_A_RESUMED_SWEEP = ("hydra.mode", "hydra.sweep.dir", "hydra.output_subdir", "resume_sweep")
"""Saved arguments that are given anew."""

POLL_SECONDS = 0.1

TAIL_LINES = 60
"""Of what a job wrote to stderr, where the reason of a failure is looked for."""


class Jobs:
    """The jobs that this process runs, and what becomes of them when it is told to stop.

    Args:
        wants_traceback: whether a job that fails shows one.
    """

    def __init__(self, wants_traceback: bool = False) -> None:
        self.wants_traceback = wants_traceback
        self.folder: Path | None = None
        self.at_once = 1
        self.stop_on_failure = False
        self._running: list[Child] = []
        self._received: signal.Signals | None = None
        self._failed: Child | None = None
        self._works = False
        self._former: dict[signal.Signals, Any] = {}

    def begin(self, folder: Path, at_once: int, stop_on_failure: bool) -> None:
        """A sweep begins; from here on SIGINT and SIGTERM go to its jobs, which save themselves."""
        self.folder, self.at_once, self.stop_on_failure = folder, at_once, stop_on_failure
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(self) -> None:
        """Wait for the jobs that still run, and leave signals as they were."""
        try:
            if self._running:
                self.wait()
        finally:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._former = {}

    def run(self, folder: Path) -> "Score | float | None":
        """Run a job, or start it if several run at once. The score is None if there is none."""
        with self._working():
            self._wait(lambda: len(self._running) < self.at_once)
            child = self._start(folder)
            if self.at_once > 1:
                return Score(self, child)
            self._wait(lambda: child.is_done)
            return child.score

    def wait(self, child: "Child | None" = None) -> None:
        """For one of the jobs, or all."""
        with self._working():
            self._wait(lambda: child.is_done if child else not self._running)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self._works = True
        try:
            yield
        finally:
            self._works = False

    def _start(self, folder: Path) -> "Child":
        assert self.folder is not None
        slot = next(slot for slot in range(self.at_once) if slot not in [child.slot for child in self._running])
        environment = child_environment(self.wants_traceback, slot, self.at_once)
        child = Child(folder, slot, environment, shares_terminal=self.at_once == 1)
        self._running.append(child)
        sweep_table.update(self.folder)
        if self._received is not None:  # while the job was started
            child.process.send_signal(self._received)
        return child

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Until something is so, or until all jobs have ended and no other may start."""
        while True:
            self._collect()
            ends = self._received is not None or (self.stop_on_failure and self._failed is not None)
            if ends and not self._running:
                self._stop_sweep()
            if not ends and is_over():
                return
            time.sleep(POLL_SECONDS)

    def _collect(self) -> None:
        assert self.folder is not None or not self._running
        for child in list(self._running):
            if child.process.poll() is None:
                continue
            child.finish(was_stopped=self._received is not None)
            self._running.remove(child)
            if child.status == "failed":
                self._failed = child
            if self.folder is not None:
                sweep_table.update(self.folder)
            if self.at_once > 1:
                print(child, flush=True)

    def _stop_sweep(self) -> NoReturn:
        # SystemExit, because Hydra takes an exception for the failure of one job and goes on.
        if self._received is not None:
            fail(NAME, f"the sweep was interrupted by {self._received.name}", 128 + self._received)
        assert self._failed is not None
        fail(NAME, f"stop_sweep_on_failure: {self._failed.folder} failed, and no other job starts")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        for child in self._running:
            # One that got it already, from the terminal, takes this for the same.
            child.process.send_signal(number)
        if not self._works:
            # Hydra composes, or waits for jobs that run elsewhere.
            fail(NAME, f"the sweep was interrupted by {self._received.name}", 128 + number)


class Score:
    """The score of a job that may still be running; ``float()`` waits for it."""

    def __init__(self, jobs: Jobs, child: "Child") -> None:
        self._jobs = jobs
        self._child = child

    def __float__(self) -> float:
        """Raises: ValueError: if there is none, by which Optuna knows that the trial failed."""
        self._jobs.wait(self._child)
        if self._child.score is None:
            raise ValueError(str(self._child))
        return self._child.score

    def __repr__(self) -> str:
        return f"score of {self._child}"


class Child:
    """A job in its process.

    Args:
        folder: its run folder, which holds its config; with a ``last.ckpt`` it goes on from there.
        slot: its place among the jobs that run at once.
        environment: its variables.
        shares_terminal: whether it writes to the terminal, or to ``output.log`` in its folder.
    """

    def __init__(self, folder: Path, slot: int, environment: dict[str, str], shares_terminal: bool) -> None:
        self.folder = folder
        self.slot = slot
        self.status = "running"
        self.reason = ""
        self.is_done = False
        self.score: float | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._began = time.monotonic()
        self._before = sweep_table.read_job_file(folder).get("seconds", 0.0)
        # The child holds it too, so that the job is known to run even if this process is killed.
        self._lock = sweep_table.lock_job(folder)
        if (folder / "checkpoints" / "last.ckpt").exists():
            arguments = [f"resume={folder}"]
        else:
            arguments = [*run_in_folder(folder), f"hydra.job.name={NAME}"]
        self._write()
        self._log = None if shares_terminal else (folder / "output.log").open("ab", buffering=0)
        self.process = subprocess.Popen(
            [*CHILD, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=() if self._lock is None else (self._lock,),
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        """Pass on what it writes to stderr, and keep the end of it."""
        for line in stream:
            self._tail.append(line.decode(errors="replace"))
            if self._log is not None:
                self._log.write(line)
            else:
                print(self._tail[-1], end="", file=sys.stderr, flush=True)

    def finish(self, was_stopped: bool) -> None:
        """Write down how it ended."""
        # A process of its own that outlives it may hold the pipe open.
        self._reader.join(timeout=1)
        code = self.process.returncode
        summary = sweep_table.read_summary(self.folder)
        if code == 0 and summary:
            self.status = "finished"
            self.score = summary["scores"]["val/map_50"]
        else:
            self.reason = reason_of(list(self._tail), code)
            stopped = was_stopped or self.reason.startswith("stopped by SIG") or code in EXIT_CODES_OF_STOPPING
            self.status = "interrupted" if stopped else "failed"
        self._write()
        if self._lock is not None:
            os.close(self._lock)
        if self._log is not None:
            self._log.close()
        self.is_done = True

    def _write(self) -> None:
        seconds = round(self._before + time.monotonic() - self._began, 1)
        content = {"status": self.status, "reason": self.reason, "seconds": seconds}
        replace_text(self.folder / JOB_FILE, json.dumps(content) + "\n")

    def __str__(self) -> str:
        how = f"AP50 {self.score:.3f}" if self.score is not None else self.reason
        return f"{self.folder}: {self.status}, {how}"


def reason_of(lines: list[str], code: int) -> str:
    """Why a process ended, in a line: its own last word, the signal that killed it, or its exit code."""
    lines = [re.sub(r"^\[rank\d+\]: ", "", line.strip()) for line in lines]
    for line in reversed(lines):
        if line.startswith(f"{NAME}: "):
            return line.removeprefix(f"{NAME}: ")
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    for line in reversed(lines):
        if re.match(r"[\w.]+(Error|Exception)\b", line):
            return line
    return "ended without a summary.json" if code == 0 else f"exit code {code}"


def child_environment(wants_traceback: bool, slot: int, at_once: int) -> dict[str, str]:
    """Variables for a job: it is no rank of anybody else's, and it has its share of cores and GPUs.

    What is set already is left as it is.
    """
    environment = {key: value for key, value in os.environ.items() if key not in OF_A_RANK}
    if not wants_traceback:
        environment.pop("HYDRA_FULL_ERROR", None)
    if "SLURM_JOB_NAME" in environment:
        # By this name Lightning starts the ranks itself: here one task of SLURM is one job of the sweep.
        environment["SLURM_JOB_NAME"] = "interactive"
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // at_once)))
        gpus = visible_gpus()
        if len(gpus) > 1:
            share = gpus[slot::at_once] or [gpus[slot % len(gpus)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    return environment


def visible_gpus() -> list[str]:
    """Of NVIDIA, without asking torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


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
    left = [job for job in sweep_table.show(folder) if job.status != "finished"]
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
    failed = [job.folder for job in sweep_table.read_jobs(sweep) if job.status == "failed"]
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
        overrides = sweep_table.job_overrides(hydra_config.overrides.task)
        same = [job for job in sweep_table.read_jobs(sweep) if job.overrides == overrides]
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


def understand(arguments: list[str]) -> list[str]:
    """For ``resume_sweep=<folder>``, the arguments of the sweep that began there; others as they are."""
    key = "resume_sweep="
    resumed = [value_of(argument) for argument in arguments if argument.startswith(key)]
    if not resumed or not resumed[-1]:
        return arguments
    others = [
        argument for argument in arguments if not argument.startswith(key) and argument not in ("-m", "--multirun")
    ]
    return resumed_arguments(Path(resumed[-1]), others)


def resumed_arguments(folder: Path, others: list[str]) -> list[str]:
    """The command line of a sweep that has begun, from what Hydra saved of it.

    Raises:
        ValueError: if the folder holds no sweep, or ``others`` would make its jobs other ones.
    """
    folder = folder.absolute()
    if not (folder / "multirun.yaml").is_file():
        raise ValueError(f"resume_sweep: {folder} is no folder of a sweep, it has no multirun.yaml")
    for other in others:
        key = other.partition("=")[0]
        if not (key in OF_THE_SWEEP or key.startswith("hydra")) or key.startswith("hydra.sweep."):
            raise ValueError(f"resume_sweep: a sweep goes on with its own choices, {other} is not possible")
    config = OmegaConf.load(folder / "multirun.yaml").hydra
    if Path(config.runtime.cwd).is_dir():
        # Relative paths among its arguments are seen from where it began.
        os.chdir(config.runtime.cwd)
    keys_of_others = {other.partition("=")[0] for other in others}
    saved = [
        argument
        for argument in [*config.overrides.hydra, *config.overrides.task]
        if argument.partition("=")[0] not in {*keys_of_others, *NOT_OF_A_RESUMED_SWEEP}
    ]
    quoted = quote(folder)
    arguments = [*saved, *others, f"hydra.sweep.dir={quoted}", "hydra.output_subdir=null", f"resume_sweep={quoted}"]
    if str(config.sweeper._target_).endswith(".OptunaSweeper"):
        arguments = resume_study(folder, arguments, others)
    return ["-m", *arguments]


def resume_study(folder: Path, arguments: list[str], others: list[str]) -> list[str]:
    """Let Optuna begin with the trials that were not finished, and end with as many as were asked for.

    Raises:
        ValueError: if the study was not kept, or all of it is done.
    """
    require_plugins(["hydra/sweeper=optuna"])
    import optuna
    from optuna.trial import TrialState

    config = OmegaConf.load(folder / "multirun.yaml")
    config.hydra.sweep.dir = str(folder)
    sweeper = config.hydra.sweeper
    if sweeper.storage is None:
        raise ValueError("resume_sweep: this study was not kept on disk; hydra.sweeper.storage says where it is")
    asked = [int(other.partition("=")[2]) for other in others if other.startswith("hydra.sweeper.n_trials=")]
    total = asked[-1] if asked else sweeper.n_trials
    left = total - sum(job.status == "finished" for job in sweep_table.read_jobs(folder))
    if left < 1:
        raise ValueError(f"resume_sweep: all {total} trials are finished; more with hydra.sweeper.n_trials=<number>")
    study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage)
    trials = study.get_trials()
    done = [trial.params for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.WAITING)]
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in done:
            study.enqueue_trial(trial.params)
            done.append(trial.params)
    given_anew = {"hydra.sweeper.n_trials": left}
    if sweeper.sampler.get("seed") is not None:
        # From the same seed it would draw what it has drawn.
        given_anew["hydra.sweeper.sampler.seed"] = sweeper.sampler.seed + len(trials)
    kept = [argument for argument in arguments if argument.partition("=")[0] not in given_anew]
    return [*kept, *(f"{key}={value}" for key, value in given_anew.items())]
