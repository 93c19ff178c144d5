"""``ssd-train -m``: every job of a sweep runs in a process of its own.

Hydra composes the jobs and saves the config of each job in the job's folder. A child process then runs that config as
an ordinary single run. So a job may use any number of devices, and no job leaves anything in memory for the next. The
process of the sweep imports neither torch nor Lightning.

The state of a job is in ``job.json`` in the job's folder, beside the files of the run.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.folder_lock import INHERITED, FolderInUseError, FolderLock
from ssd_lightning.cli.run_folders import run_in_folder
from ssd_lightning.cli.sweep import table
from ssd_lightning.run_folder import JOB_FILE, remove_unfinished_files, replace_text
from ssd_lightning.signals import STARTED_BY, STOPPING, heard, leave_closed_terminal, signal_that_ended

NAME = "ssd-train"

CHILD = [sys.executable, "-P", "-m", "ssd_lightning.cli.train"]
"""The command that runs a job. As in ``ssd-train``, files in the current folder are not imported as modules."""

OF_A_RANK = ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
"""Environment variables of a rank. A job must not inherit them, since it starts ranks of its own."""

PRUNING_FILE = "pruning.txt"
"""File in a job's folder by which the process of the sweep asks for the end of a job that a launcher runs."""

POLL_SECONDS = 0.1

TAIL_LINES = 60
"""Number of last lines of a job's stderr that are searched for the reason of a failure."""


class Jobs:
    """The jobs that this process runs, and their end when the process receives a signal.

    Args:
        wants_traceback: True if a job that fails shows its traceback.
    """

    def __init__(self, wants_traceback: bool = False) -> None:
        self.wants_traceback = wants_traceback
        self.folder: Path | None = None
        self.at_once = 1
        self.stop_on_failure = False
        self.watch: Callable[[], object] = lambda: None
        """Called again and again while jobs run."""
        self._running: list[Child] = []
        self.received: signal.Signals | None = None
        """The signal that has ended the jobs."""
        self._failed: Child | None = None
        self._works = False
        self._former: dict[signal.Signals, Any] = {}

    def begin(self, folder: Path, at_once: int, stop_on_failure: bool) -> None:
        """Begin a sweep, and pass signals that ask to stop on to its jobs, which then save a checkpoint and stop."""
        self.folder, self.at_once, self.stop_on_failure = folder, at_once, stop_on_failure
        if threading.current_thread() is threading.main_thread():
            self._former = heard()
            for number in self._former:
                signal.signal(number, self._receive)

    def end(self) -> None:
        """Wait for the jobs that still run, and restore the signal handlers."""
        try:
            if self._running:
                self.wait()
        finally:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._former = {}

    def run(self, folder: Path, trusted_packages: Sequence[str] = ()) -> None:
        """Start a job, and wait until another may start. If only one job runs at once, this is its end."""
        with self._working():
            self._start(folder, trusted_packages)
            self._wait(lambda: len(self._running) < self.at_once)

    def folders(self) -> list[Path]:
        """Return the folders of the jobs that run."""
        return [child.folder for child in self._running]

    def prune(self, folder: Path, reason: str) -> None:
        """Stop a job that is not worth its time, which first saves a checkpoint."""
        for child in self._running:
            if child.folder == folder:
                child.prune(reason)

    def prune_as_asked(self) -> None:
        """Stop the jobs that the process of the sweep, perhaps on another machine, has asked to prune."""
        for child in self._running:
            # A shared folder may be away for a moment.
            with contextlib.suppress(OSError):
                child.prune((child.folder / PRUNING_FILE).read_text())

    def wait(self, is_over: Callable[[], bool] | None = None) -> None:
        """Wait for a condition, or for the end of all jobs."""
        with self._working():
            self._wait(is_over or (lambda: not self._running))

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self._works = True
        try:
            yield
        finally:
            self._works = False

    def _start(self, folder: Path, trusted_packages: Sequence[str]) -> "Child":
        assert self.folder is not None
        slot = next(slot for slot in range(self.at_once) if slot not in [child.slot for child in self._running])
        environment = child_environment(self.wants_traceback, slot, self.at_once)
        child = Child(folder, slot, environment, self.at_once == 1, trusted_packages)
        self._running.append(child)
        table.update(self.folder)
        if self.received is not None:  # The signal came while the job was started.
            child.process.send_signal(self.received)
        return child

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Wait for a condition. Exit if no other job may start and all jobs have ended."""
        while True:
            self._collect()
            ends = self.received is not None or (self.stop_on_failure and self._failed is not None)
            if ends and not self._running:
                self._stop_sweep()
            self.watch()
            if not ends and is_over():
                return
            time.sleep(POLL_SECONDS)

    def _collect(self) -> None:
        assert self.folder is not None or not self._running
        for child in list(self._running):
            if child.process.poll() is None:
                continue
            child.finish(was_stopped=self.received is not None)
            self._running.remove(child)
            if child.status == "failed":
                self._failed = child
            if self.folder is not None:
                table.update(self.folder)
            if self.at_once > 1:
                print(child, flush=True)

    def _stop_sweep(self) -> NoReturn:
        # Exits, since Hydra would take an exception for the failure of one job and start the next.
        if self.received is not None:
            self._fail_interrupted(self.received)
        assert self._failed is not None
        fail(NAME, f"stop_sweep_on_failure: {self._failed.folder} failed, and no other job starts")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGHUP:
            leave_closed_terminal()
        for child in self._running:
            # A job that already got the signal from the terminal counts both as one request.
            child.process.send_signal(number)
        if not self._works:
            # Hydra is composing, or waits for jobs that run elsewhere.
            self._fail_interrupted(self.received)

    def _fail_interrupted(self, number: signal.Signals) -> NoReturn:
        fail(NAME, f"the sweep was interrupted by {number.name}", 128 + number)


class Child:
    """A job and its process.

    Args:
        folder: the run folder, which holds the config. The job resumes from ``checkpoints/last.ckpt`` if that exists.
        slot: the number of the job among those that run at once.
        environment: the environment variables of the process.
        shares_terminal: True if the job writes to the terminal, False if it writes to ``output.log`` in its folder.
        trusted_packages: packages of the user whose classes the config of a resumed job may name.
    """

    def __init__(
        self,
        folder: Path,
        slot: int,
        environment: dict[str, str],
        shares_terminal: bool,
        trusted_packages: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.slot = slot
        self.status = "running"
        self.reason = ""
        self.score: float | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._began = time.monotonic()
        self._before = table.read_job_file(folder).get("seconds", 0.0)
        try:
            self._lock = FolderLock(folder)
        except FolderInUseError as error:
            raise ValueError(f"resume_sweep: expected a job that has ended, got {folder}, which runs {error}") from None
        remove_unfinished_files(folder)
        if (folder / "checkpoints" / "last.ckpt").exists():
            arguments = [f"resume={folder}"]
            if trusted_packages:
                arguments.append(f"trusted_packages=[{','.join(trusted_packages)}]")
        else:
            arguments = [*run_in_folder(folder), f"hydra.job.name={NAME}"]
        self._write()
        self._log = None if shares_terminal else (folder / "output.log").open("ab", buffering=0)
        self.process = subprocess.Popen(
            [*CHILD, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.PIPE,
            # The job holds the lock too, so that it counts as running even if this process is killed.
            env=environment | {INHERITED: str(self._lock.descriptor), STARTED_BY: str(os.getpid())},
            pass_fds=(self._lock.descriptor,),
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        """Pass on the job's stderr line by line, and keep the last lines."""
        for line in stream:
            self._tail.append(line.decode(errors="replace"))
            if self._log is not None:
                self._log.write(line)
            else:
                print(self._tail[-1], end="", file=sys.stderr, flush=True)

    def prune(self, reason: str) -> None:
        """Ask the job to stop. The job finds the reason in its file, and reports it in place of the signal."""
        if self.status != "pruned":
            self.status, self.reason = "pruned", reason
            self._write()
            self.process.send_signal(signal.SIGTERM)

    def finish(self, was_stopped: bool) -> None:
        """Write down how the job ended."""
        # A process that the job started, and that outlives the job, may hold the pipe open.
        self._reader.join(timeout=1)
        code = self.process.returncode
        summary = table.read_summary(self.folder)
        if code == 0 and summary:
            self.status, self.reason = "finished", ""
            self.score = summary["scores"]["val/map_50"]
        else:
            reason = reason_of(list(self._tail), code)
            stopped = was_stopped or reason.startswith("stopped by SIG") or signal_that_ended(code) in STOPPING
            if self.status != "pruned" or not (stopped or code == 0):
                self.status, self.reason = "interrupted" if stopped else "failed", reason
        self._write()
        self._lock.release()
        if self._log is not None:
            self._log.close()

    def _write(self) -> None:
        seconds = round(self._before + time.monotonic() - self._began, 1)
        content = {"status": self.status, "reason": self.reason, "seconds": seconds}
        replace_text(self.folder / JOB_FILE, json.dumps(content) + "\n")

    def __str__(self) -> str:
        how = f"AP50 {self.score:.3f}" if self.score is not None else self.reason
        return f"{self.folder}: {self.status}, {how}"


def reason_of(lines: list[str], code: int) -> str:
    """Return in one line why a process ended: its own message, the signal that killed it, or the exit code."""
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
    """Return the environment variables of a job: those of this process, without those of a rank.

    Jobs that run at once share the cores and the GPUs. Variables that the user has set are kept.
    """
    environment = {key: value for key, value in os.environ.items() if key not in OF_A_RANK}
    if not wants_traceback:
        environment.pop("HYDRA_FULL_ERROR", None)
    if "SLURM_JOB_NAME" in environment:
        # This name lets Lightning start the ranks itself, because a task of SLURM is a whole job of the sweep.
        environment["SLURM_JOB_NAME"] = "interactive"
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // at_once)))
        gpus = visible_gpus()
        if len(gpus) > 1:
            share = gpus[slot::at_once] or [gpus[slot % len(gpus)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    return environment


def visible_gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
