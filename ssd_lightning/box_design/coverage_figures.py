"""Figures of default boxes, alone and over the objects of a data set; one figure compares two sets of default boxes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter
from torch import Tensor

from ssd_lightning.box_design.coverage import SIDES, ObjectMatches, sides
from ssd_lightning.detector.model import SSD
from ssd_lightning.drawing import (
    COLOURS,
    LONGEST_NAME,
    WIDTH,
    add_rectangle,
    class_colour,
    legend_above,
    picture_grid,
    shown_names,
)

MOST_CLASSES = 25
"""Number of classes with room for a bar; of more classes, the figure shows the least reached ones."""

MOST_POINTS = 3000
"""Largest number of objects drawn as points; of more objects, the figure shows every n-th."""

REACHED, UNREACHED = COLOURS[1], COLOURS[5]

PRESENT_AND_DESIGNED = (COLOURS[0], COLOURS[4])

MARKERS = "os^DvPX*"
"""Markers of the levels, repeated after the last."""


class MatchedBoxes(NamedTuple):
    """A set of default boxes and their matches with the objects of a data set."""

    shapes: Sequence[Float[Tensor, "shapes 2"]]
    """Shapes (width, height) of a cell's boxes on each level, see ``DefaultBoxes.shapes``."""
    matches: ObjectMatches


def draw_default_boxes(model: SSD, picture: UInt8[np.ndarray, "height width 3"]) -> Figure:
    """Draw the default boxes of a central cell of each level over a picture, with dots at the centres of all cells."""
    height, width = picture.shape[:2]
    figure, axes = picture_grid(len(model.grids), columns=len(model.grids))
    boxes = model.default_boxes.cpu().numpy() * (width, height, width, height)
    levels = np.split(boxes, np.cumsum(model.boxes_of_level)[:-1])
    for ax, level, (rows, columns), per_cell in zip(axes, levels, model.grids, model.boxes_per_cell, strict=True):
        cells = level.reshape(rows, columns, per_cell, 4)
        ax.imshow(picture, alpha=0.7)
        ax.scatter(cells[:, :, 0, 0], cells[:, :, 0, 1], s=24 / columns**1.1, color="white")
        for number, (x, y, w, h) in enumerate(cells[rows // 2, columns // 2]):
            edges = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            add_rectangle(ax, edges, class_colour(number + 1), "solid")
        ax.set_title(f"{rows}×{columns} cells, {per_cell} boxes", fontsize=9)
        ax.set(xlim=(-0.12 * width, 1.12 * width), ylim=(1.12 * height, -0.12 * height))
    return figure


def draw_coverage(
    boxes: Float[np.ndarray, "objects 4"],
    labels: Int[np.ndarray, " objects"],
    classes: Sequence[str],
    matched: MatchedBoxes,
    image_size: tuple[int, int],
    iou_threshold: float = 0.5,
) -> Figure:
    """Draw the coverage of a data set by default boxes.

    Four plots show the sizes of objects and default boxes, the reached share of each class, the best IoUs, and the
    positives by size and level.
    """
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    (plane, by_class), (by_iou, by_level) = figure.subplots(2, 2)
    _plane(plane, boxes, matched, image_size, iou_threshold, _limits(boxes, image_size, matched))
    reached = matched.matches.best_iou >= iou_threshold
    _classes(by_class, labels, reached, classes, iou_threshold)
    _best_ious(by_iou, matched.matches.best_iou, iou_threshold)
    _positives(by_level, sides(boxes, image_size), matched.matches)
    _finish(figure, matched, iou_threshold)
    return figure


def draw_design(
    boxes: Float[np.ndarray, "objects 4"],
    present: MatchedBoxes,
    designed: MatchedBoxes,
    val_best: tuple[Float[np.ndarray, " val_objects"], Float[np.ndarray, " val_objects"]],
    image_size: tuple[int, int],
    iou_threshold: float = 0.5,
) -> Figure:
    """Compare the present and the designed default boxes.

    Four plots show both sets over the objects, the reached share by size, and the distribution of best IoUs.
    ``val_best`` holds the best IoUs of the validation objects, with the present and with the designed boxes.
    """
    figure = Figure(figsize=(WIDTH, 8.4), layout="constrained")
    (left, right), (by_size, by_iou) = figure.subplots(2, 2)
    limits = _limits(boxes, image_size, present, designed)
    for ax, matched, name in ((left, present, "present"), (right, designed, "designed")):
        _plane(ax, boxes, matched, image_size, iou_threshold, limits)
        share = (matched.matches.best_iou >= iou_threshold).mean()
        ax.set_title(f"{name} default boxes: {share:.1%} are reached", fontsize=10)
    best = {"present": present.matches.best_iou, "designed": designed.matches.best_iou}
    _reached_by_size(by_size, sides(boxes, image_size), best, iou_threshold)
    _cumulated(by_iou, best, dict(zip(best, val_best, strict=True)), iou_threshold)
    _finish(figure, designed, iou_threshold)
    return figure


def _limits(
    boxes: Float[np.ndarray, "objects 4"], image_size: tuple[int, int], *all_matched: MatchedBoxes
) -> tuple[float, float]:
    """Return bounds, in pixels, of the sides of all objects and default boxes."""
    pixels = np.array(image_size[::-1])
    shapes = np.concatenate([level.numpy() for matched in all_matched for level in matched.shapes]) * pixels
    objects = (boxes[:, 2:] - boxes[:, :2]) * pixels
    return max(1.0, float(min(shapes.min(), objects.min())) / 1.2), 1.15 * float(max(shapes.max(), objects.max()))


def _plane(
    ax: Axes,
    boxes: Float[np.ndarray, "objects 4"],
    matched: MatchedBoxes,
    image_size: tuple[int, int],
    iou_threshold: float,
    limits: tuple[float, float],
) -> None:
    pixels = np.array(image_size[::-1])
    shown = slice(None, None, -(-len(boxes) // MOST_POINTS))
    sizes = ((boxes[:, 2:] - boxes[:, :2]) * pixels)[shown]
    reached = matched.matches.best_iou[shown] >= iou_threshold
    for rows, colour in ((reached, REACHED), (~reached, UNREACHED)):
        ax.scatter(sizes[rows, 0], sizes[rows, 1], s=5, color=colour, alpha=0.6, linewidths=0)
    for level, shapes in enumerate(matched.shapes):
        widths, heights = (shapes.numpy() * pixels).T
        marker = MARKERS[level % len(MARKERS)]
        ax.scatter(widths, heights, s=26, marker=marker, facecolor="white", edgecolor="black", zorder=3)
    low, high = limits
    ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if low <= tick <= high]
    for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
        scale("log")
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_minor_formatter(NullFormatter())
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal", adjustable="box")
    ax.set(xlabel="width in pixels of the network's input", ylabel="height in pixels of the network's input")


def _classes(
    ax: Axes, labels: Int[np.ndarray, " objects"], reached: np.ndarray, classes: Sequence[str], iou_threshold: float
) -> None:
    objects = np.bincount(labels, minlength=len(classes) + 1)[1:]
    shares = np.bincount(labels, weights=reached, minlength=len(classes) + 1)[1:] / np.maximum(objects, 1)
    order = np.argsort(np.where(objects > 0, shares, np.inf), kind="stable")
    shown = order[:MOST_CLASSES]
    names, families = shown_names([classes[row] for row in shown], LONGEST_NAME)
    places = np.arange(len(shown))
    ax.barh(places, 1, color=UNREACHED, height=0.7)
    ax.barh(places, shares[shown], color=REACHED, height=0.7)
    for place, row in zip(places, shown, strict=True):
        if objects[row] == 0:
            ax.barh(place, 1, color="0.9", height=0.7)
        label = f"{shares[row]:.0%} of {objects[row]}" if objects[row] else "no objects"
        ax.text(0.01, float(place), label, va="center", fontsize=7)
    ax.set_yticks(places, names, fontsize=8, fontfamily=families, parse_math=False)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    more = f", {len(order) - len(shown)} classes are reached more" if len(order) > len(shown) else ""
    ax.set(xlim=(0, 1), xlabel=f"share of the objects reached at IoU {iou_threshold:g}{more}")


def _best_ious(ax: Axes, best: Float[np.ndarray, " objects"], iou_threshold: float) -> None:
    edges = np.linspace(0, 1, 41)
    _, _, bars = ax.hist(best, bins=edges.tolist())
    for bar, edge in zip(bars, edges, strict=False):  # type: ignore[arg-type]
        bar.set_color(REACHED if edge >= iou_threshold - 1e-9 else UNREACHED)
    ax.axvline(iou_threshold, color="black", linewidth=1, linestyle="dashed")
    ax.set(xlim=(0, 1), xlabel="IoU of an object and its best default box", ylabel="objects")


def _size_groups(side: Float[np.ndarray, " objects"]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the size group of each object, the groups with objects, and the names of these groups."""
    rows = np.searchsorted(SIDES, side, side="right") - 1
    present = np.unique(rows)
    names = [f"{low:g}–{high:g}" if np.isfinite(high) else f"≥ {low:g}" for low, high in pairwise(SIDES)]
    return rows, present, [names[row] for row in present]


def _positives(ax: Axes, side: Float[np.ndarray, " objects"], matches: ObjectMatches) -> None:
    rows, present, names = _size_groups(side)
    means = np.array([matches.positives[rows == row].mean(axis=0) for row in present])
    levels = means.shape[1]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, levels))
    below = np.zeros(len(present))
    for level in range(levels):
        ax.bar(np.arange(len(present)), means[:, level], bottom=below, color=colours[level], label=f"{level + 1}")
        below += means[:, level]
    for place, row in enumerate(present):
        alone = matches.by_claim_alone[rows == row].mean()
        ax.text(place, below[place], f"{alone:.0%}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(np.arange(len(present)), names)
    ax.set_ylim(0, 1.12 * below.max())
    ax.set(
        xlabel="√area in pixels of the network's input\n(number: share with a forced match alone)",
        ylabel="positives of an object",
    )
    legend_above(ax, title="level", title_fontsize=8, ncols=min(levels, 8), columnspacing=1.0, handlelength=1.2)


def _reached_by_size(
    ax: Axes, side: Float[np.ndarray, " objects"], best: Mapping[str, np.ndarray], iou_threshold: float
) -> None:
    rows, present, names = _size_groups(side)
    places = np.arange(len(present))
    for number, (name, values) in enumerate(best.items()):
        shares = [(values[rows == row] >= iou_threshold).mean() for row in present]
        bars = ax.bar(places + 0.4 * (number - 0.5), shares, width=0.38, color=PRESENT_AND_DESIGNED[number], label=name)
        ax.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=6.5)
    ax.set_xticks(
        places, [f"{name}\n({(rows == row).sum()})" for name, row in zip(names, present, strict=True)], fontsize=8
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(ylim=(0, 1.08), yticks=np.arange(6) / 5)
    ax.set(xlabel="√area in pixels of the network's input (objects)", ylabel=f"share reached at IoU {iou_threshold:g}")
    legend_above(ax, ncols=2)


def _cumulated(ax: Axes, train: Mapping[str, np.ndarray], val: Mapping[str, np.ndarray], iou_threshold: float) -> None:
    for style, what, parts in (("solid", "training", train), ("dotted", "scoring", val)):
        for colour, (name, values) in zip(PRESENT_AND_DESIGNED, parts.items(), strict=True):
            if len(values):
                shares = np.arange(len(values), -1, -1) / len(values)
                ax.step(np.append(np.sort(values), 1), shares, color=colour, linestyle=style, label=f"{name}, {what}")
    ax.axvline(iou_threshold, color="black", linewidth=1, linestyle="dashed")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="IoU", ylabel="objects with a default box of that IoU or more")
    legend_above(ax, ncols=2)


def _finish(figure: Figure, matched: MatchedBoxes, iou_threshold: float) -> None:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    dots = {f"object with a default box of IoU {iou_threshold:g} or more": REACHED, "object without": UNREACHED}
    handles = [
        *(Line2D([], [], marker="o", color=colour, linestyle="none", label=label) for label, colour in dots.items()),
        *(
            Line2D([], [], marker=MARKERS[level % len(MARKERS)], markerfacecolor="white", color="black", linestyle="")
            for level in range(len(matched.shapes))
        ),
    ]
    labels = [*dots, *(f"level {level + 1}" for level in range(len(matched.shapes)))]
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        fontsize=8,
        columnspacing=1.0,
        handletextpad=0.2,
    )
