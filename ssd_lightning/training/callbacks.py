"""What happens beside training: stopping and saving well, averaging weights, training some of them later."""

import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import lightning
import torch
import torch.distributed
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssd_lightning import collectives
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.signals import IMPATIENCE
from ssd_lightning.structures import Batch, Objects
from ssd_lightning.training.checkpoint import AtomicCheckpointIO, load_detector, read_checkpoint, rebuild_part
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.parameter_groups import NEW


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite."""


class StopOnNonFiniteLoss(lightning.Callback):
    """Stops the run at the step whose loss is NaN or infinite, before it can spoil the weights or a checkpoint.

    The error names the step, the learning rate and the pictures of the batch, which is saved with the weights that it
    met as ``non_finite_batch.pt``: see :func:`load_non_finite_batch`. The loss is looked at when the backward pass has
    been launched, so that an accelerator is not idle meanwhile.

    Args:
        folder: where the batch is saved.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._batch: Batch | None = None
        self._launched: list[_Launched] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._launched = []  # of a step that was broken off

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        assert self._batch is not None
        self._launched.append(_Launched(loss, self._batch, trainer.global_step))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        launched, self._launched = self._launched, []
        for one in launched:
            if not math.isfinite(one.value()):
                self._stop(one, trainer, pl_module)

    def _stop(self, launched: "_Launched", trainer: Any, pl_module: Any) -> NoReturn:
        path = self.folder / f"non_finite_batch{f'_of_rank_{trainer.global_rank}' if trainer.global_rank else ''}.pt"
        # As plain dictionaries: that is what torch.load reads without trusting the file.
        content = {
            "batch": {**launched.batch._asdict(), "objects": launched.batch.objects._asdict()},
            "state_dict": pl_module.state_dict(),
            "evaluating": [name for name, part in pl_module.named_modules() if not part.training],
            "precision": trainer.precision,
        }
        pl_module.on_save_checkpoint(content)
        AtomicCheckpointIO().save_checkpoint(content, path)
        paths = trainer.datamodule.train_pictures.paths if trainer.datamodule else None
        ids = launched.batch.image_ids.tolist()
        names = ", ".join(str(paths[index]) if paths else str(index) for index in ids)
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        raise NonFiniteLossError(
            f"the loss became {launched.value()} at step {launched.step} with learning rate {rate:g}; "
            f"try a smaller one, or a longer warm-up. The batch and the weights are saved in {path}; its pictures: "
            f"{names}"
        )


class NonFiniteBatch(NamedTuple):
    """A step whose loss was not finite, to be taken again."""

    module: SSDModule
    """With the weights that the batch met, in training mode where it was."""
    batch: Batch
    autocast: torch.autocast
    """The precision of the run."""


def load_non_finite_batch(path: Path | str, device: str = "cpu") -> NonFiniteBatch:
    """What :class:`StopOnNonFiniteLoss` saved. Within its ``autocast``, ``module.training_step(batch, 0)`` is the loss.

    Args:
        path: of the file.
        device: on which it is taken again. Another than that of the run rounds otherwise.

    Raises:
        ValueError: naming the file, if it is missing, something else, or without the config of its run.
    """
    content = read_checkpoint(path)
    if "batch" not in content:
        raise ValueError(f"checkpoint: {path} holds no batch whose loss was not finite")
    module = SSDModule(
        load_detector(path).model,
        matcher=rebuild_part(content, "matcher", path),
        loss=rebuild_part(content, "loss", path),
    ).to(device)
    for name, part in module.named_modules():
        part.training = name not in content["evaluating"]
    batch = Batch(**{**content["batch"], "objects": Objects(**content["batch"]["objects"])})
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(content["precision"])
    autocast = torch.autocast(device, dtype, enabled=dtype is not None)
    return NonFiniteBatch(module, move_data_to_device(batch, device), autocast)


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


class StopOnSignal(Checkpoint):
    """Ctrl-C and SIGTERM end a run between two steps, after a checkpoint. A second Ctrl-C ends it at once.

    Before and after the steps of training they do what they did before the trainer was started. (Lightning's handler of
    SIGTERM would end a validation without a word, and let the ranks wait for each other.)

    As it is a Checkpoint, Lightning calls it after all callbacks that have something to save. Of several ranks it is
    enough that one gets the signal; all end after the same step.

    Args:
        checkpoint: file to write; resuming from it gives the run that was not interrupted.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoint: Path | str) -> None:
        self.checkpoint = Path(checkpoint)
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._former: dict[signal.Signals, Any] = {}
        self._group: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._former = {number: signal.getsignal(number) for number in self.SIGNALS}

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._restore_handlers()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._received = None
        if collectives.world_size() > 1:
            # Of processes, so that no GPU is waited for.
            self._group = torch.distributed.new_group(backend="gloo")
        for number in self.SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._received_at >= IMPATIENCE:
            former = self._former[signal.SIGINT]
            if callable(former):
                former(number, frame)
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if _more_belongs_to(batch_idx, trainer) or not self._is_to_stop():
            return
        # Lightning logs the step when this hook has returned, which it does not.
        trainer._logger_connector.update_train_step_metrics()
        self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Other callbacks have yet to look at the epoch, and may save it as the best: the end of training is the moment.
        if self._is_to_stop():
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()
        if self._is_to_stop():
            self._save_and_stop(trainer)

    def _is_to_stop(self) -> bool:
        """Whether any rank has received a signal; the answer is the same on all, at the same step."""
        if self._group is None:
            return self._received is not None
        number = torch.tensor(self._received or 0)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
        if number:
            self._received = signal.Signals(int(number))
        return bool(number)

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


class SaveEverySteps(ModelCheckpoint):
    """A checkpoint every ``every_n_train_steps``, from which a run goes on as if it had not been interrupted.

    Lightning's own, but not after a step that validation follows: resumed from there, the validation would be left out.
    What is saved after the validation serves as well.

    Args:
        every_n_train_steps: at least 1.
        settings: of ModelCheckpoint.
    """

    def __init__(self, every_n_train_steps: int, **settings: Any) -> None:
        require_whole_number("every_n_train_steps", every_n_train_steps, 1)
        super().__init__(every_n_train_steps=every_n_train_steps, **settings)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step % self._every_n_train_steps or _more_belongs_to(batch_idx, trainer):
            return
        # Lightning logs the step when this hook has returned; a process that dies in between would leave a gap.
        trainer._logger_connector.update_train_step_metrics()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class AveragedWeights(WeightAveraging):
    """What is validated and saved is an exponential moving average of the weights; the module has it in the end.

    Lightning's EMAWeightAveraging with two differences. It adds two products, which rounds, and moves even what does
    not change, such as default boxes and frozen layers; interpolation leaves them as they are. And it keeps the average
    after the run, and would exchange it for whatever weights are validated then.

    Args:
        decay: share of the average that a step keeps, in [0, 1). 0.999 looks back over about 1000 steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        require_number("decay", decay, "[0, 1)")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Not yet: other callbacks save the run in this hook."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self._average_model = None


class HeadsFirst(lightning.Callback):
    """For a while only new layers learn; then the backbone, which knows something, joins them.

    Until then the gradients of the backbone are computed but not used, and its batch norms do not move. Nothing else
    changes, neither what is trained nor groups of the optimizer, so that it goes with several devices, and a resumed
    run needs to know nothing more.

    Args:
        epochs: that the backbone waits; or
        steps: of the optimizer that it waits.
    """

    def __init__(self, epochs: int | None = None, steps: int | None = None) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs, steps: expected one of them, got epochs={epochs} and steps={steps}")
        self.epochs = epochs
        self.steps = steps

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        learns = not self._waits(trainer)
        for name, part in pl_module.model.backbone.named_children():
            if part.training != learns and not f"backbone.{name}.".startswith(NEW):
                part.train(learns)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        if self._waits(trainer):
            for name, parameter in pl_module.model.named_parameters():
                if name.startswith("backbone.") and not name.startswith(NEW):
                    parameter.grad = None

    def _waits(self, trainer: Any) -> bool:
        if self.epochs is not None:
            return trainer.current_epoch < self.epochs
        assert self.steps is not None
        return trainer.global_step < self.steps


def _more_belongs_to(batch_idx: int, trainer: Any) -> bool:
    """Whether validation follows this batch, or gradients of other batches are to be added to its own."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return True
    # Without an end of epoch to wait for, validation is due after a number of batches of the whole run.
    counted = batch_idx if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx
    is_validation_due = trainer.enable_validation and (counted + 1) % trainer.val_check_batch == 0
    return is_validation_due or (batch_idx + 1) % trainer.accumulate_grad_batches != 0
