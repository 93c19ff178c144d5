"""The backbone of TinySSD, from Dive into Deep Learning, https://d2l.ai, section 14.7."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssd_lightning.detector.backbones.normalization import Normalization
from ssd_lightning.detector.extra_layers import MOST_CHANNELS
from ssd_lightning.require import require_whole_number, require_whole_numbers


class Tiny(nn.Module):
    """Backbone with five feature maps, whose grids at 256×256 pixels are 32, 16, 8, 4 and 1.

    A down-sampling block has two 3×3 convolutions, each with batch norm and ReLU, and a 2×2 max-pool. The base has one
    block for each of ``base_channels``. The next three levels are a block each; the last is a global max-pool.
    """

    def __init__(self, base_channels: Sequence[int] = (16, 32, 64), channels: int = 128) -> None:
        super().__init__()
        require_whole_numbers("base_channels", base_channels, 1, MOST_CHANNELS)
        require_whole_number("channels", channels, 1, MOST_CHANNELS)
        # The book does not normalize pixels; centred pixels allow larger steps at the start.
        self.normalize = Normalization(mean=(127.5, 127.5, 127.5), std=(63.75, 63.75, 63.75))
        widths = [3, *base_channels]
        base = nn.Sequential(*(_down_sample(before, after) for before, after in pairwise(widths)))
        last = base_channels[-1]
        self.levels = nn.ModuleList(
            [
                base,
                _down_sample(last, channels),
                _down_sample(channels, channels),
                _down_sample(channels, channels),
                nn.AdaptiveMaxPool2d(1),
            ]
        )

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Compute the five feature maps, finest first."""
        features, maps = self.normalize(images), []
        for level in self.levels:
            features = level(features)
            maps.append(features)
        return maps


def _down_sample(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out),
        # The book has the ReLU before the pool. The numbers are the same, with a quarter of the work.
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )
