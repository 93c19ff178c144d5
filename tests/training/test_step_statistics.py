"""Step statistics: compared with slow loops, and as a run logs them."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import pytest
import torch
from command_line import QUICK
from lightning.pytorch.callbacks import ModelCheckpoint
from small_training import BATCH_SIZE, STEPS, make_data, make_module
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torchvision.ops import box_iou

from ssd_lightning import collectives
from ssd_lightning.detector.boxes import cxcywh_to_xyxy
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.losses import FocalLoss, MeanOverBoxesLoss, MinedCrossEntropy, MultiBoxLoss
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher
from ssd_lightning.drawing import save_figure
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.structures import Matches, Objects, Predictions
from ssd_lightning.training.figures import draw_training_statistics
from ssd_lightning.training.loggers.metrics_file import MetricsFile
from ssd_lightning.training.step_statistics import TrainingStatistics

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)

GRIDS = [(6, 5), (2, 2), (1, 1)]
LAYOUT = DefaultBoxes([0.15, 0.3, 0.6, 1.0], [[2.0], [2.0, 3.0], [2.0]])
DEFAULT_BOXES = LAYOUT(GRIDS, (64, 64))
BOXES_OF_LEVEL = [30 * 4, 4 * 6, 4]
CLASSES = 3

ONE = (0.1, 0.12, 0.42, 0.42)
SAME = (0.11, 0.12, 0.42, 0.41)
"""A box with the same best default box as ``ONE``."""
LARGE = (0.1, 0.0, 0.9, 0.9)
TINY = (0.5, 0.5, 0.52, 0.52)
"""A box with a low IoU with all default boxes."""
PICTURES: dict[str, list[list[tuple[float, ...]]]] = {
    "no objects": [[], []],
    "one object": [[ONE]],
    "one object that is not reached": [[TINY]],
    "one on the level of one cell": [[LARGE]],
    "two that share the best default box": [[ONE, SAME], []],
    "the same twice and thrice": [[ONE, ONE], [LARGE, LARGE, LARGE]],
    "some": [[ONE, TINY, LARGE], [], [SAME], [LARGE, ONE, SAME, TINY, ONE]],
}
MATCHERS = {
    "iou50": BoxMatcher(),
    "ignore band": BoxMatcher(0.6, 0.3),
    "low": BoxMatcher(0.2),
    "adaptive": AdaptiveMatcher(),
}
MININGS = {
    "paper": MinedCrossEntropy(),
    "none without positives": MinedCrossEntropy(2.5, 0),
    "all": MinedCrossEntropy(1e6),
    "nobody mines": None,
}


class Scene(NamedTuple):
    """The input of the statistics."""

    predictions: Predictions
    matches: Matches
    objects: Objects
    default_boxes: Tensor


def make_objects(pictures: list[list[tuple[float, ...]]]) -> Objects:
    most = max(map(len, pictures))
    boxes = torch.zeros(len(pictures), most, 4)
    for picture, its_boxes in enumerate(pictures):
        boxes[picture, : len(its_boxes)] = torch.tensor(its_boxes).view(-1, 4)
    valid = torch.arange(most) < torch.tensor([len(its_boxes) for its_boxes in pictures]).unsqueeze(1)
    labels = (1 + torch.arange(most) % CLASSES) * valid
    return Objects(boxes, labels, torch.zeros_like(valid), valid)


def make_scene(pictures: list[list[tuple[float, ...]]], matcher: BoxMatcher = MATCHERS["iou50"]) -> Scene:
    generator = torch.Generator().manual_seed(len(pictures))
    shape = len(pictures), len(DEFAULT_BOXES)
    predictions = Predictions(
        3 * torch.randn(*shape, CLASSES + 1, generator=generator), torch.randn(*shape, 4, generator=generator)
    )
    objects = make_objects(pictures)
    return Scene(predictions, matcher(objects, DEFAULT_BOXES), objects, DEFAULT_BOXES)


def part(scene: Scene, pictures: slice) -> Scene:
    predictions, matches, objects, default_boxes = scene
    return Scene(
        Predictions(*(values[pictures] for values in predictions)),
        Matches(*(values[pictures] for values in matches)),
        Objects(*(values[pictures] for values in objects)),
        default_boxes,
    )


def statistics_of(*scenes: Scene, threshold: float = 0.5, mining: MinedCrossEntropy | None = None) -> dict[str, float]:
    statistics = TrainingStatistics(BOXES_OF_LEVEL, threshold, mining)
    for scene in scenes:
        statistics.add(*scene)
    return statistics.take()


# --- the definitions as slow loops ---


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def offsets_to(box: list[float], default_box: list[float]) -> list[float]:
    (left, top, right, bottom), (x, y, width, height) = box, default_box
    return [
        ((left + right) / 2 - x) / width / 0.1,
        ((top + bottom) / 2 - y) / height / 0.1,
        math.log((right - left) / width) / 0.2,
        math.log((bottom - top) / height) / 0.2,
    ]


def slow_statistics(
    scene: Scene, boxes_of_level: list[int], threshold: float, mining: MinedCrossEntropy | None
) -> dict[str, float]:
    predictions, matches, objects, default_boxes = scene
    found: dict[str, float | None] = {}
    labels = matches.labels.tolist()
    for level, count in enumerate(boxes_of_level):
        first = sum(boxes_of_level[:level])
        positives, targets, errors = [], [], []
        for picture, its_labels in enumerate(labels):
            of_picture = [box for box in range(first, first + count) if its_labels[box] > 0]
            positives.append(len(of_picture))
            for box in of_picture:
                wanted = offsets_to(
                    objects.boxes[picture, matches.objects[picture, box]].tolist(), default_boxes[box].tolist()
                )
                predicted = predictions.offsets[picture, box].tolist()
                targets += [abs(value) for value in wanted]
                errors += [abs(one - other) for one, other in zip(predicted, wanted, strict=True)]
        found[f"positives_level_{level + 1}"] = mean(positives)
        found[f"offset_target_level_{level + 1}"] = mean(targets)
        found[f"offset_error_level_{level + 1}"] = mean(errors)

    alone, not_reached = [], []
    for picture, valid in enumerate(objects.valid.tolist()):
        for number in [number for number, is_object in enumerate(valid) if is_object]:
            iou = box_iou(objects.boxes[picture, number : number + 1], cxcywh_to_xyxy(default_boxes))[0].tolist()
            own = [
                iou[box]
                for box in range(len(default_boxes))
                if labels[picture][box] > 0 and matches.objects[picture, box] == number
            ]
            alone.append(float(len(own) == 1 and own[0] < threshold))
            not_reached.append(float(max(iou) < threshold))
    found["objects_by_claim_alone"] = mean(alone)
    found["objects_not_reached"] = mean(not_reached)

    if mining is not None:
        negatives, loss = [], []
        for picture, its_labels in enumerate(labels):
            as_background = [
                math.log(sum(math.exp(value) for value in values)) - values[0]
                for values in predictions.logits[picture].tolist()
            ]
            candidates = sorted(
                (as_background[box] for box, label in enumerate(its_labels) if label == 0), reverse=True
            )
            positives_here = sum(label > 0 for label in its_labels)
            wanted = positives_here * mining.negative_ratio if positives_here else mining.min_negatives
            chosen = candidates[: math.ceil(wanted)]
            negatives.append(len(chosen))
            loss += chosen
        found["mined_negatives"] = mean(negatives)
        found["mined_negatives_loss"] = mean(loss)
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("pictures", "matcher", "mining"),
    [
        *((pictures, matcher, "paper") for pictures in PICTURES for matcher in MATCHERS),
        *((pictures, "iou50", mining) for pictures in ("no objects", "some") for mining in MININGS),
    ],
)
def test_are_those_of_the_loops(pictures: str, matcher: str, mining: str) -> None:
    scene, threshold = make_scene(PICTURES[pictures], MATCHERS[matcher]), MATCHERS[matcher].iou_threshold
    found = statistics_of(scene, threshold=threshold, mining=MININGS[mining])
    expected = slow_statistics(scene, BOXES_OF_LEVEL, threshold, MININGS[mining])
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(type(value) is float and math.isfinite(value) for value in found.values())


def test_scenes_have_what_they_are_named_for() -> None:
    """The test above relies on this."""
    both = cxcywh_to_xyxy(DEFAULT_BOXES)
    assert box_iou(torch.tensor([ONE]), both).argmax() == box_iou(torch.tensor([SAME]), both).argmax()
    assert statistics_of(make_scene([[TINY]]))["objects_not_reached"] == 1
    assert statistics_of(make_scene([[LARGE]]))["positives_level_3"] >= 1
    many = statistics_of(make_scene(PICTURES["the same twice and thrice"]))
    assert many["objects_by_claim_alone"] > many["objects_not_reached"] == 0  # others were first


# --- by hand ---


def test_numbers_that_can_be_counted() -> None:
    """The first object reaches none of two levels of two default boxes, and the second equals one."""
    default_boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.2, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.8, 1]])
    objects = make_objects([[(0.1, 0.1, 0.2, 0.2), (0.25, 0.25, 0.75, 0.75)], []])
    matches = Matches(torch.tensor([[1, 0, 1, -1], [0, 0, 0, 0]]), torch.tensor([[0, 0, 1, 1], [0] * 4]), objects.boxes)
    logits = torch.tensor([[[0, 0], [0, 1.0], [0, 0], [0, 9.0]], [[1.0, 0], [0, 0], [0, 0], [0, 2.0]]])
    offsets = torch.full((2, 4, 4), 100.0)
    offsets[0, 0], offsets[0, 2] = torch.tensor([-2.5, -2.5, 0, 0]), torch.tensor([0.0, 0.4, 0, 0])
    statistics = TrainingStatistics([2, 2], 0.5, MinedCrossEntropy(negative_ratio=3, min_negatives=1))
    statistics.add(Predictions(logits, offsets), matches, objects, default_boxes)
    halved = math.log(2) / 0.2  # of the size
    assert statistics.take() == pytest.approx(
        {
            "positives_level_1": 0.5,
            "positives_level_2": 0.5,
            "offset_target_level_1": (2.5 + 2.5 + 2 * halved) / 4,
            "offset_target_level_2": 0,
            "offset_error_level_1": 2 * halved / 4,
            "offset_error_level_2": 0.1,
            "objects_by_claim_alone": 0.5,
            "objects_not_reached": 0.5,
            # All negatives of the first picture, and one of the second.
            "mined_negatives": 1.0,
            "mined_negatives_loss": (math.log(1 + math.e) + math.log(1 + math.e**2)) / 2,
        },
        abs=1e-6,
    )


def test_a_mean_over_nothing_is_left_out() -> None:
    names = set(statistics_of(make_scene([[], []]), mining=MinedCrossEntropy(min_negatives=0)))
    assert names == {"positives_level_1", "positives_level_2", "positives_level_3", "mined_negatives"}
    names = set(statistics_of(make_scene([[TINY]])))
    assert {"offset_error_level_1", "objects_not_reached"} <= names
    assert not {"offset_error_level_3", "offset_target_level_3", "mined_negatives"} & names


# --- batches of a step, ranks, devices ---


@pytest.mark.parametrize("mining", ["paper", "nobody mines"])
def test_batches_of_a_step_count_as_one(mining: str) -> None:
    scene = make_scene(PICTURES["some"])
    whole = statistics_of(scene, mining=MININGS[mining])
    halves = statistics_of(part(scene, slice(1)), part(scene, slice(1, None)), mining=MININGS[mining])
    assert halves == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("first", [slice(2), slice(1, 2)], ids=["objects on both", "none on the first"])
def test_ranks_count_as_one(first: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(PICTURES["some"])
    ranks = [TrainingStatistics(BOXES_OF_LEVEL, 0.5, MinedCrossEntropy()) for _ in range(2)]
    for rank, pictures in zip(ranks, (first, slice(2, None)), strict=True):
        rank.add(*part(scene, pictures))
    own = [rank._sums_and_counts for rank in ranks]
    # Before the ranks stand in for each other.
    expected = statistics_of(part(scene, slice(first.start, None)), mining=MinedCrossEntropy())
    given = []
    monkeypatch.setattr(collectives, "all_reduce_sum", lambda values: given.append(values) or own[0] + own[1])
    for rank in ranks:
        assert rank.take() == pytest.approx(expected, rel=1e-5)
    assert all(values is mine for values, mine in zip(given, own, strict=True))


def test_what_is_taken_or_cleared_is_gone() -> None:
    statistics = TrainingStatistics(BOXES_OF_LEVEL, 0.5)
    assert statistics.take() == {}
    statistics.add(*make_scene([[ONE]]))
    statistics.clear()
    assert statistics.take() == {}
    statistics.add(*make_scene([[ONE]]))
    statistics.take()
    assert statistics.take() == {}


def test_predictions_in_half_precision_are_averaged_in_float32() -> None:
    scene = make_scene(PICTURES["some"])
    rounded = Predictions(*(values.bfloat16() for values in scene.predictions))
    exact = scene._replace(predictions=Predictions(*(values.float() for values in rounded)))
    with torch.autocast("cpu", torch.bfloat16):
        found = statistics_of(scene._replace(predictions=rounded), mining=MinedCrossEntropy())
    assert found == statistics_of(exact, mining=MinedCrossEntropy())


def test_what_is_predicted_elsewhere_does_not_matter() -> None:
    scene = make_scene(PICTURES["some"])
    offsets = torch.where((scene.matches.labels > 0).unsqueeze(-1), scene.predictions.offsets, math.nan)
    assert statistics_of(scene._replace(predictions=scene.predictions._replace(offsets=offsets))) == statistics_of(
        scene
    )


@pytest.mark.parametrize("mining", ["paper", "nobody mines"])
def test_adding_waits_for_no_device(mining: str) -> None:
    """Fake tensors have no values, so reading one raises an error."""
    scene = make_scene(PICTURES["some"])
    with FakeTensorMode() as mode:
        fake = Scene(
            Predictions(*map(mode.from_tensor, scene.predictions)),
            Matches(*map(mode.from_tensor, scene.matches)),
            Objects(*map(mode.from_tensor, scene.objects)),
            mode.from_tensor(scene.default_boxes),
        )
        statistics = TrainingStatistics(BOXES_OF_LEVEL, 0.5, MININGS[mining])
        statistics.add(*fake)
        assert statistics._sums_and_counts is not None


def test_nothing_is_left_for_the_gradient() -> None:
    scene = make_scene(PICTURES["some"])
    for values in scene.predictions:
        values.requires_grad_()
    statistics = TrainingStatistics(BOXES_OF_LEVEL, 0.5, MinedCrossEntropy())
    statistics.add(*scene)
    assert statistics._sums_and_counts is not None
    assert not statistics._sums_and_counts.requires_grad


# --- in a run ---

BOXES_OF_LEVEL_IN_RUNS = [4 * 8 * 8, 4 * 4 * 4, 4 * 2 * 2, 4, 4]


def make_trainer(folder: Path, *callbacks: lightning.Callback, **settings: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=MetricsFile(folder),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **{"max_epochs": 4, **settings},
    )


def statistics_by_step(folder: Path) -> dict[int, dict[str, float]]:
    rows = read_metrics(folder / "metrics.csv").items()
    found = {
        step: {key.removeprefix("statistics/"): value for key, value in row.items() if key.startswith("statistics/")}
        for step, row in rows
    }
    return {step: values for step, values in found.items() if values}


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """Record everything that is added to statistics."""
    scenes = []
    add = TrainingStatistics.add

    def record(self: TrainingStatistics, *scene: Any) -> None:
        scenes.append(Scene(*scene))
        add(self, *scene)

    monkeypatch.setattr(TrainingStatistics, "add", record)
    return scenes


@pytest.mark.parametrize("loss", [MultiBoxLoss(), MultiBoxLoss(FocalLoss()), MeanOverBoxesLoss()])
def test_are_those_of_the_batch_of_the_step(bananas: Path, tmp_path: Path, added: list[Scene], loss: nn.Module) -> None:
    module = make_module(loss=loss, matcher=BoxMatcher(iou_threshold=0.4))
    make_trainer(tmp_path, log_every_n_steps=2, max_steps=4).fit(module, make_data(bananas))
    mining = loss.classification if isinstance(getattr(loss, "classification", None), MinedCrossEntropy) else None
    rows = statistics_by_step(tmp_path)
    assert list(rows) == [1, 3]
    for scene, row in zip(added, rows.values(), strict=True):
        assert row == pytest.approx(slow_statistics(scene, BOXES_OF_LEVEL_IN_RUNS, 0.4, mining), rel=1e-4)
        assert ("mined_negatives" in row) == (mining is not None)
        assert len(scene.objects.valid) == BATCH_SIZE


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"log_every_n_steps": 1}, 12),
        ({"log_every_n_steps": 2}, 6),
        # The interval is no longer than an epoch or the run.
        ({"log_every_n_steps": 5}, 4),
        ({"log_every_n_steps": 13}, 4),
        ({"log_every_n_steps": 13, "max_steps": 2}, 1),
        ({"log_every_n_steps": 0}, 0),
        # An epoch of three batches has a step of two batches and a step of one.
        ({"log_every_n_steps": 1, "accumulate_grad_batches": 2}, 8),
        ({"log_every_n_steps": 3, "accumulate_grad_batches": 2}, 8),
        ({"log_every_n_steps": 2, "accumulate_grad_batches": 3}, 4),
        ({"log_every_n_steps": 2, "accumulate_grad_batches": 9}, 4),
        ({"log_every_n_steps": 4, "limit_train_batches": 1}, 4),
    ],
)
def test_are_computed_on_the_steps_that_are_logged_and_on_no_others(
    bananas: Path, tmp_path: Path, added: list[Scene], settings: dict[str, Any], steps: int
) -> None:
    make_trainer(tmp_path, **settings).fit(make_module(), make_data(bananas))
    rows, found = read_metrics(tmp_path / "metrics.csv"), statistics_by_step(tmp_path)
    assert list(found) == [step for step, row in rows.items() if "train/loss" in row]
    assert len(found) == steps
    accumulated, batches = settings.get("accumulate_grad_batches", 1), settings.get("limit_train_batches", STEPS)
    steps_of_epoch = -(-batches // accumulated)
    expected = 0
    for step in found:
        first = step % steps_of_epoch * accumulated
        expected += min(accumulated, batches - first)
    assert len(added) == expected


def test_a_step_of_several_batches_has_those_of_all(bananas: Path, tmp_path: Path, added: list[Scene]) -> None:
    make_trainer(tmp_path, log_every_n_steps=1, accumulate_grad_batches=3, max_epochs=1).fit(
        make_module(), make_data(bananas)
    )
    per_batch = [slow_statistics(scene, BOXES_OF_LEVEL_IN_RUNS, 0.5, MinedCrossEntropy()) for scene in added]
    assert len(per_batch) == STEPS
    [row] = statistics_by_step(tmp_path).values()
    for key in ("positives_level_1", "mined_negatives"):
        assert len({batch[key] for batch in per_batch}) > 1
        assert row[key] == pytest.approx(sum(batch[key] for batch in per_batch) / STEPS)


class Fails(lightning.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if trainer.global_step == self.step:
            raise ConnectionError("power cut")


def test_go_on_where_a_run_is_resumed(bananas: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", log_every_n_steps=2).fit(make_module(), make_data(bananas))
    folder = tmp_path / "resumed"
    with pytest.raises(ConnectionError):
        make_trainer(folder, Fails(STEPS + 2), ModelCheckpoint(folder, save_last=True), log_every_n_steps=2).fit(
            make_module(), make_data(bananas)
        )
    make_trainer(folder, log_every_n_steps=2).fit(
        make_module(), make_data(bananas), ckpt_path=folder / "last.ckpt", weights_only=True
    )
    found, expected = (statistics_by_step(tmp_path / name) for name in ("resumed", "whole"))
    assert list(expected) == [1, 3, 5, 7, 9, 11]
    assert found == expected


def test_a_step_that_is_broken_off_does_not_count(bananas: Path, tmp_path: Path) -> None:
    module = make_module()
    with pytest.raises(ConnectionError):
        make_trainer(tmp_path / "broken", Fails(1), log_every_n_steps=1).fit(module, make_data(bananas))
    for name, of in {"again": module, "fresh": make_module()}.items():
        make_trainer(tmp_path / name, log_every_n_steps=1, max_steps=2).fit(of, make_data(bananas))
    again, fresh = (statistics_by_step(tmp_path / name) for name in ("again", "fresh"))
    # These do not depend on the weights, which a step has changed.
    keys = [key for key in fresh[0] if key.startswith(("positives", "offset_target"))]
    assert [[row[key] for key in keys] for row in again.values()] == [
        [row[key] for key in keys] for row in fresh.values()
    ]
    assert fresh[0]["positives_level_1"] != fresh[1]["positives_level_1"]


def test_training_is_the_same_to_the_bit_without_them(bananas: Path, tmp_path: Path) -> None:
    weights = []
    for every in (1, 0):
        module = make_module()
        make_trainer(tmp_path / str(every), log_every_n_steps=every).fit(module, make_data(bananas))
        weights.append(module.state_dict())
    assert len(statistics_by_step(tmp_path / "1")) == 4 * STEPS
    assert statistics_by_step(tmp_path / "0") == {}
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.usefixtures("empty_figures")
def test_a_run_folder_has_them(run, bananas: Path, tmp_path: Path) -> None:
    arguments = ["data=banana", f"data.root={bananas}", *QUICK, "trainer.log_every_n_steps=3", "hydra.run.dir=run"]
    outcome = run("ssd-train", *arguments, "trainer.precision=bf16-mixed")
    assert outcome.exit_code == 0, outcome.error
    rows = statistics_by_step(tmp_path / "run")
    assert list(rows) == [2]
    assert {"positives_level_5", "offset_error_level_1", "mined_negatives_loss", "objects_not_reached"} <= set(rows[2])
    assert all(math.isfinite(value) for value in rows[2].values())
    assert (tmp_path / "run" / "figures" / "training_statistics.png").exists()


# --- drawn ---


def drawn(folder: Path, *rows: dict[str, float]) -> dict[str, dict[str, list[tuple[float, float]]]] | None:
    """Return the points of each line by title and label, or None without a figure."""
    logger = MetricsFile(folder)
    for step, row in enumerate(rows):
        logger.log_metrics({"train/loss": 1.0, **{f"statistics/{name}": value for name, value in row.items()}}, step)
    logger.save()
    figure = draw_training_statistics(folder / "metrics.csv")
    if figure is None:
        return None
    save_figure(figure, folder / "figure.png")
    return {
        ax.get_title(): {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in ax.lines}
        for ax in figure.axes
        if ax.get_title()
    }


def test_lines_are_the_numbers_of_the_table(tmp_path: Path) -> None:
    names = ["objects_by_claim_alone", "objects_not_reached", "mined_negatives", "mined_negatives_loss"]
    first = {f"{kind}_level_{level}": 10.0 + level for kind in ("positives", "offset_target") for level in (1, 2)}
    found = drawn(
        tmp_path,
        first | dict(zip(names, (0.5, 0.25, 9.0, 0.75), strict=True)),
        {"positives_level_1": 1.0, "positives_level_2": 0.0, "offset_error_level_1": 3.0, "mined_negatives": 8.0},
    )
    assert found == {
        "positives per picture": {"level 1": [(0, 11), (1, 1)], "level 2": [(0, 12), (1, 0)]},
        "mean |offset| from default box to object": {"level 1": [(0, 11)], "level 2": [(0, 12)]},
        "mean |error| of predicted offsets": {"level 1": [(1, 3)]},
        "mined negatives per picture": {"mined negatives per picture": [(0, 9), (1, 8)]},
        "mean loss of mined negatives": {"mean loss of mined negatives": [(0, 0.75)]},
        "share of objects": {"learned by claim alone": [(0, 0.5)], "reached by no default box": [(0, 0.25)]},
    }


def test_there_is_a_figure_of_what_there_is(tmp_path: Path) -> None:
    assert drawn(tmp_path / "no file") is None
    assert drawn(tmp_path / "no statistics", {}, {}) is None
    without_negatives = drawn(tmp_path / "few", {"positives_level_1": 1.0, "objects_not_reached": 0.0})
    assert without_negatives is not None
    assert list(without_negatives) == ["positives per picture", "share of objects"]
    nothing_but_ground = drawn(tmp_path / "ground", {"positives_level_1": 0.0, "mined_negatives": 3.0})
    assert nothing_but_ground is not None
    assert list(nothing_but_ground) == ["positives per picture", "mined negatives per picture"]
    assert nothing_but_ground["positives per picture"] == {}


def test_levels_without_positives_are_left_out_and_axes_have_names(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    kinds = {"positives": (0.0, 2.0), "offset_target": (1.0, 1.0)}
    row = {f"statistics/{kind}_level_{level}": values[level - 1] for kind, values in kinds.items() for level in (1, 2)}
    logger.log_metrics(row | {"statistics/mined_negatives_loss": 1.0}, 0)
    logger.save()
    figure = draw_training_statistics(tmp_path / "metrics.csv")
    assert figure is not None
    assert [[line.get_label() for line in ax.lines] for ax in figure.axes[:2]] == [["level 2"]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["level 2"]
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "positive default boxes",
        "offset, in units of the variances",
        "cross-entropy",
    ]
    assert {ax.get_xlabel() for ax in figure.axes} == {"step"}


def test_many_steps_are_smoothed(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    for step in range(40):
        logger.log_metrics({"statistics/positives_level_1": 1.0 + 2 * (step % 2)}, step)
    logger.save()
    figure = draw_training_statistics(tmp_path / "metrics.csv")
    assert figure is not None
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1.0, *[2.0] * 39]
    assert figure.legends[0].get_title().get_text() == "mean of 2 logged steps"
