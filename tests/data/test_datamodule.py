"""Batches: the same for every number of workers, resumable, padded, complete."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from in_memory import InMemoryPictures

from ssd_lightning.data.augmentation.colours import BrightnessContrast
from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.augmentation.windows import ZoomIn
from ssd_lightning.data.batches import Item, Key, ResumableLoader, SampleDataset, ShuffledKeys, collate
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.devices import free_cores
from ssd_lightning.records import Sample
from ssd_lightning.signals import STOPPING
from ssd_lightning.structures import Batch


class NumberedPictures(InMemoryPictures):
    """Picture n is 10 + n pixels high and 20 wide, all of colour n, and has n % 3 objects."""

    def __init__(self, length: int) -> None:
        self.paths = [Path(f"{index}.png") for index in range(length)]

    def __getitem__(self, index: int) -> Sample:
        return sample(height=10 + index, width=20, colour=index, objects=index % 3)


class NumberedData:
    classes = ("one", "two", "three")

    def __init__(self, num_train: int = 10, num_val: int = 5) -> None:
        self.num_train, self.num_val, self.prepared = num_train, num_val, 0

    def prepare(self) -> None:
        self.prepared += 1

    def train(self) -> NumberedPictures:
        return NumberedPictures(self.num_train)

    def val(self) -> NumberedPictures:
        return NumberedPictures(self.num_val)


def sample(height: int = 8, width: int = 8, colour: int = 0, objects: int = 1) -> Sample:
    """Make a sample. Object k has label k + 1 and the box (¼, ¼, ½, ¼ + 1 / (2k + 2)), and is difficult if k > 0."""
    boxes = [(0.25, 0.25, 0.5, 0.25 + 0.5 / (k + 1)) for k in range(objects)]
    return Sample(
        np.full((height, width, 3), colour, dtype=np.uint8),
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.arange(1, objects + 1),
        np.arange(objects) > 0,
    )


def datamodule(data: NumberedData | None = None, batch_size: int = 3, **settings) -> DetectionDataModule:
    settings = {"num_workers": 0, "augmentation": Augmentation([ZoomIn()], 0.5, 0.5, [BrightnessContrast()])} | settings
    module = DetectionDataModule(data or NumberedData(), image_size=16, batch_size=batch_size, **settings)
    module.setup("fit")
    return module


def train_batches(module: DetectionDataModule, epoch: int = 0) -> list[Batch]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same_batches(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        tensors, other_tensors = ((*b[0:1], *b.objects, *b[2:]) for b in (batch, other))
        for tensor, other_tensor in zip(tensors, other_tensors, strict=True):
            assert torch.equal(tensor, other_tensor)


def ids(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.image_ids.tolist()]


# --- the same numbers for the same seed ---


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(num_workers: int) -> None:
    alone, helped = datamodule(), datamodule(num_workers=num_workers)
    loaders = alone.train_dataloader(), helped.train_dataloader()
    for epoch in (0, 1):  # the second epoch is by the same processes
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        assert_same_batches(list(loaders[0]), list(loaders[1]))
    assert_same_batches(list(alone.val_dataloader()), list(helped.val_dataloader()))


def test_an_epoch_can_be_repeated_and_does_not_depend_on_what_was_drawn_before() -> None:
    module = datamodule()
    second = train_batches(module, epoch=1)
    train_batches(module, epoch=0)
    torch.manual_seed(99)
    np.random.seed(99)  # the state of these generators must not matter
    assert_same_batches(train_batches(module, epoch=1), second)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation() -> None:
    runs = {
        (seed, epoch): train_batches(datamodule(seed=seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert len({tuple(ids(batches)) for batches in runs.values()}) == 4
    # Picture 8 has the most objects: its pixels must differ from epoch to epoch and from seed to seed.
    pictures = {
        batch.images[row].numpy().tobytes()
        for batches in runs.values()
        for batch in batches
        for row, index in enumerate(batch.image_ids.tolist())
        if index == 8
    }
    assert len(pictures) == sum(8 in ids(batches) for batches in runs.values()) >= 3


def test_what_a_picture_looks_like_depends_on_its_key_alone() -> None:
    dataset = SampleDataset(NumberedPictures(9), Augmentation([ZoomIn(1.0)]), (16, 16), seed=5)
    first, *_, again = (dataset[Key(3, 8)] for _ in range(3))
    np.testing.assert_array_equal(first.sample.image, again.sample.image)
    np.testing.assert_array_equal(first.sample.boxes, again.sample.boxes)
    assert not np.array_equal(first.sample.boxes, dataset[Key(4, 8)].sample.boxes)


# --- order ---


def test_shuffled_keys_are_every_position_once() -> None:
    sampler = ShuffledKeys(100, seed=0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == [Key(epoch, position) for position in range(100)]
        orders.append(keys)
    assert len({tuple(key[1] for key in keys) for keys in orders}) == 3
    assert len(sampler) == 100
    assert list(ShuffledKeys(100, seed=0)) == orders[0]
    assert list(ShuffledKeys(100, seed=1)) != orders[0]


def test_an_incomplete_last_batch_is_left_out_of_training() -> None:
    batches = train_batches(datamodule(NumberedData(num_train=10), batch_size=3))
    assert [len(batch.images) for batch in batches] == [3, 3, 3]
    assert len(set(ids(batches))) == 9


@pytest.mark.parametrize(("num_train", "sizes"), [(1, [1]), (2, [2]), (3, [3]), (6, [3, 3])])
def test_a_data_set_smaller_than_the_batch_is_one_batch(num_train: int, sizes: list[int]) -> None:
    batches = train_batches(datamodule(NumberedData(num_train), batch_size=3))
    assert [len(batch.images) for batch in batches] == sizes
    assert sorted(ids(batches)) == list(range(num_train))


def test_validation_is_in_order_complete_and_not_augmented() -> None:
    module = datamodule(NumberedData(num_val=5), batch_size=3)
    batches = list(module.val_dataloader())
    assert [len(batch.images) for batch in batches] == [3, 2]
    assert ids(batches) == [0, 1, 2, 3, 4]
    for batch in batches:
        for row, index in enumerate(batch.image_ids.tolist()):
            assert (batch.images[row] == index).all()
            expected = sample(objects=index % 3)
            np.testing.assert_array_equal(batch.objects.boxes[row][: index % 3], expected.boxes)
    assert_same_batches(list(module.val_dataloader()), batches)


# --- resuming ---


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("taken", [1, 2])
def test_a_resumed_loader_gives_the_rest_of_its_epoch_then_whole_ones(taken: int, num_workers: int) -> None:
    module = datamodule(num_workers=num_workers)
    uninterrupted = [train_batches(module, epoch) for epoch in range(4)]

    stopped = module.train_dataloader()
    stopped.sampler.set_epoch(2)
    iterator = iter(stopped)
    assert_same_batches([next(iterator) for _ in range(taken)], uninterrupted[2][:taken])
    state = stopped.state_dict()
    del iterator

    resumed = datamodule(num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(2)
    assert len(resumed) == 3  # batches of a whole epoch: progress is counted by Lightning
    assert_same_batches(list(resumed), uninterrupted[2][taken:])
    resumed.sampler.set_epoch(3)
    assert_same_batches(list(resumed), uninterrupted[3])


def test_a_run_that_was_resumed_can_be_resumed_again() -> None:
    whole = train_batches(datamodule())
    first = datamodule().train_dataloader()
    next(iter(first))
    second = datamodule().train_dataloader()
    second.load_state_dict(first.state_dict())
    next(iter(second))
    third = datamodule().train_dataloader()
    third.load_state_dict(second.state_dict())
    assert_same_batches(list(third), whole[2:])


@pytest.mark.parametrize("taken", [2, 3])
def test_a_state_from_the_end_of_an_epoch_leaves_the_next_one_whole(taken: int) -> None:
    """One epoch ends before its last batch, as with Trainer(limit_train_batches=2)."""
    finished = datamodule().train_dataloader()
    iterator = iter(finished)
    for _ in range(taken):
        next(iterator)
    resumed = datamodule().train_dataloader()
    resumed.load_state_dict(finished.state_dict())
    resumed.sampler.set_epoch(1)
    assert_same_batches(list(resumed), train_batches(datamodule(), epoch=1))


def test_the_data_module_hands_its_state_to_the_next_training_loader_only() -> None:
    whole = train_batches(datamodule())
    module = datamodule()
    module.load_state_dict({"epoch": 0, "taken": 1})
    assert_same_batches(train_batches(module), whole[1:])
    assert_same_batches(train_batches(module), whole)


def test_without_a_trainer_there_is_no_state() -> None:
    assert datamodule().state_dict() == {}


# --- batches ---


def item(objects: int, index: int = 0) -> Item:
    return Item(sample(objects=objects, colour=index), index, (100 + index, 200 + index))


def test_objects_are_padded_to_the_most_of_any_picture() -> None:
    batch = collate([item(1, 7), item(0, 8), item(3, 9)])
    assert batch.objects.valid.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert batch.objects.labels.tolist() == [[1, 0, 0], [0, 0, 0], [1, 2, 3]]
    assert batch.objects.difficult.tolist() == [[False] * 3, [False] * 3, [False, True, True]]
    np.testing.assert_allclose(batch.objects.boxes[2, :, 3], [3 / 4, 1 / 2, 5 / 12], rtol=1e-6)
    assert (batch.objects.boxes[~batch.objects.valid] == 0).all()
    assert batch.image_ids.tolist() == [7, 8, 9]
    assert batch.image_sizes.tolist() == [[107, 207], [108, 208], [109, 209]]
    assert batch.images[:, 0, 0, 0].tolist() == [7, 8, 9]


def test_types_of_a_batch() -> None:
    batch = collate([item(2), item(0)])
    assert batch.images.dtype == torch.uint8
    assert batch.objects.boxes.dtype == torch.float32
    assert batch.objects.labels.dtype == batch.image_ids.dtype == batch.image_sizes.dtype == torch.int64
    assert batch.objects.difficult.dtype == batch.objects.valid.dtype == torch.bool


@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_without_any_object(count: int) -> None:
    batch = collate([item(0) for _ in range(count)])
    assert batch.objects.boxes.shape == (count, 0, 4)
    for tensor in (batch.objects.labels, batch.objects.difficult, batch.objects.valid):
        assert tensor.shape == (count, 0)


def test_many_objects() -> None:
    batch = collate([item(300), item(1)])
    assert batch.objects.valid.sum(dim=1).tolist() == [300, 1]
    assert batch.objects.labels[0].tolist() == list(range(1, 301))


def test_pictures_are_channels_last_in_memory() -> None:
    for batch in train_batches(datamodule()):
        assert batch.images.shape == (3, 3, 16, 16)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_ids_and_sizes_refer_to_the_pictures_of_the_data_set() -> None:
    module = datamodule(augmentation=None)
    assert module.train_pictures is not None
    for batch in train_batches(module):
        for row, index in enumerate(batch.image_ids.tolist()):
            assert module.train_pictures.paths[index] == Path(f"{index}.png")
            assert batch.image_sizes[row].tolist() == [10 + index, 20]
            assert (batch.images[row] == index).all()
            assert batch.objects.valid[row].sum() == index % 3


def test_a_picture_size_is_height_and_width() -> None:
    module = DetectionDataModule(NumberedData(), image_size=[12, 24], batch_size=2, num_workers=0)
    module.setup("fit")
    assert next(iter(module.train_dataloader())).images.shape == (2, 3, 12, 24)


# --- workers ---


class WorkerPictures(NumberedPictures):
    """Samples with the process that made them as label, and its handling of signals as flags."""

    def __getitem__(self, index: int) -> Sample:
        ignored = [signal.getsignal(number) == signal.SIG_IGN for number in STOPPING]
        objects = len(STOPPING)
        return sample(objects=objects)._replace(labels=np.array([os.getpid()] * objects), difficult=np.array(ignored))


def test_workers_leave_signals_to_the_main_process() -> None:
    """Otherwise Ctrl-C in a terminal, which goes to all of them, would break the run before it can be saved."""
    module = datamodule(num_workers=1, batch_size=1, augmentation=None)
    module.train_pictures = WorkerPictures(12)
    iterator = iter(module.train_dataloader())
    batch = next(iterator)
    assert batch.objects.difficult.all()
    worker = int(batch.objects.labels[0, 0])
    assert worker != os.getpid()
    for number in STOPPING:
        os.kill(worker, number)
    assert {int(batch.objects.labels[0, 0]) for batch in iterator} == {worker}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_default_number_of_workers_is_what_the_machine_has_to_spare() -> None:
    assert 0 <= free_cores() <= 8
    assert free_cores(most=0) == 0
    assert datamodule(num_workers=None).train_dataloader().num_workers == free_cores()


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"batch_size": -3}, "batch_size: expected a whole number of at least 1, got -3"),
        ({"num_workers": -1}, "num_workers: expected a whole number of at least 0, got -1"),
        ({"image_size": 0}, "image_size: expected .* got 0"),
        ({"image_size": [300, 300, 3]}, r"image_size: expected .* got \[300, 300, 3\]"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionDataModule(NumberedData(), **{"image_size": 16, "batch_size": 1, **arguments})


def test_data_is_prepared_and_read_when_lightning_asks() -> None:
    data = NumberedData()
    module = DetectionDataModule(data, 16, 1)
    assert (data.prepared, module.train_pictures, module.val_pictures) == (0, None, None)
    assert module.classes == ("one", "two", "three")
    module.prepare_data()
    assert data.prepared == 1
    module.setup("validate")
    assert module.train_pictures is None
    assert module.val_pictures is not None
    read = module.val_pictures
    module.setup("fit")
    assert module.train_pictures is not None
    assert module.val_pictures is read


class NumbersWithTest(NumberedData):
    def test(self) -> NumberedPictures | None:
        return NumberedPictures(7)


def test_pictures_of_a_test_are_read_for_a_training_and_for_a_test() -> None:
    for stage, read in {
        "fit": {"training": 10, "scoring": 5, "the test": 7},
        "validate": {"scoring": 5},
        "test": {"the test": 7},
    }.items():
        module = DetectionDataModule(NumbersWithTest(), 16, 3, num_workers=0)
        module.setup(stage)
        assert {purpose: len(pictures) for purpose, pictures in module.splits().items()} == read
    batches = list(module.test_dataloader())
    assert [batch.image_ids.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_data_need_not_have_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of other packages have no such method."""
    assert set(datamodule().splits()) == {"training", "scoring"}
    monkeypatch.setattr(NumbersWithTest, "test", lambda data: None)
    assert set(datamodule(NumbersWithTest()).splits()) == {"training", "scoring"}


def test_an_empty_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NumbersWithTest, "test", lambda data: NumberedPictures(0))
    with pytest.raises(ValueError, match=r"data: expected at least one picture for the test, got none"):
        datamodule(NumbersWithTest())


def test_the_training_loader_can_be_resumed_and_the_other_need_not_be() -> None:
    module = datamodule()
    assert isinstance(module.train_dataloader(), ResumableLoader)
    assert not isinstance(module.val_dataloader(), ResumableLoader)


def test_no_class_is_called_background() -> None:
    data = NumberedData()
    data.classes = ("background", "two", "three")
    with pytest.raises(ValueError, match="data: expected classes of objects, got one called background"):
        DetectionDataModule(data, image_size=16, batch_size=1).setup()
