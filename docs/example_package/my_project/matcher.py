"""A matcher."""

import torch

from ssd_lightning import BoxMatcher, Matches, Objects


class LenientMatcher(BoxMatcher):
    """A matcher with a lower threshold for small objects, which few default boxes overlap by half.

    Args:
        iou_threshold: the threshold for large objects.
        small_threshold: the threshold for small objects.
        small_side: an object is small if the square root of its area is below this fraction of the picture.
    """

    def __init__(self, iou_threshold: float = 0.5, small_threshold: float = 0.35, small_side: float = 0.15) -> None:
        super().__init__(iou_threshold)
        self.lenient = BoxMatcher(small_threshold)
        self.small_side = small_side

    def __call__(self, objects: Objects, default_boxes: torch.Tensor) -> Matches:
        strict = super().__call__(objects, default_boxes)
        lenient = self.lenient(objects, default_boxes)
        width, height = (lenient.boxes[..., 2:] - lenient.boxes[..., :2]).unbind(dim=-1)
        joins = (strict.labels == 0) & (lenient.labels > 0) & ((width * height).sqrt() < self.small_side)
        return Matches(
            labels=torch.where(joins, lenient.labels, strict.labels),
            objects=torch.where(joins, lenient.objects, strict.objects),
            object_boxes=strict.object_boxes,
        )
