"""Layers that follow the backbone and compute the coarser levels: section 2.1 of the paper."""

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from ssd_lightning.detector.default_boxes import Grid
from ssd_lightning.require import require_switch, require_whole_number, require_whole_numbers

MOST_CHANNELS = 16_384
"""Largest number of channels of a layer. The weights of a layer with more would fill the memory."""


class Chain(nn.ModuleList):
    """A sequence of layers that returns the output of each layer."""

    def forward(self, features: Float[Tensor, "batch _ _ _"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the output of each layer, in order."""
        maps = []
        for layer in self:
            features = layer(features)
            maps.append(features)
        return maps


class ExtraLayers:
    """A recipe for extra layers. A call makes as many layers as the default boxes need.

    A layer is a 1×1 convolution to half of its channels and a 3×3 convolution that makes the grid smaller. A side of
    more than ``halve_above`` cells is halved; a shorter side loses a cell at each end. The defaults are those of
    SSD300, from 19 cells to 10, 5, 3 and 1.

    Args:
        channels: output channels of each layer; further layers repeat the last number.
        halve_above: in cells. Two cells always become one.
        last_kernel: kernel size of the last level's convolution, where it differs: 4 in SSD512.
        depthwise: use a depthwise 3×3 convolution, batch norm and ReLU6, as in SSDLite (arXiv 1801.04381).
        batch_norm: add batch norm after each convolution, for training from scratch.
    """

    def __init__(
        self,
        channels: Sequence[int] = (512, 256, 256, 256),
        halve_above: int = 5,
        last_kernel: int | None = None,
        depthwise: bool = False,
        batch_norm: bool = False,
    ) -> None:
        require_whole_numbers("channels", channels, 2, MOST_CHANNELS)
        require_whole_number("halve_above", halve_above, 1)
        if last_kernel is not None:
            require_whole_number("last_kernel", last_kernel, 1)
        require_switch("depthwise", depthwise)
        require_switch("batch_norm", batch_norm)
        self.channels = list(channels)
        self.halve_above = halve_above
        self.last_kernel = last_kernel
        self.depthwise = depthwise
        self.batch_norm = batch_norm

    def __call__(self, channels: int, grid: Grid, levels: int) -> Chain:
        """Make layers for ``levels`` further levels, after a feature map of ``channels`` on ``grid``.

        Raises:
            ValueError: if a layer would follow a grid of a single cell.
        """
        layers = Chain()
        for level in range(levels):
            if grid == (1, 1):
                raise ValueError(f"extra_layers: expected at most {level}, which end in one cell, got {levels}")
            channels_out = self.channels[min(level, len(self.channels) - 1)]
            kernels = [self._kernel(side, is_last=level == levels - 1) for side in grid]
            layers.append(self._layer(channels, channels_out, kernels))
            grid = (_side_after(grid[0], kernels[0]), _side_after(grid[1], kernels[1]))
            channels = channels_out
        return layers

    def _kernel(self, side: int, is_last: bool) -> tuple[int, int, int]:
        """Return kernel size, stride and padding along one side of the grid."""
        if is_last and self.last_kernel is not None and side <= self.last_kernel:
            # The padding is the same at both ends, so that only every second kernel size ends in one cell.
            kernel = self.last_kernel - (self.last_kernel - side) % 2
            return kernel, 1, (kernel - side) // 2
        if side > self.halve_above:
            return 3, 2, 1
        return min(side, 3), 1, 0

    def _layer(self, channels_in: int, channels_out: int, kernels: list[tuple[int, int, int]]) -> nn.Sequential:
        between = channels_out // 2
        kernel, stride, padding = zip(*kernels, strict=True)
        if self.depthwise:
            block = partial(Conv2dNormActivation, norm_layer=mobile_norm, activation_layer=nn.ReLU6)
            layer = nn.Sequential(
                block(channels_in, between, 1),
                block(between, between, kernel, stride, padding, groups=between),
                block(between, channels_out, 1),
            )
        else:
            block = partial(Conv2dNormActivation, norm_layer=nn.BatchNorm2d if self.batch_norm else None)
            layer = nn.Sequential(
                block(channels_in, between, 1),
                block(between, channels_out, kernel, stride, padding),
            )
        he_initialization(layer)
        return layer


def mobile_norm(channels: int) -> nn.BatchNorm2d:
    """Make a batch norm with the constants of SSDLite in TensorFlow and torchvision: slow statistics, small batches."""
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)


def he_initialization(module: nn.Module) -> None:
    """Initialize all convolutions for a ReLU after each: arXiv 1502.01852, equation 10. Biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _side_after(side: int, kernel: tuple[int, int, int]) -> int:
    size, stride, padding = kernel
    return (side + 2 * padding - size) // stride + 1
