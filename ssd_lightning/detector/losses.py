"""The objective: section 2.2 of the SSD paper, and the variants that are compared with it.

A loss takes what the network predicted and what the matcher asked for, and returns scalars. Everything is computed in
float32 whatever the autocast, over the whole batch at once, without waiting for the device.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssd_lightning import collectives
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, decode, encode
from ssd_lightning.devices import can_read
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.structures import IGNORED_LABEL, Losses, Matches, Predictions


class MultiBoxLoss(nn.Module):
    """(L_classification + α · L_localization) / N, where N is the number of positive default boxes.

    In training, N counts the whole batch over all ranks; in evaluation each rank counts its own. Without any positive,
    N is taken as 1: the loss is finite, and the background still gives a gradient.

    Args:
        classification: :class:`MinedCrossEntropy` (the paper, and the default) or :class:`FocalLoss`.
        localization: :class:`SmoothL1` (the paper, and the default), :class:`L1` or :class:`BoxIoULoss`.
        alpha: weight of the localization.
    """

    def __init__(
        self, classification: nn.Module | None = None, localization: nn.Module | None = None, alpha: float = 1.0
    ) -> None:
        super().__init__()
        require_number("alpha", alpha, "[0, inf)")
        self.classification = classification or MinedCrossEntropy()
        self.localization = localization or SmoothL1()
        self.alpha = alpha

    def forward(self, predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]) -> Losses:
        positive = matches.labels > 0
        with torch.autocast(predictions.logits.device.type, enabled=False):
            normalizer = _share_of_positives(positive) if self.training else positive.sum().float().clamp(min=1)
            classification = self.classification(predictions.logits.float(), matches.labels) / normalizer
            offsets = predictions.offsets.float()
            if can_read(positive):
                rows = positive.flatten().nonzero().squeeze(1)
                image, box = rows // positive.shape[1], rows % positive.shape[1]
                boxes = matches.object_boxes[image, matches.objects[image, box]]
                # By index_select of flat rows, whose gradient costs half of what offsets[image, box] has.
                boxwise = self.localization(offsets.flatten(0, 1).index_select(0, rows), boxes, default_boxes[box])
            else:
                # Without an object the target is the default box itself: what is not finite there would be masked in
                # the loss, but the gradient would still be 0 · inf.
                boxes = torch.where(positive.unsqueeze(-1), matches.boxes, cxcywh_to_xyxy(default_boxes))
                boxwise = torch.where(positive, self.localization(offsets, boxes, default_boxes), 0)
            localization = boxwise.sum() / normalizer
        return Losses(classification + self.alpha * localization, classification, localization)


class MinedCrossEntropy(nn.Module):
    """Cross-entropy over the positives and, in each image, the negatives that look least like background.

    Args:
        negative_ratio: negatives for each positive of the image.
        min_negatives: negatives in an image without positives, so that it teaches too.
    """

    def __init__(self, negative_ratio: float = 3.0, min_negatives: int = 3) -> None:
        super().__init__()
        require_number("negative_ratio", negative_ratio, "[0, inf)")
        require_whole_number("min_negatives", min_negatives, 0)
        self.negative_ratio = negative_ratio
        self.min_negatives = min_negatives

    def forward(
        self, logits: Float[Tensor, "batch boxes classes"], labels: Int[Tensor, "batch boxes"]
    ) -> Float[Tensor, ""]:
        """Summed over the batch."""
        counts = (labels > 0) | self.mine(logits.detach(), labels)
        if can_read(counts):
            rows = counts.flatten().nonzero().squeeze(1)
            return F.cross_entropy(logits.flatten(0, 1).index_select(0, rows), labels.flatten()[rows], reduction="sum")
        return torch.where(counts, cross_entropy(logits, labels), 0).sum()

    def mine(
        self, logits: Float[Tensor, "batch boxes classes"], labels: Int[Tensor, "batch boxes"]
    ) -> Bool[Tensor, "batch boxes"]:
        """The negatives that count: those with the highest loss as background."""
        # Autocast would make the sum of exponentials one of 8 bits.
        with torch.autocast(logits.device.type, enabled=False):
            hardness = _hardness(logits.float())
        positives = (labels > 0).sum(dim=1, keepdim=True)
        wanted = torch.where(positives > 0, positives * self.negative_ratio, self.min_negatives)
        most = labels.shape[1] if not can_read(wanted) else min(labels.shape[1], math.ceil(wanted.max()))
        hardest = torch.where(labels == 0, hardness, -math.inf).topk(most, dim=1).indices
        rank = torch.arange(most, device=labels.device).expand_as(hardest)
        return torch.zeros_like(labels, dtype=torch.bool).scatter(1, hardest, rank < wanted) & (labels == 0)


def _hardness(logits: Float[Tensor, "batch boxes classes"]) -> Float[Tensor, "batch boxes"]:
    """Rises with the loss as background."""
    if can_read(logits) and len(logits):
        # 1 / p instead of -log p, and the sum as a product with ones: half the time.
        exponentials = logits.exp()
        background = exponentials[..., 0].contiguous()
        inverse = (exponentials @ logits.new_ones(logits.shape[-1])).div_(background)
        # NaN is neither.
        if background.min() > LEAST_EXPONENTIAL and inverse.max() < math.inf:
            return inverse
    return -logits.log_softmax(dim=-1)[..., 0]


LEAST_EXPONENTIAL = 1e-30
"""Far above where float32 has no digits left."""


class FocalLoss(nn.Module):
    """-α (1 - p)^γ log p of the true class over all default boxes: arXiv 1708.02002, with softmax and no mining.

    Args:
        alpha: weight of the positives; background has 1 - ``alpha``.
        gamma: 0 is cross-entropy; more makes easy boxes count less.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        require_number("alpha", alpha, "[0, 1]")
        require_number("gamma", gamma, "[0, inf)")
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, logits: Float[Tensor, "batch boxes classes"], labels: Int[Tensor, "batch boxes"]
    ) -> Float[Tensor, ""]:
        boxwise = cross_entropy(logits, labels)
        # 1 - p without cancellation; the clamp keeps the slope of the power finite at p = 1.
        miss = -torch.expm1(-boxwise.clamp(min=torch.finfo(boxwise.dtype).eps))
        weight = torch.where(labels > 0, self.alpha, torch.where(labels == 0, 1 - self.alpha, 0.0))
        return (weight * miss**self.gamma * boxwise).sum()


class SmoothL1(nn.Module):
    """Of the offsets, summed over the four: (σx)²/2 where |x| < 1/σ², |x| - ½/σ² elsewhere (arXiv 1504.08083)."""

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        require_number("sigma", sigma, "(0, inf)")
        self.sigma = sigma

    def forward(
        self,
        offsets: Float[Tensor, "*batch boxes 4"],
        boxes: Float[Tensor, "*batch boxes 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "*batch boxes"]:
        return F.smooth_l1_loss(offsets, encode(boxes, default_boxes), reduction="none", beta=self.sigma**-2).sum(
            dim=-1
        )


class L1(nn.Module):
    """Of the offsets, summed over the four."""

    def forward(
        self,
        offsets: Float[Tensor, "*batch boxes 4"],
        boxes: Float[Tensor, "*batch boxes 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "*batch boxes"]:
        return (offsets - encode(boxes, default_boxes)).abs().sum(dim=-1)


SMALLEST_AREA = 1e-12
"""Least divisor of an IoU, so that empty boxes give 0 and not NaN: a square a millionth of the image wide."""


class BoxIoULoss(nn.Module):
    """1 - GIoU, DIoU or CIoU of the decoded boxes: arXiv 1902.09630 and 1911.08287.

    The losses of torchvision.ops pick the boxes that overlap by a mask, for which a GPU has to wait.
    """

    def __init__(self, kind: Literal["giou", "diou", "ciou"] = "giou") -> None:
        super().__init__()
        if kind not in ("giou", "diou", "ciou"):
            raise ValueError(f"kind: expected one of giou, diou, ciou, got {kind!r}")
        self.kind = kind

    def forward(
        self,
        offsets: Float[Tensor, "*batch boxes 4"],
        boxes: Float[Tensor, "*batch boxes 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "*batch boxes"]:
        left_top, right_bottom = decode(offsets, default_boxes).split(2, dim=-1)
        other_left_top, other_right_bottom = boxes.split(2, dim=-1)
        size, other_size = right_bottom - left_top, other_right_bottom - other_left_top
        shared = torch.minimum(right_bottom, other_right_bottom) - torch.maximum(left_top, other_left_top)
        around = torch.maximum(right_bottom, other_right_bottom) - torch.minimum(left_top, other_left_top)
        intersection = _area(shared.clamp(min=0))
        union = _area(size) + _area(other_size) - intersection
        iou = intersection / union.clamp(min=SMALLEST_AREA)
        if self.kind == "giou":
            return 1 - iou + (_area(around) - union) / _area(around).clamp(min=SMALLEST_AREA)
        between_centres = (left_top + right_bottom - other_left_top - other_right_bottom) / 2
        apart = between_centres.square().sum(dim=-1) / around.square().sum(dim=-1).clamp(min=SMALLEST_AREA)
        if self.kind == "diou":
            return 1 - iou + apart
        angle, other_angle = torch.atan2(*size.unbind(dim=-1)), torch.atan2(*other_size.unbind(dim=-1))
        unlike = (2 / math.pi * (angle - other_angle)).square()
        weight = (unlike / (1 - iou + unlike).clamp(min=SMALLEST_AREA)).detach()
        return 1 - iou + apart + weight * unlike


def _area(size: Float[Tensor, "*batch boxes 2"]) -> Float[Tensor, "*batch boxes"]:
    """Not ``prod``, whose gradient counts the zeros on the host."""
    return size[..., 0] * size[..., 1]


class MeanOverBoxesLoss(nn.Module):
    """The plain objective of d2l.ai, section 14.7: nothing is mined and N does not matter.

    Cross-entropy averaged over all default boxes, plus the L1 of the offsets averaged over all four offsets of all
    default boxes, those that are not positive counting as 0.
    """

    def forward(self, predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]) -> Losses:
        with torch.autocast(predictions.logits.device.type, enabled=False):
            classification = cross_entropy(predictions.logits.float(), matches.labels).mean()
            distance = L1()(predictions.offsets.float(), matches.boxes, default_boxes)
            localization = torch.where(matches.labels > 0, distance, 0).mean() / 4
        return Losses(classification + localization, classification, localization)


class PlainErrors(NamedTuple):
    """What d2l.ai prints beside its training curve."""

    class_error: Float[Tensor, ""]
    """Share of default boxes whose likeliest class is not the matched one; ignored ones count as right."""
    box_mae: Float[Tensor, ""]
    """Mean absolute error of the offsets, over all default boxes, where those that are not positive count as 0."""


def plain_errors(predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]) -> PlainErrors:
    """d2l.ai's class error and box error. They say little: a network that finds nothing has a class error near 0."""
    wrong = (predictions.logits.argmax(dim=-1) != matches.labels) & (matches.labels != IGNORED_LABEL)
    distance = L1()(predictions.offsets.float(), matches.boxes, default_boxes)
    return PlainErrors(wrong.float().mean(), torch.where(matches.labels > 0, distance, 0).mean() / 4)


def cross_entropy(
    logits: Float[Tensor, "batch boxes classes"], labels: Int[Tensor, "batch boxes"]
) -> Float[Tensor, "batch boxes"]:
    """Of each default box; 0 where it is ignored."""
    boxwise = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED_LABEL)
    return boxwise.view_as(labels)


def _share_of_positives(positive: Bool[Tensor, "batch boxes"]) -> Float[Tensor, ""]:
    """The positives of all ranks, at least 1, over the number of ranks.

    DDP averages the gradients of the ranks, so that dividing by this divides their sum by the whole count.
    """
    return collectives.all_reduce_sum(positive.sum().float()).clamp(min=1) / collectives.world_size()
