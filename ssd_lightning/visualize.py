"""Pictures with boxes, and the figures of a run.

Figures are made without pyplot, so that nothing pops up and no backend is chosen for a notebook.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from torchvision.utils import draw_bounding_boxes

from ssd_lightning.run_folder import read_metrics
from ssd_lightning.structures import DetectionRecords, ObjectRecords

if TYPE_CHECKING:
    from ssd_lightning.data.datamodule import DetectionDataModule, Pictures
    from ssd_lightning.model import SSD

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's palette, which the colour-blind can tell apart; class n has colour n - 1, round and round."""

DRAW_THRESHOLD = 0.5
"""Detections are drawn from this score on."""


def colour(label: int | np.integer) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def draw_boxes(
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "boxes 4"],
    labels: Int[np.ndarray, " boxes"],
    scores: Float[np.ndarray, " boxes"],
    classes: Sequence[str],
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the picture with boxes (pixels, xyxy), class names and scores; lines and text grow with the picture."""
    if len(boxes) == 0:
        return image.copy()
    side = max(image.shape[:2])
    drawn = draw_bounding_boxes(
        torch.from_numpy(image.copy()).permute(2, 0, 1),
        torch.from_numpy(boxes),
        labels=[f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        colors=[colour(label) for label in labels],
        width=max(2, side // 250),
        font=str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"),
        font_size=max(10, side // 40),
        fill_labels=True,
    )
    return drawn.permute(1, 2, 0).numpy()


def draw_detections(
    pictures: "Pictures",
    detections: DetectionRecords,
    objects: ObjectRecords,
    classes: Sequence[str],
    count: int = 12,
    threshold: float = DRAW_THRESHOLD,
) -> Figure:
    """Pictures of a data set, evenly chosen, with the truth dashed and the detections solid."""
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int))
    figure, axes = _grid(len(chosen))
    for ax, index in zip(axes, chosen, strict=True):
        ax.imshow(pictures[int(index)].image)
        mine = objects.image_ids == index
        for box in objects.boxes[mine]:
            # Black with white dashes is seen on every ground.
            _rectangle(ax, box, "black", "solid")
            _rectangle(ax, box, "white", "dashed")
        mine = (detections.image_ids == index) & (detections.scores >= threshold)
        for box, label, score in zip(
            detections.boxes[mine], detections.labels[mine], detections.scores[mine], strict=True
        ):
            _rectangle(ax, box, colour(label), "solid", f"{classes[label - 1]} {score:.2f}")
    handles = [
        Line2D([], [], color="black", linestyle="dashed", label="truth (black and white)"),
        Line2D([], [], color=colour(1), label=f"detection, score from {threshold:g}"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_default_boxes(model: "SSD", picture: UInt8[np.ndarray, "height width 3"]) -> Figure:
    """Level by level the default boxes of a cell in the middle, over a picture; dots are the centres of all cells."""
    height, width = picture.shape[:2]
    figure, axes = _grid(len(model.grids), columns=len(model.grids))
    boxes = model.default_boxes.cpu().numpy() * (width, height, width, height)
    levels = np.split(boxes, np.cumsum(model.boxes_of_level)[:-1])
    for ax, level, (rows, columns), per_cell in zip(axes, levels, model.grids, model.boxes_per_cell, strict=True):
        cells = level.reshape(rows, columns, per_cell, 4)
        ax.imshow(picture, alpha=0.7)
        ax.scatter(cells[:, :, 0, 0], cells[:, :, 0, 1], s=24 / columns**1.1, color="white")
        for number, (x, y, w, h) in enumerate(cells[rows // 2, columns // 2]):
            edges = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            _rectangle(ax, edges, colour(number + 1), "solid")
        ax.set_title(f"{rows}×{columns} cells, {per_cell} boxes", fontsize=9)
        ax.set(xlim=(-0.12 * width, 1.12 * width), ylim=(1.12 * height, -0.12 * height))
    return figure


def draw_training_pictures(datamodule: "DetectionDataModule", count: int = 12) -> Figure:
    """The first training pictures of the first epoch as the network sees them, augmented, with their boxes."""
    dataset = datamodule.train_dataloader().dataset
    keys = list(datamodule.train_dataloader().sampler)[:count]
    figure, axes = _grid(len(keys))
    for ax, key in zip(axes, keys, strict=True):
        sample = dataset[key].sample
        ax.imshow(sample.image)
        height, width = sample.image.shape[:2]
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            _rectangle(ax, box * np.array([width, height, width, height]), colour(label), "solid")
    figure.suptitle("Training pictures, augmented", fontsize=11)
    return figure


def draw_curves(metrics: Path | str) -> Figure:
    """Losses and scores over the steps, from a run's ``metrics.csv``."""
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


STATISTICS = {
    "positives_level": "positives per picture",
    "offset_target_level": "mean |offset| from default box to object",
    "offset_error_level": "mean |error| of predicted offsets",
    "mined_negatives": "mined negatives per picture",
    "mined_negatives_loss": "mean loss of mined negatives",
    "objects": "share of objects",
}
"""Plots of the training statistics, and how they are called."""


def draw_training_statistics(metrics: Path | str) -> Figure | None:
    """The :class:`~ssd_lightning.training_statistics.TrainingStatistics` over the steps, from a run's ``metrics.csv``.

    None if there are none, as in a run with fewer steps than lie between two logged ones.
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
        ax.sharey(offsets[0])  # an error that is no smaller than the offset itself: nothing is learned yet
    for ax in axes[: len(plots)]:
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    figure.legend(handles=axes[0].lines, loc="outside upper center", ncols=len(levels), frameon=False, fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path | str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _line(ax: Axes, rows: dict[int, dict[str, float]], key: str, label: str, style: str, line_colour: str) -> None:
    points = [(step, row[key]) for step, row in rows.items() if key in row]
    if points:
        marker = "o" if len(points) < 30 else None
        ax.plot(
            *zip(*points, strict=True), label=label, linestyle=style, color=line_colour, marker=marker, markersize=3
        )


def _grid(count: int, columns: int = 4) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes[:count]


def _rectangle(ax: Axes, box: np.ndarray, line_colour: str, style: str, text: str = "") -> None:
    left, top, right, bottom = box
    ax.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, fill=False, edgecolor=line_colour, linestyle=style, linewidth=1.6
        )
    )
    if text:
        ax.text(
            left,
            max(top - 3, 0),
            text,
            fontsize=7,
            color="black",
            va="bottom" if top > 12 else "top",
            parse_math=False,  # of a class name
            bbox={"facecolor": line_colour, "edgecolor": "none", "pad": 0.8},
        )
