"""Comparing two runs by their stored detections."""

from pathlib import Path

import numpy as np
import pytest

from ssd_lightning.review.bootstrap import compare_runs, resampled_scores
from ssd_lightning.scoring.average_precision import average_curves, voc_average_precision
from ssd_lightning.scoring.stored_detections import StoredDetections, save_detections
from ssd_lightning.structures import DetectionRecords, ObjectRecords

CLASSES = ("cat", "dog", "never there")


def made_up(pictures: int, seed: int = 0, miss: float = 0.2, classes: tuple[str, ...] = CLASSES) -> StoredDetections:
    """Objects are the same for all seeds; detections are shifted copies of most of them, and some of nothing."""
    truth, rng = np.random.default_rng(pictures), np.random.default_rng([7, seed])
    image_ids = np.sort(truth.integers(0, pictures, 2 * pictures))
    corner = truth.integers(0, 200, (2 * pictures, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + truth.integers(20, 90, corner.shape)], axis=1).astype(np.float32)
    labels, difficult = truth.integers(1, 3, 2 * pictures), truth.random(2 * pictures) < 0.1
    found = np.flatnonzero(rng.random(2 * pictures) >= miss).repeat(2)  # everything twice, once too often
    shifted = boxes[found] + rng.normal(0, 4, (len(found), 1)).astype(np.float32)
    nothing = rng.integers(0, pictures, pictures)
    scores = rng.permutation(len(found) + pictures) / (len(found) + pictures)
    return StoredDetections(
        DetectionRecords(
            np.concatenate([image_ids[found], nothing]),
            np.concatenate([labels[found], rng.integers(1, 3, pictures)]),
            np.concatenate([shifted, np.tile(np.float32([5, 5, 40, 40]), (pictures, 1))]),
            scores.astype(np.float32),
        ),
        ObjectRecords(image_ids, labels, boxes, difficult),
        tuple(f"data/{number}.png" for number in range(pictures)),
        classes,
    )


def written(path: Path, stored: StoredDetections) -> Path:
    path.mkdir()
    save_detections(path / "detections.npz", *stored)
    return path


def scores_of_copies(stored: StoredDetections, weights: np.ndarray) -> list[float]:
    """The slow way: a data set in which each picture is really there as often as it was drawn."""
    detections, objects = [], []
    copies = np.repeat(np.arange(len(weights)), weights)
    for copy, picture in enumerate(copies):
        for records, rows in ((stored.detections, detections), (stored.objects, objects)):
            of_picture = np.flatnonzero(records.image_ids == picture)
            columns = [column[of_picture] for column in records[1:]]
            rows.append([np.full(len(of_picture), copy), *columns])
    all_detections = DetectionRecords(*map(np.concatenate, zip(*detections, strict=True)))
    all_objects = ObjectRecords(*map(np.concatenate, zip(*objects, strict=True)))
    area = voc_average_precision(all_detections, all_objects, len(stored.classes))
    return [average_curves(area.curves, area.num_objects, "11-point").mean, area.mean]


def test_weights_are_copies_of_pictures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ssd_lightning.review.bootstrap.CELLS_AT_ONCE", 100)  # a few draws at a time
    stored = made_up(12)
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=20)
    weights[0] = 1
    weights[1] = 0
    weights[1, 3] = 12  # one picture alone
    expected = [scores_of_copies(stored, row) for row in weights]
    np.testing.assert_allclose(resampled_scores(stored, weights), expected, rtol=0, atol=1e-12)


def test_draws_without_objects_have_no_score():
    stored = made_up(4)
    assert np.isnan(resampled_scores(stored, np.zeros((1, 4), dtype=int))).all()
    nothing = stored._replace(detections=DetectionRecords(*(column[:0] for column in stored.detections)))
    assert resampled_scores(nothing, np.ones((1, 4), dtype=int)).tolist() == [[0, 0]]


def test_a_run_is_no_better_than_itself(tmp_path: Path):
    run = written(tmp_path / "run", made_up(40))
    table = compare_runs(run, run / "detections.npz", resamples=50)
    assert table.index.tolist() == ["VOC07 AP", "VOC12 AP"]
    assert table[["difference", "low", "high"]].to_numpy().tolist() == [[0, 0, 0]] * 2
    assert not table["more than noise"].any()
    stored = made_up(40)
    area = voc_average_precision(stored.detections, stored.objects, 3)
    assert table.loc["VOC12 AP", "a"] == pytest.approx(area.mean, abs=1e-12)


def test_a_worse_run_is_told_and_luck_is_not(tmp_path: Path):
    good, same, bad = (
        written(tmp_path / name, made_up(150, seed, miss))
        for name, seed, miss in (("good", 0, 0.2), ("same", 1, 0.2), ("bad", 2, 0.5))
    )
    worse = compare_runs(good, bad, resamples=300).loc["VOC12 AP"]
    assert worse["more than noise"]
    assert worse["low"] < worse["difference"] < worse["high"] < 0
    better = compare_runs(bad, good, resamples=300).loc["VOC12 AP"]
    assert better["difference"] == -worse["difference"]
    assert better["low"] == pytest.approx(-worse["high"])
    luck = compare_runs(good, same, resamples=300).loc["VOC12 AP"]
    assert not luck["more than noise"]
    assert luck["low"] < 0 < luck["high"]


def test_the_interval_covers_as_often_as_it_says():
    """Of a run whose difference to another is known: the mean over many data sets lies inside about 9 times of 10."""
    differences, inside = [], []
    for number in range(30):
        a, b = (made_up_of(number, miss) for miss in (0.2, 0.3))
        weights = np.random.default_rng(number).multinomial(60, np.full(60, 1 / 60), size=200)
        drawn = resampled_scores(b, weights)[:, 1] - resampled_scores(a, weights)[:, 1]
        one = np.ones((1, 60), dtype=int)
        differences.append((resampled_scores(b, one) - resampled_scores(a, one))[0, 1])
        inside.append(np.percentile(drawn, [5, 95]))
    truth = np.mean(differences)
    covered = np.mean([low < truth < high for low, high in inside])
    assert 0.7 <= covered <= 1


def made_up_of(number: int, miss: float) -> StoredDetections:
    """Of other pictures for each number: those of a larger data set."""
    whole = made_up(1800, seed=int(miss * 100), miss=miss)
    low, high = 60 * number, 60 * (number + 1)

    def part(records):
        rows = (records.image_ids >= low) & (records.image_ids < high)
        columns = [column[rows] for column in records]
        return type(records)(columns[0] - low, *columns[1:])

    return StoredDetections(part(whole.detections), part(whole.objects), whole.paths[:60], whole.classes)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (made_up(8), "expected pictures as of run_a"),
        (made_up(9, classes=("cat", "horse", "never there")), "expected classes as of run_a"),
        (made_up(9)._replace(objects=made_up(9, 1).objects._replace(labels=np.ones(18, int))), "expected objects"),
    ],
)
def test_other_pictures_are_refused(tmp_path: Path, other: StoredDetections, message: str):
    a, b = written(tmp_path / "a", made_up(9)), written(tmp_path / "b", other)
    with pytest.raises(ValueError, match=message) as caught:
        compare_runs(a, b)
    assert str(b) in str(caught.value)


def test_the_folder_of_the_pictures_may_be_another_and_the_order_of_objects(tmp_path: Path):
    stored = made_up(9)
    moved = stored._replace(
        paths=tuple(f"/elsewhere/{path}" for path in stored.paths),
        objects=ObjectRecords(*(column[::-1] for column in stored.objects)),
    )
    table = compare_runs(written(tmp_path / "a", stored), written(tmp_path / "b", moved), resamples=5)
    assert table["difference"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "argument", [{"iou_threshold": 0.0}, {"iou_threshold": 1.5}, {"resamples": 0}, {"confidence": 1.0}]
)
def test_arguments_out_of_range(tmp_path: Path, argument: dict):
    run = written(tmp_path / "run", made_up(4))
    with pytest.raises(ValueError, match=f"{next(iter(argument))}: expected"):
        compare_runs(run, run, **argument)


def test_a_folder_without_detections(tmp_path: Path):
    with pytest.raises(ValueError, match=r"detections.npz cannot be read"):
        compare_runs(tmp_path, tmp_path)
