"""The datamodule: from a data set to loaders of batches for training, validation and test."""

from typing import Any

import lightning
from torch.utils.data import DataLoader

from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.batches import ResumableLoader, SampleDataset, ShuffledKeys, loader_arguments, scored_loader
from ssd_lightning.data.data_set import DetectionData, Pictures, TestedData, refuse_unusable
from ssd_lightning.devices import free_cores
from ssd_lightning.require import require_whole_number
from ssd_lightning.structures import ImageSize, height_and_width


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
        refuse_unusable(self.splits(), self.classes)

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
            **loader_arguments(self._num_workers()),
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
        ranks = self._rank_and_world_size()
        return scored_loader(pictures, self.image_size, self.batch_size, self.antialias, self._num_workers(), *ranks)

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

    def _num_workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return free_cores(processes=1 if self.trainer is None else self.trainer.num_devices)
