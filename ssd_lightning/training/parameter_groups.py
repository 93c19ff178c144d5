"""Parameter groups of the optimizer: a learning rate for the backbone, and weight decay for some weights only."""

from typing import Any

from torch import nn

from ssd_lightning.require import require_number, require_switch

NEW = "backbone.lift."
"""Prefix of the layers in a backbone that have no pretrained weights."""


class ParameterGroups:
    """Callable that divides the parameters of a model into groups for an optimizer, without the frozen ones.

    Args:
        backbone_lr_factor: factor of the learning rate for the backbone. Below 1, a pretrained backbone changes less.
        decay_norms_and_biases: whether weight decay applies to all parameters. If not, it applies only to the weights
            of convolutions and linear layers.
    """

    def __init__(self, backbone_lr_factor: float = 1.0, decay_norms_and_biases: bool = True) -> None:
        require_number("backbone_lr_factor", backbone_lr_factor, "[0, 1e3]")
        require_switch("decay_norms_and_biases", decay_norms_and_biases)
        self.backbone_lr_factor = backbone_lr_factor
        self.decay_norms_and_biases = decay_norms_and_biases

    def __call__(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return groups with an ``lr_factor``, by which the caller has to multiply the optimizer's ``lr``.

        If there are several groups, each has a ``name``, under which its learning rate is logged.
        """
        groups: dict[str, dict[str, Any]] = {}
        weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            is_slow = name.startswith("backbone.") and not name.startswith(NEW) and self.backbone_lr_factor != 1
            decays = self.decay_norms_and_biases or id(parameter) in weights
            title = " ".join(("backbone" if is_slow else "weights", *(() if decays else ("without decay",))))
            group = groups.setdefault(title, {"params": []})
            group["lr_factor"] = self.backbone_lr_factor if is_slow else 1.0
            group["params"].append(parameter)
            if not decays:
                group["weight_decay"] = 0.0
        if not groups:
            raise ValueError("model: expected parameters to train, got frozen ones only. Try model.frozen_until=null.")
        if len(groups) == 1:
            return list(groups.values())
        return [{"name": title, **group} for title, group in groups.items()]
