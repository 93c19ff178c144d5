"""Conversion of predictions to detections: section 2.3 of the SSD paper, "Inference"."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssd_lightning.detector.boxes import decode, pairwise_iou
from ssd_lightning.require import require_number, require_switch, require_whole_number
from ssd_lightning.structures import Detections, Predictions

BLOCK = 128
"""Number of candidates that are suppressed at once.

128 candidates keep a GPU busy, and the pairs of a batch still fit in a CPU's cache. On a CPU, 256 candidates take more
than twice as long.
"""


MOST_DETECTIONS = 100_000
"""Largest number of detections of an image; their padding takes memory in any case."""


class PostProcess:
    """Post-processing: softmax, score threshold, decoding, and non-maximum suppression (NMS) per class.

    The defaults are for scoring. To draw detections, keep only scores of at least 0.5.

    Args:
        score_threshold: score that a candidate must exceed, in [0, 1).
        nms_threshold: highest IoU of two detections of a class; above it, the one with the lower score is dropped.
        candidates_per_class: number of candidates of each class that enter NMS, best first.
        max_detections: number of detections returned for each image, best first; at most :data:`MOST_DETECTIONS`.
        class_agnostic: use only the likeliest class of each default box, and suppress across classes, as in d2l.ai.
    """

    def __init__(
        self,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        candidates_per_class: int = 400,
        max_detections: int = 200,
        class_agnostic: bool = False,
    ) -> None:
        require_number("score_threshold", score_threshold, "[0, 1)")
        require_number("nms_threshold", nms_threshold, "(0, 1]")
        require_whole_number("candidates_per_class", candidates_per_class, 1)
        require_whole_number("max_detections", max_detections, 1, MOST_DETECTIONS)
        require_switch("class_agnostic", class_agnostic)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.candidates_per_class = candidates_per_class
        self.max_detections = max_detections
        self.class_agnostic = class_agnostic

    @torch.no_grad()
    def __call__(self, predictions: Predictions, default_boxes: Float[Tensor, "boxes 4"]) -> Detections:
        """Detect objects in a batch.

        Boxes are clipped to the image before NMS.

        Args:
            predictions: output of the network.
            default_boxes: cxcywh.
        """

        def boxes_of(candidates: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates 4"]:
            offsets = predictions.offsets.float().gather(1, candidates.unsqueeze(-1).expand(-1, -1, 4))
            return decode(offsets, default_boxes[candidates]).clamp(0, 1)

        return self.choose(class_scores(predictions), boxes_of)

    @torch.no_grad()
    def choose(
        self,
        scores: Float[Tensor, "batch boxes classes"],
        boxes_of: Callable[[Int[Tensor, "batch candidates"]], Float[Tensor, "batch candidates 4"]],
    ) -> Detections:
        """Choose the detections among all default boxes.

        Args:
            scores: by object class, without background.
            boxes_of: decodes the boxes (xyxy) of some default boxes, which are given by their indices. Few default
                boxes become candidates.
        """
        if self.class_agnostic:
            scores, likeliest = scores.max(dim=-1, keepdim=True)
        scores, box = best_candidates(scores.mT, self.candidates_per_class)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device).view(1, -1, 1).expand_as(box)
        scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
        box, labels = box.flatten(1).gather(1, order), labels.flatten(1).gather(1, order)
        boxes = boxes_of(box)
        kept = non_maximum_suppression(
            boxes, labels, scores > self.score_threshold, self.nms_threshold, self.max_detections
        )
        if self.class_agnostic:
            labels = likeliest.squeeze(-1).gather(1, box) + 1
        return kept.detections(boxes, labels, scores)


def class_scores(predictions: Predictions) -> Float[Tensor, "batch boxes classes"]:
    """Compute the score of each object class, without background, for every default box."""
    return predictions.logits.float().softmax(dim=-1)[..., 1:]


class Candidates(NamedTuple):
    """The best default boxes of each class, best first."""

    scores: Float[Tensor, "batch classes candidates"]
    box: Int[Tensor, "batch classes candidates"]
    """Index of the default box."""


def best_candidates(scores: Float[Tensor, "batch classes boxes"], most: int) -> Candidates:
    """Return the ``most`` default boxes with the highest scores; equal scores stay in the order of the default boxes.

    Networks that run in bfloat16 give many equal scores, whose order would depend on the device and on the batch. Only
    which of the boxes with the lowest of the scores are left out is the choice of ``topk``.
    """
    box = scores.topk(min(most, scores.shape[2]), dim=2, sorted=False).indices.sort(dim=2).values
    best, order = scores.gather(2, box).sort(dim=2, descending=True, stable=True)
    return Candidates(best, box.gather(2, order))


class Kept(NamedTuple):
    """Candidates that survive suppression, best first, padded."""

    candidate: Int[Tensor, "batch detections"]
    """Index of the candidate; 0 where it is not valid."""
    valid: Bool[Tensor, "batch detections"]

    def detections(
        self,
        boxes: Float[Tensor, "batch candidates 4"],
        labels: Int[Tensor, "batch candidates"],
        scores: Float[Tensor, "batch candidates"],
    ) -> Detections:
        """Return the kept candidates."""
        return Detections(
            boxes.gather(1, self.candidate.unsqueeze(-1).expand(-1, -1, 4)) * self.valid.unsqueeze(-1),
            labels.gather(1, self.candidate) * self.valid,
            scores.gather(1, self.candidate) * self.valid,
            self.valid,
        )


def non_maximum_suppression(
    boxes: Float[Tensor, "batch candidates 4"],
    groups: Int[Tensor, "batch candidates"],
    alive: Bool[Tensor, "batch candidates"],
    iou_threshold: float,
    most: int,
) -> Kept:
    """Suppress candidates greedily, for a whole batch at once.

    The result is that of :func:`torchvision.ops.batched_nms` cut at ``most``. Only better candidates decide whether a
    candidate is kept, so candidates are processed in blocks, best first, until every image has enough.

    Args:
        boxes: xyxy, best first; those ``alive`` come before the others.
        groups: a number from 0 on; candidates suppress only candidates of their own group.
        alive: whether a candidate takes part.
        iou_threshold: highest IoU of two kept candidates of a group.
        most: number of candidates to keep for each image.
    """
    batch, candidates = groups.shape
    # A spare column receives the candidates beyond ``most``, and is cut off at the end.
    index = groups.new_zeros((batch, most + 1))
    count = groups.new_zeros((batch, 1))
    for start in range(0, candidates, BLOCK):
        block = slice(start, start + BLOCK)
        # All of the block, since NaN as a score comes first and is not alive.
        if not (alive[:, block] & (count < most)).any():
            break
        kept, kept_group = index[:, :most], groups.gather(1, index[:, :most])
        kept_group = kept_group.masked_fill(torch.arange(most, device=boxes.device) >= count, -1)
        kept_boxes = boxes.gather(1, kept.unsqueeze(-1).expand(-1, -1, 4))
        overlaps = pairwise_iou(kept_boxes, boxes[:, block]) > iou_threshold
        overlaps &= kept_group.unsqueeze(2) == groups[:, None, block]
        survivors = _survivors(boxes[:, block], groups[:, block], alive[:, block] & ~_any_row(overlaps), iou_threshold)
        slot = (count + survivors.cumsum(dim=1) - 1).clamp(max=most)
        position = torch.arange(start, start + survivors.shape[1], device=boxes.device).expand_as(slot)
        index = index.scatter(1, torch.where(survivors, slot, most), position)
        count = count + survivors.sum(dim=1, keepdim=True)
    valid = torch.arange(most, device=boxes.device) < count
    return Kept(index[:, :most] * valid, valid)


def _survivors(
    boxes: Float[Tensor, "batch block 4"],
    groups: Int[Tensor, "batch block"],
    alive: Bool[Tensor, "batch block"],
    iou_threshold: float,
) -> Bool[Tensor, "batch block"]:
    """Suppress greedily within a block.

    A candidate survives if no better survivor overlaps it. Each pass settles at least one more link of every chain "a
    suppresses b, so b does not suppress c". Chains are short, so few passes are needed until nothing changes.
    """
    overlaps = pairwise_iou(boxes, boxes) > iou_threshold
    overlaps &= groups.unsqueeze(2) == groups.unsqueeze(1)
    overlaps = overlaps.triu(diagonal=1)
    survivors = alive
    while True:
        settled = alive & ~_any_row(overlaps & survivors.unsqueeze(2))
        if torch.equal(settled, survivors):
            return survivors
        survivors = settled


def _any_row(pairs: Bool[Tensor, "batch rows columns"]) -> Bool[Tensor, "batch columns"]:
    """Compute ``pairs.any(dim=1)`` as a maximum, which torch vectorizes on a CPU, unlike ``any``."""
    return pairs.view(torch.uint8).amax(dim=1).view(torch.bool)
