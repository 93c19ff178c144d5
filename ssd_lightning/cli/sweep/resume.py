"""Arguments that resume a sweep."""

import os
from pathlib import Path

from omegaconf import OmegaConf

from ssd_lightning.cli.errors import require_plugins
from ssd_lightning.cli.overrides import quote, value_of
from ssd_lightning.cli.sweep import table
from ssd_lightning.run_folder import OF_THE_SWEEP

NOT_OF_A_RESUMED_SWEEP = ("hydra.mode", "hydra.sweep.dir", "hydra.output_subdir", "resume_sweep")
"""Saved arguments that are given anew."""


def expand_resume_sweep(arguments: list[str]) -> list[str]:
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
    left = total - sum(job.status == "finished" for job in table.read_jobs(folder))
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
