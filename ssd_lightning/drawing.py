"""Shared parts of all figures: colours, sizes, class names, grids of pictures, and boxes on pictures.

Figures are made without pyplot, so that no window opens and a notebook keeps its backend.
"""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontPath, findfont, fontManager, get_font
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from ssd_lightning.records import DRAW_THRESHOLD, DetectionRecords, ObjectRecords
from ssd_lightning.run_folder import naming, written_whole

if TYPE_CHECKING:
    from ssd_lightning.data.data_set import Pictures

logger = logging.getLogger(__name__)

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Okabe and Ito's palette, which colour-blind people can distinguish."""

WIDTH = 10.0
"""Width of a figure in inches."""

SMOOTHED_SHARE = 0.05
"""Share of the logged steps that a running mean covers."""

LONGEST_NAME = 20
"""Number of characters from which a figure shortens a class name."""

MOST_WITH_NUMBERS = 25
"""Largest number of classes for which a matrix has room for numbers."""


DEFAULT_FAMILY = "DejaVu Sans"
"""The font that comes with matplotlib."""

NORMAL_WEIGHT = 400
"""Weight of letters that are neither light nor bold."""

GRID_INCHES = 2.35
"""Side of a picture in a grid of pictures, in inches."""

FEW_BOXES = 20
"""Largest number of boxes on a picture with thick outlines and large labels."""

MOST_HIDDEN = 0.1
"""Largest share of a box that a label may cover."""

LABEL_PAD = 0.8
"""Space around the text of a label in points."""


def class_colour(label: int | np.integer) -> str:
    """Return the colour of class ``label``, counted from 1; colours repeat after the last one."""
    return COLOURS[(label - 1) % len(COLOURS)]


class Font(NamedTuple):
    """An installed font."""

    family: str
    file: FontPath


def shown_names(names: Sequence[str], longest: int, noun: str | None = "class") -> tuple[list[str], list[str]]:
    """Return names as a figure shows them, and the font families that can write them.

    Long names are shortened in the middle, because many share a beginning or an end. A name that no installed font can
    write becomes "class n", where n counts from 1; a warning is logged once.

    Args:
        names: names in any script.
        longest: number of characters from which a name is shortened.
        noun: word that replaces a name that cannot be written; None escapes the letters of the name instead.
    """
    plain = [" ".join(str(name).split()) for name in names]
    fonts = [_font_of(name) for name in plain]
    unwritten = tuple(name for name, font in zip(plain, fonts, strict=True) if font is None)
    if unwritten and noun:
        _warn(unwritten, noun)
    readable = [
        name if font else f"{noun} {n}" if noun else name.encode("ascii", "backslashreplace").decode()
        for n, (name, font) in enumerate(zip(plain, fonts, strict=True), start=1)
    ]
    tail = longest // 3
    short = [n if len(n) <= longest else f"{n[: longest - 1 - tail]}…{n[-tail:]}" for n in readable]
    return short, list(dict.fromkeys([DEFAULT_FAMILY, *(font.family for font in fonts if font)]))


@lru_cache(maxsize=1024)
def _font_of(text: str) -> Font | None:
    """Return the first font that has all letters of a text and those of a score; None without such a font."""
    needed = set(text) | set("0123456789. …")
    for font in _installed_fonts():
        if needed <= _letters(font.file):
            return font
    return None


@cache
def _installed_fonts() -> tuple[Font, ...]:
    """Return a font of each installed family, matplotlib's own first, then those of normal weight."""
    entries = sorted(fontManager.ttflist, key=lambda entry: (entry.weight != NORMAL_WEIGHT, entry.style, entry.name))
    # The font "Last Resort" has an empty frame for every letter, so it would hide what is missing.
    fonts = {entry.name: FontPath(entry.fname, entry.index) for entry in entries if "Last Resort" not in entry.name}
    own = Font(DEFAULT_FAMILY, findfont(DEFAULT_FAMILY))
    return (own, *(Font(family, file) for family, file in fonts.items() if family != DEFAULT_FAMILY))


@cache
def _letters(file: FontPath) -> frozenset[str]:
    font = get_font(file)
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()


@cache
def _warn(unwritten: tuple[str, ...], noun: str) -> None:
    logger.warning(
        "names: expected letters that one installed font has, got %s. Figures show the word %s and a number instead. "
        "Try installing a font for this script, such as Noto Sans.",
        ", ".join(map(repr, unwritten)),
        noun,
    )


def text_size(text: str, points: float) -> tuple[float, float]:
    """Return width and height of a line of text, in the unit of ``points``, the size of the font."""
    font = _font_of(text) or _font_of("")
    assert font is not None
    scale = points / 100
    measure = _pillow_font(font, 100)
    return scale * measure.getlength(text), scale * sum(measure.getmetrics())


@cache
def _pillow_font(font: Font, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font.file), size, index=font.file.face_index)


def place_labels(
    boxes: Float[np.ndarray, "boxes 4"],
    sizes: Float[np.ndarray, "boxes 2"],
    picture_size: tuple[float, float],
    others: Float[np.ndarray, "others 4"] | None = None,
) -> list[tuple[float, float] | None]:
    """Find the upper left corner of the label of each box; None where no place is free.

    A label lies at its box, inside the picture, on no other label, and hides at most a tenth of any box. The first
    boxes choose first.

    Args:
        boxes: xyxy, in pixels.
        sizes: width and height of each label in pixels.
        picture_size: height and width in pixels.
        others: further boxes that must stay visible.
    """
    height, width = picture_size
    drawn = boxes if others is None else np.concatenate((boxes, others))
    areas = np.maximum((drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1]), 1e-6)
    places: list[tuple[float, float] | None] = []
    taken = np.zeros((0, 4))
    for (left, top, right, bottom), (w, h) in zip(boxes.tolist(), sizes.tolist(), strict=True):
        columns = [min(max(x, 0), width - w) for x in (left, right - w)]
        corners = [(x, y) for y in (top - h, bottom) for x in columns]
        corners += [(x, y) for y in (top, bottom - h) for x in (right, left - w, *columns)]
        edges = np.array([(x, y, x + w, y + h) for x, y in corners])
        is_inside = (edges.min(axis=1) >= 0) & (edges[:, 2] <= width) & (edges[:, 3] <= height)
        is_free = is_inside & (_overlaps(edges, drawn) <= MOST_HIDDEN * areas).all(axis=1)
        is_free &= (_overlaps(edges, taken) == 0).all(axis=1)
        if is_free.any():
            place = int(is_free.argmax())
            taken = np.concatenate((taken, edges[place : place + 1]))
            places.append(corners[place])
        else:
            places.append(None)
    return places


def _overlaps(a: Float[np.ndarray, "a 4"], b: Float[np.ndarray, "b 4"]) -> Float[np.ndarray, "a b"]:
    """Return the area that each pair of boxes shares."""
    shared = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.maximum(shared, 0).prod(axis=2)


def add_labels(
    ax: Axes,
    boxes: Float[np.ndarray, "boxes 4"],
    texts: Sequence[str],
    colours: Sequence[str],
    families: Sequence[str],
    picture_size: tuple[int, int],
    inches: float,
    others: Float[np.ndarray, "others 4"] | None = None,
) -> None:
    """Write labels at the boxes of a picture where there is room, the first ones first.

    Args:
        ax: shows the picture, with pixels as its unit.
        boxes: xyxy, in pixels.
        texts: a text for each box.
        colours: background of each text.
        families: font families from :func:`shown_names`.
        picture_size: height and width in pixels.
        inches: width and height of the axis in the figure.
        others: further boxes that must stay visible.
    """
    points = 7.0 if len(boxes) <= FEW_BOXES else 5.0
    pixels_per_point = max(picture_size) / (72 * inches)
    sizes = np.array([text_size(text, points) for text in texts]).reshape(-1, 2) + 2 * LABEL_PAD
    places = place_labels(boxes, sizes * pixels_per_point, picture_size, others)
    pad = LABEL_PAD * pixels_per_point
    for text, colour, place in zip(texts, colours, places, strict=True):
        if place is not None:
            ax.text(
                place[0] + pad,
                place[1] + pad,
                text,
                fontsize=points,
                fontfamily=list(families),
                color=_text_colour(colour),
                va="top",
                clip_on=True,
                parse_math=False,  # A class name may contain dollar signs.
                bbox={"facecolor": colour, "edgecolor": "none", "pad": LABEL_PAD},
            )


def _text_colour(background: str) -> str:
    """Return black or white, whichever is easier to read on a colour."""
    red, green, blue = to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"


def line_width(count: int) -> float:
    """Return the width, in points, of the outlines of ``count`` boxes on a picture; many boxes have thin ones."""
    return 1.6 if count <= FEW_BOXES else 0.8


def legend_above(ax: Axes, **settings: Any) -> Legend:
    """Add a legend above an axis, where it covers no data."""
    defaults = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "fontsize": 8, "borderaxespad": 0.2}
    return ax.legend(**(defaults | settings))


def score_limits(values: Float[np.ndarray, " values"]) -> tuple[float, float]:
    """Return limits of an axis of scores (0 … 1) that are close to the values; (0, 1) without a finite value."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = max(0.08 * (high - low), 0.005)
    return max(low - margin, min(low, -0.02 * high)), min(high + margin, max(high, 1.02))


def picture_grid(count: int, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Create a figure with one empty axis per picture, in rows of at most ``columns``."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes[:count]


def add_rectangle(ax: Axes, box: np.ndarray, line_colour: str, style: str, width: float = 1.6) -> None:
    """Draw the outline of a box (xyxy, in units of the axis); ``width`` is in points."""
    left, top, right, bottom = box
    ax.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, fill=False, edgecolor=line_colour, linestyle=style, linewidth=width
        )
    )


def add_object(ax: Axes, box: np.ndarray, width: float = 1.6) -> None:
    """Draw the box of an annotated object, in white dashes on black, which are visible on every background."""
    add_rectangle(ax, box, "black", "solid", width)
    add_rectangle(ax, box, "white", "dashed", width)


def draw_boxes(
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "boxes 4"],
    labels: Int[np.ndarray, " boxes"],
    scores: Float[np.ndarray, " boxes"],
    classes: Sequence[str],
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a copy of the picture with boxes (xyxy, pixels), and class names and scores where there is room.

    Lines and text scale with the picture; of many boxes they are smaller. The best detections are drawn on top.
    """
    side = max(image.shape[:2])
    is_dense = len(boxes) > FEW_BOXES
    points = max(10, side // (55 if is_dense else 40))
    names, _ = shown_names(classes, LONGEST_NAME)
    texts = [f"{names[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    canvas = Image.fromarray(image.copy())
    draw = ImageDraw.Draw(canvas)
    order = np.argsort(scores, kind="stable")
    for row in order:
        edges = [int(edge) for edge in boxes[row]]
        draw.rectangle(edges, outline=class_colour(labels[row]), width=max(1 if is_dense else 2, side // 250))
    best_first = order[::-1]
    sizes = np.array([text_size(texts[row], points) for row in best_first]).reshape(-1, 2) + np.array([4, 0])
    places = place_labels(boxes[best_first], sizes, image.shape[:2])
    for row, (width, height), place in zip(best_first, sizes, places, strict=True):
        if place is not None:
            colour = class_colour(labels[row])
            x, y = place
            font = _font_of(texts[row])
            assert font is not None
            draw.rectangle((x, y, x + width, y + height), fill=colour)
            draw.text((x + 2, y), texts[row], fill=_text_colour(colour), font=_pillow_font(font, points))
    return np.array(canvas)


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
    names, families = shown_names(classes, LONGEST_NAME)
    figure, axes = picture_grid(len(chosen))
    drawn_colours: dict[str, None] = {}
    for ax, index in zip(axes, chosen, strict=True):
        image = pictures[int(index)].image
        ax.imshow(image)
        truth = objects.boxes[objects.image_ids == index]
        mine = np.flatnonzero((detections.image_ids == index) & (detections.scores >= threshold))
        mine = mine[np.argsort(-detections.scores[mine], kind="stable")]
        boxes, labels, scores = detections.boxes[mine], detections.labels[mine], detections.scores[mine]
        colours = [class_colour(label) for label in labels]
        width = line_width(max(len(truth), len(boxes)))
        for box in truth:
            add_object(ax, box, width)
        # The best detections are drawn last, on top.
        for box, colour in zip(boxes[::-1], colours[::-1], strict=True):
            add_rectangle(ax, box, colour, "solid", width)
        texts = [f"{names[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        add_labels(ax, boxes, texts, colours, families, image.shape[:2], GRID_INCHES, truth)
        drawn_colours |= dict.fromkeys(colours)
    # The legend shows colours that are drawn; without a detection, it shows none.
    lines = tuple(Line2D([], [], color=colour) for colour in list(drawn_colours)[:3])
    about = f"detection, score from {threshold:g}" if lines else f"no detection has a score from {threshold:g}"
    figure.legend(
        handles=[
            Line2D([], [], color="black", linestyle="dashed"),
            lines or (Line2D([], [], color="none"),),
        ],
        labels=["truth (black and white)", about],
        handler_map={tuple: HandlerTuple(ndivide=None)},
        handlelength=3,
        loc="outside upper center",
        ncols=2 if len(chosen) > 1 else 1,
        frameon=False,
    )
    return figure


def smoothing_window(points: int) -> int:
    """Return the number of logged steps that a running mean covers."""
    return max(1, round(SMOOTHED_SHARE * points))


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last ``window`` values at each value; values that are not finite are left out of means."""
    if window == 1:
        return list(values)
    import pandas as pd

    finite = pd.Series(values, dtype=float).replace([np.inf, -np.inf], np.nan)
    return finite.rolling(window, min_periods=1).mean().tolist()


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure to a file, as a whole or not at all, and create its folder if necessary."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)
