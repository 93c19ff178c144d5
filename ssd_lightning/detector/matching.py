"""Matching of default boxes to objects: section 2.2 of the paper, "Matching strategy"."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, pairwise_iou
from ssd_lightning.require import require_number
from ssd_lightning.structures import IGNORED_LABEL, Matches, Objects

CLAIMED = 2.0
"""Value that replaces the IoU of a claimed pair; no IoU is above 1."""


class BoxMatcher:
    """A matcher that assigns each default box an object, background, or neither.

    First, every object claims its best free default box (a bipartite match, or forced match), the pair with the highest
    IoU first. So each object has a default box of its own, even if two objects have the same best one. Then every free
    default box joins the object with the highest IoU, if that reaches ``iou_threshold``. All others are background.

    Args:
        iou_threshold: in (0, 1].
        background_threshold: the loss ignores free default boxes whose best IoU is in [``background_threshold``,
            ``iou_threshold``). ``None``: it ignores none.
    """

    def __init__(self, iou_threshold: float = 0.5, background_threshold: float | None = None) -> None:
        require_number("iou_threshold", iou_threshold, "(0, 1]")
        if background_threshold is not None:
            require_number("background_threshold", background_threshold, "(0, 1]")
        if background_threshold is not None and background_threshold > iou_threshold:
            raise ValueError(
                f"background_threshold: expected a number in (0, iou_threshold = {iou_threshold}], "
                f"got {background_threshold}"
            )
        self.iou_threshold = iou_threshold
        self.background_threshold = background_threshold

    def __call__(self, objects: Objects, default_boxes: Float[Tensor, "boxes 4"]) -> Matches:
        """Match the objects of a batch, which may have none, to ``default_boxes`` (cxcywh)."""
        # Padding becomes an empty box in the corner, whose IoU with every box is 0.
        boxes = torch.where(objects.valid.unsqueeze(-1), objects.boxes, 0)
        labels = objects.labels
        if boxes.shape[1] == 0:
            boxes, labels = boxes.new_zeros((len(boxes), 1, 4)), labels.new_zeros((len(boxes), 1))
        iou = pairwise_iou(boxes, cxcywh_to_xyxy(default_boxes).unsqueeze(0))
        claims = claim_default_boxes(iou)
        # A claim outranks any overlap. An object without a claim writes the IoU that is already there.
        claimed = claims.default_box.unsqueeze(-1)
        iou.scatter_(2, claimed, torch.where(claims.made.unsqueeze(-1), CLAIMED, iou.gather(2, claimed)))
        best_iou, best_object = iou.max(dim=1)

        positive = best_iou >= self.iou_threshold
        matched = torch.where(positive, labels.gather(1, best_object), 0)
        if self.background_threshold is not None:
            matched = torch.where(~positive & (best_iou >= self.background_threshold), IGNORED_LABEL, matched)
        return Matches(matched, best_object, boxes)


class Claims(NamedTuple):
    """The default box that each object claims."""

    default_box: Int[Tensor, "batch objects"]
    """Index of the default box; without meaning where ``made`` is false."""
    made: Bool[Tensor, "batch objects"]
    """False for padding, for objects that touch no default box, and where no default box is left."""


def claim_default_boxes(iou: Float[Tensor, "batch objects boxes"]) -> Claims:
    """Assign one default box to each object: first the best pair of the image, then the best free pair, and so on.

    Among pairs with equal IoU, the first object claims first, and it claims its first default box. So a match depends
    neither on the other images of the batch nor on the device. At most M - 1 of M objects claim before a given object,
    so its M best default boxes are enough candidates.
    """
    batch, objects, boxes = iou.shape
    # topk may order equal values in any way, which even depends on the number of candidates. The bits of floats that
    # are not negative sort like the floats, and the lower bits make each value unique.
    ranked = iou.view(torch.int32).long().mul_(1 << 32).sub_(torch.arange(boxes, device=iou.device))
    candidate = ranked.topk(min(objects, boxes), dim=2).indices
    candidate_iou = iou.gather(2, candidate).flatten(1)
    candidate = candidate.flatten(1)
    candidates_each = candidate.shape[1] // objects
    owner = torch.arange(objects, device=iou.device).repeat_interleave(candidates_each)

    default_box = candidate.new_zeros((batch, objects))
    made = torch.zeros((batch, objects), dtype=torch.bool, device=iou.device)
    for _ in range(objects):
        best_iou, best = candidate_iou.max(dim=1, keepdim=True)
        claimed_box, claimant = candidate.gather(1, best), owner[best]
        is_made = best_iou > 0
        default_box = torch.where(is_made, default_box.scatter(1, claimant, claimed_box), default_box)
        made = torch.where(is_made, made.scatter(1, claimant, True), made)
        taken = (owner == claimant) | (candidate == claimed_box)
        candidate_iou = candidate_iou.masked_fill(taken & is_made, 0)
    return Claims(default_box, made)
