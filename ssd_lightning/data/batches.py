"""The way of pictures into batches: the order of an epoch, shared by ranks and resumed in mid-epoch, and collation.

ShuffledKeys ── Key ──> SampleDataset ── Item ──> collate ──> Batch
"""

import math
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.data_set import Pictures
from ssd_lightning.records import Sample
from ssd_lightning.signals import STOPPING
from ssd_lightning.structures import Batch, Objects


class Key(NamedTuple):
    """The request of a sampler to a data set."""

    epoch: int
    position: int


class Item(NamedTuple):
    """A sample on its way from a data set to :func:`collate`."""

    sample: Sample
    image_id: int
    """Position of the picture in the data set."""
    image_size: tuple[int, int]
    """(height, width) of the picture before it is resized."""


class SampleDataset(Dataset):
    """Pictures, augmented and resized for the network; each draws its random numbers by seed, epoch and position."""

    def __init__(
        self,
        pictures: Pictures,
        augmentation: Augmentation,
        image_size: tuple[int, int],
        seed: int = 0,
        antialias: bool = True,
    ) -> None:
        self.pictures = pictures
        self.augmentation = augmentation
        self.image_size = image_size
        self.seed = seed
        self.antialias = antialias

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> Item:
        truth = self.pictures.truth(key.position)
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        view = self.augmentation.plan(truth, rng)
        image = self.pictures.image(key.position, view.least_size(self.image_size) if self.antialias else None)
        sample = self.augmentation.show(image, truth, view, self.image_size, rng, self.antialias)
        return Item(sample, key.position, truth.size)


NO_EPOCH = -1
"""The epoch of which nothing is skipped."""


class ShuffledKeys(Sampler):
    """A sampler of all positions, in an order that depends only on seed and epoch.

    Several ranks take shares of equal length. Lightning's own distributed sampler would hide this one, so the trainer
    is built with ``use_distributed_sampler=False``.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.total = length // world_size * world_size
        self.length = length
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._skip_in_epoch, self._skip_count = NO_EPOCH, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def skip(self, epoch: int, count: int) -> None:
        """Leave out the first ``count`` positions if the next epoch is ``epoch``."""
        self._skip_in_epoch, self._skip_count = epoch, count

    @property
    def start(self) -> int:
        """Number of positions of this epoch that are left out."""
        return self._skip_count if self._skip_in_epoch == self.epoch else 0

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        order = order[self.rank : self.total : self.world_size][self.start :]
        self._skip_in_epoch = NO_EPOCH
        return iter([Key(self.epoch, int(index)) for index in order])


class ResumableLoader(DataLoader):
    """A loader that counts the batches of the epoch, so that a run resumes with the next batch.

    The state holds the epoch, too, because an epoch may end before its last batch (``limit_train_batches``).
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
        """Return the position in the epoch."""
        return {"epoch": self.epoch, "taken": self.taken, "world_size": self.sampler.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume with the batch after the ones that were taken.

        Raises:
            ValueError: if the state comes from another number of ranks.
        """
        before = state.get("world_size", 1)
        if before != self.sampler.world_size:
            raise ValueError(
                f"resume: expected {before} devices as before, got {self.sampler.world_size}, which would change the "
                "batches. Try trainer.devices and trainer.num_nodes of the first start."
            )
        self.sampler.skip(state["epoch"], state["taken"] * self.batch_size)


def leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore signals that ask to stop in a worker: they reach the workers, too, while the main process needs them."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def collate(items: list[Item]) -> Batch:
    """Stack pictures and pad objects. The pictures are channels-last in memory, as decoders write them."""
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


def scored_loader(
    pictures: Pictures,
    image_size: tuple[int, int],
    batch_size: int,
    antialias: bool = True,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return a loader of one rank's batches of pictures that are only resized, among the empty batches of other ranks.

    Each batch has the same pictures as on a single rank, and all ranks take the same number of steps. Each rank has
    a contiguous part of the batches.

    Args:
        pictures: the pictures to score on.
        image_size: (height, width) of the network's input.
        batch_size: number of pictures in a batch.
        antialias: resize with anti-aliasing; see :class:`~ssd_lightning.detector.model.SSD`.
        num_workers: number of processes that decode.
        rank: number of this process.
        world_size: number of processes.
    """
    count = math.ceil(len(pictures) / batch_size)
    batches = [
        [Key(0, index) for index in range(len(pictures))[number * batch_size :][:batch_size]]
        if number * world_size // count == rank
        else []
        for number in range(count)
    ]
    dataset = SampleDataset(pictures, Augmentation(), image_size, antialias=antialias)
    return DataLoader(dataset, batch_sampler=batches, **loader_arguments(num_workers))


def loader_arguments(num_workers: int) -> dict[str, Any]:
    """Return the arguments that all loaders have."""
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": num_workers > 0,
        "worker_init_fn": leave_signals_to_the_main_process,
    }
