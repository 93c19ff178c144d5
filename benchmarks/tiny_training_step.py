"""Compare TinySSD's training step with a plain version of d2l.ai's recipe, section 14.7, in one process.

    uv run python benchmarks/tiny_training_step.py

The batch has 32 pictures of 256×256 pixels with one object each. The recipe labels anchors image by image, as the
book does, and assigns the best anchors in a Python loop over objects. Its loss is cross-entropy and L1 over all
anchors. Both losses are checked to be equal first. Our step runs as in ``ssd-train``: channels-last, with kept memory,
and in the fastest precision of the CPU. Kept memory is a setting of the process, so the recipe is timed before it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, encode
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.losses import MeanOverBoxesLoss, MultiBoxLoss
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.devices import fastest_precision, keep_freed_memory
from ssd_lightning.structures import Objects

SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    repeats, batch = arguments.repeats, arguments.batch
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    corners = torch.rand(batch, 1, 2) * 0.6
    boxes = torch.cat((corners, corners + torch.rand(batch, 1, 2) * 0.15 + 0.15), dim=-1)
    flag = torch.ones(batch, 1, dtype=torch.bool)
    objects = Objects(boxes, torch.ones(batch, 1, dtype=torch.int64), ~flag, flag)

    theirs, theirs_loss = recipe_step(images.contiguous(), objects)
    mine, mine_loss = our_step(images, objects, MeanOverBoxesLoss())
    torch.testing.assert_close(mine_loss, theirs_loss, rtol=1e-4, atol=1e-6)

    slow = measure(theirs, repeats)
    with_memory_returned = measure(mine, repeats)
    keep_freed_memory()
    fast = measure(our_step(images, objects, MultiBoxLoss())[0], repeats)
    precision = fastest_precision("cpu", new_model())
    fastest = measure(our_step(images, objects, MultiBoxLoss(), precision)[0], repeats)
    for name, speed in (
        ("recipe of d2l.ai", slow),
        ("ours, glibc as it is", with_memory_returned),
        ("ours, memory kept", fast),
        (f"ours, as ssd-train runs it, {precision}", fastest),
    ):
        print(f"{name:<40} {speed * batch:6.1f} images/s   {speed / slow:.1f} times")


def new_model() -> SSD:
    torch.manual_seed(1)
    boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2]] * 5)
    return SSD(Tiny(), boxes, num_classes=1, image_size=SIDE)


def our_step(
    images: Tensor, objects: Objects, objective: nn.Module, precision: str = "32-true"
) -> tuple[Callable[[], Tensor], Tensor]:
    """Return the step, and the loss of its first call."""
    model = new_model().to(memory_format=torch.channels_last)
    matcher, optimizer = BoxMatcher(), torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=5e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = objective(model(images), matcher(objects, model.default_boxes), model.default_boxes).total
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, step()


def recipe_step(images: Tensor, objects: Objects) -> tuple[Callable[[], Tensor], Tensor]:
    """Return the book's step: float pictures, ReLU before the pool, anchors labelled image by image."""
    model = new_model()
    for block in [module for module in model.backbone.modules() if isinstance(module, nn.Sequential)]:
        if isinstance(block[-1], nn.ReLU):
            block[-2], block[-1] = block[-1], block[-2]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=5e-4)
    anchors = cxcywh_to_xyxy(model.default_boxes)
    classification, localization = nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none")

    def label_anchors() -> tuple[Tensor, Tensor, Tensor]:
        offsets, masks, classes = [], [], []
        for boxes, labels in zip(objects.boxes, objects.labels, strict=True):
            assigned = assign(boxes, anchors)
            found = assigned >= 0
            mask = found.float().unsqueeze(-1).repeat(1, 4)
            target = torch.zeros(len(anchors), dtype=torch.long)
            matched = torch.zeros(len(anchors), 4)
            rows = torch.nonzero(found)[:, 0]
            target[rows] = labels[assigned[rows]]
            matched[rows] = boxes[assigned[rows]]
            offsets.append((encode(matched, model.default_boxes) * mask).reshape(-1))
            masks.append(mask.reshape(-1))
            classes.append(target)
        return torch.stack(offsets), torch.stack(masks), torch.stack(classes)

    def step() -> Tensor:
        optimizer.zero_grad()
        predictions = model(images.float())
        offsets, masks, classes = label_anchors()
        predicted = predictions.offsets.reshape(len(images), -1)
        by_class = classification(predictions.logits.reshape(-1, 2), classes.reshape(-1))
        by_class = by_class.reshape(len(images), -1).mean(dim=1)
        by_box = localization(predicted * masks, offsets * masks).mean(dim=1)
        loss = (by_class + by_box).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, step()


def assign(boxes: Tensor, anchors: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Assign each anchor an object or -1: first by the threshold, then each object its best anchor."""
    iou = box_iou(anchors, boxes)
    best, which = torch.max(iou, dim=1)
    assigned = torch.where(best >= iou_threshold, which, -1)
    for _ in range(len(boxes)):
        flat = int(torch.argmax(iou))
        anchor, box = divmod(flat, len(boxes))
        assigned[anchor] = box
        iou[:, box] = -1
        iou[anchor, :] = -1
    return assigned


def measure(step: Callable[[], Tensor], repeats: int) -> float:
    """Return steps per second, for the median step."""
    step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


if __name__ == "__main__":
    main()
