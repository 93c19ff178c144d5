"""Writing checkpoints so that a good one is never lost, and reading a detector back from one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ssd_lightning.model import SSD
from ssd_lightning.postprocess import PostProcess
from ssd_lightning.weights import CONFIG_KEY, MODEL_PREFIX, read_file


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
        """Read a file, from which a run goes on; what a killed process left half written beside it is removed."""
        for part in Path(path).parent.glob(".*.part"):
            part.unlink(missing_ok=True)
        return super().load_checkpoint(path, *args, **settings)


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
        postprocess: settings of :class:`~ssd_lightning.postprocess.PostProcess` that replace the checkpoint's.

    Raises:
        ValueError: naming the file, if it is missing, no checkpoint, not from this project, or its weights and its
            config do not fit.
    """
    content = read_checkpoint(path)
    config = content.get(CONFIG_KEY)
    if not isinstance(config, dict) or not {"model", "postprocess", "classes"} <= set(config):
        raise ValueError(
            f"checkpoint: {path} was not written by ssd-train: it lacks {CONFIG_KEY!r}, the description of the model"
        )
    model = rebuild(config["model"], path)
    make_detections = rebuild({**config["postprocess"], **(postprocess or {})}, path)
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(MODEL_PREFIX)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the weights in {path} are of another model than its config: {error}") from error
    return Detector(model.eval(), make_detections, tuple(config["classes"]))


def rebuild(config: dict[str, Any], path: Path | str) -> Any:
    """Build an object of this project from the plain config in a checkpoint.

    A config names the classes to build, and a file from a stranger could name anything: only classes of this project
    are built.

    Raises:
        ValueError: naming the file, if it asks for anything else.
    """
    # The only use of Hydra outside the commands.
    from hydra.utils import instantiate

    for target in _targets(config, path):
        if not _is_class_of_this_project(target):
            raise ValueError(f"checkpoint: {path} asks for {target}, which is no class of ssd_lightning; refused")
    return instantiate(config, _convert_="all")


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
