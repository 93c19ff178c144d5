"""Figures of errors: the cost of each cause, and the pictures with the most errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ssd_lightning.drawing import (
    COLOURS,
    LONGEST_NAME,
    WIDTH,
    add_labels,
    add_object,
    add_rectangle,
    line_width,
    shown_names,
)
from ssd_lightning.records import BACKGROUND, DRAW_THRESHOLD, DetectionRecords, ObjectRecords, select
from ssd_lightning.scoring.errors import (
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    FALSE_DETECTIONS,
    LOCALISATION,
    MISSED,
    MISSES,
    SHORT_NAMES,
    TRUE,
    Errors,
    find_errors,
)

if TYPE_CHECKING:
    from ssd_lightning.data.data_set import Pictures

CAUSE_COLOURS = {
    TRUE: COLOURS[2],
    CLASSIFICATION: COLOURS[6],
    LOCALISATION: COLOURS[1],
    BOTH: COLOURS[4],
    DUPLICATE: COLOURS[0],
    BACKGROUND: COLOURS[5],
    MISSED: COLOURS[3],
}

OTHER_COLOUR = "0.5"
"""Colour of detections that are neither found nor false."""

PICTURE_INCHES = 3.0
"""Side of a picture in inches."""

LONGEST_FILE_NAME = 32


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
        detections: detections of a data set.
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
    # The legend needs the width of two pictures.
    figure = Figure(figsize=(WIDTH / 3 * max(columns, 2), 3.35 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    if not len(worst):
        axes[0, 0].text(0.5, 0.5, "no picture has an error", ha="center", fontsize=10)
    for ax, index in zip(axes.flat, worst.tolist(), strict=False):
        image = pictures.image(index)
        ax.imshow(image)
        truth = np.flatnonzero(objects.image_ids == index)
        mine = np.flatnonzero(seen.image_ids == index)
        mine = mine[np.argsort(-seen.scores[mine], kind="stable")]
        width = line_width(max(len(truth), len(mine)))
        for box, is_not_found in zip(objects.boxes[truth], errors.is_not_found[truth], strict=True):
            if is_not_found:
                # A band around the outline leaves the object itself visible.
                add_rectangle(ax, box, "black", "solid", 3.6 * width)
                add_rectangle(ax, box, CAUSE_COLOURS[MISSED], "solid", 2.8 * width)
            add_object(ax, box, 0.8 * width)
        causes = [str(cause) for cause in errors.detection_causes[mine]]
        colours = [CAUSE_COLOURS.get(cause, OTHER_COLOUR) for cause in causes]
        # The best detections are drawn last, on top.
        for box, colour in zip(seen.boxes[mine][::-1], colours[::-1], strict=True):
            add_rectangle(ax, box, colour, "solid", width)
        parts = zip(seen.labels[mine], seen.scores[mine], causes, strict=True)
        texts = [f"{names[n - 1]} {score:.2f} {SHORT_NAMES.get(cause, '')}".strip() for n, score, cause in parts]
        add_labels(
            ax, seen.boxes[mine], texts, colours, families, image.shape[:2], PICTURE_INCHES, objects.boxes[truth]
        )
        [name], title_families = shown_names([pictures.paths[index].name], LONGEST_FILE_NAME, noun=None)
        ax.set_title(f"{name}  ({weights[index]:.1f})", fontsize=8, fontfamily=title_families, parse_math=False)
    handles: list[Line2D | Patch] = [Line2D([], [], color=CAUSE_COLOURS[TRUE], linewidth=2, label="found")]
    for cause, short in SHORT_NAMES.items():
        label = cause if cause == short else f"{cause} ({short})"
        handles.append(Line2D([], [], color=CAUSE_COLOURS[cause], linewidth=2, label=label))
    handles += [
        Line2D([], [], color="black", linestyle="dashed", label="truth (black and white)"),
        Patch(facecolor="none", edgecolor=CAUSE_COLOURS[MISSED], linewidth=3, label="… not found (broad outline)"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.supxlabel(
        f"Numbers: scores of the false detections (from {score_threshold:g}) plus 1 for each object not found",
        fontsize=8,
    )
    return figure
