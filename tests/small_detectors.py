"""Detectors for pictures of 64 pixels."""

import torch
from torch import Tensor, nn

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.backbones.vgg import VGG16
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes
from ssd_lightning.detector.model import SSD

SIDE = 64
"""Input size in pixels. ResNet's last map then has more than one cell, which a batch norm in training needs."""


def detector(backbone: nn.Module, levels: int, **settings) -> SSD:
    scales = [(level + 1) / (levels + 1) for level in range(levels + 1)]
    return SSD(backbone, DefaultBoxes(scales, AspectRatios([2.0])), num_classes=1, image_size=SIDE, **settings)


def resnet18(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(TorchvisionFeatures("resnet18", ["layer2", "layer3", "layer4"]), 3, **settings)


def mobilenet_v2(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(TorchvisionFeatures("mobilenet_v2", ["features.6", "features.13"], lift=[16, 16]), 2, **settings)


def vgg16(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(VGG16(), 2, **settings)


def tiny(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(Tiny(), 5, **settings)


def random_pictures(count: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def with_statistics(network: nn.Module) -> nn.Module:
    """Randomize the batch norms, because those of a new network do nothing."""
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.2, generator=generator)
    return network
