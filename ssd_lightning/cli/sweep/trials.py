"""The trials of a search by Optuna while they run: chosen, started, watched, pruned, and told to the study."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import optuna
from hydra.plugins.launcher import Launcher
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from ssd_lightning.cli.sweep import table
from ssd_lightning.cli.sweep.jobs import NAME, PRUNING_FILE, Jobs
from ssd_lightning.cli.sweep.space import Space
from ssd_lightning.run_folder import JOB_FILE, SCORE_NAMES, read_metrics, replace_text

OF_THE_STORAGE = (OSError, ImportError, RuntimeError, SQLAlchemyError, optuna.exceptions.OptunaError)
"""Errors of a storage that cannot be used: not reachable, without its driver, or written by an older Optuna."""

SECONDS_BETWEEN_LOOKS = 1.0
"""Time between two looks at the files of jobs that may run on other machines."""

BEATS = 4
"""Number of heartbeats of a trial in the time after which it would count as lost."""


def watched_column(objectives: Collection[str]) -> str | None:
    """Return the column of ``metrics.csv`` that a pruner sees; None if there are several, or it is known at the end."""
    first, *others = objectives
    return f"val/{first}" if first in SCORE_NAMES and not others else None


class Trial:
    """A trial that runs.

    Args:
        asked: the trial of Optuna.
        arguments: the arguments of each of its jobs.
    """

    def __init__(self, asked: optuna.Trial, arguments: list[list[str]]) -> None:
        self.asked = asked
        self.waiting = arguments
        self.count = len(arguments)
        self.folders: list[Path | None] = []
        """Folders of the jobs that have begun; None for a job that could not start."""
        self.reported = 0
        """Number of validations that have been reported."""
        self.read_version: tuple[int, int] | None = None
        self.is_pruned = False


class Trials:
    """The trials of a sweep.

    Args:
        study: the study, with its sampler and its pruner.
        space: what the jobs are composed from.
        objectives: names of the values of a trial.
        sweep: the folder of the sweep.
        stale_after: seconds without a heartbeat after which a trial counts as lost.
        launcher: starts the jobs.
        jobs: the jobs of this process; None if the launcher runs them elsewhere, and returns at their end.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        objectives: list[str],
        sweep: Path,
        stale_after: float,
        launcher: Launcher,
        jobs: Jobs | None,
    ) -> None:
        self._study = study
        self._space = space
        self._objectives = objectives
        self._sweep = sweep
        self._stale_after = stale_after
        self._launcher = launcher
        self._jobs = jobs
        self._trials: list[Trial] = []
        self._launching: Trial | None = None
        self._is_exhausted = False

    def run(self, count: int, at_once: int) -> None:
        """Run a number of trials.

        Args:
            count: the number of trials.
            at_once: number of trials to choose at once, if the jobs run elsewhere.
        """
        # A sampler that has tried everything stops the loop of Study.optimize, in whose place this loop stands.
        self._study.stop = self._stop  # type: ignore[method-assign]
        if self._jobs is not None:
            self._jobs.watch = self._watch
        with self._heartbeats(), self._failing_the_rest():
            while count > 0 and not self._is_exhausted:
                if self._jobs is None:
                    chosen = [self._choose() for _ in range(min(at_once, count))]
                    self._launch([(trial, job) for trial in chosen for job in trial.waiting])
                else:
                    chosen = [self._choose()]
                    for job in list(chosen[0].waiting):
                        if not self._is_decided(chosen[0]):
                            self._launch([(chosen[0], job)])
                    chosen[0].waiting.clear()
                count -= len(chosen)
                self._tell_ended()
            while self._trials:
                assert self._jobs is not None
                self._jobs.wait(lambda: any(self._has_ended(trial) for trial in self._trials))
                self._tell_ended()
            self._repeat_lost()

    def _stop(self) -> None:
        self._is_exhausted = True

    def _choose(self) -> Trial:
        """Ask for the values of a trial."""
        self._repeat_lost()
        asked = self._study.ask(self._space.distributions)
        asked.set_user_attr("sweep", str(self._sweep))
        asked.set_user_attr("heartbeat", time.time())
        trial = Trial(asked, self._space.jobs(asked.params))
        self._trials.append(trial)
        return trial

    def _launch(self, batch: list[tuple[Trial, list[str]]]) -> None:
        """Start jobs. If another launcher runs the jobs, wait until they have ended."""
        self._launching = batch[0][0]
        former = self._job_files()
        prunes_elsewhere = self._jobs is None and not isinstance(self._study.pruner, optuna.pruners.NopPruner)
        lost: Exception | None = None
        with self._watching_elsewhere(batch) if prunes_elsewhere else contextlib.nullcontext():
            try:
                ended = self._launcher.launch([arguments for _, arguments in batch], initial_job_idx=len(former))
                folders = [job.return_value for job in ended]
            except Exception as error:
                if self._jobs is not None:
                    raise
                # A launcher gives up all jobs if one of them, such as one that was killed, has no result.
                print(f"{NAME}: the launcher has lost a job: {error}", file=sys.stderr)
                lost, folders = error, self._wait_for_begun(batch, former)
        for (trial, arguments), folder in zip(batch, folders, strict=True):
            if lost is not None and folder is None:
                continue
            trial.waiting.remove(arguments)
            if folder not in trial.folders:
                trial.folders.append(folder)
        if lost is not None and None in folders:
            # A job that has not begun is in no table. What the others found is kept, and the sweep fails.
            self._tell_ended()
            raise lost

    def _job_files(self) -> dict[Path, int]:
        """Return the folders of the jobs that have begun, each with the time at which its state was written."""
        folders = [job.folder for job in table.read_jobs(self._sweep) if job.folder is not None]
        return {folder: (folder / JOB_FILE).stat().st_mtime_ns for folder in folders}

    def _wait_for_begun(self, batch: list[tuple[Trial, list[str]]], former: Mapping[Path, int]) -> list[Path | None]:
        """Wait for the jobs that a launcher has given up, and return their folders; None for one that has not begun.

        Args:
            batch: the jobs.
            former: the jobs before the launch, of which one may have the same values.
        """
        wanted = [table.job_overrides(arguments) for _, arguments in batch]
        while any(job.status == "running" and job.overrides in wanted for job in table.read_jobs(self._sweep)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        begun = [folder for folder, written in self._job_files().items() if former.get(folder) != written]
        found: list[Path | None] = []
        for values in wanted:
            folder = next((folder for folder in begun if table.read_job(folder).overrides == values), None)
            if folder is not None:
                begun.remove(folder)  # Two jobs may have the same values.
            found.append(folder)
        return found

    @contextlib.contextmanager
    def _watching_elsewhere(self, batch: list[tuple[Trial, list[str]]]) -> Iterator[None]:
        """Watch the jobs of a launcher by the files in their folders, while the launcher waits for their end."""
        asked: set[Path] = set()

        def prune(folder: Path, reason: str) -> None:
            if folder not in asked:
                replace_text(folder / PRUNING_FILE, reason)
                asked.add(folder)

        def look() -> None:
            running = [job for job in table.read_jobs(self._sweep) if job.status == "running"]
            for trial, arguments in batch:
                for job in running:
                    assert job.folder is not None
                    if job.overrides == table.job_overrides(arguments):
                        self._watch_job(trial, job.folder, arguments == trial.waiting[0], prune)

        reported = set()

        def watch() -> None:
            try:
                look()
            except (ValueError, *OF_THE_STORAGE) as error:
                # A folder was moved, or a disk or a database is away for a while. The jobs go on all the same.
                if str(error) not in reported:
                    print(f"{NAME}: no job is pruned until the next look, because of: {error}", file=sys.stderr)
                reported.add(str(error))

        try:
            with _repeated(watch, SECONDS_BETWEEN_LOOKS):
                yield
        finally:
            for folder in asked:
                (folder / PRUNING_FILE).unlink(missing_ok=True)

    def _watch(self) -> None:
        """Watch the jobs of this process."""
        assert self._jobs is not None
        for folder in self._jobs.folders():
            trial = next((trial for trial in self._trials if folder in trial.folders), self._launching)
            assert trial is not None
            if folder not in trial.folders:
                trial.folders.append(folder)
            self._watch_job(trial, folder, trial.folders[0] == folder, self._jobs.prune)

    def _watch_job(self, trial: Trial, folder: Path, is_first: bool, prune: Callable[[Path, str], None]) -> None:
        """Report the new validations of a job that runs, and stop it if its trial is to be pruned.

        Only the first job of a trial is reported: its score is compared with those of other trials for the same seed.
        """
        if is_first and not trial.is_pruned:
            trial.is_pruned = self._report(trial, folder)
        if trial.is_pruned:
            prune(folder, f"validation {trial.reported} of trial {trial.asked.number} was not good enough")

    def _report(self, trial: Trial, folder: Path, may_prune: bool = True) -> bool:
        """Report the new validations of a job, up to one at which the trial is to be pruned, and return True for that.

        Args:
            trial: the trial.
            folder: the folder of its first job.
            may_prune: False to report all validations.
        """
        key = watched_column(self._objectives)
        file = folder / "metrics.csv"
        version = (file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None
        if key is None or version == trial.read_version:
            return False
        trial.read_version = version
        scores = [row[key] for _, row in sorted(read_metrics(file).items()) if key in row]
        for score in scores[trial.reported :]:
            trial.reported += 1
            try:
                trial.asked.report(score, trial.reported)
            except optuna.exceptions.UpdateFinishedTrialError:
                return False  # Another sweep took the trial for lost, which is said at its end.
            if may_prune and trial.asked.should_prune():
                return True
        return False

    def _has_ended(self, trial: Trial) -> bool:
        running = self._jobs.folders() if self._jobs is not None else []
        return not trial.waiting and not any(folder in running for folder in trial.folders)

    def _is_decided(self, trial: Trial) -> bool:
        """Return True if a job of a trial was pruned or has failed, after which no other job can help."""
        running = self._jobs.folders() if self._jobs is not None else []
        return trial.is_pruned or any(_state(folder) != "finished" for folder in trial.folders if folder not in running)

    def _tell_ended(self) -> None:
        """Tell the study the values of the trials that have ended."""
        for trial in [trial for trial in self._trials if self._has_ended(trial)]:
            self._trials.remove(trial)
            if not trial.is_pruned and trial.folders[0] is not None:
                # The job may have ended soon after its last validation, or have run elsewhere.
                self._report(trial, trial.folders[0], may_prune=False)
            jobs = [table.read_job(folder) for folder in trial.folders if folder is not None]
            values = table.mean_values(jobs, self._objectives) if len(jobs) == trial.count else None
            if values is not None:
                self._tell(trial, TrialState.COMPLETE, values)
            else:
                is_pruned = trial.is_pruned or any(job.status == "pruned" for job in jobs)
                # A trial with a job that can be resumed is repeated by resume_sweep, which leaves its other jobs alone.
                is_pruned = is_pruned and all(job.status in table.ENDED for job in jobs)
                self._tell(trial, TrialState.PRUNED if is_pruned else TrialState.FAIL)

    def _tell(self, trial: Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        try:
            self._study.tell(trial.asked, values, state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            print(f"trial {trial.asked.number} was taken for lost by another sweep, which repeats it", flush=True)

    def _repeat_lost(self) -> None:
        """Enqueue the trials whose sweep is gone, such as one that was killed on another machine."""
        own = {trial.asked.number for trial in self._trials}
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            assert trial.datetime_start is not None
            heartbeat = trial.user_attrs.get("heartbeat", trial.datetime_start.timestamp())
            if trial.number in own or time.time() - heartbeat < self._stale_after:
                continue
            try:
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # Another sweep was first.
            self._study.enqueue_trial(trial.params)

    @contextlib.contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Renew the time by which other sweeps see that the trials of this sweep go on.

        Optuna has heartbeats of its own, but only in databases, and not with ask and tell.
        """

        def beat() -> None:
            for trial in list(self._trials):
                # A trial may end in the meantime, and a database may be away until the next beat.
                with contextlib.suppress(*OF_THE_STORAGE):
                    trial.asked.set_user_attr("heartbeat", time.time())

        with _repeated(beat, self._stale_after / BEATS):
            yield

    @contextlib.contextmanager
    def _failing_the_rest(self) -> Iterator[None]:
        """Tell the study the end of trials that an error or a signal ends."""
        try:
            yield
        finally:
            for trial in self._trials:
                self._tell(trial, TrialState.FAIL)


@contextlib.contextmanager
def _repeated(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do some work again and again in a thread while the block runs, with this time between."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(seconds):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _state(folder: Path | None) -> str:
    return table.read_job(folder).status if folder is not None else "interrupted"
