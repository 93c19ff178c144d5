"""A page of pictures with their boxes: first the suspicious ones, each with its reason, then typical ones."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.data.pictures import PictureError, read_picture
from ssd_lightning.drawing import (
    FEW_BOXES,
    GRID_INCHES,
    LONGEST_NAME,
    add_labels,
    add_rectangle,
    class_colour,
    line_width,
    picture_grid,
    shown_names,
)

MOST_PICTURES = 16
"""Number of pictures on a page."""

MOST_SUSPICIOUS = 10
"""Number of pictures on a page that are suspicious, if there are as many."""

SIDE = 480
"""Longest side of a picture on the page in pixels."""

MARGIN = 0.25
"""Largest part of its side by which the page shows more than a picture, for boxes that reach over its edge."""

FAULTY = "#FF0000"
"""Colour of boxes that are left out or cut because they are faulty."""

LONGEST_FILE_NAME = 30
"""Number of characters from which a file name is shortened."""


FAULTS = {
    "size": "another size",
    "class": "unknown class",
    "reversed": "reversed box",
    "empty": "empty box",
    "outside": "box outside",
    "units": "another unit",
}
"""Faults of boxes in a few words, by the kind of the finding."""


class ShownPicture(NamedTuple):
    """A picture of the page."""

    path: Path
    reason: str
    """The reason why the picture is shown."""
    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, " objects"]
    faulty: Float[np.ndarray, "faulty 4"]
    """Boxes that are left out or cut; not clipped."""


def choose_pictures(
    pictures: AnnotatedPictures, findings: Sequence[Finding] = (), most: int = MOST_PICTURES
) -> list[ShownPicture]:
    """Choose suspicious pictures and evenly spaced other ones.

    Args:
        pictures: one split of a data set.
        findings: findings and remarks. A picture whose path is at the beginning of a text is suspicious.
        most: largest number of pictures.
    """
    nothing = np.zeros((0, 4), dtype=np.float32)
    chosen = {
        left_out.path: ShownPicture(
            left_out.path, f"faulty: {FAULTS[left_out.kind]}", nothing, np.zeros(0, dtype=np.int64), left_out.boxes
        )
        for left_out in pictures.left_out[: MOST_SUSPICIOUS // 2]
    }
    suspicious = list(_suspicious(pictures, findings))
    row_of = {path: row for row, path in enumerate(pictures.paths)}
    for path, own in chosen.items():
        if path in row_of:
            truth = pictures.truth(row_of[path])
            chosen[path] = own._replace(boxes=truth.boxes, labels=truth.labels)
    others = np.linspace(0, len(pictures) - 1, min(most, len(pictures))).round().astype(int).tolist()
    for row, reason in [*suspicious, *((row, "") for row in others)]:
        path = pictures.paths[row]
        is_full = len(chosen) >= (MOST_SUSPICIOUS if reason else most)
        if path in chosen or is_full:
            continue
        truth = pictures.truth(row)
        chosen[path] = ShownPicture(path, reason, truth.boxes, truth.labels, nothing)
    return list(chosen.values())


def _suspicious(pictures: AnnotatedPictures, findings: Sequence[Finding]) -> Iterator[tuple[int, str]]:
    """Yield rows of suspicious pictures, and the reason."""
    row_of = {str(path): row for row, path in enumerate(pictures.paths)}
    kinds: dict[str, int] = {}
    for kind, text in findings:
        row = next((row_of[start] for start in _beginnings(text) if start in row_of), None)
        if row is not None and kinds.get(kind, 0) < 2:
            kinds[kind] = kinds.get(kind, 0) + 1
            yield row, f"finding: {kind}"
    if len(pictures.boxes):
        row_of_object = np.repeat(np.arange(len(pictures)), pictures.counts)
        sides = (pictures.boxes[:, 2:] - pictures.boxes[:, :2]) * pictures.sizes[row_of_object][:, ::-1]
        areas = (pictures.boxes[:, 2:] - pictures.boxes[:, :2]).prod(axis=1)
        small, large = int(sides.prod(axis=1).argmin()), int(areas.argmax())
        long = int(np.abs(np.log(sides[:, 0] / sides[:, 1])).argmax())
        crowded = int(pictures.counts.argmax())
        yield int(row_of_object[small]), f"smallest: {sides[small, 0]:.0f}×{sides[small, 1]:.0f} pixels"
        yield int(row_of_object[large]), f"largest: {areas[large]:.0%} of the picture"
        yield int(row_of_object[long]), f"longest: {sides[long].max() / sides[long].min():.1f} to 1"
        yield crowded, f"most objects: {pictures.counts[crowded]}"
    for row in np.flatnonzero(pictures.counts == 0)[:2].tolist():
        yield row, "no objects"


def _beginnings(text: str) -> Iterator[str]:
    """Yield the possible paths at the beginning of a text, the longest first."""
    end = len(text)
    while end > 0:
        end = max(text.rfind(" ", 0, end), text.rfind(":", 0, end), text.rfind(",", 0, end))
        if end > 0:
            yield text[:end]


def draw_pictures(shown: Sequence[ShownPicture], classes: Sequence[str], max_megapixels: float | None = None) -> Figure:
    """Draw pictures with their boxes. Faulty boxes are dashed and red, also outside of their picture."""
    names, families = shown_names(classes, LONGEST_NAME)
    figure, axes = picture_grid(len(shown))
    for ax, picture in zip(axes, shown, strict=True):
        name = picture.path.name
        short = name if len(name) <= LONGEST_FILE_NAME else f"{name[:14]}…{name[-15:]}"
        title = os.fsencode(short).decode("utf-8", "replace")
        (title,), fonts = shown_names([title], LONGEST_FILE_NAME, noun=None)
        ax.set_title("\n".join(filter(None, (title, picture.reason))), fontsize=7, fontfamily=fonts, parse_math=False)
        try:
            image = Image.fromarray(read_picture(picture.path, (SIDE, SIDE), max_megapixels))
        except PictureError:
            ax.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=8, transform=ax.transAxes)
            continue
        image.thumbnail((SIDE, SIDE))
        ax.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
        _draw_boxes(ax, picture, (image.height, image.width), names, families)
    return figure


def _draw_boxes(
    ax: Axes, picture: ShownPicture, size: tuple[int, int], names: Sequence[str], families: Sequence[str]
) -> None:
    height, width = size
    scale = np.array([width, height, width, height])
    boxes, faulty = picture.boxes * scale, np.nan_to_num(picture.faulty) * scale
    colours = [class_colour(label) for label in picture.labels]
    for box, colour in zip(boxes, colours, strict=True):
        add_rectangle(ax, box, colour, "solid", line_width(len(boxes)))
    for box in faulty:
        add_rectangle(ax, box, FAULTY, "dashed", line_width(len(faulty)))
    texts = [names[label - 1] for label in picture.labels]
    if len(boxes) <= 2 * FEW_BOXES:
        add_labels(ax, boxes, texts, colours, families, size, GRID_INCHES, faulty)
    edges = np.concatenate((faulty.reshape(-1, 2), [[0, 0], [width, height]]))
    (left, top), (right, bottom) = edges.min(axis=0), edges.max(axis=0)
    ax.set_xlim(max(left, -MARGIN * width), min(right, (1 + MARGIN) * width))
    ax.set_ylim(min(bottom, (1 + MARGIN) * height), max(top, -MARGIN * height))
