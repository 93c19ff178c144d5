"""The text of ``--help``, made from ``conf/``."""

import ast
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from ssd_lightning.detector.presets import CONFIG_FOLDER, PACKAGE

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
    """The word that users type, such as ``ssd-train``."""
    config: str
    """Its main config: ``conf/<config>.yaml``."""
    about: str
    """One sentence for ``--help``."""
    examples: list[str]
    positional: tuple[str, ...] = ()
    """Keys whose values may be typed without the key, in this order."""
    words: Mapping[str, str] = MappingProxyType({})
    """Words with a meaning of their own, and the arguments that they stand for."""
    several_words: bool = False
    """True if the last of the positional keys takes all further words as a list."""


class Key(NamedTuple):
    """A key of a config file."""

    name: str
    default: Any
    about: str
    """The comment above the key, on one line."""


def help_text(command: Command, arguments: Sequence[str] = ()) -> str:
    """Return the text of ``--help``.

    Args:
        command: the command.
        arguments: choices such as ``data=voc_folder``, whose settings are listed in place of the general help.

    Raises:
        ValueError: if a group has no such option.
    """
    chosen = [argument.partition("=") for argument in arguments if "=" in argument]
    defaults, keys = main_config(command.config)
    options = [CONFIG_FOLDER / group / f"{option}.yaml" for group, _, option in chosen if group in defaults]
    for path in options:
        if not path.exists():
            known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
            raise ValueError(f"{path.parent.name}: expected one of {known}, got {path.stem}")
    if options:
        return "\n".join(line for path in options for line in _option_help(path))
    usage = " ".join([command.name, *(f"[{name}]" for name in command.positional), "[key=value ...]"])
    lines = [f"{command.name} - {command.about}", "", "Usage:", f"  {usage}", ""]
    lines += ["Examples:", *(f"  {example}" for example in command.examples)]
    if defaults:
        lines += ["", "Groups (group=option; * is the default):"]
        for group in GROUPS:
            if group in defaults:
                names = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
                marked = ", ".join(f"{name}*" if name == defaults[group] else name for name in names)
                lines += [f"  {group:<16} {GROUPS[group]}", *_wrapped(marked, 19)]
    lines += ["", "Keys:", *_key_lines(keys.values())]
    lines += ["", *[f"  {command.name} --help group=option  list the settings of an option"] * bool(defaults)]
    lines += [
        f"  {command.name} --cfg job            show the whole config without running",
        f"  {command.name} -m key=a,b,c         run once for each value",
        f"  {command.name} --hydra-help         all of Hydra's own options",
    ]
    return "\n".join(lines)


def main_config(name: str) -> tuple[dict[str, str | None], dict[str, Key]]:
    """Return the default option of each group and the keys of a main config, with the configs that it includes."""
    path = CONFIG_FOLDER / f"{name}.yaml"
    defaults: dict[str, str | None] = {}
    included: dict[str, Key] = {}
    for entry in yaml.safe_load(path.read_text()).get("defaults", []):
        if isinstance(entry, dict):
            defaults |= {group.removeprefix("optional "): option for group, option in entry.items()}
        elif entry != "_self_":
            more_defaults, more_keys = main_config(entry)
            defaults, included = defaults | more_defaults, included | more_keys
    defaults |= _overrides_of(defaults.get("experiment"))
    own = {key.name: key for key in keys_of(path) if key.name not in ("defaults", "hydra")}
    # A key that is set again without a comment keeps its description.
    own = {
        name: key._replace(about=included[name].about) if not key.about and name in included else key
        for name, key in own.items()
    }
    return defaults, included | own


def _overrides_of(experiment: str | None) -> dict[str, str]:
    """Return the options that an experiment chooses, by group."""
    path = CONFIG_FOLDER / "experiment" / f"{experiment}.yaml"
    entries = yaml.safe_load(path.read_text()).get("defaults", []) if path.exists() else []
    chosen = {key: option for entry in entries if isinstance(entry, dict) for key, option in entry.items()}
    return {key.removeprefix("override /"): option for key, option in chosen.items() if key.startswith("override /")}


def keys_of(path: Path) -> list[Key]:
    """Return the top-level keys of a config file. The comment above a key describes the key."""
    text = path.read_text()
    content = yaml.safe_load(text)
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            above.append(line.lstrip("# "))
            continue
        if found := re.match(r"([a-z_]+):", line):
            comments[found[1]] = " ".join(above)
        above = []
    return (
        [Key(key, value, comments.get(key, "")) for key, value in content.items()] if isinstance(content, dict) else []
    )


def _option_help(path: Path) -> Iterator[str]:
    """Yield the help of an option of a group: what it is, its settings, and the other arguments of its part."""
    group = path.parent.name
    keys = [key for key in keys_of(path) if key.name != "defaults"]
    target = next((key.default for key in keys if key.name == "_target_"), None)
    settings = [key._replace(name=f"{group}.{key.name}") for key in keys if not key.name.startswith("_")]
    yield f"{group}={path.stem} - {GROUPS[group]}"
    comment = [line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), _lines(path))]
    yield from _wrapped(" ".join(comment), 2)
    if settings:
        yield from ["", "Settings:", *_key_lines(settings)]
    if target is not None:
        listed = {key.name for key in settings}
        others = [argument for argument in _arguments_of(target) if f"{group}.{argument.name}" not in listed]
        yield from ["", f"Other arguments of {target}:"]
        yield from [f"  {group}.{name}={default}" for name, default, _ in others] or ["  see its documentation"]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _arguments_of(target: str) -> list[Key]:
    """Return the arguments of a class or function of this project that have a default, without importing the class."""
    room = {
        alias.name: node.module
        for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    package, _, name = target.partition(".")
    if package != "ssd_lightning" or name not in room:
        return []
    source = ast.parse(PACKAGE.joinpath(*str(room[name]).split(".")).with_suffix(".py").read_text())
    definitions = {node.name: node for node in source.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    node = definitions[name]
    while isinstance(node, ast.ClassDef):
        methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in definitions]
        if "__init__" not in methods and not bases:
            return []
        node = methods["__init__"] if "__init__" in methods else definitions[bases[0]]
    arguments = [*node.args.args, *node.args.kwonlyargs]
    defaults = [*[None] * (len(node.args.args) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    pairs = zip(arguments, defaults, strict=True)
    return [Key(argument.arg, ast.unparse(default), "") for argument, default in pairs if default is not None]


def _key_lines(keys: Iterable[Key]) -> list[str]:
    """Return a line for each key with its default, and its description on the lines below."""
    lines = []
    for name, default, about in keys:
        shown = "(required)" if default == "???" else "null" if default is None else default
        if isinstance(default, bool):
            shown = str(default).lower()
        elif isinstance(default, dict):
            shown = f"<{default.get('_target_', 'settings')}>"
        lines += [f"  {name}={shown}", *_wrapped(about, 6)]
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=" " * indent, subsequent_indent=" " * indent)
