"""Which default box answers for which object: section 2.2 of the paper, "Matching strategy"."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, pairwise_iou
from ssd_lightning.devices import can_read
from ssd_lightning.require import require_number
from ssd_lightning.structures import IGNORED_LABEL, Matches, Objects


class BoxMatcher:
    """Gives each default box an object, background, or neither.

    First every object claims its best free default box, the pair with the highest IoU first, so that each object has a
    default box of its own even where two share the best one. Then every default box that is still free joins the object
    it overlaps most, if their IoU reaches ``iou_threshold``. What then is free is background.

    Args:
        iou_threshold: in (0, 1].
        background_threshold: default boxes whose best IoU is in [``background_threshold``, ``iou_threshold``) are
            ignored by the loss. ``None``: none is.
    """

    def __init__(self, iou_threshold: float = 0.5, background_threshold: float | None = None) -> None:
        require_number("iou_threshold", iou_threshold, "(0, 1]")
        if background_threshold is not None and not 0 < background_threshold <= iou_threshold:
            raise ValueError(
                f"background_threshold: expected a number in (0, {iou_threshold}], where iou_threshold ends it, "
                f"got {background_threshold}"
            )
        self.iou_threshold = iou_threshold
        self.background_threshold = background_threshold

    def __call__(self, objects: Objects, default_boxes: Float[Tensor, "boxes 4"]) -> Matches:
        """Match a batch to ``default_boxes`` (cxcywh). Images without objects are ordinary, batches of them too."""
        # Padding becomes an empty box in the corner, whose IoU with everything is 0.
        boxes = torch.where(objects.valid.unsqueeze(-1), objects.boxes, 0)
        labels = objects.labels
        if boxes.shape[1] == 0:
            boxes, labels = boxes.new_zeros((len(boxes), 1, 4)), labels.new_zeros((len(boxes), 1))
        iou = pairwise_iou(boxes, cxcywh_to_xyxy(default_boxes).unsqueeze(0))
        claims = claim_default_boxes(iou)
        # A claimed pair counts as more than any overlap. Each object writes into its own row, and where nothing is
        # claimed it writes what stands there.
        claimed = claims.default_box.unsqueeze(-1)
        iou.scatter_(2, claimed, torch.where(claims.made.unsqueeze(-1), CLAIMED, iou.gather(2, claimed)))
        best_iou, best_object = best_objects(iou, self.iou_threshold)

        positive = best_iou >= self.iou_threshold
        matched = torch.where(positive, labels.gather(1, best_object), 0)
        if self.background_threshold is not None:
            matched = torch.where(~positive & (best_iou >= self.background_threshold), IGNORED_LABEL, matched)
        return Matches(matched, best_object, boxes)


def best_objects(
    iou: Float[Tensor, "batch objects boxes"], iou_threshold: float
) -> tuple[Float[Tensor, "batch boxes"], Int[Tensor, "batch boxes"]]:
    """The highest IoU of each default box, and whose it is where it reaches the threshold."""
    if not can_read(iou):
        return iou.max(dim=1)
    # A CPU finds maxima ten times as fast as their places, and few default boxes have to know them.
    best_iou = iou.amax(dim=1)
    image, box = (best_iou >= iou_threshold).nonzero(as_tuple=True)
    best_object = torch.zeros_like(best_iou, dtype=torch.int64)
    best_object[image, box] = iou[image, :, box].argmax(dim=1)
    return best_iou, best_object


CLAIMED = 2.0
"""Stands for the IoU of an object and the default box that it has claimed; no IoU is above 1."""


class Claims(NamedTuple):
    default_box: Int[Tensor, "batch objects"]
    made: Bool[Tensor, "batch objects"]
    """False for padding, for objects that touch no default box, and where no default box is left."""


def claim_default_boxes(iou: Float[Tensor, "batch objects boxes"]) -> Claims:
    """One default box for each object: the best pair of the image first, then the best of what is free, and so on.

    Among M objects at most M - 1 default boxes can be taken before it is an object's turn, so that its M best default
    boxes are all that it can come to; the rounds run over those alone.
    """
    batch, objects, boxes = iou.shape
    if can_read(iou):
        # Where no two want the same, which is most batches, everyone gets what it wants.
        best_iou, best = iou.max(dim=2)
        made = best_iou > 0
        same = (best.unsqueeze(1) == best.unsqueeze(2)) & made.unsqueeze(1) & made.unsqueeze(2)
        if not same.triu(diagonal=1).any():
            return Claims(best, made)
    candidate_iou, candidate = iou.topk(min(objects, boxes), dim=2)
    candidate_iou = candidate_iou.flatten(1)
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
