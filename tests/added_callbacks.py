"""Callbacks that tests add to runs of ``ssd-train``, by their ``_target_``."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning

from ssd_lightning.training.callbacks import StopOnSignal


class PauseAtStep(lightning.Callback):
    """A pause of the first rank before a step, until it gets a signal. A resumed run makes no second pause.

    The file ``paused`` in the run folder says that the pause has begun.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        paused = Path(trainer.default_root_dir, "paused")
        if trainer.global_rank != 0 or trainer.global_step != self.step or paused.exists():
            return
        paused.touch()
        [stop] = [callback for callback in trainer.callbacks if isinstance(callback, StopOnSignal)]
        until = time.monotonic() + 120
        while stop._received is None and time.monotonic() < until:
            time.sleep(0.02)


class SignalAtStep(lightning.Callback):
    """A signal to this process in the first step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 0:
            os.kill(os.getpid(), self.number)


class PauseInValidation(lightning.Callback):
    """A pause in the sanity check or in the final validation, which an exception from a signal ends.

    The file ``paused`` in the current folder says that the pause has begun.

    Args:
        moment: ``sanity_check`` or ``validate``.
    """

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        moment = "sanity_check" if trainer.sanity_checking else trainer.state.fn.value
        if moment == self.moment:
            Path("paused").touch()
            time.sleep(120)


class Fail(lightning.Callback):
    """A failure of one rank before one step.

    Args:
        how: "user's mistake", "our mistake" or "is killed".
        unless: no failure if this file exists in the current folder.
    """

    def __init__(self, rank: int, step: int, how: str, unless: str = "") -> None:
        self.rank, self.step, self.how, self.unless = rank, step, how, unless

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if (trainer.global_rank, trainer.global_step) != (self.rank, self.step):
            return
        if self.unless and Path(self.unless).exists():
            return
        if self.how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise (ValueError if self.how == "user's mistake" else TypeError)(f"rank {self.rank} fails")


class WriteLearningRate(lightning.Callback):
    """A file for each rank in the run folder, with the learning rate of its config."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        rate = module.config["config"]["optimizer"]["lr"]
        Path(trainer.default_root_dir, f"rate_of_rank_{trainer.global_rank}").write_text(str(rate))
