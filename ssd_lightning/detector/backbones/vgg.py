"""The VGG16 of the SSD paper: section 3, "Base network", and the released configuration."""

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
from ssd_lightning.detector.weights import read_weights, require_same_kind
from ssd_lightning.require import require_switch

WIDTHS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
"""Channels of the convolutions of each stage: configuration D of arXiv 1409.1556."""

LAYERS = [f"conv{stage}_{number}" for stage, widths in enumerate(WIDTHS, 1) for number in range(1, len(widths) + 1)]
"""Names of the convolutions, from conv1_1 to conv5_3."""


class VGG16(nn.Module):
    """Backbone with two feature maps, normalized conv4_3 and fc7, whose grids at 300×300 pixels are 38 and 19.

    The third pooling rounds up, and the fifth pooling keeps the grid. fc6 and fc7 are convolutions. fc6 is dilated, for
    the receptive field of the fully connected layer.

    Args:
        weights: torchvision's name, such as ``IMAGENET1K_FEATURES``, from which the paper starts; or a file in the
            layout of torchvision or of ``vgg16_reducedfc``. From the classifier's fully connected layers, fc6 and fc7
            take every third row and column and every fourth channel.
        mean: mean of pixels by channel, red first, in 0 … 255. Default: the mean of ``weights``, by the file's name or
            its layout. Without weights, the default is ImageNet's, so that training from scratch starts at unit scale.
        std: like ``mean``.
        bgr: the weights of the file expect blue first; the first convolution is reversed on reading.
    """

    def __init__(
        self,
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        require_switch("bgr", bgr)
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
        """Compute the two feature maps."""
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
        """Load a classifier's state dict, whose convolutions are numbered in the order of the network."""
        numbers = sorted(
            {int(m[1]) for m in (re.fullmatch(r"(?:features\.)?([0-9]{1,3})\.weight", key) for key in state) if m}
        )
        prefix = "features." if f"features.{numbers[0] if numbers else 0}.weight" in state else ""
        names = [*LAYERS, "fc6", "fc7"][: len(numbers)]
        taken = {
            f"{name}.{kind}": state[f"{prefix}{number}.{kind}"]
            for name, number in zip(names, numbers, strict=False)
            for kind in ("weight", "bias")
            if f"{prefix}{number}.{kind}" in state
        }
        if "fc6.weight" not in taken:
            taken |= _subsampled_classifier(state)
        own = self.state_dict()
        wrong = [key for key, value in taken.items() if key not in own or own[key].shape != value.shape]
        lacking = [key for key in own if key.startswith("conv") and key not in taken]
        if wrong or lacking:
            layers = ", ".join((lacking + wrong)[:3])
            raise ValueError(f"weights: expected a state dict of VGG16, got {source}, which has no such {layers}")
        require_same_kind(taken, own, source, "weights")
        if bgr:
            taken["conv1_1.weight"] = taken["conv1_1.weight"].flip(1)
        self.load_state_dict(taken, strict=False)


def _subsampled_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return fc6 and fc7 from the fully connected layers as the authors did, or nothing if there are no such layers."""
    shapes = {"0.weight": (4096, 512 * 49), "0.bias": (4096,), "3.weight": (4096, 4096), "3.bias": (4096,)}
    found = {name: state.get(f"classifier.{name}") for name in shapes}
    if any(value is None or value.shape != shapes[name] for name, value in found.items()):
        return {}
    full6, full7 = state["classifier.0.weight"], state["classifier.3.weight"]
    fc6 = full6.view(4096, 512, 7, 7)[::4, :, ::3, ::3]
    if not fc6.isfinite().all():  # torchvision's weights for features alone have NaN there.
        return {}
    return {
        "fc6.weight": fc6,
        "fc6.bias": state["classifier.0.bias"][::4],
        "fc7.weight": full7.view(4096, 4096, 1, 1)[::4, ::4],
        "fc7.bias": state["classifier.3.bias"][::4],
    }


def _is_of_caffe(state: dict[str, Tensor]) -> bool:
    """Return whether the layout is that of Caffe's weights: ``vgg16_reducedfc``, or a classifier of NaN."""
    classifier = state.get("classifier.0.weight")
    has_nan = classifier is not None and classifier.ndim == 2 and not bool(classifier[:1].isfinite().all())
    return "0.weight" in state or has_nan


class L2Norm(nn.Module):
    """Normalization of each cell to length 1 over the channels, with a learned factor per channel: arXiv 1506.04579.

    Args:
        channels: number of channels of the feature map.
        scale: initial factor; 20 in the paper.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels _ _"]:
        """Normalize a feature map."""
        return F.normalize(features, dim=1) * self.weight.view(-1, 1, 1)
