"""What all commands share: where the configs are, help that answers at once, errors in one line, folders kept safe.

Nothing heavy is imported here: torch and lightning come with the task, after the arguments have been understood.
"""

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ssd_lightning.cli import overrides, ranks
from ssd_lightning.cli.errors import explain, fail, require_plugins
from ssd_lightning.cli.help import Command, help_text
from ssd_lightning.cli.run_folders import continue_in_run_folder, what_is_left
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.signals import Interrupted, interruptible

WRITE_NOTHING = ["hydra.output_subdir=null", "hydra/job_logging=stdout"]
"""Arguments by which Hydra keeps no files of this process."""


def run(command: Command, task: Callable[[DictConfig], Any], expand: Callable[[list[str]], list[str]] = list) -> None:
    """Compose the config of a command from ``conf/`` and the command line, and call ``task`` with it.

    A user's mistake is reported in one line, and the exit code is 1. HYDRA_FULL_ERROR=1 shows the traceback.

    Args:
        command: the command that was typed.
        task: the work to do. It imports what takes long.
        expand: rewrites arguments that Hydra does not know into arguments that it does.
    """
    name = command.name
    # Wherever it stands: Hydra's parser refuses what comes after an option in the middle.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    if any(argument in ("--help", "-h") for argument in arguments):
        print(help_text(command))
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    ranks.wants_traceback = wants_traceback
    # Hydra would print part of a traceback and hide the rest; here it hands the error over.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _refuse_lists_for_groups(arguments)
        require_plugins(arguments)
        arguments = continue_in_run_folder(expand(overrides.readable(arguments)))
        sys.argv[1:] = [*arguments, *([] if ranks.is_first() else WRITE_NOTHING)]
        hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=command.config)(_tidy(name, task))()
    except KeyboardInterrupt:
        fail(name, "interrupted", exit_code=130)
    except Exception as error:
        explanation = explain(error)
        if wants_traceback or explanation is None:
            raise
        fail(name, explanation)
    finally:
        if not wants_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _tidy(name: str, task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """The task; if it fails before it has written anything, its folder goes with it."""

    @functools.wraps(task)
    def tidy_task(config: DictConfig) -> Any:
        try:
            with interruptible():
                overrides.make_data_folders_absolute(config)
                return task(config)
        except (Exception, Interrupted) as error:
            hydra_config = HydraConfig.get()
            folder = Path(hydra_config.runtime.output_dir)
            own = {folder / ".hydra", folder / f"{hydra_config.job.name}.log"}
            is_new = config.get("resume") is None and folder != Path.cwd()
            if is_new and ranks.is_first() and set(folder.iterdir()) <= own:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, ranks.FailedElsewhere):
                # Not as an exception, of which Hydra would tell.
                sys.exit(1)
            if isinstance(error, Interrupted):
                if not ranks.is_first():
                    raise
                fail(name, f"{error}; {what_is_left(config, folder)}", error.code)
            if type(error).__name__ == "StoppedBySignal":
                if not ranks.is_first():
                    sys.exit(0)
                # Not as an exception, after which a sweep would go on with its next job.
                fail(name, f"{error}; {what_is_left(config, folder)}")
            explanation = None if ranks.wants_traceback else explain(error)
            if explanation is not None and hydra_config.mode == RunMode.RUN:
                # Not as an exception: Hydra would put a line with all overrides before it.
                fail(name, explanation)
            raise

    return tidy_task


def _refuse_lists_for_groups(arguments: list[str]) -> None:
    """Where people type numbers for a group's option, Hydra fails in its own code."""
    for group, key in (("box_scales", "scales"), ("aspect_ratios", "aspect_ratios")):
        for argument in arguments:
            if argument.startswith(f"{group}=["):
                raise ValueError(
                    f"{group}: expected the name of an option, got {argument.partition('=')[2]}; "
                    f"numbers go to model.default_boxes.{key}=[…]"
                )
