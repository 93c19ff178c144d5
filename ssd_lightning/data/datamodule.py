"""The datamodule: from a data set to loaders of batches for training, validation and test."""

import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning
import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.batches import (
    Key,
    ResumableLoader,
    SampleDataset,
    ShuffledKeys,
    collate,
    leave_signals_to_the_main_process,
)
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.findings import check_objects, refuse
from ssd_lightning.devices import free_cores
from ssd_lightning.records import Sample, Truth
from ssd_lightning.require import require_whole_number
from ssd_lightning.structures import ImageSize, height_and_width


@runtime_checkable
class Pictures(Protocol):
    """Pictures with their ground truth, by position.

    :class:`~ssd_lightning.data.formats.annotated_pictures.AnnotatedPictures` are such pictures in files.
    """

    paths: list[Path]

    def __len__(self) -> int: ...

    def truth(self, index: int) -> Truth:
        """Return the ground truth without decoding the picture, so that augmentation can plan first."""

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode a picture, possibly reduced, but not below ``least`` (height, width); ``None``: not reduced."""

    def __getitem__(self, index: int) -> Sample:
        """Return the picture in its own size with its ground truth."""


@runtime_checkable
class DetectionData(Protocol):
    """A data set: one entry of the config group ``data``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels; the first has label 1."""

    def prepare(self) -> None:
        """Download or generate what is missing; one process of a machine calls this."""

    def train(self) -> Pictures:
        """Return the pictures to train on."""

    def val(self) -> Pictures:
        """Return the pictures to score on."""


@runtime_checkable
class TestedData(Protocol):
    """A data set that can have pictures for a test, which are scored once, after the training."""

    def test(self) -> Pictures | None:
        """Return the pictures for the test; ``None``: this data set has none."""


class DetectionDataModule(lightning.LightningDataModule):
    """Loaders of batches for training, validation and test.

    A training picture depends only on the seed, the epoch and its position in the data set. The number of workers and
    earlier draws have no influence. A run can therefore resume in mid-epoch.

    Args:
        data: the data set.
        image_size: (height, width) of the network's input, or one number for both.
        batch_size: number of pictures in a batch, on each device.
        augmentation: augmentation of the training pictures; ``None``: they are only resized.
        num_workers: number of processes per device that decode and augment; ``None``: the free cores, at most 8.
        seed: seed of shuffling and augmentation.
        antialias: resize with anti-aliasing; see :class:`~ssd_lightning.detector.model.SSD`.
    """

    def __init__(
        self,
        data: DetectionData,
        image_size: ImageSize,
        batch_size: int,
        augmentation: Augmentation | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        require_whole_number("batch_size", batch_size, 1)
        if num_workers is not None:
            require_whole_number("num_workers", num_workers, 0)
        self.data = data
        self.image_size = height_and_width(image_size)
        self.batch_size = batch_size
        self.augmentation = augmentation or Augmentation()
        self.num_workers = num_workers
        self.seed = seed
        self.antialias = antialias
        self.train_pictures: Pictures | None = None
        self.val_pictures: Pictures | None = None
        self.test_pictures: Pictures | None = None
        self._resume_from: dict[str, Any] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the object classes; the class of label n is at n - 1."""
        return tuple(self.data.classes)

    def prepare_data(self) -> None:
        """Download or generate what is missing."""
        self.data.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations.

        Raises:
            ValueError: if there are no pictures, or the data set has a fault that ``fix`` does not deal with.
        """
        if self.train_pictures is None and stage in (None, "fit"):
            self.train_pictures = self.data.train()
        if self.val_pictures is None and stage != "test":
            self.val_pictures = self.data.val()
        if self.test_pictures is None and stage in (None, "fit", "test") and isinstance(self.data, TestedData):
            self.test_pictures = self.data.test()
        for purpose, pictures in self.splits().items():
            refuse_faulty(pictures, self.classes)
            if len(pictures) == 0:
                raise ValueError(f"data: expected at least one picture for {purpose}, got none")
        if "background" in self.classes:
            raise ValueError(
                "data: expected classes of objects, got one called background, which is the name of label 0. "
                "Try another name, or leave the class out."
            )

    def splits(self) -> dict[str, Pictures]:
        """Return the pictures that have been read, by their purpose in the words of messages."""
        purposes = {"training": self.train_pictures, "scoring": self.val_pictures, "the test": self.test_pictures}
        return {purpose: pictures for purpose, pictures in purposes.items() if pictures is not None}

    def train_dataloader(self) -> DataLoader:
        """Return shuffled, augmented batches of this rank's share, from where the run stopped."""
        assert self.train_pictures is not None
        dataset = SampleDataset(self.train_pictures, self.augmentation, self.image_size, self.seed, self.antialias)
        sampler = ShuffledKeys(len(dataset), self.seed, *self._rank_and_world_size())
        if len(sampler) == 0:
            raise ValueError(
                f"data: expected at least one training picture per device, got {len(dataset)} for {sampler.world_size}"
            )
        # An incomplete last batch would give its few pictures more weight than the other pictures have.
        loader = ResumableLoader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=len(sampler) >= self.batch_size,
            **self._loader_arguments(),
        )
        state, self._resume_from = self._resume_from, {}
        if state:
            loader.load_state_dict(state)
        return loader

    def val_dataloader(self) -> DataLoader:
        """Return this rank's batches of validation pictures, which are only resized."""
        assert self.val_pictures is not None
        return self._scored(self.val_pictures)

    def test_dataloader(self) -> DataLoader:
        """Return this rank's batches of test pictures, which are only resized."""
        assert self.test_pictures is not None
        return self._scored(self.test_pictures)

    def _scored(self, pictures: Pictures) -> DataLoader:
        dataset = SampleDataset(pictures, Augmentation(), self.image_size, self.seed, self.antialias)
        return DataLoader(dataset, batch_sampler=self._scored_batches(len(dataset)), **self._loader_arguments())

    def _scored_batches(self, pictures: int) -> list[list["Key"]]:
        """Return the batches of one rank among the empty batches of the other ranks.

        Each batch has the same pictures as on a single rank, and all ranks take the same number of steps. Each rank has
        a contiguous part of the batches.
        """
        rank, world_size = self._rank_and_world_size()
        count = math.ceil(pictures / self.batch_size)
        return [
            [Key(0, index) for index in range(pictures)[number * self.batch_size :][: self.batch_size]]
            if number * world_size // count == rank
            else []
            for number in range(count)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, which Lightning restores before it asks for a loader.

        Lightning also restores the state of loaders, but not if the number of steps was needed before. Learning rates
        that are planned over the whole run need this number.
        """
        loader = self.trainer.train_dataloader if self.trainer is not None else None
        return loader.state_dict() if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position in the epoch for the next training loader.

        Raises:
            ValueError: if it is no position.
        """
        if state_dict and not all(type(state_dict.get(key)) is int for key in ("epoch", "taken")):
            raise ValueError(f"expected a position in an epoch, got {state_dict}")
        self._resume_from = state_dict

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_arguments(self) -> dict[str, Any]:
        num_workers = self.num_workers
        if num_workers is None:
            num_workers = free_cores(processes=1 if self.trainer is None else self.trainer.num_devices)
        return {
            "num_workers": num_workers,
            "collate_fn": collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": num_workers > 0,
            "worker_init_fn": leave_signals_to_the_main_process,
        }


def refuse_faulty(pictures: Pictures, classes: tuple[str, ...]) -> None:
    """Refuse pictures in files of which one is faulty, or has a faulty object.

    Raises:
        ValueError: with the first fault.
    """
    if isinstance(pictures, AnnotatedPictures):
        refuse([*pictures.findings, *check_objects(pictures.annotations(classes), classes)])
