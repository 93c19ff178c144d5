"""A small detector with random weights, whose scores are far from each other, and pictures for it."""

import numpy as np
import torch
from PIL import Image
from small_detectors import with_statistics

from ssd_lightning.deploy.agreement import generated_pictures
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.prediction import Found
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess

CLASSES = ("apple", "pear", "plum")


def random_detector(antialias: bool = True) -> Detector:
    torch.manual_seed(0)
    boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], AspectRatios([2.0]))
    model = SSD(Tiny([4, 8, 8], 8), boxes, len(CLASSES), image_size=(64, 80), antialias=antialias)
    return Detector(with_spread(model), PostProcess(max_detections=200), CLASSES)


def with_spread(model: SSD) -> SSD:
    """Scale the last weights, so that logits vary by 2 and offsets by 1, and make background likelier."""
    with_statistics(model.eval())
    with torch.no_grad():
        logits, offsets = model(generated_pictures(model.image_size, 2))
        for layers, factor in (
            (model.head.classification, 2 / logits.std()),
            (model.head.localization, 1 / offsets.std()),
        ):
            for layer in layers.modules():
                if isinstance(layer, torch.nn.Conv2d) and layer.groups == 1:
                    layer.weight.mul_(factor)
        for layer in model.head.classification.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
                layer.bias[:: model.num_classes + 1] += 3
    return model


def photo(height: int = 48, width: int = 90, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(found: Found, expected: Found) -> None:
    """Compare detections in any order: rounding may swap two of almost the same score."""
    assert found.size == expected.size
    assert len(found.scores) == len(expected.scores) > 0
    apart = np.abs(found.boxes[:, None] - expected.boxes).max(axis=2) / 100
    apart = np.maximum(apart, np.abs(found.scores[:, None] - expected.scores))
    apart[found.labels[:, None] != expected.labels] = np.inf
    assert apart.min(axis=1).max() < 1e-5
    assert len(np.unique(apart.argmin(axis=1))) == len(found.scores)
    assert sorted(found.names) == sorted(expected.names)
