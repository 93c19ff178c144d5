"""A small backbone."""

import torch
from torch import nn


class TwoLevels(nn.Module):
    """A plain network with feature maps at an eighth and a sixteenth of the picture.

    A backbone is a module that turns pictures into a list of feature maps, the finest map first. The number of channels
    and the size of the maps are free.

    Args:
        channels: channels of the two maps.
    """

    def __init__(self, channels: tuple[int, int] = (64, 128)) -> None:
        super().__init__()
        first, second = channels
        self.to_eighth = nn.Sequential(_halve(3, 16), _halve(16, 32), _halve(32, first))
        self.to_sixteenth = _halve(first, second)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the two maps; ``images`` are (batch, 3, height, width) with values from 0 to 255."""
        eighth = self.to_eighth(images.float() / 127.5 - 1)
        return [eighth, self.to_sixteenth(eighth)]


def _halve(channels: int, more: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, more, 3, stride=2, padding=1), nn.BatchNorm2d(more), nn.ReLU())
