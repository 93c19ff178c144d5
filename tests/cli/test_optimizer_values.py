"""Arguments of optimizers and schedules: each one that a user sets works, or is refused by its name."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from small_module import module_of

from ssd_lightning.cli.commands import TRAIN
from ssd_lightning.cli.keys import check_keys
from ssd_lightning.cli.optimizer_values import OPTIMIZERS, RULES, check_optimizer

pytestmark = pytest.mark.usefixtures("types_unchecked")

INFINITE, NAN = float("inf"), float("nan")
NO_NUMBER = ["abc", None, True, [1], [], {}, NAN, INFINITE, -INFINITE, -1]
NO_SWITCH = ["abc", "true", 3, 1, 0.0, [], {}]

BAD: Mapping[str, list[Any]] = {
    "lr": [*NO_NUMBER, 1e30],
    "weight_decay": [*NO_NUMBER, 1e30],
    "eps": [*NO_NUMBER, 0, 1e-50, 1e30],
    "betas": [
        *NO_NUMBER,
        0.9,
        [0.9],
        [0.9, 0.9, 0.9],
        [NAN, 0.9],
        [0.9, 1.0],
        [0, 0.9],
        [-0.1, 0.9],
        ["abc", 0.9],
        [None, 0.9],
    ],
    "momentum": [*NO_NUMBER, 1, 5],
    "dampening": [*NO_NUMBER, 1, 5],
    "amsgrad": [*NO_SWITCH, None],
    "nesterov": [*NO_SWITCH, None],
    "decoupled_weight_decay": [*NO_SWITCH, None],
    "foreach": NO_SWITCH,
    "fused": NO_SWITCH,
    "maximize": [True, *NO_SWITCH, None],
    "differentiable": [True, *NO_SWITCH, None],
    "capturable": [True, *NO_SWITCH, None],
}
"""Wrong values of each argument, of a wrong type or outside the range."""

GOOD: Mapping[str, list[Any]] = {
    "lr": [0, 1e-3, 1],
    "weight_decay": [0, 5e-4, 1],
    "eps": [1e-30, 1e-8, 1],
    "betas": [[0.0, 0.0], [0.9, 0.999]],
    "momentum": [0, 0.9],
    "dampening": [0, 0.5],
    "amsgrad": [True, False],
    "nesterov": [True, False],
    "foreach": [True, False, None],
    "fused": [True, False, None],
    "maximize": [False],
    "differentiable": [False],
    "capturable": [False],
}


def parameters_of(target: str) -> set[str]:
    return set(inspect.signature(get_object(target)).parameters)


@pytest.mark.parametrize("target", ["torch.optim.AdamW", "torch.optim.SGD"])
def test_every_argument_of_the_offered_optimizers_has_a_rule(target: str):
    assert parameters_of(target) - {"params"} <= set(RULES) == set(BAD)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_wrong_value_is_refused_by_name(name: str, value: object):
    for target in OPTIMIZERS:
        if name in parameters_of(target):
            with pytest.raises(ValueError, match=rf"^optimizer\.{name}: expected .*got ") as caught:
                check_optimizer(OmegaConf.create({"_target_": target, name: value}))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_a_right_value_is_taken_here_and_makes_a_step_down(name: str, value: Any):
    for target in OPTIMIZERS:
        if name in parameters_of(target):
            arguments = {"lr": 0.01, name: value, **({"momentum": 0.9} if name == "nesterov" and value else {})}
            check_optimizer(OmegaConf.create({"_target_": target, **arguments}))
            weight = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
            optimizer = get_object(target)([weight], **arguments)
            for _ in range(2):
                weight.grad = torch.tensor([2.0, 0.0])
                optimizer.step()
            assert weight.isfinite().all()
            assert weight[0] < 1 or value == 0


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"nesterov": True}, "nesterov"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
        ({"foreach": True, "fused": True}, "foreach"),
    ],
)
def test_values_that_contradict_each_other(arguments: dict[str, Any], key: str):
    with pytest.raises(ValueError, match=rf"^optimizer\.{key}: expected .* got true"):
        check_optimizer(OmegaConf.create({"_target_": "torch.optim.SGD", **arguments}))


@pytest.mark.parametrize(
    ("target", "arguments", "named"),
    [
        ("Adagrad", {"lr_decay": NAN}, "nan"),
        ("Adagrad", {"lr_decay": "abc"}, "str"),
        ("Rprop", {"etas": [0.5]}, "index"),
        ("SparseAdam", {"betas": [0.9]}, "index"),
        ("AdamW", {"momentum": 0.9}, "momentum"),
    ],
)
def test_any_error_of_an_optimizer_of_ones_own_choice_names_the_group(
    target: str, arguments: dict[str, Any], named: str
):
    optimizer = {"_target_": f"torch.optim.{target}", "_partial_": True, "lr": 0.1, **arguments}
    with pytest.raises(ValueError, match=rf"^optimizer: expected .*{target}.*got .*{named}"):
        module_of({"optimizer": optimizer})


def test_an_optimizer_of_ones_own_choice_keeps_its_own_meaning():
    adafactor = {"_target_": "torch.optim.Adafactor", "_partial_": True, "lr": 0.1, "eps": [None, 1e-3]}
    check_optimizer(OmegaConf.create(adafactor))
    assert isinstance(module_of({"optimizer": adafactor}).new_optimizer(), torch.optim.Adafactor)


SCHEDULES: Mapping[str, Mapping[str, list[Any]]] = {
    "one_cycle": {
        "warmup_share": [NAN, INFINITE, -1, 0, 1, "abc", None, True, [0.1]],
        "start_factor": [NAN, INFINITE, -1, 2, "abc", None, True, [0.1]],
    },
    "warmup_cosine": {
        "warmup_steps": [NAN, INFINITE, -5, 1.5, "abc", None, True, [1], 10**30],
        "final_factor": [NAN, INFINITE, -1, 2, "abc", None, True, [0.1]],
    },
    "warmup_multistep": {
        "milestones": [[NAN], [2, -1], [0], [0.5, 0.5], ["abc"], [True], [[1]], "abc", 0.5, None, True, {}],
        "gamma": [NAN, INFINITE, -1, 2, "abc", None, True, [0.1]],
        "warmup_steps": [NAN, -5, 1.5, "abc", None, True, [1]],
    },
}
"""Wrong values of the arguments of each schedule."""


@pytest.mark.parametrize(
    ("schedule", "name", "value"),
    [(schedule, name, value) for schedule, bad in SCHEDULES.items() for name in bad for value in bad[name]],
)
def test_a_wrong_value_of_a_schedule_is_refused_by_name(schedule: str, name: str, value: Any):
    with pytest.raises(ValueError, match=rf"^lr_scheduler\.{name}: expected .*got ") as caught:
        module_of({"lr_scheduler": {"_target_": f"ssd_lightning.{schedule}", "_partial_": True, name: value}})
    assert "\n" not in str(caught.value)


def test_every_argument_of_the_schedules_is_tried():
    for schedule, bad in SCHEDULES.items():
        assert parameters_of(f"ssd_lightning.{schedule}") == {"optimizer", "total_steps", *bad}


def test_milestones_that_do_not_fit_the_length_of_a_run_name_their_key():
    """After 0.9 of 100 steps comes step 95, but not after 0.9 of 1000 steps."""
    schedule = {"_target_": "ssd_lightning.warmup_multistep", "_partial_": True, "milestones": [0.9, 95]}
    module = module_of({"lr_scheduler": schedule})
    with pytest.raises(ValueError, match=r"^lr_scheduler\.milestones: expected ascending .*1000 steps"):
        module.make_scheduler(module.new_optimizer(), 1000)


@pytest.mark.parametrize(
    "argument",
    [
        *("optimizer.params=[1]", "lr_scheduler.total_steps=5", "lr_scheduler.optimizer=abc", "model.num_classes=7"),
        *("head.channels=[3]", "head.num_classes=3", "model.head.boxes_per_cell=[3]"),
    ],
)
def test_an_argument_that_a_training_fills_in_is_no_key(argument: str):
    with pytest.raises(ValueError, match=rf"^{re.escape(argument.partition('=')[0])}: expected a key") as caught:
        check_keys(TRAIN, [argument])
    assert f"Try {argument}" not in str(caught.value)
