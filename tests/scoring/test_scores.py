"""The table of classes, the confusion matrix, and the report of a run."""

import io
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import detection_records, object_records

from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.scoring.average_precision import (
    precision_recall_curves,
    voc_average_precision,
    voc_columns,
)
from ssd_lightning.scoring.coco_average_precision import coco_average_precision
from ssd_lightning.scoring.confusion import confusion_matrix, confusion_table
from ssd_lightning.scoring.errors import cost_in_ap
from ssd_lightning.scoring.run_report import write_report
from ssd_lightning.scoring.scores import coco_columns, score_by_class

BOX = (10.0, 10.0, 20.0, 20.0)
HALF = (10.0, 10.0, 20.0, 15.0)  # IoU with BOX is exactly 1/2
LESS = (10.0, 10.0, 20.0, 14.9)
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)


# --- confusion matrix ---


def confusions(detections: list[tuple], objects: list[tuple], **thresholds: float) -> dict[tuple[int, int], int]:
    """Return the cells that are not 0, by (truth, detection)."""
    counts = confusion_matrix(detection_records(*detections), object_records(*objects), 3, **thresholds)
    assert counts.shape == (4, 4)
    return {(int(row), int(column)): int(counts[row, column]) for row, column in np.argwhere(counts)}


@pytest.mark.parametrize(
    ("detections", "objects", "expected"),
    [
        pytest.param([], [], {}, id="nothing"),
        pytest.param([], [(0, 2, BOX, False)], {(2, 0): 1}, id="no detections"),
        pytest.param([(0, 2, BOX, 0.9)], [], {(0, 2): 1}, id="no objects"),
        pytest.param([(0, 2, BOX, 0.9)], [(0, 2, BOX, False)], {(2, 2): 1}, id="found"),
        pytest.param([(0, 3, BOX, 0.9)], [(0, 2, BOX, False)], {(2, 3): 1}, id="confused"),
        pytest.param([(0, 2, BOX, 0.9)], [(1, 2, BOX, False)], {(0, 2): 1, (2, 0): 1}, id="other image"),
        pytest.param([(0, 1, HALF, 0.9)], [(0, 1, BOX, False)], {(1, 1): 1}, id="IoU on the threshold"),
        pytest.param([(0, 1, LESS, 0.9)], [(0, 1, BOX, False)], {(0, 1): 1, (1, 0): 1}, id="IoU below it"),
        pytest.param([(0, 1, BOX, 0.5)], [(0, 1, BOX, False)], {(1, 1): 1}, id="score on the threshold"),
        pytest.param([(0, 1, BOX, 0.49)], [(0, 1, BOX, False)], {(1, 0): 1}, id="score below it"),
        pytest.param(
            [(0, 1, BOX, 0.8), (0, 2, HALF, 0.9)], [(0, 1, BOX, False)], {(1, 2): 1, (0, 1): 1}, id="score comes first"
        ),
        pytest.param(
            [(0, 2, BOX, 0.9), (0, 1, BOX, 0.9)], [(0, 1, BOX, False)], {(1, 2): 1, (0, 1): 1}, id="equal scores"
        ),
        pytest.param(
            [(0, 1, BOX, 0.9), (0, 1, BOX, 0.8)],
            [(0, 1, BOX, False), (0, 2, HALF, False)],
            {(1, 1): 1, (2, 1): 1},
            id="the second best when the best is taken",
        ),
        pytest.param(
            [(0, 3, BOX, 0.9)], [(0, 2, BOX, False), (0, 1, BOX, False)], {(2, 3): 1, (1, 0): 1}, id="equal objects"
        ),
        pytest.param([], [(0, 1, BOX, True)], {}, id="difficult, not missed"),
        pytest.param([(0, 1, BOX, 0.9), (0, 2, BOX, 0.8)], [(0, 1, BOX, True)], {}, id="difficult, not found"),
        pytest.param(
            [(0, 1, BOX, 0.9)], [(0, 1, BOX, True), (0, 1, HALF, False)], {(1, 0): 1}, id="difficult overlaps more"
        ),
        pytest.param([(0, 1, ELSEWHERE, 0.9)], [(0, 1, BOX, True)], {(0, 1): 1}, id="difficult elsewhere"),
        pytest.param([(-7, 1, BOX, 0.9)], [(-7, 1, BOX, False)], {(1, 1): 1}, id="any image number"),
    ],
)
def test_confusions(detections, objects, expected):
    assert confusions(detections, objects) == expected


def test_confusions_at_other_thresholds():
    assert confusions([(0, 1, LESS, 0.3)], [(0, 2, BOX, False)], iou_threshold=0.4, score_threshold=0.2) == {(2, 1): 1}
    assert confusions([(0, 1, HALF, 0.9)], [(0, 2, BOX, False)], iou_threshold=0.6) == {(0, 1): 1, (2, 0): 1}


def slow_confusions(detections: DetectionRecords, objects: ObjectRecords, iou_threshold: Fraction) -> np.ndarray:
    """Match detections one by one with a loop over all objects. Boxes are whole numbers, so that IoU is exact."""

    def iou(a: np.ndarray, b: np.ndarray) -> Fraction:
        (left, top, right, bottom), (x0, y0, x1, y1) = ([int(edge) for edge in box] for box in (a, b))
        width, height = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
        shared = width * height if width > 0 and height > 0 else 0
        union = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared
        return Fraction(shared, union) if union else Fraction(0)

    counts = np.zeros((4, 4), dtype=np.int64)
    taken: set[int] = set()
    for d in sorted(range(len(detections.labels)), key=lambda row: -detections.scores[row]):  # sorted() is stable
        if detections.scores[d] < 0.5:
            continue
        best, best_iou = None, Fraction(0)
        for o in range(len(objects.labels)):
            overlap = iou(detections.boxes[d], objects.boxes[o])
            is_free = o not in taken and objects.image_ids[o] == detections.image_ids[d]
            if is_free and overlap >= iou_threshold and overlap > best_iou:
                best, best_iou = o, overlap
        if best is None:
            counts[0, detections.labels[d]] += 1
        elif not objects.difficult[best]:
            counts[objects.labels[best], detections.labels[d]] += 1
            taken.add(best)
    for o in range(len(objects.labels)):
        if o not in taken and not objects.difficult[o]:
            counts[objects.labels[o], 0] += 1
    return counts


# Few places, sizes and scores, so that equal boxes, equal IoUs, an IoU of exactly 1/2 and equal scores all happen.
boxes = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
truths = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), boxes, st.booleans()), max_size=12)
founds = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3), boxes, st.sampled_from([0.25, 0.5, 0.75, 1.0])), max_size=25
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(founds, truths, st.sampled_from([Fraction(1, 2), Fraction(1, 4), Fraction(1)]))
def test_confusions_equal_the_slow_loop(found, truth, iou_threshold):
    detections, objects = detection_records(*found), object_records(*truth)
    counts = confusion_matrix(detections, objects, 3, float(iou_threshold))
    np.testing.assert_array_equal(counts, slow_confusions(detections, objects, iou_threshold))
    ordinary = objects.labels[~objects.difficult]
    np.testing.assert_array_equal(counts[1:].sum(axis=1), np.bincount(ordinary, minlength=4)[1:])


def test_confusions_of_a_large_data_set_are_quick():
    """The data set has the size of VOC2007 test. It takes 0.05 s on an idle machine."""
    rng = np.random.default_rng(0)

    def boxes(count: int) -> np.ndarray:
        corners = rng.uniform(0, 300, (count, 2))
        return np.concatenate([corners, corners + rng.uniform(20, 200, (count, 2))], axis=1).astype(np.float32)

    objects = ObjectRecords(
        rng.integers(0, 4952, 12032), rng.integers(1, 21, 12032), boxes(12032), rng.random(12032) < 0.1
    )
    source = rng.integers(0, 12032, 67000)
    detections = DetectionRecords(
        objects.image_ids[source],
        objects.labels[source],
        objects.boxes[source] + rng.normal(0, 1, (67000, 1)).astype(np.float32),
        rng.random(67000, dtype=np.float32),
    )
    start = time.perf_counter()
    counts = confusion_matrix(detections, objects, 20, score_threshold=0.0)
    assert time.perf_counter() - start < 2
    assert counts.trace() > 9000


@pytest.mark.parametrize("iou_threshold", [0.0, -1.0, 1.5, float("nan")])
def test_bad_iou_threshold_is_refused(iou_threshold):
    with pytest.raises(ValueError, match=r"iou_threshold: expected a number in \(0, 1\], got"):
        confusion_matrix(detection_records(), object_records(), 1, iou_threshold)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"detections\.labels: expected 1 … 1, got 2"):
        confusion_matrix(detection_records((0, 2, BOX, 0.9)), object_records(), 1)


def test_confusion_table_has_background_last():
    counts = confusion_matrix(
        detection_records((0, 2, BOX, 0.9), (1, 1, BOX, 0.9)), object_records((0, 1, BOX, False), (2, 2, BOX, False)), 2
    )
    table = confusion_table(counts, ["a", "b"])
    assert table.index.tolist() == table.columns.tolist() == ["a", "b", "background"]
    assert table.to_numpy().tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


# --- scores by class ---

NAMES = ("banana", "plátano grande")


def test_scores_are_those_of_the_protocols():
    """Class 1 has two objects, one found, and a difficult object; class 2 has one, found at IoU 0.5 only."""
    objects = object_records((0, 1, BOX, False), (1, 1, BOX, False), (2, 1, BOX, True), (0, 2, ELSEWHERE, False))
    detections = detection_records((0, 1, BOX, 0.9), (0, 2, (50.0, 50.0, 60.0, 56.0), 0.8))
    table = score_by_class(detections, objects, NAMES)
    coco = coco_average_precision(detections, objects, 2)
    assert table.index.tolist() == [*NAMES, "mean"]
    assert table["objects"].tolist() == [2, 1, 3]
    assert table["objects incl. difficult"].tolist() == [3, 1, 4]
    assert table["VOC12 AP"].tolist() == [0.5, 1, 0.75]
    assert table["VOC07 AP"].tolist() == pytest.approx([6 / 11, 1, 17 / 22])
    assert len(coco_columns()) == 12
    for column, key in coco_columns().items():
        expected = [*coco[f"{key}_per_class"], coco[key]]
        assert table[column].tolist() == pytest.approx(expected, nan_ok=True), column
    assert table["COCO AP50"].tolist() == pytest.approx([0.504950, 1, 0.752475], abs=1e-6)
    assert table["COCO AP75"].tolist() == pytest.approx([0.504950, 0, 0.252475], abs=1e-6)
    assert table["best F1"].tolist() == pytest.approx([2 / 3, 1, 5 / 6])
    assert table["best F1 at score"].tolist() == pytest.approx([0.9, 0.8, np.nan], nan_ok=True)
    assert table["COCO AR small"].iloc[-1] == pytest.approx((0.5 + 0.3) / 2)


def test_a_column_names_the_number_of_detections():
    objects = object_records((0, 1, BOX, False))
    table = score_by_class(detection_records((0, 1, BOX, 0.9)), objects, ["banana"], coco_max_detections=300)
    assert [name for name in table if name.startswith("COCO AR")][:3] == ["COCO AR1", "COCO AR10", "COCO AR300"]
    assert table["COCO AR300"].tolist() == [1, 1]


@pytest.mark.parametrize("iou_threshold", [0.3, 0.75])
def test_columns_name_another_iou(iou_threshold):
    objects = object_records((0, 1, BOX, False))
    detections = detection_records((0, 1, HALF, 0.9))
    table = score_by_class(detections, objects, ["banana"], iou_threshold)
    expected = voc_average_precision(detections, objects, 1, iou_threshold).mean
    assert voc_columns(iou_threshold) == (f"VOC07 AP at IoU {iou_threshold}", f"VOC12 AP at IoU {iou_threshold}")
    assert table[f"VOC12 AP at IoU {iou_threshold}"].tolist() == [expected] * 2
    assert "VOC12 AP" not in table
    assert table["COCO AP50"].iloc[-1] == pytest.approx(1), "COCO has thresholds of its own"


@pytest.mark.parametrize(
    ("detections", "objects", "averages"),
    [
        pytest.param([], [], [np.nan] * 3, id="nothing"),
        pytest.param([(0, 1, BOX, 0.9)], [], [np.nan] * 3, id="no objects"),
        pytest.param([], [(0, 2, BOX, False)], [np.nan, 0, 0], id="no detections"),
        pytest.param([(0, 1, BOX, 0.9)], [(0, 1, BOX, True)], [np.nan] * 3, id="difficult only"),
        pytest.param([(0, 2, BOX, 0.9)], [(0, 2, BOX, False)], [np.nan, 1, 1], id="a class without objects"),
    ],
)
def test_scores_at_the_edges(detections, objects, averages):
    table = score_by_class(detection_records(*detections), object_records(*objects), NAMES)
    for column in ("VOC07 AP", "VOC12 AP", "COCO AP"):
        np.testing.assert_allclose(table[column], averages, atol=1e-6, err_msg=column)


def test_a_class_may_be_called_mean():
    objects = object_records((0, 1, BOX, False), (0, 2, ELSEWHERE, False))
    table = score_by_class(detection_records((0, 1, BOX, 0.9)), objects, ["mean", "other"])
    assert table["VOC12 AP"].tolist() == [1, 0, 0.5]


# --- files ---

AWKWARD = ("plátano, grande", "香蕉", "a very long name " * 10, 'quote "$x_1^2$"', "mean")


@pytest.mark.parametrize(
    ("detections", "objects"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([(0, 5, BOX, 0.9)], [], id="no objects"),
        pytest.param(
            [(0, 1, BOX, 0.9), (0, 4, BOX, 0.9), (0, 2, BOX, 0.8), (0, 3, BOX, 0.8)],
            [(0, 1, BOX, True), (0, 3, BOX, False), (1, 5, BOX, False)],
            id="classes with a difficult object, no object, equal scores, no detection",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_report_can_be_read_again(tmp_path: Path, detections, objects):
    table = write_report(tmp_path, detection_records(*detections), object_records(*objects), AWKWARD)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "scores.csv",
        "confusion.csv",
        "error_costs.csv",
        "precision_recall.csv",
        "figures/error_costs.png",
        "figures/precision_recall.png",
        "figures/score_thresholds.png",
        "figures/per_class.png",
        "figures/confusion.png",
    }
    read = pd.read_csv(io.StringIO((tmp_path / "scores.csv").read_text(encoding="utf-8")), index_col="class")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    points = pd.read_csv(tmp_path / "precision_recall.csv")
    curves = precision_recall_curves(detection_records(*detections), object_records(*objects), 5).curves
    for name, curve in zip(AWKWARD, curves, strict=True):
        mine = points[points["class"] == name]
        written = mine[["score", "recall", "precision"]].to_numpy(float).T
        np.testing.assert_allclose(written, [curve.scores, curve.recall, curve.precision], rtol=1e-5)
    confusion = pd.read_csv(tmp_path / "confusion.csv", index_col="truth")
    assert confusion.index.tolist() == confusion.columns.tolist() == [*AWKWARD, "background"]
    counts = confusion_matrix(detection_records(*detections), object_records(*objects), 5)
    np.testing.assert_array_equal(confusion, np.roll(counts, -1, axis=(0, 1)))
    costs = cost_in_ap(detection_records(*detections), object_records(*objects), 5)
    written = pd.read_csv(tmp_path / "error_costs.csv", index_col="cause")
    pd.testing.assert_frame_equal(written, costs, check_dtype=False)
