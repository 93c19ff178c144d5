"""What the processes of a run, its ranks, tell each other. All of them call these at the same time.

With one process, or without ``torch.distributed``, everything is as one has it already.
"""

from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store


def world_size() -> int:
    is_several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_several else 1


def total(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over all ranks."""
    if world_size() == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values


def gather(value: Any) -> list[Any] | None:
    """The values of all ranks, in their order, on the first; None on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(value, values)
    return values


def gather_everywhere(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def of_first_rank(value: Any) -> Any:
    """What the first rank has."""
    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def use_buffers_of_first_rank(module: nn.Module) -> None:
    """Such as the running statistics of batch norm, which each rank takes from its own pictures."""
    if world_size() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def fails_first() -> bool:
    """Whether this rank is the first to fail. What others fail with is a consequence. May be called at any time."""
    if world_size() == 1:
        return True
    try:
        return _get_default_store().add("ranks that failed", 1) == 1
    except RuntimeError:  # the first rank, which keeps the count, is gone
        return False
