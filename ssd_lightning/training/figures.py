"""Figures of a training: pictures, curves and step statistics."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from ssd_lightning.drawing import (
    COLOURS,
    add_rectangle,
    class_colour,
    legend_above,
    line_width,
    picture_grid,
    running_mean,
    score_limits,
    smoothing_window,
)
from ssd_lightning.run_folder import read_metrics

if TYPE_CHECKING:
    from ssd_lightning.data.datamodule import DetectionDataModule

STATISTICS = {
    "positives_level": ("positives per picture", "positive default boxes"),
    "offset_target_level": ("mean |offset| from default box to object", "offset, in units of the variances"),
    "offset_error_level": ("mean |error| of predicted offsets", "error, in units of the variances"),
    "mined_negatives": ("mined negatives per picture", "default boxes of background"),
    "mined_negatives_loss": ("mean loss of mined negatives", "cross-entropy"),
    "objects": ("share of objects", "share of all objects"),
}
"""Titles of the plots in the figure of step statistics, and the names of their vertical axes."""


def draw_training_pictures(datamodule: "DetectionDataModule", count: int = 12) -> Figure:
    """Draw the first training pictures of the first epoch with their boxes, augmented as the network sees them."""
    dataset = datamodule.train_dataloader().dataset
    keys = list(datamodule.train_dataloader().sampler)[:count]
    figure, axes = picture_grid(len(keys))
    for ax, key in zip(axes, keys, strict=True):
        sample = dataset[key].sample
        ax.imshow(np.rint(sample.image).astype(np.uint8))
        height, width = sample.image.shape[:2]
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            edges = box * np.array([width, height, width, height])
            add_rectangle(ax, edges, class_colour(label), "solid", line_width(len(sample.boxes)))
    figure.suptitle("Training pictures, augmented", fontsize=11)
    return figure


def draw_curves(metrics: Path | str) -> Figure:
    """Draw losses and scores over the steps from the ``metrics.csv`` of a run.

    The losses of training are running means of :data:`~ssd_lightning.drawing.SMOOTHED_SHARE` of the logged steps. The
    loss as logged is a faint line behind them.
    """
    rows = read_metrics(metrics)
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = {
        "train/loss": ("training", "solid", COLOURS[4]),
        "train/loss_classification": ("… classification", "dashed", COLOURS[1]),
        "train/loss_localization": ("… localization", "dotted", COLOURS[2]),
    }
    for key, (label, style, line_colour) in losses.items():
        points = _points(rows, key)
        window = smoothing_window(len(points))
        if window > 1 and key == "train/loss":
            left.plot(*zip(*points, strict=True), color=line_colour, linewidth=0.6, alpha=0.3, label="_as logged")
        about = f"{label}, mean of {window} logged steps" if window > 1 and key == "train/loss" else label
        _line(left, _smoothed(points, window), about, style, line_colour)
    _line(left, _points(rows, "val/loss"), "validation", "solid", COLOURS[5])
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    scores = {
        "val/map_50": ("AP at IoU 0.5", "solid", COLOURS[4]),
        "val/map_75": ("AP at IoU 0.75", "dashed", COLOURS[1]),
        "val/map": ("AP, IoU 0.5 to 0.95", "dotted", COLOURS[2]),
    }
    for key, (label, style, line_colour) in scores.items():
        _line(right, _points(rows, key), label, style, line_colour)
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in right.lines] or [np.zeros(0)])
    right.set(xlabel="step", ylabel="average precision (validation)", ylim=score_limits(values))
    for ax in (left, right):
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            legend_above(ax, ncols=2)
    return figure


def _smoothed(points: list[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    steps, values = [step for step, _ in points], [value for _, value in points]
    return list(zip(steps, running_mean(values, window), strict=True))


def draw_training_statistics(metrics: Path | str) -> Figure | None:
    """Draw the step statistics of a run from its ``metrics.csv``.

    The statistics are those of :class:`~ssd_lightning.training.step_statistics.TrainingStatistics`. The result is None
    if the run logged no statistics, such as a run with ``trainer.log_every_n_steps=0``.

    Lines are running means of :data:`~ssd_lightning.drawing.SMOOTHED_SHARE` of the logged steps.
    """
    rows = {
        step: {key.removeprefix("statistics/"): value for key, value in row.items() if key.startswith("statistics/")}
        for step, row in read_metrics(metrics).items()
    }
    keys = {key for row in rows.values() for key in row}
    levels = sorted(int(key.rpartition("_")[2]) for key in keys if key.startswith("positives_level"))
    if not levels:
        return None
    levels = [level for level in levels if any(row.get(f"positives_level_{level}", 0) > 0 for row in rows.values())]
    window = smoothing_window(sum(bool(row) for row in rows.values()))
    of_key = {key: "objects" if key.startswith("objects_") else key.rstrip("0123456789").rstrip("_") for key in keys}
    plots = [kind for kind in STATISTICS if kind in of_key.values()]
    columns = min(len(plots), 3)
    lines = -(-len(plots) // columns)
    figure = Figure(figsize=(max(10 * columns / 3, 5), 3.1 * lines + 0.3), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax in axes[len(plots) :]:
        ax.set_axis_off()
    colours = [to_hex(shade) for shade in matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(levels)))]
    for ax, kind in zip(axes, plots, strict=False):
        title, about = STATISTICS[kind]
        if kind.endswith("_level"):
            for level, line_colour in zip(levels, colours, strict=True):
                _line(ax, _smoothed(_points(rows, f"{kind}_{level}"), window), f"level {level}", "solid", line_colour)
        elif kind == "objects":
            for key, label, style, line_colour in (
                ("objects_by_claim_alone", "learned by claim alone", "solid", COLOURS[4]),
                ("objects_not_reached", "reached by no default box", "dashed", COLOURS[5]),
            ):
                _line(ax, _smoothed(_points(rows, key), window), label, style, line_colour)
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            legend_above(ax, ncols=1)
        else:
            _line(ax, _smoothed(_points(rows, kind), window), title, "solid", COLOURS[4])
        # The legend of the shares lies between the title and the plot.
        ax.set_title(title, fontsize=9, pad=32 if kind == "objects" else 6)
        ax.set(xlabel="step", ylabel=about)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    offsets = [ax for ax, kind in zip(axes, plots, strict=False) if kind.startswith("offset")]
    for ax in offsets[1:]:
        # On a common axis, an error as large as the offset shows that nothing is learned yet.
        ax.sharey(offsets[0])
    for ax in axes[: len(plots)]:
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    smoothing = f"mean of {window} logged steps" if window > 1 else None
    if levels:
        handles = [
            Line2D([], [], color=colour, label=f"level {level}") for level, colour in zip(levels, colours, strict=True)
        ]
        figure.legend(
            handles=handles,
            title=smoothing,
            loc="outside upper center",
            ncols=len(levels),
            frameon=False,
            fontsize=9,
            title_fontsize=9,
        )
    else:
        axes[0].text(0.5, 0.5, "no positives", transform=axes[0].transAxes, ha="center", color="0.4")
    return figure


def _points(rows: dict[int, dict[str, float]], key: str) -> list[tuple[int, float]]:
    return [(step, row[key]) for step, row in rows.items() if key in row]


def _line(ax: Axes, points: list[tuple[int, float]], label: str, style: str, line_colour: str) -> None:
    if points:
        marker = "o" if len(points) < 30 else None
        ax.plot(
            *zip(*points, strict=True), label=label, linestyle=style, color=line_colour, marker=marker, markersize=3
        )
