"""The types that flow through the project, and the letters used for their axes.

Axes: ``batch`` (B) images, ``boxes`` (P) default boxes, ``objects`` (M) the most objects of any image of the batch,
``classes`` (C + 1) object classes with background as class 0, ``detections`` (D) the most detections kept per image.

Boxes are float32 fractions of the image (0 is the left or top edge, 1 the right or bottom edge).
Default boxes are ``cxcywh`` (centre and size); everything else is ``xyxy`` (left, top, right, bottom).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

ImageSize = int | tuple[int, int] | list[int]
"""In pixels: (height, width), or one number for both."""


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    """Both sides of an image size.

    Raises:
        ValueError: if it is neither one nor two numbers of at least 1.
    """
    sides = list(image_size) if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(
            f"image_size: expected one or two whole numbers (height, width) of at least 1, got {image_size}"
        )
    return sides[0], sides[1]


class Sample(NamedTuple):
    """One picture of a data set and its objects. NumPy, because that is what decoding and augmenting work on."""

    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, " objects"]
    """1 … C."""
    difficult: Bool[np.ndarray, " objects"]


class Truth(NamedTuple):
    """What is known of one picture before it is decoded."""

    size: tuple[int, int]
    """(height, width) in pixels, upright."""
    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, " objects"]
    """1 … C."""
    difficult: Bool[np.ndarray, " objects"]


class Objects(NamedTuple):
    """Ground truth of a batch, padded to the image with the most objects; what is not ``valid`` is padding."""

    boxes: Float[Tensor, "batch objects 4"]
    labels: Int[Tensor, "batch objects"]
    """1 … C; padding is 0."""
    difficult: Bool[Tensor, "batch objects"]
    """VOC's flag: scored neither as found nor as missed."""
    valid: Bool[Tensor, "batch objects"]


class Batch(NamedTuple):
    """What a data loader yields. Pictures stay uint8 until they are on the device."""

    images: UInt8[Tensor, "batch 3 height width"]
    objects: Objects
    image_ids: Int[Tensor, " batch"]
    """Position of the picture in its data set; the data set knows the file name."""
    image_sizes: Int[Tensor, "batch 2"]
    """(height, width) in pixels of the picture before it was resized to the network's input."""


class Predictions(NamedTuple):
    """Output of the network: one row per default box."""

    logits: Float[Tensor, "batch boxes classes"]
    offsets: Float[Tensor, "batch boxes 4"]
    """Relative to the default boxes, divided by the variances; see :func:`ssd_lightning.detector.boxes.decode`."""


class Matches(NamedTuple):
    """What each default box should have predicted."""

    labels: Int[Tensor, "batch boxes"]
    """Class of the matched object, 0 for background, -1 where the default box is to be ignored."""
    objects: Int[Tensor, "batch boxes"]
    """Which object of its image; without meaning where ``labels`` is not positive."""
    object_boxes: Float[Tensor, "batch objects 4"]
    """xyxy of the objects, of at least one: images without any have an empty box in the corner."""

    @property
    def boxes(self) -> Float[Tensor, "batch boxes 4"]:
        """xyxy of the object of each default box. Few of them count: gather those alone where they can be counted."""
        return self.object_boxes.gather(1, self.objects.unsqueeze(-1).expand(-1, -1, 4))


class Losses(NamedTuple):
    """Scalars. ``total`` is what is minimised, the rest is for the log."""

    total: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    localization: Float[Tensor, ""]


class Detections(NamedTuple):
    """Detections of a batch, best first, padded; what is not ``valid`` is padding."""

    boxes: Float[Tensor, "batch detections 4"]
    labels: Int[Tensor, "batch detections"]
    """1 … C; padding is 0."""
    scores: Float[Tensor, "batch detections"]
    valid: Bool[Tensor, "batch detections"]


class ObjectRecords(NamedTuple):
    """Ground truth of a whole data set as flat arrays, one row per object."""

    image_ids: Int[np.ndarray, " objects"]
    labels: Int[np.ndarray, " objects"]
    """1 … C."""
    boxes: Float[np.ndarray, "objects 4"]
    """xyxy edges, in any unit that both sides share. A VOC box of inclusive pixels 3 … 7 has edges 2 and 7."""
    difficult: Bool[np.ndarray, " objects"]


class DetectionRecords(NamedTuple):
    """Detections of a whole data set as flat arrays, one row per detection, in any order."""

    image_ids: Int[np.ndarray, " detections"]
    labels: Int[np.ndarray, " detections"]
    boxes: Float[np.ndarray, "detections 4"]
    scores: Float[np.ndarray, " detections"]


DRAW_THRESHOLD = 0.5
"""Detections are drawn from this score on."""
