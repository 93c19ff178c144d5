"""Learning rates over the steps of a run. All take the optimizer and the number of steps, and count in steps.

The optimizer's own learning rate is the highest one.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssd_lightning.require import require_number, require_whole_number


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 500, final_factor: float = 0.01
) -> LambdaLR:
    """Linear rise over ``warmup_steps``, then half a cosine down to ``final_factor`` of the learning rate.

    A run shorter than ten times ``warmup_steps`` rises for a tenth of its steps.
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
    """Linear rise over ``warmup_steps``, then times ``gamma`` at each milestone.

    Args:
        milestones: ascending; a number up to 1 is a share of ``total_steps``, a larger one is a step. The default is
            80k and 100k of 120k, as in the paper.
    """
    steps = [milestone * total_steps if milestone <= 1 else milestone for milestone in milestones]
    if any(first >= second for first, second in pairwise([0, *steps])):
        raise ValueError(
            f"milestones: expected ascending numbers above 0, got {list(milestones)}, of {total_steps} steps {steps}"
        )
    rising = _warmup_steps(warmup_steps, total_steps)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(1, rising)) * gamma ** bisect_right(steps, step)

    return LambdaLR(optimizer, factor)


def one_cycle(
    optimizer: Optimizer, total_steps: int, warmup_share: float = 0.3, start_factor: float = 0.04
) -> LambdaLR:
    """Half a cosine up over ``warmup_share`` of the steps, half a cosine down to almost nothing (arXiv 1708.07120).

    Args:
        start_factor: the first step's share of the learning rate.
    """
    require_number("warmup_share", warmup_share, "(0, 1)")
    rising = warmup_share * total_steps

    def factor(step: int) -> float:
        if step < rising:
            return start_factor + (1 - start_factor) * (1 - math.cos(math.pi * step / rising)) / 2
        progress = min(1.0, (step - rising) / max(1.0, total_steps - 1 - rising))
        return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """No schedule."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _warmup_steps(warmup_steps: int, total_steps: int) -> int:
    require_whole_number("warmup_steps", warmup_steps, 0)
    return min(warmup_steps, total_steps // 10)
