"""Figures of a training: pictures, curves and step statistics."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from ssd_lightning.drawing import COLOURS, add_rectangle, class_colour, picture_grid
from ssd_lightning.run_folder import read_metrics

if TYPE_CHECKING:
    from ssd_lightning.data.datamodule import DetectionDataModule

STATISTICS = {
    "positives_level": "positives per picture",
    "offset_target_level": "mean |offset| from default box to object",
    "offset_error_level": "mean |error| of predicted offsets",
    "mined_negatives": "mined negatives per picture",
    "mined_negatives_loss": "mean loss of mined negatives",
    "objects": "share of objects",
}
"""Titles of the plots in the figure of step statistics."""


def draw_training_pictures(datamodule: "DetectionDataModule", count: int = 12) -> Figure:
    """Draw the first training pictures of the first epoch with their boxes, augmented as the network sees them."""
    dataset = datamodule.train_dataloader().dataset
    keys = list(datamodule.train_dataloader().sampler)[:count]
    figure, axes = picture_grid(len(keys))
    for ax, key in zip(axes, keys, strict=True):
        sample = dataset[key].sample
        ax.imshow(sample.image)
        height, width = sample.image.shape[:2]
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            add_rectangle(ax, box * np.array([width, height, width, height]), class_colour(label), "solid")
    figure.suptitle("Training pictures, augmented", fontsize=11)
    return figure


def draw_curves(metrics: Path | str) -> Figure:
    """Draw losses and scores over the steps from the ``metrics.csv`` of a run."""
    rows = read_metrics(metrics)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = {
        "train/loss": ("training", "solid", COLOURS[4]),
        "train/loss_classification": ("… classification", "dashed", COLOURS[1]),
        "train/loss_localization": ("… localization", "dotted", COLOURS[2]),
        "val/loss": ("validation", "solid", COLOURS[5]),
    }
    for key, (label, style, line_colour) in losses.items():
        _line(left, rows, key, label, style, line_colour)
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
        _line(right, rows, key, label, style, line_colour)
    right.set(xlabel="step", ylabel="average precision (validation)", ylim=(0, 1.02))
    for ax in (left, right):
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(frameon=False, fontsize=9)
    return figure


def draw_training_statistics(metrics: Path | str) -> Figure | None:
    """Draw the step statistics of a run from its ``metrics.csv``.

    The statistics are those of :class:`~ssd_lightning.training.step_statistics.TrainingStatistics`. The result is None
    if the run logged no statistics, such as a run with fewer steps than ``trainer.log_every_n_steps``.
    """
    rows = {
        step: {key.removeprefix("statistics/"): value for key, value in row.items() if key.startswith("statistics/")}
        for step, row in read_metrics(metrics).items()
    }
    keys = {key for row in rows.values() for key in row}
    levels = sorted(int(key.rpartition("_")[2]) for key in keys if key.startswith("positives_level"))
    if not levels:
        return None
    plots = [kind for kind in STATISTICS if any(key.startswith(kind) for key in keys)]
    figure = Figure(figsize=(10, 6.2 if len(plots) > 3 else 3.4), layout="constrained")
    axes = list(figure.subplots(-(-len(plots) // 3), 3, squeeze=False).flat)
    for ax in axes[len(plots) :]:
        ax.set_axis_off()
    colours = [to_hex(shade) for shade in matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(levels)))]
    for ax, kind in zip(axes, plots, strict=False):
        if kind.endswith("_level"):
            for level, line_colour in zip(levels, colours, strict=True):
                _line(ax, rows, f"{kind}_{level}", f"level {level}", "solid", line_colour)
        elif kind == "objects":
            _line(ax, rows, "objects_by_claim_alone", "learned by claim alone", "solid", COLOURS[4])
            _line(ax, rows, "objects_not_reached", "reached by no default box", "dashed", COLOURS[5])
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            ax.legend(frameon=False, fontsize=8)
        else:
            _line(ax, rows, kind, STATISTICS[kind], "solid", COLOURS[4])
        ax.set_title(STATISTICS[kind], fontsize=9)
        ax.set(xlabel="step", ylabel="variances" if kind.startswith("offset") else "")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    offsets = [ax for ax, kind in zip(axes, plots, strict=False) if kind.startswith("offset")]
    for ax in offsets[1:]:
        # On a common axis, an error as large as the offset shows that nothing is learned yet.
        ax.sharey(offsets[0])
    for ax in axes[: len(plots)]:
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    figure.legend(handles=axes[0].lines, loc="outside upper center", ncols=len(levels), frameon=False, fontsize=9)
    return figure


def _line(ax: Axes, rows: dict[int, dict[str, float]], key: str, label: str, style: str, line_colour: str) -> None:
    points = [(step, row[key]) for step, row in rows.items() if key in row]
    if points:
        marker = "o" if len(points) < 30 else None
        ax.plot(
            *zip(*points, strict=True), label=label, linestyle=style, color=line_colour, marker=marker, markersize=3
        )
