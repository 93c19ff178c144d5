"""Run folders: one run each, and how a run is resumed in its folder."""

from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli import overrides, ranks
from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.help import GROUPS

DECIDED_AT_THE_START = {
    *(set(GROUPS) - {"data", "trainer", "logger", "callbacks"}),
    *("seed", "batch_size", "lr_reference_batch", "overfit_pictures", "pretrained"),
}
"""What a run that goes on cannot change: its checkpoint has it, or it would train something else from the middle on."""


def what_is_left(config: DictConfig, folder: Path) -> str:
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


def continue_in_run_folder(arguments: list[str]) -> list[str]:
    """For ``resume=<run folder>``, run the config that was saved there, in that folder; other keys still override."""
    resumed = [overrides.value_of(argument) for argument in arguments if argument.startswith("resume=")]
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
    return [*run_in_folder(folder), f"resume={overrides.quote(folder)}", *others]


def run_in_folder(folder: Path) -> list[str]:
    """Arguments that run the config that is saved in a run folder, there."""
    saved = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [*saved, f"hydra.run.dir={overrides.quote(folder)}", "hydra.output_subdir=null"]


def chosen_options(folder: Path) -> dict[str, str]:
    """The option of each group that a run was composed from, also where it goes on from its saved config."""
    saved = folder / ".hydra" / "hydra.yaml"
    choices = OmegaConf.load(saved).hydra.runtime.choices if saved.exists() else {}
    return {group: option for group, option in choices.items() if group in GROUPS and option is not None}
