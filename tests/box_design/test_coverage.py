"""Tests of the coverage of a data set by default boxes, and of ``ssd-boxes``, which reports it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.ops import box_convert, box_iou

from ssd_lightning.box_design import coverage
from ssd_lightning.box_design.coverage import (
    ObjectMatches,
    augmented,
    coverage_by_class,
    coverage_by_level,
    coverage_by_shape,
    match_objects,
    shapes,
    sharing_pictures,
)
from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.augmentation.windows import MinIoUCrop, ZoomOut
from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.batches import Key, SampleDataset
from ssd_lightning.data.formats import annotated_pictures
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher

GRIDS = [(5, 6), (3, 3), (1, 1)]
DEFAULT_BOXES = DefaultBoxes([0.15, 0.4, 0.7, 1.0], [[2], [2, 3], []])
BOXES_OF_LEVEL = [30 * 4, 9 * 6, 2]
QUICK = ["model.image_size=64", "trainer=cpu", "hydra.run.dir=boxes"]


def random_pictures(seed: int, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes for some pictures; where there are several, the first two are nearly the same."""
    rng = np.random.default_rng(seed)
    pictures = []
    for count in counts:
        corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)
        if count > 1:
            corners[1] = corners[0] + rng.uniform(-0.004, 0.004, 4)
        pictures.append(corners.clip(0, 1))
    return np.concatenate(pictures).astype(np.float32), np.array(counts)


def match_slowly(boxes: np.ndarray, default_boxes: torch.Tensor, levels: list[int], threshold: float) -> ObjectMatches:
    """Match one picture with a plain loop, as the paper describes it."""
    iou = box_iou(torch.from_numpy(boxes), box_convert(default_boxes, "cxcywh", "xyxy")).numpy()
    objects, count = iou.shape
    owner = np.full(count, -1)
    for pair in np.argsort(-iou, axis=None, kind="stable"):
        row, box = divmod(int(pair), count)
        if iou[row, box] > 0 and owner[box] < 0 and row not in owner:
            owner[box] = row
    claimed = owner.copy()
    for box in range(count):
        if owner[box] < 0 and iou[:, box].max() >= threshold:
            owner[box] = iou[:, box].argmax()
    level_of_box = np.repeat(np.arange(len(levels)), levels)
    positives = np.zeros((objects, len(levels)), dtype=int)
    alone = np.zeros(objects, dtype=bool)
    for row in range(objects):
        mine = np.flatnonzero(owner == row)
        for box in mine:
            positives[row, level_of_box[box]] += 1
        alone[row] = len(mine) == 1 and claimed[mine[0]] == row and iou[row, mine[0]] < threshold
    return ObjectMatches(iou.max(axis=1), iou.argmax(axis=1), positives, alone)


@pytest.mark.parametrize(("chunk", "threshold"), [(1, 0.35), (7, 0.5), (1000, 0.35)])
def test_matching_agrees_with_a_slow_loop(monkeypatch: pytest.MonkeyPatch, chunk: int, threshold: float):
    monkeypatch.setattr(coverage, "CHUNK", chunk)
    boxes, counts = random_pictures(3, [2, 0, 1, 5, 2, 1, 9, 0, 3, 2])
    default_boxes = DEFAULT_BOXES(GRIDS, (50, 60))
    matches = match_objects(boxes, counts, default_boxes, BOXES_OF_LEVEL, BoxMatcher(threshold, 0.3))
    slow = [
        match_slowly(part, default_boxes, BOXES_OF_LEVEL, threshold)
        for part in np.split(boxes, np.cumsum(counts)[:-1])
        if len(part)
    ]
    for name, column in zip(ObjectMatches._fields, matches, strict=True):
        np.testing.assert_allclose(column, np.concatenate([getattr(part, name) for part in slow]), err_msg=name)
    assert 0 < matches.by_claim_alone.sum() < len(boxes)
    sharing = []
    ends = np.cumsum([len(part.best_box) for part in slow])
    assert ends[-1] == len(boxes)
    by_picture = iter(slow)
    for count in counts:
        best = next(by_picture).best_box.tolist() if count else []
        sharing.append(len(set(best)) < len(best))
    assert 0 < sum(sharing) < len(counts)
    np.testing.assert_array_equal(sharing_pictures(matches, counts), sharing)


def test_an_object_with_adaptive_matches_is_not_matched_by_claim_alone():
    """A thin object has several positives by the adaptive matcher, though no default box reaches it."""
    thin, counts = np.array([[0.1, 0.1, 0.2, 0.9]], dtype=np.float32), np.array([1])
    default_boxes = DEFAULT_BOXES(GRIDS, (50, 60))
    by_iou, adaptive = (
        match_objects(thin, counts, default_boxes, BOXES_OF_LEVEL, matcher)
        for matcher in (BoxMatcher(), AdaptiveMatcher())
    )
    assert by_iou.best_iou[0] < 0.5
    assert by_iou.by_claim_alone.all()
    assert adaptive.positives.sum() > 1
    assert not adaptive.by_claim_alone.any()


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()
    boxes, counts = random_pictures(0, [3, 2])
    try:
        torch.set_num_threads(2)
        match_objects(boxes, counts, DEFAULT_BOXES(GRIDS, (50, 60)), BOXES_OF_LEVEL, BoxMatcher())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_objects():
    boxes, counts = np.zeros((0, 4), dtype=np.float32), np.array([0, 0])
    matches = match_objects(boxes, counts, DEFAULT_BOXES(GRIDS, (50, 60)), BOXES_OF_LEVEL, BoxMatcher())
    assert matches.positives.shape == (0, 3)
    assert sharing_pictures(matches, counts).tolist() == [False, False]


def test_objects_that_touch_no_default_box_share_none():
    """Steps can leave a part of the picture without default boxes."""
    default_boxes = DefaultBoxes([0.1, 0.2], [[]], steps=[1])([(2, 2)], (100, 100))
    boxes = np.array([[0.8, 0.8, 0.9, 0.9], [0.7, 0.7, 0.8, 0.8]], dtype=np.float32)
    matches = match_objects(boxes, np.array([2]), default_boxes, [8], BoxMatcher())
    assert matches.best_iou.tolist() == [0, 0]
    assert matches.positives.tolist() == [[0], [0]]
    assert matches.by_claim_alone.tolist() == [False, False]
    assert sharing_pictures(matches, np.array([2])).tolist() == [False]


@pytest.mark.parametrize("epoch", [0, 3])
def test_augmented_annotations_are_those_of_training(bananas: Path, monkeypatch: pytest.MonkeyPatch, epoch: int):
    pictures = Bananas(bananas).train()
    augmentation = Augmentation([ZoomOut(), MinIoUCrop()], horizontal_flip=0.5, vertical_flip=0.5)
    dataset = SampleDataset(pictures, augmentation, (64, 64), seed=5)
    seen = [dataset[Key(epoch, position)].sample for position in range(len(pictures))]
    monkeypatch.setattr(annotated_pictures, "read_picture", lambda *_: pytest.fail("a picture is decoded"))
    planned = augmented(pictures, augmentation, seed=5, epoch=epoch)
    assert len(planned) == len(pictures)
    for position, sample in enumerate(seen):
        truth = planned.truth(position)
        np.testing.assert_array_equal(truth.boxes, sample.boxes)
        np.testing.assert_array_equal(truth.labels, sample.labels)
        np.testing.assert_array_equal(truth.difficult, sample.difficult)
    assert (planned.boxes != pictures.boxes).any(axis=1).mean() > 0.5 or len(planned.boxes) < len(pictures.boxes)


def test_shapes_by_hand():
    boxes = np.array([[0, 0, 1, 0.5], [0, 0, 0.1, 0.2], [0, 0, 0.1, 0.9], [0, 0, 0.9, 0.1]], dtype=np.float32)
    shape = shapes(boxes, (100, 50))
    np.testing.assert_allclose(shape, [1, 0.25, 1 / 18, 4.5], rtol=1e-6)
    table = coverage_by_shape(shape, np.array([0.6, 0.4, 0.5, 0.2], dtype=np.float32), more={"number": np.arange(4)})
    assert table.index.tolist() == ["below 1:4", "1:4 to 1:2", "1:1 to 2:1", "from 4:1"]
    assert table["unreached"].tolist() == [0, 1, 0, 1]
    assert table["number"].tolist() == [2, 1, 0, 3]


def test_further_columns_are_means_per_class_and_overall():
    labels, best = np.array([1, 3, 1]), np.array([0.4, 0.6, 0.8], dtype=np.float32)
    more = {"positives": np.array([1, 5, 4]), "claim": np.array([True, False, False])}
    table = coverage_by_class(labels, best, ["a", "b", "c"], more=more)
    np.testing.assert_allclose(table["positives"], [2.5, np.nan, 5, 10 / 3])
    np.testing.assert_allclose(table["claim"], [0.5, np.nan, 0, 1 / 3])


def test_a_class_may_have_the_name_of_the_last_row():
    table = coverage_by_class(np.array([1, 2, 2]), np.array([0.4, 0.6, 0.8], dtype=np.float32), ["all", "b"])
    assert table.index.tolist() == ["all", "b", "all"]
    assert table["objects"].tolist() == [1, 2, 3]
    assert table.iloc[:, 1].tolist() == pytest.approx([1, 0, 1 / 3])


def test_levels_by_hand():
    matches = ObjectMatches(
        np.array([0.9, 0.6, 0.7], dtype=np.float32),
        np.array([119, 120, 175]),
        np.array([[2, 0, 0], [0, 1, 0], [1, 3, 1]]),
        np.array([False, True, False]),
    )
    table = coverage_by_level(matches, GRIDS, BOXES_OF_LEVEL, pictures=2)
    assert table["grid"].tolist() == ["5×6", "3×3", "1×1"]
    assert table["best for"].tolist() == [1, 1, 1]
    assert table["trained on"].tolist() == [2, 2, 1]
    assert table["positives"].tolist() == [3, 4, 1]
    assert table["per picture"].tolist() == [1.5, 2, 0.5]


class TestCommand:
    def test_tables_agree_with_a_slow_loop(self, run, bananas: Path, tmp_path: Path):
        outcome = run("ssd-boxes", "data=banana", f"data.root={bananas}", "matcher=iou50", *QUICK)
        assert outcome.exit_code == 0, outcome.error
        boxes = Bananas(bananas).train().boxes
        default_boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2]] * 5)
        levels = [4 * side**2 for side in (8, 4, 2, 1, 1)]
        placed = default_boxes([(side, side) for side in (8, 4, 2, 1, 1)], (64, 64))
        slow = [match_slowly(box[None], placed, levels, 0.5) for box in boxes]
        reached = np.mean([match.best_iou >= 0.5 for match in slow])
        classes = pd.read_csv(tmp_path / "boxes/classes.csv", index_col="class")
        assert classes.loc["banana", "reached"] == pytest.approx(reached)
        assert classes.loc["all", "mean best IoU"] == pytest.approx(np.mean([match.best_iou for match in slow]))
        assert classes.loc["all", "positives"] == pytest.approx(np.mean([match.positives.sum() for match in slow]))
        assert classes.loc["all", "claim alone"] == pytest.approx(np.mean([match.by_claim_alone for match in slow]))
        by_level = pd.read_csv(tmp_path / "boxes/levels.csv", index_col="level")
        assert by_level["positives"].tolist() == sum(match.positives for match in slow)[0].tolist()
        assert by_level["default boxes"].tolist() == levels
        for name in ("sizes", "shapes"):
            table = pd.read_csv(tmp_path / f"boxes/{name}.csv", index_col=0)
            assert table["objects"].sum() == len(boxes)
            assert (table["objects"] * table["reached"]).sum() == pytest.approx(reached * len(boxes))
        assert (tmp_path / "boxes/figures/coverage.png").stat().st_size > 10_000
        assert "12 objects of 1 class in 12 training pictures, model=tiny_ssd128: 344 default boxes" in outcome.out

    @pytest.mark.slow
    def test_scales_and_augmentation_change_what_is_reached(self, run, bananas: Path, tmp_path: Path):
        small = "model.default_boxes.scales=[0.04,0.06,0.08,0.1,0.12,0.14]"
        best = []
        for number, more in enumerate(([], ["augmented=true"])):
            arguments = ["data=banana", f"data.root={bananas}", *QUICK, "augmentation=paper", small, *more]
            outcome = run("ssd-boxes", *arguments, f"hydra.run.dir={number}")
            assert outcome.exit_code == 0, outcome.error
            assert ("augmentation=paper" in outcome.out) == ("augmented=true" in more)
            table = pd.read_csv(tmp_path / f"{number}/classes.csv", index_col="class")
            best.append(table.loc["all", "mean best IoU"])
        assert 0.4 > best[0] != best[1]

    @pytest.mark.parametrize(("scales", "exit_code"), [("[0.2,0.37,0.54,0.71,0.88,1.05]", 0), ("[1,2,3,4,5,6]", 1)])
    def test_too_few_reached_objects_are_an_error(
        self, run, bananas: Path, tmp_path: Path, scales: str, exit_code: int
    ):
        arguments = [f"model.default_boxes.scales={scales}", "least_reached=0.5"]
        outcome = run("ssd-boxes", "data=banana", f"data.root={bananas}", *QUICK, *arguments)
        assert outcome.exit_code == exit_code, outcome.error
        reported = re.search(r"least_reached: .*50\.00%.* 0\.00%", outcome.error)
        assert (reported is not None) == (exit_code == 1)
        assert "Traceback" not in outcome.error
        assert (tmp_path / "boxes/classes.csv").exists()

    @pytest.mark.parametrize(
        ("argument", "text"),
        [
            ("least_reached=2", r"least_reached: .*\[0, 1\], got 2"),
            ("least_reached=many", r"least_reached: .*\[0, 1\], got many"),
            ("resume=nowhere", "resume: .*nowhere"),
            ("box_scales=[0.1,0.2]", r"model\.default_boxes\.scales"),
            ("box_scales=voc", "scales.* 6"),
        ],
    )
    def test_a_wrong_argument_is_reported_in_one_line(
        self, run, bananas: Path, tmp_path: Path, argument: str, text: str
    ):
        outcome = run("ssd-boxes", "data=banana", f"data.root={bananas}", *QUICK, argument)
        assert outcome.exit_code == 1
        assert re.search(text, outcome.error.splitlines()[-1])
        assert "Traceback" not in outcome.error
        assert not (tmp_path / "boxes").exists()

    def test_a_data_set_without_objects_is_an_error(self, run, tmp_path: Path, bananas: Path):
        root = tmp_path / "empty"
        for split in ("bananas_train", "bananas_val"):
            (root / split).mkdir(parents=True)
            (root / split / "images").symlink_to(bananas / split / "images")
            (root / split / "label.csv").write_text("img_name,label,xmin,ymin,xmax,ymax\n")
        outcome = run("ssd-boxes", "data=banana", f"data.root={root}", *QUICK)
        assert outcome.exit_code == 1
        assert "data: " in outcome.error
        assert "Traceback" not in outcome.error
