"""The network: a backbone, and on each of its feature maps two convolutions that predict for every default box."""

import copy

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssd_lightning.default_boxes import DefaultBoxes, Grid
from ssd_lightning.structures import ImageSize, Predictions, height_and_width


class SSD(nn.Module):
    """Single Shot MultiBox Detector, section 2.1 of arXiv 1512.02325.

    Channels and grids are read off the backbone at ``image_size``, so that any backbone goes with any box layout of as
    many levels.

    Args:
        backbone: pictures (B, 3, H, W) in 0 … 255 to a list of feature maps, finest first.
        default_boxes: for each feature map, scales and aspect ratios of its boxes.
        num_classes: object classes, without background.
        image_size: of the network's input in pixels, (height, width) or one number for both.

    Attributes:
        default_boxes: (P, 4) cxcywh, on the device of the weights.
        grids: (height, width) of each feature map.
    """

    default_boxes: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        default_boxes: DefaultBoxes,
        num_classes: int,
        image_size: ImageSize = 300,
    ) -> None:
        super().__init__()
        if not num_classes >= 1:
            raise ValueError(f"num_classes: expected at least 1, background not counted, got {num_classes}")
        self.image_size = height_and_width(image_size)
        self.num_classes = num_classes
        self.backbone = backbone
        channels, self.grids = _channels_and_grids(backbone, self.image_size)
        self.register_buffer("default_boxes", default_boxes(self.grids, self.image_size), persistent=False)
        self.head = Head(channels, default_boxes.boxes_per_cell, num_classes)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Predictions:
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images: expected {self.image_size} pixels (height, width), got {tuple(images.shape[2:])}"
            )
        return self.head(self.backbone(images))


class Head(nn.Module):
    """Class scores and offsets for each default box, from a 3×3 convolution each on every feature map."""

    def __init__(self, channels: list[int], boxes_per_cell: list[int], num_classes: int) -> None:
        super().__init__()
        self.outputs = num_classes + 1  # class 0 is background
        levels = list(zip(channels, boxes_per_cell, strict=True))
        self.classification = nn.ModuleList(nn.Conv2d(c, k * self.outputs, 3, padding=1) for c, k in levels)
        self.localization = nn.ModuleList(nn.Conv2d(c, k * 4, 3, padding=1) for c, k in levels)
        for convolution in (*self.classification, *self.localization):
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, features: list[Float[Tensor, "batch _ _ _"]]) -> Predictions:
        return Predictions(
            torch.cat([_rows(conv(f), self.outputs) for conv, f in zip(self.classification, features, strict=True)], 1),
            torch.cat([_rows(conv(f), 4) for conv, f in zip(self.localization, features, strict=True)], 1),
        )


def _rows(maps: Float[Tensor, "batch _ rows columns"], length: int) -> Float[Tensor, "batch boxes {length}"]:
    """One row per default box, in their order: row, column, shape."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, length)


def _channels_and_grids(backbone: nn.Module, image_size: tuple[int, int]) -> tuple[list[int], list[Grid]]:
    """By a dry run of a copy on the meta device, which computes shapes and nothing else."""
    dry = copy.deepcopy(backbone).to("meta").eval()
    try:
        features = dry(torch.empty(1, 3, *image_size, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"image_size {image_size} does not fit {type(backbone).__name__}: {error}") from error
    return [f.shape[1] for f in features], [(f.shape[2], f.shape[3]) for f in features]
