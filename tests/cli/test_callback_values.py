"""Arguments of callbacks of Lightning: each one that a user sets works, or is refused by its name."""

import inspect
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
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


BAD_SAVING: dict[str, list[Any]] = {
    "dirpath": [None, 5, 1.5, "", [], {}],
    "filename": [-1, INFINITE, "", True, [], {}],
    "monitor": ["abc", "val/abc", 3, True, []],
    "verbose": NO_SWITCH,
    "save_last": ["abc", 1, []],
    "save_top_k": ["abc", -2, 1.5, None, True, []],
    "save_on_exception": NO_SWITCH,
    "save_weights_only": NO_SWITCH,
    "mode": ["abc", None, 1, True, "auto"],
    "auto_insert_metric_name": NO_SWITCH,
    "every_n_train_steps": ["abc", -1, 1.5, True, []],
    "train_time_interval": ["abc", 5, "00:00:10:00", {}],
    "every_n_epochs": ["abc", -1, 1.5, True, []],
    "save_on_train_epoch_end": ["abc", 1, []],
    "enable_version_counter": [-1, *NO_SWITCH],
}

BAD_LEARNING_RATE: dict[str, list[Any]] = {
    "logging_interval": ["abc", 5, True, []],
    "log_momentum": NO_SWITCH,
    "log_weight_decay": NO_SWITCH,
}

CLASSES: dict[type, tuple[str, dict[str, list[Any]]]] = {
    EarlyStopping: ("lightning.pytorch.callbacks.EarlyStopping", BAD),
    LearningRateMonitor: ("lightning.pytorch.callbacks.LearningRateMonitor", BAD_LEARNING_RATE),
    ModelCheckpoint: ("lightning.pytorch.callbacks.ModelCheckpoint", BAD_SAVING),
}


def check(target: str = "lightning.pytorch.callbacks.EarlyStopping", **arguments: Any) -> None:
    check_callbacks(OmegaConf.create({"stop": {"_target_": target, **arguments}, "none": None}))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_argument_has_a_rule(kind: type):
    _, bad = CLASSES[kind]
    assert set(inspect.signature(kind).parameters) == set(RULES[kind.__name__]) == set(bad)


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [(target, name, value) for target, bad in CLASSES.values() for name, values in bad.items() for value in values],
)
def test_a_wrong_value_is_refused_by_name(target: str, name: str, value: Any):
    with pytest.raises(ValueError, match=rf"^callbacks\.stop\.{name}: expected .*got "):
        check(target, **{name: value})


@pytest.mark.parametrize("target", ["ssd_lightning.RunCheckpoint", "ssd_lightning.SaveEverySteps"])
def test_callbacks_of_this_project_that_save_have_the_same_rules(target: str):
    with pytest.raises(ValueError, match=r"^callbacks\.stop\.filename: expected a text, got 5"):
        check(target, filename=5)
    check(target, dirpath="${hydra:runtime.output_dir}/checkpoints", filename="{epoch}", monitor="step", save_top_k=3)


def test_right_values_are_taken():
    check(monitor="val/map_50", mode="max", patience=0, min_delta=0.01, stopping_threshold=None, strict=True)
    check(monitor="val/loss", mode="min", patience=10, divergence_threshold=-5.0, check_on_train_epoch_end=None)
    check_callbacks(OmegaConf.create({"other": {"_target_": "my.Callback", "patience": "abc"}}))


def test_the_command_refuses_it_before_anything_is_trained(run):
    outcome = run("ssd-train", "callbacks=early_stopping", "callbacks.early_stopping.monitor=abc", "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-train: callbacks.early_stopping.monitor: expected one of val/map_50")
