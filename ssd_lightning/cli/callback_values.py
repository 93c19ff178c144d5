"""Values of the arguments of Lightning's EarlyStopping, which checks few of them before the first validation."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.rules import Rule, number, one_of, switch, whole
from ssd_lightning.run_folder import SCORE_NAMES

OTHERS = ("loss", "loss_classification", "loss_localization", "class_error", "box_mae")
"""Names that a validation logs beside the scores."""


def _number_or_null(key: str, value: Any) -> None:
    if value is not None:
        number("[-1e9, 1e9]")(key, value)


RULES: dict[str, Rule] = {
    "monitor": one_of(*(f"val/{name}" for name in (*SCORE_NAMES, *OTHERS)), "train/loss"),
    "mode": one_of("max", "min"),
    "patience": whole(0),
    "min_delta": number("[0, 1e9]"),
    "stopping_threshold": _number_or_null,
    "divergence_threshold": _number_or_null,
    "strict": switch,
    "verbose": switch,
    "check_finite": switch,
    "log_rank_zero_only": switch,
    "check_on_train_epoch_end": one_of(True, False, None),
}
"""The rule of each argument."""


def check_callbacks(callbacks: DictConfig) -> None:
    """Refuse arguments of EarlyStopping that would be ignored, or be found wrong after an epoch.

    Raises:
        ValueError: naming the key, the values that it takes, and the value that it has.
    """
    for key, node in callbacks.items():
        name = str(key)
        if not isinstance(node, DictConfig) or not str(node.get("_target_")).endswith(".callbacks.EarlyStopping"):
            continue
        values: Any = OmegaConf.to_container(node, resolve=True)
        for argument, value in values.items():
            if argument in RULES:
                RULES[argument](f"callbacks.{name}.{argument}", value)
