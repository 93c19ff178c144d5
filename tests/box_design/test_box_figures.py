"""Legends of the figures of a data set and of default boxes cover no bars and no curves."""

from pathlib import Path

import numpy as np
from legible import assert_legends_are_outside
from small_detectors import tiny

from ssd_lightning.box_design.coverage import match_objects
from ssd_lightning.box_design.coverage_figures import MatchedBoxes, draw_coverage, draw_design
from ssd_lightning.box_design.data_figures import draw_data_set
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.matching import BoxMatcher

DEFAULT_BOXES = DefaultBoxes([0.15, 0.4, 0.7, 1.0], [[2], [2, 3], []])
CLASSES = [f"class {n}" for n in range(1, 21)]


def pictures(count: int, seed: int) -> AnnotatedPictures:
    """Return pictures with as many objects of each class, so that all bars are long."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 0.7, (20 * count, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(0.05, 0.3, (20 * count, 2))), axis=1).astype(np.float32)
    labels = np.tile(np.arange(1, 21), count)
    paths = [Path(f"{n}.png") for n in range(count)]
    return AnnotatedPictures(paths, np.full((count, 2), 64), np.full(count, 20), boxes, labels)


def test_data_set():
    train, val = pictures(6, 0), pictures(3, 1)
    best = np.random.default_rng(0).random(20 * 9)
    assert_legends_are_outside(draw_data_set(train, val, CLASSES, tiny(), best))


def test_coverage_and_design():
    data = pictures(6, 0)
    boxes = DEFAULT_BOXES([(5, 6), (3, 3), (1, 1)], (64, 64))
    matches = match_objects(data.boxes, data.counts, boxes, [120, 54, 2], BoxMatcher())
    matched = MatchedBoxes(DEFAULT_BOXES.shapes(), matches)
    assert_legends_are_outside(draw_coverage(data.boxes, data.labels, CLASSES, matched, (64, 64)))
    best = matches.best_iou
    assert_legends_are_outside(draw_design(data.boxes, matched, matched, (best, best), (64, 64)))
