"""The text of ``--help``, made from ``conf/``."""

from typing import Any, NamedTuple

import yaml

from ssd_lightning.detector.presets import CONFIG_FOLDER

GROUPS = {
    "experiment": "a complete recipe, which chooses from the groups below",
    "model": "a detector by name: its input size and its choice from the next five groups",
    "backbone": "the network that computes feature maps",
    "extra_layers": "layers that add coarser levels to the last feature map",
    "head": "layers that predict classes and offsets on each level",
    "box_scales": "sizes of the default boxes on each level",
    "aspect_ratios": "shapes of the default boxes on each level",
    "matcher": "the rule that assigns objects to default boxes",
    "loss": "the training objective",
    "postprocess": "the steps from predictions to detections",
    "data": "the source of pictures and boxes",
    "augmentation": "random changes of the training pictures",
    "optimizer": "the optimizer and its settings",
    "lr_scheduler": "the learning rate over the steps",
    "parameter_groups": "learning rate and weight decay of parts of the network",
    "trainer": "devices, precision and length",
    "logger": "dashboards and metrics files; several as logger=[wandb,tensorboard]",
    "callbacks": "checkpoints, progress, early stopping, averaging; several as callbacks=[ema,early_stopping]",
    "debug": "a short run that looks for mistakes; overrides all other groups",
    "hparams_search": "the search space and the settings of an Optuna sweep",
}
"""Config groups and their purposes, in the order of ``--help``."""


class Command(NamedTuple):
    """A command as its users see it."""

    name: str
    """As typed, such as ``ssd-train``."""
    config: str
    """Its main config: ``conf/<config>.yaml``."""
    about: str
    """One sentence for ``--help``."""
    examples: list[str]


def help_text(command: Command) -> str:
    """Return the text of ``--help``: usage, examples, groups with their options, and keys with their defaults."""
    name, config_name, about, examples = command
    chosen, config = _defaults_and_keys(config_name)
    lines = [f"{name} - {about}", "", "Usage:", f"  {name} [key=value ...]", "", "Examples:"]
    lines += [f"  {example}" for example in examples]
    if chosen:
        lines += ["", "Groups (group=option; * is the default):"]
        for group in GROUPS:
            if group in chosen:
                options = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
                marked = ", ".join(f"{option}*" if option == chosen[group] else option for option in options)
                lines += [f"  {group:<16} {GROUPS[group]}", f"  {'':<16}   {marked}"]
    lines += ["", "Keys:"]
    lines += [
        f"  {key}={'(required)' if value == '???' else 'null' if value is None else value}"
        for key, value in config.items()
        if key != "hydra"
    ]
    lines += [
        "",
        f"  {name} --cfg job          show the whole config without running",
        f"  {name} -m key=a,b,c       run once for each value",
        f"  {name} --hydra-help       all of Hydra's own options",
    ]
    return "\n".join(lines)


def _defaults_and_keys(config_name: str) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Return the default option of each group and the keys of a main config, with the configs that it includes."""
    keys = yaml.safe_load((CONFIG_FOLDER / f"{config_name}.yaml").read_text())
    chosen: dict[str, str | None] = {}
    included: dict[str, Any] = {}
    for entry in keys.pop("defaults", []):
        if isinstance(entry, dict):
            chosen |= {group.removeprefix("optional "): option for group, option in entry.items()}
        elif entry != "_self_":
            more_chosen, more_keys = _defaults_and_keys(entry)
            chosen, included = chosen | more_chosen, included | more_keys
    return chosen, included | keys
