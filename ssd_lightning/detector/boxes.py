"""Box formats, IoU of batches, and the offsets that the network predicts."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Variances = tuple[float, float]

VARIANCES: Variances = (0.1, 0.2)
"""Scale of the centre and of the size offsets in the authors' code: makes both targets about unit variance."""


def cxcywh_to_xyxy(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    centre, size = boxes.split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    left_top, right_bottom = boxes.split(2, dim=-1)
    return torch.cat(((left_top + right_bottom) / 2, right_bottom - left_top), dim=-1)


def pairwise_iou(
    boxes: Float[Tensor, "batch boxes 4"], others: Float[Tensor, "#batch others 4"]
) -> Float[Tensor, "batch boxes others"]:
    """IoU of each box (xyxy) with each of the others of its image, or with one list of others for all images.

    0, not NaN, where both boxes are empty; not differentiable. The same numbers as :func:`torchvision.ops.box_iou`,
    which makes arrays of (…, 2) on its way; here the long axis stays last and memory is reused, which on a CPU is three
    times as fast.
    """
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(dim=-2)
    other_left, other_top, other_right, other_bottom = others.mT.contiguous().unsqueeze(-3).unbind(dim=-2)
    # Two arrays of all pairs, for a moment a third: glibc gives such large ones back each time, and fetching them anew
    # costs more than the arithmetic.
    iou, scratch = torch.minimum(right, other_right), torch.maximum(left, other_left)
    width = iou.sub_(scratch).clamp_(min=0)
    height = torch.minimum(bottom, other_bottom, out=scratch).sub_(torch.maximum(top, other_top)).clamp_(min=0)
    intersection = width.mul_(height)
    # Never 0, so that two empty boxes do not give 0 / 0; adding it here is cheaper than at every pair.
    other_area = ((other_right - other_left) * (other_bottom - other_top)).clamp(min=torch.finfo(others.dtype).tiny)
    union = torch.add((right - left) * (bottom - top), other_area, out=scratch).sub_(intersection)
    return intersection.div_(union)


def encode(
    boxes: Float[Tensor, "*batch boxes 4"], default_boxes: Float[Tensor, "boxes 4"], variances: Variances = VARIANCES
) -> Float[Tensor, "*batch boxes 4"]:
    """Offsets that turn ``default_boxes`` (cxcywh) into ``boxes`` (xyxy): section 2.2 of the paper.

    The centre moves by a share of the default box's size and the size changes by a factor, given as its logarithm; both
    are divided by the variances. A box without width or height has no finite offset: data sets refuse such boxes, and
    here its size counts as the smallest normal float, so that one bad box cannot put NaN into a batch.
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
"""As in torchvision and Detectron: an untrained network must not overflow ``exp``."""


def decode(
    offsets: Float[Tensor, "*batch boxes 4"],
    default_boxes: Float[Tensor, "*#batch boxes 4"],
    variances: Variances = VARIANCES,
) -> Float[Tensor, "*batch boxes 4"]:
    """Inverse of :func:`encode`: ``default_boxes`` (cxcywh) moved and resized by ``offsets``, as xyxy.

    A box grows to at most 62.5 times its default box.
    """
    (centre, size), (default_centre, default_size) = offsets.split(2, dim=-1), default_boxes.split(2, dim=-1)
    new_centre = centre * variances[0] * default_size + default_centre
    half_size = (size * variances[1]).clamp(max=MAX_LOG_SIZE).exp() * default_size / 2
    return torch.cat((new_centre - half_size, new_centre + half_size), dim=-1)
