"""Values of the arguments of torch's optimizers. An argument that a user sets works, or is refused by its name.

Torch takes any text for true, checks some numbers for one of their limits, and others not at all.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.rules import Rule, number, one_of, only, switch
from ssd_lightning.require import require_numbers

OPTIMIZERS = tuple(f"torch.optim.{name}" for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"))
"""Optimizers whose arguments of one name mean the same. Others check their arguments themselves."""


def _betas(key: str, value: Any) -> None:
    require_numbers(key, value, "[0, 1)", length=2)
    if not all(isinstance(beta, float) for beta in value):  # Torch does not take 0 beside 0.9.
        raise ValueError(f"{key}: expected numbers with a decimal point, got {value}. Try {key}=[0.9,0.999].")


RULES: dict[str, Rule] = {
    "lr": number("[0, 1e6]"),
    "weight_decay": number("[0, 1e3]"),
    # Adam takes the square of a gradient, which may be 0, and a smaller number would be 0 in float32.
    "eps": number("[1e-30, 1]"),
    "betas": _betas,
    "momentum": number("[0, 1)"),
    "dampening": number("[0, 1)"),
    "amsgrad": switch,
    "nesterov": switch,
    "decoupled_weight_decay": switch,
    "foreach": one_of(True, False, None),
    "fused": one_of(True, False, None),
    "maximize": only(False, "no optimizer.maximize, since a training lowers its loss"),
    "differentiable": only(False, "no optimizer.differentiable, since no gradient passes through a step"),
    "capturable": only(False, "no optimizer.capturable, since no step is captured in a graph"),
}
"""The rule of each argument that the program does not fill in."""


def check_optimizer(arguments: DictConfig) -> None:
    """Refuse arguments of an optimizer that would be ignored, do harm, or be found wrong in the first step.

    Raises:
        ValueError: naming the key, the values that it takes, and the value that it has.
    """
    values: Any = OmegaConf.to_container(arguments, resolve=True)
    is_known = values.get("_target_") in OPTIMIZERS
    for name, value in values.items():
        # The learning rate is a key of every optimizer.
        if name in RULES and (is_known or name == "lr"):
            RULES[name](f"optimizer.{name}", value)
    if is_known and values.get("nesterov") and not (values.get("momentum") and not values.get("dampening")):
        raise ValueError(
            "optimizer.nesterov: expected false without optimizer.momentum or with optimizer.dampening, got true. "
            "Try optimizer.momentum=0.9."
        )
    if is_known and values.get("foreach") and values.get("fused"):
        raise ValueError("optimizer.foreach: expected null beside optimizer.fused=true, got true")
