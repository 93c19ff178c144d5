"""VGG16 as the SSD paper has it: section 3, "Base network", and its released configuration."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssd_lightning.detector.backbones.normalization import (
    CAFFE_MEAN,
    CAFFE_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalization,
)
from ssd_lightning.detector.extra_layers import he_initialization
from ssd_lightning.detector.weights import read_weights

WIDTHS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
"""Channels of the convolutions of each stage: configuration D of arXiv 1409.1556."""

LAYERS = [f"conv{stage}_{number}" for stage, widths in enumerate(WIDTHS, 1) for number in range(1, len(widths) + 1)]


class VGG16(nn.Module):
    """Two feature maps: conv4_3, normalized, and fc7; at 300×300 their grids are 38 and 19.

    The third pooling rounds up, the fifth keeps the grid, and fc6 and fc7 are convolutions, fc6 a dilated one that sees
    as much as the fully connected layer did.

    Args:
        weights: a name of torchvision's, such as ``IMAGENET1K_FEATURES``, which the paper's training starts from; or a
            file, in torchvision's layout or that of ``vgg16_reducedfc``. Where it has the classifier's fully connected
            layers, fc6 and fc7 get every third row and column and every fourth channel of those.
        mean, std: of pixels, by channel, red first, 0 … 255. Default: what belongs to ``weights``, by the layout of the
            file if its name does not tell. Without weights ImageNet's, so that training from scratch begins at unit
            scale.
        bgr: the file's weights are for pictures with blue first. They are turned round when they are read.
    """

    def __init__(
        self,
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        read = None if weights is None else read_weights("vgg16", weights)
        is_of_caffe = read is not None and _is_of_caffe(read.state)
        usual_mean, usual_std = (CAFFE_MEAN, CAFFE_STD) if is_of_caffe else (IMAGENET_MEAN, IMAGENET_STD)
        self.normalize = Normalization(
            mean or (read and read.mean) or usual_mean,
            std or (read and read.std) or usual_std,
        )
        before = 3
        for name, width in zip(LAYERS, (width for stage in WIDTHS for width in stage), strict=True):
            self.add_module(name, nn.Conv2d(before, width, 3, padding=1))
            before = width
        self.l2_norm = L2Norm(512)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        he_initialization(self)
        if read is not None:
            self._load(read.state, read.source, bgr)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        x = self._stage(1, self.normalize(images))
        x = self._stage(2, F.max_pool2d(x, 2))
        x = self._stage(3, F.max_pool2d(x, 2))
        conv4_3 = self._stage(4, F.max_pool2d(x, 2, ceil_mode=True))
        x = self._stage(5, F.max_pool2d(conv4_3, 2))
        x = F.relu(self.fc6(F.max_pool2d(x, 3, stride=1, padding=1)), inplace=True)
        return [self.l2_norm(conv4_3), F.relu(self.fc7(x), inplace=True)]

    def _stage(self, number: int, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        for name in LAYERS:
            if name.startswith(f"conv{number}_"):
                x = F.relu(self.get_submodule(name)(x), inplace=True)
        return x

    def _load(self, state: dict[str, Tensor], source: str, bgr: bool) -> None:
        """From a classifier's state dict, whose convolutions are in the order of the network."""
        numbers = sorted(
            {int(m[1]) for m in (re.fullmatch(r"(?:features\.)?(\d+)\.weight", key) for key in state) if m}
        )
        prefix = "features." if f"features.{numbers[0] if numbers else 0}.weight" in state else ""
        names = [*LAYERS, "fc6", "fc7"][: len(numbers)]
        taken = {
            f"{name}.{kind}": state[f"{prefix}{number}.{kind}"]
            for name, number in zip(names, numbers, strict=False)
            for kind in ("weight", "bias")
            if f"{prefix}{number}.{kind}" in state
        }
        # Of 4096 outputs and 7×7 cells, as the authors did. Weights for features alone have NaN there.
        full6, full7 = state.get("classifier.0.weight"), state.get("classifier.3.weight")
        is_full = full6 is not None and full6.shape == (4096, 512 * 49) and full6.isfinite().all()
        if "fc6.weight" not in taken and is_full and full7 is not None and full7.shape == (4096, 4096):
            assert full6 is not None
            taken |= {
                "fc6.weight": full6.view(4096, 512, 7, 7)[::4, :, ::3, ::3],
                "fc6.bias": state["classifier.0.bias"][::4],
                "fc7.weight": full7.view(4096, 4096, 1, 1)[::4, ::4],
                "fc7.bias": state["classifier.3.bias"][::4],
            }
        own = self.state_dict()
        wrong = [key for key, value in taken.items() if key not in own or own[key].shape != value.shape]
        lacking = [key for key in own if key.startswith("conv") and key not in taken]
        if wrong or lacking:
            raise ValueError(f"weights: {source} is not of VGG16; it has no fitting {', '.join((lacking + wrong)[:3])}")
        if bgr:
            taken["conv1_1.weight"] = taken["conv1_1.weight"].flip(1)
        self.load_state_dict(taken, strict=False)


def _is_of_caffe(state: dict[str, Tensor]) -> bool:
    """By the layout of its file: ``vgg16_reducedfc``, or torchvision's of features alone, whose classifier is NaN."""
    classifier = state.get("classifier.0.weight")
    return "0.weight" in state or (classifier is not None and not bool(classifier.isfinite().all()))


class L2Norm(nn.Module):
    """Each cell scaled to length 1 over the channels, then by a learned factor for each channel: arXiv 1506.04579.

    Args:
        scale: initial factor; 20 in the paper.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels _ _"]:
        return F.normalize(features, dim=1) * self.weight.view(-1, 1, 1)
