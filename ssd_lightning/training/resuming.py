"""Refusal of damaged checkpoints when a run is resumed: one line that names the file.

A checkpoint can be a whole file and still lack, or hold in another form, what Lightning, the optimizer or a callback
expects.
"""

import contextlib
import copy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssd_lightning.require import one_line


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
        if type(schedule["last_epoch"]) is not int or not scheduler.state_dict().keys() <= schedule.keys():
            raise ValueError(f"lr_schedulers holds {', '.join(map(str, schedule))}")
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


def refuse_other_progress(content: dict[str, Any], own: dict[str, Any], path: Path | str) -> None:
    """Refuse a checkpoint whose counts of epochs and steps are no counts.

    Args:
        content: the content of the checkpoint.
        own: the state of a loop that has not begun.
        path: the file.

    Raises:
        ValueError: with the file and the first wrong value.
    """
    loops = content.get("loops")
    stored = loops.get("fit_loop") if isinstance(loops, dict) else loops
    for fault in _faults({"fit_loop": stored}, {"fit_loop": own}, "loops"):
        raise ValueError(f"checkpoint: expected the progress of a run, got {path}, where {fault}")


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
