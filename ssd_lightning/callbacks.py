"""What happens beside training: stopping well."""

import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning
import torch
from torch import Tensor

from ssd_lightning.structures import Batch


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite."""


class StopOnNonFiniteLoss(lightning.Callback):
    """Stops the run at the step whose loss is NaN or infinite, before it can spoil the weights or a checkpoint.

    The error names the step, the learning rate and the pictures of the batch, which is saved for replay as
    ``non_finite_batch.pt``. On an accelerator the loss of a step is looked at when the next step has been launched, so
    that nothing waits; it stops one step later then.

    Args:
        folder: where the batch is saved.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._batch: Batch | None = None
        self._pending: _Launched | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        assert self._batch is not None
        launched = _Launched(loss, self._batch, trainer.global_step)
        due, self._pending = (self._pending, launched) if loss.is_cuda else (launched, None)
        if due is not None:
            self._check(due, trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._check_pending(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._check_pending(trainer)

    def _check_pending(self, trainer: Any) -> None:
        if self._pending is not None:
            self._check(self._pending, trainer)

    def _check(self, launched: "_Launched", trainer: Any) -> None:
        value = launched.value()
        if math.isfinite(value):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "non_finite_batch.pt"
        # As plain dictionaries: that is what torch.load reads without trusting the file.
        torch.save({**launched.batch._asdict(), "objects": launched.batch.objects._asdict()}, path)
        paths = trainer.datamodule.train_pictures.paths if trainer.datamodule else None
        ids = launched.batch.image_ids.tolist()
        names = ", ".join(str(paths[index]) if paths else str(index) for index in ids)
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        raise NonFiniteLossError(
            f"the loss became {value} at step {launched.step} with learning rate {rate:g}; "
            f"try a smaller one, or a longer warm-up. The batch is saved in {path}; its pictures: {names}"
        )


class _Launched:
    """A loss on its way to the host, without waiting for it."""

    def __init__(self, loss: Tensor, batch: Batch, step: int) -> None:
        self.batch = batch
        self.step = step
        self._event = None
        self._loss = loss.detach()
        if loss.is_cuda:
            self._loss = torch.empty((), pin_memory=True).copy_(self._loss, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def value(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._loss)


class StoppedBySignal(Exception):
    """A run was asked to stop, and its last step is saved."""


IMPATIENCE = 1.0
"""Seconds from which on a second Ctrl-C is another one. ``uv run`` and schedulers pass a signal on that the terminal or
the process group brings as well, so that one request arrives twice."""


class StopOnSignal(lightning.Callback):
    """Ctrl-C and SIGTERM end a run between two steps, after a checkpoint. A second Ctrl-C ends it at once.

    Args:
        checkpoint: file to write; resuming from it gives the run that was not interrupted.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoint: Path | str) -> None:
        self.checkpoint = Path(checkpoint)
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._former: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._received = None
        self._former = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at >= IMPATIENCE:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self._received is None or _more_belongs_to(batch_idx, trainer):
            return
        # Lightning logs the step when this hook has returned, which it does not.
        trainer._logger_connector.update_train_step_metrics()
        self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Other callbacks have yet to look at the epoch, and may save it as the best: the end of training is the moment.
        if self._received is not None:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()
        if self._received is not None:
            self._save_and_stop(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._restore_handlers()

    def _save_and_stop(self, trainer: Any) -> NoReturn:
        assert self._received is not None
        trainer.save_checkpoint(self.checkpoint)
        raise StoppedBySignal(f"stopped by {self._received.name}; saved in {self.checkpoint}")

    def _restore_handlers(self) -> None:
        # Not in the hook "teardown": by then Lightning has restored those from before its own.
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def _more_belongs_to(batch_idx: int, trainer: Any) -> bool:
    """Whether validation follows this batch, or gradients of other batches are to be added to its own."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return True
    # Without an end of epoch to wait for, validation is due after a number of batches of the whole run.
    counted = batch_idx if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx
    is_validation_due = trainer.enable_validation and (counted + 1) % trainer.val_check_batch == 0
    return is_validation_due or (batch_idx + 1) % trainer.accumulate_grad_batches != 0
