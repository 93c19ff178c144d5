"""Augmentation: what a picture looks like to the network.

The geometry is decided first, as a window of the picture and whether it is mirrored; then the picture is resampled
once, from the window to the network's input; then the colours of that small picture are changed. Windows can be nested
and can reach beyond the picture, so that zooming in and out cost nothing.

Randomness comes in as an argument: the same generator gives the same picture, wherever and whenever it is computed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from ssd_lightning.structures import Sample


class Window(NamedTuple):
    """The part of a picture that is seen, in fractions of the picture; below 0 and above 1 it shows the fill colour."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Window(0.0, 0.0, 1.0, 1.0)

WindowSampler = Callable[[Sample, np.random.Generator], Window]
ColourChange = Callable[[UInt8[np.ndarray, "height width 3"], np.random.Generator], UInt8[np.ndarray, "height width 3"]]


class Augmentation:
    """From a sample of any size to one of the network's input size.

    Without arguments it only resizes, which is what validation does. Objects whose centre is outside the window are
    dropped, the boxes of the others are cut at its border: section 2.2 of the paper, "Data augmentation".

    Args:
        window: chooses the part that is seen; ``None``: all of it.
        horizontal_flip, vertical_flip: probabilities of mirroring.
        colours: changes of the colours, in this order.
    """

    def __init__(
        self,
        window: WindowSampler | None = None,
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        colours: Sequence[ColourChange] = (),
    ) -> None:
        for name, value in (("horizontal_flip", horizontal_flip), ("vertical_flip", vertical_flip)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
        self.window = window
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.colours = list(colours)

    def __call__(self, sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Sample:
        """``size`` is (height, width) of the result in pixels."""
        window = WHOLE if self.window is None else self.window(sample, rng)
        mirrored = bool(rng.random() < self.horizontal_flip), bool(rng.random() < self.vertical_flip)
        image = mirror_image(resample(sample.image, window, size), *mirrored)
        for change in self.colours:
            image = change(image, rng)
        boxes, kept = boxes_in_window(sample.boxes, window)
        return Sample(image, mirror_boxes(boxes, *mirrored), sample.labels[kept], sample.difficult[kept])


class ZoomIn:
    """A window of the picture's own shape around one of its objects, or anywhere if it has none.

    Args:
        probability: of zooming at all.
        largest: the picture appears up to this many times larger; the factor is uniform in its logarithm. An object is
            never cut: the factor is reduced to what its box allows.
    """

    def __init__(self, probability: float = 0.5, largest: float = 3.0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: expected a number in [0, 1], got {probability}")
        if not largest >= 1:
            raise ValueError(f"largest: expected a factor of at least 1, got {largest}")
        self.probability = probability
        self.largest = largest

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Window:
        if rng.random() >= self.probability:
            return WHOLE
        side = float(np.exp(-rng.uniform(0, np.log(self.largest))))
        if len(sample.boxes) == 0:
            left, top = rng.uniform(0, 1 - side, size=2)
        else:
            box = sample.boxes[rng.integers(len(sample.boxes))].astype(np.float64)
            side = max(side, float((box[2:] - box[:2]).max()))
            last = np.clip(box[:2], 0, 1 - side)
            # Where the box fills the window there is one place for it, and rounding must not put the first after it.
            first = np.minimum(np.clip(box[2:] - side, 0, 1 - side), last)
            left, top = rng.uniform(first, last)
        return Window(float(left), float(top), float(left + side), float(top + side))


class BrightnessContrast:
    """Other brightness, contrast and colour of the light, as one table lookup for each channel.

    Args:
        brightness: added, at most this share of the full range either way.
        contrast: the factor is at most 1 ± this.
        tint: factor of each channel for itself, at most 1 ± this.
    """

    def __init__(self, brightness: float = 0.15, contrast: float = 0.3, tint: float = 0.1) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("tint", tint)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
        self.brightness, self.contrast, self.tint = brightness, contrast, tint

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        shift = 255 * rng.uniform(-self.brightness, self.brightness)
        factor = rng.uniform(1 - self.contrast, 1 + self.contrast) * rng.uniform(1 - self.tint, 1 + self.tint, size=3)
        levels = np.arange(256)[:, None]
        table = np.clip((levels - 127.5) * factor + 127.5 + shift, 0, 255).astype(np.uint8)
        return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1)


FILL = (123, 117, 104)
"""Colour of what is beyond the picture: the mean of ImageNet, as in the authors' code."""


def resample(
    image: UInt8[np.ndarray, "height width 3"], window: Window, size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """The window of the picture, scaled to ``size`` (height, width) pixels with anti-aliasing; a window of no change
    gives the picture itself."""
    height, width = image.shape[:2]
    if window == WHOLE and (height, width) == size:
        return image
    inside = Window(max(window.left, 0.0), max(window.top, 0.0), min(window.right, 1.0), min(window.bottom, 1.0))
    # Where the part that is inside the picture comes to lie, in pixels of the result.
    scale_x, scale_y = size[1] / (window.right - window.left), size[0] / (window.bottom - window.top)
    left, right = round((inside.left - window.left) * scale_x), round((inside.right - window.left) * scale_x)
    top, bottom = round((inside.top - window.top) * scale_y), round((inside.bottom - window.top) * scale_y)
    canvas = np.empty((*size, 3), dtype=np.uint8)
    if (left, top, right, bottom) != (0, 0, size[1], size[0]):
        canvas[:] = FILL
    if right > left and bottom > top:
        source = (inside.left * width, inside.top * height, inside.right * width, inside.bottom * height)
        part = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)
        canvas[top:bottom, left:right] = np.asarray(part)
    return canvas


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


def mirror_image(
    image: UInt8[np.ndarray, "height width 3"], horizontally: bool, vertically: bool
) -> UInt8[np.ndarray, "height width 3"]:
    return image[:: -1 if vertically else 1, :: -1 if horizontally else 1]


def mirror_boxes(
    boxes: Float[np.ndarray, "objects 4"], horizontally: bool, vertically: bool
) -> Float[np.ndarray, "objects 4"]:
    left, top, right, bottom = boxes.T
    if horizontally:
        left, right = 1 - right, 1 - left
    if vertically:
        top, bottom = 1 - bottom, 1 - top
    return np.stack((left, top, right, bottom), axis=1)
