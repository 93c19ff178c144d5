"""Communication between the ranks (processes) of a run.

All ranks must call each function at the same time, except :func:`is_first_to_fail`. With a single process, or without
``torch.distributed``, each function returns its own process's value.
"""

from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store


def world_size() -> int:
    """Return the number of ranks."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def all_reduce_sum(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the sum over all ranks."""
    if world_size() == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values


def gather(value: Any) -> list[Any] | None:
    """Return the values of all ranks, in rank order, on the first rank, and None on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(value, values)
    return values


def all_gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the first rank's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the first rank's buffers to all ranks.

    Running statistics of batch norm are such buffers: each rank computes them from its own pictures.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def is_first_to_fail() -> bool:
    """Return whether this rank is the first to fail: later failures of other ranks are its consequences."""
    if world_size() == 1:
        return True
    try:
        return _get_default_store().add("ranks that failed", 1) == 1
    except RuntimeError:  # The first rank keeps the count, and it is gone.
        return False
