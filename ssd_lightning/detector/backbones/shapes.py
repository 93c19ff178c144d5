"""Shapes of a network's feature maps, found without computing the maps."""

import copy
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssd_lightning.detector.default_boxes import Grid


def channels_and_grids(network: nn.Module, size: tuple[int, int], channels: int = 3) -> tuple[list[int], list[Grid]]:
    """Find the channels and the (height, width) in cells of each feature map, finest first.

    A dry run on the meta device computes only shapes and does not change the network.

    Args:
        network: maps pictures to feature maps.
        size: (height, width) of the pictures in pixels.
        channels: number of channels of the pictures.

    Raises:
        ValueError: if the network does not accept that size, or does not return feature maps from fine to coarse.
    """
    tensors = chain(network.named_parameters(), network.named_buffers())
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    # A batch norm in training mode refuses one picture on one cell, so there are two.
    pictures = torch.empty(2, channels, *size, device="meta")
    name = type(network).__name__
    try:
        with torch.no_grad():
            maps = list(functional_call(network, stand_ins, (pictures,)))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"image_size: expected a size that {name} accepts, got {size} ({error})") from error
    shapes = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
    if not maps or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        raise ValueError(f"backbone: expected feature maps (batch, channels, rows, columns) of {name}, got {shapes}")
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    if any(after[0] > before[0] or after[1] > before[1] for before, after in pairwise(grids)):
        raise ValueError(f"backbone: expected feature maps of {name} from fine to coarse, got grids {grids}")
    return [m.shape[1] for m in maps], grids


def needs_two_pictures(network: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether the network cannot train on batches of one picture.

    In training, a batch norm needs more than one value per channel. One picture gives one value on a map of one cell.

    Args:
        network: maps pictures to anything, in training mode where it is trained.
        size: (height, width) of the pictures in pixels.
    """
    # The copy is not compiled, where the network is.
    stand_in = copy.deepcopy(network).to("meta")
    try:
        stand_in(torch.empty(1, 3, *size, device="meta"))
    except ValueError as error:
        if "more than 1" not in str(error):
            raise
        return True
    return False
