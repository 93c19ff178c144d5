"""Arguments of EarlyStopping: each one that a user sets works, or is refused by its name."""

import inspect
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf

from ssd_lightning.cli.callback_values import RULES, check_callbacks

INFINITE, NAN = float("inf"), float("nan")
NO_SWITCH = ["abc", "true", 3, 1, None, [], {}]

BAD: dict[str, list[Any]] = {
    "monitor": ["abc", "val/abc", "map_50", None, 3, True, []],
    "mode": ["abc", None, 1, True, "auto"],
    "patience": ["abc", -1, 1.5, NAN, INFINITE, None, True, [], 10**30],
    "min_delta": ["abc", -1, NAN, INFINITE, None, True, []],
    "stopping_threshold": ["abc", NAN, INFINITE, True, []],
    "divergence_threshold": ["abc", NAN, INFINITE, True, []],
    "strict": NO_SWITCH,
    "verbose": NO_SWITCH,
    "check_finite": NO_SWITCH,
    "log_rank_zero_only": NO_SWITCH,
    "check_on_train_epoch_end": ["abc", 1, []],
}
"""Wrong values of each argument, of a wrong type or outside the range."""


def check(**arguments: Any) -> None:
    target = "lightning.pytorch.callbacks.EarlyStopping"
    check_callbacks(OmegaConf.create({"stop": {"_target_": target, **arguments}, "none": None}))


def test_every_argument_has_a_rule():
    assert set(inspect.signature(EarlyStopping).parameters) == set(RULES) == set(BAD)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_wrong_value_is_refused_by_name(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"^callbacks\.stop\.{name}: expected .*got "):
        check(**{name: value})


def test_right_values_are_taken():
    check(monitor="val/map_50", mode="max", patience=0, min_delta=0.01, stopping_threshold=None, strict=True)
    check(monitor="val/loss", mode="min", patience=10, divergence_threshold=-5.0, check_on_train_epoch_end=None)
    check_callbacks(OmegaConf.create({"other": {"_target_": "my.Callback", "patience": "abc"}}))


def test_the_command_refuses_it_before_anything_is_trained(run):
    outcome = run("ssd-train", "callbacks=early_stopping", "callbacks.early_stopping.monitor=abc", "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-train: callbacks.early_stopping.monitor: expected one of val/map_50")
