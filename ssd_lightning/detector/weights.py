"""Reading of weight files, which cannot run code here, and download of torchvision's weights."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import models

from ssd_lightning.require import in_short

CONFIG_KEY = "ssd_lightning"
"""Key of the settings that rebuild a detector from its checkpoint: ``model``, ``postprocess`` and ``classes``."""

MODEL_PREFIX = "model."
"""Prefix of the network's weights in the state dict of the module that trains it."""

MAGIC_NUMBERS = (b"PK\x03\x04", b"\x80\x02")
"""First bytes of files of ``torch.save``: a zip file, or a pickle before torch 1.6."""


class Weights(NamedTuple):
    """Weights of a classifier, and the normalization that its pictures had."""

    state: dict[str, Tensor]
    mean: list[float] | None
    """Mean of the pixels by channel, red first, in 0 … 255; None if unknown."""
    std: list[float] | None
    source: str
    """File or name of the weights, for messages."""


def read_weights(network: str, weights: str) -> Weights:
    """Read weights of a torchvision classifier.

    Args:
        network: name of the classifier in :mod:`torchvision.models`.
        weights: torchvision's name of the weights, such as ``DEFAULT``, which are downloaded once; or a file with a
            state dict. The mean and std of a file are known if it has the name of a torchvision file.

    Raises:
        ValueError: if there is no such name or file, or if the weights cannot be downloaded or read.
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
    except Exception as error:  # Network, disk and damaged files raise many types.
        if file.is_file():
            raise ValueError(
                f"weights: expected the file of {chosen.url}, got {file}, which cannot be read: {error}. "
                "Try to delete or replace it."
            ) from error
        raise ValueError(
            f"weights: expected a download of {chosen.url} for {weights!r}, got an error: {error}. "
            f"Try to copy that file to {file}."
        ) from error
    return Weights(dict(state), *_scaling(chosen), str(file))


def _scaling(weights: models.WeightsEnum) -> tuple[list[float], list[float]]:
    """Return mean and std for pixels in 0 … 255; torchvision's are for 0 … 1."""
    scaling = weights.transforms()
    return [255 * m for m in scaling.mean], [255 * s for s in scaling.std]


def read_file(path: Path | str, argument: str) -> dict[str, Any]:
    """Read a dictionary that ``torch.save`` wrote, to the CPU.

    Only plain data and tensors are read, so that a file cannot run code. The checksums in the file are verified, which
    torch does not do: it would use weights in which bytes have changed.

    Raises:
        ValueError: with ``argument`` and the file, if the file is missing, damaged or does not hold a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{argument}: expected a file, got {path}, which does not exist")
    if (damaged := _damaged_member(path)) is not None:
        raise ValueError(
            f"{argument}: expected a checkpoint, got {path}, which is damaged: the checksum of {damaged} is wrong"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Unpickling of a damaged file raises many types.
        raise ValueError(
            f"{argument}: expected a checkpoint, got {path}, which cannot be read: {_reason(path, error)}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{argument}: expected a checkpoint, got {path}, which holds a {type(content).__name__}")
    return dict(content)


def _damaged_member(path: Path) -> str | None:
    """Return the first member of a zip file whose checksum is wrong. Return None if there is none, or no zip file."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except Exception:  # A damaged directory raises many types; torch then fails to read the file, too.
        return "the directory"


def require_plain_weights(weights: Mapping[str, Tensor], path: Path | str, argument: str) -> None:
    """Refuse tensors that no network of this project has, such as sparse, quantized, nested or complex ones.

    Raises:
        ValueError: with ``argument``, the file and the first such tensor.
    """
    for name, value in weights.items():
        is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if not is_plain or value.is_quantized or value.is_complex():
            kind = "nested" if value.is_nested else f"{value.layout} {value.dtype} on {value.device}"
            raise ValueError(f"{argument}: expected plain weights, got {in_short(name)} in {path}, which is {kind}")


def require_same_kind(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path | str, argument: str
) -> None:
    """Refuse weights that are whole numbers or switches where those of the model are not, or the reverse.

    Args:
        weights: the weights in the file, by the names of the model.
        own: the weights of the model.
        path: the file.
        argument: the argument that named the file.

    Raises:
        ValueError: with ``argument``, the file and the first such tensor.
    """
    for name, value in weights.items():
        if value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{argument}: expected {own[name].dtype}, got {value.dtype} in {name} of {path}")


def require_finite(weights: Mapping[str, Tensor], path: Path | str, argument: str) -> None:
    """Refuse weights that hold NaN or infinity, with which every detection is meaningless.

    Raises:
        ValueError: with ``argument``, the file and the first such tensor.
    """
    for name, value in weights.items():
        # In float32 as in the network, whose range is smaller than that of float64.
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise ValueError(f"{argument}: expected finite weights, got NaN or infinity in {name} of {path}")


def _reason(path: Path, error: Exception) -> str:
    """Explain why torch could not read a file; torch's own message is long and advises to trust the file."""
    if isinstance(error, PermissionError):
        return str(error.strerror)
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds a {found[1]}, but only tensors and plain data are read, because other objects can run code"
    with path.open("rb") as file:
        start = file.read(max(map(len, MAGIC_NUMBERS)))
    if not start:
        return "it is empty"
    return "it is damaged or incomplete" if start.startswith(MAGIC_NUMBERS) else "it is not a file of torch.save"


def state_dict(content: dict[str, Any], path: Path | str, argument: str = "weights") -> dict[str, Tensor]:
    """Return the weights by name from a file's content, where training code may have nested them.

    Raises:
        ValueError: with ``argument`` and the file, if the content holds no weights by name.
    """
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            content = dict(content[key])
    if not content or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise ValueError(f"{argument}: expected a checkpoint, got {path}, which holds no weights by name")
    require_plain_weights(content, path, argument)
    # DataParallel adds a prefix to each name.
    return {name.removeprefix("module."): value for name, value in content.items()}
