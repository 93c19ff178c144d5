"""Shared parts of all figures: colours, sizes, class names, grids of pictures, and boxes on pictures.

Figures are made without pyplot, so that no window opens and a notebook keeps its backend.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torchvision.utils import draw_bounding_boxes

from ssd_lightning.structures import DRAW_THRESHOLD, DetectionRecords, ObjectRecords

if TYPE_CHECKING:
    from ssd_lightning.data.datamodule import Pictures

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's palette, which colour-blind people can distinguish."""

WIDTH = 10.0
"""Width of a figure in inches."""

LONGEST_NAME = 20
"""Number of characters from which a figure shortens a class name."""

MOST_WITH_NUMBERS = 25
"""Largest number of classes for which a matrix has room for numbers."""


def class_colour(label: int | np.integer) -> str:
    """Return the colour of class ``label``, counted from 1; colours repeat after the last one."""
    return COLOURS[(label - 1) % len(COLOURS)]


def shown_names(names: Sequence[str], longest: int) -> tuple[list[str], list[str]]:
    """Return class names as a figure shows them, and the font families that can write them.

    Long names are shortened in the middle, because many share a beginning or an end. A name with a letter that no
    installed font has becomes "class n", where n counts from 1.
    """
    plain = [" ".join(str(name).split()) for name in names]
    families = ["DejaVu Sans"]  # Comes with matplotlib.
    missing = {letter for letter in "".join(plain) if ord(letter) not in get_font(findfont(families[0])).get_charmap()}
    for entry in fontManager.ttflist if missing else ():
        # The font "Last Resort" has an empty frame for every letter, so it would hide what is missing.
        if missing and not entry.name.startswith("Last Resort"):
            font = get_font(entry.fname)
            found = {letter for letter in missing if font.scalable and ord(letter) in font.get_charmap()}
            if found:
                families.append(entry.name)
                missing -= found
    readable = [f"class {n}" if missing & set(name) else name for n, name in enumerate(plain, start=1)]
    tail = longest // 3
    short = [n if len(n) <= longest else f"{n[: longest - 1 - tail]}…{n[-tail:]}" for n in readable]
    return short, families


def picture_grid(count: int, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Create a figure with one empty axis per picture, in rows of at most ``columns``."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes[:count]


def add_rectangle(ax: Axes, box: np.ndarray, line_colour: str, style: str, text: str = "") -> None:
    """Draw the outline of a box (xyxy, in units of the axis), with an optional text at its upper left corner."""
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
            parse_math=False,  # A class name may contain dollar signs.
            bbox={"facecolor": line_colour, "edgecolor": "none", "pad": 0.8},
        )


def add_object(ax: Axes, box: np.ndarray) -> None:
    """Draw the box of an annotated object, in white dashes on black, which are visible on every background."""
    add_rectangle(ax, box, "black", "solid")
    add_rectangle(ax, box, "white", "dashed")


def draw_boxes(
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "boxes 4"],
    labels: Int[np.ndarray, " boxes"],
    scores: Float[np.ndarray, " boxes"],
    classes: Sequence[str],
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a copy of the picture with boxes (xyxy, pixels), class names and scores.

    Lines and text scale with the picture.
    """
    if len(boxes) == 0:
        return image.copy()
    side = max(image.shape[:2])
    drawn = draw_bounding_boxes(
        torch.from_numpy(image.copy()).permute(2, 0, 1),
        torch.from_numpy(boxes),
        labels=[f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        colors=[class_colour(label) for label in labels],
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
    """Draw evenly chosen pictures of a data set, with annotated objects dashed and detections solid.

    Args:
        pictures: the data set.
        detections: detections on it, with boxes in pixels.
        objects: annotated objects, with boxes in pixels.
        classes: class names, without background.
        count: largest number of pictures.
        threshold: lowest score of a detection that is drawn.
    """
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int))
    figure, axes = picture_grid(len(chosen))
    for ax, index in zip(axes, chosen, strict=True):
        ax.imshow(pictures[int(index)].image)
        for box in objects.boxes[objects.image_ids == index]:
            add_object(ax, box)
        mine = (detections.image_ids == index) & (detections.scores >= threshold)
        for box, label, score in zip(
            detections.boxes[mine], detections.labels[mine], detections.scores[mine], strict=True
        ):
            add_rectangle(ax, box, class_colour(label), "solid", f"{classes[label - 1]} {score:.2f}")
    handles = [
        Line2D([], [], color="black", linestyle="dashed", label="truth (black and white)"),
        Line2D([], [], color=class_colour(1), label=f"detection, score from {threshold:g}"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure to a file, and create its folder if necessary."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
