"""What all commands share: where the configs are, help that answers at once, errors in one line, folders kept safe.

Nothing heavy is imported here: torch and lightning come with the task, after the arguments have been understood.
"""

import functools
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssd_lightning.cli import paths, ranks
from ssd_lightning.interruption import Interrupted, interruptible
from ssd_lightning.presets import CONFIG_FOLDER

GROUPS = {
    "experiment": "a whole recipe: it chooses from the groups below",
    "model": "a detector by name: input size, and a choice from the next five groups",
    "backbone": "the network that makes the feature maps",
    "extra_layers": "how further levels are made from the last map",
    "head": "what predicts on each level",
    "box_scales": "sizes of the default boxes on each level",
    "aspect_ratios": "shapes of the default boxes on each level",
    "matcher": "which default box answers for which object",
    "loss": "what is minimised",
    "postprocess": "from predictions to detections",
    "data": "where pictures and boxes come from",
    "augmentation": "how training pictures are varied",
    "optimizer": "how weights are changed",
    "lr_scheduler": "how the learning rate goes over the steps",
    "parameter_groups": "which weights learn how fast, and which decay",
    "trainer": "devices, precision, length",
    "logger": "where numbers and pictures go while training; several as logger=[wandb,tensorboard]",
    "callbacks": "checkpoints, progress, stopping, averaging; several as callbacks=[ema,early_stopping]",
    "debug": "a short run to look for what is wrong; it has the last word",
    "hparams_search": "what Optuna looks for in a sweep, and how",
}
"""Every config group, with what it decides."""


PLUGINS = {
    r"hparams_search=(?!null)\w|hydra/sweeper=optuna": "hydra_optuna_sweeper",
    r"hydra/launcher=submitit": "hydra_submitit_launcher",
}
"""Packages of the extra ``sweep``, by the arguments that need them."""

DECIDED_AT_THE_START = {
    *(set(GROUPS) - {"data", "trainer", "logger", "callbacks"}),
    *("seed", "batch_size", "lr_reference_batch", "overfit_pictures", "pretrained"),
}
"""What a run that goes on cannot change: its checkpoint has it, or it would train something else from the middle on."""

WRITE_NOTHING = ["hydra.output_subdir=null", "hydra/job_logging=stdout"]
"""Arguments by which Hydra keeps no files of this process."""


def run(
    name: str,
    config_name: str,
    about: str,
    examples: list[str],
    task: Callable[[DictConfig], Any],
    understand: Callable[[list[str]], list[str]] = list,
) -> None:
    """Run a command: ``task`` with the config composed from ``conf/<config_name>.yaml`` and the command line.

    ``understand`` puts arguments that Hydra does not know into such that it does. A user's mistake is told in one line
    and ends with exit code 1; HYDRA_FULL_ERROR=1 shows the traceback.
    """
    # Wherever it stands: Hydra's parser refuses what comes after an option in the middle.
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    if any(argument in ("--help", "-h") for argument in arguments):
        print(help_text(name, config_name, about, examples))
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    ranks.wants_traceback = wants_traceback
    # Hydra would print part of a traceback and hide the rest; here it hands the error over.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _refuse_lists_for_groups(arguments)
        require_plugins(arguments)
        arguments = _continue_in_run_folder(understand(paths.readable(arguments)))
        sys.argv[1:] = [*arguments, *([] if ranks.is_first() else WRITE_NOTHING)]
        hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)(_tidy(name, task))()
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


def explain(error: BaseException) -> str | None:
    """A user's mistake in one line; None if it looks like ours."""
    if isinstance(error, InstantiationException):
        where = re.search(r"full_key: (\S+)", str(error))
        cause = error.__cause__
        text = (explain(cause) if cause is not None else None) or str(cause or error)
        return f"{where.group(1)}: {_one_line(text)}" if where else _one_line(text)
    if isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        # What follows is Hydra's search path, which says nothing to most.
        return _one_line(str(error).split("Config search path:")[0])
    if type(error).__name__ in ("MisconfigurationException", "NonFiniteLossError"):
        return _one_line(str(error))
    if isinstance(error, (ValueError, OSError)):
        # A loader's worker hands over its whole traceback as the message; its last line is what happened.
        text = str(error)
        return text.strip().splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in text else text
    return None


def help_text(name: str, config_name: str, about: str, examples: list[str]) -> str:
    chosen, config = _defaults_and_keys(config_name)
    lines = [f"{name} - {about}", "", "Usage:", f"  {name} [key=value ...]", "", "Examples:"]
    lines += [f"  {example}" for example in examples]
    if chosen:
        lines += ["", "Groups (group=option; * is the default):"]
        for group in GROUPS:
            if group in chosen:
                options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
                marked = ", ".join(f"{option}*" if option == chosen[group] else option for option in options)
                lines += [f"  {group:<16} {GROUPS[group]}", f"  {'':<16}   {marked}"]
    lines += ["", "Keys:"]
    lines += [
        f"  {key}={'(required)' if value == '???' else 'null' if value is None else value}"
        for key, value in config.items()
        if key != "hydra"
    ]
    lines += [
        "",
        f"  {name} --cfg job          show the whole config without running",
        f"  {name} -m key=a,b,c       run for each of the values",
        f"  {name} --hydra-help       all of Hydra's own options",
    ]
    return "\n".join(lines)


def _defaults_and_keys(config_name: str) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Of a main config and those that it includes: the option of each group, and its own keys."""
    keys = yaml.safe_load((CONFIG_FOLDER / f"{config_name}.yaml").read_text())
    chosen: dict[str, str | None] = {}
    included: dict[str, Any] = {}
    for entry in keys.pop("defaults", []):
        if isinstance(entry, dict):
            chosen |= {group.removeprefix("optional "): option for group, option in entry.items()}
        elif entry != "_self_":
            more_chosen, more_keys = _defaults_and_keys(entry)
            chosen, included = chosen | more_chosen, included | more_keys
    return chosen, included | keys


def _tidy(name: str, task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """The task; if it fails before it has written anything, its folder goes with it."""

    @functools.wraps(task)
    def tidy_task(config: DictConfig) -> Any:
        try:
            with interruptible():
                paths.make_data_folders_absolute(config)
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
                fail(name, f"{error}; {_what_is_left(config, folder)}", error.code)
            if type(error).__name__ == "StoppedBySignal":
                if not ranks.is_first():
                    sys.exit(0)
                # Not as an exception, after which a sweep would go on with its next job.
                fail(name, f"{error}; {_what_is_left(config, folder)}")
            explanation = None if ranks.wants_traceback else explain(error)
            if explanation is not None and hydra_config.mode == RunMode.RUN:
                # Not as an exception: Hydra would put a line with all overrides before it.
                fail(name, explanation)
            raise

    return tidy_task


def _what_is_left(config: DictConfig, folder: Path) -> str:
    if not folder.exists():
        return "nothing is left of it"
    if "resume" not in config:
        return f"{folder} is not complete"
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return f"{folder} has no checkpoint to go on from"
    return f"resume={folder} goes on from its last checkpoint"


class RunFolderGuard(Callback):
    """Refuses to start a run, or a sweep, in a folder that holds one."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder, name = Path(config.hydra.sweep.dir), str(config.hydra.job.name)
        if config.get("resume_sweep") is not None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Making it is the claim here too. Hydra's own sweeper writes the same, others nothing.
            with (folder / "multirun.yaml").open("x") as file:
                OmegaConf.save(config, file)
        except FileExistsError:
            again = f", or go on with resume_sweep={folder}" if "resume_sweep" in config else ""
            fail(name, f"hydra.sweep.dir: {folder} holds a sweep already; choose another folder{again}")
        except OSError as error:
            fail(name, f"hydra.sweep.dir: {folder} cannot be made ({error})")

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.run.dir)
        is_chosen = any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra)
        if ranks.is_one_of_several_started_alike() and not is_chosen:
            fail(
                str(config.hydra.job.name),
                "hydra.run.dir: expected a folder that all ranks share, since torchrun or SLURM starts each of them; "
                "the time in the name of the default may differ",
            )
        if not ranks.is_first():
            return
        try:
            # Making it is the claim: of two runs that start in the same second, one fails here.
            (folder / ".hydra").mkdir(parents=True)
        except FileExistsError as error:
            what = "holds a run already" if (folder / ".hydra").is_dir() else f"cannot be made ({error})"
            # Hydra turns exceptions of callbacks into warnings.
            fail(
                str(config.hydra.job.name),
                f"hydra.run.dir: {folder} {what}; choose another folder, or continue a run with resume=<its folder>",
            )
        except OSError as error:
            fail(str(config.hydra.job.name), f"hydra.run.dir: {folder} cannot be made ({error})")


def _refuse_lists_for_groups(arguments: list[str]) -> None:
    """Where people type numbers for a group's option, Hydra fails in its own code."""
    for group, key in (("box_scales", "scales"), ("aspect_ratios", "aspect_ratios")):
        for argument in arguments:
            if argument.startswith(f"{group}=["):
                raise ValueError(
                    f"{group}: expected the name of an option, got {argument.partition('=')[2]}; "
                    f"numbers go to model.default_boxes.{key}=[…]"
                )


def _continue_in_run_folder(arguments: list[str]) -> list[str]:
    """For ``resume=<run folder>``, run the config that was saved there, in that folder; other keys still override."""
    resumed = [paths.value_of(argument) for argument in arguments if argument.startswith("resume=")]
    if not resumed or not resumed[-1]:
        return arguments
    if "--config-path" in arguments:  # the first rank has understood them
        return arguments
    folder = Path(resumed[-1]).resolve()
    for needed in (".hydra/config.yaml", "checkpoints/last.ckpt"):
        if not (folder / needed).is_file():
            raise ValueError(f"resume: {folder} is no run folder that can be continued, it has no {needed}")
    with (folder / ".hydra" / "config.yaml").open("rb") as file:
        saved = yaml.safe_load(file)
    if not isinstance(saved, dict) or "resume" not in saved:
        raise ValueError(f"resume: {file.name} is not the config of a run")
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    for other in others:
        key = other.partition("=")[0]
        decides = key.lstrip("+~").partition(".")[0] in DECIDED_AT_THE_START
        if decides or key in GROUPS or key in ("-m", "--multirun", "hydra.run.dir"):
            raise ValueError(
                f"resume: a run goes on with its own choices and in its own folder, {other} is not possible"
            )
    return [*run_in_folder(folder), f"resume={paths.quote(folder)}", *others]


def run_in_folder(folder: Path) -> list[str]:
    """Arguments that run the config that is saved in a run folder, there."""
    saved = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [*saved, f"hydra.run.dir={paths.quote(folder)}", "hydra.output_subdir=null"]


def chosen_options(folder: Path) -> dict[str, str]:
    """The option of each group that a run was composed from, also where it goes on from its saved config."""
    saved = folder / ".hydra" / "hydra.yaml"
    choices = OmegaConf.load(saved).hydra.runtime.choices if saved.exists() else {}
    return {group: option for group, option in choices.items() if group in GROUPS and option is not None}


def require_plugins(arguments: list[str]) -> None:
    """Hydra would list the sweepers that it has.

    Raises:
        ValueError: if an argument needs a plugin that is not installed.
    """
    for argument in arguments:
        for pattern, plugin in PLUGINS.items():
            if re.match(pattern, argument) and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
                package = plugin.replace("_", "-")
                raise ValueError(f"{argument}: expected {package} to be installed: uv sync --extra sweep")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def fail(name: str, message: str, exit_code: int = 1) -> NoReturn:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(exit_code)
