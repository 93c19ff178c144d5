"""The network: a backbone, extra layers, and two predicting convolutions on each feature map."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ssd_lightning.detector.backbones.shapes import channels_and_grids
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.extra_layers import ExtraLayers, he_initialization, mobile_norm
from ssd_lightning.detector.freezing import freeze
from ssd_lightning.require import require_part, require_switch, require_whole_number
from ssd_lightning.structures import ImageSize, Predictions, height_and_width

MakeHead = Callable[[list[int], list[int], int], nn.Module]
"""Constructor of a head, from the channels and boxes per cell of each level, and the number of classes."""


class SSD(nn.Module):
    """Single Shot MultiBox Detector, section 2.1 of arXiv 1512.02325.

    A dry run at ``image_size`` gives the channels and grids of the backbone's feature maps. Extra layers
    follow for the other levels of ``default_boxes``, so that any backbone can be combined with any default boxes.

    Args:
        backbone: maps pictures (B, 3, H, W) in 0 … 255 to a list of feature maps, finest first.
        default_boxes: scales and aspect ratios of each level.
        num_classes: number of object classes, without background.
        image_size: size of the network's input in pixels: (height, width), or one number for both.
        extra_layers: recipe for the levels after the backbone's. Default: the paper's.
        head: constructor of the predicting convolutions. Default: :class:`Head`, as in the paper.
        frozen_until: name of the backbone's last layer that is not trained.
        frozen_batch_norm: freeze the statistics, scale and shift of the backbone's batch norms.
        antialias: resize pictures to ``image_size`` with anti-aliasing, in training and in use. The weights of
            torchvision's detectors were trained without it. The network itself does not resize.

    Attributes:
        default_boxes: all default boxes (P, 4) as cxcywh, on the device of the weights.
        grids: (height, width) in cells of each level.
        boxes_per_cell: number of default boxes in a cell of each level.
        boxes_of_level: number of default boxes of each level.
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
        antialias: bool = True,
    ) -> None:
        super().__init__()
        require_whole_number("num_classes", num_classes, 1)
        require_switch("antialias", antialias)
        require_switch("frozen_batch_norm", frozen_batch_norm)
        require_part("backbone", backbone)
        require_part("default_boxes", default_boxes)
        for name, part in (("extra_layers", extra_layers), ("head", head)):
            if part is not None:
                require_part(name, part)
        self.antialias = antialias
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
                f"default_boxes.scales: expected fewer levels for {type(backbone).__name__}, which has {len(grids)} at "
                f"{self.image_size[0]}×{self.image_size[1]} pixels, got {default_boxes.levels} ({error})"
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
        """Predict class logits and box offsets for every default box.

        Raises:
            ValueError: if the pictures do not have the size ``image_size``.
        """
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images: expected {self.image_size} pixels (height, width), got {tuple(images.shape[2:])}"
            )
        levels = list(self.backbone(images))
        return self.head(levels + self.extra_layers(levels[-1]))


class Head(nn.Module):
    """Two 3×3 convolutions on every feature map, one for class logits and one for offsets."""

    def __init__(self, channels: list[int], boxes_per_cell: list[int], num_classes: int) -> None:
        super().__init__()
        self.outputs = num_classes + 1  # class 0 is background
        levels = list(zip(channels, boxes_per_cell, strict=True))
        self.classification = nn.ModuleList(self.predictor(c, k * self.outputs) for c, k in levels)
        self.localization = nn.ModuleList(self.predictor(c, k * 4) for c, k in levels)

    def predictor(self, channels: int, outputs: int) -> nn.Module:
        """Make the layers from a feature map of ``channels`` to ``outputs`` numbers in each cell."""
        return _last(nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, features: list[Float[Tensor, "batch _ _ _"]]) -> Predictions:
        """Predict for every default box, in the order of the default boxes."""
        return Predictions(
            torch.cat([_rows(conv(f), self.outputs) for conv, f in zip(self.classification, features, strict=True)], 1),
            torch.cat([_rows(conv(f), 4) for conv, f in zip(self.localization, features, strict=True)], 1),
        )


class DepthwiseHead(Head):
    """The head of SSDLite (arXiv 1801.04381, section 6.2): a depthwise 3×3 convolution, then a 1×1."""

    def predictor(self, channels: int, outputs: int) -> nn.Module:
        """Make the layers from a feature map of ``channels`` to ``outputs`` numbers in each cell."""
        depthwise = Conv2dNormActivation(
            channels, channels, 3, groups=channels, norm_layer=mobile_norm, activation_layer=nn.ReLU6
        )
        he_initialization(depthwise)
        return nn.Sequential(depthwise, _last(nn.Conv2d(channels, outputs, 1)))


def _last(convolution: nn.Conv2d) -> nn.Conv2d:
    """Initialize a layer without a ReLU after it: Xavier, as in the paper."""
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _rows(maps: Float[Tensor, "batch _ rows columns"], length: int) -> Float[Tensor, "batch boxes {length}"]:
    """Reshape outputs to one row per default box, ordered by row, column and shape."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, length)
