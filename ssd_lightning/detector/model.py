"""The network: a backbone, and on each of its feature maps two convolutions that predict for every default box."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ssd_lightning.detector.backbones.shapes import channels_and_grids
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.extra_layers import ExtraLayers, he_initialization, mobile_norm
from ssd_lightning.detector.freezing import freeze
from ssd_lightning.require import require_whole_number
from ssd_lightning.structures import ImageSize, Predictions, height_and_width

MakeHead = Callable[[list[int], list[int], int], nn.Module]
"""From the channels of the feature maps, the default boxes in a cell of each, and the number of classes."""


class SSD(nn.Module):
    """Single Shot MultiBox Detector, section 2.1 of arXiv 1512.02325.

    Channels and grids are read off the backbone at ``image_size``, and extra layers are added until there are as many
    levels as ``default_boxes`` has, so that any backbone goes with any boxes.

    Args:
        backbone: pictures (B, 3, H, W) in 0 … 255 to a list of feature maps, finest first.
        default_boxes: for each level, scales and aspect ratios of its boxes.
        num_classes: object classes, without background.
        image_size: of the network's input in pixels, (height, width) or one number for both.
        extra_layers: makes the levels that the backbone does not give. Default: as in the paper.
        head: makes the convolutions that predict. Default: :class:`Head`, as in the paper.
        frozen_until: name of the last layer of the backbone that is not trained.
        frozen_batch_norm: whether the backbone's batch norms keep their statistics, scale and shift.

    Attributes:
        default_boxes: (P, 4) cxcywh, on the device of the weights.
        grids: (height, width) in cells of each level.
        boxes_per_cell: of each level.
        boxes_of_level: how many there are, in the order of ``default_boxes``.
    """

    default_boxes: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        default_boxes: DefaultBoxes,
        num_classes: int,
        image_size: ImageSize = 300,
        extra_layers: ExtraLayers | None = None,
        head: MakeHead | None = None,
        frozen_until: str | None = None,
        frozen_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        require_whole_number("num_classes", num_classes, 1)
        self.image_size = height_and_width(image_size)
        self.num_classes = num_classes
        self.backbone = backbone
        channels, grids = channels_and_grids(backbone, self.image_size)
        try:
            self.extra_layers = (extra_layers or ExtraLayers())(
                channels[-1], grids[-1], max(0, default_boxes.levels - len(grids))
            )
        except ValueError as error:
            raise ValueError(
                f"scales makes {default_boxes.levels} levels, {type(backbone).__name__} has {len(grids)} at "
                f"{self.image_size[0]}×{self.image_size[1]} pixels: {error}"
            ) from error
        if self.extra_layers:
            more_channels, more_grids = channels_and_grids(self.extra_layers, grids[-1], channels[-1])
            channels, grids = channels + more_channels, grids + more_grids
        self.grids = grids
        self.register_buffer("default_boxes", default_boxes(self.grids, self.image_size), persistent=False)
        self.boxes_per_cell = default_boxes.boxes_per_cell
        self.boxes_of_level = [
            rows * columns * k for (rows, columns), k in zip(grids, self.boxes_per_cell, strict=True)
        ]
        self.head = (head or Head)(channels, self.boxes_per_cell, num_classes)
        freeze(backbone, frozen_until, frozen_batch_norm)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Predictions:
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images: expected {self.image_size} pixels (height, width), got {tuple(images.shape[2:])}"
            )
        levels = list(self.backbone(images))
        return self.head(levels + self.extra_layers(levels[-1]))


class Head(nn.Module):
    """Class scores and offsets for each default box, from a 3×3 convolution each on every feature map."""

    def __init__(self, channels: list[int], boxes_per_cell: list[int], num_classes: int) -> None:
        super().__init__()
        self.outputs = num_classes + 1  # class 0 is background
        levels = list(zip(channels, boxes_per_cell, strict=True))
        self.classification = nn.ModuleList(self.predictor(c, k * self.outputs) for c, k in levels)
        self.localization = nn.ModuleList(self.predictor(c, k * 4) for c, k in levels)

    def predictor(self, channels: int, outputs: int) -> nn.Module:
        """From a feature map to ``outputs`` numbers in each cell."""
        return _last(nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, features: list[Float[Tensor, "batch _ _ _"]]) -> Predictions:
        return Predictions(
            torch.cat([_rows(conv(f), self.outputs) for conv, f in zip(self.classification, features, strict=True)], 1),
            torch.cat([_rows(conv(f), 4) for conv, f in zip(self.localization, features, strict=True)], 1),
        )


class DepthwiseHead(Head):
    """The head of SSDLite (arXiv 1801.04381, section 6.2): a depthwise 3×3 convolution, then a 1×1."""

    def predictor(self, channels: int, outputs: int) -> nn.Module:
        depthwise = Conv2dNormActivation(
            channels, channels, 3, groups=channels, norm_layer=mobile_norm, activation_layer=nn.ReLU6
        )
        he_initialization(depthwise)
        return nn.Sequential(depthwise, _last(nn.Conv2d(channels, outputs, 1)))


def _last(convolution: nn.Conv2d) -> nn.Conv2d:
    """Xavier, as in the paper: no ReLU follows."""
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _rows(maps: Float[Tensor, "batch _ rows columns"], length: int) -> Float[Tensor, "batch boxes {length}"]:
    """One row per default box, in their order: row, column, shape."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, length)
