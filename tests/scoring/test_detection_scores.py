"""Scores collected batch by batch, against records by hand and the pure functions on them."""

import math

import numpy as np
import pytest
import torch
from records import detection_records, object_records

from ssd_lightning.scoring.average_precision import voc_average_precision
from ssd_lightning.scoring.coco_average_precision import coco_average_precision
from ssd_lightning.scoring.scores import DetectionScores, score
from ssd_lightning.structures import Batch, Detections, Objects


def make_batch(
    image_ids: list[int], objects: list[list[tuple]], sizes: list[tuple[int, int]] | None = None, slots: int = 3
) -> Batch:
    """Return a batch from a list of (label, box, difficult) for each image; sizes are (height, width)."""
    columns = Objects(
        torch.full((len(objects), slots, 4), 0.7),
        torch.zeros(len(objects), slots, dtype=torch.int64),
        torch.ones(len(objects), slots, dtype=torch.bool),
        torch.zeros(len(objects), slots, dtype=torch.bool),
    )
    for image, rows in enumerate(objects):
        for row, (label, box, difficult) in enumerate(rows):
            for column, value in zip(columns, (torch.tensor(box), label, difficult, True), strict=True):
                column[image, row] = value
    return Batch(
        torch.zeros(len(objects), 3, 8, 8, dtype=torch.uint8),
        columns,
        torch.tensor(image_ids, dtype=torch.int64),
        torch.tensor(sizes or [(100, 100)] * len(objects), dtype=torch.int64).view(-1, 2),
    )


def make_detections(found: list[list[tuple]], slots: int = 4) -> Detections:
    """Return detections from a list of (label, box, score) for each image."""
    columns = Detections(
        torch.zeros(len(found), slots, 4),
        torch.zeros(len(found), slots, dtype=torch.int64),
        torch.zeros(len(found), slots),
        torch.zeros(len(found), slots, dtype=torch.bool),
    )
    for image, rows in enumerate(found):
        for row, (label, box, confidence) in enumerate(rows):
            for column, value in zip(columns, (torch.tensor(box), label, confidence, True), strict=True):
                column[image, row] = value
    return columns


LEFT, RIGHT, MIDDLE = (0.0, 0.0, 0.4, 1.0), (0.5, 0.25, 1.0, 0.75), (0.25, 0.25, 0.75, 0.75)

# Four pictures with three classes. Class 1: found, missed, and a false alarm; class 2: found twice; class 3: difficult.
PICTURES = [
    [(1, LEFT, False), (2, RIGHT, False)],
    [(1, RIGHT, False)],
    [],
    [(3, MIDDLE, True), (3, LEFT, False)],
]
FOUND = [
    [(1, LEFT, 0.9), (2, RIGHT, 0.8), (2, RIGHT, 0.7)],
    [(2, RIGHT, 0.3)],
    [(1, MIDDLE, 0.95)],
    [(3, MIDDLE, 0.99), (3, LEFT, 0.5)],
]


def collect(image_ids: list[list[int]], num_classes: int = 3) -> DetectionScores:
    """Collect the scores of the pictures above in batches of these ids."""
    scores = DetectionScores(num_classes)
    for ids in image_ids:
        scores.update(make_batch(ids, [PICTURES[i] for i in ids]), make_detections([FOUND[i] for i in ids]))
    return scores


def test_as_the_records_written_by_hand():
    """Pictures have 100 × 100 pixels. Class 1 has recall ½ at precision ½; classes 2 and 3 are perfect."""
    left, right, middle = (0, 0, 40, 100), (50, 25, 100, 75), (25, 25, 75, 75)
    objects = object_records((0, 1, left), (0, 2, right), (1, 1, right), (3, 3, middle, True), (3, 3, left))
    detections = detection_records(
        (0, 1, left, 0.9),
        (0, 2, right, 0.8),
        (0, 2, right, 0.7),
        (1, 2, right, 0.3),
        (2, 1, middle, 0.95),
        (3, 3, middle, 0.99),
        (3, 3, left, 0.5),
    )
    scores = collect([[0, 1], [2, 3]])
    for ours, expected in zip((*scores.objects(), *scores.detections()), (*objects, *detections), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)

    result = scores.compute()
    assert set(result) == {"map_voc07", "map_voc12", "map_50", "map_75", "map"}
    assert result["map_voc12"] == pytest.approx(voc_average_precision(detections, objects, 3).mean)
    assert result["map_voc12"] == pytest.approx((0.25 + 1 + 1) / 3)
    voc07 = voc_average_precision(detections, objects, 3, interpolation="11-point")
    assert result["map_voc07"] == pytest.approx(voc07.mean)
    assert result["map_voc07"] == pytest.approx((0.5 * 6 / 11 + 1 + 1) / 3)  # 6 levels up to recall ½
    coco = coco_average_precision(detections, objects, 3)
    assert [result[key] for key in ("map_50", "map_75", "map")] == pytest.approx(
        [coco[key] for key in ("map_50", "map_75", "map")]
    )
    assert result == score(detections, objects, 3)


def test_padding_does_not_count():
    objects, detections = collect([[0, 1, 2, 3]]).objects(), collect([[0, 1, 2, 3]]).detections()
    assert len(objects.labels) == sum(map(len, PICTURES))
    assert len(detections.labels) == sum(map(len, FOUND))
    assert detections.scores.min() > 0


@pytest.mark.parametrize(
    "image_ids",
    [
        pytest.param([[0], [1], [2], [3]], id="one by one"),
        pytest.param([[3, 2], [1, 0]], id="in another order"),
        pytest.param([[0, 1, 2], [3, 0, 1]], id="the first again, as a distributed sampler does"),
        pytest.param([[0, 0, 1], [2, 3, 3]], id="twice in a batch"),
        pytest.param([[0, 1], [2, 3], [0, 1], [2, 3]], id="all again"),
    ],
)
def test_a_picture_counts_once(image_ids):
    expected = collect([[0, 1, 2, 3]])
    actual = collect(image_ids)
    assert actual.compute() == expected.compute()
    assert len(actual.detections().labels) == len(expected.detections().labels)


def test_boxes_are_in_pixels_of_the_picture():
    """The first picture has 50 rows and 200 columns, the second 300 and 10."""
    scores = DetectionScores(1)
    box = (0.1, 0.2, 0.5, 0.8)
    scores.update(
        make_batch([0, 1], [[(1, box, False)]] * 2, sizes=[(50, 200), (300, 10)]),
        make_detections([[(1, box, 0.9)]] * 2),
    )
    expected = [[20, 10, 100, 40], [1, 60, 5, 240]]
    np.testing.assert_allclose(scores.objects().boxes, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.detections().boxes, expected, rtol=1e-6)


def test_perfect_detections_score_1():
    pictures = [[(1, LEFT, False), (2, RIGHT, False)], [(2, LEFT, False)], [(1, MIDDLE, False)]]
    found = [[(label, box, 0.5 + 0.1 * label) for label, box, _ in rows] for rows in pictures]
    scores = DetectionScores(2)
    scores.update(make_batch([7, 3, 5], pictures, sizes=[(300, 500), (80, 60), (10, 10)]), make_detections(found))
    assert scores.compute() == pytest.approx(dict.fromkeys(["map_voc07", "map_voc12", "map_50", "map_75", "map"], 1))


def test_nothing_found_scores_0():
    scores = DetectionScores(3)
    scores.update(make_batch([0, 1], PICTURES[:2]), make_detections([[], []]))
    assert scores.compute() == dict.fromkeys(["map_voc07", "map_voc12", "map_50", "map_75", "map"], 0)


def test_nothing_to_find_is_not_a_number():
    scores = DetectionScores(3)
    scores.update(make_batch([0, 1], [[], []]), make_detections(FOUND[:2]))
    assert all(math.isnan(value) for value in scores.compute().values())


def test_batches_without_slots_or_pictures():
    scores = DetectionScores(3)
    scores.update(make_batch([], []), make_detections([]))
    scores.update(make_batch([9], [[]], slots=0), make_detections([[]], slots=0))
    scores.update(make_batch([0, 1, 2, 3], PICTURES), make_detections(FOUND))
    assert scores.compute() == collect([[0, 1, 2, 3]]).compute()


def test_reset_forgets_everything():
    scores = collect([[0, 1, 2, 3]])
    scores.reset()
    scores.update(make_batch([0], [PICTURES[1]]), make_detections([[(1, RIGHT, 0.9)]]))
    assert scores.compute()["map_voc12"] == 1
    assert len(scores.objects().labels) == len(scores.detections().labels) == 1


def test_records_are_copies():
    """The network's memory may be written again before the scores are computed."""
    batch, detections = make_batch([0], [PICTURES[0]]), make_detections([FOUND[0]])
    scores = DetectionScores(3)
    scores.update(batch, detections)
    before = scores.detections().scores.copy()
    detections.scores.zero_()
    assert (scores.detections().scores == before).all()
