"""Values of the arguments of Lightning's callbacks, which check few of them before the first validation."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.rules import Rule, number, one_of, only, switch, whole
from ssd_lightning.run_folder import SCORE_NAMES

OTHERS = ("loss", "loss_classification", "loss_localization", "class_error", "box_mae")
"""Names that a validation logs beside the scores."""


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: expected a text, got {value}")


def _or_null(rule: Rule) -> Rule:
    return lambda key, value: None if value is None else rule(key, value)


LOGGED = (*(f"val/{name}" for name in (*SCORE_NAMES, *OTHERS)), "train/loss")
"""Names that a callback can watch."""

STOPPING: dict[str, Rule] = {
    "monitor": one_of(*LOGGED),
    "mode": one_of("max", "min"),
    "patience": whole(0),
    "min_delta": number("[0, 1e9]"),
    "stopping_threshold": _or_null(number("[-1e9, 1e9]")),
    "divergence_threshold": _or_null(number("[-1e9, 1e9]")),
    "strict": switch,
    "verbose": switch,
    "check_finite": switch,
    "log_rank_zero_only": switch,
    "check_on_train_epoch_end": one_of(True, False, None),
}
"""The rule of each argument of EarlyStopping."""

SAVING: dict[str, Rule] = {
    "dirpath": _text,
    "filename": _or_null(_text),
    "monitor": one_of(*LOGGED, "epoch", "step", None),
    "verbose": switch,
    "save_last": one_of(True, False, None, "link"),
    "save_top_k": whole(-1),
    "save_on_exception": switch,
    "save_weights_only": switch,
    "mode": one_of("max", "min"),
    "auto_insert_metric_name": switch,
    "every_n_train_steps": _or_null(whole(0)),
    "train_time_interval": only(None, "every_n_train_steps"),
    "every_n_epochs": _or_null(whole(0)),
    "save_on_train_epoch_end": one_of(True, False, None),
    "enable_version_counter": switch,
}
"""The rule of each argument of ModelCheckpoint, and of the callbacks of this project that save as it does."""

LEARNING_RATE: dict[str, Rule] = {
    "logging_interval": one_of("step", "epoch", None),
    "log_momentum": switch,
    "log_weight_decay": switch,
}
"""The rule of each argument of LearningRateMonitor."""

RULES = {
    "EarlyStopping": STOPPING,
    "LearningRateMonitor": LEARNING_RATE,
    **dict.fromkeys(("ModelCheckpoint", "RunCheckpoint", "SaveEverySteps"), SAVING),
}
"""The rules by the name of the class."""


def check_callbacks(callbacks: DictConfig) -> None:
    """Refuse arguments of callbacks that would be ignored, or be found wrong after an epoch.

    Raises:
        ValueError: naming the key, the values that it takes, and the value that it has.
    """
    for key, node in callbacks.items():
        package, _, kind = str(node.get("_target_")).rpartition(".") if isinstance(node, DictConfig) else ("", "", "")
        if package.partition(".")[0] not in ("lightning", "ssd_lightning"):
            continue
        # Places such as ${hydra:runtime.output_dir} are text before they are resolved, too.
        values: Any = OmegaConf.to_container(node)
        for argument, rule in RULES.get(kind, {}).items():
            if argument in values:
                rule(f"callbacks.{key!s}.{argument}", values[argument])
