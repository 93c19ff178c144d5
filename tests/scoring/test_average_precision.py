"""Average precision against published numbers, the devkit's loop written out, and pycocotools."""

import contextlib
import inspect
import io
import json
import warnings
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import FIXTURES
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from records import detection_records, object_records

from ssd_lightning.records import DetectionRecords, ObjectRecords, concatenate
from ssd_lightning.scoring.assignment import assign_detections
from ssd_lightning.scoring.average_precision import (
    Curve,
    average_curves,
    average_precision_11_point,
    average_precision_area,
    best_f1,
    precision_recall_curves,
    voc_average_precision,
)
from ssd_lightning.scoring.coco_average_precision import coco_average_precision

FIXTURE = json.loads((FIXTURES / "average_precision.json").read_text())


def as_detections(objects: ObjectRecords, seed: int = 0) -> DetectionRecords:
    """Return the truth as detections, with scores in random order."""
    scores = np.random.default_rng(seed).permutation(len(objects.labels)).astype(np.float32)
    return DetectionRecords(objects.image_ids, objects.labels, objects.boxes, scores)


def random_scene(seed: int, difficult: float = 0.0) -> tuple[DetectionRecords, ObjectRecords]:
    """Return 30 images of 160 × 160 pixels with 3 classes, objects in cells of a 2 × 2 grid, and distinct scores.

    Objects of an image do not overlap, and detections stay close to the cell of their object. Each detection then
    overlaps with at most one object, so VOC and COCO must agree on the objects that are found.
    """
    rng = np.random.default_rng(seed)
    images, cells = np.divmod(np.flatnonzero(rng.random(30 * 4) < 0.6), 4)
    corners = np.stack([cells % 2, cells // 2], axis=1) * 80.0 + rng.uniform(0, 15, (len(cells), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(15, 60, (len(cells), 2))], axis=1)
    labels = rng.integers(1, 4, len(cells))
    objects = ObjectRecords(images, labels, boxes, rng.random(len(cells)) < difficult)

    source = rng.integers(0, len(cells), 400)
    detected = boxes[source] + rng.normal(0, 3, (400, 4))
    detected[:, 2:] = np.maximum(detected[:, 2:], detected[:, :2] + 1)
    # One in five has the wrong class, which is as good as no object there.
    detected_labels = np.where(rng.random(400) < 0.2, rng.integers(1, 4, 400), labels[source])
    return DetectionRecords(images[source], detected_labels, detected, rng.permutation(400) / 400), objects


def inclusive_to_edges(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    return left - 1, top - 1, right, bottom


# ---------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize("interpolation", ["area", "11-point"])
def test_published_sample(interpolation):
    """The published boxes (Padilla et al.) are inclusive pixels x … x + width, with the devkit's + 1 in the IoU."""
    objects = object_records(
        *((image, 1, inclusive_to_edges(x, y, x + w, y + h)) for image, x, y, w, h in FIXTURE["objects"])
    )
    detections = detection_records(
        *((image, 1, inclusive_to_edges(x, y, x + w, y + h), s) for image, s, x, y, w, h in FIXTURE["detections"])
    )
    result = voc_average_precision(detections, objects, 1, FIXTURE["iou_threshold"], interpolation)
    assert round(100 * result.mean, 2) == FIXTURE["published_percent"][interpolation]
    assert result.num_objects.tolist() == [15]


# ------------------------------------------------------------------------------------------- the devkit, by the loop


class Truth(NamedTuple):
    image: int
    label: int
    pixels: tuple[int, int, int, int]  # first and last pixel, both inside, counted from 1
    difficult: bool


class Found(NamedTuple):
    image: int
    label: int
    pixels: tuple[int, int, int, int]
    score: float


def devkit_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> Fraction:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def devkit_average_precision(
    found: list[Found], truth: list[Truth], label: int, iou_threshold: Fraction
) -> tuple[float, float]:
    """Compute (11-point, area) of one class, line by line as VOCevaldet.m and VOCap.m, in exact fractions."""
    truth = [t for t in truth if t.label == label]
    num_positive = sum(not t.difficult for t in truth)
    if num_positive == 0:
        return float("nan"), float("nan")

    claimed: set[int] = set()
    num_true = num_false = 0
    recall, precision = [], []
    for d in sorted((d for d in found if d.label == label), key=lambda d: -d.score):  # sorted() is stable
        best_iou, best = Fraction(-1), None
        for j, t in enumerate(truth):
            if t.image == d.image and devkit_iou(d.pixels, t.pixels) > best_iou:
                best_iou, best = devkit_iou(d.pixels, t.pixels), j
        if best is not None and best_iou >= iou_threshold:
            if truth[best].difficult:
                continue
            num_true += best not in claimed
            num_false += best in claimed
            claimed.add(best)
        else:
            num_false += 1
        recall.append(Fraction(num_true, num_positive))
        precision.append(Fraction(num_true, num_true + num_false))

    eleven = Fraction(0)
    for level in range(11):
        eleven += max((p for r, p in zip(recall, precision, strict=True) if r >= Fraction(level, 10)), default=0)

    recall, precision = [Fraction(0), *recall, Fraction(1)], [Fraction(0), *precision, Fraction(0)]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    area = sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
    return float(eleven / 11), float(area)


# Few places, sizes and scores, so that equal boxes, equal IoUs, an IoU of exactly 1/2 and equal scores all happen.
pixels = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
truths = st.lists(st.builds(Truth, st.integers(0, 2), st.integers(1, 3), pixels, st.booleans()), max_size=12)
founds = st.lists(
    st.builds(Found, st.integers(0, 3), st.integers(1, 3), pixels, st.sampled_from([0.25, 0.5, 0.75, 1.0])), max_size=25
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(founds, truths, st.sampled_from([Fraction(1, 2), Fraction(1, 4), Fraction(3, 4), Fraction(1)]))
def test_equals_the_devkit(found, truth, iou_threshold):
    objects = object_records(*(t._replace(pixels=inclusive_to_edges(*t.pixels)) for t in truth))
    detections = detection_records(*(d._replace(pixels=inclusive_to_edges(*d.pixels)) for d in found))
    area = voc_average_precision(detections, objects, 3, float(iou_threshold), "area")
    eleven = average_curves(area.curves, area.num_objects, "11-point")
    expected = np.array([devkit_average_precision(found, truth, label, iou_threshold) for label in (1, 2, 3)])
    np.testing.assert_allclose(eleven.average_precision, expected[:, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(area.average_precision, expected[:, 1], rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(founds, truths, st.randoms(use_true_random=False))
def test_order_of_rows_is_free_when_scores_differ(found, truth, random):
    found = [d._replace(score=float(rank)) for rank, d in enumerate(found)]
    scores = voc_average_precision(detection_records(*found), object_records(*truth), 3)
    random.shuffle(found)
    shuffled = voc_average_precision(detection_records(*found), object_records(*truth), 3)
    np.testing.assert_array_equal(shuffled.average_precision, scores.average_precision)
    for curve, other in zip(scores.curves, shuffled.curves, strict=True):
        for values, other_values in zip(curve, other, strict=True):
            np.testing.assert_array_equal(values, other_values)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(founds, truths, st.integers(-10, 10))
def test_unit_of_boxes_is_free(found, truth, exponent):
    """A power of two keeps every float exact, and so every IoU that equals the threshold."""
    detections, objects = detection_records(*found), object_records(*truth)
    scaled = voc_average_precision(
        detections._replace(boxes=np.ldexp(detections.boxes, exponent)),
        objects._replace(boxes=np.ldexp(objects.boxes, exponent)),
        3,
    )
    expected = voc_average_precision(detections, objects, 3)
    np.testing.assert_array_equal(scaled.average_precision, expected.average_precision)


# ------------------------------------------------------------------------------------------------- single situations

BOX = (10.0, 10.0, 20.0, 20.0)
HALF = (10.0, 10.0, 20.0, 15.0)  # IoU with BOX is exactly 1/2
LESS = (10.0, 10.0, 20.0, 14.9)
ELSEWHERE = (50.0, 50.0, 60.0, 60.0)


def outcome(detections: list[tuple], objects: list[tuple], iou_threshold: float = 0.5) -> str:
    """Return one letter for each detection: t(rue), f(alse) or i(gnored)."""
    result = assign_detections(detection_records(*detections), object_records(*objects), iou_threshold)
    assert not (result.is_true & result.is_ignored).any()
    return "".join(
        "i" if ignored else "t" if true else "f"
        for true, ignored in zip(result.is_true, result.is_ignored, strict=True)
    )


@pytest.mark.parametrize(
    ("detections", "objects", "expected"),
    [
        pytest.param([], [], "", id="nothing"),
        pytest.param([], [(0, 1, BOX, False)], "", id="no detections"),
        pytest.param([(0, 1, BOX, 0.9)], [], "f", id="no objects"),
        pytest.param([(0, 1, BOX, 0.9)], [(0, 1, BOX, False)], "t", id="found"),
        pytest.param([(1, 1, BOX, 0.9)], [(0, 1, BOX, False)], "f", id="other image"),
        pytest.param([(0, 2, BOX, 0.9)], [(0, 1, BOX, False)], "f", id="other class"),
        pytest.param([(0, 1, HALF, 0.9)], [(0, 1, BOX, False)], "t", id="on the threshold"),
        pytest.param([(0, 1, LESS, 0.9)], [(0, 1, BOX, False)], "f", id="below the threshold"),
        pytest.param([(0, 1, BOX, 0.8), (0, 1, HALF, 0.9)], [(0, 1, BOX, False)], "ft", id="score beats overlap"),
        pytest.param([(0, 1, BOX, 0.9), (0, 1, BOX, 0.9)], [(0, 1, BOX, False)], "tf", id="first of equal scores"),
        pytest.param([(0, 1, BOX, 0.9), (0, 1, BOX, 0.8)], [(0, 1, BOX, True)], "ii", id="difficult"),
        pytest.param([(0, 1, LESS, 0.9)], [(0, 1, BOX, True)], "f", id="difficult, missed"),
        # The second box of the same place is not a second chance: both detections belong to the first of equals.
        pytest.param([(0, 1, BOX, 0.9), (0, 1, BOX, 0.8)], [(0, 1, BOX, False)] * 2, "tf", id="first of equal objects"),
        pytest.param([(0, 1, BOX, 0.9)], [(0, 1, BOX, True), (0, 1, BOX, False)], "i", id="difficult comes first"),
        # COCO would give the second detection the other object, of which it has 0.5; VOC does not.
        pytest.param(
            [(0, 1, BOX, 0.9), (0, 1, BOX, 0.8)], [(0, 1, BOX, False), (0, 1, HALF, False)], "tf", id="no second best"
        ),
        pytest.param([(0, 1, (1.0, 1.0, 1.0, 1.0), 0.9)], [(0, 1, (1.0, 1.0, 1.0, 1.0), False)], "f", id="empty boxes"),
        pytest.param(
            [(-7, 1, BOX, 0.1), (10**15, 3, BOX, 0.2), (10**15, 1, BOX, 0.3)],
            [(10**15, 3, BOX, False), (-7, 1, BOX, False)],
            "ttf",
            id="any image number",
        ),
    ],
)
def test_outcome(detections, objects, expected):
    assert outcome(detections, objects) == expected


def test_assignments_name_object_and_overlap():
    objects = object_records((0, 1, ELSEWHERE, False), (0, 1, BOX, False), (1, 1, BOX, False))
    result = assign_detections(
        detection_records((0, 1, HALF, 0.1), (2, 1, BOX, 0.2), (1, 1, ELSEWHERE, 0.3)), objects, 0.75
    )
    assert result.object_rows.tolist() == [1, -1, 2]
    assert result.iou.tolist() == [0.5, 0.0, 0.0]
    assert not result.is_true.any()


def test_truth_as_detections_is_perfect():
    _, objects = random_scene(0)
    for interpolation in ("area", "11-point"):
        result = voc_average_precision(as_detections(objects), objects, 3, 1.0, interpolation)
        np.testing.assert_allclose(result.average_precision, 1, atol=1e-12)
        assert result.mean == pytest.approx(1)


def test_no_detections_is_zero():
    objects = object_records((0, 1, BOX, False), (0, 2, BOX, False))
    result = voc_average_precision(detection_records(), objects, 2)
    assert result.average_precision.tolist() == [0, 0]
    assert result.mean == 0
    assert [len(curve.recall) for curve in result.curves] == [0, 0]


@pytest.mark.parametrize("interpolation", ["area", "11-point"])
def test_class_without_truth_has_no_score(interpolation):
    """Class 2 has detections but no object, class 3 has a difficult object, class 4 has neither."""
    objects = object_records((0, 1, BOX, False), (0, 3, BOX, True))
    detections = detection_records((0, 1, BOX, 0.5), (0, 2, BOX, 0.9), (0, 3, BOX, 0.9), (0, 3, ELSEWHERE, 0.9))
    result = voc_average_precision(detections, objects, 4, interpolation=interpolation)
    np.testing.assert_array_equal(result.average_precision, [1, np.nan, np.nan, np.nan])
    assert result.mean == 1
    assert result.num_objects.tolist() == [1, 0, 0, 0]
    assert np.isnan(result.curves[1].recall).all()
    assert np.isnan(average_precision_11_point(result.curves[1]))
    assert np.isnan(average_precision_area(result.curves[1]))
    assert len(result.curves[2].recall) == 1, "the ignored detection has no point"


def test_no_truth_at_all_has_no_mean():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for detections in ([], [(0, 1, BOX, 0.5)]):
            result = voc_average_precision(detection_records(*detections), object_records(), 2)
            assert np.isnan(result.average_precision).all()
            assert np.isnan(result.mean)


def test_curve_of_one_class():
    """The expected values are computed by hand: found, repeated, missed, found."""
    objects = object_records((0, 2, BOX, False), (1, 2, BOX, False), (2, 2, BOX, True), (3, 2, BOX, False))
    detections = detection_records(
        (1, 2, BOX, 0.5), (0, 2, ELSEWHERE, 0.6), (2, 2, BOX, 0.7), (0, 2, HALF, 0.8), (0, 2, BOX, 0.9)
    )
    curves, num_objects = precision_recall_curves(detections, objects, 2)
    assert num_objects.tolist() == [0, 3]
    np.testing.assert_allclose(curves[1].recall, [1 / 3, 1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(curves[1].precision, [1, 1 / 2, 1 / 3, 2 / 4])
    np.testing.assert_allclose(curves[1].scores, [0.9, 0.8, 0.6, 0.5], rtol=1e-6)
    assert average_precision_area(curves[1]) == pytest.approx(1 / 3 * 1 + 1 / 3 * 1 / 2)
    assert average_precision_11_point(curves[1]) == pytest.approx((4 * 1 + 3 * 1 / 2) / 11)


@pytest.mark.parametrize("num_found", range(11))
def test_recall_of_exactly_a_level_reaches_it(num_found):
    """3/10 ≥ 0.3, although 3/10 < 3 * 0.1 in floats; likewise 6/10 and 7/10."""
    curve = Curve(np.arange(1, num_found + 1) / 10, np.ones(num_found), np.ones(num_found))
    assert average_precision_11_point(curve) == pytest.approx((num_found + 1 if num_found else 0) / 11)


def test_false_positives_after_the_last_object_cost_nothing():
    _, objects = random_scene(1)
    late = detection_records(*((0, label, ELSEWHERE, -1.0) for label in (1, 2, 3)))
    both = concatenate([as_detections(objects), late])
    for interpolation in ("area", "11-point"):
        assert voc_average_precision(both, objects, 3, interpolation=interpolation).mean == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------ refusals

GOOD_DETECTIONS = detection_records((0, 1, BOX, 0.5), (0, 2, BOX, 0.5))
GOOD_OBJECTS = object_records((0, 1, BOX, False), (0, 2, BOX, False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detections": {"scores": np.ones(3)}}, r"detections.scores: expected shape \(2,\).*\(3,\)"),
        ({"detections": {"boxes": np.ones((2, 5))}}, r"detections.boxes: expected shape \(2, 4\).*\(2, 5\)"),
        ({"objects": {"difficult": np.ones(1, dtype=bool)}}, r"objects.difficult: expected shape \(2,\).*\(1,\)"),
        ({"objects": {"difficult": np.array([0, 1])}}, "objects.difficult: expected type bool.*int64"),
        ({"objects": {"labels": np.array([1.0, 2.0])}}, "objects.labels: expected type integer.*float64"),
        ({"detections": {"scores": np.array([0.5, np.nan])}}, "detections.scores: .*finite.*nan in row 1"),
        (
            {"objects": {"boxes": np.array([BOX, (0, 0, np.inf, 1)])}},
            "objects.boxes: .*finite.*inf.* in row 1",
        ),
        (
            {"detections": {"boxes": np.array([BOX, (5.0, 1.0, 4.0, 2.0)])}},
            "detections.boxes: .*left ≤ right.*5.* in row 1",
        ),
        ({"detections": {"labels": np.array([0, 1])}}, "detections.labels: expected 1 … 2, got 0 in row 0"),
        ({"objects": {"labels": np.array([1, 3])}}, "objects.labels: expected 1 … 2, got 3 in row 1"),
        ({"num_classes": 0}, "num_classes: expected a whole number of at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("function", [voc_average_precision, precision_recall_curves, coco_average_precision])
def test_bad_records_are_refused(function, change, message):
    detections = GOOD_DETECTIONS._replace(**change.get("detections", {}))
    objects = GOOD_OBJECTS._replace(**change.get("objects", {}))
    with pytest.raises(ValueError, match=message):
        function(detections, objects, change.get("num_classes", 2))


@pytest.mark.parametrize("iou_threshold", [0.0, -0.5, 1.5, float("nan")])
def test_bad_iou_threshold_is_refused(iou_threshold):
    with pytest.raises(ValueError, match=r"iou_threshold: expected a number in \(0, 1\], got"):
        voc_average_precision(GOOD_DETECTIONS, GOOD_OBJECTS, 2, iou_threshold)


def test_unknown_interpolation_is_refused():
    curves = precision_recall_curves(GOOD_DETECTIONS, GOOD_OBJECTS, 2)
    unchecked = inspect.unwrap(average_curves)  # beartype, on in tests alone, would refuse it first
    with pytest.raises(ValueError, match="interpolation: expected one of 11-point, area, got '12-point'"):
        unchecked(*curves, "12-point")


def test_bad_max_detections_is_refused():
    with pytest.raises(ValueError, match="max_detections: expected a whole number of at least 1, got 0"):
        coco_average_precision(GOOD_DETECTIONS, GOOD_OBJECTS, 2, max_detections=0)


# ---------------------------------------------------------------------------------------------------------------- COCO


def pycocotools_scores(
    detections: DetectionRecords, objects: ObjectRecords, num_classes: int, max_detections: int = 100
) -> dict[str, float | list[float]]:
    """Score with the reference implementation, which has ``map`` at 100 detections only. It scores each class alone."""

    def annotations(records: ObjectRecords | DetectionRecords) -> list[dict]:
        sizes = records.boxes[:, 2:] - records.boxes[:, :2]
        return [
            {"id": i + 1, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, label, box) in enumerate(
                zip(
                    records.image_ids.tolist(),
                    records.labels.tolist(),
                    np.concatenate([records.boxes[:, :2], sizes], axis=1).tolist(),
                    strict=True,
                )
            )
        ]

    def nan_for_undefined(value: float) -> float:
        return float(value) if value >= 0 else float("nan")

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in np.union1d(detections.image_ids, objects.image_ids).tolist()],
            "categories": [{"id": label} for label in range(1, num_classes + 1)],
            "annotations": [
                {**row, "iscrowd": int(difficult)}
                for row, difficult in zip(annotations(objects), objects.difficult, strict=True)
            ],
        }
        truth.createIndex()
        rows = zip(annotations(detections), detections.scores.tolist(), strict=True)
        evaluation = COCOeval(truth, truth.loadRes([{**row, "score": score} for row, score in rows]), "bbox")
        evaluation.params.maxDets = [1, min(10, max_detections), max_detections]
        names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
        names += [f"mar_{number}" for number in evaluation.params.maxDets]
        names += ["mar_small", "mar_medium", "mar_large"]

        def figures(labels: list[int]) -> dict[str, float]:
            evaluation.params.catIds = labels
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return {name: nan_for_undefined(value) for name, value in zip(names, evaluation.stats, strict=True)}

        of_class = [figures([label]) for label in range(1, num_classes + 1)]
        scores = figures(list(range(1, num_classes + 1)))
    per_class = {f"{name}_per_class": [figures[name] for figures in of_class] for name in scores}
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))
    return {**scores, **per_class, "map_per_class": [nan_for_undefined(value) for value in precision]}


def average_precision_101_point(curve: Curve) -> float:
    """Average a curve as COCO does, over the recall levels 0, 0.01, …, 1."""
    levels = np.linspace(0, 1, 101)
    return float(np.mean([np.max(curve.precision[curve.recall >= level], initial=0) for level in levels]))


@pytest.mark.parametrize("seed", [0, 1])
def test_voc_finds_what_pycocotools_finds(seed):
    """The curves are equal and only the averages differ if no detection overlaps two objects."""
    detections, objects = random_scene(seed)
    curves, _ = precision_recall_curves(detections, objects, 3)
    expected = pycocotools_scores(detections, objects, 3)["map_50"]
    assert 0.3 < expected < 0.9, "a scene worth scoring"
    assert np.mean([average_precision_101_point(curve) for curve in curves]) == pytest.approx(expected, abs=1e-6)
    assert voc_average_precision(detections, objects, 3).mean == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("seed", "difficult", "max_detections"), [(2, 0.0, 100), (3, 0.3, 100), (4, 0.3, 3)])
def test_coco_equals_pycocotools(seed, difficult, max_detections):
    detections, objects = random_scene(seed, difficult)
    ours = coco_average_precision(detections, objects, 4, max_detections)
    theirs = pycocotools_scores(detections, objects, 4, max_detections)
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - ({"map"} if max_detections != 100 else {}):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6, nan_ok=True), key
    assert np.isnan(ours["map_large"])
    assert not np.isnan(ours["map_small"])


@pytest.mark.parametrize(("seed", "difficult", "max_detections"), [(5, 0.0, 100), (6, 0.3, 100), (7, 0.3, 3)])
def test_coco_of_small_medium_and_large_objects_equals_pycocotools(seed, difficult, max_detections):
    """Every other image is three times as large, so objects have sides of 15 … 60 or 45 … 180 pixels."""
    detections, objects = (
        records._replace(boxes=records.boxes * np.where(records.image_ids % 2, 1.0, 3.0)[:, None])
        for records in random_scene(seed, difficult)
    )
    ours = coco_average_precision(detections, objects, 3, max_detections)
    theirs = pycocotools_scores(detections, objects, 3, max_detections)
    sizes = [f"{score}_{size}" for score in ("map", "mar") for size in ("small", "medium", "large")]
    for key in sizes:
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key
    assert len({round(ours[key], 6) for key in sizes}) == 6, "no two of them are the same number by accident"


@pytest.mark.parametrize(
    ("detections", "objects", "expected"),
    [
        pytest.param([], [], [np.nan] * 3, id="nothing"),
        pytest.param([(0, 1, BOX, 0.9)], [], [np.nan] * 3, id="no objects"),
        pytest.param([], [(0, 2, BOX, False)], [np.nan, 0, np.nan], id="no detections"),
        pytest.param([(0, 2, BOX, 0.9)], [(5, 2, BOX, False)], [np.nan, 0, np.nan], id="in different images"),
        pytest.param([(5, 2, BOX, 0.9)], [(5, 2, BOX, False)], [np.nan, 1, np.nan], id="one found"),
        pytest.param([(5, 2, BOX, 0.9)], [(5, 2, BOX, True)], [np.nan] * 3, id="only difficult"),
        pytest.param(
            [(0, 1, BOX, 0.9), (0, 3, BOX, 0.9), (0, 3, ELSEWHERE, 0.8)],
            [(0, 3, ELSEWHERE, False), (0, 3, BOX, True)],
            [np.nan, np.nan, 1],
            id="difficult ignored",
        ),
    ],
)
def test_coco_at_the_edges(detections, objects, expected, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = coco_average_precision(detection_records(*detections), object_records(*objects), 3)
    mean = next((value for value in expected if not np.isnan(value)), float("nan"))
    np.testing.assert_allclose(scores["map_per_class"], expected, atol=1e-6)
    for key in ("map", "map_50", "map_75", "map_small", "mar_100", "mar_small"):
        assert scores[key] == pytest.approx(mean, nan_ok=True), key
    assert np.isnan([scores[key] for key in ("map_medium", "map_large", "mar_medium", "mar_large")]).all()
    assert capfd.readouterr() == ("", "")


def test_coco_counts_more_detections_than_its_own_limit():
    """The object is found by the detection of rank 150."""
    detections = detection_records(*((0, 1, ELSEWHERE, 1 - n / 1000) for n in range(149)), (0, 1, BOX, 0.5))
    objects = object_records((0, 1, BOX, False))
    assert coco_average_precision(detections, objects, 1)["map"] == 0
    scores = coco_average_precision(detections, objects, 1, max_detections=150)
    assert scores["map"] == pytest.approx(1 / 150)
    assert (scores["mar_1"], scores["mar_10"], scores["mar_150"]) == (0, 0, 1)
    assert scores["map_50_per_class"] == pytest.approx([1 / 150])


@pytest.mark.parametrize(
    ("found", "scores", "expected"),
    [
        pytest.param([True, True, False], [0.9, 0.8, 0.7], (1.0, 0.8), id="all before the first false one"),
        pytest.param([True, False, True], [0.9, 0.8, 0.7], (0.8, 0.7), id="a false one on the way"),
        pytest.param([True, False, False, False, True], [0.9, 0.8, 0.7, 0.6, 0.5], (2 / 3, 0.9), id="the first alone"),
        pytest.param([True, False, True], [0.9, 0.9, 0.7], (0.8, 0.7), id="equal scores count together"),
        pytest.param([False], [0.9], (0.0, np.nan), id="none found"),
        pytest.param([], [], (0.0, np.nan), id="no detection"),
    ],
)
def test_best_f1_of_two_objects(found, scores, expected):
    true = np.cumsum(np.array(found, dtype=bool))
    points = np.arange(1, len(found) + 1)
    curve = Curve(true / 2, true / points, np.array(scores))
    np.testing.assert_allclose(best_f1(curve), expected)


def test_best_f1_without_objects():
    assert np.isnan(best_f1(Curve(np.array([np.nan]), np.zeros(1), np.array([0.5])))).all()


def test_coco_overlap_on_a_threshold_counts():
    """An IoU of exactly 0.6 reaches the thresholds 0.5, 0.55 and 0.6 of ten."""
    scores = coco_average_precision(
        detection_records((0, 1, (10.0, 10.0, 20.0, 16.0), 0.9)), object_records((0, 1, BOX, False)), 1
    )
    assert scores["map"] == pytest.approx(0.3)


def test_coco_leaves_out_the_worst_without_a_word():
    detections = detection_records((0, 1, ELSEWHERE, 0.9), (0, 1, BOX, 0.8))
    objects = object_records((0, 1, BOX, False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coco_average_precision(detections, objects, 1, max_detections=1)["mar_1"] == 0
        assert coco_average_precision(detections, objects, 1, max_detections=2)["mar_2"] == 1


def test_coco_asks_no_other_rank(monkeypatch):
    """Rank 0 scores the gathered records. Waiting for the other ranks would hang the run."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    assert coco_average_precision(GOOD_DETECTIONS, GOOD_OBJECTS, 2)["map"] == pytest.approx(1)
