"""Augmentation: what a picture looks like to the network.

The geometry is decided first, as a window of the picture and whether it is mirrored; then the picture is resampled
once, from the window to the network's input; then the colours of that small picture are changed.

Randomness comes in as an argument: the same generator gives the same picture, wherever and whenever it is computed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
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
from ssd_lightning.require import require_number
from ssd_lightning.structures import Sample, Truth


class View(NamedTuple):
    """How a picture is seen: everything but its colours."""

    window: Window
    mirrored_horizontally: bool
    mirrored_vertically: bool

    def least_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels that the whole picture needs for its window to hold at least ``size``."""
        left, top, right, bottom = self.window
        return math.ceil(size[0] / (bottom - top)), math.ceil(size[1] / (right - left))


class Augmentation:
    """From a picture of any size to one of the network's input size.

    Without arguments it only resizes, which is what validation does. Objects whose centre is outside the window are
    dropped, the boxes of the others are cut at its border: section 2.2 of the paper, "Data augmentation".

    Args:
        windows: choose the part that is seen, one after the other: each gets what the ones before it left, as if that
            were the picture.
        horizontal_flip, vertical_flip: probabilities of mirroring.
        colours: changes of the colours, in this order. What is beyond the picture keeps the fill colour.
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
        self.windows = list(windows)
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.colours = list(colours)

    def __call__(self, sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Sample:
        """Of a decoded picture. ``size`` is (height, width) of the result in pixels."""
        truth = Truth((sample.image.shape[0], sample.image.shape[1]), *sample[1:])
        return self.show(sample.image, truth, self.plan(truth, rng), size, rng)

    def plan(self, truth: Truth, rng: np.random.Generator) -> View:
        """How a picture will be seen, decided without any pixel of it."""
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
    ) -> Sample:
        """The picture and its objects as seen in ``size`` (height, width) pixels.

        ``image`` is the whole picture; it may have fewer pixels than the truth tells, see :meth:`View.least_size`.
        """
        part = visible_part(image, view, size)
        if part.pixels.size:
            for change in self.colours:
                part = part._replace(pixels=change(part.pixels, rng))
        boxes, kept = boxes_in_window(truth.boxes, view.window)
        boxes = mirror_boxes(boxes, view.mirrored_horizontally, view.mirrored_vertically)
        return Sample(on_canvas(part, size), boxes, truth.labels[kept], truth.difficult[kept])


FILL = (123, 117, 104)
"""Colour of what is beyond the picture: the mean of ImageNet, as in the authors' code."""


def resample(
    image: UInt8[np.ndarray, "height width 3"], window: Window, size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """The window of the picture, scaled to ``size`` (height, width) pixels with anti-aliasing; a window of no change
    gives the picture itself."""
    return on_canvas(visible_part(image, View(window, False, False), size), size)


class Part(NamedTuple):
    """What a view shows of a picture, at the scale of the result, and where in the result it begins."""

    pixels: UInt8[np.ndarray, "part_height part_width 3"]
    left: int
    top: int


def visible_part(image: UInt8[np.ndarray, "height width 3"], view: View, size: tuple[int, int]) -> Part:
    """Pixels of the result that the picture covers in full, resampled from the places that they show."""
    height, width = image.shape[:2]
    across = _Span.of(view.window.left, view.window.right, size[1])
    down = _Span.of(view.window.top, view.window.bottom, size[0])
    left = size[1] - across.stop if view.mirrored_horizontally else across.start
    top = size[0] - down.stop if view.mirrored_vertically else down.start
    if across.start >= across.stop or down.start >= down.stop:
        return Part(np.empty((0, 0, 3), dtype=np.uint8), 0, 0)
    if view == View(WHOLE, False, False) and (height, width) == size:
        return Part(image, left, top)
    part = Image.fromarray(image).resize(
        (across.stop - across.start, down.stop - down.start),
        Image.Resampling.BILINEAR,
        box=(across.first * width, down.first * height, across.last * width, down.last * height),
    )
    if view.mirrored_horizontally:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.mirrored_vertically:
        part = part.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return Part(np.asarray(part), left, top)


class _Span(NamedTuple):
    """Along one axis: which pixels of the result the picture covers in full, and the part of it that they show."""

    start: int
    stop: int
    first: float
    last: float

    @classmethod
    def of(cls, window_first: float, window_last: float, pixels: int) -> "_Span":
        scale = pixels / (window_last - window_first)
        rounding = 1e-6
        start = max(0, math.ceil(-window_first * scale - rounding))
        stop = min(pixels, math.floor((1 - window_first) * scale + rounding))
        first, last = (min(max(window_first + edge / scale, 0.0), 1.0) for edge in (start, stop))
        return cls(start, stop, first, last)


def on_canvas(part: Part, size: tuple[int, int]) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """A picture of ``size`` (height, width) pixels: the part, and around it the fill colour."""
    height, width = part.pixels.shape[:2]
    if (height, width) == size:
        return part.pixels
    canvas = np.empty((*size, 3), dtype=np.uint8)
    canvas[:] = np.tile(np.array(FILL, dtype=np.uint8), (size[1], 1))  # row by row: ten times as fast as by pixels
    canvas[part.top : part.top + height, part.left : part.left + width] = part.pixels
    return canvas


def mirror_boxes(
    boxes: Float[np.ndarray, "objects 4"], horizontally: bool, vertically: bool
) -> Float[np.ndarray, "objects 4"]:
    left, top, right, bottom = boxes.T
    if horizontally:
        left, right = 1 - right, 1 - left
    if vertically:
        top, bottom = 1 - bottom, 1 - top
    return np.stack((left, top, right, bottom), axis=1)
