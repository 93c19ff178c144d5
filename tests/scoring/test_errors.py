"""Causes of errors and reasons of misses, against cases by hand and slow loops."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from in_memory import InMemoryPictures
from matplotlib.colors import to_hex
from one_line import refused
from random_boxes import random_boxes
from records import detection_records, object_records
from torchvision.ops import box_iou

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.boxes import decode, xyxy_to_cxcywh
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.records import DetectionRecords, ObjectRecords, Sample
from ssd_lightning.scoring.average_precision import voc_average_precision
from ssd_lightning.scoring.confusion import confusion_matrix
from ssd_lightning.scoring.error_figures import draw_error_costs, draw_worst_pictures, picture_weights
from ssd_lightning.scoring.errors import CAUSES, cost_in_ap, error_table, find_errors, mend
from ssd_lightning.scoring.missed import (
    CUT,
    MISPLACED,
    NO_DEFAULT_BOX,
    REASONS,
    SCORED_AS_BACKGROUND,
    SCORED_AS_OTHER_CLASS,
    SUPPRESSED,
    TAKEN,
    find_reasons,
    why_missed,
)
from ssd_lightning.structures import Objects, Predictions

WITH_A_THRESHOLD = {
    "confusion_matrix": lambda *records, **settings: confusion_matrix(*records, 1, **settings),
    "error_table": lambda *records, **settings: error_table(*records, ["cat"], **settings),
    "cost_in_ap": lambda *records, **settings: cost_in_ap(*records, 1, **settings),
}


@pytest.mark.parametrize("name", WITH_A_THRESHOLD)
@pytest.mark.parametrize("value", [math.nan, 7.0, -0.1, True])
def test_a_score_threshold_that_is_none(name: str, value: object):
    records = detection_records((0, 1, [0.0, 0.0, 9.0, 9.0], 0.9)), object_records((0, 1, [0.0, 0.0, 9.0, 9.0]))
    with refused("score_threshold", value):
        WITH_A_THRESHOLD[name](*records, score_threshold=value)


@pytest.mark.parametrize("value", [math.nan, 0.0, 0.6, True])
def test_a_background_threshold_that_is_none(value: object):
    records = detection_records((0, 1, [0.0, 0.0, 9.0, 9.0], 0.9)), object_records((0, 1, [0.0, 0.0, 9.0, 9.0]))
    with refused("background_threshold", value):
        find_errors(*records, 1, 0.5, background_threshold=value)


ON, NEAR, FAR = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 30.0], [50.0, 50.0, 60.0, 60.0]
"""A box, a box with IoU 1/3 with the first, and a box without overlap."""


# One error of each cause, with mean AP before and after by hand. Class 1 and class 2 are scored.
ONE_OF_EACH = {
    # Class 1: nothing found. Class 2: false at 0.9, true at 0.8, so precision 1/2.
    "classification": (
        detection_records((0, 2, ON, 0.9), (1, 2, ON, 0.8)),
        object_records((0, 1, ON), (1, 2, ON)),
        ["classification", "true"],
        ["classification", "found"],
        0.25,
        1.0,
    ),
    "localisation": (
        detection_records((0, 1, NEAR, 0.9), (1, 2, ON, 0.8)),
        object_records((0, 1, ON), (1, 2, ON)),
        ["localisation", "true"],
        ["localisation", "found"],
        0.5,
        1.0,
    ),
    "both": (
        detection_records((0, 2, NEAR, 0.9), (0, 1, ON, 0.7), (1, 2, ON, 0.8)),
        object_records((0, 1, ON), (1, 2, ON)),
        ["both", "true", "true"],
        ["found", "found"],
        0.75,
        1.0,
    ),
    # Class 1: true, false, true: 1/2 + 1/2 · 2/3. No object of class 2.
    "duplicate": (
        detection_records((0, 1, ON, 0.9), (0, 1, ON, 0.8), (1, 1, ON, 0.7)),
        object_records((0, 1, ON), (1, 1, ON)),
        ["true", "duplicate", "true"],
        ["found", "found"],
        5 / 6,
        1.0,
    ),
    "background": (
        detection_records((0, 1, FAR, 0.9), (0, 1, ON, 0.8), (0, 2, ON, 0.6)),
        object_records((0, 1, ON), (0, 2, ON)),
        ["background", "true", "true"],
        ["found", "found"],
        0.75,
        1.0,
    ),
    "missed": (
        detection_records((0, 1, ON, 0.9)),
        object_records((0, 1, ON), (1, 1, ON)),
        ["true"],
        ["found", "missed"],
        0.5,
        1.0,
    ),
}


class TestByHand:
    @pytest.mark.parametrize("cause", ONE_OF_EACH)
    def test_one_of_each_cause(self, cause: str):
        detections, objects, of_detections, of_objects, before, after = ONE_OF_EACH[cause]
        errors = find_errors(detections, objects, 2)
        assert errors.detection_causes.tolist() == of_detections
        assert errors.object_causes.tolist() == of_objects
        costs = cost_in_ap(detections, objects, 2)
        assert costs.loc[cause, "errors"] == costs.loc[cause, "errors shown"] == 1
        assert costs.loc[cause, "mended"] == pytest.approx(after)
        assert costs.loc[cause, "cost"] == pytest.approx(after - before)
        others = [other for other in CAUSES if other != cause]
        assert costs.loc[others, "errors"].tolist() == [0] * 5
        assert costs.loc[others, "cost"].tolist() == [0] * 5

    def test_higher_overlap_comes_first_and_its_own_class_before_others(self):
        # In one picture two objects, class 1 at ON and class 2 elsewhere.
        objects = object_records((0, 1, ON), (0, 2, [0.0, 12.0, 10.0, 22.0]))
        for box, label, cause, row in (
            (ON, 2, "classification", 0),
            ([0.0, 1.0, 10.0, 22.0], 1, "localisation", 0),  # 9/22 with its own, 10/21 with the other
            ([0.0, 5.0, 10.0, 22.0], 1, "classification", 1),  # 5/22 with its own, 10/17 with the other
            ([0.0, 9.5, 10.0, 14.5], 1, "both", 1),  # 0.5/14.5 with its own, 2.5/12.5 with the other
            ([0.0, 9.5, 10.0, 12.5], 1, "background", -1),
        ):
            errors = find_errors(detection_records((0, label, box, 0.9)), objects, 2)
            assert errors.detection_causes.tolist() == [cause]
            assert errors.object_rows.tolist() == [row]

    def test_a_duplicate_that_also_lies_on_another_class(self):
        detections = detection_records((0, 1, ON, 0.9), (0, 1, ON, 0.8))
        errors = find_errors(detections, object_records((0, 1, ON), (0, 2, ON)), 2)
        assert errors.detection_causes.tolist() == ["true", "duplicate"]
        assert errors.object_causes.tolist() == ["found", "missed"]

    def test_only_the_best_detection_is_mended_and_what_was_found_is_left(self):
        # Three badly placed detections of the first object, one of the second, which is found.
        objects = object_records((0, 1, ON), (1, 1, ON))
        detections = detection_records(
            (0, 1, NEAR, 0.5), (0, 1, NEAR, 0.9), (0, 1, NEAR, 0.7), (1, 1, NEAR, 0.8), (1, 1, ON, 0.6)
        )
        mended, _ = mend(detections, objects, find_errors(detections, objects, 1), "localisation")
        np.testing.assert_array_equal(mended.scores, np.float32([0.9, 0.6]))
        np.testing.assert_array_equal(mended.boxes, np.float32([ON, ON]))
        np.testing.assert_array_equal(detections.boxes[1], np.float32(NEAR))

    def test_an_object_is_put_down_to_the_better_detection(self):
        objects = object_records((0, 1, ON))
        for wrong, bad, cause in ((0.9, 0.8, "classification"), (0.7, 0.8, "localisation")):
            detections = detection_records((0, 2, ON, wrong), (0, 1, NEAR, bad))
            assert find_errors(detections, objects, 2).object_causes.tolist() == [cause]

    def test_difficult_objects_are_neither_found_nor_missed(self):
        objects = object_records(*((image, 1, ON, True) for image in range(4)))
        detections = detection_records((0, 1, ON, 0.9), (1, 1, NEAR, 0.8), (2, 2, ON, 0.7))
        errors = find_errors(detections, objects, 2)
        assert errors.detection_causes.tolist() == ["ignored", "localisation", "classification"]
        assert errors.object_causes.tolist() == ["ignored"] * 4
        assert np.isnan(cost_in_ap(detections, objects, 2)["mended"]).all()
        # Nothing can be mended into an object that does not count.
        for cause, left in (("localisation", [0.9, 0.7]), ("classification", [0.9, 0.8])):
            np.testing.assert_array_equal(mend(detections, objects, errors, cause)[0].scores, np.float32(left))

    def test_a_class_that_loses_all_its_objects_counts_as_0(self):
        detections, objects = detection_records((0, 1, ON, 0.9)), object_records((0, 1, ON), (0, 2, FAR))
        costs = cost_in_ap(detections, objects, 2)
        assert costs.loc["missed", ["errors", "mended", "cost"]].tolist() == [1, 0.5, 0.0]

    def test_all_false_detections_and_all_misses(self):
        detections = detection_records((0, 1, NEAR, 0.9), (1, 1, ON, 0.8))
        costs = cost_in_ap(detections, object_records((0, 1, ON), (1, 1, ON), (2, 1, ON)), 1)
        # Now: precision 1/2 at recall 1/3. Without false: 1 at 1/3. Without misses: 1/2 at recall 1.
        assert costs.loc["all false detections", ["errors", "mended"]].tolist() == [1, pytest.approx(1 / 3)]
        assert costs.loc["all misses", ["errors", "mended"]].tolist() == [2, pytest.approx(1 / 2)]
        assert costs["cost"].iloc[-2:].tolist() == pytest.approx([1 / 6, 1 / 3])

    def test_errors_shown_are_those_of_the_higher_scores_alone(self):
        detections, objects = detection_records((0, 1, ON, 0.2), (0, 1, FAR, 0.7)), object_records((0, 1, ON))
        costs = cost_in_ap(detections, objects, 1, score_threshold=0.5)
        assert costs.loc["missed", ["errors", "errors shown"]].tolist() == [0, 1]
        assert costs.loc["background", ["errors", "errors shown"]].tolist() == [1, 1]

    def test_the_threshold_itself_counts(self):
        half = [0.0, 0.0, 10.0, 20.0]
        objects = object_records((0, 1, ON))
        assert find_errors(detection_records((0, 2, half, 0.9)), objects, 2).detection_causes.tolist() == [
            "classification"
        ]
        tenth = [0.0, 0.0, 10.0, 100.0]
        assert find_errors(detection_records((0, 1, tenth, 0.9)), objects, 2).detection_causes.tolist() == [
            "localisation"
        ]

    def test_nothing(self):
        detections, objects = detection_records((0, 1, ON, 0.9)), object_records((0, 1, ON))
        assert find_errors(detections, object_records(), 1).detection_causes.tolist() == ["background"]
        assert find_errors(detection_records(), objects, 1).object_causes.tolist() == ["missed"]
        assert len(find_errors(detection_records(), object_records(), 1).object_rows) == 0
        assert cost_in_ap(detection_records(), objects, 1)["cost"].tolist() == [0] * 8
        assert len(error_table(detection_records(), object_records(), ["a"])) == 0

    def test_background_begins_no_higher_than_finding(self):
        box = (0, 0, 10, 10)
        records = detection_records((0, 1, box, 0.9)), object_records((0, 1, (0, 0, 10, 7)), (0, 1, (9, 9, 19, 19)))
        for threshold in (0.05, 0.8):
            by_default, given = (find_errors(*records, 1, threshold, other) for other in (None, min(0.1, threshold)))
            assert by_default.detection_causes.tolist() == given.detection_causes.tolist()

    def test_refusals(self):
        records = detection_records((0, 1, ON, 0.9)), object_records((0, 1, ON))
        with pytest.raises(ValueError, match=r"iou_threshold: expected a number in \(0, 1\], got 0"):
            find_errors(*records, 1, iou_threshold=0)
        with pytest.raises(ValueError, match=r"background_threshold: .*\(0, iou_threshold = 0.5\], got 0.6"):
            find_errors(*records, 1, background_threshold=0.6)
        with pytest.raises(ValueError, match=r"detections\.labels: expected 1 … 1, got 2"):
            find_errors(detection_records((0, 2, ON, 0.9)), records[1], 1)
        with pytest.raises(ValueError, match=r"cause: expected one of classification, .*, got 'noise'"):
            mend(*records, find_errors(*records, 1), "noise")


def iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


def slow_errors(detections: DetectionRecords, objects: ObjectRecords) -> tuple[list[str], list[int], list[str]]:
    causes, of = ["?"] * len(detections.labels), [-1] * len(detections.labels)
    found: dict[int, str] = {}
    blamed: dict[int, str] = {}
    for row in sorted(range(len(causes)), key=lambda row: -detections.scores[row]):
        own, other = (-1, 0.0), (-1, 0.0)
        for place in range(len(objects.labels)):
            if objects.image_ids[place] == detections.image_ids[row]:
                overlap = iou(detections.boxes[row], objects.boxes[place])
                if objects.labels[place] == detections.labels[row]:
                    own = (place, overlap) if own[0] < 0 or overlap > own[1] else own
                else:
                    other = (place, overlap) if other[0] < 0 or overlap > other[1] else other
        if own[1] >= 0.5:
            of[row] = own[0]
            if objects.difficult[own[0]]:
                causes[row] = "ignored"
            elif own[0] in found:
                causes[row] = "duplicate"
            else:
                causes[row] = "true"
                found[own[0]] = "found"
        elif other[1] >= 0.5:
            causes[row], of[row] = "classification", other[0]
            blamed.setdefault(other[0], "classification")
        elif own[1] >= 0.1:
            causes[row], of[row] = "localisation", own[0]
            blamed.setdefault(own[0], "localisation")
        elif other[1] >= 0.1:
            causes[row], of[row] = "both", other[0]
        else:
            causes[row] = "background"
    of_objects = [
        "ignored" if objects.difficult[place] else found.get(place, blamed.get(place, "missed"))
        for place in range(len(objects.labels))
    ]
    return causes, of, of_objects


def slow_cost(detections: DetectionRecords, objects: ObjectRecords, num_classes: int, cause: str) -> float:
    """Compute the cost from true and false after mending, without assigning boxes to objects again."""
    causes, of, of_objects = slow_errors(detections, objects)

    def mean_ap(mended: str) -> float:
        flags = []
        taken = {of[row] for row in range(len(causes)) if causes[row] == "true"}
        for row in sorted(range(len(causes)), key=lambda row: -detections.scores[row]):
            label, is_true = detections.labels[row], causes[row] == "true"
            if causes[row] == "ignored":
                continue
            if causes[row] == mended:
                can_be = mended in ("classification", "localisation")
                if not can_be or of[row] in taken or objects.difficult[of[row]]:
                    continue
                taken.add(of[row])
                label, is_true = objects.labels[of[row]], True
            flags.append((label, is_true))
        averages = []
        for label in range(1, num_classes + 1):
            mine = (objects.labels == label) & ~objects.difficult
            if not mine.any():
                continue
            count = mine.sum() - (
                sum(mine[place] and of_objects[place] == "missed" for place in range(len(mine)))
                if mended == "missed"
                else 0
            )
            points, true = [], 0
            for number, is_true in enumerate([flag for at, flag in flags if at == label], start=1):
                true += is_true
                points.append((true, true / number, is_true))
            # Each true detection adds a step of recall, as high as the best precision from there on.
            steps = [max(p for _, p, _ in points[place:]) for place, (*_, is_true) in enumerate(points) if is_true]
            averages.append(sum(steps) / count if count else 0.0)
        return float(np.mean(averages))

    return mean_ap(cause) - mean_ap("nothing")


@pytest.mark.parametrize("seed", range(3))
def test_against_a_slow_loop(seed: int):
    rng = np.random.default_rng(seed)
    count, images, classes = 40, 8, 3
    boxes = random_boxes(rng, count, 60, 60) * 60
    objects = ObjectRecords(
        rng.integers(0, images, count), rng.integers(1, classes + 1, count), boxes, rng.random(count) < 0.2
    )
    # Detections near objects, often of another class, and in the end some anywhere.
    rows = rng.integers(0, count, 150)
    moved = boxes[rows] + rng.normal(0, 5, (150, 4)).astype(np.float32)
    moved = np.concatenate((np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])), axis=1)
    detections = DetectionRecords(
        np.append(objects.image_ids[rows], rng.integers(0, images + 1, 30)),
        np.append(np.where(rng.random(150) < 0.6, objects.labels[rows], rng.integers(1, classes + 1, 150)), [1] * 30),
        np.concatenate((moved, random_boxes(rng, 30, 60, 60) * 60)),
        rng.permutation(180).astype(np.float32) / 180,
    )
    errors = find_errors(detections, objects, classes)
    causes, of, of_objects = slow_errors(detections, objects)
    assert errors.detection_causes.tolist() == causes
    assert errors.object_rows.tolist() == of
    assert errors.object_causes.tolist() == of_objects
    assert {*causes, *of_objects} >= set(CAUSES) - {"missed"}
    for row in range(180):
        expected = iou(detections.boxes[row], objects.boxes[of[row]]) if of[row] >= 0 else 0
        assert errors.iou[row] == pytest.approx(expected)
    costs = cost_in_ap(detections, objects, classes)
    for cause in CAUSES:
        assert costs.loc[cause, "cost"] == pytest.approx(slow_cost(detections, objects, classes, cause)), cause
    now = voc_average_precision(detections, objects, classes).mean
    np.testing.assert_allclose(costs["mended"] - costs["cost"], now)


def test_table_of_errors():
    detections = detection_records((0, 1, ON, 0.9), (0, 2, ON, 0.7), (1, 2, FAR, 0.8), (1, 1, FAR, 0.3))
    table = error_table(detections, object_records((0, 1, ON), (1, 1, ON)), ["cat", "dog"])
    assert table["cause"].tolist() == ["background", "classification", "missed"]
    assert table["cause"].value_counts()[["both", "missed"]].tolist() == [0, 1]
    assert table["detected"].fillna("").tolist() == ["dog", "dog", ""]
    assert table["truth"].fillna("").tolist() == ["", "cat", "cat"]
    assert table[["image_id", "detection", "object"]].to_numpy().tolist() == [[1, 2, -1], [0, 1, 0], [1, -1, 1]]
    np.testing.assert_allclose(table["score"], [0.8, 0.7, np.nan], rtol=1e-6)
    np.testing.assert_allclose(table["iou"], [0, 1, np.nan])
    assert table[["left", "top", "right", "bottom"]].to_numpy().tolist() == [FAR, ON, ON]


class TestWhyMissed:
    """The first of seven default boxes equals the object, the second overlaps it, and five are elsewhere."""

    BOXES = torch.tensor(
        [
            [x, y, 0.2, 0.2]
            for x, y in ((0.2, 0.2), (0.24, 0.2), (0.5, 0.2), (0.8, 0.2), (0.2, 0.8), (0.5, 0.8), (0.8, 0.8))
        ]
    )
    POSTPROCESS = PostProcess(score_threshold=0.1, nms_threshold=0.45, candidates_per_class=3, max_detections=4)

    def reason(
        self,
        scores: dict[int, dict[int, float]],
        moved: dict[int, float] | None = None,
        side: float = 0.2,
        matcher: BoxMatcher | None = None,
    ):
        """Return the reason from scores of (default box, class) and from shifts to the right in picture widths."""
        probability = torch.zeros(7, 3)
        for box, of_classes in scores.items():
            for label, score in of_classes.items():
                probability[box, label] = score
        probability[:, 0] = 1 - probability[:, 1:].sum(dim=1)
        offsets = torch.zeros(7, 4)
        for box, distance in (moved or {}).items():
            offsets[box, 0] = distance / 0.2 / 0.1
        yes = torch.ones(1, 1, dtype=torch.bool)
        box = torch.tensor([[[0.2 - side / 2, 0.2 - side / 2, 0.2 + side / 2, 0.2 + side / 2]]])
        misses = find_reasons(
            Predictions(probability.clamp(min=1e-6).log()[None], offsets[None]),
            self.BOXES,
            Objects(box, yes.long(), ~yes, yes),
            torch.tensor([0]),
            torch.tensor([0]),
            matcher or BoxMatcher(),
            self.POSTPROCESS,
        )
        return misses.reasons[0], *(float(column[0]) for column in misses[1:])

    def test_no_default_box_reached_it(self):
        reason, reached, *_ = self.reason({}, side=0.1)
        assert reason == NO_DEFAULT_BOX
        assert reached == pytest.approx(0.25)

    def test_an_adaptive_matcher_trains_default_boxes_that_overlap_less(self):
        reason, reached, score, _ = self.reason({1: {1: 0.08}}, side=0.1, matcher=AdaptiveMatcher())
        assert reason == SCORED_AS_BACKGROUND
        assert (reached, score) == pytest.approx((0.25, 0.08), abs=1e-5)

    def test_scored_as_background(self):
        reason, reached, score, moved = self.reason({0: {1: 0.05, 2: 0.06}, 1: {1: 0.08}, 2: {1: 0.9}})
        assert reason == SCORED_AS_BACKGROUND
        assert (reached, score, moved) == pytest.approx((1.0, 0.08, 0.0), abs=1e-5)

    def test_scored_as_another_class(self):
        assert self.reason({0: {1: 0.05, 2: 0.9}})[0] == SCORED_AS_OTHER_CLASS

    def test_placed_badly(self):
        reason, _, score, moved = self.reason({0: {1: 0.9}}, {0: 0.1})
        assert reason == MISPLACED
        assert (score, moved) == pytest.approx((0.9, 1 / 3), abs=1e-5)

    def test_cut_by_the_best_of_its_class(self):
        assert self.reason({0: {1: 0.5}, 2: {1: 0.9}, 3: {1: 0.9}, 4: {1: 0.9}})[0] == CUT

    def test_suppressed(self):
        # Moved so that it overlaps the first by more than 0.45 and less than 0.5.
        reason, *_ = self.reason({0: {1: 0.6}, 1: {1: 0.9}}, {1: 0.0321})
        assert reason == SUPPRESSED

    def test_cut_by_the_best_of_the_picture(self):
        assert self.reason({0: {1: 0.5}, 2: {1: 0.9}, 3: {1: 0.9}, 4: {2: 0.9}, 5: {2: 0.9}})[0] == CUT
        assert self.reason({0: {1: 0.5}, 2: {1: 0.9}, 3: {1: 0.9}, 4: {2: 0.9}})[0] == TAKEN

    def test_a_detection_is_on_it(self):
        assert self.reason({0: {1: 0.5}})[0] == TAKEN

    @pytest.mark.parametrize(("class_agnostic", "candidates"), [(False, 4), (True, 16)])
    def test_against_post_processing_with_one_step_more_at_a_time(self, class_agnostic: bool, candidates: int):
        generator = torch.Generator().manual_seed(0)
        rng = np.random.default_rng(0)
        count, most = 60, 6
        default_boxes = xyxy_to_cxcywh(torch.from_numpy(random_boxes(rng, count, 8, 8)))
        yes = torch.ones(40, most, dtype=torch.bool)
        objects = Objects(
            torch.from_numpy(random_boxes(rng, 40 * most, 8, 8)).view(40, most, 4),
            torch.from_numpy(rng.integers(1, 4, (40, most))),
            ~yes,
            yes,
        )
        predictions = Predictions(
            3 * torch.randn(40, count, 4, generator=generator), torch.randn(40, count, 4, generator=generator)
        )
        images = torch.arange(40).repeat_interleave(most)
        positions = torch.arange(most).repeat(40)
        settings = {"score_threshold": 0.3, "class_agnostic": class_agnostic}
        everything = {"max_detections": 3 * count, "candidates_per_class": count, "nms_threshold": 1.0}
        limits = {"candidates_per_class": candidates, "nms_threshold": 0.3, "max_detections": 6}
        postprocess = PostProcess(**settings, **limits)
        misses = find_reasons(predictions, default_boxes, objects, images, positions, BoxMatcher(), postprocess)

        def is_found(**steps: float) -> np.ndarray:
            found = PostProcess(**settings, **{**everything, **steps})(predictions, default_boxes)
            answers = []
            for image, position in zip(images.tolist(), positions.tolist(), strict=True):
                of_class = found.valid[image] & (found.labels[image] == objects.labels[image, position])
                overlaps = box_iou(found.boxes[image, of_class], objects.boxes[image, position].unsqueeze(0))
                answers.append(bool((overlaps >= 0.5).any()))
            return np.array(answers)

        first = {"candidates_per_class": candidates}
        stages = [is_found(), is_found(**first), is_found(**first, nms_threshold=0.3), is_found(**limits)]
        furthest = np.array([CUT, SUPPRESSED, CUT, TAKEN], dtype=object)
        for row, came_to in enumerate(zip(*stages, strict=True)):
            if any(came_to):
                assert misses.reasons[row] == furthest[max(n for n, yes in enumerate(came_to) if yes)]
            else:
                assert misses.reasons[row] in (NO_DEFAULT_BOX, SCORED_AS_BACKGROUND, SCORED_AS_OTHER_CLASS, MISPLACED)
        assert len(set(misses.reasons)) == len(REASONS)
        unreached = misses.reasons == NO_DEFAULT_BOX
        assert (misses.default_box_iou[unreached] < 0.5).all()
        # A loop computes the places of the moved boxes.
        scores = predictions.logits.softmax(dim=-1)
        boxes = decode(predictions.offsets, default_boxes).clamp(0, 1)
        for row in range(0, 240, 17):
            image, truth = images[row], objects.boxes[images[row], positions[row]].numpy()
            label = int(objects.labels[image, positions[row]])
            is_own = scores[image, :, 1:].argmax(dim=1) == label - 1
            overlaps = [
                iou(boxes[image, place].numpy(), truth)
                for place in range(count)
                if scores[image, place, label] > 0.3 and (is_own[place] or not class_agnostic)
            ]
            assert misses.moved_iou[row] == pytest.approx(max(overlaps, default=0), abs=1e-5)


class Squares(InMemoryPictures):
    """Grey pictures with squares. The last but one has none."""

    def __init__(self) -> None:
        self.paths = [Path(f"{number}.png") for number in range(5)]
        self.decoded: list[int] = []

    def __getitem__(self, index: int) -> Sample:
        count = 0 if index == 3 else 2
        boxes = np.array([[0.1, 0.1, 0.5, 0.5], [0.5, 0.4, 0.9, 0.9]], dtype=np.float32)[:count]
        labels = np.array([1 + index % 2, 1])[:count]
        return Sample(np.full((64, 80, 3), 20 * index, dtype=np.uint8), boxes, labels, np.zeros(count, dtype=bool))

    def image(self, index: int, least: tuple[int, int] | None = None) -> np.ndarray:
        self.decoded.append(index)
        return self[index].image


@pytest.fixture
def squares() -> SimpleNamespace:
    """An untrained model, pictures, and detections by hand."""
    torch.manual_seed(0)
    scales = [0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
    model = SSD(Tiny(), DefaultBoxes(scales, [[2]] * 5), num_classes=2, image_size=64).eval()
    pictures = Squares()
    size = np.array([80, 64, 80, 64], dtype=np.float32)
    truth = [
        (index, int(label), (box * size).tolist())
        for index in range(5)
        for box, label in zip(pictures[index].boxes, pictures[index].labels, strict=True)
    ]
    objects = object_records(*((*row, number == 2) for number, row in enumerate(truth)))
    # Only the objects of the first picture are found. One object is difficult.
    detections = detection_records(*((*row, 0.9) for row in truth[:2]), (4, 1, [0, 0, 3, 3], 0.8))
    return SimpleNamespace(model=model, pictures=pictures, detections=detections, objects=objects)


class TestWhyMissedInADataSet:
    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_a_row_for_each_missed_object_whatever_the_batch(self, squares: SimpleNamespace, batch_size: int):
        table = why_missed(
            squares.model,
            PostProcess(score_threshold=0.4),
            BoxMatcher(),
            squares.pictures,
            squares.detections,
            squares.objects,
            batch_size=batch_size,
        )
        assert table.index.tolist() == [3, 4, 5, 6, 7]
        assert table["image_id"].tolist() == [1, 2, 2, 4, 4]
        assert table["label"].tolist() == [1, 1, 1, 1, 1]
        assert table["cause"].tolist() == ["missed"] * 5
        square = 64 * np.sqrt([0.4 * 0.4, 0.4 * 0.5])
        assert table["side"].tolist() == pytest.approx([square[i] for i in (1, 0, 1, 0, 1)], rel=1e-5)
        # The network runs only on pictures with a missed object.
        assert sorted(set(squares.pictures.decoded)) == [1, 2, 4]
        assert set(table["reason"]) <= set(REASONS)
        assert table["reason"].value_counts().sum() == 5
        assert len(table["reason"].value_counts()) == len(REASONS)
        expected = why_missed(
            squares.model,
            PostProcess(score_threshold=0.4),
            BoxMatcher(),
            squares.pictures,
            squares.detections,
            squares.objects,
        )
        pd.testing.assert_frame_equal(table, expected, rtol=1e-4)

    def test_each_object_is_looked_at_in_its_own_picture(self, squares: SimpleNamespace):
        """The bias of the head makes all scores equal, or class 1 likely everywhere."""
        arguments = (BoxMatcher(), squares.pictures, squares.detections, squares.objects)
        with torch.no_grad():
            for convolution in squares.model.head.classification:
                convolution.weight.zero_()
                convolution.bias.zero_()
            table = why_missed(squares.model, PostProcess(score_threshold=0.4), *arguments)
            assert set(table["reason"]) <= {SCORED_AS_BACKGROUND, NO_DEFAULT_BOX}
            np.testing.assert_allclose(table["score"], 1 / 3, rtol=1e-5)
            for convolution in squares.model.head.classification:
                convolution.bias.view(-1, 3)[:, 1] = 5
            table = why_missed(squares.model, PostProcess(score_threshold=0.4), *arguments)
            assert not set(table["reason"]) & {SCORED_AS_BACKGROUND, SCORED_AS_OTHER_CLASS}

    def test_nothing_is_missed(self, squares: SimpleNamespace):
        found = detection_records(
            *((i, n, box, 0.9) for i, n, box in zip(*(c.tolist() for c in squares.objects[:3]), strict=True))
        )
        table = why_missed(squares.model, PostProcess(), BoxMatcher(), squares.pictures, found, squares.objects)
        assert len(table) == 0
        assert table["reason"].value_counts().sum() == 0
        assert squares.pictures.decoded == []

    def test_pictures_of_another_data_set(self, squares: SimpleNamespace):
        arguments = squares.model, PostProcess(), BoxMatcher(), squares.pictures, squares.detections
        labels = 3 - squares.objects.labels
        with pytest.raises(ValueError, match=r"pictures: .* picture 0"):
            why_missed(*arguments, squares.objects._replace(labels=labels))
        with pytest.raises(ValueError, match=r"pictures: .* 10 .* got 5"):
            why_missed(*arguments, squares.objects._replace(image_ids=squares.objects.image_ids + 5))


class TestFigures:
    def test_the_worst_pictures(self, squares: SimpleNamespace):
        weights = picture_weights(squares.detections, squares.objects, 2, 5)
        np.testing.assert_allclose(weights, [0, 1, 2, 0, 2.8], rtol=1e-6)
        figure = draw_worst_pictures(squares.pictures, squares.detections, squares.objects, ["cat", "dog"])
        assert [ax.get_title() for ax in figure.axes] == ["4.png  (2.8)", "2.png  (2.0)", "1.png  (1.0)"]
        assert [text.get_text() for text in figure.axes[0].texts] == ["cat 0.80 bkg"]
        missed = [patch for patch in figure.axes[2].patches if to_hex(patch.get_edgecolor()) == "#f0e442"]
        assert [patch.get_bbox().bounds for patch in missed] == [pytest.approx((40, 25.6, 32, 32), rel=1e-5)]
        # The object itself stays visible.
        assert not any(patch.get_fill() or patch.get_hatch() for ax in figure.axes for patch in ax.patches)

    def test_no_errors(self, squares: SimpleNamespace):
        figure = draw_worst_pictures(squares.pictures, detection_records(), object_records(), ["cat", "dog"])
        assert "no picture has an error" in figure.axes[0].texts[0].get_text()

    @pytest.mark.parametrize("cause", ONE_OF_EACH)
    def test_costs(self, cause: str):
        costs = cost_in_ap(*ONE_OF_EACH[cause][:2], 2)
        ax = draw_error_costs(costs).axes[0]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(costs["cost"].tolist())
        assert [label.get_text() for label in ax.get_yticklabels()] == list(costs.index)

    def test_costs_of_nothing(self):
        figure = draw_error_costs(cost_in_ap(detection_records(), object_records(), 1))
        figure.draw_without_rendering()
        assert [bar.get_width() for ax in figure.axes for bar in ax.patches if bar.get_width() > 0] == []
