"""The TinySSD of Dive into Deep Learning, https://d2l.ai, section 14.7."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssd_lightning.detector.backbones.normalization import Normalization


class Tiny(nn.Module):
    """Five feature maps; at 256×256 their grids are 32, 16, 8, 4 and 1.

    A down-sampling block is twice 3×3 convolution, batch norm and ReLU, then a 2×2 max-pool. The base is a block for
    each of ``base_channels``, the next three levels are a block each, and the last is the maximum over the whole map.
    """

    def __init__(self, base_channels: Sequence[int] = (16, 32, 64), channels: int = 128) -> None:
        super().__init__()
        # The book feeds raw pixels to the first batch norm; centred ones let the first steps be larger.
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
        # The book has the ReLU first. The numbers are the same, and it is a quarter of the work.
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )
