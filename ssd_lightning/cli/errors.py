"""One-line messages for a user's mistakes."""

import importlib.util
import inspect
import re
import sys
from typing import Any, NoReturn

import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ssd_lightning.require import visible

PLUGINS = {
    r"hparams_search=(?!null)\w|hydra/sweeper=optuna": ("optuna", "sweep"),
    r"hydra/sweeper/sampler=cmaes": ("cmaes", "sweep"),
    r"hydra/sweeper/sampler=(gp|qmc)": ("scipy", "sweep --extra gp"),
    r"hydra/launcher=submitit": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
}
"""Modules and the extras that have them, by the arguments that need them."""


GROUP_OF_PART = {
    "model.backbone": "backbone",
    "model.default_boxes.scales": "box_scales",
    "model.default_boxes.aspect_ratios": "aspect_ratios",
    "model.extra_layers": "extra_layers",
    "model.head": "head",
}
"""Groups of parts to which the config of a model refers, and whose keys a user sets."""


def explain(error: BaseException) -> str | None:
    """Describe a user's mistake in one line. Return None if the error looks like a fault of this project."""
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        where = re.search(r"full_key: (\S+)", str(error))
        called = re.search(r"Error in call to target '([\w.]+)'", str(error))
        if where is None or cause is None:
            return _one_line(str(error) if cause is None else text_of(cause))
        return in_part(GROUP_OF_PART.get(where[1], where[1]), get_object(called[1]) if called else None, cause)
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key}: expected a value, got none. Try {error.full_key}=…, or --help."
    if other := re.match(r"Could not override '([^']+)'\.\s+No match in the defaults list", str(error)):
        advice = "device=cpu" if other[1] == "trainer" else "--help, which lists them"
        return f"{other[1]}: expected a group that the command reads, got another. Try {advice}."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}: expected one of {', '.join(error.options)}, got {option}. Try --help."
    if isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        # Hydra appends its search path, which means nothing to most users.
        return _one_line(str(error).split("Config search path:")[0])
    if type(error).__name__ in ("MisconfigurationException", "NonFiniteLossError"):
        return _one_line(str(error))
    if isinstance(error, RuntimeError) and (loop := re.match(r"Symlink loop from '(.*)'", str(error))):
        return f"{loop[1]}: expected a file or a folder, got a link that leads to itself"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "~: expected the name of a user in a path that begins with ~, got another. Try the whole path, or ./~…"
    if isinstance(error, (ValueError, OSError)):
        text = str(error)
        # A worker of a data loader passes its whole traceback as the message; the last line is the error itself.
        return text.strip().splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in text else text
    return None


def in_part(key: str, part: Any, error: BaseException) -> str:
    """Describe an error of a part of the config in one line, which begins with the key of the wrong argument.

    Args:
        key: key of the part.
        part: the class or function, which names an argument first in its messages.
        error: raised by the part.
    """
    text = _one_line(text_of(error))
    named = re.match(r"(\w+)[\w.]*(, \w+)*: expected ", text)
    if named and callable(part) and named[1] in inspect.signature(part).parameters:
        return f"{key}.{text}"
    return text if text.startswith((f"{key}:", f"{key}.")) else f"{key}: {text}"


def text_of(error: BaseException) -> str:
    """Return the message of an error that may have been raised by code that is not this project's."""
    return explain(error) or str(error) or type(error).__name__


def require_plugins(arguments: list[str]) -> None:
    """Refuse arguments whose package, of an extra, is not installed.

    Raises:
        ValueError: naming the argument and the command that installs the plugin.
    """
    for argument in arguments:
        for pattern, (module, extra) in PLUGINS.items():
            if re.match(pattern, argument) and importlib.util.find_spec(module) is None:
                package = module.rpartition(".")[2].replace("_", "-")
                raise ValueError(f"{argument}: expected the package {package}, got none. Try uv sync --extra {extra}.")


def fail(name: str, message: str, exit_code: int = 1) -> NoReturn:
    """Print a message to stderr, with the command's name before it, and exit.

    A list has indented lines. Other lines come from a stranger's name, which could pretend to be a line of a command.
    """
    text = re.sub(r"\n(?! {2})", r"\\n", visible(f"{name}: {message}"))
    print(text, file=sys.stderr, flush=True)
    sys.exit(exit_code)


def _one_line(text: str) -> str:
    return " ".join(text.split())
