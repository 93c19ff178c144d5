"""A module that is built as ``ssd-train`` builds it, from a config of small parts, for one class."""

import functools
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.build import build_module
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.training.module import SSDModule


def module_of(parts: dict[str, Any]) -> SSDModule:
    """Build the module of the default config, on pictures of 64 pixels, with other parts for some groups."""
    config = small_config("model.image_size=64")
    for group, part in parts.items():
        OmegaConf.update(config, group, part, merge=False, force_add=True)
    return build_module(config, ["banana"])


def module_by(*arguments: str) -> SSDModule:
    """Build the module of the default config with arguments as on the command line."""
    return build_module(small_config("model.image_size=64", *arguments), ["banana"])


def small_config(*arguments: str) -> DictConfig:
    return _composed(arguments).copy()


@functools.cache
def _composed(arguments: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", ["~callbacks", "~logger", *arguments])
