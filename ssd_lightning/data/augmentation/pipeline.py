"""The augmentation pipeline: it turns a picture of any size into a network input, with random changes.

The geometry is sampled first, as a window of the picture and two flips. The picture is then resampled once, from the
window to the input size. Colours change last, on the small result.

Every random choice uses a generator that is passed in, so the same generator state gives the same picture.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from ssd_lightning.data.augmentation.colours import ColourChange
from ssd_lightning.data.augmentation.windows import (
    WHOLE,
    Window,
    WindowSampler,
    boxes_in_window,
    nested,
    truth_in_window,
)
from ssd_lightning.records import Sample, Truth
from ssd_lightning.require import require_number, require_parts


class View(NamedTuple):
    """The sampled geometry of one picture: a window and two flips."""

    window: Window
    mirrored_horizontally: bool
    mirrored_vertically: bool

    def least_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest (height, width) of the whole picture whose window still covers ``size`` pixels."""
        left, top, right, bottom = self.window
        return math.ceil(size[0] / (bottom - top)), math.ceil(size[1] / (right - left))


class Augmentation:
    """A transform from a picture of any size to a picture of the network's input size.

    A transform without arguments only resizes, as validation does. Objects whose centre lies outside the window are
    dropped. All other boxes are clipped to the window (section 2.2 of the paper, "Data augmentation").

    Args:
        windows: samplers of the visible window, applied in order. Each treats the previous window as the
            picture.
        horizontal_flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        colours: colour changes, applied in order. The area outside the picture keeps the fill colour.
    """

    def __init__(
        self,
        windows: Sequence[WindowSampler] = (),
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        colours: Sequence[ColourChange] = (),
    ) -> None:
        for name, value in (("horizontal_flip", horizontal_flip), ("vertical_flip", vertical_flip)):
            require_number(name, value, "[0, 1]")
        require_parts("windows", windows)
        require_parts("colours", colours)
        self.windows = list(windows)
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.colours = list(colours)

    def __call__(
        self, sample: Sample, size: tuple[int, int], rng: np.random.Generator, antialias: bool = True
    ) -> Sample:
        """Augment a decoded picture; ``size`` is the (height, width) of the result in pixels. See :meth:`show`."""
        truth = Truth((sample.image.shape[0], sample.image.shape[1]), *sample[1:])
        return self.show(sample.image, truth, self.plan(truth, rng), size, rng, antialias)

    def plan(self, truth: Truth, rng: np.random.Generator) -> View:
        """Sample the geometry for one picture; no pixels are needed."""
        window = WHOLE
        for sampler in self.windows:
            window = nested(sampler(truth_in_window(truth, window), rng), window)
        return View(window, bool(rng.random() < self.horizontal_flip), bool(rng.random() < self.vertical_flip))

    def show(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        truth: Truth,
        view: View,
        size: tuple[int, int],
        rng: np.random.Generator,
        antialias: bool = True,
    ) -> Sample:
        """Render the view at ``size`` (height, width) pixels and transform the objects to match.

        ``image`` is the whole picture. With anti-aliasing it may be smaller than ``truth.size``, as
        :meth:`View.least_size` permits. Without anti-aliasing the pixels are fractions (float32) until a colour change
        rounds them; see :func:`resample`.
        """
        part = visible_part(image, view, size, antialias)
        if part.pixels.size and self.colours:
            pixels = part.pixels if antialias else np.rint(part.pixels).astype(np.uint8)
            for change in self.colours:
                pixels = change(pixels, rng)
            part = part._replace(pixels=pixels)
        boxes, kept = boxes_in_window(truth.boxes, view.window)
        boxes = mirror_boxes(boxes, view.mirrored_horizontally, view.mirrored_vertically)
        return Sample(on_canvas(part, size), boxes, truth.labels[kept], truth.difficult[kept])


FILL = (123, 117, 104)
"""Colour of the area outside the picture: the mean of ImageNet, as in the authors' code."""


def resample(
    image: UInt8[np.ndarray, "height width 3"], window: Window, size: tuple[int, int], antialias: bool = True
) -> UInt8[np.ndarray, "new_height new_width 3"] | Float[np.ndarray, "new_height new_width 3"]:
    """Resample a window of the picture to ``size`` (height, width) pixels.

    Args:
        image: the whole picture.
        window: the part to show.
        size: size of the result.
        antialias: average over all pixels that a pixel of the result covers, as Pillow does. Otherwise interpolate
            between the four nearest pixels and round nothing, as the detectors of torchvision do.

    Returns:
        Whole levels with anti-aliasing, else fractions. The picture itself where the window is the whole picture and
        the size does not change.
    """
    return on_canvas(visible_part(image, View(window, False, False), size, antialias), size)


class Part(NamedTuple):
    """The visible part of a picture at the scale of the result, and its position in the result."""

    pixels: UInt8[np.ndarray, "part_height part_width 3"] | Float[np.ndarray, "part_height part_width 3"]
    left: int
    top: int


def visible_part(
    image: UInt8[np.ndarray, "height width 3"], view: View, size: tuple[int, int], antialias: bool = True
) -> Part:
    """Resample the pixels of the result that the picture covers completely; see :func:`resample`."""
    height, width = image.shape[:2]
    across = _covered_span(view.window.left, view.window.right, size[1])
    down = _covered_span(view.window.top, view.window.bottom, size[0])
    left = size[1] - across.stop if view.mirrored_horizontally else across.start
    top = size[0] - down.stop if view.mirrored_vertically else down.start
    if across.start >= across.stop or down.start >= down.stop:
        return Part(np.empty((0, 0, 3), dtype=np.uint8), 0, 0)
    if view == View(WHOLE, False, False) and (height, width) == size:
        return Part(image, left, top)
    if antialias:
        resized = Image.fromarray(image).resize(
            (across.stop - across.start, down.stop - down.start),
            Image.Resampling.BILINEAR,
            box=(across.first * width, down.first * height, across.last * width, down.last * height),
        )
        part = np.asarray(resized)
    else:
        part = _interpolated(image, down, across)
    if view.mirrored_horizontally:
        part = part[:, ::-1]
    if view.mirrored_vertically:
        part = part[::-1]
    return Part(np.ascontiguousarray(part), left, top)


class _Span(NamedTuple):
    """A range of result pixels along one axis, and the range of the picture that it shows."""

    start: int
    stop: int
    first: float
    """Fraction of the picture at ``start``."""
    last: float
    """Fraction of the picture at ``stop``."""


def _covered_span(window_first: float, window_last: float, pixels: int) -> _Span:
    """Return the pixels of the result that the picture covers completely along one axis."""
    scale = pixels / (window_last - window_first)
    rounding = 1e-6
    start = max(0, math.ceil(-window_first * scale - rounding))
    stop = min(pixels, math.floor((1 - window_first) * scale + rounding))
    first, last = (min(max(window_first + edge / scale, 0.0), 1.0) for edge in (start, stop))
    return _Span(start, stop, first, last)


def _interpolated(
    image: UInt8[np.ndarray, "height width 3"], down: _Span, across: _Span
) -> Float[np.ndarray, "part_height part_width 3"]:
    """Interpolate between the four nearest pixels, as torch does with ``align_corners=False``."""
    above, below, lower = _neighbours(down, image.shape[0])
    left, right, later = _neighbours(across, image.shape[1])
    # Single numbers are gathered several times as fast as pixels of three numbers.
    rows, later = image.reshape(len(image), -1), np.repeat(later, 3)
    left, right = ((3 * places[:, None] + np.arange(3)).ravel() for places in (left, right))

    def between_columns(places: Int[np.ndarray, " part"]) -> Float[np.ndarray, "part_height numbers"]:
        taken = rows.take(places, axis=0)
        first = taken.take(left, axis=1).astype(np.float32)
        return first + later * (taken.take(right, axis=1) - first)

    upper, under = between_columns(above), between_columns(below)
    return (upper + lower[:, None] * (under - upper)).reshape(len(above), -1, 3)


def _neighbours(
    span: _Span, pixels: int
) -> tuple[Int[np.ndarray, " part"], Int[np.ndarray, " part"], Float[np.ndarray, " part"]]:
    """Return the two nearest pixels along one axis for each pixel of the result, and the weight of the second."""
    count = span.stop - span.start
    centres = span.first + (np.arange(count) + 0.5) * (span.last - span.first) / count
    places = np.clip(centres * pixels - 0.5, 0, pixels - 1)
    first = np.floor(places).astype(np.int64)
    return first, np.minimum(first + 1, pixels - 1), (places - first).astype(np.float32)


def on_canvas(
    part: Part, size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"] | Float[np.ndarray, "new_height new_width 3"]:
    """Place the part on a canvas of ``size`` (height, width) pixels in the fill colour."""
    height, width = part.pixels.shape[:2]
    if (height, width) == size:
        return part.pixels
    canvas = np.empty((*size, 3), dtype=part.pixels.dtype)
    # Broadcasting whole rows is ten times as fast as broadcasting pixels.
    canvas[:] = np.tile(np.array(FILL, dtype=np.uint8), (size[1], 1))
    canvas[part.top : part.top + height, part.left : part.left + width] = part.pixels
    return canvas


def mirror_boxes(
    boxes: Float[np.ndarray, "objects 4"], horizontally: bool, vertically: bool
) -> Float[np.ndarray, "objects 4"]:
    """Flip boxes (xyxy, fractions) within the picture."""
    left, top, right, bottom = boxes.T
    if horizontally:
        left, right = 1 - right, 1 - left
    if vertically:
        top, bottom = 1 - bottom, 1 - top
    return np.stack((left, top, right, bottom), axis=1)
