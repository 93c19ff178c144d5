"""Random windows: crops, zooming in and zooming out.

A window is sampled from the picture's size and boxes alone, before the picture is decoded. Windows can be nested and
can reach beyond the picture, so zooming needs no intermediate canvas.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ssd_lightning.records import Truth
from ssd_lightning.require import require_number, require_numbers, require_whole_number


class Window(NamedTuple):
    """The visible part, in fractions of the picture; the area below 0 and above 1 shows the fill colour."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Window(0.0, 0.0, 1.0, 1.0)

WindowSampler = Callable[[Truth, np.random.Generator], Window]


class ZoomIn:
    """A sampler of windows around one random object, or anywhere if the picture has no objects.

    The window has the aspect ratio of the picture.

    Args:
        probability: probability of zooming.
        largest: largest magnification; the magnification is log-uniform between 1 and this. It is reduced where the
            window would cut the chosen object.
    """

    def __init__(self, probability: float = 0.5, largest: float = 3.0) -> None:
        _check_zoom(probability, largest)
        self.probability = probability
        self.largest = largest

    def __call__(self, truth: Truth, rng: np.random.Generator) -> Window:
        """Sample a window for a picture with these objects."""
        if rng.random() >= self.probability:
            return WHOLE
        side = float(np.exp(-rng.uniform(0, np.log(self.largest))))
        if len(truth.boxes) == 0:
            left, top = rng.uniform(0, 1 - side, size=2)
        else:
            box = truth.boxes[rng.integers(len(truth.boxes))].astype(np.float64)
            side = max(side, float((box[2:] - box[:2]).max()))
            last = np.clip(box[:2], 0, 1 - side)
            # A box that fills the window leaves one position, and rounding must not put the first after the last.
            first = np.minimum(np.clip(box[2:] - side, 0, 1 - side), last)
            left, top = rng.uniform(first, last)
        return Window(float(left), float(top), float(left + side), float(top + side))


class ZoomOut:
    """A sampler that places the picture at random on a larger canvas, which creates small objects (paper, section 3.6).

    The canvas has the aspect ratio of the picture.

    Args:
        probability: probability of zooming.
        largest: largest ratio of the canvas side to the picture side; the ratio is uniform between 1 and this.
    """

    def __init__(self, probability: float = 0.5, largest: float = 4.0) -> None:
        _check_zoom(probability, largest)
        self.probability = probability
        self.largest = largest

    def __call__(self, truth: Truth, rng: np.random.Generator) -> Window:
        """Sample a window for a picture with these objects."""
        if rng.random() >= self.probability:
            return WHOLE
        side = rng.uniform(1, self.largest)
        left, top = -(side - 1) * rng.random(2)
        return Window(float(left), float(top), float(left + side), float(top + side))


def _check_zoom(probability: float, largest: float) -> None:
    require_number("probability", probability, "[0, 1]")
    require_number("largest", largest, "[1, 100]")


class MinIoUCrop:
    """A sampler of crops that overlap an object enough (paper, section 2.2, "Data augmentation").

    It draws one of ``min_ious`` or the whole picture with equal probability. For a minimum IoU it then draws up to
    ``trials`` crops. It returns the first crop that contains the centre of an object whose box has at least this IoU
    with the crop. If no crop qualifies, it draws a new minimum.

    A picture without objects stays whole, as in the authors' code. After zooming out, a random crop might show only
    the fill colour.

    Args:
        min_ious: minimum IoUs to choose from, each in [0, 1). With 0, a centre inside the crop is enough.
        shortest_side: smallest side of a crop, as a share of the picture's side. Both sides are uniform up to 1.
        aspect_ratio: smallest and largest ratio of width to height of a crop, in pixels.
        trials: number of crops tried for one minimum.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        shortest_side: float = 0.3,
        aspect_ratio: Sequence[float] = (0.5, 2.0),
        trials: int = 40,
    ) -> None:
        require_numbers("min_ious", min_ious, "[0, 1)")
        if len(min_ious) == 0:
            raise ValueError("min_ious: expected at least one number, got none")
        require_number("shortest_side", shortest_side, "(0, 1]")
        require_numbers("aspect_ratio", aspect_ratio, "(0, inf)", length=2)
        if aspect_ratio[0] > aspect_ratio[1]:
            raise ValueError(f"aspect_ratio: expected the least before the largest, got {list(aspect_ratio)}")
        require_whole_number("trials", trials, 1, most=10_000)
        self.min_ious = tuple(min_ious)
        self.shortest_side = shortest_side
        self.aspect_ratio = aspect_ratio[0], aspect_ratio[1]
        self.trials = trials

    def __call__(self, truth: Truth, rng: np.random.Generator) -> Window:
        """Sample a window for a picture with these objects."""
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
        """Draw the crops of all trials and return those with a permitted aspect ratio, in order."""
        height, width = size
        sides = rng.uniform(self.shortest_side, 1, size=(self.trials, 2))
        corners = rng.random((self.trials, 2)) * (1 - sides)
        aspect_ratio = sides[:, 0] * width / (sides[:, 1] * height)
        permitted = (aspect_ratio >= self.aspect_ratio[0]) & (aspect_ratio <= self.aspect_ratio[1])
        return np.concatenate((corners, corners + sides), axis=1)[permitted]


def _centred_inside_and_iou(
    crops: Float[np.ndarray, "crops 4"], boxes: Float[np.ndarray, "objects 4"]
) -> tuple[Bool[np.ndarray, "crops objects"], Float[np.ndarray, "crops objects"]]:
    # One array per edge is several times faster than arrays with a last axis of length 2.
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
    """Convert a window from fractions of the outer window to fractions of the picture."""
    width, height = outer.right - outer.left, outer.bottom - outer.top
    return Window(
        outer.left + inner.left * width,
        outer.top + inner.top * height,
        outer.left + inner.right * width,
        outer.top + inner.bottom * height,
    )


def truth_in_window(truth: Truth, window: Window) -> Truth:
    """Return the ground truth of the part inside a window, as if that part were a picture of its own."""
    boxes, kept = boxes_in_window(truth.boxes, window)
    height, width = truth.size
    size = max(1, round(height * (window.bottom - window.top))), max(1, round(width * (window.right - window.left)))
    return Truth(size, boxes, truth.labels[kept], truth.difficult[kept])


def boxes_in_window(
    boxes: Float[np.ndarray, "objects 4"], window: Window
) -> tuple[Float[np.ndarray, "kept 4"], Bool[np.ndarray, " objects"]]:
    """Keep the boxes whose centre lies in the window, and express them in fractions of the window.

    Returns:
        The kept boxes, clipped to the window, and a mask over all boxes.
    """
    origin = np.array([window.left, window.top] * 2, dtype=np.float32)
    extent = np.array([window.right - window.left, window.bottom - window.top] * 2, dtype=np.float32)
    moved = (boxes - origin) / extent
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    kept = np.asarray(((centres > 0) & (centres < 1)).all(axis=1))
    return moved[kept].clip(0, 1), kept
