"""The sweeper ``hydra/sweeper=optuna``: Optuna chooses the values of each trial, whose jobs run as those of a grid.

A trial is one job, or one job for each value of ``seed``; its value is then the mean over the seeds. Only the process
of the sweep speaks with the study. It reads what its jobs write to their folders, so that a job needs neither Optuna
nor the storage, and runs alike on any number of devices.
"""

import math
import os
import socket
import warnings
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, QMCSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import TrialState

from ssd_lightning.cli.sweep.space import Space, read_space
from ssd_lightning.cli.sweep.start import current_jobs
from ssd_lightning.cli.sweep.trials import OF_THE_STORAGE, Trials, watched_column
from ssd_lightning.require import require_whole_number
from ssd_lightning.run_folder import SCORE_NAMES, replace_text

OBJECTIVES = (*SCORE_NAMES, "images_per_second", "train_seconds", "parameters", "default_boxes")
"""Names that ``hydra.sweeper.objectives`` may have: scores of the validation, and numbers of ``summary.json``."""

ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)


def search(
    config: DictConfig,
    arguments: Sequence[str],
    launcher: Launcher,
    config_loader: Any,
    *,
    sampler: partial[optuna.samplers.BaseSampler],
    pruner: optuna.pruners.BasePruner,
    storage: str,
    study_name: str,
    objectives: Mapping[str, str],
    n_trials: int,
    n_jobs: int,
    stale_after: float,
    params: Mapping[str, Any],
) -> None:
    """Run the trials of a sweep. The arguments after ``config_loader`` are those of ``hydra.sweeper``.

    Raises:
        ValueError: naming the key of a setting that cannot be used.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    require_whole_number("hydra.sweeper.n_trials", n_trials, 1)
    sweep = Path(config.hydra.sweep.dir).absolute()
    space = read_space(config, params or {}, arguments, OverridesParser.create(config_loader))
    study = open_study(storage, study_name, objectives)
    is_shared = storage != f"sqlite:///{config.hydra.sweep.dir}/study.db"
    total = n_trials
    if sampler.func is BruteForceSampler:
        total = min(total, _number_of_combinations(space))
    is_resumed = config.get("resume_sweep") is not None
    left = _resume(study, total, str(sweep) if is_shared else None) if is_resumed else total
    study.sampler = _seeded(sampler, study, f"{socket.gethostname()}{sweep}" if is_shared else "")
    study.pruner = pruner
    # Other launchers run the jobs in processes that they start, or on other machines.
    is_here = str(config.hydra.launcher._target_).endswith(".BasicLauncher")
    jobs = current_jobs.get() if is_here else None
    if not isinstance(pruner, optuna.pruners.NopPruner) and watched_column(objectives) is None:
        raise ValueError(f"hydra/sweeper/pruner: expected one score as the objective, got {', '.join(objectives)}")
    Trials(study, space, list(objectives), sweep, stale_after, launcher, jobs).run(left, n_jobs)
    _write_results(study, sweep)


def open_study(storage: str, name: str, objectives: Mapping[str, str]) -> Study:
    """Open a study, or create it.

    Args:
        storage: a URL of a database, or the file of a journal.
        name: the name of the study in the storage.
        objectives: what is optimized, each with ``maximize`` or ``minimize``.

    Raises:
        ValueError: naming the setting that cannot be used.
    """
    for key, direction in objectives.items():
        if key not in OBJECTIVES:
            raise ValueError(f"hydra.sweeper.objectives: expected {', '.join(OBJECTIVES)}, got {key}")
        if direction not in ("maximize", "minimize"):
            raise ValueError(f"hydra.sweeper.objectives.{key}: expected maximize or minimize, got {direction}")
    if not objectives:
        raise ValueError("hydra.sweeper.objectives: expected at least one, got none")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: list[Any] = list(objectives.values())
    try:
        found: Any = storage
        if "://" not in storage:
            found = JournalStorage(JournalFileBackend(storage))
        study = optuna.create_study(study_name=name, storage=found, directions=directions, load_if_exists=True)
    except OF_THE_STORAGE as error:
        raise ValueError(f"hydra.sweeper.storage: {storage} cannot be used: {error}") from error
    former = [direction.name.lower() for direction in study.directions]
    if former != directions:
        raise ValueError(f"hydra.sweeper.objectives: expected those of the study, {former}, got {directions}")
    return study


def _number_of_combinations(space: Space) -> int:
    """Return the number of trials of a grid."""
    counts = []
    for name, found in space.distributions.items():
        if isinstance(found, CategoricalDistribution):
            counts.append(len(found.choices))
        elif isinstance(found, FloatDistribution) and found.step is None:
            raise ValueError(f"{name}: expected a choice or a range for the sampler grid, got an interval")
        else:
            counts.append(round((found.high - found.low) / found.step) + 1)  # type: ignore[attr-defined]
    return math.prod(counts)


def _resume(study: Study, total: int, sweep: str | None) -> int:
    """Enqueue the trials of a sweep that did not end well, and return the number of trials that are left to run.

    Args:
        study: the study.
        total: the number of trials that the sweep is to have.
        sweep: the folder by which trials of this sweep are told from those of others; None if there are no others.

    Raises:
        ValueError: if all trials have ended well.
    """
    trials = study.get_trials()
    own = [trial for trial in trials if sweep is None or trial.user_attrs.get("sweep") == sweep]
    left = total - sum(trial.state in ENDED_WELL for trial in own)
    if left < 1:
        raise ValueError(
            f"resume_sweep: expected unfinished trials, got {total} that have ended. "
            "Try hydra.sweeper.n_trials=<a larger number>."
        )
    done = [
        trial.params
        for trial in trials
        if trial.state in (*ENDED_WELL, TrialState.WAITING) or (trial.state == TrialState.RUNNING and trial not in own)
    ]
    for trial in own:
        if trial.state == TrialState.RUNNING:  # Its sweep was killed.
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in done:
            study.enqueue_trial(trial.params)
            done.append(trial.params)
    return left


def _seeded(sampler: partial[BaseSampler], study: Study, own_name: str) -> BaseSampler:
    """Return the sampler with a seed that no earlier and no other sweep of the study has drawn with.

    With the same seed the sampler would draw the same values again. QMC needs one seed for the whole study instead.

    Args:
        sampler: the sampler, which takes its seed.
        study: the study.
        own_name: the name by which this sweep is told from others that work on the study; empty if there are none.
    """
    seed = sampler.keywords.get("seed")
    if seed is not None and sampler.func is not QMCSampler:
        seed = (seed + len(study.get_trials(deepcopy=False)) + zlib.crc32(os.fsencode(own_name))) % 2**32
    try:
        return sampler(seed=seed)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"hydra.sweeper.sampler: {error}") from error


def _write_results(study: Study, sweep: Path) -> None:
    """Write and print the best trial, or with several objectives the trials that no other beats in all of them."""
    best = [trial for trial in study.best_trials if trial.values is not None]
    if not best:
        return
    if len(study.directions) == 1:
        results: dict[str, Any] = {"best_params": best[0].params, "best_value": best[0].value}
    else:
        results = {"solutions": [{"params": trial.params, "values": trial.values} for trial in best]}
    replace_text(
        sweep / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create({"name": "optuna", **results}))
    )
