"""Feature maps from inside torchvision's classifiers: ResNet, MobileNet, EfficientNet, ConvNeXt and others."""

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import Conv2dNormActivation

from ssd_lightning.detector.backbones.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization
from ssd_lightning.detector.backbones.shapes import channels_and_grids
from ssd_lightning.detector.extra_layers import MOST_CHANNELS, he_initialization
from ssd_lightning.detector.weights import Weights, read_weights, require_same_kind
from ssd_lightning.require import require_switch, require_texts, require_whole_numbers


class TorchvisionFeatures(nn.Module):
    """Backbone from a torchvision classifier, without the layers after the last feature map.

    Args:
        network: name in :mod:`torchvision.models`, such as ``resnet34``.
        nodes: layers whose outputs are the feature maps, finest first, such as ``layer2`` or ``features.5``.
        weights: torchvision's name of the weights, such as ``DEFAULT``; or a file with a state dict of the classifier.
        mean: mean of pixels by channel, red first, in 0 … 255. Default: the mean of ``weights``, or ImageNet's.
        std: like ``mean``.
        bgr: the weights of the file expect blue first; the first convolution is reversed on reading.
        lift: channels of each map after an added 1×1 convolution with batch norm and ReLU. ``None``: no convolutions
            are added.
        without: layers to replace by the identity, such as ``maxpool``, without which ResNet's grids are twice as fine.
        options: keyword arguments of torchvision's constructor, such as ``reduced_tail``.
    """

    def __init__(
        self,
        network: str,
        nodes: Sequence[str],
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
        lift: Sequence[int] | None = None,
        without: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require_switch("bgr", bgr)
        require_texts("nodes", nodes)
        require_texts("without", without)
        if lift is not None:
            require_whole_numbers("lift", lift, 1, MOST_CHANNELS)
        classifier = _classifier(network, options or {})
        if weights is not None:
            read = read_weights(network, weights)
            _load(classifier, network, read, bgr)
            if hasattr(classifier, "transform_input") and read.mean is not None:
                # GoogLeNet and Inception convert ImageNet's normalization to −1 … 1 for these weights.
                read = read._replace(mean=[127.5] * 3, std=[127.5] * 3)
            mean, std = mean or read.mean, std or read.std
        layers = dict(classifier.named_modules())
        for name in without:
            if name not in layers:
                raise ValueError(
                    f"without: expected layers of {network} ({', '.join(filter(None, layers))}), got {name!r}"
                )
            parent, _, child = name.rpartition(".")
            setattr(classifier.get_submodule(parent), child, nn.Identity())
        self.nodes = list(nodes)
        self.normalize = Normalization(mean or IMAGENET_MEAN, std or IMAGENET_STD)
        self.body = _cut(classifier, network, nodes)
        self.lift = nn.ModuleList()
        if lift is not None:
            if len(lift) != len(nodes):
                raise ValueError(f"lift: expected {len(nodes)} numbers, one for each node, got {list(lift)}")
            channels, _ = channels_and_grids(self, (256, 256))
            self.lift.extend(
                Conv2dNormActivation(before, after, 1) for before, after in zip(channels, lift, strict=True)
            )
            he_initialization(self.lift)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Compute the feature maps of the nodes."""
        by_name = self.body(self.normalize(images))
        maps = [by_name[node] for node in self.nodes]
        return [lift(m) for lift, m in zip(self.lift, maps, strict=True)] if self.lift else maps

    def __deepcopy__(self, memo: dict[int, Any]) -> "TorchvisionFeatures":
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__ = deepcopy(self.__dict__, memo)
        # torchvision's copy of the body is always in training mode.
        duplicate.body.train(self.body.training)
        for layer, original in zip(duplicate.body.modules(), self.body.modules(), strict=True):
            layer.training = original.training
        return duplicate


def _classifier(network: str, options: Mapping[str, Any]) -> nn.Module:
    known = models.list_models(module=models)
    if network not in known:
        near = get_close_matches(str(network), known) or known
        raise ValueError(f"network: expected a torchvision classifier, got {network!r}. Try {', '.join(near[:5])}.")
    try:
        return models.get_model(network, weights=None, **options)
    except TypeError as error:
        raise ValueError(f"options: expected arguments of {network}, got {dict(options)} ({error})") from error


def _load(classifier: nn.Module, network: str, weights: Weights, bgr: bool) -> None:
    state = dict(weights.state)
    first = next((name for name, module in classifier.named_modules() if isinstance(module, nn.Conv2d)), "")
    own = classifier.state_dict()
    require_same_kind({n: value for n, value in state.items() if n in own}, own, weights.source, "weights")
    if bgr and f"{first}.weight" in state and state[f"{first}.weight"].ndim > 1:
        state[f"{first}.weight"] = state[f"{first}.weight"].flip(1)
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        differing = str(error).strip().splitlines()
        reason = " ".join(differing[1:3]).strip() or differing[0]
        raise ValueError(f"weights: expected a state dict of {network}, got {weights.source} ({reason})") from error


def _cut(classifier: nn.Module, network: str, nodes: Sequence[str]) -> nn.Module:
    """Return the part of the classifier that computes ``nodes``, as a module that returns them by name."""
    try:
        with warnings.catch_warnings():
            # torchvision warns that training and evaluation use different layers, which is intended.
            warnings.simplefilter("ignore")
            return create_feature_extractor(classifier, return_nodes=list(nodes))
    except ValueError as error:
        _, evaluated = get_graph_node_names(classifier)
        layers = dict.fromkeys(".".join(name.split(".")[:2]) for name in evaluated)
        raise ValueError(
            f"nodes: expected layers of {network} ({', '.join(layers)}, or layers inside of them), got {list(nodes)}"
        ) from error
