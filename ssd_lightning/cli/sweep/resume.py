"""The command line that resumes a sweep."""

import os
from pathlib import Path

from omegaconf import OmegaConf

from ssd_lightning.cli.overrides import TAKE_A_VALUE, quote, value_of
from ssd_lightning.cli.run_folders import hold
from ssd_lightning.cli.trust import refuse_untrusted_sweep, trusted_packages_in
from ssd_lightning.run_folder import OF_THE_SWEEP, SWEEP_FILE, config_of_sweep, read_config

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
    if not (folder / SWEEP_FILE).is_file():
        raise ValueError(f"resume_sweep: expected the folder of a sweep, got {folder}, which has no multirun.yaml")
    for other in others:
        key = other.partition("=")[0]
        if not (key in OF_THE_SWEEP or key.startswith("hydra")) or key.startswith("hydra.sweep."):
            raise ValueError(f"resume_sweep: expected only keys of the sweep itself, got {other}. Try a new sweep.")
    file = config_of_sweep(folder)
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
    return ["-m", *arguments]
