"""Which part of a picture is seen: cropped, from nearer, from farther away.

A window is decided from the picture's size and boxes alone, before it is decoded. Windows can be nested and can reach
beyond the picture, so that zooming in and out cost nothing.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.structures import Truth


class Window(NamedTuple):
    """The part of a picture that is seen, in fractions of the picture; below 0 and above 1 it shows the fill colour."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Window(0.0, 0.0, 1.0, 1.0)

WindowSampler = Callable[[Truth, np.random.Generator], Window]


class ZoomIn:
    """A window of the picture's own shape around one of its objects, or anywhere if it has none.

    Args:
        probability: of zooming at all.
        largest: the picture appears up to this many times larger; the factor is uniform in its logarithm. An object is
            never cut: the factor is reduced to what its box allows.
    """

    def __init__(self, probability: float = 0.5, largest: float = 3.0) -> None:
        _check_zoom(probability, largest)
        self.probability = probability
        self.largest = largest

    def __call__(self, truth: Truth, rng: np.random.Generator) -> Window:
        if rng.random() >= self.probability:
            return WHOLE
        side = float(np.exp(-rng.uniform(0, np.log(self.largest))))
        if len(truth.boxes) == 0:
            left, top = rng.uniform(0, 1 - side, size=2)
        else:
            box = truth.boxes[rng.integers(len(truth.boxes))].astype(np.float64)
            side = max(side, float((box[2:] - box[:2]).max()))
            last = np.clip(box[:2], 0, 1 - side)
            # Where the box fills the window there is one place for it, and rounding must not put the first after it.
            first = np.minimum(np.clip(box[2:] - side, 0, 1 - side), last)
            left, top = rng.uniform(first, last)
        return Window(float(left), float(top), float(left + side), float(top + side))


class ZoomOut:
    """The picture anywhere on a larger canvas of its own shape: small objects, of which the paper had too few (3.6).

    Args:
        probability: of zooming at all.
        largest: the canvas is up to this many times as wide and as high as the picture; the factor is uniform.
    """

    def __init__(self, probability: float = 0.5, largest: float = 4.0) -> None:
        _check_zoom(probability, largest)
        self.probability = probability
        self.largest = largest

    def __call__(self, truth: Truth, rng: np.random.Generator) -> Window:
        if rng.random() >= self.probability:
            return WHOLE
        side = rng.uniform(1, self.largest)
        left, top = -(side - 1) * rng.random(2)
        return Window(float(left), float(top), float(left + side), float(top + side))


def _check_zoom(probability: float, largest: float) -> None:
    require_number("probability", probability, "[0, 1]")
    require_number("largest", largest, "[1, inf)")


class MinIoUCrop:
    """A crop that overlaps at least one object enough, or the whole picture: section 2.2, "Data augmentation".

    One of ``min_ious`` or the whole picture is drawn, each as likely as the others. Then up to ``trials`` crops are
    drawn, and the first is taken in whose inside lies the centre of an object with at least this IoU between the
    object's box and the crop. If there is none, the limit is drawn anew.

    A picture without objects stays whole, as in the authors' code: no crop of it shows an object, and one after
    zooming out might show nothing of the picture either.

    Args:
        min_ious: the limits to choose from, each in [0, 1); for 0 a centre inside is enough.
        shortest_side: of a crop, as a share of the picture's side. Both sides are uniform between it and 1.
        aspect_ratio: least and largest width over height of a crop, in pixels.
        trials: crops that are tried for one limit.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        shortest_side: float = 0.3,
        aspect_ratio: Sequence[float] = (0.5, 2.0),
        trials: int = 40,
    ) -> None:
        if len(min_ious) == 0 or not all(0 <= limit < 1 for limit in min_ious):
            raise ValueError(f"min_ious: expected at least one number, each in [0, 1), got {min_ious}")
        require_number("shortest_side", shortest_side, "(0, 1]")
        if len(aspect_ratio) != 2 or not 0 < aspect_ratio[0] <= aspect_ratio[1]:
            raise ValueError(f"aspect_ratio: expected two numbers, 0 < least <= largest, got {aspect_ratio}")
        require_whole_number("trials", trials, 1)
        self.min_ious = tuple(min_ious)
        self.shortest_side = shortest_side
        self.aspect_ratio = aspect_ratio[0], aspect_ratio[1]
        self.trials = trials

    def __call__(self, truth: Truth, rng: np.random.Generator) -> Window:
        if len(truth.boxes) == 0:
            return WHOLE
        while (choice := rng.integers(len(self.min_ious) + 1)) < len(self.min_ious):
            crops = self._crops_of_permitted_shape(truth.size, rng)
            centred_inside, iou = _centred_inside_and_iou(crops, truth.boxes)
            suitable = (centred_inside & (iou >= self.min_ious[choice])).any(axis=1)
            if suitable.any():
                return Window(*crops[suitable.argmax()].tolist())
        return WHOLE

    def _crops_of_permitted_shape(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> Float[np.ndarray, "crops 4"]:
        """Of the crops of all trials those that are neither too wide nor too high, in order."""
        height, width = size
        sides = rng.uniform(self.shortest_side, 1, size=(self.trials, 2))
        corners = rng.random((self.trials, 2)) * (1 - sides)
        aspect_ratio = sides[:, 0] * width / (sides[:, 1] * height)
        permitted = (aspect_ratio >= self.aspect_ratio[0]) & (aspect_ratio <= self.aspect_ratio[1])
        return np.concatenate((corners, corners + sides), axis=1)[permitted]


def _centred_inside_and_iou(
    crops: Float[np.ndarray, "crops 4"], boxes: Float[np.ndarray, "objects 4"]
) -> tuple[Bool[np.ndarray, "crops objects"], Float[np.ndarray, "crops objects"]]:
    # Each edge as a row: several times faster than arrays whose last axis is two numbers long.
    left, top, right, bottom = boxes.T.astype(np.float64)
    crop_left, crop_top, crop_right, crop_bottom = crops.T[..., None]
    x, y = (left + right) / 2, (top + bottom) / 2
    centred_inside = (x > crop_left) & (x < crop_right) & (y > crop_top) & (y < crop_bottom)
    common_width = (np.minimum(right, crop_right) - np.maximum(left, crop_left)).clip(0)
    common_height = (np.minimum(bottom, crop_bottom) - np.maximum(top, crop_top)).clip(0)
    common = common_width * common_height
    areas, crop_areas = (right - left) * (bottom - top), (crop_right - crop_left) * (crop_bottom - crop_top)
    return centred_inside, common / (areas + crop_areas - common)


def nested(inner: Window, outer: Window) -> Window:
    """A window that is given in fractions of another one, in fractions of the picture."""
    width, height = outer.right - outer.left, outer.bottom - outer.top
    return Window(
        outer.left + inner.left * width,
        outer.top + inner.top * height,
        outer.left + inner.right * width,
        outer.top + inner.bottom * height,
    )


def truth_in_window(truth: Truth, window: Window) -> Truth:
    """What is known of the part of a picture that a window shows, as if it were a picture."""
    boxes, kept = boxes_in_window(truth.boxes, window)
    height, width = truth.size
    size = max(1, round(height * (window.bottom - window.top))), max(1, round(width * (window.right - window.left)))
    return Truth(size, boxes, truth.labels[kept], truth.difficult[kept])


def boxes_in_window(
    boxes: Float[np.ndarray, "objects 4"], window: Window
) -> tuple[Float[np.ndarray, "kept 4"], Bool[np.ndarray, " objects"]]:
    """The boxes as fractions of the window, cut at its border, and which of them are kept: those centred inside."""
    origin = np.array([window.left, window.top] * 2, dtype=np.float32)
    extent = np.array([window.right - window.left, window.bottom - window.top] * 2, dtype=np.float32)
    moved = (boxes - origin) / extent
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    kept = np.asarray(((centres > 0) & (centres < 1)).all(axis=1))
    return moved[kept].clip(0, 1), kept
