"""Learning rate schedules: compared with points of each curve that are computed by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from ssd_lightning.training.schedules import constant, one_cycle, warmup_cosine, warmup_multistep

HIGHEST = 0.4


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=HIGHEST)


def learning_rates(schedule: LRScheduler, steps: int) -> list[float]:
    """The rate of each step as a share of the highest rate."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0] / HIGHEST)
        schedule.optimizer.step()
        schedule.step()
    return rates


def assert_rises(rates: list[float]) -> None:
    assert all(before < after for before, after in pairwise(rates))


def assert_falls(rates: list[float]) -> None:
    assert all(before > after for before, after in pairwise(rates))


# --------------------------------------------------------------------------------------------------- warm-up and cosine


def test_warmup_cosine_by_hand():
    rates = learning_rates(warmup_cosine(make_optimizer(), 1100, warmup_steps=100, final_factor=0.1), 1101)
    assert rates[0] == pytest.approx(1 / 100)
    assert rates[49] == pytest.approx(0.5)
    assert rates[99] == rates[100] == pytest.approx(1)
    assert rates[350] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter of half a wave
    assert rates[600] == pytest.approx(0.55)
    assert rates[1100] == pytest.approx(0.1)
    assert_rises(rates[:100])
    assert_falls(rates[100:])


def test_warmup_cosine_stays_at_its_end():
    rates = learning_rates(warmup_cosine(make_optimizer(), 50, warmup_steps=5, final_factor=0.2), 80)
    assert rates[50:] == pytest.approx([0.2] * 30)


def test_warmup_cosine_without_warmup():
    rates = learning_rates(warmup_cosine(make_optimizer(), 100, warmup_steps=0, final_factor=0.0), 101)
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("total", "rising"), [(120_000, 500), (5000, 500), (200, 20), (9, 0), (1, 0)])
@pytest.mark.parametrize("make", [warmup_cosine, warmup_multistep])
def test_a_short_run_rises_for_a_tenth(make, total, rising):
    """The default of 500 steps could be all of a short run. The first rate is never 0."""
    rates = learning_rates(make(make_optimizer(), total), min(total, 510))
    assert rates[0] == pytest.approx(1 / max(1, rising))
    if rising:
        assert rates[rising - 1] == pytest.approx(1)
        assert_rises(rates[:rising])
    assert rates[rising : rising + 1] == pytest.approx([1])


# ---------------------------------------------------------------------------------------------- warm-up and milestones


def test_paper():
    """The rate of 120k steps falls to a tenth exactly at 80k and again at 100k."""
    factor = warmup_multistep(make_optimizer(), 120_000).lr_lambdas[0]
    assert factor(499) == factor(500) == factor(79_999) == 1
    assert factor(80_000) == factor(99_999) == pytest.approx(0.1)
    assert factor(100_000) == factor(119_999) == pytest.approx(0.01)


@pytest.mark.parametrize("milestones", [(0.5, 0.75), (20, 30), (0.5, 30)])
def test_milestones_are_shares_or_steps(milestones):
    milestones = [float(milestone) for milestone in milestones]
    rates = learning_rates(warmup_multistep(make_optimizer(), 40, milestones, gamma=0.5, warmup_steps=4), 41)
    assert rates == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 17, *[0.5] * 10, *[0.25] * 11])


def test_a_milestone_at_the_end():
    rates = learning_rates(warmup_multistep(make_optimizer(), 40, [1.0], warmup_steps=0), 41)
    assert rates == pytest.approx([*[1.0] * 40, 0.1])


# ------------------------------------------------------------------------------------------------------------ one cycle


def test_one_cycle_by_hand():
    rates = learning_rates(one_cycle(make_optimizer(), 101, warmup_share=0.4, start_factor=0.04), 101)
    assert rates[0] == pytest.approx(0.04)
    assert rates[20] == pytest.approx(0.52, abs=0.02)  # half way up
    assert rates[40] == pytest.approx(1, abs=2e-3)
    assert rates[41] == pytest.approx(1, abs=2e-3)
    assert rates[70] == pytest.approx(0.5, abs=0.02)  # half way down
    assert rates[100] == pytest.approx(1e-4)  # the last step
    assert_rises(rates[:41])
    assert_falls(rates[41:])


def test_one_cycle_is_nearly_torch_one_cycle():
    """The schedule of torch has its peak a step earlier and a lower end."""
    rates = learning_rates(one_cycle(make_optimizer(), 1000), 1000)
    theirs = learning_rates(OneCycleLR(make_optimizer(), HIGHEST, 1000, cycle_momentum=False), 1000)
    assert rates == pytest.approx(theirs, abs=0.005)


# ------------------------------------------------------------------------------------------------------------- any


@pytest.mark.parametrize("make", [warmup_cosine, warmup_multistep, one_cycle, constant])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_the_optimizers_rate_is_the_highest(make, total):
    """Rates are above 0 in runs of any length, even after the planned number of steps."""
    rates = learning_rates(make(make_optimizer(), total), total + 3)
    assert all(0 < rate <= 1 + 1e-9 for rate in rates)


def test_constant():
    assert learning_rates(constant(make_optimizer(), 10), 20) == [1] * 20


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (warmup_cosine, {"final_factor": 1.5}, r"final_factor: expected a number in \[0, 1\], got 1.5"),
        (warmup_cosine, {"final_factor": -0.1}, "final_factor: .* got -0.1"),
        (warmup_cosine, {"warmup_steps": -1}, "warmup_steps: expected a whole number of at least 0, got -1"),
        (warmup_multistep, {"warmup_steps": -1}, "warmup_steps: expected a whole number of at least 0, got -1"),
        (warmup_multistep, {"milestones": [0.5, 0.5]}, r"milestones: expected ascending .* got \[0.5, 0.5\]"),
        (warmup_multistep, {"milestones": [0.8, 0.5]}, r"milestones: .* got \[0.8, 0.5\]"),
        (warmup_multistep, {"milestones": [0.0, 0.5]}, r"milestones: .* above 0, got \[0.0, 0.5\]"),
        (warmup_multistep, {"milestones": [-5.0, 0.5]}, r"milestones: .* above 0, got \[-5.0, 0.5\]"),
        (one_cycle, {"warmup_share": 0.0}, r"warmup_share: expected a number in \(0, 1\), got 0.0"),
        (one_cycle, {"warmup_share": 1.0}, "warmup_share: .* got 1.0"),
    ],
)
def test_refuses(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(make_optimizer(), 100, **arguments)


def test_refuses_milestones_that_ascend_only_as_numbers():
    """A share of 0.9 of 100 steps is after step 10."""
    with pytest.raises(ValueError, match="milestones: expected ascending"):
        warmup_multistep(make_optimizer(), 100, [0.9, 10.0])


def test_no_milestones_is_a_constant_rate():
    assert learning_rates(warmup_multistep(make_optimizer(), 10, [], warmup_steps=0), 10) == [1] * 10
