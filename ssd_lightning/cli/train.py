"""The task of ``ssd-train``: build the parts, train, and write the results.

To read a training from its start, read this file, then ``build.py``, ``training/module.py`` and ``data/datamodule.py``.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import LambdaCallback, Timer
from omegaconf import DictConfig, OmegaConf, open_dict

from ssd_lightning.cli import ranks
from ssd_lightning.cli.build import (
    build_datamodule,
    build_loggers,
    build_module,
    build_trainer,
    checkpoint_config,
    quiet_lightning,
    refuse_batches_of_one,
)
from ssd_lightning.cli.launch_ranks import SameOnAllRanks, together
from ssd_lightning.cli.overrides import PLACES_OF_DATA
from ssd_lightning.cli.plain import plain_values
from ssd_lightning.cli.results import device_name, git_commit, score_and_write_results
from ssd_lightning.cli.run_folders import chosen_options, run_in_folder
from ssd_lightning.cli.screen import screen
from ssd_lightning.cli.sweep import table
from ssd_lightning.cli.trainer_values import naming_arguments
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.devices import is_emulated, keep_freed_memory
from ssd_lightning.require import counted
from ssd_lightning.run_folder import OF_THE_SWEEP, replace_text
from ssd_lightning.signals import Pruned, StoppedBySignal
from ssd_lightning.training.loggers.dashboard import dashboards_of, running
from ssd_lightning.training.loggers.show import ShowOnDashboards
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.pretrained import load_pretrained, weights_file
from ssd_lightning.training.resuming import errors_of_restoring_named

NOT_SHOWN_ON_DASHBOARDS = ("logger", "data_dir", "resume", "trusted_packages", *OF_THE_SWEEP)
"""Keys that make no difference to what is trained."""


def train(config: DictConfig) -> float:
    """Train, score the best checkpoint, and fill the run folder. Return the best AP at IoU 0.5."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    keep_freed_memory()
    quiet_lightning()
    if not ranks.is_first():
        warnings.simplefilter("ignore")  # The first rank shows the same warnings.
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    loggers = build_loggers(config)
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule.classes)
    if config.pretrained and not config.resume:
        report = load_pretrained(module.model, weights_file(config.pretrained, "pretrained"), datamodule.classes)
        if ranks.is_first():
            screen().print(str(report), soft_wrap=True)
        with open_dict(config):
            # A file decides how its pictures are resized. Resumed runs and checkpoints take it from the config.
            config.model.antialias = module.model.antialias
        module.config = checkpoint_config(config, datamodule.classes)
    datamodule.antialias = module.model.antialias
    # Lightning leaves the time limit to a timer that is there already.
    timer = Timer(plain_values(config.trainer.get("max_time")))
    callbacks = [
        timer,
        SameOnAllRanks(_settings_of_all_ranks(config, datamodule)),
        LambdaCallback(on_train_start=lambda trainer, module: _save_config(config, folder)),
        ShowOnDashboards(config.dashboard_pictures),
    ]
    trainer = build_trainer(config, callbacks, loggers, module.model)
    assert datamodule.train_pictures is not None
    refuse_batches_of_one(config, module.model, len(datamodule.train_pictures), trainer.world_size)
    dashboards = dashboards_of(trainer)
    last = folder / "checkpoints" / "last.ckpt"
    changes = HydraConfig.get().overrides.task if config.resume else []
    # The dashboards end last, so that other ranks do not wait for their uploads.
    with (
        running(dashboards, _settings_for_dashboards(config, folder), git_commit()),
        together(trainer, [*run_in_folder(folder), *changes]),
    ):
        if trainer.is_global_zero:
            screen().print(_first_line(config, trainer, module, datamodule), soft_wrap=True)
            if is_emulated(trainer.precision, trainer.strategy.root_device):
                screen().print(
                    "trainer.precision: expected one that this CPU computes by itself, got "
                    f"{trainer.precision}, which takes many times as long. Try trainer.precision=null.",
                    soft_wrap=True,
                )
        with errors_of_restoring_named(last), naming_arguments(config.trainer), pruning_named(folder):
            trainer.fit(module, datamodule, ckpt_path=str(last) if config.resume else None, weights_only=True)
        seconds = timer.time_elapsed("train")
        return score_and_write_results(config, folder, trainer, module, datamodule, seconds, dashboards)


@contextlib.contextmanager
def pruning_named(folder: Path) -> Iterator[None]:
    """Report the end of a job that its sweep prunes as that, where the callback knows only of a signal.

    Raises:
        Pruned: with the reason that the sweep has written to the file of the job.
    """
    before = table.read_job_file(folder)
    try:
        yield
    except StoppedBySignal as error:
        job = table.read_job_file(folder)
        # A pruned job may be resumed as a single run, and then be stopped by a signal of the user.
        if job.get("status") != "pruned" or job == before:
            raise
        raise Pruned(job["reason"], error.outcome) from error


def _save_config(config: DictConfig, folder: Path) -> None:
    """Save the config with the classes that were found, and with what was changed when the run was resumed."""
    if ranks.is_first():
        saved = OmegaConf.merge(config, {"resume": None, "trusted_packages": []})
        replace_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(saved))


def _settings_of_all_ranks(config: DictConfig, datamodule: DetectionDataModule) -> dict[str, Any]:
    """Return the settings that decide what is trained, without folders of data, which may differ between machines."""
    plain = plain_values(config)
    return {
        **{key: value for key, value in plain.items() if key not in PLACES_OF_DATA},
        "data": {key: value for key, value in plain["data"].items() if f"data.{key}" not in PLACES_OF_DATA},
        "pictures": list(map(len, datamodule.splits().values())),
    }


def _settings_for_dashboards(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Return the config without keys that only say where this run writes, which differ between any two runs."""
    plain = plain_values(config)
    callbacks = OmegaConf.to_container(config.callbacks) if config.callbacks else {}
    kept = {key: value for key, value in plain.items() if key not in NOT_SHOWN_ON_DASHBOARDS}
    return {**kept, "callbacks": callbacks, "choices": chosen_options(folder)}


def _first_line(
    config: DictConfig, trainer: lightning.Trainer, module: SSDModule, datamodule: DetectionDataModule
) -> str:
    """Describe in one line the detector, the data and the devices of a run."""
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    detector = chosen_options(Path(HydraConfig.get().runtime.output_dir)).get("model", "resumed")
    devices = device_name(trainer) if trainer.world_size == 1 else f"{trainer.world_size} × {device_name(trainer)}"
    return (
        f"{config.name}, {detector}: {parameters / 1e6:.1f} M parameters, "
        f"{len(module.model.default_boxes)} default boxes, "
        f"{' + '.join(str(len(pictures)) for pictures in datamodule.splits().values())} pictures, "
        f"{counted(len(datamodule.classes), 'class', 'classes')}, on {devices} ({trainer.precision})"
    )


if __name__ == "__main__":
    from ssd_lightning.cli import commands

    commands.train()
