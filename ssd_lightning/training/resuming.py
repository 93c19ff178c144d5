"""Refusal of damaged checkpoints when a run is resumed: one line that names the file.

A checkpoint can be a whole file and still lack, or hold in another form, what Lightning, the optimizer or a callback
expects.
"""

import contextlib
import copy
import math
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssd_lightning.require import in_short, one_line, require_number, require_numbers, require_whole_number

CHANGING = ("params", "lr", "initial_lr", "betas", "momentum", "capturable", "foreach", "fused")
"""Settings of an optimizer that a schedule changes or that depend on the device. Others stay in a resumed run."""


@contextlib.contextmanager
def errors_of_restoring_named(path: Path | str) -> Iterator[None]:
    """Name the file in the errors that Lightning meets while it restores a run from it.

    Raises:
        ValueError: with the file and the first words of the original error.
    """
    try:
        yield
    except Exception as error:
        # A MisconfigurationException is about the settings of the trainer, and other errors may name the file already.
        if isinstance(error, MisconfigurationException) or str(path) in str(error) or not _is_of_restoring(error):
            raise
        raise ValueError(f"checkpoint: expected a run to resume, got {path}: {_reason(error)}") from error


def _is_of_restoring(error: Exception) -> bool:
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals.get("__name__") == checkpoint_connector.__name__
        and frame.f_code.co_name in ("_restore_modules_and_callbacks", "restore_training_state")
        for frame in frames
    )


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def refuse_other_optimizer(
    optimizer: Optimizer, scheduler: LRScheduler, content: dict[str, Any], path: Path | str
) -> None:
    """Refuse a checkpoint with the state of another optimizer or schedule.

    Optimizers accept any state, and fail in the first step. So a step without gradients is rehearsed.

    Args:
        optimizer: an optimizer of copies of the weights, which is changed.
        scheduler: its schedule.
        content: the content of the checkpoint.
        path: the file.

    Raises:
        ValueError: with the file and the reason.
    """
    try:
        [state], [schedule] = content["optimizer_states"], content["lr_schedulers"]
        own_schedule = scheduler.state_dict()
        if not own_schedule.keys() <= schedule.keys():
            raise ValueError(f"lr_schedulers holds {', '.join(map(str, schedule))}")
        for name in ("last_epoch", *(name for name, value in own_schedule.items() if type(value) is int)):
            require_whole_number(name, schedule[name], 0)
        for name, number in _numbers(state):
            if not math.isfinite(number):
                raise ValueError(f"{name} is {number}")
        require_numbers("base_lrs", schedule.get("base_lrs", []), "[0, inf)")
        done, steps = schedule["last_epoch"], content["global_step"]
        if abs(done - steps) > 1:  # The schedule makes its step after the optimizer.
            raise ValueError(f"the schedule is at step {in_short(done)} and the run at {in_short(steps)}")
        for given, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
            for name in own:
                if name not in CHANGING and given.get(name, own[name]) != own[name]:
                    raise ValueError(f"{name} is {in_short(given[name])} there and {in_short(own[name])} here")
            for name in ("lr", "initial_lr"):
                require_number(name, given[name], "[0, inf)")
        optimizer.load_state_dict(copy.deepcopy(state))
        for group in optimizer.param_groups:
            # These need a GPU, and the copies are on the CPU.
            group.update({key: False for key in ("capturable", "fused") if key in group})
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step(lambda: 0.0)
    except Exception as error:  # Optimizers raise many types.
        raise ValueError(
            f"checkpoint: expected the optimizer and the schedule of this run, got {path}: {_reason(error)}"
        ) from error


def _numbers(node: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested dictionaries and lists; for a tensor NaN if it holds one that is not finite, or 0."""
    if isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _numbers(child, f"{name}.{key}" if name else str(key))
    elif isinstance(node, Tensor):
        yield name, 0.0 if bool(node.float().isfinite().all()) else math.nan
    elif isinstance(node, float):
        yield name, node


def refuse_other_progress(content: dict[str, Any], own: dict[str, Any], path: Path | str) -> None:
    """Refuse a checkpoint whose counts of epochs and steps are no counts.

    Args:
        content: the content of the checkpoint.
        own: the state of a loop that has not begun.
        path: the file.

    Raises:
        ValueError: with the file and the first wrong value.
    """
    for name in ("epoch", "global_step"):
        count = content.get(name)
        if type(count) is not int or count < 0:
            raise ValueError(f"checkpoint: expected a run to resume, got {path}, where {name} is {in_short(count)}")
    if not isinstance(content.get("callbacks"), dict):  # The best score of the run is in there.
        raise ValueError(f"checkpoint: expected a run to resume, got {path}, without the states of its callbacks")
    loops = content.get("loops")
    stored = loops.get("fit_loop") if isinstance(loops, dict) else loops
    for fault in _faults({"fit_loop": stored}, {"fit_loop": own}, "loops"):
        raise ValueError(f"checkpoint: expected the progress of a run, got {path}, where {fault}")


def refuse_forgotten_best(content: dict[str, Any], callbacks: Iterable[Checkpoint], path: Path | str) -> None:
    """Refuse a checkpoint without the best score of a callback whose best file exists.

    The callback would take its first score for the best one, and overwrite the file.

    Args:
        content: the content of the checkpoint.
        callbacks: the callbacks of the run that save checkpoints.
        path: the file.

    Raises:
        ValueError: with the file, the score and the best file.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.monitor is None:
            continue
        best = Path(callback.dirpath or "", f"{callback.filename}{callback.FILE_EXTENSION}")
        if callback.state_key not in content["callbacks"] and best.is_file():
            raise ValueError(
                f"checkpoint: expected the best {callback.monitor} of the run, got {path}, which does not hold the "
                f"score of {best}. Try the callbacks that the run began with, or move that file."
            )


PROGRESS = (
    *("fit_loop", "epoch_progress", "epoch_loop.batch_progress"),
    "epoch_loop.automatic_optimization.optim_progress",
)
"""Parts of the progress that every version of Lightning has stored."""


def _faults(stored: dict[str, Any], own: dict[str, Any], key: str) -> Iterator[str]:
    """Yield counts and parts that are missing or have another type."""
    for name, value in own.items():
        is_count = type(value) is int
        if name not in stored:
            if is_count or name in PROGRESS:
                yield f"{key}.{name} is missing"
        elif type(stored[name]) is not type(value) or (is_count and stored[name] < 0):
            yield f"{key}.{name} is {stored[name]!r}"
        elif isinstance(value, dict):
            yield from _faults(stored[name], value, f"{key}.{name}")
