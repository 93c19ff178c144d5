"""Figures of scores show the numbers, inside the figure and without overlaps."""

import numpy as np
import pandas as pd
import pytest
from legible import assert_legends_are_outside, assert_legible, texts
from matplotlib.figure import Figure

from ssd_lightning.drawing import shown_names
from ssd_lightning.scoring.average_precision import Curve, PrecisionRecall, voc_columns
from ssd_lightning.scoring.score_figures import (
    draw_average_precision,
    draw_confusion,
    draw_precision_recall,
    draw_score_thresholds,
    scores_by_threshold,
)

pytestmark = pytest.mark.filterwarnings("error")


def make_curve(points: int, seed: int = 0) -> Curve:
    is_true = np.random.default_rng(seed).random(points) < 0.6
    found = np.cumsum(is_true)
    return Curve(found / max(points, 1), found / np.arange(1, points + 1), np.linspace(1, 0, points))


def curves(count: int, points: int = 40) -> PrecisionRecall:
    return PrecisionRecall(tuple(make_curve(points, seed) for seed in range(count)), np.full(count, points))


def score_table(averages: list[float], names: list[str], iou_threshold: float = 0.5) -> pd.DataFrame:
    values = np.array([*averages, np.nanmean(averages) if np.isfinite(averages).any() else np.nan])
    columns = dict.fromkeys(voc_columns(iou_threshold), values) | {"COCO AP": values / 2}
    objects = np.where(np.isnan(values), 0, 123)
    return pd.DataFrame({"objects": objects, **columns}, index=pd.Index([*names, "mean"], name="class"))


def class_names(count: int) -> list[str]:
    return [f"{'refrigerator baseballglove'[: 4 + number % 20]} {number}" for number in range(count)]


COUNTS = pytest.mark.parametrize(
    ("count", "smallest"), [(1, 8), (2, 8), (20, 7), pytest.param(80, 5.5, marks=pytest.mark.slow)]
)


@COUNTS
def test_precision_recall_is_legible(count: int, smallest: float):
    assert_legible(draw_precision_recall(curves(count), class_names(count)), smallest)


@COUNTS
def test_score_thresholds_are_legible(count: int, smallest: float):
    figure = draw_score_thresholds(curves(count), class_names(count))
    assert_legible(figure, smallest)
    assert_legends_are_outside(figure)
    assert len([ax for ax in figure.axes if ax.axison]) == (count if count <= 12 else 1)


@COUNTS
def test_average_precision_is_legible(count: int, smallest: float):
    averages = np.linspace(0, 1, count).tolist()
    assert_legible(draw_average_precision(score_table(averages, class_names(count))), smallest)


@COUNTS
def test_confusion_is_legible(count: int, smallest: float):
    counts = np.random.default_rng(0).integers(0, 10_000, (count + 1, count + 1))
    figure = draw_confusion(counts, class_names(count))
    # Numbers may be smaller than names, since the colours show the same.
    assert_legible(figure, min(smallest, 5.5))
    assert len(figure.axes[0].texts) == (counts.size if count <= 25 else 0)


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.axison]


def test_every_class_has_its_curve_and_its_average():
    curve = Curve(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3]), np.array([0.9, 0.6, 0.2]))
    nothing = Curve(np.zeros(0), np.zeros(0), np.zeros(0))
    unknown = Curve(np.array([np.nan]), np.array([0.0]), np.array([0.9]))
    figure = draw_precision_recall(
        PrecisionRecall((curve, nothing, unknown), np.array([2, 3, 0])), ["found", "unseen", "absent"]
    )
    assert titles(figure) == ["found  0.833", "unseen  0.000", "absent  –"]
    line, point = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), np.stack(curve[:2], axis=1))
    assert point.get_xydata().tolist() == [[0.5, 0.5]], "two detections have at least a score of 0.5"
    assert [ax.texts[0].get_text() for ax in figure.axes[1:3]] == ["no detections", "no objects"]


def test_the_filled_area_is_the_average():
    curve = Curve(np.array([0.25, 0.25, 0.75]), np.array([0.5, 0.25, 0.6]), np.array([0.9, 0.6, 0.2]))
    figure = draw_precision_recall(PrecisionRecall((curve,), np.array([4])), ["banana"])
    [path] = figure.axes[0].collections[0].get_paths()
    x, y = path.vertices.T
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2  # the shoelace formula
    assert area == pytest.approx(0.75 * 0.6)
    assert titles(figure) == ["banana  0.450"]


def test_the_best_threshold_is_marked():
    # Scores 0.9, 0.6, 0.6, 0.2 of true, false, true, false; two objects.
    curve = Curve(np.array([0.5, 0.5, 1, 1]), np.array([1, 0.5, 2 / 3, 0.5]), np.array([0.9, 0.6, 0.6, 0.2]))
    nothing = Curve(np.zeros(0), np.zeros(0), np.zeros(0))
    figure = draw_score_thresholds(PrecisionRecall((curve, nothing, nothing), np.array([2, 3, 0])), ["a", "b", "c"])
    assert titles(figure) == ["a\nF1 0.800 from 0.60", "b\n", "c\n"]
    precision, recall, f1, best = figure.axes[0].lines
    assert precision.get_xdata().tolist() == [0.2, 0.6, 0.9]
    assert precision.get_ydata() == pytest.approx([0.5, 2 / 3, 1])
    assert recall.get_ydata().tolist() == [1, 1, 0.5]
    assert f1.get_ydata() == pytest.approx([2 / 3, 0.8, 2 / 3])
    assert list(best.get_xdata()) == [0.6, 0.6]
    assert [ax.texts[0].get_text() for ax in figure.axes[1:3]] == ["no detections", "no objects"]


def test_thresholds_of_many_classes_are_means():
    one = Curve(np.array([0.5, 1.0]), np.array([1.0, 1.0]), np.array([0.8, 0.4]))
    two = Curve(np.array([0.0]), np.array([0.0]), np.array([0.4]))
    means = scores_by_threshold([one, two])
    assert means.thresholds.tolist() == [0.4, 0.8]
    assert means.precision.tolist() == [0.5, 1.0], "at 0.8 the second class has no detection and no precision"
    assert means.recall.tolist() == [0.5, 0.25]
    assert means.f1 == pytest.approx([0.5, 1 / 3])
    unseen = PrecisionRecall((*curves(20).curves, one), np.array([*[40] * 20, 0]))
    [title] = titles(draw_score_thresholds(unseen, class_names(21)))
    assert title.startswith("mean of 20 classes")


def test_no_detection_reaches_the_score():
    figure = draw_precision_recall(curves(1), ["banana"], score_threshold=1.1)
    assert len(figure.axes[0].lines) == 1


def test_classes_come_best_first_and_unknown_last():
    figure = draw_average_precision(score_table([0.25, np.nan, 0.75], ["a", "b", "c"]))
    [ax] = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["c", "a", "b"]
    assert [patch.get_width() for patch in ax.patches] == [0.75, 0.25, 0]
    assert ax.yaxis_inverted()
    assert [text.get_text() for text in ax.texts] == ["AP", "0.750", "0.250", "–", "objects", "123", "123", "–"]
    assert "mean of VOC12 AP: 0.500" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_another_iou():
    figure = draw_average_precision(score_table([0.25], ["a"], 0.3), 0.3)
    assert "VOC12 AP at IoU 0.3" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure = draw_precision_recall(curves(1), ["a"], 0.3)
    assert any("IoU 0.3" in text.get_text() for text in figure.legends[0].get_texts())


def test_confusion_shows_shares_of_rows_and_counts():
    counts = np.array([[0, 3, 1], [2, 6, 0], [0, 0, 0]])  # background, a, b
    figure = draw_confusion(counts, ["a", "b"])
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0, 0.25], [0, 0, 0], [0.75, 0.25, 0]])
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "6", (2, 0): "2", (0, 2): "3", (1, 2): "1"}
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b", "background"]


AWKWARD = ["plátano, grande", "плантан", "word " * 40, r"$\frac{1}{$ $x_1^2$", "line\nbreak", "", "_hidden", "香\x00"]


@pytest.mark.parametrize("draw", ["precision", "thresholds", "averages", "confusion"])
def test_awkward_names(draw: str):
    count = len(AWKWARD)
    if draw == "precision":
        figure = draw_precision_recall(curves(count), AWKWARD)
    elif draw == "thresholds":
        figure = draw_score_thresholds(curves(count), AWKWARD)
    elif draw == "averages":
        figure = draw_average_precision(score_table([0.5] * count, AWKWARD))
    else:
        figure = draw_confusion(np.ones((count + 1, count + 1), dtype=np.int64), AWKWARD)
    assert_legible(figure, 5.5)
    shown = " ".join(text for text, _ in texts(figure))
    for name in ("плантан", "line break", "$x_1^2$", "_hidden", "class 8"):
        assert name in shown


def test_long_names_keep_both_ends():
    names, _ = shown_names(["the left door of a car", "the left door of a van", "short"], longest=20)
    assert names == ["the left door… a car", "the left door… a van", "short"]
    assert len(names[0]) == 20
