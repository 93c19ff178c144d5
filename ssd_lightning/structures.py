"""The types of batches, which flow through networks and losses, and the names of their axes.

Axes: ``batch`` (B) images, ``boxes`` (P) default boxes, ``objects`` (M) the largest number of objects in an image,
``classes`` (C + 1) object classes with background as class 0, ``detections`` (D) the largest number of detections in
an image.

Boxes are float32 fractions of the image: 0 is the left or top edge, 1 the right or bottom edge.
Default boxes are ``cxcywh`` (centre and size); all other boxes are ``xyxy`` (left, top, right, bottom).

``records.py`` has the types of single pictures and of whole data sets.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ssd_lightning.require import LARGEST_IMAGE

IGNORED_LABEL = -1
"""Label of default boxes that are neither positive nor negative."""

ImageSize = int | tuple[int, int] | list[int]
"""Size of an image in pixels: (height, width), or one number for both."""


def height_and_width(image_size: Any) -> tuple[int, int]:
    """Return both sides of an image size.

    Args:
        image_size: an :data:`ImageSize`, or anything else that a config can hold.

    Raises:
        ValueError: if ``image_size`` is not one or two whole numbers of at least 1, or if one is above
            :data:`~ssd_lightning.require.LARGEST_IMAGE`.
    """
    sides = list(image_size) if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_IMAGE for side in sides):
        raise ValueError(
            f"image_size: expected one or two whole numbers (height, width) of at most {LARGEST_IMAGE} and at least 1, "
            f"got {image_size}"
        )
    return sides[0], sides[1]


class Objects(NamedTuple):
    """Ground truth of a batch, padded to the image with the most objects. Rows that are not ``valid`` are padding."""

    boxes: Float[Tensor, "batch objects 4"]
    labels: Int[Tensor, "batch objects"]
    """1 … C; padding is 0."""
    difficult: Bool[Tensor, "batch objects"]
    """VOC's flag: such an object is scored neither as found nor as missed."""
    valid: Bool[Tensor, "batch objects"]


class Batch(NamedTuple):
    """One batch of a data loader. Pictures with anti-aliasing stay uint8 until they are on the device."""

    images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    """Pixels in 0 … 255."""
    objects: Objects
    image_ids: Int[Tensor, " batch"]
    """Index of each picture in its data set; the data set knows the file name."""
    image_sizes: Int[Tensor, "batch 2"]
    """(height, width) in pixels of each picture before it was resized to the network's input."""


class Predictions(NamedTuple):
    """Output of the network, one row per default box."""

    logits: Float[Tensor, "batch boxes classes"]
    offsets: Float[Tensor, "batch boxes 4"]
    """Encoded boxes: see :func:`ssd_lightning.detector.boxes.encode`."""


class Matches(NamedTuple):
    """The training target of each default box."""

    labels: Int[Tensor, "batch boxes"]
    """Class of the matched object, 0 for background, -1 where the loss ignores the default box."""
    objects: Int[Tensor, "batch boxes"]
    """Index of the matched object in its image; without meaning where ``labels`` is not positive."""
    object_boxes: Float[Tensor, "batch objects 4"]
    """Boxes (xyxy) of the objects. Padding is an empty box in the corner; a batch without objects has one per image."""

    @property
    def boxes(self) -> Float[Tensor, "batch boxes 4"]:
        """The box (xyxy) of each default box's object."""
        return self.object_boxes.gather(1, self.objects.unsqueeze(-1).expand(-1, -1, 4))


class Losses(NamedTuple):
    """Scalar losses. Training minimises ``total``; the parts are logged."""

    total: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    localization: Float[Tensor, ""]


class Detections(NamedTuple):
    """Detections of a batch, best first, padded. Rows that are not ``valid`` are padding."""

    boxes: Float[Tensor, "batch detections 4"]
    labels: Int[Tensor, "batch detections"]
    """1 … C; padding is 0."""
    scores: Float[Tensor, "batch detections"]
    valid: Bool[Tensor, "batch detections"]
