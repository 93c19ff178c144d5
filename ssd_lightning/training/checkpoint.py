"""Writing checkpoints so that a good one is never lost, and reading a detector back from one."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.weights import CONFIG_KEY, MODEL_PREFIX, read_file

RUN = ("state_dict", "optimizer_states", "loops", "pytorch-lightning_version")
"""What Lightning puts into a checkpoint from which a run can go on."""


class Detector(NamedTuple):
    """A trained network and what belongs to it."""

    model: SSD
    """In evaluation mode, on the CPU."""
    postprocess: PostProcess
    classes: tuple[str, ...]
    """The class of label n is at n - 1."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames: a full disk or a killed process leaves the former file as it was.

    (Lightning's own goes through the system's temporary folder, and across disks a move is a copy.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file as a whole or not at all.

        Raises:
            OSError: naming the file and what the system says, such as that the disk is full.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:
            # torch.save loses count when a write fails, and tells of that instead.
            cause = _cause_in_the_system(error)
            if cause is None:
                raise
            raise OSError(f"checkpoint: {path} could not be written: {cause.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **settings: Any) -> dict[str, Any]:
        """Read a file, from which a run goes on; what a killed process left half written beside it is removed.

        Raises:
            ValueError: naming the file, if it is missing, no checkpoint, or without the state of a run.
        """
        for part in Path(path).parent.glob(".*.part"):
            part.unlink(missing_ok=True)
        content = read_checkpoint(path)
        missing = [key for key in RUN if key not in content]
        if missing:
            raise ValueError(f"checkpoint: {path} holds no run to go on with, it lacks {', '.join(missing)}")
        return content


def _cause_in_the_system(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Only plain data and tensors are read: a file cannot run code.

    Raises:
        ValueError: naming the file, if it is missing or no checkpoint.
    """
    return read_file(path, "checkpoint")


def load_detector(path: Path | str, postprocess: dict[str, Any] | None = None) -> Detector:
    """The network of a checkpoint written by ``ssd-train``, ready to use. Config files are not needed.

    Args:
        path: of the checkpoint.
        postprocess: settings of :class:`~ssd_lightning.detector.postprocess.PostProcess` that replace the checkpoint's.

    Raises:
        ValueError: naming the file, if it is missing, no checkpoint, not from this project, or its weights and its
            config do not fit.
    """
    # The only use of Hydra outside the commands, here and below.
    from hydra.utils import instantiate

    content = read_checkpoint(path)
    config = content.get(CONFIG_KEY)
    parts = {"model": dict, "postprocess": dict, "classes": list}
    if not isinstance(config, dict) or not all(isinstance(config.get(part), kind) for part, kind in parts.items()):
        raise ValueError(
            f"checkpoint: {path} was not written by ssd-train: it lacks {CONFIG_KEY!r}, the description of the model"
        )
    model = rebuild(config["model"], path)
    if not isinstance(model, SSD):
        raise ValueError(f"checkpoint: {path} was not written by ssd-train: its model is a {type(model).__name__}")
    make_detections = rebuild(config["postprocess"], path)
    if postprocess:
        # The caller's own: where they do not fit, the file is not to be blamed.
        make_detections = instantiate({**config["postprocess"], **postprocess}, _convert_="all")
    classes = tuple(config["classes"])
    if len(classes) != model.num_classes:
        raise ValueError(f"checkpoint: {path} has a model of {model.num_classes} classes, and names {len(classes)}")
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in weights_in(content, path).items()
        if name.startswith(MODEL_PREFIX)
    }
    refuse_other_weights(weights, model.state_dict(), path)
    model.load_state_dict(weights)
    return Detector(model.eval(), make_detections, classes)


def weights_in(content: dict[str, Any], path: Path | str) -> dict[str, Tensor]:
    """Of a checkpoint, those that it was written for.

    Raises:
        ValueError: naming the file, if there are none.
    """
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"checkpoint: {path} holds no weights by name in its state_dict")
    return dict(weights)


def refuse_other_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path | str) -> None:
    """Raises: ValueError: naming the file and what differs, if ``weights`` are not of the model that has ``own``."""
    differing = [
        *(f"{name} is missing" for name in own if name not in weights),
        *(f"{name} is not in the model" for name in weights if name not in own),
        *(
            f"{name} is of {list(value.shape)} where the model has {list(own[name].shape)}"
            for name, value in weights.items()
            if name in own and value.shape != own[name].shape
        ),
    ]
    if differing:
        raise ValueError(f"checkpoint: the weights in {path} are of another model than its config: {_names(differing)}")


def refuse_other_model(stored: dict[str, Any], own: dict[str, Any], path: Path | str) -> None:
    """Raises: ValueError: naming the file and what differs, if the configs of two models do."""
    differing = list(_differences(stored, own, "model"))
    if differing:
        raise ValueError(f"checkpoint: {path} is of another model: {_names(differing)}")


def _differences(stored: Any, own: Any, key: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(own, dict):
        for name in {**stored, **own}:
            yield from _differences(stored.get(name, "unset"), own.get(name, "unset"), f"{key}.{name}")
    elif stored != own:
        yield f"{key} is {stored} there and {own} here"


def _names(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def rebuild(config: dict[str, Any], path: Path | str) -> Any:
    """Build an object of this project from the plain config in a checkpoint.

    A config names the classes to build, and a file from a stranger could name anything: only classes of this project
    are built.

    Raises:
        ValueError: naming the file, if it asks for anything else, or for what they refuse.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    for target in _targets(config, path):
        if not _is_class_of_this_project(target):
            raise ValueError(f"checkpoint: {path} asks for {target}, which is no class of ssd_lightning; refused")
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"checkpoint: {path} holds a config that cannot be built here: {reason}") from error


def rebuild_part(content: dict[str, Any], part: str, path: Path | str) -> Any:
    """Of a checkpoint of ``ssd-train``, a part of the training beside the model, such as its ``matcher``.

    Raises:
        ValueError: naming the file, if it does not tell.
    """
    config = content[CONFIG_KEY].get("config")
    if not isinstance(config, dict) or not isinstance(config.get(part), dict):
        raise ValueError(f"checkpoint: {path} does not tell with which {part} it was trained")
    return rebuild(config[part], path)


def _targets(node: Any, path: Path | str) -> Iterator[Any]:
    """All that a config names to be built.

    Hydra finds more in a config than dictionaries and lists: it looks into tuples and other containers, and what
    ``${…}`` stands for can be a config too. ``ssd-train`` writes neither, so that they are refused.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _targets(child, path)
    elif not isinstance(node, str | int | float | None) or (isinstance(node, str) and "${" in node):
        raise ValueError(f"checkpoint: {path} holds a config that is not plain: {node!r}; refused")


def _is_class_of_this_project(target: Any) -> bool:
    from hydra.utils import get_object

    if not (isinstance(target, str) and target.startswith("ssd_lightning.")):
        return False
    try:
        found = get_object(target)
    except (ImportError, ValueError):
        return False
    return isinstance(found, type) and found.__module__.startswith("ssd_lightning.")
