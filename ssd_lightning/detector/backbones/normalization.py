"""Normalization of pixels, as in the training of a backbone's weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssd_lightning.require import require_numbers

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and std of torchvision's classifiers."""

CAFFE_MEAN, CAFFE_STD = (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)
"""Mean and std of Caffe's VGG16, from which the paper starts training."""


class Normalization(nn.Module):
    """Normalization (pixel - mean) / std by channel. Mean and std are saved with the weights.

    Args:
        mean: by channel, red first, in 0 … 255.
        std: by channel, red first, in 0 … 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        require_numbers("mean", mean, "[-1e3, 1e3]", length=3)
        require_numbers("std", std, "[1e-3, 1e3]", length=3)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Normalize pictures of pixels in 0 … 255."""
        return (images.to(self.mean.dtype) - self.mean) / self.std
