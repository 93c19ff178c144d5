"""Callbacks: stopping at a bad loss or a signal, saving, averaging weights, training new layers first."""

import math
import signal
import time
import warnings
from collections.abc import Collection
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
from ssd_lightning.signals import IMPATIENCE, StoppedBySignal, heard, leave_closed_terminal
from ssd_lightning.structures import Batch, Objects
from ssd_lightning.training.checkpoint import detector_in, read_checkpoint, rebuild_part
from ssd_lightning.training.checkpoint_files import AtomicCheckpointIO
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.parameter_groups import NEW


class NonFiniteLossError(ArithmeticError):
    """Error for a loss that is NaN or infinite."""


class StopOnNonFiniteLoss(lightning.Callback):
    """Callback that stops a run at a loss that is NaN or infinite, before the step changes weights or checkpoints.

    The error names the step, the learning rate and the pictures of the batch. The batch and the weights before the step
    are saved as ``non_finite_batch.pt``; see :func:`load_non_finite_batch`. The loss is read after the backward pass
    has been launched, so that an accelerator does not wait for it.

    Args:
        folder: the folder for ``non_finite_batch.pt``.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._batch: Batch | None = None
        self._launched: list[_Launched] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._launched = []  # A step that was broken off may have left some.

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
        # Plain dictionaries can be read without running code from the file.
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
            f"train/loss: expected a finite loss, got {launched.value()} at step {launched.step} with learning rate "
            f"{rate:g}. Try a lower learning rate or a longer warm-up. The batch and the weights are saved in {path}; "
            f"its pictures: {names}"
        )


class NonFiniteBatch(NamedTuple):
    """A training step whose loss was not finite, ready to be repeated."""

    module: SSDModule
    """The module with the weights before the step, and with the training mode of each part."""
    batch: Batch
    autocast: torch.autocast
    """Context with the precision of the run."""


def load_non_finite_batch(
    path: Path | str, device: str = "cpu", trusted_packages: Collection[str] = ()
) -> NonFiniteBatch:
    """Load the step that :class:`StopOnNonFiniteLoss` saved.

    Within ``autocast``, ``module.training_step(batch, 0)`` gives the loss again.

    Args:
        path: the file.
        device: the device for the step. Another device than that of the run rounds differently.
        trusted_packages: see :func:`ssd_lightning.training.checkpoint.load_detector`.

    Raises:
        ValueError: with the file, if the file is missing, holds something else, or lacks the config of its run.
    """
    content = read_checkpoint(path)
    if "batch" not in content:
        raise ValueError(f"checkpoint: expected a file non_finite_batch.pt of a run, got {path}")
    stored: Any = content["batch"]
    evaluating: Any = content.get("evaluating")
    precision: Any = content.get("precision")
    objects: Any = stored.get("objects") if isinstance(stored, dict) else None
    are_named = isinstance(evaluating, list) and all(isinstance(name, str) for name in [*evaluating, precision])
    if (
        not are_named
        or not _has_tensors(objects, Objects._fields)
        or not _has_tensors({**stored, "objects": torch.empty(0)}, Batch._fields)
    ):
        raise ValueError(f"checkpoint: expected the batch of a file non_finite_batch.pt, got {path}, which lacks it")
    module = SSDModule(
        # Its weights may hold NaN, which are what the step is to be examined for.
        detector_in(content, path, trusted_packages=trusted_packages).model,
        matcher=rebuild_part(content, "matcher", path, trusted_packages),
        loss=rebuild_part(content, "loss", path, trusted_packages),
    ).to(device)
    for name, part in module.named_modules():
        part.training = name not in evaluating
    batch = Batch(**{**stored, "objects": Objects(**objects)})
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision)
    autocast = torch.autocast(device, dtype, enabled=dtype is not None)
    return NonFiniteBatch(module, move_data_to_device(batch, device), autocast)


def _has_tensors(stored: Any, names: Collection[str]) -> bool:
    """Return True for a dictionary of tensors that has exactly some keys."""
    return (
        isinstance(stored, dict)
        and stored.keys() == set(names)
        and all(isinstance(value, Tensor) for value in stored.values())
    )


class _Launched:
    """A loss that is copied to the host without waiting for the device."""

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
        """Wait for the loss and return it."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._loss)


class StopOnSignal(Checkpoint):
    """Callback that saves a checkpoint and ends the run at Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2.

    A second Ctrl-C ends the run at once. A signal that the process ignores, as under ``nohup``, is left alone.

    Outside the training steps, signals keep the handlers from before the run: Lightning's own handler of SIGTERM would
    end a validation silently, and make the ranks wait for each other. With several ranks, a signal to one of them
    is enough, and all end after the same step.

    This class is a Checkpoint, since Lightning calls those after all callbacks that have something to save.

    Args:
        checkpoint: the file to write. A run resumed from it ends like one that was not interrupted.
    """

    def __init__(self, checkpoint: Path | str) -> None:
        self.checkpoint = Path(checkpoint)
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._former: dict[signal.Signals, Any] = {}
        self._group: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._former = heard()

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._restore_handlers()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._received = None
        if collectives.world_size() > 1:
            # A group on the CPU does not wait for a GPU.
            self._group = torch.distributed.new_group(backend="gloo")
        for number in self._former:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminal()
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
        # Lightning logs the step after this hook, which ends with an exception here.
        trainer._logger_connector.update_train_step_metrics()
        self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        # Callbacks after this one may still save the epoch as the best, so the run is saved at the end of training.
        if self._is_to_stop():
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._restore_handlers()
        if self._is_to_stop():
            self._save_and_stop(trainer)

    def _is_to_stop(self) -> bool:
        """Return whether any rank has received a signal. All ranks get the same answer at the same step."""
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
        raise StoppedBySignal(self._received, f"saved in {self.checkpoint}")

    def _restore_handlers(self) -> None:
        # The hook "teardown" would be too late: Lightning has restored its own former handlers by then.
        for number, handler in self._former.items():
            signal.signal(number, handler)


class RunCheckpoint(ModelCheckpoint):
    """Callback that saves a checkpoint of the run, and knows the best one after the run folder has moved.

    Lightning's ModelCheckpoint forgets the best score when a run is resumed in a folder of another path. It then
    overwrites the best checkpoint with a worse one. The arguments are those of ModelCheckpoint.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        with warnings.catch_warnings():
            # The folder of a resumed run holds its own checkpoints.
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best checkpoint and its score.

        Raises:
            ValueError: if a score is no number, or a best file is not among those with a score.
        """
        scores = [state_dict[key] for key in ("current_score", "best_model_score", "kth_value") if key in state_dict]
        for score in (*scores, *state_dict.get("best_k_models", {}).values()):
            if not isinstance(score, Tensor | float | int | None):
                raise ValueError(f"expected a score of {type(self).__name__}, got {score!r}")
        saved, kind = state_dict.get("best_k_models", {}), type(self).__name__
        if any(bool(score != score) for score in saved.values()):  # No later score would be better than NaN.
            raise ValueError(f"expected scores of {kind} without NaN, got {saved}")
        for key in ("best_model_path", "kth_best_model_path"):
            if saved and state_dict.get(key) and state_dict[key] not in saved:
                raise ValueError(f"expected a {key} of {kind} that has a score, got {state_dict[key]!r}")
        super().load_state_dict(_moved_to(self.dirpath, state_dict))


def _moved_to(folder: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a ModelCheckpoint with its files in another folder."""

    def moved(path: Any) -> Any:
        return str(Path(folder) / Path(path).name) if path else path

    files: dict[str, Any] = {
        key: moved(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path") if key in state
    }
    best_k = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
    return {**state, **files, "dirpath": str(folder), "best_k_models": best_k}


class SaveEverySteps(RunCheckpoint):
    """Callback that saves a checkpoint every ``every_n_train_steps``, from which a run can be resumed exactly.

    Nothing is saved between a step and the validation after that step, unlike in Lightning's ModelCheckpoint: a resumed
    run would leave out the validation. Callbacks that save after the validation serve as well.

    Args:
        every_n_train_steps: number of optimizer steps, at least 1.
        settings: other arguments of ModelCheckpoint.
    """

    def __init__(self, every_n_train_steps: int, **settings: Any) -> None:
        require_whole_number("every_n_train_steps", every_n_train_steps, 1)
        super().__init__(every_n_train_steps=every_n_train_steps, **settings)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step % self._every_n_train_steps or _more_belongs_to(batch_idx, trainer):
            return
        # Lightning logs the step after this hook. A process that dies in between would leave a gap in the metrics.
        trainer._logger_connector.update_train_step_metrics()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class AveragedWeights(WeightAveraging):
    """Callback that validates and saves an exponential moving average of the weights. The module has it in the end.

    There are two differences to Lightning's EMAWeightAveraging. Weights that do not change, such as default boxes and
    frozen layers, stay exactly the same: the average is an interpolation, not a sum of two rounded products. And the
    average is dropped after the run, so that other weights can be validated with the same trainer.

    Args:
        decay: share of the average that a step keeps, in [0, 1). 0.999 averages over about 1000 steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        require_number("decay", decay, "[0, 1)")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Do nothing yet, since other callbacks save the run in this hook."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self._average_model = None


class HeadsFirst(lightning.Callback):
    """Callback that trains the new layers first, then the pretrained backbone too.

    While the backbone waits, its gradients are computed but dropped, and its batch norms are in evaluation mode. The
    parameters and groups of the optimizer stay the same, so this works on several devices and in resumed runs.

    Args:
        epochs: number of epochs that the backbone waits.
        steps: number of optimizer steps that the backbone waits, in place of ``epochs``.
    """

    def __init__(self, epochs: int | None = None, steps: int | None = None) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs, steps: expected exactly one of the two, got epochs={epochs} and steps={steps}")
        for name, number in (("epochs", epochs), ("steps", steps)):
            if number is not None:
                require_whole_number(name, number, 0)
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
    """Return whether validation follows this batch, or the step needs the gradients of more batches."""
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return True
    # With check_val_every_n_epoch=None, Lightning counts the batches of the whole run instead of those of the epoch.
    counted = batch_idx if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx
    is_validation_due = trainer.enable_validation and (counted + 1) % trainer.val_check_batch == 0
    return is_validation_due or (batch_idx + 1) % trainer.accumulate_grad_batches != 0
