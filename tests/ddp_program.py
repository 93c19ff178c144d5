"""Trains and validates as one rank of several, or alone, and saves the outcome for a test to compare.

Usage: ``ddp_program.py <folder>``, with the environment variables of a rank that others have started.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from hydra.utils import instantiate
from in_memory import InMemoryPictures
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.records import Sample
from ssd_lightning.training.loggers.metrics_file import MetricsFile
from ssd_lightning.training.module import SSDModule

SIDE, BATCH, NUM_TRAIN, SEED = 64, 32, 36, 5
LOSSES = sorted(path.stem for path in (CONFIG_FOLDER / "loss").glob("*.yaml"))
WITHOUT_OBJECTS = {"none": slice(0), "those of the second rank": slice(1, BATCH, 2), "all": slice(BATCH)}
"""Pictures of the first step that have no objects, in the order in which two ranks take them."""
STEPS = [*((loss, "those of the second rank") for loss in LOSSES), ("multibox", "none"), ("multibox", "all")]
"""Losses, and pictures without objects, whose gradients are compared."""
VALIDATIONS: dict[str, dict[str, Any]] = {
    "5 pictures": {"pictures": 5},
    "4 pictures": {"pictures": 4},
    "3 pictures": {"pictures": 3},
    "1 picture": {"pictures": 1},
    "2 of 4 batches": {"pictures": 7, "limit_val_batches": 2},
    "half of 4 batches": {"pictures": 7, "limit_val_batches": 0.5},
}
"""Settings of validations, in batches of two."""


class Pictures(InMemoryPictures):
    def __init__(self, count: int, without_objects: slice = WITHOUT_OBJECTS["none"]) -> None:
        self.paths = [Path(f"{number}.png") for number in range(count)]
        self.empty = set(np.random.default_rng([SEED, 0]).permutation(count)[without_objects].tolist())

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        count = 0 if index in self.empty else 1 + index % 3
        corner = rng.uniform(0, 0.5, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (count, 2))], axis=1).astype(np.float32)
        labels = rng.integers(1, 3, count)
        image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return Sample(image, boxes, labels, np.zeros(count, dtype=bool))


class Data:
    classes = ("first", "second")

    def __init__(self, train: Pictures, val: Pictures) -> None:
        self._train, self._val = train, val

    def prepare(self) -> None:
        pass

    def train(self) -> Pictures:
        return self._train

    def val(self) -> Pictures:
        return self._val


class Gradients(lightning.Callback):
    """The gradients that the optimizer gets, by parameter."""

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.by_name = {name: parameter.grad.clone() for name, parameter in pl_module.model.named_parameters()}


def make_module(frozen_batch_norm: bool = False, **parts: Any) -> SSDModule:
    torch.manual_seed(0)
    default_boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2]] * 5)
    model = SSD(
        Tiny((4, 8, 8), channels=8), default_boxes, num_classes=2, image_size=SIDE, frozen_batch_norm=frozen_batch_norm
    )
    return SSDModule(model, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3), **parts)


def make_data(train: Pictures, val: Pictures, batch_size: int) -> DetectionDataModule:
    return DetectionDataModule(Data(train, val), SIDE, batch_size, num_workers=0, seed=SEED)


def make_trainer(ranks: int, *callbacks: lightning.Callback, **settings: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **{"logger": False, **settings},
    )


def gradients(ranks: int) -> dict[str, Any]:
    """Return the gradients and the logged loss of one step over all training pictures."""
    found = {}
    for loss, without_objects in STEPS:
        module = make_module(
            frozen_batch_norm=True, loss=instantiate(OmegaConf.load(CONFIG_FOLDER / f"loss/{loss}.yaml"))
        )
        seen = Gradients()
        trainer = make_trainer(ranks, seen, max_steps=1, limit_val_batches=0, log_every_n_steps=1)
        pictures = Pictures(NUM_TRAIN, WITHOUT_OBJECTS[without_objects])
        trainer.fit(module, make_data(pictures, Pictures(2), BATCH // ranks))
        found[f"{loss}, {without_objects}"] = (seen.by_name, trainer.callback_metrics["train/loss"])
    return found


def validations(ranks: int) -> dict[str, Any]:
    """Return the logged values, the detections and the objects of each validation."""
    found = {}
    for name, settings in VALIDATIONS.items():
        settings = dict(settings)
        module, pictures = make_module(), Pictures(settings.pop("pictures"))
        [values] = make_trainer(ranks, **settings).validate(module, make_data(pictures, pictures, 2), verbose=False)
        found[name] = values, *records(module)
    return found


def records(module: SSDModule) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the columns of detections and objects. The first rank has those of all ranks."""
    both = module.scores.detections(), module.scores.objects()
    detections, objects = ([torch.from_numpy(column) for column in record] for record in both)
    return detections, objects


def fit(ranks: int, folder: Path) -> dict[str, Any]:
    """Train two epochs with batch norm, whose statistics differ between the ranks."""
    best = ModelCheckpoint(folder, filename=f"best_of_{ranks}", monitor="val/loss", save_top_k=-1)
    trainer = make_trainer(ranks, best, max_epochs=2, logger=MetricsFile(folder / f"of_{ranks}"), log_every_n_steps=1)
    module = make_module()
    trainer.fit(module, make_data(Pictures(NUM_TRAIN), Pictures(5), 2))
    return {
        "values": {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")},
        "best": best.best_model_path,
        "steps": trainer.global_step,
        "parameters": dict(module.model.named_parameters()),
    }


def main(folder: Path, ranks: int) -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    found = {"validations": validations(ranks)}
    if ranks <= 2:
        found["gradients"] = gradients(ranks)
    if ranks > 1:
        found["fit"] = fit(ranks, folder)
    torch.save(found, folder / f"{ranks}_ranks_{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", 1)))
