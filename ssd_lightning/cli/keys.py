"""Keys of the command line: accepted with or without a plus, and refused where nothing would read them."""

import difflib
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.help import GROUPS, Command
from ssd_lightning.detector.presets import CONFIG_FOLDER

COLLECTIONS = ("callbacks", "logger")
"""Groups that hold parts by name. A user may add a part of any name by giving its ``_target_``."""

PARTS = {"postprocess": "ssd_lightning.PostProcess"}
"""Parts that a config leaves open, since a checkpoint holds them. Their keys replace settings of the checkpoint."""

FILLED_IN = {
    "optimizer": ("params",),
    "lr_scheduler": ("optimizer", "total_steps"),
    "head": ("channels", "boxes_per_cell", "num_classes"),
    "model.head": ("channels", "boxes_per_cell", "num_classes"),
    "model": ("num_classes",),
}
"""Arguments of parts that a training fills in. A value of a user would be ignored, or given twice."""

USUAL_NAMES = {
    "batch": "batch_size",
    "conf": "draw_threshold",
    "device": "trainer.accelerator",
    "gpus": "trainer.devices",
    "imgsz": "model.image_size",
    "iou": "postprocess.nms_threshold",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "num_epochs": "trainer.max_epochs",
    "pretrained": "checkpoint",
    "epochs": "trainer.max_epochs",
    "weights": "checkpoint",
    "workers": "num_workers",
}
"""Names that other tools use, and the keys of this project that mean the same."""


def check_keys(command: Command, arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra wants them: with ``++`` where a key is not in the config but its part takes it.

    Raises:
        ValueError: naming a key that nothing would read, and the nearest key.
    """
    folder, name = str(CONFIG_FOLDER), command.config
    if "--config-path" in arguments:
        folder = arguments[arguments.index("--config-path") + 1]
        name = arguments[arguments.index("--config-name") + 1]
    overrides = [OverridesParser.create().parse_override(argument) for argument in arguments if _is_key_value(argument)]
    values = [override for override in overrides if _is_value(override)]
    if not values:
        return arguments
    choices = [override.input_line or "" for override in overrides if not _is_value(override)]
    for option in ("--config-dir", "-cd"):
        if option in arguments:
            own_options = Path(arguments[arguments.index(option) + 1]).absolute()
            choices.append(f"hydra.searchpath=['file://{own_options}']")
    config = _compose(folder, name, tuple(choices))
    given = {override.key_or_group for override in values}
    renamed = {}
    for override in values:
        key = override.key_or_group
        line = override.input_line or ""
        is_known = _has(config, key) and not _is_filled_in(key)
        if not is_known and not _is_taken(config, key, given):
            raise ValueError(_message(command, config, key, line.partition("=")[2]))
        plain = line.lstrip("+")
        renamed[line] = plain if is_known else f"++{plain}"
    return [renamed.get(argument, argument) for argument in arguments]


def _is_key_value(argument: str) -> bool:
    """Return True for an override, and False for an option such as ``--cfg`` or the value of one."""
    return "=" in argument and not argument.startswith(("-", "/"))


def _is_value(override: Override) -> bool:
    """Return True if the override sets a value, and False if it chooses from a group, deletes, or is Hydra's own."""
    key = override.key_or_group
    is_group = key in GROUPS or "/" in key or override.package is not None
    return not (is_group or override.is_delete() or key == "hydra" or key.startswith("hydra."))


@functools.cache
def _compose(folder: str, name: str, choices: tuple[str, ...]) -> DictConfig:
    """Compose a config from the choices of groups alone. Cached for programs that run several commands."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            # One option of each swept group is enough to look for keys.
            kept = [
                choice for choice in choices if not choice.lstrip("+~").startswith("hydra") or "searchpath" in choice
            ]
            return compose(name, [_first_option(choice) for choice in kept])
    finally:
        GlobalHydra.instance().clear()


def _first_option(choice: str) -> str:
    override = OverridesParser.create().parse_override(choice)
    if not override.is_sweep_override():
        return choice
    return f"{choice.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"


def _has(config: DictConfig, key: str) -> bool:
    """Return True if the config has the key, whatever its value."""
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    # A key without a value, which the user has to give, is among the keys but not "in" the node.
    return isinstance(node, DictConfig) and last in list(node.keys())


def _is_taken(config: DictConfig, key: str, given: set[str]) -> bool:
    """Return True if the part that the key belongs to takes it as an argument."""
    parent, _, last = key.rpartition(".")
    if not parent:
        return False
    node = OmegaConf.select(config, parent)
    if isinstance(node, DictConfig):
        target = node.get("_target_", PARTS.get(parent))
        if target is None:
            return False
        names = _parameters(target)
        return last == "_target_" or (not _is_filled_in(key) and (names is None or last in names))
    return parent.partition(".")[0] in COLLECTIONS and f"{parent}._target_" in given


def _is_filled_in(key: str) -> bool:
    parent, _, last = key.rpartition(".")
    return last in FILLED_IN.get(parent, ())


def _parameters(target: str) -> set[str] | None:
    """Return the names of a part's arguments, or None if the part takes any name."""
    parameters = inspect.signature(get_object(target)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _message(command: Command, config: DictConfig, key: str, value: str) -> str:
    known = list(_keys(config))
    usual = USUAL_NAMES.get(key)
    if usual is None or not (_has(config, usual) or _is_taken(config, usual, set())):
        usual = _nearest(config, key, known)
    advice = f"Try {usual}={value}." if usual else f"Try {command.name} --help."
    return f"{key}: expected a key of {command.name}, got {key}={value}. {advice}"


def _nearest(config: DictConfig, key: str, known: list[str]) -> str | None:
    """Return the key that resembles the given one most, by its whole or by its last part."""
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if isinstance(node, DictConfig) and (target := node.get("_target_", PARTS.get(parent))) is not None:
        known = [*known, *(f"{parent}.{name}" for name in _parameters(target) or ())]
    known = [name for name in known if not _is_filled_in(name)]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    by_part = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
    return whole[0] if whole else by_last[by_part[0]] if by_part else None


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a config that a user may set, and the names of its groups."""
    if not prefix:
        yield from GROUPS
    for name in node:
        key = f"{prefix}{name}"
        if str(name).startswith("_") or key == "hydra":
            continue
        yield key
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_interpolation() and not child._is_none():
            yield from _keys(child, f"{key}.")
