"""From data sets to batches."""

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning
import numpy as np
import torch
from jaxtyping import UInt8
from lightning.fabric.utilities.data import suggested_max_num_workers
from torch.utils.data import DataLoader, Dataset, Sampler

from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.require import require_whole_number
from ssd_lightning.structures import Batch, ImageSize, Objects, Sample, Truth, height_and_width


@runtime_checkable
class Pictures(Protocol):
    """A data set by position. :class:`~ssd_lightning.data.formats.annotations.AnnotatedPictures` is one for picture files."""

    paths: list[Path]

    def __len__(self) -> int: ...

    def truth(self, index: int) -> Truth:
        """Known without decoding, so that augmentation can plan first."""

    def image(self, index: int, least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decoded, and possibly reduced, but not below ``least`` (height, width); ``None``: as it is."""

    def __getitem__(self, index: int) -> Sample:
        """Both, as they are."""


@runtime_checkable
class DetectionData(Protocol):
    """Where pictures come from: one entry of the config group ``data``."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def prepare(self) -> None: ...

    def train(self) -> Pictures: ...

    def val(self) -> Pictures: ...


class DetectionDataModule(lightning.LightningDataModule):
    """Loaders of batches for training and validation.

    What a training picture looks like depends on the seed, the epoch and its position in the data set, and on nothing
    else: neither on the number of workers nor on what was drawn before. A run can thus be taken up in mid-epoch.

    Args:
        data: where pictures come from.
        image_size: (height, width) of the network's input, or one number for both.
        batch_size: pictures of a batch, on each device.
        augmentation: of the training pictures; ``None``: they are only resized.
        num_workers: processes that decode and augment, for each device; ``None``: as many as cores are free, at most 8.
        seed: of shuffling and augmentation.
    """

    def __init__(
        self,
        data: DetectionData,
        image_size: ImageSize,
        batch_size: int,
        augmentation: Augmentation | None = None,
        num_workers: int | None = None,
        seed: int = 0,
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
        self.train_pictures: Pictures | None = None
        self.val_pictures: Pictures | None = None
        self._resume_from: dict[str, Any] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the object classes; the class of label n is at n - 1."""
        return tuple(self.data.classes)

    def prepare_data(self) -> None:
        self.data.prepare()

    def setup(self, stage: str | None = None) -> None:
        if self.train_pictures is None and stage in (None, "fit"):
            self.train_pictures = self.data.train()
        if self.val_pictures is None:
            self.val_pictures = self.data.val()
        for pictures, purpose in ((self.train_pictures, "training"), (self.val_pictures, "scoring")):
            if pictures is not None and len(pictures) == 0:
                raise ValueError(f"data: expected at least one picture for {purpose}, got none")
        if "background" in self.classes:
            raise ValueError(
                "data: expected classes of objects, got one called background, which is what label 0 is for; "
                "leave it out, or call it something else"
            )

    def train_dataloader(self) -> DataLoader:
        assert self.train_pictures is not None
        dataset = SampleDataset(self.train_pictures, self.augmentation, self.image_size, self.seed)
        sampler = ShuffledKeys(len(dataset), self.seed, *self._rank_and_world_size())
        if len(sampler) == 0:
            raise ValueError(
                f"data: expected at least a picture for training on each of {sampler.world_size} devices, "
                f"got {len(dataset)}"
            )
        # An incomplete last batch would weigh its few pictures more than the others.
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
        assert self.val_pictures is not None
        dataset = SampleDataset(self.val_pictures, Augmentation(), self.image_size, self.seed)
        return DataLoader(dataset, batch_sampler=self._validation_batches(len(dataset)), **self._loader_arguments())

    def _validation_batches(self, pictures: int) -> list[list["Key"]]:
        """The same on all ranks, but only its own are filled: each has a part that hangs together.

        So a batch is what it is on one rank, and so is what limits their number. All ranks take as many steps as the
        others and end together.
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
        """Where the epoch stands. Lightning saves it, and restores it before it asks for a loader.

        (It also restores the state of loaders by itself, but not when the number of steps was needed before, as it is
        by learning rates that are planned over the whole run.)
        """
        loader = self.trainer.train_dataloader if self.trainer is not None else None
        return loader.state_dict() if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
            "worker_init_fn": _leave_signals_to_the_main_process,
        }


class Key(NamedTuple):
    """What a sampler asks a data set for."""

    epoch: int
    position: int


class Item(NamedTuple):
    """What a data set gives to :func:`collate`."""

    sample: Sample
    image_id: int
    image_size: tuple[int, int]
    """Before resizing, (height, width)."""


class SampleDataset(Dataset):
    """Pictures as the network sees them, each with randomness of its own."""

    def __init__(
        self, pictures: Pictures, augmentation: Augmentation, image_size: tuple[int, int], seed: int = 0
    ) -> None:
        self.pictures = pictures
        self.augmentation = augmentation
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> Item:
        truth = self.pictures.truth(key.position)
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        view = self.augmentation.plan(truth, rng)
        image = self.pictures.image(key.position, view.least_size(self.image_size))
        return Item(self.augmentation.show(image, truth, view, self.image_size, rng), key.position, truth.size)


NO_EPOCH = -1


class ShuffledKeys(Sampler):
    """All positions in an order that depends on seed and epoch alone.

    Of several ranks each takes its share, as many as the others; Lightning's own way of sharing would
    hide this sampler (``Trainer(use_distributed_sampler=False)``).
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.total = length // world_size * world_size
        self.length = length
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._skip_in_epoch, self._skip_count = NO_EPOCH, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def skip(self, epoch: int, count: int) -> None:
        """Leave out the first ``count`` positions if the next epoch is that one."""
        self._skip_in_epoch, self._skip_count = epoch, count

    @property
    def start(self) -> int:
        """Positions of this epoch that are left out."""
        return self._skip_count if self._skip_in_epoch == self.epoch else 0

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        order = order[self.rank : self.total : self.world_size][self.start :]
        self._skip_in_epoch = NO_EPOCH
        return iter([Key(self.epoch, int(index)) for index in order])


class ResumableLoader(DataLoader):
    """Remembers how many batches of the epoch were taken, so that a run resumes with the next one.

    The state names the epoch, because an epoch may end before its last batch (``limit_train_batches``).
    """

    sampler: ShuffledKeys
    batch_size: int
    epoch = 0
    taken = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator serves as well
        self.epoch, self.taken = self.sampler.epoch, self.sampler.start // self.batch_size
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "taken": self.taken, "world_size": self.sampler.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises: ValueError: if the batches were those of another number of ranks."""
        before = state.get("world_size", 1)
        if before != self.sampler.world_size:
            raise ValueError(
                f"resume: expected as many devices as before, {before}, got {self.sampler.world_size}; with another "
                "number the batches, and the steps of the learning rate, would be others"
            )
        self.sampler.skip(state["epoch"], state["taken"] * self.batch_size)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM go to the workers too, while the main process still needs them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def free_cores(most: int = 8, processes: int = 1) -> int:
    """Processes that may load pictures for each of those that compute on this machine."""
    return min(most, suggested_max_num_workers(processes))


def collate(items: list[Item]) -> Batch:
    """Stack pictures and pad objects. Pictures come out channels-last in memory, which is how decoders write them."""
    pixels = np.stack([item.sample.image for item in items]) if items else np.zeros((0, 0, 0, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    most = max((len(item.sample.labels) for item in items), default=0)
    boxes = np.zeros((len(items), most, 4), dtype=np.float32)
    labels = np.zeros((len(items), most), dtype=np.int64)
    difficult = np.zeros((len(items), most), dtype=bool)
    valid = np.zeros((len(items), most), dtype=bool)
    for row, (sample, _, _) in enumerate(items):
        count = len(sample.labels)
        boxes[row, :count] = sample.boxes
        labels[row, :count] = sample.labels
        difficult[row, :count] = sample.difficult
        valid[row, :count] = True
    return Batch(
        images,
        Objects(*map(torch.from_numpy, (boxes, labels, difficult, valid))),
        torch.tensor([item.image_id for item in items], dtype=torch.int64),
        torch.tensor([item.image_size for item in items], dtype=torch.int64).view(-1, 2),
    )
