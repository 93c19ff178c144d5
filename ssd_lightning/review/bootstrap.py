"""A paired bootstrap over the pictures, which separates real differences of runs and settings from chance."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ssd_lightning.records import Records, select
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.review.same_pictures import picture_set
from ssd_lightning.scoring.assignment import assign_detections, best_first, check_records
from ssd_lightning.scoring.average_precision import RECALL_LEVELS, voc_columns
from ssd_lightning.scoring.stored_detections import StoredDetections, load_detections

MORE_THAN_NOISE = "more than noise"
"""Column of the verdict about two settings."""

HOLDS = "holds on other pictures"
"""Column of the verdict about two trained networks."""

COCO_IOUS = np.linspace(0.5, 0.95, 10)
"""IoUs that COCO's AP averages over."""

CELLS_AT_ONCE = 2_000_000
"""Largest number of detections times draws that are processed together, for the caches of a CPU."""


def score_intervals(run: Path | str, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Compute the scores of a trained network with intervals from a bootstrap over the pictures.

    The draws are those of :func:`compare_runs`: pictures with replacement, as many as there are. The interval covers
    chance in the choice of the pictures, not in the seed of the training. Overlapping intervals of two runs do not
    mean that the runs are equally good, since both were scored on the same pictures; see :func:`compare_runs`.

    Args:
        run: run folder, or file of stored detections.
        resamples: number of draws.
        confidence: share of the draws inside the interval, between 0 and 1.
        seed: seed of the draws.

    Returns:
        A row for VOC's averages at IoU 0.5, 11 points and area, and for the area averaged over COCO's ten IoUs, 0.5 to
        0.95. Columns: ``score`` (0 … 1), ``low`` and ``high``.

    Raises:
        ValueError: if the run has no stored detections, or an argument is out of range.
    """
    require_number("confidence", confidence, "(0, 1)")
    stored = load_detections(run)
    weights = _draws(len(stored.paths), resamples, seed)
    at_ious = [resampled_scores(stored, weights, float(iou)) for iou in COCO_IOUS]
    drawn = np.column_stack([at_ious[0], np.mean([scores[:, 1] for scores in at_ious], axis=0)])
    low, high = _interval(drawn[1:], confidence)
    index = pd.Index([*voc_columns(), "VOC12 AP over IoU 0.5 to 0.95"], name="score of")
    return pd.DataFrame({"score": drawn[0], "low": low, "high": high}, index=index)


def compare_runs(
    run_a: Path | str,
    run_b: Path | str,
    iou_threshold: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two trained networks on the same pictures by a paired bootstrap.

    Each draw takes pictures with replacement, as many as there are, and scores both runs on them. The interval holds
    the middle ``confidence`` of the differences (percentiles: Efron & Tibshirani 1993, chapter 13). It covers chance in
    the choice of the pictures, not in the seed of the training. So the verdict is about these two trained networks, not
    about their settings: for settings, train with several seeds and use :func:`compare_settings`.

    Args:
        run_a: run folder, or file of stored detections.
        run_b: run folder or stored detections of the other run.
        iou_threshold: lowest IoU at which a detection finds an object.
        resamples: number of draws.
        confidence: share of the differences inside the interval, between 0 and 1.
        seed: seed of the draws.

    Returns:
        A row for each of VOC's averages, 11 points and area. Columns: ``a`` and ``b`` (scores, 0 … 1), ``difference``
        (b − a), ``low`` and ``high`` (the interval), ``holds on other pictures`` (0 is outside the interval, so other
        pictures of this kind would show the same sign).

    Raises:
        ValueError: if the runs were not scored on the same pictures with the same objects, or an argument is out of
            range.
    """
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    a, b = load_detections(run_a), load_detections(run_b)
    _require_same_pictures(a, b, "run_b", str(run_a), str(run_b))
    weights = _draws(len(a.paths), resamples, seed)
    scores_a, scores_b = (resampled_scores(stored, weights, iou_threshold) for stored in (a, b))
    index = pd.Index(voc_columns(iou_threshold), name="score")
    return pd.DataFrame(_columns(HOLDS, scores_a[0], scores_b[0], scores_b[1:] - scores_a[1:], confidence), index=index)


def compare_settings(
    runs_a: Sequence[Path | str],
    runs_b: Sequence[Path | str],
    iou_threshold: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two settings over the seeds that each was trained with.

    Each draw takes pictures with replacement and scores all runs on them, as :func:`compare_runs`. To the difference of
    the two means it adds a chance deviation of the seeds: Student's t with n_a + n_b − 2 degrees of freedom, times the
    standard error of the difference from the pooled variance of the runs of each setting. Drawing the runs themselves
    would be too sure. With two seeds each, both runs of one setting are the better ones by chance in one case of three.

    Args:
        runs_a: runs of one setting, which differ in the seed alone: run folders, or files of stored detections.
        runs_b: runs of the other setting.
        iou_threshold: lowest IoU at which a detection finds an object.
        resamples: number of draws.
        confidence: share of the differences inside the interval, between 0 and 1.
        seed: seed of the draws.

    Returns:
        A row for each of VOC's averages, 11 points and area. Columns: ``a`` and ``b`` (means over the seeds, 0 … 1),
        ``difference`` (b − a), ``low`` and ``high`` (the interval), ``more than noise`` (0 is outside the interval).
        With one run of each setting, the effect of the seed is not known: ``more than noise`` is ``pd.NA``, and the
        interval covers the pictures alone.

    Raises:
        ValueError: as :func:`compare_runs`, or if a setting has no run.
    """
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    for argument, runs in (("runs_a", runs_a), ("runs_b", runs_b)):
        if len(runs) == 0:
            raise ValueError(f"{argument}: expected at least one run, got none")
    settings = [[load_detections(run) for run in runs] for runs in (runs_a, runs_b)]
    first = settings[0][0]
    for argument, runs, stored in zip(("runs_a", "runs_b"), (runs_a, runs_b), settings, strict=True):
        for run, other in zip(runs, stored, strict=True):
            _require_same_pictures(first, other, argument, str(runs_a[0]), str(run))
    weights = _draws(len(first.paths), resamples, seed)
    a, b = (np.stack([resampled_scores(run, weights, iou_threshold) for run in stored]) for stored in settings)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    freedom = len(a) + len(b) - 2
    drawn = mean_b[1:] - mean_a[1:]
    if freedom > 0:
        squares = sum(((runs[:, 0] - runs[:, 0].mean(axis=0)) ** 2).sum(axis=0) for runs in (a, b))
        standard_error = np.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
        drawn = drawn + np.random.default_rng([seed, 1]).standard_t(freedom, (resamples, 1)) * standard_error
    columns = _columns(MORE_THAN_NOISE, mean_a[0], mean_b[0], drawn, confidence)
    table = pd.DataFrame(columns, index=pd.Index(voc_columns(iou_threshold), name="score"))
    return table.assign(**{MORE_THAN_NOISE: table[MORE_THAN_NOISE].astype("boolean") if freedom > 0 else pd.NA})


def compare_classes(
    a: StoredDetections,
    b: StoredDetections,
    iou_threshold: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the average precision (VOC, area) of each class by a paired bootstrap; see :func:`compare_runs`.

    With many classes, some classes differ by chance. At 95% confidence, ``holds on other pictures`` is wrong for 1 in
    20 of the classes on which the runs are equally good.

    Args:
        a: stored detections of a run.
        b: stored detections of another run on the same pictures.
        iou_threshold: lowest IoU at which a detection finds an object.
        resamples: number of draws.
        confidence: share of the differences inside the interval, between 0 and 1.
        seed: seed of the draws.

    Returns:
        A row for each class with objects that count: their number as ``objects``, and the columns of
        :func:`compare_runs`.

    Raises:
        ValueError: as :func:`compare_runs`.
    """
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    _require_same_pictures(a, b, "b", "a", "b")
    weights = _draws(len(a.paths), resamples, seed)
    objects = np.bincount(a.objects.labels[~a.objects.difficult], minlength=len(a.classes) + 1)[1:]
    labels = (np.flatnonzero(objects) + 1).tolist()

    def areas(run: StoredDetections) -> Float[np.ndarray, "draws labels"]:
        columns = [resampled_scores(_of_class(run, label), weights, iou_threshold)[:, 1] for label in labels]
        return np.reshape(columns, (len(labels), len(weights))).T

    names = pd.Index([a.classes[label - 1] for label in labels], name="class")
    of_a, of_b = areas(a), areas(b)
    columns = _columns(HOLDS, of_a[0], of_b[0], of_b[1:] - of_a[1:], confidence)
    return pd.DataFrame({"objects": objects[objects > 0], **columns}, index=names)


def _require_same_pictures(a: StoredDetections, b: StoredDetections, argument: str, name_a: str, name_b: str) -> None:
    set_a, set_b = picture_set(a), picture_set(b)
    match set_a.difference(set_b):
        case None:
            return
        case "objects":
            raise ValueError(f"{argument}: expected the objects of {name_a}, got other objects in {name_b}")
        case kind:
            of_a, of_b = (_some(getattr(pictures, kind)) for pictures in (set_a, set_b))
            raise ValueError(f"{argument}: expected the {kind} of {name_a}, {of_a}, got {of_b} in {name_b}")


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _draws(pictures: int, resamples: int, seed: int) -> Int[np.ndarray, "draws pictures"]:
    """Return how often each draw takes each picture. The first row takes each picture once."""
    require_whole_number("resamples", resamples, 1)
    if pictures == 0:
        raise ValueError("detections: expected at least one picture, got none")
    drawn = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    return np.concatenate([np.ones((1, pictures), dtype=np.int32), drawn.astype(np.int32)])


def _columns(
    verdict: str,
    a: Float[np.ndarray, " scores"],
    b: Float[np.ndarray, " scores"],
    drawn: Float[np.ndarray, "draws scores"],
    confidence: float,
) -> dict[str, np.ndarray]:
    """Return the columns of the comparisons from the scores and from the differences of all draws."""
    require_number("confidence", confidence, "(0, 1)")
    low, high = _interval(drawn, confidence)
    return {"a": a, "b": b, "difference": b - a, "low": low, "high": high, verdict: (low > 0) | (high < 0)}


def _interval(drawn: Float[np.ndarray, "draws scores"], confidence: float) -> Float[np.ndarray, "2 scores"]:
    """Return the lower and upper end of the middle ``confidence`` of the draws."""
    tail = 50 * (1 - confidence)
    # A draw without any object has no score.
    return np.nanpercentile(drawn, [tail, 100 - tail], axis=0)


def _of_class(stored: StoredDetections, label: int) -> StoredDetections:
    """Return the detections and objects of one class, with label 1."""

    def part(records: Records) -> Records:
        mine = select(records, records.labels == label)
        return mine._replace(labels=np.ones_like(mine.labels))

    detections, objects, paths, classes = stored
    return StoredDetections(part(detections), part(objects), paths, (classes[label - 1],))


def resampled_scores(
    stored: StoredDetections, weights: Int[np.ndarray, "draws pictures"], iou_threshold: float = 0.5
) -> Float[np.ndarray, "draws 2"]:
    """Compute VOC's two averages (11 points, area) over classes, with pictures that count ``weights`` times.

    Detections are assigned to objects once for all draws, since the assignment of a detection depends on its own
    picture alone. NaN for a draw without an object that counts.
    """
    detections, objects, _, classes = stored
    check_records(detections, objects, len(classes))
    _, _, is_true, is_ignored = assign_detections(detections, objects, iou_threshold)
    ranked = best_first(detections, np.flatnonzero(~is_ignored))
    averages = np.full((len(classes), len(weights), 2), np.nan)
    for label in range(1, len(classes) + 1):
        rows = ranked[detections.labels[ranked] == label]
        found = _RankedClass(
            detections.image_ids[rows],
            is_true[rows],
            objects.image_ids[(objects.labels == label) & ~objects.difficult],
        )
        at_once = max(1, CELLS_AT_ONCE // max(1, len(rows)))
        for start in range(0, len(weights), at_once):
            averages[label - 1, start : start + at_once] = _averages(found, weights[start : start + at_once])
    has_truth = ~np.isnan(averages)
    counts = has_truth.sum(axis=0)
    sums = np.where(has_truth, averages, 0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


class _RankedClass(NamedTuple):
    """Detections of one class, best first, and the pictures of its objects."""

    pictures: Int[np.ndarray, " detections"]
    is_true: Bool[np.ndarray, " detections"]
    pictures_of_objects: Int[np.ndarray, " objects"]


def _averages(found: _RankedClass, weights: Int[np.ndarray, "draws pictures"]) -> Float[np.ndarray, "draws 2"]:
    num_objects = weights[:, found.pictures_of_objects].sum(axis=1, dtype=np.int64)[:, None]
    true = np.flatnonzero(found.is_true)
    num_detections = np.cumsum(weights[:, found.pictures], axis=1, dtype=np.int32)[:, true]
    num_true = np.cumsum(weights[:, found.pictures[true]], axis=1, dtype=np.int32)
    # Precision rises at true detections only, so the best precision of all later points is at one of them.
    precision = np.divide(num_true, num_detections, out=np.zeros(num_true.shape), where=num_detections > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant.
        recall = num_true / num_objects
        area = (np.diff(recall, axis=1, prepend=0.0) * envelope).sum(axis=1)
    reached = np.concatenate([envelope, np.zeros((len(weights), 1))], axis=1)
    draws = np.arange(len(weights))
    points = [reached[draws, (recall < level).sum(axis=1)] for level in RECALL_LEVELS]
    both = np.stack([np.mean(points, axis=0), area], axis=1)
    return np.where(num_objects > 0, both, np.nan)
