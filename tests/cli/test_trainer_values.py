"""Arguments of Lightning's Trainer: each one that a user sets works, or is refused by its name."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import lightning
import pytest
from command_line import QUICK
from lightning.pytorch.callbacks import Timer
from omegaconf import OmegaConf

from ssd_lightning.cli.trainer_values import OPTIONAL, RULES, check_trainer, naming_arguments

INFINITE, NAN = float("inf"), float("nan")
NO_SWITCH = ["abc", 1, 0, 0.0, [], {}]
NO_COUNT = ["abc", 1.5, -5, True, [1], {}, NAN, INFINITE]
NO_BATCHES = [0, 0.0, 1.5, -1, "abc", True, [], NAN]

BAD: Mapping[str, list[Any]] = {
    "accelerator": ["abc", "tpu", 3, None, True, [], {}],
    "strategy": ["abc", "ddp_spawn", "ddp_notebook", "fsdp", "deepspeed", 3, None, [], {}],
    "devices": [257, 10**30, "100000", 0, -2, 1.5, True, "0", "abc", "1.5", [], [0, 0], [-1], ["a"], "0,0", None, {}],
    "num_nodes": [0, *NO_COUNT, None],
    "precision": [64, "bf16-true", "abc", [], True],
    "logger": [True, False, "csv", []],
    "callbacks": [[], "abc", {"a": 1}],
    "fast_dev_run": [True, 1, "abc", -1, None],
    "max_epochs": [0, -2, *NO_COUNT],
    "min_epochs": NO_COUNT,
    "max_steps": [0, -2, *NO_COUNT, None],
    "min_steps": NO_COUNT,
    "max_time": [
        *("soon", "00:01:30", "00:00:00:00", "1:2:3:4", "-1:00:00:00", 3, 1.5, True, [], {}),
        *({"seconds": 0}, {"second": 3}, {"seconds": "abc"}, {"hours": -1}, {"days": 1e300}, {"hours": NAN}),
    ],
    "limit_train_batches": NO_BATCHES,
    "limit_val_batches": NO_BATCHES,
    "limit_test_batches": NO_BATCHES,
    "limit_predict_batches": [0, 1.0, "abc"],
    "overfit_batches": [1, 0.5, "abc", True, None],
    "val_check_interval": [*NO_BATCHES, "00:00:00:01", {"seconds": 1}],
    "check_val_every_n_epoch": [0, *NO_COUNT],
    "num_sanity_val_steps": [-2, *NO_COUNT],
    "log_every_n_steps": NO_COUNT,
    "enable_checkpointing": [False, "abc", 1],
    "enable_progress_bar": NO_SWITCH,
    "enable_model_summary": NO_SWITCH,
    "accumulate_grad_batches": [0, *NO_COUNT, None],
    "gradient_clip_val": [-1, NAN, INFINITE, "abc", True, [], {}],
    "gradient_clip_algorithm": ["abc", 3, True, []],
    "deterministic": [*NO_SWITCH, "error"],
    "benchmark": NO_SWITCH,
    "inference_mode": [*NO_SWITCH, None],
    "use_distributed_sampler": [True, "abc", None],
    "profiler": ["abc", "xla", 3, True, [], {}],
    "detect_anomaly": [*NO_SWITCH, None],
    "barebones": [True, "abc", None],
    "plugins": [[], "abc"],
    "sync_batchnorm": [*NO_SWITCH, None],
    "reload_dataloaders_every_n_epochs": [1, True, "abc", None],
    "default_root_dir": ["folder"],
    "enable_autolog_hparams": [*NO_SWITCH, None],
    "model_registry": ["abc"],
}
"""Wrong values of each argument, of a wrong type or outside the range."""

GOOD: Mapping[str, list[Any]] = {
    "accelerator": ["auto", "cpu"],
    "strategy": ["auto", "ddp", {"_target_": "lightning.pytorch.strategies.DDPStrategy"}],
    "devices": [1, 2, "2", "auto"],
    "num_nodes": [1],
    "precision": ["32-true", "bf16-mixed", 32],
    "max_epochs": [-1, 1],
    "min_epochs": [0, 1],
    "max_steps": [-1, 1],
    "min_steps": [0, 1],
    "max_time": ["00:00:00:01", "01:02:03:04", {"seconds": 1}, {"weeks": 1, "minutes": 0.5}],
    "limit_train_batches": [1, 1.0, 0.5],
    "val_check_interval": [1, 0.25],
    "num_sanity_val_steps": [-1, 0, 2],
    "gradient_clip_val": [0, 0.5, 2],
    "gradient_clip_algorithm": ["norm", "value"],
    "deterministic": [True, False, "warn"],
    "profiler": ["simple", "advanced", "pytorch"],
    "sync_batchnorm": [True, False],
}


def trainer_parameters() -> dict[str, inspect.Parameter]:
    """Return the arguments of the Trainer, except for ``self``."""
    return dict(list(inspect.signature(lightning.Trainer.__init__).parameters.items())[1:])


def test_every_argument_of_the_trainer_has_a_rule():
    assert set(RULES) == set(trainer_parameters()) == set(BAD)


def test_null_is_allowed_only_where_lightning_takes_none():
    assert {name for name in OPTIONAL if NoneType not in get_args(trainer_parameters()[name].annotation)} == set()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_wrong_value_is_refused_by_name(name: str, value: object):
    with pytest.raises(ValueError, match=rf"^trainer\.{name}[.:].*expected .*got ") as caught:
        check_trainer(OmegaConf.create({name: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_a_right_value_is_taken_here_and_by_lightning(name: str, value: Any):
    check_trainer(OmegaConf.create({name: value}))
    if isinstance(value, dict) and "_target_" in value:
        return
    if name == "max_time":
        Timer(value)
    lightning.Trainer(**{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, name: value})


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_is_the_choice_of_lightning(name: str):
    check_trainer(OmegaConf.create({"val_check_interval": 100, name: None} if name[0] == "c" else {name: None}))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"min_epochs": 3, "max_epochs": 1}, "min_epochs"),
        ({"min_steps": 3, "max_steps": 1}, "min_steps"),
        ({"check_val_every_n_epoch": None}, "val_check_interval"),
        ({"check_val_every_n_epoch": None, "val_check_interval": 0.5}, "val_check_interval"),
    ],
)
def test_values_that_contradict_each_other(arguments: dict[str, Any], key: str):
    with pytest.raises(ValueError, match=rf"^trainer\.{key}: expected .* got "):
        check_trainer(OmegaConf.create(arguments))


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("+trainer.max_time=soon", "trainer.max_time"),
        ("trainer.logger=false", "trainer.logger"),
        ("trainer.devices=-1", "trainer.devices"),
        ("trainer.devices=[0,1]", "trainer.devices"),
        ("trainer.val_check_interval=100", "trainer.val_check_interval"),
        ("trainer.limit_train_batches=0.0001", "trainer.limit_train_batches"),
    ],
)
@pytest.mark.usefixtures("empty_figures")
def test_the_command_names_values_that_do_not_fit_devices_and_data(
    run, bananas: Path, tmp_path: Path, argument: str, key: str
):
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=run", argument)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-train: {key}: expected ")
    assert f"got {argument.partition('=')[2]}".lower() in outcome.message.lower().replace(", ", ",")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_a_duration_by_its_units_ends_a_training(run, bananas: Path):
    arguments = ["+trainer.max_time={seconds:1}", "trainer.max_epochs=-1", "trainer.max_steps=100000"]
    settings = [setting for setting in QUICK if "max_epochs" not in setting]
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *settings, *arguments, "hydra.run.dir=run")
    assert outcome.exit_code == 0, outcome.error


def test_errors_without_an_argument_stay_as_they_are():
    with pytest.raises(ValueError, match=r"^data: no pictures$"), naming_arguments(OmegaConf.create({"devices": 1})):
        raise ValueError("data: no pictures")
