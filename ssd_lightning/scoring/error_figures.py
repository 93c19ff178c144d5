"""Figures of errors: the cost of each cause, and the pictures with the most errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ssd_lightning.drawing import COLOURS, LONGEST_NAME, WIDTH, shown_names
from ssd_lightning.scoring.errors import (
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    FALSE_DETECTIONS,
    LOCALISATION,
    MISSED,
    MISSES,
    TRUE,
    Errors,
    find_errors,
)
from ssd_lightning.structures import BACKGROUND, DRAW_THRESHOLD, DetectionRecords, ObjectRecords, select

if TYPE_CHECKING:
    from ssd_lightning.data.datamodule import Pictures

CAUSE_COLOURS = {
    TRUE: COLOURS[2],
    CLASSIFICATION: COLOURS[6],
    LOCALISATION: COLOURS[1],
    BOTH: COLOURS[4],
    DUPLICATE: COLOURS[0],
    BACKGROUND: COLOURS[5],
    MISSED: COLOURS[3],
}

SHORT_NAMES = {CLASSIFICATION: "cls", LOCALISATION: "loc", BOTH: "both", DUPLICATE: "dup", BACKGROUND: "bkg"}
"""Names of causes for places with little room."""


def draw_error_costs(costs: pd.DataFrame, score_threshold: float = DRAW_THRESHOLD) -> Figure:
    """Draw the table of :func:`ssd_lightning.scoring.cost_in_ap`: the cost of each cause and its number of errors."""
    figure = Figure(figsize=(0.75 * WIDTH, 3.4), layout="constrained")
    ax = figure.subplots()
    colours = [CAUSE_COLOURS.get(str(cause), "0.6") for cause in costs.index]
    places = np.arange(len(costs)) + 0.4 * np.isin(costs.index, (FALSE_DETECTIONS, MISSES))
    ax.barh(places, costs["cost"], height=0.65, color=colours, edgecolor="0.3", linewidth=0.5)
    most = max(float(costs["cost"].max()), 1e-3) if costs["cost"].notna().any() else 1.0
    columns = {
        1.12: ("cost", [f"{cost:.3f}" for cost in costs["cost"]]),
        1.34: (f"errors\nscore ≥ {score_threshold:g}", [f"{count}" for count in costs["errors shown"]]),
        1.55: ("errors\nall scores", [f"{count}" for count in costs["errors"]]),
    }
    for x, (title, texts) in columns.items():
        ax.text(x * most, -0.75, title, fontsize=9, ha="right", va="bottom")
        for place, text in zip(places, texts, strict=True):
            ax.text(x * most, place, text, fontsize=9, ha="right", va="center")
    ax.set_yticks(places, [str(cause) for cause in costs.index], fontsize=9)
    ax.set(xlim=(0, 1.56 * most), ylim=(places[-1] + 0.6, -1.7))
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1.001 * most])
    now = float((costs["mended"] - costs["cost"]).iloc[0])
    ax.set_xlabel(f"gain in AP (now {now:.3f}) if this cause alone were corrected", x=0.5 / 1.56)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, most)
    return figure


def picture_weights(
    detections: DetectionRecords,
    objects: ObjectRecords,
    num_classes: int,
    pictures: int,
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Float[np.ndarray, " pictures"]:
    """Weigh the errors of each picture: a false detection weighs its score, an object that is not found weighs 1.

    Args:
        detections: of a data set.
        objects: the truth.
        num_classes: without background.
        pictures: number of pictures.
        iou_threshold: lowest IoU at which a detection finds an object.
        score_threshold: lowest score of the detections that are used.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.find_errors`.
    """
    seen = select(detections, detections.scores >= score_threshold)
    return _weights(seen, objects, find_errors(seen, objects, num_classes, iou_threshold), pictures)


def _weights(
    seen: DetectionRecords, objects: ObjectRecords, errors: Errors, pictures: int
) -> Float[np.ndarray, " pictures"]:
    weights = np.zeros(pictures)
    np.add.at(weights, seen.image_ids[errors.is_false], seen.scores[errors.is_false])
    np.add.at(weights, objects.image_ids[errors.is_not_found], 1)
    return weights


def draw_worst_pictures(
    pictures: "Pictures",
    detections: DetectionRecords,
    objects: ObjectRecords,
    classes: Sequence[str],
    count: int = 9,
    iou_threshold: float = 0.5,
    score_threshold: float = DRAW_THRESHOLD,
) -> Figure:
    """Draw the pictures with the most errors, the worst first, with their truth and their detections by cause.

    The number above a picture is its weight of errors, see :func:`picture_weights`.

    Args:
        pictures: the data set that ``image_ids`` are positions in.
        detections: boxes in pixels of the pictures.
        objects: the truth.
        classes: names; the class of label n is at n - 1.
        count: highest number of pictures. Pictures without errors are not drawn.
        iou_threshold: lowest IoU at which a detection finds an object.
        score_threshold: lowest score of the detections that are used.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.find_errors`.
    """
    seen = select(detections, detections.scores >= score_threshold)
    errors = find_errors(seen, objects, len(classes), iou_threshold)
    weights = _weights(seen, objects, errors, len(pictures))
    worst = np.argsort(-weights, kind="stable")[:count]
    worst = worst[weights[worst] > 0]
    names, families = shown_names(classes, LONGEST_NAME)

    columns = min(3, max(len(worst), 1))
    rows = max(-(-len(worst) // columns), 1)
    figure = Figure(figsize=(WIDTH / 3 * columns, 3.35 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    if not len(worst):
        axes[0, 0].text(0.5, 0.5, "no picture has an error", ha="center", fontsize=10)
    for ax, index in zip(axes.flat, worst.tolist(), strict=False):
        image = pictures.image(index)
        ax.imshow(image)
        mine = np.flatnonzero(objects.image_ids == index)
        _draw_objects(ax, objects.boxes[mine], errors.is_not_found[mine])
        mine = np.flatnonzero(seen.image_ids == index)
        # The best detections are drawn last, on top.
        for row in mine[np.argsort(seen.scores[mine], kind="stable")]:
            cause = str(errors.detection_causes[row])
            text = f"{names[seen.labels[row] - 1]} {seen.scores[row]:.2f}"
            _draw_detection(ax, seen.boxes[row], cause, text, families, image.shape[0])
        name = pictures.paths[index].name
        ax.set_title(
            f"{name if len(name) <= 32 else '…' + name[-31:]}  ({weights[index]:.1f})", fontsize=8, parse_math=False
        )
    handles: list[Line2D | Patch] = [Line2D([], [], color=CAUSE_COLOURS[TRUE], linewidth=2, label="found")]
    for cause, short in SHORT_NAMES.items():
        label = cause if cause == short else f"{cause} ({short})"
        handles.append(Line2D([], [], color=CAUSE_COLOURS[cause], linewidth=2, label=label))
    handles += [
        Line2D([], [], color="black", linestyle="dashed", label="truth (black and white)"),
        Patch(facecolor="none", edgecolor="black", hatch="////", label="… not found (hatched)"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.supxlabel(
        f"Numbers: scores of the false detections (from {score_threshold:g}) plus 1 for each object not found",
        fontsize=8,
    )
    return figure


def _draw_objects(ax: Axes, boxes: Float[np.ndarray, "objects 4"], is_not_found: Bool[np.ndarray, " objects"]) -> None:
    for (left, top, right, bottom), is_hatched in zip(boxes, is_not_found, strict=True):
        corner, width, height = (left, top), right - left, bottom - top
        if is_hatched:
            ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="black", hatch="//", linewidth=0))
            ax.add_patch(Rectangle(corner, width, height, color=CAUSE_COLOURS[MISSED], alpha=0.25, linewidth=0))
        # White dashes on black are visible on every background.
        for colour, style in (("black", "solid"), ("white", "dashed")):
            ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linestyle=style, linewidth=1.3))


def _draw_detection(
    ax: Axes, box: Float[np.ndarray, "4"], cause: str, text: str, families: list[str], image_height: int
) -> None:
    left, top, right, bottom = box
    colour = CAUSE_COLOURS.get(cause, "0.5")
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.8))
    has_room_above = top > 0.05 * image_height
    ax.text(
        left,
        top,
        f"{text} {SHORT_NAMES[cause]}" if cause in SHORT_NAMES else text,
        fontsize=6.5,
        fontfamily=families,
        parse_math=False,
        color="white" if cause in (BOTH, BACKGROUND, TRUE) else "black",
        va="bottom" if has_room_above else "top",
        clip_on=True,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )
