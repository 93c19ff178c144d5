"""A localization loss."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ssd_lightning.detector.boxes import encode


class LogCosh(nn.Module):
    """The logarithm of the hyperbolic cosine of each offset's error, which is smooth everywhere.

    A localization loss takes predicted offsets, the boxes of the matched objects (xyxy) and the default boxes (cxcywh).
    It returns one number for each default box. ``MultiBoxLoss`` adds these and divides by the number of positives.
    """

    def forward(self, offsets: torch.Tensor, boxes: torch.Tensor, default_boxes: torch.Tensor) -> torch.Tensor:
        error = offsets - encode(boxes, default_boxes)
        # log(cosh(x)) = |x| + log(1 + exp(-2|x|)) - log(2) does not overflow.
        return (error.abs() + F.softplus(-2 * error.abs()) - math.log(2)).sum(dim=-1)
