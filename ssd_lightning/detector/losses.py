"""Training losses: section 2.2 of the SSD paper, and common alternatives.

A loss compares predictions with the matcher's targets and returns scalars. It is computed in float32 whatever the
autocast, over the whole batch at once, and without waiting for the device.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssd_lightning import collectives
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, decode, encode
from ssd_lightning.require import require_number, require_part, require_whole_number
from ssd_lightning.structures import IGNORED_LABEL, Losses, Matches, Predictions


class MultiBoxLoss(nn.Module):
    """The loss (L_classification + α · L_localization) / N, where N is the number of positive default boxes.

    In training, N counts the whole batch over all ranks; in evaluation each rank counts its own. Without positives N is
    1, so that the loss is finite and the background still gives a gradient.

    Args:
        classification: :class:`MinedCrossEntropy` (the paper's, and the default) or :class:`FocalLoss`.
        localization: :class:`SmoothL1` (the paper's, and the default), :class:`L1` or :class:`BoxIoULoss`.
        alpha: weight of the localization loss.
    """

    def __init__(
        self, classification: nn.Module | None = None, localization: nn.Module | None = None, alpha: float = 1.0
    ) -> None:
        super().__init__()
        require_number("alpha", alpha, "[0, 1e6]")
        for name, loss in (("classification", classification), ("localization", localization)):
            if loss is not None:
                require_part(name, loss)
        self.classification = classification or MinedCrossEntropy()
        self.localization = localization or SmoothL1()
        self.alpha = alpha

    def forward(self, predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]) -> Losses:
        """Compute the losses of a batch. ``default_boxes`` are cxcywh."""
        positive = matches.labels > 0
        with torch.autocast(predictions.logits.device.type, enabled=False):
            normalizer = _positives_per_rank(positive) if self.training else positive.sum().float().clamp(min=1)
            classification = self.classification(predictions.logits.float(), matches.labels) / normalizer
            # A default box without an object is its own target. The loss would be masked with any target, but the
            # gradient of a target that is not finite would be 0 · inf.
            targets = torch.where(positive.unsqueeze(-1), matches.boxes, cxcywh_to_xyxy(default_boxes))
            boxwise = self.localization(predictions.offsets.float(), targets, default_boxes)
            localization = torch.where(positive, boxwise, 0).sum() / normalizer
        return Losses(classification + self.alpha * localization, classification, localization)


class MinedCrossEntropy(nn.Module):
    """Cross-entropy of the positives and of the hardest negatives of each image.

    Args:
        negative_ratio: number of negatives per positive of the image.
        min_negatives: number of negatives in an image without positives.
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
        """Compute the sum over the batch."""
        boxwise = cross_entropy(logits, labels)
        counts = (labels > 0) | self.mine(boxwise.detach(), labels)
        return torch.where(counts, boxwise, 0).sum()

    def mine(
        self, boxwise: Float[Tensor, "batch boxes"], labels: Int[Tensor, "batch boxes"]
    ) -> Bool[Tensor, "batch boxes"]:
        """Select the negatives with the highest cross-entropy, which is ``boxwise``; the first among equal ones."""
        positives = (labels > 0).sum(dim=1, keepdim=True)
        wanted = torch.where(positives > 0, positives * self.negative_ratio, self.min_negatives)
        hardest = torch.where(labels == 0, boxwise, -math.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(labels.shape[1], device=labels.device).expand_as(hardest)
        return torch.zeros_like(labels, dtype=torch.bool).scatter(1, hardest, rank < wanted) & (labels == 0)


class FocalLoss(nn.Module):
    """Focal loss, -α (1 - p)^γ log p of the true class over all default boxes: arXiv 1708.02002, with softmax.

    Args:
        alpha: weight of the positives; background has the weight 1 - ``alpha``.
        gamma: 0 is cross-entropy; higher values give easy default boxes less weight.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        require_number("alpha", alpha, "[0, 1]")
        require_number("gamma", gamma, "[0, 100]")
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, logits: Float[Tensor, "batch boxes classes"], labels: Int[Tensor, "batch boxes"]
    ) -> Float[Tensor, ""]:
        """Compute the sum over the batch."""
        boxwise = cross_entropy(logits, labels)
        # expm1 computes 1 - p without cancellation; the clamp keeps the slope of the power finite at p = 1.
        miss = -torch.expm1(-boxwise.clamp(min=torch.finfo(boxwise.dtype).eps))
        weight = torch.where(labels > 0, self.alpha, torch.where(labels == 0, 1 - self.alpha, 0.0))
        return (weight * miss**self.gamma * boxwise).sum()


class SmoothL1(nn.Module):
    """Smooth L1 loss of the offsets: (σx)²/2 where |x| < 1/σ², else |x| - ½/σ² (arXiv 1504.08083)."""

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        require_number("sigma", sigma, "[0.01, 100]")
        self.sigma = sigma

    def forward(
        self,
        offsets: Float[Tensor, "*batch boxes 4"],
        boxes: Float[Tensor, "*batch boxes 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "*batch boxes"]:
        """Compute the sum over the four offsets of each default box."""
        targets = encode(boxes, default_boxes)
        return F.smooth_l1_loss(offsets, targets, reduction="none", beta=self.sigma**-2).sum(dim=-1)


class L1(nn.Module):
    """L1 loss of the offsets."""

    def forward(
        self,
        offsets: Float[Tensor, "*batch boxes 4"],
        boxes: Float[Tensor, "*batch boxes 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "*batch boxes"]:
        """Compute the sum over the four offsets of each default box."""
        return (offsets - encode(boxes, default_boxes)).abs().sum(dim=-1)


SMALLEST_AREA = 1e-12
"""Least divisor of an IoU, so that empty boxes give 0 and not NaN: a square a millionth of the image wide."""


class BoxIoULoss(nn.Module):
    """1 - GIoU, DIoU or CIoU of the decoded boxes: arXiv 1902.09630 and 1911.08287.

    The losses of ``torchvision.ops`` index by a mask, for which a GPU waits. torchvision's losses also add
    1e-7 to areas, which is the area of a small object in fractions of the image.
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
        """Compute the loss of each default box."""
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
    """Multiply the sides; the gradient of ``prod`` would count zeros on the host."""
    return size[..., 0] * size[..., 1]


class MeanOverBoxesLoss(nn.Module):
    """The plain loss of d2l.ai, section 14.7, without mining and without N.

    The loss is the mean cross-entropy over all default boxes, plus the mean L1 loss over all offsets. The L1 loss is 0
    for default boxes that are not positive.
    """

    def forward(self, predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]) -> Losses:
        """Compute the losses of a batch. ``default_boxes`` are cxcywh."""
        with torch.autocast(predictions.logits.device.type, enabled=False):
            classification = cross_entropy(predictions.logits.float(), matches.labels).mean()
            localization = _mean_absolute_error(predictions, matches, default_boxes)
        return Losses(classification + localization, classification, localization)


class PlainErrors(NamedTuple):
    """The two errors that d2l.ai prints beside its training curve."""

    class_error: Float[Tensor, ""]
    """Fraction of default boxes whose likeliest class is not the matched one; ignored ones count as right."""
    box_mae: Float[Tensor, ""]
    """Mean absolute error of all offsets, where default boxes that are not positive count as 0."""


def plain_errors(predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]) -> PlainErrors:
    """Compute d2l.ai's class error and box error.

    They are no measure of detection: a network that finds nothing has a class error near 0.
    """
    wrong = (predictions.logits.argmax(dim=-1) != matches.labels) & (matches.labels != IGNORED_LABEL)
    return PlainErrors(wrong.float().mean(), _mean_absolute_error(predictions, matches, default_boxes))


def _mean_absolute_error(
    predictions: Predictions, matches: Matches, default_boxes: Float[Tensor, "boxes 4"]
) -> Float[Tensor, ""]:
    distance = L1()(predictions.offsets.float(), matches.boxes, default_boxes)
    return torch.where(matches.labels > 0, distance, 0).mean() / 4


def cross_entropy(
    logits: Float[Tensor, "batch boxes classes"], labels: Int[Tensor, "batch boxes"]
) -> Float[Tensor, "batch boxes"]:
    """Compute the cross-entropy of each default box, which is 0 where it is ignored."""
    boxwise = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED_LABEL)
    return boxwise.view_as(labels)


def _positives_per_rank(positive: Bool[Tensor, "batch boxes"]) -> Float[Tensor, ""]:
    """Return the number of positives of all ranks, at least 1, divided by the number of ranks.

    DDP averages the gradients of the ranks. If each rank divides its loss by this number, the summed gradient is
    divided by the number of positives of all ranks.
    """
    return collectives.all_reduce_sum(positive.sum().float()).clamp(min=1) / collectives.world_size()
