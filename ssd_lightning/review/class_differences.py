"""Two runs compared class by class, on the same pictures."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssd_lightning.review.compare import resampled_scores
from ssd_lightning.review.detections import StoredDetections
from ssd_lightning.review.figures import LONGEST_NAME, MOST_WITH_NUMBERS, WIDTH, shown_names
from ssd_lightning.structures import DetectionRecords, ObjectRecords
from ssd_lightning.visualize import COLOURS

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
