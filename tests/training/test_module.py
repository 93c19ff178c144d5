"""A training on a few small pictures. Above all, an interrupted and resumed run ends as an undisturbed one."""

import csv
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from banana_folder import write_banana_folder
from one_line import refused
from small_training import (
    NUM_TRAIN,
    NUM_VAL,
    SIDE,
    STEPS,
    Crash,
    Signal,
    assert_same_run,
    make_data,
    make_module,
    make_trainer,
)

from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.losses import L1, FocalLoss, MeanOverBoxesLoss, MultiBoxLoss
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.signals import StoppedBySignal
from ssd_lightning.training.checkpoint import CONFIG_KEY
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.schedules import one_cycle

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)


@pytest.fixture(scope="module")
def bananas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_banana_folder(tmp_path_factory.mktemp("bananas"), NUM_TRAIN, NUM_VAL, SIDE)


# --- a step ---


@pytest.mark.parametrize("loss", [MultiBoxLoss(), MeanOverBoxesLoss()])
def test_a_step_is_forward_matching_and_loss(bananas: Path, loss: torch.nn.Module) -> None:
    module, data = make_module(loss=loss, matcher=BoxMatcher(iou_threshold=0.4)), make_data(bananas)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    predictions = module.model(batch.images)
    matches = BoxMatcher(iou_threshold=0.4)(batch.objects, module.model.default_boxes)
    expected = loss(predictions, matches, module.model.default_boxes).total
    assert (matches.labels > 0).any()
    found = module.training_step(batch, 0)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_weights_are_channels_last_as_pictures_are() -> None:
    weight = make_module().model.head.classification[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


# --- a run ---

TRAIN_KEYS = {"train/loss", "train/loss_classification", "train/loss_localization"}
SCORE_KEYS = {"val/map", "val/map_50", "val/map_75", "val/map_voc07", "val/map_voc12"}
VAL_KEYS = {"val/loss", "val/loss_classification", "val/loss_localization", "val/class_error", "val/box_mae"}


@pytest.fixture(scope="module")
def finished(bananas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder)
    trainer.fit(make_module(), make_data(bananas), weights_only=True)
    assert trainer.global_step == 3 * STEPS
    trainer.save_checkpoint(folder / "end.ckpt")
    return folder


def test_every_step_and_every_epoch_is_logged(finished: Path) -> None:
    rows = read_metrics(finished / "metrics.csv")
    assert list(rows) == list(range(3 * STEPS))
    for step, row in rows.items():
        statistics = {key for key in row if key.startswith("statistics/")}
        own = {"step", "epoch", "lr-AdamW"} | TRAIN_KEYS | statistics
        assert statistics
        is_last_of_epoch = step % STEPS == STEPS - 1
        assert set(row) == (own | SCORE_KEYS | VAL_KEYS if is_last_of_epoch else own)
        assert row["epoch"] == step // STEPS
        assert all(math.isfinite(value) for value in row.values())
        parts = row["train/loss_classification"] + row["train/loss_localization"]
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5)
        assert all(0 <= row[key] <= 1 for key in SCORE_KEYS & set(row))


def test_checkpoints_are_plain_data(finished: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(finished / "checkpoints" / name, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in content["state_dict"].values())
        assert CONFIG_KEY not in content


def test_the_config_goes_into_every_checkpoint(bananas: Path, tmp_path: Path) -> None:
    config = {"model": {"a": [1, 2.5, None, "text"]}, "classes": ["banana"]}
    make_trainer(tmp_path, epochs=1).fit(make_module(config=config), make_data(bananas))
    for name in ("best.ckpt", "last.ckpt"):
        assert torch.load(tmp_path / "checkpoints" / name, weights_only=True)[CONFIG_KEY] == config


def test_validation_scores_are_those_of_the_validation_pictures(bananas: Path, tmp_path: Path) -> None:
    module, data = make_module(), make_data(bananas)
    [scores] = make_trainer(tmp_path).validate(module, data, verbose=False)
    assert set(scores) == SCORE_KEYS | VAL_KEYS
    objects = module.scores.objects()
    assert objects.image_ids.tolist() == list(range(NUM_VAL))
    assert data.val_pictures is not None
    for index in range(NUM_VAL):  # boxes in pixels, as in label.csv
        assert objects.boxes[index] == pytest.approx(data.val_pictures[index].boxes[0] * SIDE)
    assert set(module.scores.detections().image_ids.tolist()) <= set(range(NUM_VAL))


def without_rows(root: Path, split: str, keep: int) -> Path:
    """Remove all but the first rows of label.csv, so that the other pictures have no objects."""
    path = root / split / "label.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows[: 1 + keep])
    return root


@pytest.mark.parametrize("keep", [0, 1])
def test_pictures_without_objects_are_ordinary(tmp_path: Path, keep: int) -> None:
    """Losses are finite. Scores are NaN if no picture has an object."""
    root = write_banana_folder(tmp_path / "data", num_train=4, num_val=3, side=SIDE)
    for split in ("bananas_train", "bananas_val"):
        without_rows(root, split, keep)
    make_trainer(tmp_path / "run", epochs=1).fit(make_module(), make_data(root))
    row = read_metrics(tmp_path / "run" / "metrics.csv")[0]
    assert all(math.isfinite(row[key]) for key in TRAIN_KEYS | VAL_KEYS)
    assert {math.isnan(row[key]) for key in SCORE_KEYS} == {keep == 0}


@pytest.mark.parametrize("loss", [MultiBoxLoss(), MultiBoxLoss(FocalLoss(), L1(), alpha=2), MeanOverBoxesLoss()])
@pytest.mark.parametrize("keep", [0, 3])
def test_validation_losses_do_not_depend_on_the_batch_size(tmp_path: Path, loss: torch.nn.Module, keep: int) -> None:
    """All but the first pictures have no objects. One batch of all pictures has the loss itself."""
    root = without_rows(write_banana_folder(tmp_path, num_train=1, num_val=8, side=SIDE), "bananas_val", keep)
    found = {}
    for size in (8, 3, 1):
        module, data = make_module(loss=loss), make_data(root)
        data.batch_size = size
        [found[size]] = make_trainer(tmp_path).validate(module, data, verbose=False)
    [batch] = list(data_of_one_batch(root).val_dataloader())
    module.model.eval()
    with torch.no_grad():
        predictions = module.model(batch.images)
    matches = module.matcher(batch.objects, module.model.default_boxes)
    expected = module.loss.eval()(predictions, matches, module.model.default_boxes)
    for values in found.values():
        for name, value in zip(("loss", "loss_classification", "loss_localization"), expected, strict=True):
            assert values[f"val/{name}"] == pytest.approx(value.item(), rel=1e-6, abs=1e-7)
        for name in ("val/class_error", "val/box_mae"):
            assert values[name] == pytest.approx(found[8][name], rel=1e-6)


def data_of_one_batch(root: Path) -> DetectionDataModule:
    data = make_data(root)
    data.batch_size = NUM_VAL * 2
    data.setup("fit")
    return data


def test_optimizer_and_schedule_are_made_for_the_whole_run(bananas: Path, tmp_path: Path) -> None:
    planned = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        planned.append(steps)
        return one_cycle(optimizer, steps)

    module = make_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.125), lr_scheduler=schedule)
    trainer = make_trainer(tmp_path, epochs=2)
    trainer.fit(module, make_data(bananas))
    assert planned == [2 * STEPS]
    rates = [row["lr-SGD"] for row in read_metrics(tmp_path / "metrics.csv").values()]
    assert rates[0] == pytest.approx(0.125 * 0.04)  # the start of one_cycle
    assert max(rates) == pytest.approx(0.125, rel=0.05)
    assert len(set(rates)) == 2 * STEPS  # it goes by steps, not by epochs


def interrupted_and_resumed(
    root: Path, folder: Path, *interruptions: lightning.Callback, num_workers: int = 0, **settings: Any
) -> Path:
    """Train, resume after each interruption, and return the run folder."""
    last: Path | None = None
    for interruption in interruptions:
        with pytest.raises((StoppedBySignal, ConnectionError)):
            make_trainer(folder, interruption, **settings).fit(
                make_module(), make_data(root, num_workers), ckpt_path=last, weights_only=True
            )
        last = folder / "checkpoints" / "last.ckpt"
        assert last.exists()
    trainer = make_trainer(folder, **settings)
    trainer.fit(make_module(), make_data(root, num_workers), ckpt_path=last, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return folder


@pytest.mark.parametrize(
    ("step", "num_workers"),
    [(0, 0), (STEPS - 1, 0), (STEPS, 0), (STEPS + 1, 0), (STEPS + 1, 1), (3 * STEPS - 1, 0)],
    ids=["first step", "end of an epoch", "start of an epoch", "mid-epoch", "mid-epoch, with a worker", "last step"],
)
def test_a_run_that_is_stopped_by_a_signal(
    bananas: Path, tmp_path: Path, finished: Path, step: int, num_workers: int
) -> None:
    folder = interrupted_and_resumed(bananas, tmp_path, Signal(step), num_workers=num_workers)
    assert_same_run(folder, finished)


@pytest.mark.parametrize("step", [STEPS, STEPS + 1], ids=["between epochs", "mid-epoch"])
def test_a_run_that_dies(bananas: Path, tmp_path: Path, finished: Path, step: int) -> None:
    """The run resumes from the checkpoint of the epoch before, and replaces what was logged since then."""
    assert_same_run(interrupted_and_resumed(bananas, tmp_path, Crash(step)), finished)


def test_a_run_that_is_interrupted_again_and_again(bananas: Path, tmp_path: Path, finished: Path) -> None:
    interruptions = (Signal(0), Signal(1), Crash(2), Signal(2), Signal(4), Crash(8))
    assert_same_run(interrupted_and_resumed(bananas, tmp_path, *interruptions), finished)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"accumulate_grad_batches": 2}, [0, 1]),
        ({"limit_train_batches": 2}, [1, 2]),
        ({"check_val_every_n_epoch": 2}, [1, 2]),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, [0, 1]),
    ],
    ids=str,
)
def test_other_ways_to_count_steps(bananas: Path, tmp_path: Path, settings: dict[str, Any], steps: list[int]) -> None:
    undisturbed = interrupted_and_resumed(bananas, tmp_path / "undisturbed", epochs=2, **settings)
    for step in steps:
        resumed = interrupted_and_resumed(bananas, tmp_path / str(step), Signal(step), epochs=2, **settings)
        assert_same_run(resumed, undisturbed)


# --- parts ---


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize("name", ["matcher", "loss", "postprocess", "optimizer", "lr_scheduler", "parameter_groups"])
@pytest.mark.parametrize("value", ["abc", 3])
def test_a_part_that_is_none_is_refused(name: str, value: object) -> None:
    with refused(name, value):
        make_module(**{name: value})


def test_an_adaptive_matcher_refuses_default_boxes_that_are_cut_at_the_border() -> None:
    """Cut boxes have shapes of their own, each of which would give nine candidates."""
    scales = [0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
    for clip in (None, "size", "centre_and_size", "border"):
        model = SSD(Tiny((4, 8, 8), channels=8), DefaultBoxes(scales, [[2]] * 5, clip=clip), 1, image_size=SIDE)
        SSDModule(model, BoxMatcher())
        if clip == "border":
            with refused("matcher", "AdaptiveMatcher", "model.default_boxes.clip=null"):
                SSDModule(model, AdaptiveMatcher())
        else:
            assert isinstance(SSDModule(model, AdaptiveMatcher()).matcher, AdaptiveMatcher)


def test_a_learning_rate_for_a_batch_needs_a_datamodule(bananas: Path, tmp_path: Path) -> None:
    data = make_data(bananas)
    data.setup("fit")
    trainer = lightning.Trainer(max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with refused("lr_reference_batch", "datamodule"):
        trainer.fit(make_module(lr_reference_batch=32), data.train_dataloader())
