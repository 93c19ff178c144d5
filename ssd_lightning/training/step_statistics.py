"""Statistics of a training step beside the losses: positives and offsets by level, objects, mined negatives."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssd_lightning import collectives
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, encode, pairwise_iou
from ssd_lightning.detector.losses import MinedCrossEntropy, cross_entropy
from ssd_lightning.structures import Matches, Objects, Predictions


class TrainingStatistics:
    """Means over all batches and all ranks of a training step.

    The names are as follows, with levels from 1:

    - ``positives_level_…``: number of positive default boxes of the level per picture;
    - ``offset_target_level_…``: mean absolute offset from the positive default boxes to their objects, in units of the
      variances. This is the error of a network that predicts 0;
    - ``offset_error_level_…``: mean absolute difference between predicted offsets and these targets;
    - ``objects_by_claim_alone``: share of the objects that are matched only by the forced match, with an IoU below the
      matcher's threshold;
    - ``objects_not_reached``: share of the objects whose IoU with all default boxes is below the threshold;
    - ``mined_negatives``: number of default boxes per picture that are trained as background;
    - ``mined_negatives_loss``: mean cross-entropy of the mined negatives.

    A mean over nothing is left out, such as the offsets of a level without positives.

    Args:
        boxes_of_level: number of default boxes of each level.
        iou_threshold: IoU threshold of the matcher.
        mining: the loss that mines the negatives. ``None``: the statistics of mined negatives are left out.
    """

    def __init__(
        self, boxes_of_level: Sequence[int], iou_threshold: float, mining: MinedCrossEntropy | None = None
    ) -> None:
        self.boxes_of_level = list(boxes_of_level)
        self.iou_threshold = iou_threshold
        self.mining = mining
        self._sums_and_counts: Float[Tensor, "2 statistics"] | None = None

    def clear(self) -> None:
        """Remove all batches that were added."""
        self._sums_and_counts = None

    @torch.no_grad()
    def add(
        self,
        predictions: Predictions,
        matches: Matches,
        objects: Objects,
        default_boxes: Float[Tensor, "boxes 4"],
    ) -> None:
        """Add a batch of the step, without waiting for the device."""
        pictures = torch.full((), len(matches.labels), dtype=torch.float32, device=default_boxes.device)
        # Like the losses, the statistics are computed in float32 whatever the autocast.
        with torch.autocast(default_boxes.device.type, enabled=False):
            sums_and_counts = [
                self._of_levels(predictions.offsets.float(), matches, default_boxes, pictures),
                self._of_objects(matches, objects, default_boxes),
            ]
            if self.mining is not None:
                sums_and_counts.append(_of_negatives(predictions.logits.float(), matches, self.mining, pictures))
        added = torch.cat(sums_and_counts, dim=1)
        self._sums_and_counts = added if self._sums_and_counts is None else self._sums_and_counts + added

    def take(self) -> dict[str, float]:
        """Return the statistics of the batches that were added, and remove the batches.

        This waits for the device and for the other ranks, all of which have to call it.
        """
        if self._sums_and_counts is None:
            return {}
        sums, counts = collectives.all_reduce_sum(self._sums_and_counts).tolist()
        self.clear()
        return {
            name: total / count for name, total, count in zip(self._names(), sums, counts, strict=True) if count > 0
        }

    def _names(self) -> list[str]:
        return [
            *(
                f"{kind}_level_{level}"
                for kind in ("positives", "offset_target", "offset_error")
                for level in range(1, len(self.boxes_of_level) + 1)
            ),
            "objects_by_claim_alone",
            "objects_not_reached",
            *([] if self.mining is None else ["mined_negatives", "mined_negatives_loss"]),
        ]

    def _of_levels(
        self,
        offsets: Float[Tensor, "batch boxes 4"],
        matches: Matches,
        default_boxes: Float[Tensor, "boxes 4"],
        pictures: Float[Tensor, ""],
    ) -> Float[Tensor, "2 statistics"]:
        positive = matches.labels > 0
        targets = encode(matches.boxes, default_boxes)
        boxwise = torch.stack((torch.ones_like(targets[..., 0]), _magnitude(targets), _magnitude(offsets - targets)))
        levels = torch.where(positive, boxwise, 0).split(self.boxes_of_level, dim=2)
        sums = torch.stack([level.sum(dim=(1, 2)) for level in levels], dim=1)
        positives = sums[0]
        counts = torch.stack((pictures.expand_as(positives), positives, positives))
        return torch.stack((sums.flatten(), counts.flatten()))

    def _of_objects(
        self, matches: Matches, objects: Objects, default_boxes: Float[Tensor, "boxes 4"]
    ) -> Float[Tensor, "2 statistics"]:
        reaches = pairwise_iou(objects.boxes, cxcywh_to_xyxy(default_boxes).unsqueeze(0)) >= self.iou_threshold
        number = torch.arange(objects.valid.shape[1], device=default_boxes.device).unsqueeze(-1)
        is_own = (matches.labels > 0).unsqueeze(1) & (matches.objects.unsqueeze(1) == number)
        by_claim_alone = (is_own.sum(dim=2) == 1) & ~(is_own & reaches).any(dim=2)
        shares = torch.stack((by_claim_alone, ~reaches.any(dim=2))) & objects.valid
        return torch.stack((shares.sum(dim=(1, 2)), objects.valid.sum().expand(2))).float()


def _of_negatives(
    logits: Float[Tensor, "batch boxes classes"],
    matches: Matches,
    mining: MinedCrossEntropy,
    pictures: Float[Tensor, ""],
) -> Float[Tensor, "2 statistics"]:
    losses = cross_entropy(logits, matches.labels)
    mined = mining.mine(losses, matches.labels)
    negatives = mined.sum().float()
    loss = torch.where(mined, losses, 0).sum()
    return torch.stack((torch.stack((negatives, loss)), torch.stack((pictures, negatives))))


def _magnitude(offsets: Float[Tensor, "batch boxes 4"]) -> Float[Tensor, "batch boxes"]:
    return offsets.abs().mean(dim=-1)
