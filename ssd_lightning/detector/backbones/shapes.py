"""What a network gives for pictures of a size, without computing it."""

from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssd_lightning.detector.default_boxes import Grid


def channels_and_grids(network: nn.Module, size: tuple[int, int], channels: int = 3) -> tuple[list[int], list[Grid]]:
    """Channels and (height, width) in cells of each feature map, finest first, for pictures of ``size``.

    By a dry run on the meta device, which computes shapes and nothing else and leaves the network as it is.

    Raises:
        ValueError: if pictures of that size do not fit the network, or it does not give maps from fine to coarse.
    """
    tensors = chain(network.named_parameters(), network.named_buffers())
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    # Two, because a batch norm that is training refuses one picture on one cell.
    pictures = torch.empty(2, channels, *size, device="meta")
    name = type(network).__name__
    try:
        with torch.no_grad():
            maps = list(functional_call(network, stand_ins, (pictures,)))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"image_size {size} does not fit {name}: {error}") from error
    shapes = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
    if not maps or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        raise ValueError(f"{name}: expected feature maps (batch, channels, rows, columns), got {shapes}")
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    if any(after[0] > before[0] or after[1] > before[1] for before, after in pairwise(grids)):
        raise ValueError(f"{name}: expected feature maps from the finest to the coarsest, got grids {grids}")
    return [m.shape[1] for m in maps], grids
