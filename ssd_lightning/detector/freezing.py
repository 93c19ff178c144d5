"""Keeping what a pretrained backbone knows: weights that are not trained, and batch norms that do not move."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def freeze(backbone: nn.Module, until: str | None = None, batch_norm: bool = False) -> None:
    """Take the first layers of ``backbone`` out of the training.

    Args:
        backbone: changed in place.
        until: name of the last layer that is frozen, such as ``conv3_3`` or ``body.layer1``; all before it are frozen
            too, with their batch norms. ``None``: none is.
        batch_norm: freeze the batch norms of all layers but ``lift``, which are new: statistics, scale and shift stay
            as they are, and a batch of one picture is as good as any.

    Raises:
        ValueError: if ``backbone`` has no layer of that name; it names those that there are.
    """
    layers = dict(backbone.named_modules())
    if until is not None:
        if until not in layers or not until:
            with_weights = [n for n, m in layers.items() if n and next(m.parameters(recurse=False), None) is not None]
            raise ValueError(
                f"frozen_until: {type(backbone).__name__} has no layer {until!r}; it has {', '.join(with_weights)} "
                "and what contains them"
            )
        names = list(layers)
        inside = [name for name in names if name == until or name.startswith(f"{until}.")]
        for name in names[: names.index(inside[-1]) + 1]:
            for parameter in layers[name].parameters(recurse=False):
                parameter.requires_grad_(False)
        _freeze_batch_norms(backbone, set(names[: names.index(inside[-1]) + 1]))
    if batch_norm:
        _freeze_batch_norms(backbone, {name for name in layers if not name.startswith("lift.")})


def _freeze_batch_norms(backbone: nn.Module, names: set[str]) -> None:
    for name, layer in list(backbone.named_modules()):
        if name in names and isinstance(layer, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, _frozen(layer))


def _frozen(layer: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(layer.num_features, eps=layer.eps).to(layer.weight.device)
    with torch.no_grad():
        for name, value in frozen.named_buffers():
            value.copy_(getattr(layer, name))
    return frozen
