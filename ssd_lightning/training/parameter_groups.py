"""Which weights learn how fast, and which of them decay."""

from typing import Any

from torch import nn

from ssd_lightning.require import require_number

NEW = "backbone.lift."
"""Layers of a backbone for which there are no weights to start from."""


class ParameterGroups:
    """Groups of parameters for an optimizer, by calling it; those that are frozen are in none.

    Args:
        backbone_lr_factor: what the learning rate is multiplied with for the backbone. Below 1, a pretrained backbone
            keeps more of what it knows.
        decay_norms_and_biases: whether weight decay is for all that is learned. Without, it is for the weights of
            convolutions and linear layers alone.
    """

    def __init__(self, backbone_lr_factor: float = 1.0, decay_norms_and_biases: bool = True) -> None:
        require_number("backbone_lr_factor", backbone_lr_factor, "[0, inf)")
        self.backbone_lr_factor = backbone_lr_factor
        self.decay_norms_and_biases = decay_norms_and_biases

    def __call__(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups with their ``lr_factor``, which the caller multiplies into the optimizer's ``lr``.

        Where there are several, each has a ``name``, under which its learning rate is logged.
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
            raise ValueError("nothing is left to train: all parameters are frozen")
        if len(groups) == 1:
            return list(groups.values())
        return [{"name": title, **group} for title, group in groups.items()]
