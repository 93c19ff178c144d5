"""Why SSD missed an object: how far it came on the way from default boxes to detections."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssd_lightning.box_design.coverage import best_ious, sides
from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.detector.boxes import decode, pairwise_iou
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess, non_maximum_suppression
from ssd_lightning.scoring.errors import FOUND, IGNORED, find_errors
from ssd_lightning.structures import DetectionRecords, ObjectRecords, Objects, Predictions

if TYPE_CHECKING:
    from ssd_lightning.data.datamodule import Pictures


NO_DEFAULT_BOX = "no default box"
BACKGROUND = "scored as background"
OTHER_CLASS = "scored as another class"
MISPLACED = "placed badly"
CUT = "cut by top-k"
SUPPRESSED = "suppressed"
TAKEN = "taken for another"

REASONS = {
    NO_DEFAULT_BOX: "none overlaps it enough",
    BACKGROUND: "its default boxes score its class no higher than the threshold",
    OTHER_CLASS: "the same, and another class above it",
    MISPLACED: "they score it, but no box above the threshold is moved onto it",
    CUT: "a box was on it, but not among the best of its class, or of the picture",
    SUPPRESSED: "a box was on it, but a better one of its class beside it removed that",
    TAKEN: "a detection is on it, but counts for another object that it overlaps more",
}
"""Every reason, with what it means, in the order in which an object gets as far."""


class Misses(NamedTuple):
    """Why each of some objects was missed."""

    reasons: np.ndarray
    """Of ``REASONS``."""
    default_box_iou: Float[np.ndarray, " misses"]
    """The highest of any default box."""
    score: Float[np.ndarray, " misses"]
    """The highest of its class, among the default boxes that are matched to it."""
    moved_iou: Float[np.ndarray, " misses"]
    """The highest of any box that scores its class above the threshold, once it is moved; 0 where there is none."""


def why_missed(
    model: SSD,
    postprocess: PostProcess,
    matcher: BoxMatcher,
    pictures: "Pictures",
    detections: DetectionRecords,
    objects: ObjectRecords,
    iou_threshold: float = 0.5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """A row for each object that is not found, with what the model says about it; ``REASONS`` tells what it can be.

    The network runs again on the pictures with such objects, and on no others. ``value_counts()`` of the column
    ``reason`` has all reasons. Other columns: ``image_id``, ``label``, ``side`` (√area in pixels of the network's
    input), ``cause`` (see :func:`ssd_lightning.review.find_errors`), and the numbers of :class:`Misses`. The index
    is the row in ``objects``.

    Args:
        model: in evaluation mode, on any device.
        postprocess: how its detections are made. Detections and objects are looked at from its ``score_threshold`` on:
            with a higher one it says what is not seen in pictures, with the one of scoring what is not found at all.
        matcher: how it was trained.
        pictures: the data set.
        detections: of the model.
        objects: the truth, boxes in pixels, as stored with the detections. ``image_ids`` are positions in ``pictures``.
        iou_threshold: from which on a detection finds an object.
        batch_size: pictures that go through the network at once.

    Raises:
        ValueError: as :func:`ssd_lightning.review.find_errors`, and when the pictures have other objects.
    """
    is_seen = detections.scores > postprocess.score_threshold
    seen = DetectionRecords(*(column[is_seen] for column in detections))
    causes = find_errors(seen, objects, model.num_classes, iou_threshold).object_causes
    missed = np.flatnonzero(~np.isin(causes, (FOUND, IGNORED)))
    images = np.unique(objects.image_ids[missed])
    rows, parts = [missed[:0]], [Misses(*(np.zeros(0, dtype=kind) for kind in (object, float, float, float)))]
    boxes = np.zeros((len(objects.labels), 4), dtype=np.float32)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels, truth = _network_input(model, pictures, objects, batch)
        where = np.flatnonzero(np.isin(objects.image_ids, batch))
        is_missed = np.isin(where, missed)
        # Objects of a picture have kept their order.
        image = np.searchsorted(batch, objects.image_ids[where])
        position = np.array([(image[:row] == image[row]).sum() for row in range(len(image))], dtype=np.int64)
        boxes[where] = truth.boxes.cpu().numpy()[image, position]
        chosen = torch.from_numpy(np.stack((image, position))[:, is_missed]).to(truth.labels.device)
        with torch.inference_mode():
            predictions = model(pixels)
            parts.append(
                reasons_of(
                    predictions, model.default_boxes, truth, chosen[0], chosen[1], matcher, postprocess, iou_threshold
                )
            )
        rows.append(where[is_missed])
    missed, misses = np.concatenate(rows), Misses(*map(np.concatenate, zip(*parts, strict=True)))
    return pd.DataFrame(
        {
            "image_id": objects.image_ids[missed],
            "label": objects.labels[missed],
            "side": sides(boxes[missed], model.image_size),
            "cause": causes[missed],
            "reason": pd.Categorical(misses.reasons, list(REASONS)),
            "default_box_iou": misses.default_box_iou,
            "score": misses.score,
            "moved_iou": misses.moved_iou,
        },
        index=pd.Index(missed, name="object"),
    ).sort_index()


def reasons_of(
    predictions: Predictions,
    default_boxes: Float[Tensor, "boxes 4"],
    objects: Objects,
    images: Int[Tensor, " misses"],
    positions: Int[Tensor, " misses"],
    matcher: BoxMatcher,
    postprocess: PostProcess,
    iou_threshold: float = 0.5,
) -> Misses:
    """Why objects of a batch were missed; ``objects`` are all that the batch has, the others are its background.

    A default box would find an object if it scores its class above the threshold and is moved onto it, at IoU ≥
    ``iou_threshold``. Where there are such boxes, the reason is the last step that any of them came to: the best of
    the class, suppression, the best of the picture. Where there is none, the reason is the first of these that is so:
    no default box reaches it, background or another class, placed badly.

    Args:
        predictions: of the network.
        default_boxes: cxcywh.
        objects: of the batch.
        images: of each object that was missed.
        positions: of it within its image.
        matcher: how the network was trained.
        postprocess: how detections are made.
        iou_threshold: from which on a detection finds an object.
    """
    boxes, labels = objects.boxes[images, positions], objects.labels[images, positions]
    scores = predictions.logits.float().softmax(dim=-1)[images, :, 1:]
    moved = decode(predictions.offsets.float(), default_boxes).clamp(0, 1)[images]
    own = scores.gather(2, (labels - 1).view(-1, 1, 1).expand(-1, scores.shape[1], 1)).squeeze(2)
    ranked = own
    if postprocess.class_agnostic:
        ranked, likeliest = scores.max(dim=2)
        own = torch.where(likeliest == labels.unsqueeze(1) - 1, own, 0)
    is_above = own > postprocess.score_threshold
    iou = torch.where(is_above, pairwise_iou(boxes.unsqueeze(1), moved).squeeze(1), 0)
    finds = is_above & (iou >= iou_threshold)

    # Only those of one class suppress each other, so that a class can be followed without the others.
    candidate_scores, candidates = ranked.topk(min(postprocess.candidates_per_class, ranked.shape[1]), dim=1)
    is_candidate = finds.gather(1, candidates)
    kept = non_maximum_suppression(
        moved.gather(1, candidates.unsqueeze(-1).expand(-1, -1, 4)),
        torch.zeros_like(candidates),
        candidate_scores > postprocess.score_threshold,
        postprocess.nms_threshold,
        candidates.shape[1],
    )
    is_kept = is_candidate.gather(1, kept.candidate) & kept.valid
    final = postprocess(predictions, default_boxes)
    is_final = final.valid[images] & (final.labels[images] == labels.unsqueeze(1))
    is_final &= pairwise_iou(boxes.unsqueeze(1), final.boxes[images]).squeeze(1) >= iou_threshold

    matches = matcher(objects, default_boxes)
    is_matched = (matches.labels[images] > 0) & (matches.objects[images] == positions.unsqueeze(1))
    score = torch.where(is_matched, own, 0).amax(dim=1)
    of_others = scores.scatter(2, (labels - 1).view(-1, 1, 1).expand(-1, scores.shape[1], 1), 0).amax(dim=2)
    other_score = torch.where(is_matched, of_others, 0).amax(dim=1)
    default_box_iou = best_ious(boxes.cpu().numpy(), default_boxes.cpu())

    def numpy(tensor: Tensor) -> np.ndarray:
        return tensor.cpu().numpy()

    came_to = {
        TAKEN: is_final.any(dim=1),
        CUT: is_kept.any(dim=1),
        SUPPRESSED: is_candidate.any(dim=1),
    }
    reasons = np.select(
        [
            *map(numpy, came_to.values()),
            numpy(finds.any(dim=1)),
            default_box_iou < matcher.iou_threshold,
            numpy(score > postprocess.score_threshold),
            numpy(other_score > postprocess.score_threshold),
        ],
        [*came_to, CUT, NO_DEFAULT_BOX, MISPLACED, OTHER_CLASS],
        default=BACKGROUND,
    )
    return Misses(
        reasons.astype(object),
        default_box_iou.astype(np.float64),
        numpy(score).astype(np.float64),
        numpy(iou.amax(dim=1)).astype(np.float64),
    )


def _network_input(
    model: SSD, pictures: "Pictures", objects: ObjectRecords, images: Int[np.ndarray, " images"]
) -> tuple[Tensor, Objects]:
    """Pictures as they are scored, and all their objects, on the device of the model."""
    # Brings Lightning along.
    from ssd_lightning.data.datamodule import Key, SampleDataset, collate

    if images[-1] >= len(pictures):
        raise ValueError(f"pictures: expected those of the detections, picture {images[-1]} too, got {len(pictures)}")
    dataset = SampleDataset(pictures, Augmentation(), model.image_size)
    items = [dataset[Key(0, int(image))] for image in images]
    for image, item in zip(images, items, strict=True):
        stored = objects.labels[objects.image_ids == image]
        if not np.array_equal(item.sample.labels, stored):
            raise ValueError(
                f"pictures: expected those of the detections, but picture {image} has objects of classes "
                f"{item.sample.labels.tolist()}, in the detections {stored.tolist()}"
            )
    batch = collate(items)
    device = model.default_boxes.device
    return batch.images.to(device), Objects(*(column.to(device) for column in batch.objects))
