"""The text of ``--help``, made from ``conf/``."""

from typing import Any, NamedTuple

import yaml

from ssd_lightning.detector.presets import CONFIG_FOLDER

GROUPS = {
    "experiment": "a whole recipe: it chooses from the groups below",
    "model": "a detector by name: input size, and a choice from the next five groups",
    "backbone": "the network that makes the feature maps",
    "extra_layers": "how further levels are made from the last map",
    "head": "what predicts on each level",
    "box_scales": "sizes of the default boxes on each level",
    "aspect_ratios": "shapes of the default boxes on each level",
    "matcher": "which default box answers for which object",
    "loss": "what is minimised",
    "postprocess": "from predictions to detections",
    "data": "where pictures and boxes come from",
    "augmentation": "how training pictures are varied",
    "optimizer": "how weights are changed",
    "lr_scheduler": "how the learning rate goes over the steps",
    "parameter_groups": "which weights learn how fast, and which decay",
    "trainer": "devices, precision, length",
    "logger": "where numbers and pictures go while training; several as logger=[wandb,tensorboard]",
    "callbacks": "checkpoints, progress, stopping, averaging; several as callbacks=[ema,early_stopping]",
    "debug": "a short run to look for what is wrong; it has the last word",
    "hparams_search": "what Optuna looks for in a sweep, and how",
}
"""Every config group, with what it decides."""


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
        f"  {name} -m key=a,b,c       run for each of the values",
        f"  {name} --hydra-help       all of Hydra's own options",
    ]
    return "\n".join(lines)


def _defaults_and_keys(config_name: str) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Of a main config and those that it includes: the option of each group, and its own keys."""
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
