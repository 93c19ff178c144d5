"""Figures of the scores of a run: precision and recall, score thresholds, average precision, confusion matrix.

The figures are legible at the width of a notebook, with one class or with eighty.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from ssd_lightning.drawing import COLOURS, LONGEST_NAME, MOST_WITH_NUMBERS, WIDTH, shown_names
from ssd_lightning.records import BACKGROUND, DRAW_THRESHOLD
from ssd_lightning.scoring.average_precision import (
    Curve,
    PrecisionRecall,
    average_precision_11_point,
    average_precision_area,
    voc_columns,
)

LINE, POINT = COLOURS[4], COLOURS[5]

MOST_THRESHOLD_PLOTS = 12
"""Largest number of classes with a plot of their own in the figure of score thresholds."""

MOST_THRESHOLDS = 1000
"""Number of thresholds, roughly, from which the mean of classes uses a part of them."""

THRESHOLD_LINES: tuple[tuple[str, str, Any], ...] = (
    ("precision", COLOURS[4], "solid"),
    ("recall", COLOURS[0], "dashdot"),
    ("F1 (harmonic mean)", COLOURS[2], "solid"),
)
"""Labels, colours and styles of the lines of :class:`ThresholdScores`."""

PLOTS_IN_A_ROW = {3: 3, 8: 4, 25: 5, 10**9: 8}
"""Largest numbers of classes, and the plots in a row for them."""


def draw_precision_recall(
    precision_recall: PrecisionRecall,
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Figure:
    """Draw the curve of each class, its area (the average precision), and the point of ``score_threshold``.

    Args:
        precision_recall: result of :func:`ssd_lightning.scoring.precision_recall_curves`.
        classes: names; the class of label n is at n - 1.
        iou_threshold: IoU threshold of the curves, for the legend.
        score_threshold: score whose point is marked on each curve.
    """
    count = len(classes)
    columns = min(count, next(columns for most, columns in PLOTS_IN_A_ROW.items() if count <= most))
    rows = -(-count // columns)
    width = min(WIDTH, 3.4 * columns + 2.8)
    figure = Figure(figsize=(width, (0.9 * width / columns + 0.1) * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    size = 9 if columns <= 5 else 7
    names, families = shown_names(classes, longest=LONGEST_NAME if columns <= 5 else 15)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for ax, name, curve, objects in zip(
        axes.flat, names, precision_recall.curves, precision_recall.num_objects.tolist(), strict=False
    ):
        _draw_curve(ax, curve, score_threshold, objects)
        average = f"{average_precision_area(curve):.3f}" if objects else "–"
        ax.set_title(f"{name}  {average}", fontsize=size, fontfamily=families, parse_math=False, pad=3)
        ax.set(xlim=(0, 1.02), ylim=(0, 1.04), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        ax.tick_params(labelsize=size, length=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    if count == 1 and precision_recall.num_objects[0]:
        eleven = average_precision_11_point(precision_recall.curves[0])
        axes[0, 0].set_xlabel(f"11-point average {eleven:.3f}", fontsize=size)
    # If the last row is not full, the plots above the gap show the ticks of recall.
    for ax in axes.flat[max(0, count - columns) : count]:
        ax.tick_params(labelbottom=True)
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    handles = [
        Line2D([], [], color=LINE, linewidth=1, label="precision"),
        Patch(color=LINE, alpha=0.2, label=f"area and number: AP at IoU {iou_threshold:g}"),
        Line2D(
            [],
            [],
            color=POINT,
            marker="o",
            linestyle="none",
            markersize=5,
            label=f"score {score_threshold:g}",
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


class ThresholdScores(NamedTuple):
    """Precision, recall and F1 by score threshold, of one class or as a mean of classes."""

    thresholds: Float[np.ndarray, " thresholds"]
    """Rising scores of detections."""
    precision: Float[np.ndarray, " thresholds"]
    recall: Float[np.ndarray, " thresholds"]
    f1: Float[np.ndarray, " thresholds"]


def scores_by_threshold(curves: Sequence[Curve]) -> ThresholdScores:
    """Return the mean precision, recall and F1 of classes if only detections with a score ≥ threshold count.

    A class without such a detection has a recall and F1 of 0 and does not count in the mean precision.

    Args:
        curves: curves of classes with objects.
    """
    thresholds = np.unique(np.concatenate([np.zeros(0), *(curve.scores for curve in curves)]))
    if not len(thresholds):
        return ThresholdScores(thresholds, thresholds, thresholds, thresholds)
    if len(curves) > 1:
        thresholds = thresholds[:: max(1, len(thresholds) // MOST_THRESHOLDS)]
    parts = np.zeros((2, len(curves), len(thresholds)))
    parts[0] = np.nan
    for row, curve in enumerate(curves):
        # Scores fall, so the detections from a threshold on are the first ones.
        count = len(curve.scores) - np.searchsorted(curve.scores[::-1], thresholds)
        parts[0, row, count > 0] = curve.precision[count[count > 0] - 1]
        parts[1, row, count > 0] = curve.recall[count[count > 0] - 1]
    precision, recall = parts
    known = np.nan_to_num(precision)
    f1 = 2 * known * recall / np.maximum(known + recall, 1e-12)
    # Each threshold is the score of a detection, so at least one class has a precision.
    return ThresholdScores(thresholds, np.nanmean(precision, axis=0), recall.mean(axis=0), f1.mean(axis=0))


def draw_score_thresholds(
    precision_recall: PrecisionRecall, classes: Sequence[str], iou_threshold: float = 0.5
) -> Figure:
    """Draw precision, recall and F1 over the score threshold, and mark the threshold with the best F1.

    Up to :data:`MOST_THRESHOLD_PLOTS` classes have a plot each; more classes have one plot of their means.

    Args:
        precision_recall: result of :func:`ssd_lightning.scoring.precision_recall_curves`.
        classes: names; the class of label n is at n - 1.
        iou_threshold: IoU threshold of the curves, for the legend.
    """
    curves, num_objects = precision_recall
    plots: list[tuple[str, list[Curve]]] = [
        (name, [curve] if objects else [])
        for name, curve, objects in zip(classes, curves, num_objects.tolist(), strict=True)
    ]
    if len(classes) > MOST_THRESHOLD_PLOTS:
        scored = [curve for curve, objects in zip(curves, num_objects, strict=True) if objects]
        plots = [(f"mean of {len(scored)} classes", scored)]
    columns = next(columns for most, columns in PLOTS_IN_A_ROW.items() if len(plots) <= most)
    columns = min(len(plots), columns)
    rows = -(-len(plots) // columns)
    width = min(WIDTH, 3.4 * columns + 2.8)
    figure = Figure(figsize=(width, (0.8 * width / columns + 0.2) * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    names, families = shown_names([name for name, _ in plots], longest=LONGEST_NAME)
    for ax in axes.flat[len(plots) :]:
        ax.set_axis_off()
    for ax, name, (_, scored) in zip(axes.flat, names, plots, strict=False):
        found = scores_by_threshold(scored)
        title = f"{name}\n"
        if len(found.thresholds):
            for values, (_, colour, style) in zip(found[1:], THRESHOLD_LINES, strict=True):
                # Between two scores of detections, the numbers are those of the higher score.
                ax.step(found.thresholds, values, where="pre", color=colour, linestyle=style, linewidth=1.3)
            best = len(found.f1) - 1 - int(found.f1[::-1].argmax())
            ax.axvline(found.thresholds[best], color="black", linestyle="dashed", linewidth=1)
            title += f"F1 {found.f1[best]:.3f} from {found.thresholds[best]:.2f}"
        else:
            about = "no detections" if scored else "no objects"
            ax.text(0.5, 0.5, about, fontsize=8, ha="center", color="0.4")
        ax.set_title(title, fontsize=9, fontfamily=families, parse_math=False, pad=3)
        ax.set(xlim=(0, 1), ylim=(0, 1.04), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        ax.tick_params(labelsize=9, length=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[max(0, len(plots) - columns) : len(plots)]:
        ax.tick_params(labelbottom=True)
    figure.supxlabel("lowest score of a detection that counts", fontsize=10)
    figure.supylabel(f"at IoU {iou_threshold:g}", fontsize=10)
    handles = [Line2D([], [], color=colour, linestyle=style, label=label) for label, colour, style in THRESHOLD_LINES]
    handles.append(Line2D([], [], color="black", linestyle="dashed", linewidth=1, label="best F1"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def draw_average_precision(table: pd.DataFrame, iou_threshold: float = 0.5) -> Figure:
    """Draw the average precision of each class, the best first, and its number of objects.

    Args:
        table: result of :func:`ssd_lightning.scoring.score_by_class`.
        iou_threshold: IoU threshold of the VOC columns of the table.
    """
    voc = voc_columns(iou_threshold)[1]
    mean = table.iloc[-1]
    names, families = shown_names(table.index[:-1].tolist(), longest=LONGEST_NAME)
    order = table.iloc[:-1].assign(name=names).sort_values(voc, ascending=False, na_position="last", kind="stable")
    count = len(order)
    height = 0.3 if count <= MOST_WITH_NUMBERS else 0.17
    size = 9 if count <= MOST_WITH_NUMBERS else 7.5
    figure = Figure(figsize=(0.75 * WIDTH, height * count + 1.3), layout="constrained")
    ax = figure.subplots()
    places = np.arange(count)
    handles = [
        ax.barh(places, order[voc].fillna(0), height=0.7, color=COLOURS[1], label=voc),
        *ax.plot(order["COCO AP"], places, "o", color=POINT, markersize=4, label="COCO AP, mean over IoU 0.5 to 0.95"),
    ]
    if not np.isnan(mean[voc]):
        label = f"mean of {voc}: {mean[voc]:.3f}"
        handles.append(ax.axvline(mean[voc], color="black", linestyle="dashed", linewidth=1, label=label))
    # Numbers have columns of their own, away from bars and points.
    for x, title, texts in (
        (1.13, "AP", [f"{value:.3f}" for value in order[voc].fillna(0)]),
        (1.26, "objects", [f"{objects:.0f}" for objects in order["objects"]]),
    ):
        ax.text(x, -0.75, title, fontsize=size, ha="right", va="bottom")
        for place, (text, objects) in enumerate(zip(texts, order["objects"], strict=True)):
            ax.text(x, place, text if objects else "–", fontsize=size, ha="right", va="center")
    ax.set_yticks(places, order["name"], fontsize=size, fontfamily=families, parse_math=False)
    ax.set(xlim=(0, 1.28), ylim=(count - 0.4, -0.6), xticks=np.arange(6) / 5)
    ax.set_xlabel("average precision", x=0.5 / 1.28)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, 1)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_confusion(
    counts: Int[np.ndarray, "labels labels"],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Figure:
    """Draw a confusion matrix: colours are shares of a row, numbers are counts.

    Args:
        counts: result of :func:`ssd_lightning.scoring.confusion_matrix`.
        classes: names; the class of label n is at n - 1.
        iou_threshold: IoU threshold of the matrix, for the legend.
        score_threshold: score threshold of the matrix, for the axis.
    """
    counts = np.roll(counts, -1, axis=(0, 1))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names, families = shown_names([*classes, BACKGROUND], longest=LONGEST_NAME)
    count = len(names)
    with_numbers = count <= MOST_WITH_NUMBERS + 1
    cell = min(0.9, 8.4 / count)
    size = min(9.0, 72 * cell * 0.76)
    side = max(cell * count, 3.6)
    figure = Figure(figsize=(side + 1.6, side + 2.3), layout="constrained")
    ax = figure.subplots()
    # The root makes the few confusions visible beside the many right detections.
    image = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    if with_numbers:
        for row, column in np.argwhere(counts):
            shade = "white" if shares[row, column] > 0.35 else "black"
            number = f"{counts[row, column]}"
            fitting = min(size, 72 * cell / (0.7 * len(number)))
            ax.text(column, row, number, ha="center", va="center", color=shade, fontsize=fitting)
    text: dict[str, Any] = {"fontsize": size, "fontfamily": families, "parse_math": False}
    ax.set_xticks(np.arange(count), names, rotation=90, **text)
    ax.set_yticks(np.arange(count), names, **text)
    ax.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.85", linewidth=0.5)
    ax.tick_params(which="both", length=0)
    for line in (ax.axhline, ax.axvline):
        line(count - 1.5, color="black", linewidth=1)
    ax.set_xlabel(f"detection (score from {score_threshold:g}; {BACKGROUND}: missed)")
    ax.set_ylabel(f"truth ({BACKGROUND}: false alarms)")
    bar = figure.colorbar(image, ax=ax, location="top", shrink=0.6, aspect=40, pad=0.02)
    bar.set_label(f"share of the row, matched at IoU ≥ {iou_threshold:g}", fontsize=9)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_ticks([0, 0.05, 0.25, 0.5, 1])
    bar.ax.tick_params(labelsize=8)
    return figure


def _draw_curve(ax: Axes, curve: Curve, score_threshold: float, objects: int) -> None:
    if not objects or not len(curve.recall):
        ax.text(0.5, 0.5, "no detections" if objects else "no objects", fontsize=8, ha="center", color="0.4")
        return
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    recall = np.concatenate([[0.0], curve.recall])
    # Between two recalls the area is as high as the best precision at or beyond the second.
    ax.fill_between(recall, np.append(best[0], best), step="pre", color=LINE, alpha=0.2, linewidth=0)
    ax.plot(curve.recall, curve.precision, color=LINE, linewidth=1)
    above = int((curve.scores >= score_threshold).sum())
    if above:
        ax.plot(curve.recall[above - 1], curve.precision[above - 1], "o", color=POINT, markersize=5, clip_on=False)
