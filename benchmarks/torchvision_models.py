"""Compare SSD300 and SSDLite320 with torchvision's: forward, post-processing and training step, with the same weights.

    uv run python benchmarks/torchvision_models.py

The weights are random. Outputs are checked to be equal first; then the two sides take turns, and medians are compared.
Both have kept memory and channels-last weights, as in ``ssd-train``. The pictures have the size of the network's input,
so that neither side resizes. Our pictures are uint8, and torchvision's are floats in 0 … 1. The training step is
forward, matching, loss, backward and an SGD step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

from ssd_lightning.detector.boxes import cxcywh_to_xyxy
from ssd_lightning.detector.losses import MinedCrossEntropy, MultiBoxLoss
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.presets import build_model
from ssd_lightning.devices import keep_freed_memory
from ssd_lightning.structures import Detections, Objects, Predictions
from ssd_lightning.training.pretrained import load_pretrained

OUTPUTS = 91
"""Number of classes of torchvision's COCO weights, with background."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    device = torch.device(arguments.device)
    for preset, make in (
        ("ssd300_torchvision", ssd300_vgg16),
        ("ssdlite320_torchvision", ssdlite320_mobilenet_v3_large),
    ):
        theirs = make(weights=None, weights_backbone=None, num_classes=OUTPUTS)
        ours = with_their_weights(preset, theirs)
        for model in (theirs, ours):
            model.to(device).to(memory_format=torch.channels_last)
        images = torch.randint(0, 256, (arguments.batch, *ours.image_size, 3), dtype=torch.uint8, device=device)
        compare(preset, ours, theirs, images.permute(0, 3, 1, 2), arguments.repeats)


def with_their_weights(preset: str, theirs: nn.Module) -> SSD:
    ours = build_model(preset, OUTPUTS - 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(theirs.state_dict(), file)
        report = load_pretrained(ours, file)
    assert not report.missing
    assert not report.skipped
    return ours


def compare(name: str, ours: SSD, theirs: TorchvisionSSD, images: Tensor, repeats: int) -> None:
    pixels = list(images.float() / 255)
    objects, targets = some_objects(images)
    postprocess = PostProcess(theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates, theirs.detections_per_img)
    matcher, loss = BoxMatcher(), MultiBoxLoss(MinedCrossEntropy(min_negatives=0))

    @torch.inference_mode()
    def our_forward() -> tuple[Tensor, ...]:
        return tuple(ours(images))

    @torch.inference_mode()
    def their_forward() -> tuple[Tensor, ...]:
        normalized, _ = theirs.transform(pixels)
        outputs = theirs.head(list(theirs.backbone(normalized.tensors).values()))
        return outputs["cls_logits"], outputs["bbox_regression"]

    def our_step() -> Tensor:
        total = loss(ours(images), matcher(objects, ours.default_boxes), ours.default_boxes).total
        return descend(ours, total)

    def their_step() -> Tensor:
        return descend(theirs, sum(theirs(pixels, targets).values()))

    for model in (ours, theirs):
        model.eval()
    predictions = Predictions(*our_forward())
    anchors = [cxcywh_to_xyxy(ours.default_boxes) * ours.image_size[0]] * len(images)

    @torch.inference_mode()
    def our_detections() -> Detections:
        return postprocess(predictions, ours.default_boxes)

    @torch.inference_mode()
    def their_detections() -> list[dict[str, Tensor]]:
        outputs = {"cls_logits": predictions.logits, "bbox_regression": predictions.offsets}
        return theirs.postprocess_detections(outputs, anchors, [ours.image_size] * len(images))

    torch.testing.assert_close(our_forward(), their_forward(), rtol=1e-3, atol=1e-3)
    for found, expected in zip(our_detections().scores, their_detections(), strict=True):
        torch.testing.assert_close(found[: len(expected["scores"])], expected["scores"], rtol=1e-4, atol=1e-4)
    report(f"{name}, forward", our_forward, their_forward, repeats, len(images))
    report(f"{name}, post-processing", our_detections, their_detections, repeats, len(images))
    for model in (ours, theirs):
        model.train()
    torch.testing.assert_close(our_step(), their_step(), rtol=2e-2, atol=0)
    report(f"{name}, training step", our_step, their_step, repeats, len(images))


def some_objects(images: Tensor) -> tuple[Objects, list[dict[str, Tensor]]]:
    """Make three objects in each image, and the same for torchvision in pixels."""
    batch, device = len(images), images.device
    centres = torch.rand(batch, 3, 2, device=device) * 0.6 + 0.2
    sizes = torch.rand(batch, 3, 2, device=device) * 0.3 + 0.1
    boxes = cxcywh_to_xyxy(torch.cat((centres, sizes), dim=-1))
    labels = torch.randint(1, OUTPUTS, (batch, 3), device=device)
    flags = torch.ones(batch, 3, dtype=torch.bool, device=device)
    side = images.shape[-1]
    targets = [{"boxes": b * side, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    return Objects(boxes, labels, ~flags, flags), targets


def descend(model: nn.Module, total: Tensor) -> Tensor:
    """Take a step of SGD that is so small that both sides stay equal."""
    total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-9)
                parameter.grad = None
    return total.detach()


def report(title: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int, batch: int) -> None:
    """Print the medians of both sides, which take turns so that a busy machine disturbs both."""
    times: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for _ in range(repeats):
        for side, measured in times.items():
            synchronize()
            start = time.perf_counter()
            side()
            synchronize()
            measured.append(time.perf_counter() - start)
    mine, other = (statistics.median(measured) / batch * 1e3 for measured in times.values())
    print(
        f"{title:<42} torchvision {other:7.1f} ms/image   ours {mine:7.1f} ms/image   {other / mine:5.2f} times",
        flush=True,
    )


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
