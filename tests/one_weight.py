"""Runs of a model with a single weight, which take milliseconds, for tests of callbacks."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from in_memory import InMemoryPictures
from lightning.pytorch.callbacks import Checkpoint

from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.records import Sample
from ssd_lightning.structures import Batch

BATCHES = 4
"""Number of batches in an epoch, with two pictures each."""


class OddPictures(InMemoryPictures):
    """Pictures of which number n has the level n, and every second one has an object."""

    def __init__(self, length: int) -> None:
        self.paths = [Path(f"folder/picture {index}.png") for index in range(length)]

    def __getitem__(self, index: int) -> Sample:
        count = index % 2
        return Sample(
            np.full((8, 8, 3), index, dtype=np.uint8),
            np.array([(0.1, 0.2, 0.3, 0.4)] * count, dtype=np.float32).reshape(-1, 4),
            np.ones(count, dtype=np.int64),
            np.zeros(count, dtype=bool),
        )


class OddData:
    classes = ("odd",)

    def prepare(self) -> None: ...

    def train(self) -> OddPictures:
        return OddPictures(2 * BATCHES)

    def val(self) -> OddPictures:
        return OddPictures(2)


class OneWeight(lightning.LightningModule):
    """A single weight, which each step changes. ``losses`` are added to the losses of the steps with those numbers."""

    def __init__(self, losses: dict[int, float] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.losses = losses or {}
        self.batches: list[Batch] = []
        self.validated_after: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.batches.append(batch)
        loss = self.weight * (1 + batch.images.float().mean()) + self.losses.get(self.global_step, 0.0)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated_after.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0125)


def trainer_with(*own: lightning.Callback, epochs: int = 2, **settings: Any) -> lightning.Trainer:
    defaults = {"num_sanity_val_steps": 0, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=list(own),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in own),
        enable_model_summary=False,
        **{**defaults, **settings},
    )


def odd_data() -> DetectionDataModule:
    return DetectionDataModule(OddData(), image_size=8, batch_size=2, num_workers=0)
