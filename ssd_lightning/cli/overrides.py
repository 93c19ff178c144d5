"""Values on the command line: any file name is accepted as typed, and data is found from every folder."""

import os
import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.help import Command, main_config
from ssd_lightning.detector.presets import PUBLISHED

FOLDERS_OF_DATA = ("data_dir", "data.root", "data.download_to")

IN_ROOT_OR_HERE = (
    *("data.annotations", "data.val_annotations", "data.test_annotations"),
    *("data.pictures", "data.val_pictures", "data.test_pictures", "data.description"),
)
"""Keys of files that are looked for in the working folder first, then in ``data.root``."""

PLACES_OF_DATA = (*FOLDERS_OF_DATA, *IN_ROOT_OR_HERE)

PATHS = {
    *(
        "checkpoint",
        "source",
        "calibration",
        "detections",
        "runs",
        "baseline",
        "pretrained",
        "backbone.weights",
        "file",
    ),
    *("resume", "resume_sweep", "hydra.run.dir", "hydra.sweep.dir", *PLACES_OF_DATA),
}
"""Keys whose value is a path even where it looks like a number or like several values."""

LISTS_OF_NAMES = (
    *("data.classes", "data.train", "data.val", "data.test", "data.box_columns", "data.header"),
    *("logger.wandb.tags", "trusted_packages"),
)
"""Keys whose value is a list of names. A name is text as typed, also where it looks like a number or like null."""

WITH_A_PLUS = re.compile(
    r"^\+{1,2}(?=(resume|resume_sweep|pretrained|trusted_packages|hydra\.(run|sweep)\.dir|hydra\.mode)=)"
)
"""Pluses before keys that commands read from their arguments, where Hydra has not composed the config yet."""

STARTS_A_SWEEP = re.compile(r"(-m|--multirun|hydra\.mode=MULTIRUN|hydra/sweeper=.*|hparams_search=(?!null).*)$")

PARSER = OverridesParser.create()


NO_LOG_FILE = "hydra/job_logging=stdout"
"""Argument with which Hydra writes no log file. A run folder has its metrics and its summary instead."""

TAKE_A_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
)
"""Options of Hydra whose value is the next argument."""


def named(command: Command, arguments: list[str]) -> list[str]:
    """Give words without a key the keys that the command takes by position, such as a checkpoint and pictures.

    Raises:
        ValueError: if there is a word that no key is left for.
    """
    words: list[str] = []
    others: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_option = argument[:1] in ("-", "~") and argument != "-"
        # An address may have an equals sign in its query.
        is_pair = "=" in argument.partition("://")[0]
        is_word = not is_pair and not is_option and before not in TAKE_A_VALUE
        (words if is_word and argument not in command.words else others).append(command.words.get(argument, argument))
    given = {argument.lstrip("+").partition("=")[0] for argument in others}
    keys = [key for key in command.positional if key not in given]
    takes_all = command.several_words and command.positional[-1] in keys
    if len(words) > len(keys) and not takes_all:
        raise ValueError(f"{words[len(keys)]}: expected key=value. Try {command.name} --help.")
    first, last = words[: len(keys) - 1], words[len(keys) - 1 :] if keys else []
    pairs = [f"{key}={word}" for key, word in zip(keys, first, strict=False)]
    if len(last) == 1:
        pairs.append(f"{keys[-1]}={last[0]}")
    elif last:
        pairs.append(f"{keys[-1]}=[{','.join(quote(word) for word in last)}]")
    # Hydra wants all values together: after -m, and before other options.
    place = next((place for place, other in enumerate(others) if other not in ("-m", "--multirun")), len(others))
    return [*others[:place], *pairs, *others[place:]]


def readable(arguments: list[str]) -> list[str]:
    """Quote the values that Hydra's grammar would refuse or misread, such as names with spaces, letters or brackets.

    A value that begins with a quote or a bracket is meant for that grammar and stays as it is. ``~`` is expanded to the
    user's folder, as a shell does at the start of a word. A comma separates values in a sweep, and elsewhere it is part
    of a path. Keys work with a plus, so ``++resume=run`` becomes ``resume=run``.
    """
    arguments = [WITH_A_PLUS.sub("", argument, count=1) for argument in arguments]
    sweeps = any(STARTS_A_SWEEP.match(argument) for argument in arguments)
    return [_readable(argument, sweeps) for argument in arguments]


def _readable(argument: str, sweeps: bool) -> str:
    names = re.fullmatch(r"(\+{0,2}([\w.]+))=\[([^\[\]{}\"']*)\]", argument, flags=re.DOTALL)
    if names is not None and names[2] in LISTS_OF_NAMES:
        return f"{names[1]}=[{','.join(quote(name.strip()) for name in names[3].split(',') if name.strip())}]"
    match = re.fullmatch(r"(\+{0,2}([A-Za-z_$][\w$./@-]*))=([^\[{'\"].*)", argument, flags=re.DOTALL)
    if match is None:
        return argument
    start, key, value = match.groups()
    function = re.match(r"(\w+)\(", value)
    if _is_read(value, key in PATHS) or (function and function[1] in PARSER.functions.functions):
        return argument
    parts = [part.strip() for part in value.split(",")] if sweeps else [value]
    quoted = (part if _is_read(part, key in PATHS) else quote(os.path.expanduser(part)) for part in parts)
    return f"{start}={','.join(quoted)}"


def _is_read(text: str, is_path: bool) -> bool:
    """Return True if Hydra reads the text as one value, and a path as text."""
    try:
        value = PARSER.parse_override(f"key={text}").value()
    except HydraException:
        return False
    return not is_path or value is None or isinstance(value, str)


def with_model_of_weights(command: Command, arguments: list[str]) -> list[str]:
    """Choose the model of the published weights that ``pretrained`` names.

    Raises:
        ValueError: if the arguments choose another model, or weights of several models.
    """
    given = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith("pretrained=")]
    names = [part.strip("[]'\" ") for part in given[-1].split(",")] if given else []
    models = {PUBLISHED[name].model: name for name in names if name in PUBLISHED}
    if not models or "pretrained" not in main_config(command.config)[1]:
        return arguments
    if len(models) > 1:
        raise ValueError(f"pretrained: expected weights of one model, got {given[-1]}. Try a sweep for each.")
    [(model, name)] = models.items()
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("model=")]
    if not asked:
        return [*arguments, f"model={model}"]
    if asked[-1] != model:
        raise ValueError(f"model: expected {model}, which pretrained={name} is for, got {asked[-1]}. Try no model=….")
    return arguments


OF_A_SEARCH = re.compile(r"hydra\.sweeper\.(params|sampler|pruner|objectives)\.\S+?=")
"""Keys below which a search by Optuna takes any key."""


def for_search(arguments: list[str]) -> list[str]:
    """Write the settings of a search as Hydra wants them: with ``++`` where a key may be new, and a space as text."""
    return [_for_search(argument) if OF_A_SEARCH.match(argument.lstrip("+")) else argument for argument in arguments]


def _for_search(argument: str) -> str:
    key, _, value = argument.lstrip("+").partition("=")
    is_space = PARSER.parse_override(f"key={value}").is_sweep_override()
    return f"++{key}={quote(value) if is_space else value}"


def without_log_file(arguments: list[str]) -> list[str]:
    """Keep Hydra from writing a log file, which would stay empty. A choice of the user is kept."""
    if any(argument.startswith("hydra/job_logging=") for argument in arguments):
        return arguments
    # Hydra wants all values together.
    is_value = [
        before not in TAKE_A_VALUE and (argument.startswith("~") or ("=" in argument and not argument.startswith("-")))
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    place = is_value.index(True) if any(is_value) else len(arguments)
    return [*arguments[:place], NO_LOG_FILE, *arguments[place:]]


def quote(path: Path | str) -> str:
    """Quote a value for Hydra's grammar."""
    return QuotedString(str(path), Quote.double).with_quotes()


def value_of(argument: str) -> str | None:
    """Return the value of an argument in Hydra's grammar, as text; None for null."""
    value = PARSER.parse_override(argument).value()
    return None if value is None else str(value)


def make_data_folders_absolute(config: DictConfig) -> None:
    """Make the data folders of a config absolute, in place, since a saved config is used from other folders too."""
    for key in PLACES_OF_DATA:
        value = OmegaConf.select(config, key)
        if not isinstance(value, str | int | float):
            continue
        path = Path(str(value)).expanduser()
        if str(path.absolute()) != value and (key in FOLDERS_OF_DATA or path.exists()):
            OmegaConf.update(config, key, str(path.absolute()))
