"""Detection in overlapping tiles, against a slow loop over crops."""

import json
from pathlib import Path

import numpy as np
import pytest
from random_detector import photo, random_detector, same
from run_folder import Trained

from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import export_onnx
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.deploy.prediction import Found, tile_windows
from ssd_lightning.training.checkpoint import load_detector

TILES = (2, 3)
TILE_SIZE = (64, 80)
"""The input size, so that no crop is resized."""
STEP = (48, 60)
"""Tiles have a quarter in common."""
SIZE = (64 + 48, 80 + 2 * 60)
"""(height, width) of a picture with 2 rows and 3 columns of such tiles."""


def test_windows():
    windows = np.array(tile_windows(TILES)) * np.array([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
    expected = [(0, 0, SIZE[1], SIZE[0])] + [(x, y, x + 80, y + 64) for y in (0, 48) for x in (0, 60, 120)]
    np.testing.assert_allclose(windows, expected, atol=1e-9)
    assert max(max(window) for number in range(1, 40) for window in tile_windows((number, 1))) == 1
    assert tile_windows(None) == tile_windows((1, 1)) == [(0, 0, 1, 1)]


MOST = 20
"""Number of detections of a view or a picture; more of them make the loop slow."""


def detector_with_few_detections(antialias: bool = True) -> Detector:
    detector = random_detector(antialias)
    detector.postprocess.max_detections = MOST
    return detector


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("antialias", [True, False])
def test_detections_are_those_of_a_loop_over_crops(antialias: bool, class_agnostic: bool):
    detector = detector_with_few_detections(antialias)
    detector.postprocess.class_agnostic = class_agnostic
    picture = photo(*SIZE)
    crops = [(0, 0, SIZE[1], SIZE[0])] + [
        (x, y, x + TILE_SIZE[1], y + TILE_SIZE[0]) for y in (0, STEP[0]) for x in (0, STEP[1], 2 * STEP[1])
    ]
    candidates = []
    for crop in crops:
        found = detector.predict(picture.crop(crop), score_threshold=0)
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
            candidates.append((box + np.array([*crop[:2], *crop[:2]]), label, score))
    kept: list[tuple[np.ndarray, int, float]] = []
    for box, label, score in sorted(candidates, key=lambda candidate: -candidate[2]):
        rivals = [other for other, other_label, _ in kept if class_agnostic or other_label == label]
        if all(iou(box, other) <= detector.postprocess.nms_threshold for other in rivals):
            kept.append((box, label, score))
    assert MOST < len(kept) < len(candidates)
    del kept[MOST:]
    expected = Found(
        np.array([box for box, _, _ in kept]),
        np.array([label for _, label, _ in kept]),
        tuple(detector.classes[label - 1] for _, label, _ in kept),
        np.array([score for _, _, score in kept]),
        SIZE,
    )
    for batch_size in (3, 50):
        same(detector.predict(picture, score_threshold=0, tiles=TILES, batch_size=batch_size), expected)


def test_several_pictures_and_an_exported_file(tmp_path: Path):
    detector = detector_with_few_detections()
    pictures = [photo(*SIZE, seed=1), photo(50, 300, seed=2)]
    one_by_one = [detector.predict(picture, score_threshold=0.1, tiles=(2, 2)) for picture in pictures]
    export_onnx(detector, tmp_path / "a.onnx")
    for predictor in (detector, OnnxDetector(tmp_path / "a.onnx")):
        for found, expected in zip(
            predictor.predict(pictures, score_threshold=0.1, tiles=(2, 2)), one_by_one, strict=True
        ):
            same(found, expected)
    same(detector.predict(pictures[0], tiles=(1, 1)), detector.predict(pictures[0]))
    assert detector.predict([], tiles=(2, 2)) == []


@pytest.mark.parametrize("tiles", [(0, 2), (2, 1.5), (2,), (1, 2, 3), 2])
def test_numbers_of_tiles_that_are_none(tiles: object):
    with pytest.raises(ValueError, match=r"^tiles: expected"):
        tile_windows(tiles)


def test_the_command_finds_the_same(run, trained: Trained, tmp_path: Path):
    photo(150, 200).save(tmp_path / "a.png")
    arguments = ["a.png", "tiles=2x3", "num_workers=0", "draw=false", "hydra.run.dir=out"]
    outcome = run("ssd-predict", str(trained.best), *arguments)
    assert outcome.exit_code == 0, outcome.error
    found = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    expected = load_detector(trained.best).predict(tmp_path / "a.png", score_threshold=0, tiles=(2, 3))
    assert found == expected.to_coco() != []


@pytest.mark.parametrize("tiles", ["2", "0x2", "2x", "[2,2]", "many", "true"])
def test_mistakes(run, trained: Trained, tiles: str, tmp_path: Path):
    outcome = run("ssd-predict", str(trained.best), "a.png", f"tiles={tiles}")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-predict: tiles: expected <rows>x<columns>")
