"""Whether one run is better than another, or only luckier with the pictures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssd_lightning.drawing import COLOURS, LONGEST_NAME, MOST_WITH_NUMBERS, WIDTH, shown_names
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.scoring.average_precision import RECALL_LEVELS, assign_detections, check_records
from ssd_lightning.scoring.scores import voc_columns
from ssd_lightning.scoring.stored_detections import StoredDetections, load_detections
from ssd_lightning.structures import DetectionRecords, ObjectRecords

CELLS_AT_ONCE = 2_000_000
"""Detections times resamples that are worked on together: as many as the caches of a CPU like."""


def compare_runs(
    run_a: Path | str,
    run_b: Path | str,
    iou_threshold: float = 0.5,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the scores of two runs on the same pictures by a paired bootstrap.

    Pictures are drawn with replacement, as many as there are, and both runs are scored on each draw; the interval holds
    the middle ``confidence`` of the differences (percentiles: Efron & Tibshirani 1993, chapter 13). It tells about the
    pictures that happened to be there, not about the seeds of training: for those, train with several.

    Args:
        run_a: run folder, or file of stored detections.
        run_b: the other.
        iou_threshold: from which on a detection finds an object.
        resamples: number of draws.
        confidence: share of the differences inside the interval, between 0 and 1.
        seed: of the draws.

    Returns:
        A row for each of VOC's averages, 11 points and area; columns ``a`` and ``b`` (scores, 0 … 1), ``difference``
        (b − a), ``low`` and ``high`` (the interval), ``more than noise`` (0 is outside).

    Raises:
        ValueError: if the runs were not scored on the same pictures with the same truth, or an argument is out of
            range.
    """
    require_number("iou_threshold", iou_threshold, "(0, 1]")
    require_whole_number("resamples", resamples, 1)
    require_number("confidence", confidence, "(0, 1)")
    a, b = (load_detections(_file(run)) for run in (run_a, run_b))
    _refuse_other_pictures(a, b, run_a, run_b)
    pictures = len(a.paths)
    rng = np.random.default_rng(seed)
    if pictures == 0:
        raise ValueError(f"run_a: {run_a} was scored on no pictures")
    drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    # The first row is the pictures as they are.
    weights = np.concatenate([np.ones((1, pictures), dtype=np.int32), drawn.astype(np.int32)])
    scores_a, scores_b = (resampled_scores(stored, weights, iou_threshold) for stored in (a, b))
    difference = scores_b - scores_a
    tail = 50 * (1 - confidence)
    # A draw without any object has no score.
    low, high = np.nanpercentile(difference[1:], [tail, 100 - tail], axis=0)
    return pd.DataFrame(
        {
            "a": scores_a[0],
            "b": scores_b[0],
            "difference": difference[0],
            "low": low,
            "high": high,
            "more than noise": (low > 0) | (high < 0),
        },
        index=pd.Index(voc_columns(iou_threshold), name="score"),
    )


def resampled_scores(
    stored: StoredDetections, weights: Int[np.ndarray, "draws pictures"], iou_threshold: float = 0.5
) -> Float[np.ndarray, "draws 2"]:
    """VOC's two averages (11 points, area) over classes, of pictures that count as often as ``weights`` says.

    Boxes meet objects once, for all draws: whether a detection is true depends on its own picture alone. NaN where a
    draw has no object that counts.
    """
    detections, objects, _, classes = stored
    check_records(detections, objects, len(classes))
    _, _, is_true, is_ignored = assign_detections(detections, objects, iou_threshold)
    best_first = np.argsort(-detections.scores, kind="stable")
    best_first = best_first[~is_ignored[best_first]]
    averages = np.full((len(classes), len(weights), 2), np.nan)
    for label in range(1, len(classes) + 1):
        rows = best_first[detections.labels[best_first] == label]
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
    """Detections of one class, best first, and its objects."""

    pictures: Int[np.ndarray, " detections"]
    is_true: Bool[np.ndarray, " detections"]
    pictures_of_objects: Int[np.ndarray, " objects"]


def _averages(found: _RankedClass, weights: Int[np.ndarray, "draws pictures"]) -> Float[np.ndarray, "draws 2"]:
    num_objects = weights[:, found.pictures_of_objects].sum(axis=1, dtype=np.int64)[:, None]
    true = np.flatnonzero(found.is_true)
    num_detections = np.cumsum(weights[:, found.pictures], axis=1, dtype=np.int32)[:, true]
    num_true = np.cumsum(weights[:, found.pictures[true]], axis=1, dtype=np.int32)
    # Precision rises at true detections only, so the best of any later point is at one of them.
    precision = np.divide(num_true, num_detections, out=np.zeros(num_true.shape), where=num_detections > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        recall = num_true / num_objects
        area = (np.diff(recall, axis=1, prepend=0.0) * envelope).sum(axis=1)
    reached = np.concatenate([envelope, np.zeros((len(weights), 1))], axis=1)
    draws = np.arange(len(weights))
    points = [reached[draws, (recall < level).sum(axis=1)] for level in RECALL_LEVELS]
    both = np.stack([np.mean(points, axis=0), area], axis=1)
    return np.where(num_objects > 0, both, np.nan)


def _file(run: Path | str) -> Path:
    path = Path(run)
    return path / "detections.npz" if path.is_dir() else path


def _refuse_other_pictures(a: StoredDetections, b: StoredDetections, run_a: Path | str, run_b: Path | str) -> None:
    """By their names and truth: the folder that they lie in may be another on another machine."""
    names_a, names_b = ([Path(path).name for path in stored.paths] for stored in (a, b))
    for what, of_a, of_b in (("classes", a.classes, b.classes), ("pictures", names_a, names_b)):
        if list(of_a) != list(of_b):
            raise ValueError(
                f"run_b: expected {what} as of run_a, but {run_b} has {_some(of_b)} and {run_a} has {_some(of_a)}"
            )
    rows_a, rows_b = (_sorted_truth(stored) for stored in (a, b))
    if rows_a.shape != rows_b.shape or not np.allclose(rows_a, rows_b, atol=1e-2):
        raise ValueError(f"run_b: expected objects as of run_a, but those of {run_b} and {run_a} differ")


def _sorted_truth(stored: StoredDetections) -> Float[np.ndarray, "objects 7"]:
    image_ids, labels, boxes, difficult = stored.objects
    rows = np.column_stack([image_ids, labels, difficult, boxes]).astype(np.float64)
    return rows[np.lexsort(rows.round(1).T[::-1])]


def _some(names: list[str] | tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


INTERVAL = (2.5, 97.5)
"""Percentiles of the draws between which 95% of them lie."""


def compare_classes(
    a: StoredDetections,
    b: StoredDetections,
    iou_threshold: float = 0.5,
    resamples: int = 1000,
) -> pd.DataFrame:
    """:func:`ssd_lightning.review.compare_runs` for each class: VOC's AP (area) of both, and the difference.

    Of many classes some differ by luck: the intervals hold 95% of the draws, so 1 class in 20 is ``more than noise``
    although neither run is better at it.

    Args:
        a: stored detections of a run.
        b: of another, on the same pictures.
        iou_threshold: from which on a detection finds an object.
        resamples: number of draws.

    Returns:
        A row for each class that has objects: ``objects`` that count, ``a``, ``b``, ``difference`` (b − a), ``low``,
        ``high`` and ``more than noise``.

    Raises:
        ValueError: if classes, pictures or the numbers of objects differ.
    """
    counts, counts_of_b = _num_objects(a), _num_objects(b)
    if a.classes != b.classes or len(a.paths) != len(b.paths) or not np.array_equal(counts, counts_of_b):
        raise ValueError(
            f"b: expected the pictures and objects of a, {len(a.paths)} with {counts.sum()} of "
            f"{len(a.classes)} classes, got {len(b.paths)} with {counts_of_b.sum()} of {len(b.classes)}"
        )
    pictures = len(a.paths)
    if pictures == 0:
        raise ValueError("a: expected detections of at least one picture, got none")
    drawn = np.random.default_rng(0).multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    # The first row is the pictures as they are.
    weights = np.concatenate([np.ones((1, pictures), dtype=np.int32), drawn.astype(np.int32)])
    rows = []
    for label, objects in enumerate(counts.tolist(), start=1):
        if objects == 0:
            continue
        of_a, of_b = (resampled_scores(_of_class(stored, label), weights, iou_threshold)[:, 1] for stored in (a, b))
        difference = of_b - of_a
        low, high = np.nanpercentile(difference[1:], INTERVAL)
        is_told = bool(low > 0 or high < 0)
        rows.append((a.classes[label - 1], objects, of_a[0], of_b[0], difference[0], low, high, is_told))
    columns = ["class", "objects", "a", "b", "difference", "low", "high", "more than noise"]
    return pd.DataFrame(rows, columns=columns).set_index("class")


def draw_class_differences(table: pd.DataFrame) -> Figure:
    """The classes of :func:`compare_classes` with their intervals, from what B does better to what A does better."""
    names, families = shown_names([str(name) for name in table.index], longest=LONGEST_NAME)
    order = table.assign(name=names).sort_values("difference", ascending=False, kind="stable")
    count = len(order)
    height, size = (0.3, 9.0) if count <= MOST_WITH_NUMBERS else (0.17, 7.5)
    figure = Figure(figsize=(WIDTH, height * count + 1.5), layout="constrained")
    ax = figure.subplots()
    reach = max(float(np.nanmax(np.abs(order[["difference", "low", "high"]].to_numpy()), initial=0)) * 1.05, 0.01)
    ax.axvline(0, color="black", linewidth=1)
    for place, row in enumerate(order.itertuples()):
        is_told = bool(order["more than noise"].iloc[place])
        colour = "0.55" if not is_told else COLOURS[4] if row.difference > 0 else COLOURS[5]
        ax.plot([row.low, row.high], [place, place], color=colour, linewidth=2.5 if is_told else 1.5)
        ax.plot(row.difference, place, "o", color=colour, markersize=6 if is_told else 4)
    # Numbers stand in columns of their own, where no interval runs through them.
    for x, title, texts in (
        (1.35, "A", [f"{value:.3f}" for value in order["a"]]),
        (1.58, "B", [f"{value:.3f}" for value in order["b"]]),
        (1.85, "objects", [f"{value}" for value in order["objects"]]),
    ):
        ax.text(x * reach, -0.8, title, fontsize=size, ha="right", va="bottom")
        for place, text in enumerate(texts):
            ax.text(x * reach, place, text, fontsize=size, ha="right", va="center")
    ax.set_yticks(np.arange(count), order["name"], fontsize=size, fontfamily=families, parse_math=False)
    ax.set(xlim=(-reach, 1.87 * reach), ylim=(count - 0.4, -0.7))
    ax.set_xticks([tick for tick in ax.get_xticks() if abs(tick) <= reach])
    ax.set_xlabel("AP of B − AP of A, and where 95% of the draws lie", x=1 / 2.87)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(-reach, reach)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=markersize, linewidth=2, label=label)
        for colour, markersize, label in (
            (COLOURS[4], 6, "B better, more than noise"),
            (COLOURS[5], 6, "A better, more than noise"),
            ("0.55", 4, "may be luck"),
        )
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _num_objects(stored: StoredDetections) -> np.ndarray:
    objects = stored.objects
    return np.bincount(objects.labels[~objects.difficult], minlength=len(stored.classes) + 1)[1:]


def _of_class(stored: StoredDetections, label: int) -> StoredDetections:
    """Its detections and objects alone, as if there were no other class."""

    def part(records: DetectionRecords | ObjectRecords) -> list[np.ndarray]:
        rows = records.labels == label
        return [column[rows] for column in records._replace(labels=np.ones_like(records.labels))]

    detections, objects, paths, classes = stored
    return StoredDetections(
        DetectionRecords(*part(detections)), ObjectRecords(*part(objects)), paths, (classes[label - 1],)
    )
