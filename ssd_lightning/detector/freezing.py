"""Freezing of a pretrained backbone: weights that are not trained, and batch norms that keep their statistics."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def freeze(backbone: nn.Module, until: str | None = None, batch_norm: bool = False) -> None:
    """Exclude the first layers of ``backbone`` from training.

    Args:
        backbone: changed in place.
        until: name of the last frozen layer, such as ``conv3_3`` or ``body.layer1``. All layers before it are frozen
            too, with their batch norms. ``None``: no layer is frozen.
        batch_norm: freeze the statistics, scale and shift of every batch norm except those of ``lift``, which are not
            pretrained. The batch size then no longer matters.

    Raises:
        ValueError: if ``backbone`` has no layer of that name; the message lists the layers.
    """
    layers = dict(backbone.named_modules())
    if until is not None:
        if not isinstance(until, str) or until not in layers or not until:
            with_weights = [n for n, m in layers.items() if n and next(m.parameters(recurse=False), None) is not None]
            raise ValueError(
                f"frozen_until: expected a layer of {type(backbone).__name__} ({', '.join(with_weights)}, or a module "
                f"that contains them), got {until!r}"
            )
        names = list(layers)
        inside = [name for name in names if name == until or name.startswith(f"{until}.")]
        frozen = names[: names.index(inside[-1]) + 1]
        for name in frozen:
            for parameter in layers[name].parameters(recurse=False):
                parameter.requires_grad_(False)
        _freeze_batch_norms(backbone, set(frozen))
    if batch_norm:
        _freeze_batch_norms(backbone, {name for name in layers if not name.startswith("lift.")})


def _freeze_batch_norms(backbone: nn.Module, names: set[str]) -> None:
    for name, layer in list(backbone.named_modules()):
        # Without statistics of its own, a layer normalizes by the batch in any case.
        if name in names and isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, _frozen(layer))


def _frozen(layer: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    assert layer.running_mean is not None
    frozen = FrozenBatchNorm2d(layer.num_features, eps=layer.eps).to(layer.running_mean.device)
    with torch.no_grad():
        for name, value in frozen.named_buffers():
            own = getattr(layer, name)
            if own is not None:  # The scale and shift of layers without them are 1 and 0.
                value.copy_(own)
    return frozen
