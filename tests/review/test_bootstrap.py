"""Comparison of two runs by their stored detections."""

from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import CLASSES as BANANAS
from made_up_sweep import detected

from ssd_lightning.records import DetectionRecords, ObjectRecords, concatenate, select
from ssd_lightning.review.bootstrap import (
    compare_classes,
    compare_runs,
    compare_settings,
    resampled_scores,
    score_intervals,
)
from ssd_lightning.review.run_figures import draw_class_differences
from ssd_lightning.scoring.average_precision import average_curves, voc_average_precision
from ssd_lightning.scoring.stored_detections import StoredDetections, save_detections

CLASSES = ("cat", "dog", "never there")


def made_up(pictures: int, seed: int = 0, miss: float = 0.2, classes: tuple[str, ...] = CLASSES) -> StoredDetections:
    """Return objects, the same for all seeds, and shifted detections of most of them with some false ones."""
    truth, rng = np.random.default_rng(pictures), np.random.default_rng([7, seed])
    image_ids = np.sort(truth.integers(0, pictures, 2 * pictures))
    corner = truth.integers(0, 200, (2 * pictures, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + truth.integers(20, 90, corner.shape)], axis=1).astype(np.float32)
    labels, difficult = truth.integers(1, 3, 2 * pictures), truth.random(2 * pictures) < 0.1
    found = np.flatnonzero(rng.random(2 * pictures) >= miss).repeat(2)  # Each object is found twice.
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
    """Score a data set in which each picture is repeated as often as it was drawn."""
    detections, objects = [], []
    copies = np.repeat(np.arange(len(weights)), weights)
    for copy, picture in enumerate(copies):
        for records, rows in ((stored.detections, detections), (stored.objects, objects)):
            of_picture = select(records, records.image_ids == picture)
            rows.append(of_picture._replace(image_ids=np.full(len(of_picture.labels), copy)))
    area = voc_average_precision(concatenate(detections), concatenate(objects), len(stored.classes))
    return [average_curves(area.curves, area.num_objects, "11-point").mean, area.mean]


def test_weights_are_copies_of_pictures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ssd_lightning.review.bootstrap.CELLS_AT_ONCE", 100)  # A few draws at a time.
    stored = made_up(12)
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=20)
    weights[0] = 1
    weights[1] = 0
    weights[1, 3] = 12  # One picture alone.
    expected = [scores_of_copies(stored, row) for row in weights]
    np.testing.assert_allclose(resampled_scores(stored, weights), expected, rtol=0, atol=1e-12)


def test_draws_without_objects_have_no_score():
    stored = made_up(4)
    assert np.isnan(resampled_scores(stored, np.zeros((1, 4), dtype=int))).all()
    nothing = stored._replace(detections=select(stored.detections, slice(0)))
    assert resampled_scores(nothing, np.ones((1, 4), dtype=int)).tolist() == [[0, 0]]


def test_intervals_of_a_run(tmp_path: Path):
    """The scores are those of the protocols, and the ends are percentiles of scores of drawn pictures."""
    stored = made_up(30)
    table = score_intervals(written(tmp_path / "run", stored), resamples=200)
    detections, objects = stored.detections, stored.objects
    ious = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    areas = [voc_average_precision(detections, objects, len(CLASSES), iou).mean for iou in ious]
    assert table["score"].tolist() == pytest.approx([*scores_of_copies(stored, np.ones(30, dtype=int)), np.mean(areas)])
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=200)
    expected = np.percentile([scores_of_copies(stored, row) for row in drawn], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(table[["low", "high"]].iloc[:2].T, expected, atol=1e-12)
    assert table["low"].iloc[2] < table["score"].iloc[2] < table["high"].iloc[2]
    narrow = score_intervals(tmp_path / "run", resamples=200, confidence=0.5)
    assert (narrow["low"] > table["low"]).all()
    assert (narrow["high"] < table["high"]).all()


def test_a_run_is_no_better_than_itself(tmp_path: Path):
    run = written(tmp_path / "run", made_up(40))
    table = compare_runs(run, run / "detections.npz", resamples=50)
    assert table.index.tolist() == ["VOC07 AP", "VOC12 AP"]
    assert table[["difference", "low", "high"]].to_numpy().tolist() == [[0, 0, 0]] * 2
    assert not table["holds on other pictures"].any()
    stored = made_up(40)
    area = voc_average_precision(stored.detections, stored.objects, 3)
    assert table.loc["VOC12 AP", "a"] == pytest.approx(area.mean, abs=1e-12)


def test_a_worse_run_is_found_and_chance_is_not(tmp_path: Path):
    good, same, bad = (
        written(tmp_path / name, made_up(150, seed, miss))
        for name, seed, miss in (("good", 0, 0.2), ("same", 1, 0.2), ("bad", 2, 0.5))
    )
    worse = compare_runs(good, bad, resamples=300).loc["VOC12 AP"]
    assert worse["holds on other pictures"]
    assert worse["low"] < worse["difference"] < worse["high"] < 0
    better = compare_runs(bad, good, resamples=300).loc["VOC12 AP"]
    assert better["difference"] == -worse["difference"]
    assert better["low"] == pytest.approx(-worse["high"])
    chance = compare_runs(good, same, resamples=300).loc["VOC12 AP"]
    assert not chance["holds on other pictures"]
    assert chance["low"] < 0 < chance["high"]


def test_the_interval_covers_as_often_as_stated():
    """The mean difference over many data sets lies inside about 9 of 10 intervals."""
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
    """Return the part of a larger data set with the given number."""
    whole = made_up(1800, seed=int(miss * 100), miss=miss)
    low, high = 60 * number, 60 * (number + 1)

    def part(records):
        mine = select(records, (records.image_ids >= low) & (records.image_ids < high))
        return mine._replace(image_ids=mine.image_ids - low)

    return StoredDetections(part(whole.detections), part(whole.objects), whole.paths[:60], whole.classes)


class TestSettings:
    def test_two_seeds_of_a_setting_are_rarely_called_different(self, tmp_path: Path):
        """The seed changes each run a lot; drawing the seeds themselves would be wrong in a third of the cases."""
        rng, wrong = np.random.default_rng(0), 0
        for trial in range(40):
            runs = [
                written(tmp_path / f"{trial} {number}", made_up(30, 4 * trial + number, miss=rng.uniform(0.1, 0.7)))
                for number in range(4)
            ]
            wrong += compare_settings(runs[:2], runs[2:], resamples=200).loc["VOC12 AP", "more than noise"]
        assert wrong <= 5

    def test_means_and_interval(self, tmp_path: Path):
        good = [written(tmp_path / f"good{seed}", made_up(150, seed, 0.2)) for seed in range(3)]
        bad = [written(tmp_path / f"bad{seed}", made_up(150, 10 + seed, 0.5)) for seed in range(2)]
        table = compare_settings(good, bad)
        row = table.loc["VOC12 AP"]
        alone = [[compare_runs(run, run, resamples=1).loc["VOC12 AP", "a"] for run in runs] for runs in (good, bad)]
        assert row["a"] == pytest.approx(np.mean(alone[0]))
        assert row["b"] == pytest.approx(np.mean(alone[1]))
        assert row["difference"] == pytest.approx(row["b"] - row["a"])
        assert row["more than noise"]
        # The interval holds that of t over the seeds alone: 3.182 is its 97.5% quantile with 3 degrees of freedom.
        squares = sum(np.var(runs) * len(runs) for runs in alone)
        half = 3.182 * np.sqrt(squares / 3 * (1 / 3 + 1 / 2))
        assert row["high"] - row["low"] > 2 * half
        over_pictures = compare_runs(good[0], bad[0]).loc["VOC12 AP"]
        assert row["high"] - row["low"] > 0.5 * (over_pictures["high"] - over_pictures["low"])

    def test_with_one_seed_each_there_is_no_verdict(self, tmp_path: Path):
        good, bad = (written(tmp_path / str(miss), made_up(40, 0, miss)) for miss in (0.1, 0.8))
        table = compare_settings([good], [bad], resamples=50)
        assert table["more than noise"].isna().all()
        columns = ["a", "b", "difference", "low", "high"]
        assert table[columns].equals(compare_runs(good, bad, resamples=50)[columns])

    def test_other_pictures_and_no_runs_are_refused(self, tmp_path: Path):
        a, b = written(tmp_path / "a", made_up(9)), written(tmp_path / "b", made_up(8))
        with pytest.raises(ValueError, match=r"runs_b: expected the pictures of .*, got 8"):
            compare_settings([a], [a, b])
        with pytest.raises(ValueError, match="runs_a: expected at least one run, got none"):
            compare_settings([], [a])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (made_up(8), "run_b: expected the pictures of .*, got 8"),
        (made_up(9, classes=("cat", "horse", "never there")), "run_b: expected the classes of .*horse"),
        (made_up(9)._replace(objects=made_up(9).objects._replace(labels=np.ones(18, int))), "run_b: .* objects of"),
    ],
)
def test_other_pictures_are_refused(tmp_path: Path, other: StoredDetections, message: str):
    a, b = written(tmp_path / "a", made_up(9)), written(tmp_path / "b", other)
    with pytest.raises(ValueError, match=message) as caught:
        compare_runs(a, b)
    assert str(b) in str(caught.value)


def test_the_folder_of_pictures_and_the_order_of_objects_may_differ(tmp_path: Path):
    stored = made_up(9)
    moved = stored._replace(
        paths=tuple(f"/elsewhere/{path}" for path in stored.paths),
        objects=select(stored.objects, slice(None, None, -1)),
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
    with pytest.raises(ValueError, match=r"detections: .*detections.npz, which cannot be read"):
        compare_runs(tmp_path, tmp_path)


class TestClasses:
    def test_one_class_equals_the_comparison_of_runs(self, tmp_path: Path, truth: StoredDetections):
        one = truth._replace(classes=("banana",), objects=truth.objects._replace(labels=np.ones(24, dtype=int)))
        a, b = detected(one, 9), detected(one, 2, seed=1)
        for name, stored in (("a", a), ("b", b)):
            save_detections(tmp_path / f"{name}.npz", *stored)
        expected = compare_runs(tmp_path / "a.npz", tmp_path / "b.npz").loc["VOC12 AP"]
        found = compare_classes(a, b).loc["banana"]
        assert found["objects"] == 24
        columns = ["a", "b", "difference", "low", "high", "holds on other pictures"]
        assert found[columns].tolist() == expected[columns].tolist()

    def test_each_class_for_itself(self, truth: StoredDetections):
        # Only objects of the first class are missing, in pictures 0, 2, 4, …
        a = detected(truth, 0)
        rows = (a.detections.labels != 1) | (a.detections.image_ids >= 12)
        b = a._replace(detections=select(a.detections, rows))
        table = compare_classes(a, b)
        assert table["holds on other pictures"].tolist() == [True, False]
        assert table.loc["banana", "high"] < 0
        assert table.loc["plantain", ["difference", "low", "high"]].tolist() == [0, 0, 0]

    def test_classes_without_objects_are_left_out(self, truth: StoredDetections):
        three = detected(truth, 2)._replace(classes=(*BANANAS, "never there"))
        assert compare_classes(three, three, resamples=5).index.tolist() == list(BANANAS)

    def test_other_pictures_are_refused(self, truth: StoredDetections):
        with pytest.raises(ValueError, match=r"b: expected the pictures of a, 24 .*, got 23"):
            compare_classes(truth, truth._replace(paths=truth.paths[1:]))

    def test_figure(self, truth: StoredDetections):
        table = compare_classes(detected(truth, 9), detected(truth, 2), resamples=50)
        ax = draw_class_differences(table).axes[0]
        assert [text.get_text() for text in ax.get_yticklabels()] == table.sort_values(
            "difference", ascending=False
        ).index.tolist()
        low, high = ax.get_xticks().min(), ax.get_xticks().max()
        assert low < 0 < high
