"""The progress of a training on the screen: bars on a terminal, lines in a file."""

import math
import sys
import time
from typing import Any

from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, Timer
from lightning.pytorch.trainer.states import TrainerFn

from ssd_lightning.structures import Batch


def choose_progress() -> ProgressBar:
    """Return progress bars if the standard output is a terminal, else :class:`ProgressLines`."""
    return RichProgressBar() if sys.stdout.isatty() else ProgressLines()


class Throughput:
    """Number of training images per second, without the time of validation."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin to count anew."""
        self._images, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def add(self, images: int) -> None:
        """Count the images of a batch."""
        self._images += images

    def pause(self) -> None:
        """Stop the clock until :meth:`resume`."""
        self._seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def take(self) -> float:
        """Return the images per second since the last start, and begin to count anew."""
        images = self._images
        self.pause()
        seconds = self._seconds
        self.start()
        return images / max(seconds, 1e-9)


class ProgressLines(ProgressBar):
    """One line of text after each validation of a training, printed by the first rank.

    A line reads ``epoch 3 of 20, step 96 of 640, train loss 2.314, AP50 0.412, 63.1 images/s, 4 min 10 s left``.
    Unknown parts, such as the end of an unlimited run, are left out. Images per second are those of training since the
    line before, on all ranks. The time left includes validations.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._throughput = Throughput()
        self._first_step = 0
        self._began = 0.0

    def enable(self) -> None:
        """Print lines."""
        self._is_enabled = True

    def disable(self) -> None:
        """Print nothing."""
        self._is_enabled = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._first_step, self._began = trainer.global_step, time.perf_counter()
        self._throughput.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._throughput.add(len(batch.images) * trainer.world_size)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._throughput.pause()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._throughput.resume()
        if self._is_enabled and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            print(self._line(trainer), flush=True)

    def _line(self, trainer: Any) -> str:
        steps, left = self._steps_and_seconds_left(trainer)
        batches = trainer.num_training_batches
        epochs = steps / math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf
        metrics = trainer.callback_metrics
        parts = [
            f"epoch {trainer.current_epoch + 1}{_of(epochs)}",
            f"step {trainer.global_step}{_of(steps)}",
            *(f"{name} {metrics[key]:.3f}" for key, name in SHOWN_METRICS.items() if key in metrics),
            f"{self._throughput.take():.1f} images/s",
            *([f"{_duration(left)} left"] if math.isfinite(left) else []),
        ]
        return ", ".join(parts)

    def _steps_and_seconds_left(self, trainer: Any) -> tuple[float, float]:
        """Return the number of steps of the whole run and the seconds until its end; infinity where unknown."""
        steps = trainer.estimated_stepping_batches
        if steps < 0:  # Lightning has -1 for data without an end.
            steps = math.inf
        done = max(1, trainer.global_step - self._first_step)
        left = (steps - trainer.global_step) * (time.perf_counter() - self._began) / done
        timer = next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)
        limit = timer.time_remaining() if timer else None
        if limit is not None and limit < left:
            # The time limit ends the run before its last step.
            return math.inf, max(0.0, limit)
        return steps, left


SHOWN_METRICS = {"train/loss": "train loss", "val/map_50": "AP50"}
"""Metrics in a line, with their names there."""


def _of(total: float) -> str:
    return f" of {math.ceil(total)}" if math.isfinite(total) else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
