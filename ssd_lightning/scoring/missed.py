"""Reasons why SSD missed an object: the step from default boxes to detections at which the object was lost."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssd_lightning.box_design.coverage import best_ious, sides
from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.batches import Key, SampleDataset, collate
from ssd_lightning.data.data_set import Pictures
from ssd_lightning.detector.boxes import decode, pairwise_iou
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess, best_candidates, non_maximum_suppression
from ssd_lightning.records import DetectionRecords, ObjectRecords, select
from ssd_lightning.scoring.errors import find_errors
from ssd_lightning.structures import Objects, Predictions

NO_DEFAULT_BOX = "no default box"
SCORED_AS_BACKGROUND = "scored as background"
SCORED_AS_OTHER_CLASS = "scored as another class"
MISPLACED = "placed badly"
CUT = "cut by top-k"
SUPPRESSED = "suppressed"
TAKEN = "taken for another"

REASONS = {
    NO_DEFAULT_BOX: "no default box overlaps the object enough",
    SCORED_AS_BACKGROUND: "its default boxes score its class no higher than the threshold",
    SCORED_AS_OTHER_CLASS: "the same, and they score another class above the threshold",
    MISPLACED: "its default boxes score its class, but no box above the threshold is moved onto the object",
    CUT: "a box was on the object, but not among the best of its class or of the picture",
    SUPPRESSED: "a box was on the object, but non-maximum suppression kept a better box of the class instead",
    TAKEN: "a detection is on the object, but counts for another object that it overlaps more",
}
"""All reasons, and the meaning of each, in the order of the steps."""


class Misses(NamedTuple):
    """The reason why each of some objects was missed."""

    reasons: np.ndarray
    """One of ``REASONS``."""
    default_box_iou: Float[np.ndarray, " misses"]
    """Highest IoU of any default box with the object."""
    score: Float[np.ndarray, " misses"]
    """Highest score of the object's class among the default boxes that are matched to the object."""
    moved_iou: Float[np.ndarray, " misses"]
    """Highest IoU of any decoded box that scores the object's class above the threshold; 0 without such a box."""


def why_missed(
    model: SSD,
    postprocess: PostProcess,
    matcher: BoxMatcher,
    pictures: Pictures,
    detections: DetectionRecords,
    objects: ObjectRecords,
    iou_threshold: float = 0.5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Find the reason for each object that is not found, among ``REASONS``.

    The network runs again on the pictures with such objects.

    Args:
        model: in evaluation mode, on any device.
        postprocess: makes the detections. Only detections above its ``score_threshold`` are used. With the threshold
            of drawings, an object counts as missed if its detection is not drawn.
        matcher: matcher of the training.
        pictures: the data set.
        detections: detections of the model.
        objects: the truth as stored with the detections, boxes in pixels. ``image_ids`` are positions in ``pictures``.
        iou_threshold: lowest IoU at which a detection finds an object.
        batch_size: number of pictures that go through the network at once.

    Returns:
        A row for each object that is not found; the index is its row in ``objects``. Columns: ``image_id``, ``label``,
        ``side`` (√area in pixels of the network's input), ``cause`` (see
        :func:`ssd_lightning.scoring.find_errors`), ``reason`` (categorical: ``value_counts()`` has all reasons),
        and the numbers of :class:`Misses`.

    Raises:
        ValueError: as :func:`ssd_lightning.scoring.find_errors`, and if the pictures have other objects.
    """
    seen = select(detections, detections.scores > postprocess.score_threshold)
    errors = find_errors(seen, objects, model.num_classes, iou_threshold)
    missed = np.flatnonzero(errors.is_not_found)
    images = np.unique(objects.image_ids[missed])
    rows, parts = [missed[:0]], [Misses(*(np.zeros(0, dtype=kind) for kind in (object, float, float, float)))]
    boxes = np.zeros((len(objects.labels), 4), dtype=np.float32)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels, truth = _network_input(model, pictures, objects, batch)
        where = np.flatnonzero(np.isin(objects.image_ids, batch))
        is_missed = np.isin(where, missed)
        # The objects of a picture keep their order in the batch.
        image = np.searchsorted(batch, objects.image_ids[where])
        position = np.array([(image[:row] == image[row]).sum() for row in range(len(image))], dtype=np.int64)
        boxes[where] = truth.boxes.cpu().numpy()[image, position]
        chosen = torch.from_numpy(np.stack((image, position))[:, is_missed]).to(truth.labels.device)
        with torch.inference_mode():
            predictions = model(pixels)
            parts.append(
                find_reasons(
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
            "cause": errors.object_causes[missed],
            "reason": pd.Categorical(misses.reasons, list(REASONS)),
            "default_box_iou": misses.default_box_iou,
            "score": misses.score,
            "moved_iou": misses.moved_iou,
        },
        index=pd.Index(missed, name="object"),
    ).sort_index()


def find_reasons(
    predictions: Predictions,
    default_boxes: Float[Tensor, "boxes 4"],
    objects: Objects,
    images: Int[Tensor, " misses"],
    positions: Int[Tensor, " misses"],
    matcher: BoxMatcher,
    postprocess: PostProcess,
    iou_threshold: float = 0.5,
) -> Misses:
    """Find the reasons why objects of a batch were missed.

    A default box would find an object if it scores the object's class above the threshold and its decoded box has IoU ≥
    ``iou_threshold``. Where such boxes exist, the reason is the last step that one of these boxes reached: best of the
    class, suppression, best of the picture. Otherwise the reason is the first that applies: no default box overlaps the
    object enough, scored as background or as another class, placed badly. The first of these is no reason where an
    adaptive matcher trains more default boxes on the object than its forced match.

    Args:
        predictions: predictions of the network.
        default_boxes: cxcywh.
        objects: all objects of the batch.
        images: image of each missed object.
        positions: position of each missed object in its image.
        matcher: matcher of the training.
        postprocess: makes the detections.
        iou_threshold: lowest IoU at which a detection finds an object.
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

    # Only boxes of one class suppress each other, so each class can be processed alone.
    best = best_candidates(ranked.unsqueeze(1), postprocess.candidates_per_class)
    candidate_scores, candidates = best.scores.squeeze(1), best.box.squeeze(1)
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

    reasons = np.select(
        [
            numpy(is_final.any(dim=1)),
            numpy(is_kept.any(dim=1)),
            numpy(is_candidate.any(dim=1)),
            numpy(finds.any(dim=1)),
            # An adaptive matcher may train several default boxes below the threshold.
            (default_box_iou < matcher.iou_threshold) & numpy(is_matched.sum(dim=1) <= 1),
            numpy(score > postprocess.score_threshold),
            numpy(other_score > postprocess.score_threshold),
        ],
        [TAKEN, CUT, SUPPRESSED, CUT, NO_DEFAULT_BOX, MISPLACED, SCORED_AS_OTHER_CLASS],
        default=SCORED_AS_BACKGROUND,
    )
    return Misses(
        reasons.astype(object),
        default_box_iou.astype(np.float64),
        numpy(score).astype(np.float64),
        numpy(iou.amax(dim=1)).astype(np.float64),
    )


def _network_input(
    model: SSD, pictures: Pictures, objects: ObjectRecords, images: Int[np.ndarray, " images"]
) -> tuple[Tensor, Objects]:
    """Return pictures as the network scores them, and all their objects, on the device of the model."""
    if images[-1] >= len(pictures):
        raise ValueError(
            f"pictures: expected the {images[-1] + 1} or more pictures of the detections, got {len(pictures)}"
        )
    dataset = SampleDataset(pictures, Augmentation(), model.image_size, antialias=model.antialias)
    items = [dataset[Key(0, int(image))] for image in images]
    for image, item in zip(images, items, strict=True):
        stored = objects.labels[objects.image_ids == image]
        if not np.array_equal(item.sample.labels, stored):
            raise ValueError(
                f"pictures: expected objects with labels {stored.tolist()} in picture {image}, "
                f"as stored with the detections, got {item.sample.labels.tolist()}"
            )
    batch = collate(items)
    device = model.default_boxes.device
    return batch.images.to(device), Objects(*(column.to(device) for column in batch.objects))
