"""Files of weights: reading them without running code, and finding torchvision's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import models

CONFIG_KEY = "ssd_lightning"
"""Where checkpoints of this project hold what rebuilds the detector: ``model``, ``postprocess``, ``classes``."""

MODEL_PREFIX = "model."
"""Of the network's weights among those of the module that trains it."""

STARTS = (b"PK\x03\x04", b"\x80\x02")
"""First bytes of what ``torch.save`` writes: a zip file, before torch 1.6 a pickle."""


class Weights(NamedTuple):
    """Of a classifier, and how its pictures were scaled: mean and std by channel, red first, 0 … 255."""

    state: dict[str, Tensor]
    mean: list[float] | None
    std: list[float] | None
    source: str
    """File or name, for messages."""


def read_weights(network: str, weights: str) -> Weights:
    """Weights of one of torchvision's classifiers.

    Args:
        network: its name in :mod:`torchvision.models`.
        weights: a name that torchvision has for it, ``DEFAULT`` for its best, downloaded once; or a file with a state
            dict of it, whose mean and std are known if it has the name of torchvision's file.

    Raises:
        ValueError: if there is no such name or file, or it cannot be downloaded or read; it says what to put where.
    """
    known = models.get_model_weights(network)
    if weights not in known.__members__:
        path = Path(weights)
        if not path.is_file():
            raise ValueError(
                f"weights: expected a file or one of {', '.join(known.__members__)} for {network}, got {weights!r}"
            )
        same_file = next((entry for entry in known if Path(entry.url).name == path.name), None)
        mean, std = (None, None) if same_file is None else _scaling(same_file)
        return Weights(state_dict(read_file(path, "weights"), path), mean, std, weights)
    chosen = known[weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
    try:
        state = chosen.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of the disk, and whatever a damaged file gives
        if file.is_file():
            raise ValueError(f"weights: {file} is damaged ({error}); delete it, or put a good one there") from error
        raise ValueError(
            f"weights: {weights} of {network} cannot be downloaded from {chosen.url} ({error}); put that file at "
            f"{file}, or name it"
        ) from error
    return Weights(dict(state), *_scaling(chosen), str(file))


def _scaling(weights: models.WeightsEnum) -> tuple[list[float], list[float]]:
    """Mean and std, which torchvision has for pixels of 0 … 1."""
    scaling = weights.transforms()
    return [255 * m for m in scaling.mean], [255 * s for s in scaling.std]


def read_file(path: Path | str, argument: str) -> dict[str, Any]:
    """What ``torch.save`` wrote, on the CPU. Only plain data and tensors are read: a file cannot run code.

    Raises:
        ValueError: naming ``argument`` and the file, if it is missing or holds anything else than a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{argument}: no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in as many ways as a pickle has instructions
        raise ValueError(f"{argument}: {path} cannot be read as a checkpoint: {_reason(path, error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{argument}: {path} holds a {type(content).__name__}, not a checkpoint")
    return dict(content)


def _reason(path: Path, error: Exception) -> str:
    """Why torch did not read a file. Its own words are long, and advise to trust the file."""
    if isinstance(error, PermissionError):
        return str(error.strerror)
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds a {found[1]}; only tensors and plain data are read, since others could run code"
    with path.open("rb") as file:
        start = file.read(max(map(len, STARTS)))
    if not start:
        return "it is empty"
    return "it is damaged or incomplete" if start.startswith(STARTS) else "it is no file of torch.save"


def state_dict(content: dict[str, Any], path: Path | str, argument: str = "weights") -> dict[str, Tensor]:
    """The tensors of a file's content, also where training code has put them beside others."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            content = dict(content[key])
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{argument}: {path} holds no weights by name")
    # DataParallel puts a prefix before each.
    return {name.removeprefix("module."): value for name, value in content.items()}
