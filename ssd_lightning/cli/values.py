"""Limits of the values in a config. They are checked before torch is imported and before any data is read."""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ssd_lightning.cli.callback_values import check_callbacks
from ssd_lightning.cli.optimizer_values import check_optimizer
from ssd_lightning.cli.rules import one_of
from ssd_lightning.cli.trainer_values import check_trainer
from ssd_lightning.require import LARGEST_IMAGE, require_number, require_texts, require_whole_number

WHOLE_NUMBERS = {
    "seed": 0,
    "batch_size": 1,
    "num_workers": 0,
    "overfit_pictures": 1,
    "lr_reference_batch": 1,
    "dashboard_pictures": 0,
    "boxes_budget": 1,
    "pictures": 0,
    "jobs_at_once": 1,
}
"""Keys of whole numbers and their smallest values."""

MOST = {"seed": 2**32 - 1, "lr_reference_batch": 10**6}
"""Keys of whole numbers that have a largest value: numpy takes seeds of 32 bits."""

NUMBERS = {
    "draw_threshold": "[0, 1]",
    "score_threshold": "[0, 1]",
    "least_reached": "[0, 1]",
    "iou_threshold": "(0, 1]",
}
"""Keys of numbers and their intervals."""

SWITCHES = ("augmented", "compile", "design", "draw", "int8", "raw", "stop_sweep_on_failure", "why_missed")
"""Keys that are true or false."""

SPLITS = ("val", "test")
"""Values of ``split``."""

FLAGS = {
    "_partial_": (True, False),
    "_recursive_": (True, False),
    "_convert_": ("none", "partial", "object", "all"),
}
"""Flags of Hydra beside ``_target_``, with their values. Hydra fails on others, with an error of its own code."""

REQUIRED = (
    "seed",
    "batch_size",
    "dashboard_pictures",
    "jobs_at_once",
    "draw_threshold",
    "iou_threshold",
    *SWITCHES,
)
"""Keys that cannot be null. Other keys mean "no limit" or "choose for me" by null."""


def check_values(config: DictConfig) -> None:
    """Refuse values that would otherwise be found wrong late, or never.

    Raises:
        ValueError: naming the key, the values that it takes, and the value that it has.
    """
    seed = OmegaConf.select(config, "seed")
    if isinstance(seed, str) and seed.isdecimal():
        config.seed = int(seed)  # Values from the environment are text.
    for key, least in WHOLE_NUMBERS.items():
        if _is_given(config, key):
            require_whole_number(key, OmegaConf.select(config, key), least, MOST.get(key, 2**63 - 1))
    for key, interval in NUMBERS.items():
        if _is_given(config, key):
            require_number(key, OmegaConf.select(config, key), interval)
    for key in SWITCHES:
        value = OmegaConf.select(config, key)
        if _is_given(config, key) and not isinstance(value, bool):
            raise ValueError(f"{key}: expected true or false, got {value}")
    if "split" in config:
        one_of(*SPLITS)("split", config.split)
    plain: Any = OmegaConf.to_container(config)
    if "trusted_packages" in plain:
        require_texts("trusted_packages", plain["trusted_packages"])
    _check_flags("", plain)
    checks = {"trainer": check_trainer, "optimizer": check_optimizer, "callbacks": check_callbacks}
    for group, check in checks.items():
        arguments = OmegaConf.select(config, group)
        if isinstance(arguments, DictConfig):
            check(arguments)
    _check_image_size(OmegaConf.select(config, "model.image_size"))


def _check_flags(name: str, node: Any) -> None:
    """Refuse wrong flags of Hydra, and classes that are no text, in nested lists and dictionaries."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        place = f"{name}.{key}" if name else str(key)
        if key in FLAGS:
            one_of(*FLAGS[key])(place, value)
        if key == "_target_" and not (isinstance(value, str) and value):
            raise ValueError(f"{place}: expected the name of a class, got {value}")
        _check_flags(place, value)


def _is_given(config: DictConfig, key: str) -> bool:
    """Return True if the config has a value for the key that has to be checked."""
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig) or last not in node:
        return False
    return OmegaConf.select(config, key) is not None or key in REQUIRED


def _check_image_size(image_size: Any) -> None:
    for side in image_size if isinstance(image_size, ListConfig) else [image_size]:
        if isinstance(side, int) and side > LARGEST_IMAGE:
            raise ValueError(f"model.image_size: expected at most {LARGEST_IMAGE} pixels, got {side}")
