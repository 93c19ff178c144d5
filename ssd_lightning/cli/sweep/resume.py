"""The command line that resumes a sweep."""

import os
from pathlib import Path

from omegaconf import OmegaConf

from ssd_lightning.cli.errors import require_plugins
from ssd_lightning.cli.overrides import TAKE_A_VALUE, quote, value_of
from ssd_lightning.cli.run_folders import hold
from ssd_lightning.cli.sweep import table
from ssd_lightning.cli.trust import refuse_untrusted_sweep, trusted_packages_in
from ssd_lightning.run_folder import OF_THE_SWEEP, read_config

NOT_OF_A_RESUMED_SWEEP = (
    *("hydra.mode", "hydra.sweep.dir", "hydra.output_subdir", "hydra/job_logging"),
    *("resume_sweep", "trusted_packages"),
)
"""Saved arguments that the resumed sweep replaces, or that only its user may give."""


def expand_resume_sweep(arguments: list[str]) -> list[str]:
    """Replace ``resume_sweep=<folder>`` by the arguments of the sweep that began in that folder."""
    key = "resume_sweep="
    resumed = [value_of(argument) for argument in arguments if argument.startswith(key)]
    if not resumed or not resumed[-1]:
        return arguments
    others = [
        argument for argument in arguments if not argument.startswith(key) and argument not in ("-m", "--multirun")
    ]
    # Options such as --config-dir, which Hydra wants after all other arguments.
    options = [
        argument
        for before, argument in zip(["", *others], others, strict=False)
        if before in TAKE_A_VALUE or argument.partition("=")[0] in TAKE_A_VALUE
    ]
    return [*resumed_arguments(Path(resumed[-1]), [other for other in others if other not in options]), *options]


def resumed_arguments(folder: Path, others: list[str]) -> list[str]:
    """Return the arguments of a sweep that has begun, as Hydra saved them, with other arguments added.

    Raises:
        ValueError: if the folder holds no sweep, or one that names untrusted code or goes on, or if ``others`` would
            change its jobs.
    """
    folder = folder.absolute()
    if not (folder / "multirun.yaml").is_file():
        raise ValueError(f"resume_sweep: expected the folder of a sweep, got {folder}, which has no multirun.yaml")
    for other in others:
        key = other.partition("=")[0]
        if not (key in OF_THE_SWEEP or key.startswith("hydra")) or key.startswith("hydra.sweep."):
            raise ValueError(f"resume_sweep: expected only keys of the sweep itself, got {other}. Try a new sweep.")
    file = folder / "multirun.yaml"
    try:
        config = OmegaConf.create(read_config(file))
    except ValueError as error:
        raise ValueError(f"resume_sweep: {error}") from error
    if "hydra" not in config or "overrides" not in config.hydra:
        raise ValueError(f"resume_sweep: expected the config of a sweep, got {file}")
    keys_of_others = {other.partition("=")[0] for other in others}
    saved = [
        argument
        for argument in [*config.hydra.overrides.hydra, *config.hydra.overrides.task]
        if argument.partition("=")[0].lstrip("+") not in {*keys_of_others, *NOT_OF_A_RESUMED_SWEEP}
    ]
    refuse_untrusted_sweep(OmegaConf.to_container(config), saved, file, trusted_packages_in(others))
    hold(folder, "resume_sweep", "a sweep that has ended", "Try again when it has ended.")
    if Path(config.hydra.runtime.cwd).is_dir():
        # Relative paths among the saved arguments are relative to the folder where the sweep began.
        os.chdir(config.hydra.runtime.cwd)
    quoted = quote(folder)
    arguments = [*saved, *others, f"hydra.sweep.dir={quoted}", "hydra.output_subdir=null", f"resume_sweep={quoted}"]
    if str(config.hydra.sweeper._target_).endswith(".OptunaSweeper"):
        arguments = resume_study(folder, arguments, others)
    return ["-m", *arguments]


def resume_study(folder: Path, arguments: list[str], others: list[str]) -> list[str]:
    """Enqueue the unfinished trials of an Optuna study, and return arguments for the number of trials that are left.

    Raises:
        ValueError: if the study was not stored, or if all of its trials are finished.
    """
    require_plugins(["hydra/sweeper=optuna"])
    import optuna
    from optuna.trial import TrialState

    config = OmegaConf.load(folder / "multirun.yaml")
    config.hydra.sweep.dir = str(folder)
    sweeper = config.hydra.sweeper
    typed = [value_of(other) for other in others if other.startswith("hydra.sweeper.storage=")]
    storage = typed[-1] if typed else sweeper.storage
    if storage is None:
        raise ValueError("resume_sweep: expected a study on disk, got hydra.sweeper.storage=null")
    if not typed and not storage.startswith("sqlite:///"):
        raise ValueError(
            f"resume_sweep: expected a study in a file, got {storage}. "
            "Try hydra.sweeper.storage=<the same> on the command line if you trust it."
        )
    asked = [int(other.partition("=")[2]) for other in others if other.startswith("hydra.sweeper.n_trials=")]
    total = asked[-1] if asked else sweeper.n_trials
    left = total - sum(job.status == "finished" for job in table.read_jobs(folder))
    if left < 1:
        raise ValueError(
            f"resume_sweep: expected unfinished trials, got {total} that are finished. "
            "Try hydra.sweeper.n_trials=<a larger number>."
        )
    study = optuna.load_study(study_name=sweeper.study_name, storage=storage)
    trials = study.get_trials()
    done = [trial.params for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.WAITING)]
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in done:
            study.enqueue_trial(trial.params)
            done.append(trial.params)
    replaced = {"hydra.sweeper.n_trials": left}
    if sweeper.sampler.get("seed") is not None:
        # With the same seed the sampler would draw the same values again.
        replaced["hydra.sweeper.sampler.seed"] = sweeper.sampler.seed + len(trials)
    kept = [argument for argument in arguments if argument.partition("=")[0] not in replaced]
    return [*kept, *(f"{key}={value}" for key, value in replaced.items())]
