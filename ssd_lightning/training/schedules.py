"""Learning rate schedules. All take the optimizer and the number of steps of the run, and count in steps.

The highest rate of each schedule is the learning rate of the optimizer. A run of a few steps may not reach the highest
or the last rate.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssd_lightning.require import require_number, require_numbers, require_whole_number


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 500, final_factor: float = 0.01
) -> LambdaLR:
    """Make a schedule with a linear rise, then half a cosine down.

    Args:
        optimizer: its learning rate is the highest rate.
        total_steps: number of steps of the run.
        warmup_steps: number of steps of the rise, at most a tenth of ``total_steps``.
        final_factor: rate after the last step, as a share of the highest rate.
    """
    require_number("final_factor", final_factor, "[0, 1]")
    rising = _warmup_steps(warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total_steps - rising))
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def warmup_multistep(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[float] = (2 / 3, 5 / 6),
    gamma: float = 0.1,
    warmup_steps: int = 500,
) -> LambdaLR:
    """Make a schedule with a linear rise, then a factor of ``gamma`` at each milestone.

    Args:
        optimizer: its learning rate is the highest rate.
        total_steps: number of steps of the run.
        milestones: ascending. A number up to 1 is a share of ``total_steps``, a larger number is a step. The default
            is 80k and 100k of 120k steps, as in the paper.
        gamma: factor of the rate at each milestone.
        warmup_steps: number of steps of the rise, at most a tenth of ``total_steps``.
    """
    require_numbers("milestones", milestones, "(0, inf)")
    require_number("gamma", gamma, "[0, 1]")
    steps = [milestone * total_steps if milestone <= 1 else milestone for milestone in milestones]
    if any(first >= second for first, second in pairwise([0, *steps])):
        raise ValueError(
            f"milestones: expected ascending steps above 0, got {list(milestones)}, in a run of {total_steps} steps "
            f"{steps}"
        )
    rising = _warmup_steps(warmup_steps, total_steps)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(1, rising)) * gamma ** bisect_right(steps, step)

    return LambdaLR(optimizer, factor)


def one_cycle(
    optimizer: Optimizer, total_steps: int, warmup_share: float = 0.3, start_factor: float = 0.04
) -> LambdaLR:
    """Make a schedule with half a cosine up, then half a cosine down to 1e-4 of the highest rate (arXiv 1708.07120).

    Args:
        optimizer: its learning rate is the highest rate.
        total_steps: number of steps of the run.
        warmup_share: share of the steps in which the rate rises.
        start_factor: first rate as a share of the highest rate.
    """
    require_number("warmup_share", warmup_share, "(0, 1)")
    require_number("start_factor", start_factor, "[0, 1]")
    rising = warmup_share * total_steps

    def factor(step: int) -> float:
        if step < rising:
            return start_factor + (1 - start_factor) * (1 - math.cos(math.pi * step / rising)) / 2
        progress = min(1.0, (step - rising) / max(1.0, total_steps - 1 - rising))
        return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Make a schedule that keeps the learning rate of the optimizer."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _warmup_steps(warmup_steps: int, total_steps: int) -> int:
    require_whole_number("warmup_steps", warmup_steps, 0)
    return min(warmup_steps, total_steps // 10)
