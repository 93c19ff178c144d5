"""The start of every command: config, help, one-line errors and tidy run folders.

Nothing heavy is imported here: torch and Lightning are imported by the task, once the arguments have been checked.
"""

import contextlib
import functools
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ssd_lightning.cli import overrides, ranks
from ssd_lightning.cli.errors import explain, fail, require_plugins
from ssd_lightning.cli.folder_lock import LOCK_FILE
from ssd_lightning.cli.help import Command, help_text
from ssd_lightning.cli.keys import check_keys
from ssd_lightning.cli.run_folders import holding_folders, naming_held_folder, resume_in_run_folder, state_of
from ssd_lightning.cli.values import check_values
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.signals import (
    Interrupted,
    StoppedBySignal,
    end_with_the_process_that_started_this,
    interruptible,
)

NOTHING_TO_DO_ABOUT = (
    # Lightning calls what torch has deprecated.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # A run on one machine of a cluster needs no srun.
    "The `srun` command is available on your system but is not used",
    # Optuna says this of some samplers and pruners.
    r"\w+ is experimental \(supported from",
)
"""Warnings of libraries, from their beginning, about which a user of the commands can do nothing."""

WRITE_NOTHING = ["hydra.output_subdir=null"]
"""Arguments that keep Hydra from writing files for this process."""


@holding_folders()
def run(command: Command, task: Callable[[DictConfig], Any], expand: Callable[[list[str]], list[str]] = list) -> None:
    """Compose the config of a command from ``conf/`` and the command line, and call ``task`` with it.

    A user's mistake is reported in one line, and the exit code is 1. HYDRA_FULL_ERROR=1 shows the traceback.

    Args:
        command: the command that was typed.
        task: the work to do. It imports what takes long.
        expand: rewrites arguments that Hydra does not know into arguments that it does.
    """
    # Hydra's parser refuses arguments after an option, so options go first wherever they were typed.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    if any(argument in ("--help", "-h") for argument in arguments):
        try:
            text = help_text(command, arguments)
        except ValueError as error:
            fail(command.name, str(error))
        _print_to_a_pipe(text)
        return
    end_with_the_process_that_started_this(can_save=ranks.is_first())
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name of a file may hold bytes that are no text, and a printed command should name the same file.
        sys.stdout.reconfigure(errors="surrogateescape")
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    ranks.wants_traceback = wants_traceback
    # With this variable Hydra passes errors on, instead of printing part of a traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for message in NOTHING_TO_DO_ABOUT:
        warnings.filterwarnings("ignore", message)
    try:
        if "${" in os.getcwd():
            raise ValueError(f"working folder: expected a name without ${{, got {os.getcwd()}. Try another folder.")
        _refuse_lists_for_groups(arguments)
        require_plugins(arguments)
        arguments = overrides.readable(overrides.named(command, arguments))
        arguments = resume_in_run_folder(expand(overrides.with_model_of_weights(command, arguments)))
        arguments = overrides.for_search(arguments)
        if ranks.is_first() or ranks.is_one_of_several_started_alike():
            arguments = check_keys(command, arguments)
        sys.argv[1:] = [*overrides.without_log_file(arguments), *([] if ranks.is_first() else WRITE_NOTHING)]
        start = hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=command.config)
        with naming_held_folder():
            start(_tidy(command.name, task))()
    except KeyboardInterrupt:
        fail(command.name, "interrupted", exit_code=130)
    except Exception as error:
        explanation = explain(error)
        if wants_traceback or explanation is None:
            raise
        fail(command.name, explanation)
    finally:
        if not wants_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _print_to_a_pipe(text: str) -> None:
    """Print a text; end quietly if the reader of a pipe, such as ``head``, has ended."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python writes the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _tidy(name: str, task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap a task so that it ends in one line, and so that a folder without results is removed.

    Errors end the process here rather than as exceptions: Hydra would print all overrides before the message, and a
    sweep would continue with its next job.
    """

    @functools.wraps(task)
    def tidy_task(config: DictConfig) -> Any:
        try:
            with interruptible(functools.partial(_report_interruption, name)):
                # The jobs of a training sweep are processes of their own. They check their values and count as failed.
                if name != "ssd-train" or HydraConfig.get().mode == RunMode.RUN:
                    check_values(config)
                overrides.make_data_folders_absolute(config)
                return task(config)
        except (Exception, Interrupted) as error:
            _remove_empty_run_folder(config)
            if isinstance(error, ranks.FailedElsewhere):
                sys.exit(1)
            folder = Path(HydraConfig.get().runtime.output_dir)
            if isinstance(error, Interrupted):
                if not ranks.is_first():
                    raise
                fail(name, f"{error}; {state_of(folder, config)}", error.code)
            if isinstance(error, StoppedBySignal):
                if not ranks.is_first():
                    sys.exit(0)
                fail(name, f"{error}; {state_of(folder, config)}", error.code)
            explanation = None if ranks.wants_traceback else explain(error)
            if explanation is not None and HydraConfig.get().mode == RunMode.RUN:
                fail(name, explanation)
            raise

    return tidy_task


def _report_interruption(name: str, error: Interrupted) -> None:
    """Report a signal in a process that cannot handle it, since it waits for another rank."""
    if ranks.is_first():
        print(f"{name}: {error}", file=sys.stderr, flush=True)


def _remove_empty_run_folder(config: DictConfig) -> None:
    """Remove the run folder of a task that failed before it wrote anything."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    written_at_the_start = {folder / ".hydra", folder / LOCK_FILE, folder / f"{hydra_config.job.name}.log"}
    is_new = config.get("resume") is None and folder != Path.cwd()
    if is_new and ranks.is_first() and set(folder.iterdir()) <= written_at_the_start:
        shutil.rmtree(folder, ignore_errors=True)
        # The folders that hold run folders go too, if no other run is in them.
        with contextlib.suppress(OSError):
            for parent in folder.parents:
                if Path.cwd() in parent.parents:
                    parent.rmdir()


def _refuse_lists_for_groups(arguments: list[str]) -> None:
    """Refuse numbers in place of a group's option, on which Hydra fails with a message about its own code.

    Raises:
        ValueError: naming the group and the key that takes numbers.
    """
    for group, key in (("box_scales", "scales"), ("aspect_ratios", "aspect_ratios")):
        for argument in arguments:
            if argument.startswith(f"{group}=["):
                raise ValueError(
                    f"{group}: expected the name of an option, got {argument.partition('=')[2]}. "
                    f"Try model.default_boxes.{key}=[…]."
                )
