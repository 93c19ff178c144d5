"""Run folders: one run each, and the way in which a run is resumed in its folder."""

from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli import overrides, ranks
from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.help import GROUPS
from ssd_lightning.cli.trust import refuse_untrusted_config, trusted_packages_in

FIXED_AT_THE_START = {
    *(set(GROUPS) - {"data", "trainer", "logger", "callbacks"}),
    *("seed", "batch_size", "lr_reference_batch", "overfit_pictures", "pretrained"),
}
"""Keys that a resumed run cannot change: the checkpoint holds their effect, or the training would change midway."""


class RunFolderGuard(Callback):
    """A Hydra callback that refuses to start a run, or a sweep, in a folder that holds one.

    Messages end the process here, since Hydra turns exceptions of callbacks into warnings.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the folder of a new sweep by creating its ``multirun.yaml``."""
        folder, name = Path(config.hydra.sweep.dir), str(config.hydra.job.name)
        if config.get("resume_sweep") is not None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Hydra's basic sweeper writes the same file later; other sweepers write none.
            with (folder / "multirun.yaml").open("x") as file:
                OmegaConf.save(config, file)
        except FileExistsError:
            resume = f" or resume_sweep={folder}" if "resume_sweep" in config else ""
            fail(
                name, f"hydra.sweep.dir: expected a new folder, got {folder}, which holds a sweep. Try another{resume}."
            )
        except OSError as error:
            fail(name, f"hydra.sweep.dir: expected a folder that can be written to, got {folder} ({error})")

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the folder of a new run by creating its ``.hydra``."""
        folder, name = Path(config.hydra.run.dir), str(config.hydra.job.name)
        is_chosen = any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra)
        if ranks.is_one_of_several_started_alike() and not is_chosen:
            # The default name holds the time, which may differ between ranks that torchrun or SLURM starts.
            fail(
                name,
                f"hydra.run.dir: expected a folder that all ranks share, got {folder}. Try hydra.run.dir=<folder>.",
            )
        if not ranks.is_first():
            return
        try:
            # If two runs start in the same second, the later one fails here.
            (folder / ".hydra").mkdir(parents=True)
        except FileExistsError as error:
            if (folder / ".hydra").is_dir():
                fail(
                    name, f"hydra.run.dir: expected a new folder, got {folder}, which holds a run. Try resume={folder}."
                )
            fail(name, f"hydra.run.dir: expected a folder that can be made, got {folder} ({error})")
        except OSError as error:
            fail(name, f"hydra.run.dir: expected a folder that can be made, got {folder} ({error})")


def resume_in_run_folder(arguments: list[str]) -> list[str]:
    """Expand ``resume=<run folder>`` to the arguments that continue the run in that folder, with its saved config.

    A run without a checkpoint starts from its beginning, so that a job that was killed early can be queued again.
    ``resume=auto`` continues the run in ``hydra.run.dir`` if there is one, and starts a run there otherwise. The
    arguments of the first start may be repeated, so that a script for a cluster has one command line. Other arguments
    stay and override the saved config.

    Raises:
        ValueError: if the folder holds no run, its config names untrusted code, or an argument would change the
            training.
    """
    resumed = [overrides.value_of(argument) for argument in arguments if argument.startswith("resume=")]
    if not resumed or not resumed[-1]:
        return arguments
    if "--config-path" in arguments:  # The first rank has expanded them.
        return arguments
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if resumed[-1] == "auto":
        folders = [overrides.value_of(other) for other in others if other.startswith("hydra.run.dir=")]
        if not folders or not folders[-1]:
            raise ValueError("resume: expected hydra.run.dir=<folder> beside resume=auto, got none")
        folder = Path(folders[-1]).resolve()
        if not (folder / ".hydra" / "config.yaml").is_file():
            return others
        others = _without_saved(others, folder)
    else:
        folder = Path(resumed[-1]).resolve()
    config = folder / ".hydra" / "config.yaml"
    if not config.is_file():
        raise ValueError(f"resume: expected a run folder with .hydra/config.yaml, got {folder}")
    with config.open("rb") as file:
        saved = yaml.safe_load(file)
    if not isinstance(saved, dict) or "resume" not in saved:
        raise ValueError(f"resume: expected the config of a run, got {config}")
    refuse_untrusted_config(saved, config, "resume", trusted_packages_in(arguments))
    for other in others:
        key = other.partition("=")[0]
        is_fixed = key.lstrip("+~").partition(".")[0] in FIXED_AT_THE_START
        if is_fixed or key in GROUPS or key in ("-m", "--multirun", "hydra.run.dir"):
            raise ValueError(f"resume: expected only changes of length, loggers, devices and data, got {other}")
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        print(f"{folder} has no checkpoint, so the run starts from its beginning", flush=True)
        return [*run_in_folder(folder), *others]
    return [*run_in_folder(folder), f"resume={overrides.quote(folder)}", *others]


def _without_saved(arguments: list[str], folder: Path) -> list[str]:
    """Leave out the arguments that a run was started with, and its folder."""
    saved = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) or []
    known = {str(argument).lstrip("+") for argument in saved}
    return [a for a in arguments if a.lstrip("+") not in known and not a.startswith("hydra.run.dir=")]


def run_in_folder(folder: Path) -> list[str]:
    """Return the arguments that run the config saved in a run folder, in that folder."""
    saved = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [*saved, f"hydra.run.dir={overrides.quote(folder)}", "hydra.output_subdir=null"]


def chosen_options(folder: Path) -> dict[str, str]:
    """Return the option of each group that a run was composed from, also for a resumed run."""
    saved = folder / ".hydra" / "hydra.yaml"
    choices = OmegaConf.load(saved).hydra.runtime.choices if saved.exists() else {}
    return {group: option for group, option in choices.items() if group in GROUPS and option is not None}


def state_of(folder: Path, config: DictConfig) -> str:
    """Describe, after an interruption, what a run folder holds and how to resume it."""
    if not folder.exists():
        return "nothing was written"
    if "resume" not in config:
        return f"{folder} is not complete"
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return f"{folder} has no checkpoint to resume from"
    return f"resume={folder} continues from its last checkpoint"
