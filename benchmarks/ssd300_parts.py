"""Compare matching, loss and post-processing of SSD300 with torchvision's, on the same inputs in one process.

    uv run python benchmarks/ssd300_parts.py

The inputs have 8732 default boxes, 21 classes with background, and a batch of 32. The results are checked to be equal
first; then the two sides take turns, and medians are compared. Both sides run without and then with kept memory, which
``ssd-train`` sets for its process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import box_iou

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, encode, pairwise_iou
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.losses import MinedCrossEntropy, MultiBoxLoss
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.devices import keep_freed_memory
from ssd_lightning.structures import Detections, Objects, Predictions

BATCH, CLASSES, SIDE = 32, 21, 300
GRIDS = [(side, side) for side in (38, 19, 10, 5, 3, 1)]
SCALES = [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torchvision_ssd = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES)
    default_boxes = DefaultBoxes(SCALES, RATIOS)(GRIDS, (SIDE, SIDE))
    anchors = [cxcywh_to_xyxy(default_boxes) * SIDE] * BATCH
    objects = some_objects(mean_objects=3)
    for memory in ("memory returned", "memory kept"):
        if memory == "memory kept":
            keep_freed_memory()
        print(memory)
        compare_losses(torchvision_ssd, default_boxes, anchors, objects, arguments.repeats)
        for noise, name in ((1.0, "many candidates"), (0.35, "few candidates")):
            predictions = trained_like(default_boxes, objects, noise)
            compare_detections(torchvision_ssd, default_boxes, anchors, predictions, name, arguments.repeats)


def some_objects(mean_objects: int) -> Objects:
    """Make at least one object in each image, and about as many as in VOC."""
    most = 2 * mean_objects
    centres, sizes = torch.rand(BATCH, most, 2), torch.rand(BATCH, most, 2) * 0.5 + 0.05
    boxes = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1).clamp(0, 1)
    count = torch.randint(1, most, (BATCH, 1))
    return Objects(
        boxes,
        torch.randint(1, CLASSES, (BATCH, most)),
        torch.zeros(BATCH, most, dtype=torch.bool),
        torch.arange(most) < count,
    )


def trained_like(default_boxes: Tensor, objects: Objects, noise: float) -> Predictions:
    """Imitate a trained network: the objects' classes and good offsets near objects, background elsewhere."""
    iou = pairwise_iou(objects.boxes * objects.valid.unsqueeze(-1), cxcywh_to_xyxy(default_boxes).unsqueeze(0))
    best, which = iou.max(dim=1)
    logits = torch.randn(BATCH, len(default_boxes), CLASSES) * noise
    logits[..., 0] += 4.7
    logits.scatter_add_(2, objects.labels.gather(1, which).unsqueeze(-1), (12 * best).unsqueeze(-1))
    offsets = encode(objects.boxes.gather(1, which.unsqueeze(-1).expand(-1, -1, 4)), default_boxes)
    return Predictions(logits, torch.where(best.unsqueeze(-1) > 0.3, offsets, 0) + 0.3 * torch.randn_like(offsets))


def compare_losses(
    torchvision_ssd: TorchvisionSSD, default_boxes: Tensor, anchors: list[Tensor], objects: Objects, repeats: int
) -> None:
    logits = torch.randn(BATCH, len(default_boxes), CLASSES, requires_grad=True)
    offsets = torch.randn(BATCH, len(default_boxes), 4, requires_grad=True)
    # torchvision uses no negatives of images without positives.
    matcher, loss = BoxMatcher(), MultiBoxLoss(MinedCrossEntropy(min_negatives=0))
    targets = [
        {"boxes": boxes[valid] * SIDE, "labels": labels[valid]}
        for boxes, labels, valid in zip(objects.boxes, objects.labels, objects.valid, strict=True)
    ]

    def ours() -> Tensor:
        logits.grad = offsets.grad = None
        total = loss(Predictions(logits, offsets), matcher(objects, default_boxes), default_boxes).total
        total.backward()
        return total

    def theirs() -> Tensor:
        logits.grad = offsets.grad = None
        matched = [
            torchvision_ssd.proposal_matcher(box_iou(target["boxes"], anchor))
            for target, anchor in zip(targets, anchors, strict=True)
        ]
        outputs = {"cls_logits": logits, "bbox_regression": offsets}
        total = sum(torchvision_ssd.compute_loss(targets, outputs, anchors, matched).values())
        total.backward()
        return total

    # The results differ a little: if two objects have the same best default box, torchvision loses one of them.
    torch.testing.assert_close(ours(), theirs(), rtol=5e-3, atol=0)
    report("matching + loss + backward, batch 32", "ms", 1e3, ours, theirs, repeats)


def compare_detections(
    torchvision_ssd: TorchvisionSSD,
    default_boxes: Tensor,
    anchors: list[Tensor],
    predictions: Predictions,
    name: str,
    repeats: int,
) -> None:
    postprocess = PostProcess(
        score_threshold=torchvision_ssd.score_thresh,
        nms_threshold=torchvision_ssd.nms_thresh,
        candidates_per_class=torchvision_ssd.topk_candidates,
        max_detections=torchvision_ssd.detections_per_img,
    )

    def ours() -> Detections:
        return postprocess(predictions, default_boxes)

    @torch.no_grad()
    def theirs() -> list[dict[str, Tensor]]:
        outputs = {"cls_logits": predictions.logits, "bbox_regression": predictions.offsets}
        return torchvision_ssd.postprocess_detections(outputs, anchors, [(SIDE, SIDE)] * BATCH)

    detections = ours()
    for row, expected in enumerate(theirs()):
        valid = detections.valid[row]
        found = detections.scores[row][valid], detections.labels[row][valid], detections.boxes[row][valid] * SIDE
        other = expected["scores"], expected["labels"], expected["boxes"]
        torch.testing.assert_close(in_one_order(*found), in_one_order(*other), rtol=1e-4, atol=1e-3)
    candidates = (predictions.logits.softmax(-1)[..., 1:] > 0.01).sum().item() / BATCH
    title = f"post-processing, {name} ({candidates:.0f} an image)"
    report(title, "ms/image", 1e3 / BATCH, ours, theirs, repeats)


def in_one_order(scores: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """Sort rows of score, label and box, by place where the scores are equal."""
    rows = torch.cat((scores.unsqueeze(1), labels.unsqueeze(1).float(), boxes), dim=1)
    for column in (3, 2, 1):
        rows = rows[rows[:, column].argsort(stable=True)]
    return rows[rows[:, 0].argsort(descending=True, stable=True)]


def report(
    title: str, unit: str, factor: float, ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> None:
    """Print the medians of both sides, which take turns so that a busy machine disturbs both."""
    times: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for _ in range(repeats):
        for side, measured in times.items():
            start = time.perf_counter()
            side()
            measured.append(time.perf_counter() - start)
    mine, other = (statistics.median(measured) * factor for measured in times.values())
    print(f"{title:<52} torchvision {other:7.2f} {unit}   ours {mine:7.2f} {unit}   {other / mine:5.1f} times as fast")


if __name__ == "__main__":
    main()
