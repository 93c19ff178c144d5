"""The parts of a training, built from its config."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict
from torch import nn

from ssd_lightning.cli import ranks
from ssd_lightning.cli.errors import in_part
from ssd_lightning.cli.plain import plain_values, without_weights
from ssd_lightning.cli.trainer_values import naming_arguments
from ssd_lightning.data.data_set import refuse_data_without_objects
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.data.download import only_one_process_in
from ssd_lightning.data.formats.cache import cache_folder
from ssd_lightning.data.overfit import OverfitData
from ssd_lightning.detector.backbones.shapes import needs_two_pictures
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import PUBLISHED
from ssd_lightning.devices import fastest_precision
from ssd_lightning.training.checkpoint_files import AtomicCheckpointIO
from ssd_lightning.training.module import SSDModule


def quiet_lightning() -> None:
    """Show only warnings of Lightning, which reports at length which devices it did not find, and advertises."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def build_datamodule(config: DictConfig) -> DetectionDataModule:
    """Build the datamodule, prepare and read its data, and write the classes that were found into the config.

    Raises:
        ValueError: if there is nothing to train or to score on, or a picture serves both purposes.
    """
    data = instantiate(config.data, _convert_="all")
    datamodule = DetectionDataModule(
        data if config.overfit_pictures is None else OverfitData(data, config.overfit_pictures),
        image_size=plain_values(config.model.image_size),
        batch_size=config.batch_size,
        augmentation=instantiate(config.augmentation, _convert_="all"),
        num_workers=config.num_workers,
        seed=config.seed,
    )
    # If several ranks start at the same time, the first rank to arrive prepares the data for all ranks.
    is_alone = not ranks.is_one_of_several_started_alike()
    with contextlib.nullcontext() if is_alone else only_one_process_in(cache_folder()):
        datamodule.prepare_data()
        datamodule.setup("fit")
    if "classes" in config.data and config.data.classes is None:
        config.data.classes = list(datamodule.classes)
    refuse_data_without_objects(datamodule.splits())
    for (one, pictures), (other, others) in itertools.combinations(datamodule.splits().items(), 2):
        shared = set(pictures.paths) & set(others.paths)
        if shared and config.overfit_pictures is None:
            more = f" and {len(shared) - 1} more. Try ssd-check, which lists them" if len(shared) > 1 else ""
            raise ValueError(f"data: expected other pictures for {other} than for {one}, got {min(shared)}{more}")
    return datamodule


def build_module(config: DictConfig, classes: Sequence[str]) -> SSDModule:
    """Build the module for the classes of the data. It carries the plain config that rebuilds its model."""
    with open_dict(config):
        config.model.num_classes = len(classes)
    model = without_weights(plain_values(config.model))
    module = SSDModule(
        # Published weights replace all weights of the backbone.
        model=instantiate(model if config.resume or config.pretrained in PUBLISHED else config.model, _convert_="all"),
        matcher=instantiate(config.matcher, _convert_="all"),
        loss=instantiate(config.loss, _convert_="all"),
        postprocess=instantiate(config.postprocess, _convert_="all"),
        optimizer=_maker(config, "optimizer"),
        lr_scheduler=_maker(config, "lr_scheduler"),
        parameter_groups=instantiate(config.parameter_groups, _convert_="all"),
        lr_reference_batch=config.lr_reference_batch,
        config=checkpoint_config(config, classes),
    )
    # Optimizer and schedule are made once for nothing. So wrong settings are reported before anything is written.
    module.make_scheduler(module.new_optimizer(), 100)
    if config.compile:
        # Compiling in place keeps the names of the weights, and so the checkpoints, as they are.
        module.model.compile()
    return module


def checkpoint_config(config: DictConfig, classes: Sequence[str]) -> dict[str, Any]:
    """Return the plain config from which a checkpoint of the run rebuilds its detector."""
    plain = plain_values(config)
    return {
        "model": without_weights(plain["model"]),
        "postprocess": plain["postprocess"],
        "classes": list(classes),
        "config": plain,
    }


def _maker(config: DictConfig, group: str) -> Callable[..., Any]:
    """Build a function of a group that the training calls, and name the wrong argument in an error of the call.

    Raises:
        ValueError: in a call, where the function raises any error.
    """
    make = instantiate(config[group], _convert_="all")

    def named(*filled_in: Any) -> Any:
        try:
            return make(*filled_in)
        except Exception as error:
            text = in_part(group, make, error)
            if ": expected " not in text:
                values = plain_values(config[group])
                given = ", ".join(f"{name}={value}" for name, value in values.items() if not name.startswith("_"))
                reason = text.removeprefix(f"{group}: ")
                text = f"{group}: expected arguments that {values['_target_']} takes, got {given} ({reason})"
            raise ValueError(text) from error

    return named


def build_loggers(config: DictConfig) -> list[Logger]:
    """Build the loggers. Call this before anything that takes long, since a logger may need a login."""
    return [instantiate(logger, _convert_="all") for logger in (config.logger or {}).values() if logger]


def build_trainer(
    config: DictConfig, always: list[lightning.Callback], loggers: list[Logger], model: nn.Module
) -> lightning.Trainer:
    """Build the trainer with the callbacks of the config after those in ``always``."""
    callbacks = [instantiate(callback, _convert_="all") for callback in (config.callbacks or {}).values() if callback]
    if not loggers:  # LearningRateMonitor raises an error without a logger.
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    if not config.trainer.get("enable_progress_bar", True):  # The trainer raises an error if there is one all the same.
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    with naming_arguments(config.trainer):
        return instantiate(
            config.trainer,
            precision=config.trainer.precision or fastest_precision(config.trainer.get("accelerator", "auto"), model),
            callbacks=[*always, *callbacks],
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=HydraConfig.get().runtime.output_dir,
            _convert_="all",
        )


def refuse_batches_of_one(config: DictConfig, model: SSD, pictures: int, world_size: int) -> None:
    """Refuse batches of one picture where a batch norm of the model would see one value per channel.

    Args:
        config: the config of the run.
        model: the network.
        pictures: number of training pictures.
        world_size: number of devices that share them.

    Raises:
        ValueError: naming what makes the batches so small.
    """
    if config.trainer.get("sync_batchnorm") and world_size > 1:
        return  # The batch norms see the pictures of all devices.
    # The last pictures of an epoch are dropped where they fill no batch.
    if min(config.batch_size, pictures // world_size) != 1 or not needs_two_pictures(model, model.image_size):
        return
    reason = "because a batch norm of this model has one value per channel for one picture"
    if config.batch_size == 1:
        raise ValueError(f"batch_size: expected at least 2, {reason}, got 1. Try batch_size=2.")
    key = "data" if config.overfit_pictures is None else "overfit_pictures"
    raise ValueError(f"{key}: expected at least 2 training pictures per device, {reason}, got 1")
