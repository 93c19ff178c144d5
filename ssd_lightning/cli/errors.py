"""One-line messages for a user's mistakes."""

import importlib.util
import re
import sys
from typing import NoReturn

import yaml
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

PLUGINS = {
    r"hparams_search=(?!null)\w|hydra/sweeper=optuna": "hydra_optuna_sweeper",
    r"hydra/launcher=submitit": "hydra_submitit_launcher",
}
"""Packages of the extra ``sweep``, by the arguments that need them."""


def explain(error: BaseException) -> str | None:
    """A user's mistake in one line; None if it looks like ours."""
    if isinstance(error, InstantiationException):
        where = re.search(r"full_key: (\S+)", str(error))
        cause = error.__cause__
        text = (explain(cause) if cause is not None else None) or str(cause or error)
        return f"{where.group(1)}: {_one_line(text)}" if where else _one_line(text)
    if isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        # What follows is Hydra's search path, which says nothing to most.
        return _one_line(str(error).split("Config search path:")[0])
    if type(error).__name__ in ("MisconfigurationException", "NonFiniteLossError"):
        return _one_line(str(error))
    if isinstance(error, (ValueError, OSError)):
        # A loader's worker hands over its whole traceback as the message; its last line is what happened.
        text = str(error)
        return text.strip().splitlines()[-1].split("Error: ", 1)[-1] if "Original Traceback" in text else text
    return None


def require_plugins(arguments: list[str]) -> None:
    """Hydra would list the sweepers that it has.

    Raises:
        ValueError: if an argument needs a plugin that is not installed.
    """
    for argument in arguments:
        for pattern, plugin in PLUGINS.items():
            if re.match(pattern, argument) and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
                package = plugin.replace("_", "-")
                raise ValueError(f"{argument}: expected {package} to be installed: uv sync --extra sweep")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def fail(name: str, message: str, exit_code: int = 1) -> NoReturn:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(exit_code)
