"""One-line messages for a user's mistakes."""

import importlib.util
import re
import sys
from typing import NoReturn

import yaml
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

PLUGINS = {
    r"hparams_search=(?!null)\w|hydra/sweeper=optuna": ("optuna", "sweep"),
    r"hydra/sweeper/sampler=cmaes": ("cmaes", "sweep"),
    r"hydra/sweeper/sampler=(gp|qmc)": ("scipy", "sweep --extra gp"),
    r"hydra/launcher=submitit": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
}
"""Modules and the extras that have them, by the arguments that need them."""


def explain(error: BaseException) -> str | None:
    """Describe a user's mistake in one line. Return None if the error looks like a fault of this project."""
    if isinstance(error, InstantiationException):
        where = re.search(r"full_key: (\S+)", str(error))
        cause = error.__cause__
        text = (explain(cause) if cause is not None else None) or str(cause or error)
        return f"{where.group(1)}: {_one_line(text)}" if where else _one_line(text)
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key}: expected a value, got none. Try {error.full_key}=…, or --help."
    if isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        # Hydra appends its search path, which means nothing to most users.
        return _one_line(str(error).split("Config search path:")[0])
    if type(error).__name__ in ("MisconfigurationException", "NonFiniteLossError"):
        return _one_line(str(error))
    if isinstance(error, (ValueError, OSError)):
        text = str(error)
        # A worker of a data loader passes its whole traceback as the message; the last line is the error itself.
        return text.strip().splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in text else text
    return None


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
    """Print one line to stderr, with the command's name before it, and exit."""
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _one_line(text: str) -> str:
    return " ".join(text.split())
