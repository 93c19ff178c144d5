"""Tests of the search for default boxes, and of ``ssd-boxes design``, which writes them for ``ssd-train``."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ssd_lightning.box_design import search
from ssd_lightning.box_design.coverage import best_ious
from ssd_lightning.box_design.search import BoxShapes, Reach, ShapesReach, design_boxes
from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.training.checkpoint import load_detector

GRIDS = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
SIZE = (128, 128)
TINY = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], AspectRatios([2]))
QUICK = ["model.image_size=64", "trainer=cpu", "num_workers=0", "batch_size=4", "trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "RESTARTS", 1)
    monkeypatch.setattr(search, "STEPS", (1.3, 1.1, 1.03))


def objects_of(sizes: list[tuple[float, float]], each: int, seed: int = 0) -> np.ndarray:
    """Place objects of these (width, height) at random."""
    rng = np.random.default_rng(seed)
    size = np.repeat(sizes, each, axis=0)
    corner = rng.random(size.shape) * (1 - size)
    return np.concatenate((corner, corner + size), axis=1).astype(np.float32)


def reach_of(boxes: np.ndarray, default_boxes: DefaultBoxes) -> Reach:
    return Reach.of(best_ious(boxes, default_boxes(GRIDS, SIZE)), 0.5)


def count(default_boxes: DefaultBoxes) -> int:
    return len(default_boxes(GRIDS, SIZE))


@pytest.mark.parametrize("clip", [None, "size", "centre_and_size"])
@pytest.mark.parametrize("steps", [None, [8, 16, 30, 70, 150]])
@pytest.mark.parametrize("inverses", [True, False])
def test_the_fast_evaluation_agrees_with_the_default_boxes(clip, steps, inverses: bool):
    """The steps put some centres outside the picture."""
    like = DefaultBoxes(TINY.scales, [[]] * 5, steps, clip)
    ratios = ((2.0, 3.0), (), (1.5,), (7.0,), (2.0,)) if inverses else ((0.3, 2.5), (4.0,))
    shapes = BoxShapes((0.11, 0.2, 0.42, 0.7, 0.95, 1.3), ratios, inverses)
    boxes = objects_of([(0.1, 0.2), (0.5, 0.3), (0.9, 0.95), (0.04, 0.04), (0.2, 0.7)], 60)
    fast = ShapesReach(boxes, like, GRIDS, SIZE, 0.5)(shapes)
    slow = reach_of(boxes, shapes.default_boxes(like))
    assert fast.objects == slow.objects
    assert fast.mean_iou == pytest.approx(slow.mean_iou, abs=2e-5)
    assert 0 < slow.objects < len(boxes)


def test_planted_sizes_are_found():
    """The objects are squares in the middle of cells, one size per level; the present boxes reach few of them."""
    scales = [0.05, 0.1, 0.21, 0.44, 0.9]
    rng = np.random.default_rng(0)
    boxes = []
    for (side, _), scale in zip(GRIDS, scales, strict=True):
        inside = [x for x in (np.arange(side) + 0.5) / side if scale / 2 <= x <= 1 - scale / 2]
        centres = rng.choice(inside, (40, 2))
        boxes.append(np.concatenate((centres - scale / 2, centres + scale / 2), axis=1))
    boxes = np.concatenate(boxes).astype(np.float32)
    before = reach_of(boxes, TINY)
    assert before.objects < 0.7 * len(boxes)
    found = design_boxes(boxes, TINY, GRIDS, SIZE).default_boxes(TINY)
    after = reach_of(boxes, found)
    assert after.objects == len(boxes)
    assert after.mean_iou > 0.97
    assert count(found) <= count(TINY)


def test_a_small_budget_is_not_spent_on_useless_inverses():
    """All objects are wide, such as words, so tall boxes would be wasted."""
    boxes = objects_of([(0.25, 0.05), (0.5, 0.1), (0.8, 0.16)], 50)
    budget = 3 * sum(rows * columns for rows, columns in GRIDS) + 10
    found = design_boxes(boxes, TINY, GRIDS, SIZE, budget)
    assert not found.inverses
    assert all(ratio > 1 for group in found.ratios for ratio in group)
    assert count(found.default_boxes(TINY)) <= budget
    assert reach_of(boxes, found.default_boxes(TINY)).objects > 1.5 * reach_of(boxes, TINY).objects


@pytest.mark.parametrize("seed", range(4))
def test_the_result_is_never_worse_than_the_present_boxes(monkeypatch: pytest.MonkeyPatch, seed: int):
    """The search samples few objects in some cases, and the present boxes fit well in others."""
    monkeypatch.setattr(search, "MOST_OBJECTS", [5, 20, 1000, 1000][seed])
    rng = np.random.default_rng(seed)
    present = [TINY, DefaultBoxes(TINY.scales, AspectRatios([2, 5], inverses=False), clip="border")][seed % 2]
    shapes = BoxShapes.of(present)
    sides = [(w, h) for level in present.shapes() for w, h in level.clamp(max=1).tolist()]
    boxes = objects_of(sides if seed < 2 else rng.uniform(0.02, 0.9, (40, 2)).tolist(), 2, seed)
    found = design_boxes(boxes, present, GRIDS, SIZE, seed=seed)
    designed = found.default_boxes(present)
    assert reach_of(boxes, designed) >= reach_of(boxes, present)
    assert reach_of(boxes, designed) > reach_of(boxes, present) or found == shapes
    assert count(designed) <= count(present)
    assert (designed.clip, designed.levels) == (present.clip, present.levels)


def test_the_present_boxes_stay_if_the_search_finds_worse_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "_climb", lambda start, *_: start._replace(scales=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5)))
    assert design_boxes(objects_of([(0.2, 0.2)], 30), TINY, GRIDS, SIZE) == BoxShapes.of(TINY)


def test_the_seed_determines_the_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "MOST_OBJECTS", 20)
    boxes = objects_of(np.random.default_rng(1).uniform(0.1, 0.9, (20, 2)).tolist(), 3)
    present = DefaultBoxes([0.2, 0.5, 0.8, 1.0], AspectRatios([2]))
    first, again, other = (design_boxes(boxes, present, GRIDS[2:], SIZE, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_progress_is_reported():
    seen = []

    def track(numbers):
        for number in numbers:
            seen.append(number)
            yield number

    design_boxes(objects_of([(0.2, 0.2)], 5), TINY, GRIDS, SIZE, track=track)
    assert seen == list(range(len(seen)))
    assert len(seen) > search.RESTARTS


@pytest.mark.parametrize("budget", [-1, 681])
def test_the_budget_is_at_least_two_squares_per_cell(budget: int):
    with pytest.raises(ValueError, match=f"boxes_budget: .*682.*got {budget}"):
        design_boxes(objects_of([(0.2, 0.2)], 5), TINY, GRIDS, SIZE, budget)
    assert design_boxes(objects_of([(0.2, 0.2)], 5), TINY, GRIDS, SIZE, 682).ratios in (((),) * 5, ((), ()))


def test_present_boxes_above_the_budget_do_not_stay():
    found = design_boxes(objects_of([(0.3, 0.1), (0.1, 0.3)], 20), TINY, GRIDS, SIZE, budget=900)
    assert 682 <= count(found.default_boxes(TINY)) <= 900 < count(TINY)


def test_no_objects_are_an_error():
    with pytest.raises(ValueError, match="data: "):
        design_boxes(np.zeros((0, 4), dtype=np.float32), TINY, GRIDS, SIZE)


@pytest.mark.parametrize("boxes", [[[0, 0, 1, 1]], [[0.5, 0.5, 0.502, 0.501]], [[0, 0, 1, 1]] * 9])
def test_few_objects_of_one_size(boxes: list):
    objects = np.array(boxes, dtype=np.float32)
    found = design_boxes(objects, TINY, GRIDS, SIZE)
    assert reach_of(objects, found.default_boxes(TINY)) >= reach_of(objects, TINY)


OPTIONS = sorted(path.stem for path in (CONFIG_FOLDER / "aspect_ratios").glob("*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_survives_conversion_writing_and_reading(tmp_path: Path, option: str):
    ratios = instantiate(OmegaConf.load(CONFIG_FOLDER / "aspect_ratios" / f"{option}.yaml"), _convert_="all")
    for levels in (2, 3, 6):
        present = DefaultBoxes(np.geomspace(0.1, 1 / 0.7, levels + 1).tolist(), ratios, [8.5] * levels, "size")
        shapes = BoxShapes.of(present)
        assert shapes.default_boxes(present).__dict__ == present.__dict__
        shapes.write(tmp_path / "a folder", f"mine{levels}", "Objects: 5 %, [x] #1")
        search_path = f"hydra.searchpath=['file://{tmp_path / 'a folder'}']"
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("boxes", [f"box_scales=mine{levels}", f"aspect_ratios=mine{levels}", search_path])
        read = instantiate(config.model.default_boxes, _convert_="all")
        assert (read.scales, read.ratios) == (present.scales, present.ratios)


class TestCommand:
    @pytest.mark.slow
    def test_the_suggested_command_trains_the_designed_boxes(self, run, bananas: Path, tmp_path: Path):
        arguments = ["data=banana", f"data.root={bananas}", *QUICK]
        # These scales are too small for all bananas.
        small = "model.default_boxes.scales=[0.04,0.06,0.08,0.1,0.12,0.14]"
        outcome = run("ssd-boxes", "design", *arguments, small, "design_name=mine", "hydra.run.dir=a folder")
        assert outcome.exit_code == 0, outcome.error
        assert "Traceback" not in outcome.error
        advice = next(line for line in outcome.out.splitlines() if line.startswith("Next:"))
        trained = run("ssd-train", *shlex.split(advice)[2:], "hydra.run.dir=run")
        assert trained.exit_code == 0, trained.error
        choices = json.loads((tmp_path / "run/summary.json").read_text())["choices"]
        assert choices["box_scales"] == choices["aspect_ratios"] == "mine"

        trained_boxes = load_detector(tmp_path / "run/checkpoints/best.ckpt").model.default_boxes
        summary = pd.read_csv(tmp_path / "a folder/design.csv", index_col=0)
        data = Bananas(bananas)
        for what, boxes in (("training", data.train().boxes), ("scoring", data.val().boxes)):
            best = best_ious(boxes, trained_boxes)
            row = summary.loc[f"{what}, designed"]
            assert row["default boxes"] == len(trained_boxes) <= 344
            assert summary.loc[f"{what}, present", "default boxes"] == 344
            assert row["objects"] == len(boxes)
            assert row["reached"] == pytest.approx((best >= 0.5).mean())
            assert row["mean best IoU"] == pytest.approx(best.mean(), abs=1e-6)
        assert summary.loc["training, present", "reached"] == 0
        assert summary.loc["training, designed", "reached"] == 1
        classes = pd.read_csv(tmp_path / "a folder/classes.csv", index_col="class")
        assert classes.loc["all", ["present", "designed", "gain"]].tolist() == [0, 1, 1]
        assert (tmp_path / "a folder/figures/design.png").stat().st_size > 10_000

    @pytest.mark.slow
    def test_boxes_that_reach_no_more_objects_are_not_recommended(self, run, bananas: Path):
        arguments = [
            "data=banana",
            f"data.root={bananas}",
            *QUICK,
            "+matcher.iou_threshold=0.1",
            "matcher=ignore_band",
            "matcher.background_threshold=0.05",
        ]
        outcome = run("ssd-boxes", "design", *arguments)
        assert outcome.exit_code == 0, outcome.error
        assert "nothing better than the present default boxes (gain +0.0%)" in outcome.out
        assert "box_scales=" not in outcome.out
        assert "Warning" not in outcome.out

    def test_a_much_smaller_largest_box_has_a_warning(self, run, bananas: Path, tmp_path: Path):
        large = "model.default_boxes.scales=[0.8,0.9,0.95,1.0,1.02,1.05]"
        arguments = ["data=banana", f"data.root={bananas}", *QUICK, large, "hydra.run.dir=boxes"]
        outcome = run("ssd-boxes", "design", *arguments)
        assert outcome.exit_code == 0, outcome.error
        warned = re.search(r"Warning: the largest default box shrinks from (\d+) to (\d+) pixels", outcome.out)
        # The last scale sizes the second square of the last level alone: the root of 1.02 times 1.05, of 64 pixels.
        assert int(warned[1]) == round(64 * (1.02 * 1.05) ** 0.5)
        scales = yaml.safe_load((tmp_path / "boxes/conf/box_scales/designed.yaml").read_text())
        assert int(warned[2]) == round(64 * (scales[-2] * scales[-1]) ** 0.5)

    def test_too_few_reached_by_the_design_are_an_error(self, run, bananas: Path, tmp_path: Path):
        arguments = ["data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=boxes"]
        outcome = run("ssd-boxes", "design=true", *arguments, "+matcher.iou_threshold=0.99", "least_reached=0.9")
        assert outcome.exit_code == 1
        assert re.search(r"least_reached: .*90\.00%", outcome.error)
        assert (tmp_path / "boxes/conf/box_scales/designed.yaml").exists()

    @pytest.mark.parametrize(
        ("argument", "text"),
        [
            ("design_name=voc", "design_name: .* box_scales, got 'voc'"),
            ("design_name=wide", "design_name: .* aspect_ratios, got 'wide'"),
            ("design_name=../mine", "design_name: .*got '../mine'"),
            ("boxes_budget=many", "boxes_budget: .*got many"),
            ("boxes_budget=100", "boxes_budget: .*172.*got 100"),
        ],
    )
    def test_a_wrong_argument_is_reported_in_one_line(
        self, run, bananas: Path, tmp_path: Path, argument: str, text: str
    ):
        arguments = ["data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=boxes"]
        outcome = run("ssd-boxes", "design", *arguments, argument)
        assert outcome.exit_code == 1
        assert re.search(text, outcome.error.splitlines()[-1])
        assert "Traceback" not in outcome.error
        assert not (tmp_path / "boxes").exists()
