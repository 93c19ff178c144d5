"""Values of the arguments of Lightning's Trainer. An argument that a user sets works, or is refused by its name.

Lightning takes many wrong values: some end a training before its first step, others in a traceback, others are ignored.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from ssd_lightning.cli.rules import Rule, number, one_of, only, part, switch, whole
from ssd_lightning.require import require_number, require_whole_number

PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
"""Values of ``trainer.precision``. Default boxes and losses need weights in float32."""

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Names of strategies whose ranks hold the whole model and are started as ``ssd-train`` starts them."""

MOST_DEVICES = 256
"""Largest number of devices of a machine. Each device is a process, and too many would stop the machine."""

UNITS = ("weeks", "days", "hours", "minutes", "seconds")
"""Keys of a duration."""


def check_trainer(arguments: DictConfig) -> None:
    """Refuse arguments of the Trainer that would be ignored, or whose values would be found wrong late or never.

    Raises:
        ValueError: naming the key, the values that it takes, and the value that it has.
    """
    values = OmegaConf.to_container(arguments, resolve=True)
    assert isinstance(values, dict)
    for name, value in values.items():
        if name in RULES and not (value is None and name in OPTIONAL):
            RULES[name](f"trainer.{name}", value)
    for least, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        low, high = values.get(least), values.get(most)
        if low is not None and high not in (None, -1) and low > high:
            raise ValueError(f"trainer.{least}: expected at most trainer.{most}={high}, got {low}")
    if values.get("check_val_every_n_epoch", 1) is None and not isinstance(values.get("val_check_interval"), int):
        raise ValueError(
            "trainer.val_check_interval: expected a number of steps beside trainer.check_val_every_n_epoch=null, "
            f"got {values.get('val_check_interval')}. Try trainer.val_check_interval=100."
        )


@contextlib.contextmanager
def naming_arguments(arguments: DictConfig) -> Iterator[None]:
    """Name the argument of the Trainer in an error of Lightning, which depends on the devices or on the data.

    Lightning writes the argument between backticks. Errors about missing devices name none.

    Raises:
        ValueError: naming the argument, its value, and the reason that Lightning gives.
    """
    try:
        yield
    except Exception as error:
        is_building = isinstance(error, InstantiationException)
        reason = " ".join(str(error.__cause__ if is_building else error).split())
        named = [name for name in re.findall(r"`(?:Trainer\()?(\w+)", reason) if name in RULES][:1]
        if not (named or is_building):
            raise
        names = named or ["accelerator", "devices"]
        keys = " and ".join(f"trainer.{name}" for name in names)
        values = " and ".join(str(arguments.get(name)) for name in names)
        raise ValueError(f"{keys}: expected what the devices and the data allow, got {values} ({reason})") from error


def _batches(key: str, value: Any) -> None:
    """Allow a whole number of batches, or a share of all batches as a fraction up to 1.0."""
    if isinstance(value, float):
        require_number(key, value, "(0, 1]")
    else:
        require_whole_number(key, value, 1)


def _length(key: str, value: Any) -> None:
    """Allow a number of epochs or steps, or -1. With 0 a run would end before its first step."""
    if value == 0 and not isinstance(value, bool):
        raise ValueError(f"{key}: expected at least 1, or -1 for no limit, got 0")
    require_whole_number(key, value, -1)


def _duration(key: str, value: Any) -> None:
    """Allow a duration above zero, as text or by its units."""
    seconds = 0.0
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d):(\d\d)", value.strip())):
        value = dict(zip(UNITS[1:], map(int, match.groups()), strict=True))
    if isinstance(value, dict) and set(value) <= set(UNITS):
        for unit, number in value.items():
            require_number(f"{key}.{unit}", number, "[0, 1e9]")
        seconds = timedelta(**value).total_seconds()
    if seconds <= 0:
        raise ValueError(f"{key}: expected a duration DD:HH:MM:SS above zero, got {value}. Try {key}=00:01:30:00.")


def _devices(key: str, value: Any) -> None:
    """Allow a number of devices, -1 for all, auto, or the different indices of devices as a list or as text."""
    plain = isinstance(value, int) and not isinstance(value, bool) and (value > 0 or value == -1)
    text = isinstance(value, str) and re.fullmatch(r"auto|-1|0*[1-9]\d*|\d+(, ?\d+)+|\d+,", value.strip()) is not None
    indices = value if isinstance(value, list) else []
    if isinstance(value, str) and "," in value and text:
        indices = [int(index) for index in value.split(",") if index.strip()]
    is_list = bool(indices) and all(type(index) is int and index >= 0 for index in indices)
    number = str(value).strip()
    if number.isdecimal() and int(number[:1000]) > MOST_DEVICES:
        raise ValueError(f"{key}: expected at most {MOST_DEVICES} devices, got {number[:20]}")
    if not (plain or text or is_list) or len(set(map(str, indices))) < len(indices):
        raise ValueError(
            f"{key}: expected a number of devices, -1 for all, auto, or a list of different indices, got {value}. "
            f"Try {key}=1."
        )


def _precision(key: str, value: Any) -> None:
    if str(value) not in PRECISIONS:
        raise ValueError(f"{key}: expected one of {', '.join(PRECISIONS)} or null, got {value}")


RULES: dict[str, Rule] = {
    "accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "strategy": part(one_of(*STRATEGIES)),
    "devices": _devices,
    "num_nodes": whole(1),
    "precision": _precision,
    "logger": only(None, "logger=csv"),
    "callbacks": only(None, "callbacks.<name>._target_=<class>"),
    "fast_dev_run": only(False, "debug=fast"),
    "max_epochs": _length,
    "min_epochs": whole(0),
    "max_steps": _length,
    "min_steps": whole(0),
    "max_time": _duration,
    "limit_train_batches": _batches,
    "limit_val_batches": _batches,
    "limit_test_batches": _batches,
    "limit_predict_batches": only(None, "trainer.limit_val_batches"),
    "overfit_batches": only(0, "overfit_pictures=<number of pictures>"),
    "val_check_interval": _batches,
    "check_val_every_n_epoch": whole(1),
    "num_sanity_val_steps": whole(-1),
    "log_every_n_steps": whole(0),
    "enable_checkpointing": only(True, "callbacks=default"),
    "enable_progress_bar": switch,
    "enable_model_summary": switch,
    "accumulate_grad_batches": whole(1),
    "gradient_clip_val": number("[0, inf)"),
    "gradient_clip_algorithm": one_of("norm", "value"),
    "deterministic": one_of(True, False, "warn"),
    "benchmark": switch,
    "inference_mode": switch,
    "use_distributed_sampler": only(False, "trainer.devices=<number>, which splits the pictures already"),
    "profiler": part(one_of("simple", "advanced", "pytorch")),
    "detect_anomaly": switch,
    "barebones": only(False, "logger=null"),
    "plugins": only(None, "trainer.precision or trainer.strategy"),
    "sync_batchnorm": switch,
    "reload_dataloaders_every_n_epochs": only(0, "num_workers"),
    "default_root_dir": only(None, "hydra.run.dir=<folder>"),
    "enable_autolog_hparams": switch,
    "model_registry": only(None, "logger=wandb"),
}
"""The rule of each argument of the Trainer. A rule for one value alone proposes what does the same in the commands."""

OPTIONAL = (
    *("precision", "max_epochs", "min_epochs", "min_steps", "max_time", "limit_train_batches", "limit_val_batches"),
    *("limit_test_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("log_every_n_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
    *("gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark", "profiler"),
)
"""Arguments that may be null, which means no limit or Lightning's choice."""
