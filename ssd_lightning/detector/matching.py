"""Matching of default boxes to objects: section 2.2 of the paper, "Matching strategy"."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, pairwise_iou
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.structures import IGNORED_LABEL, Matches, Objects

CLAIMED = 3.0
"""Value of a claimed pair, in place of its IoU. No IoU is above 1, and no value of ``AdaptiveMatcher`` above 2."""


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
        iou = self._ranked(iou, boxes, default_boxes)
        # A claim outranks any overlap. An object without a claim writes the value that is already there.
        claimed = claims.default_box.unsqueeze(-1)
        iou.scatter_(2, claimed, torch.where(claims.made.unsqueeze(-1), CLAIMED, iou.gather(2, claimed)))
        best_iou, best_object = iou.max(dim=1)

        positive = best_iou >= self.iou_threshold
        matched = torch.where(positive, labels.gather(1, best_object), 0)
        if self.background_threshold is not None:
            matched = torch.where(~positive & (best_iou >= self.background_threshold), IGNORED_LABEL, matched)
        return Matches(matched, best_object, boxes)

    def _ranked(
        self,
        iou: Float[Tensor, "batch objects boxes"],
        boxes: Float[Tensor, "batch objects 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "batch objects boxes"]:
        """Return the values that decide which object a free default box joins: the highest from the threshold on."""
        return iou


class AdaptiveMatcher(BoxMatcher):
    """A matcher with a threshold for each object, from the default boxes around its centre (ATSS, arXiv 1912.02424).

    Forced matches are those of :class:`BoxMatcher`. For each shape of default boxes, the ``candidates`` default
    boxes whose centres are nearest are candidates of an object. Distances are in fractions of the picture: for inputs
    that are not square, the publication's distances in pixels choose others. The object's threshold is the mean plus
    the standard deviation of the candidates' IoU. Candidates join the object if they reach the threshold and their
    centre lies in the object. A default box that could join several objects joins the one with the highest IoU.

    So an object that all default boxes fit badly still gets positives. An object that many fit well gets only the best.

    Args:
        candidates: number of candidates of each shape, 9 in the publication.
        iou_threshold: the IoU at which statistics and ``ssd-boxes`` say that a default box reaches an object. The
            matches do not depend on it.
    """

    def __init__(self, candidates: int = 9, iou_threshold: float = 0.5) -> None:
        super().__init__(iou_threshold)
        require_whole_number("candidates", candidates, 1)
        self.candidates = candidates
        # One attribute, since several threads may use a matcher.
        self._known: tuple[Float[Tensor, "boxes 4"] | None, list[Int[Tensor, " of_shape"]]] = (None, [])

    def _ranked(
        self,
        iou: Float[Tensor, "batch objects boxes"],
        boxes: Float[Tensor, "batch objects 4"],
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> Float[Tensor, "batch objects boxes"]:
        known, shapes = self._known
        if known is not default_boxes:  # The shapes are found once, since this waits for the device.
            shapes = boxes_of_shapes(default_boxes)
            self._known = default_boxes, shapes
        x, y = default_boxes[:, 0], default_boxes[:, 1]
        left, top, right, bottom = boxes.unsqueeze(2).unbind(dim=-1)
        distance = (x - (left + right) / 2).square() + (y - (top + bottom) / 2).square()
        # As for the claims, of equal values the first is chosen on every device.
        ranked = distance.view(torch.int32).long().mul_(1 << 32).add_(torch.arange(len(x), device=x.device))
        candidate = torch.cat(
            [
                of_shape[ranked[..., of_shape].topk(min(self.candidates, len(of_shape)), largest=False).indices]
                for of_shape in shapes
            ],
            dim=-1,
        )
        candidate_iou = iou.gather(2, candidate)
        deviation, mean = torch.std_mean(candidate_iou, dim=2, keepdim=True)
        x, y = x[candidate], y[candidate]
        joins = (candidate_iou > 0) & (candidate_iou >= mean + deviation)
        joins &= (left < x) & (x < right) & (top < y) & (y < bottom)
        return torch.zeros_like(iou).scatter_(2, candidate, torch.where(joins, 1 + candidate_iou, 0))


def boxes_of_shapes(default_boxes: Float[Tensor, "boxes 4"]) -> list[Int[Tensor, " of_shape"]]:
    """Return the indices of the default boxes (cxcywh) with each (width, height)."""
    shapes, shape = default_boxes[:, 2:].unique(dim=0, return_inverse=True)
    return [(shape == number).nonzero().squeeze(1) for number in range(len(shapes))]


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
