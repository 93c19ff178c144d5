"""Trainings of a small network on twelve pictures of bananas."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

from ssd_lightning.data.augmentation.colours import BrightnessContrast
from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.augmentation.windows import ZoomIn
from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.model import SSD
from ssd_lightning.training.callbacks import StopOnNonFiniteLoss, StopOnSignal
from ssd_lightning.training.checkpoint_files import AtomicCheckpointIO
from ssd_lightning.training.loggers.metrics_file import MetricsFile
from ssd_lightning.training.module import SSDModule

NUM_TRAIN, NUM_VAL, BATCH_SIZE, SIDE = 12, 4, 4, 64
STEPS = NUM_TRAIN // BATCH_SIZE
"""Number of steps in an epoch."""


def make_module(**parts: Any) -> SSDModule:
    torch.manual_seed(0)
    default_boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2]] * 5)
    return SSDModule(SSD(Tiny((4, 8, 8), channels=8), default_boxes, num_classes=1, image_size=SIDE), **parts)


def make_data(root: Path, num_workers: int = 0) -> DetectionDataModule:
    augmentation = Augmentation([ZoomIn()], 0.5, 0.5, [BrightnessContrast()])
    return DetectionDataModule(Bananas(root), SIDE, BATCH_SIZE, augmentation, num_workers=num_workers, seed=3)


def make_trainer(folder: Path, *more: lightning.Callback, epochs: int = 3, **settings: Any) -> lightning.Trainer:
    """Make a trainer with the callbacks of ``ssd-train``."""
    saving = ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        monitor="val/map_50",
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    own = [
        saving,
        LearningRateMonitor("step"),
        StopOnNonFiniteLoss(folder),
        StopOnSignal(folder / "checkpoints" / "last.ckpt"),
    ]
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[*more, *own],
        logger=MetricsFile(folder),
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


# --- interrupted and resumed ---


class Signal(lightning.Callback):
    """Sends SIGTERM in the middle of a step, as a scheduler does at its time limit."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            os.kill(os.getpid(), signal.SIGTERM)


class Crash(lightning.Callback):
    """Raises an error in the middle of a step, like a power cut."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if trainer.global_step == self.step:
            raise ConnectionError("power cut")


def assert_same_run(folder: Path, finished: Path) -> None:
    """Assert that two runs have equal checkpoints and logged numbers, to the bit."""
    assert (folder / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()
    for name in ("end.ckpt", "checkpoints/best.ckpt"):
        assert_equal_states(*(torch.load(run / name, weights_only=True) for run in (folder, finished)))


def assert_equal_states(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Assert that two checkpoints have the same step, weights, optimizer and schedulers, to the bit."""
    assert (found["epoch"], found["global_step"]) == (expected["epoch"], expected["global_step"])
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for key, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][key], tensor), key
    for index, state in expected["optimizer_states"][0]["state"].items():
        for key, tensor in state.items():
            assert torch.equal(found["optimizer_states"][0]["state"][index][key], tensor)
    assert found["lr_schedulers"] == expected["lr_schedulers"]
