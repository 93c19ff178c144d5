"""Callbacks that stop and save: at a loss that is not finite, at a signal, and every few steps."""

import math
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from detector_config import CONFIG, MODEL
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from one_weight import BATCHES, OddPictures, OneWeight, odd_data, trainer_with
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.batches import Item, collate
from ssd_lightning.data.datamodule import DetectionDataModule
from ssd_lightning.signals import STOPPING
from ssd_lightning.structures import Batch
from ssd_lightning.training import callbacks
from ssd_lightning.training.callbacks import (
    AveragedWeights,
    HeadsFirst,
    NonFiniteLossError,
    SaveEverySteps,
    StopOnNonFiniteLoss,
    StopOnSignal,
    StoppedBySignal,
    load_non_finite_batch,
)
from ssd_lightning.training.module import SSDModule


class Interrupt(lightning.Callback):
    """Sends signals to this process in the middle of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step = step
        self.numbers = list(numbers)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        while trainer.global_step == self.step and self.numbers:
            os.kill(os.getpid(), self.numbers.pop(0))


@pytest.fixture(autouse=True)
def handlers(handlers_of_signals: None) -> dict[int, Any]:
    """The signal handlers from before the test."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # It is ignored in tests that run under nohup.
    return {number: signal.getsignal(number) for number in STOPPING}


def current_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in STOPPING}


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)

# --- a loss that is not finite ---


@pytest.mark.parametrize(("step", "value"), [(0, float("nan")), (2, float("inf")), (5, -float("inf"))])
def test_the_error_tells_step_learning_rate_and_pictures(tmp_path: Path, step: int, value: float) -> None:
    module = OneWeight({step: value})
    with pytest.raises(NonFiniteLossError) as caught:
        trainer_with(StopOnNonFiniteLoss(tmp_path)).fit(module, odd_data())
    text = str(caught.value)
    assert f"got {value} at step {step} with learning rate 0.0125" in text
    assert str(tmp_path / "non_finite_batch.pt") in text
    pictures = [f"folder/picture {index}.png" for index in module.batches[-1].image_ids.tolist()]
    assert text.endswith(", ".join(pictures))
    assert len(module.batches) == step + 1


def test_the_batch_is_saved_as_plain_data_for_replay(tmp_path: Path) -> None:
    module = OneWeight({1: float("nan")})
    with pytest.raises(NonFiniteLossError):
        trainer_with(StopOnNonFiniteLoss(tmp_path / "new folder")).fit(module, odd_data())
    content = torch.load(tmp_path / "new folder" / "non_finite_batch.pt", weights_only=True)
    assert torch.equal(content["state_dict"]["weight"], module.weight)
    saved, batch = content["batch"], module.batches[-1]
    assert list(saved) == list(batch._fields)
    for name in ("images", "image_ids", "image_sizes"):
        assert torch.equal(saved[name], getattr(batch, name))
    assert list(saved["objects"]) == list(batch.objects._fields)
    for name, tensor in saved["objects"].items():
        assert torch.equal(tensor, getattr(batch.objects, name))


def test_weights_and_checkpoints_stay_as_they_were(tmp_path: Path) -> None:
    expected = OneWeight()
    trainer_with(epochs=-1, max_steps=3).fit(expected, odd_data())

    module = OneWeight({3: float("nan")})
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(NonFiniteLossError):
        trainer_with(StopOnNonFiniteLoss(tmp_path), saving).fit(module, odd_data())
    assert torch.equal(module.weight, expected.weight)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]
    last = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"]["weight"], expected.weight)


def test_a_finite_loss_however_large_is_none_of_its_business(tmp_path: Path) -> None:
    trainer = trainer_with(StopOnNonFiniteLoss(tmp_path))
    trainer.fit(OneWeight({2: 1e38}), odd_data())
    assert trainer.global_step == 2 * BATCHES
    assert list(tmp_path.iterdir()) == []


def test_without_a_data_module_pictures_are_numbers(tmp_path: Path) -> None:
    pictures = OddPictures(2)
    loader = DataLoader([collate([Item(pictures[index], index, (8, 8)) for index in (1, 0)])], batch_size=None)
    with pytest.raises(NonFiniteLossError, match=r"its pictures: 1, 0$"):
        trainer_with(StopOnNonFiniteLoss(tmp_path)).fit(OneWeight({0: float("nan")}), loader)


def test_of_batches_whose_gradients_are_added_up_the_bad_one_is_told(tmp_path: Path) -> None:
    class Third(OneWeight):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) + (float("nan") if batch_idx == 2 else 0)

    module = Third()
    with pytest.raises(NonFiniteLossError, match="at step 1 ") as caught:
        trainer_with(StopOnNonFiniteLoss(tmp_path), accumulate_grad_batches=2).fit(module, odd_data())
    pictures = [f"folder/picture {index}.png" for index in module.batches[2].image_ids.tolist()]
    assert str(caught.value).endswith(f"its pictures: {', '.join(pictures)}")
    saved = torch.load(tmp_path / "non_finite_batch.pt", weights_only=True)
    assert torch.equal(saved["batch"]["images"], module.batches[2].images)
    assert torch.equal(saved["state_dict"]["weight"], module.weight)
    assert module.weight.isfinite()


# --- repeating a bad step ---

PARTS = {
    "matcher": {"_target_": "ssd_lightning.BoxMatcher", "iou_threshold": 0.4},
    "loss": {"_target_": "ssd_lightning.MultiBoxLoss", "alpha": 2.0},
}


def detector(lr: float) -> SSDModule:
    """A module as ``ssd-train`` makes it."""
    torch.manual_seed(0)
    return SSDModule(
        instantiate(MODEL, _convert_="all"),
        matcher=instantiate(PARTS["matcher"]),
        loss=instantiate(PARTS["loss"]),
        optimizer=partial(torch.optim.SGD, lr=lr),
        lr_scheduler=constant,
        config={**CONFIG, "config": PARTS},
    )


def constant(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 1.0)


def stop_at_a_bad_loss(
    folder: Path, bananas: Path, module: SSDModule, *own: lightning.Callback, **settings: Any
) -> tuple[float, SSDModule, Batch, float]:
    """Return the loss that stopped a run, and the saved step with the loss of its repetition."""
    trainer = trainer_with(StopOnNonFiniteLoss(folder), *own, epochs=9, limit_val_batches=0, **settings)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(module, DetectionDataModule(Bananas(bananas), image_size=64, batch_size=4, num_workers=0))
    again, batch, autocast = load_non_finite_batch(folder / "non_finite_batch.pt")
    with autocast:
        loss = again.training_step(batch, 0)
    return float(re.search(r"got (\S+) at step", str(caught.value))[1]), again, batch, loss.item()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_loss_is_not_finite_again(tmp_path: Path, bananas: Path, precision: Any) -> None:
    _, again, batch, loss = stop_at_a_bad_loss(tmp_path, bananas, detector(lr=1e30), precision=precision)
    assert not math.isfinite(loss)
    assert all(parameter.isfinite().all() for parameter in again.parameters()), "the step was taken"
    assert detector(lr=0.1).training_step(batch, 0).isfinite(), "the weights are to blame, not the batch"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("waits", [False, True])
def test_all_that_decides_the_loss_is_saved(
    tmp_path: Path, bananas: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, waits: bool
) -> None:
    """A finite loss shows every difference: the repeated loss is equal to the last digit."""
    losses: list[float] = []

    def refuse_the_fifth(loss: float) -> bool:
        losses.append(loss)
        return len(losses) < 5

    monkeypatch.setattr(callbacks, "math", SimpleNamespace(isfinite=refuse_the_fifth))
    own = [HeadsFirst(epochs=9)] if waits else []
    expected, again, _, loss = stop_at_a_bad_loss(tmp_path, bananas, detector(0.1), *own, precision=precision)
    assert loss == expected == losses[-1]
    assert len(set(losses)) == 5
    assert again.model.head.training
    assert all(part.training != waits for part in again.model.backbone.children())


def test_a_checkpoint_is_no_bad_step(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint: .*non_finite_batch.*last\.ckpt"):
        load_non_finite_batch(tmp_path / "last.ckpt")


# --- a signal ---


@pytest.mark.parametrize(
    ("step", "number"),
    [(0, signal.SIGINT), (2, signal.SIGTERM), (BATCHES + 1, signal.SIGINT), (0, signal.SIGHUP), (1, signal.SIGUSR1)],
    ids=str,
)
def test_a_signal_ends_the_run_after_the_step_it_came_in(
    tmp_path: Path, handlers: dict[int, Any], number: signal.Signals, step: int
) -> None:
    path, module = tmp_path / "checkpoints" / "last.ckpt", OneWeight()
    with pytest.raises(StoppedBySignal, match=f"stopped by {number.name}; saved in .*last.ckpt"):
        trainer_with(Interrupt(step, number), StopOnSignal(path)).fit(module, odd_data())
    assert len(module.batches) == step + 1
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == step + 1
    assert torch.equal(saved["state_dict"]["weight"], module.weight)
    assert current_handlers() == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, number: signal.Signals) -> None:
    """``nohup`` ignores SIGHUP, and a shell ignores Ctrl-C for programs in the background."""
    signal.signal(number, signal.SIG_IGN)
    trainer = trainer_with(Interrupt(1, number), StopOnSignal(tmp_path / "last.ckpt"))
    trainer.fit(OneWeight(), odd_data())
    assert trainer.global_step == 2 * BATCHES
    assert signal.getsignal(number) is signal.SIG_IGN


def test_what_the_last_step_gives_to_other_callbacks_is_saved(tmp_path: Path) -> None:
    """The order of callbacks does not matter."""
    module = OneWeight()
    weights = [1.0]

    class Follow(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: OneWeight, *args: Any) -> None:
            weights.append(pl_module.weight.item())

    stop = StopOnSignal(tmp_path / "last.ckpt")
    with pytest.raises(StoppedBySignal):
        trainer_with(stop, Interrupt(2, signal.SIGTERM), AveragedWeights(0.5), Follow()).fit(module, odd_data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert len(weights) == 4
    assert float(saved["current_model_state"]["weight"]) == weights[3]
    assert float(saved["state_dict"]["weight"]) == pytest.approx(weights[1] / 4 + weights[2] / 4 + weights[3] / 2)


@pytest.mark.parametrize("epoch", [1, 2])
def test_validation_belongs_to_the_last_step_of_an_epoch(tmp_path: Path, handlers: dict[int, Any], epoch: int) -> None:
    """Validation runs and the best weights are kept before the run is saved, also in the last epoch."""
    module, steps = OneWeight(), epoch * BATCHES
    best = ModelCheckpoint(tmp_path, filename="best {epoch}", save_top_k=-1)
    with pytest.raises(StoppedBySignal):
        trainer_with(Interrupt(steps - 1, signal.SIGTERM), StopOnSignal(tmp_path / "last.ckpt"), best).fit(
            module, odd_data()
        )
    assert module.validated_after == [BATCHES, 2 * BATCHES][:epoch]
    assert (tmp_path / f"best epoch={epoch - 1}.ckpt").exists()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == steps
    assert current_handlers() == handlers


def test_gradients_that_are_added_up_are_waited_for(tmp_path: Path) -> None:
    module = OneWeight()
    with pytest.raises(StoppedBySignal):
        trainer_with(Interrupt(0, signal.SIGINT), StopOnSignal(tmp_path / "last.ckpt"), accumulate_grad_batches=3).fit(
            module, odd_data()
        )
    assert len(module.batches) == 3
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize(
    ("settings", "step", "validated_after"),
    [
        ({"val_check_interval": 2}, 1, [2]),  # counted in each epoch
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, 5, [3, 6]),  # counted over the whole run
    ],
)
def test_a_validation_within_the_epoch_is_not_lost(
    tmp_path: Path, settings: dict[str, Any], step: int, validated_after: list[int]
) -> None:
    """A run that gets a signal in the step before a validation makes the validation and one more step."""
    module = OneWeight()
    with pytest.raises(StoppedBySignal):
        trainer_with(Interrupt(step, signal.SIGINT), StopOnSignal(tmp_path / "last.ckpt"), **settings).fit(
            module, odd_data()
        )
    assert module.validated_after == validated_after
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step + 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_arrives_twice_is_one_request(tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(StoppedBySignal):
        trainer_with(Interrupt(1, number, number), StopOnSignal(tmp_path / "last.ckpt")).fit(OneWeight(), odd_data())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_second_ctrl_c_ends_the_run_at_once(
    tmp_path: Path, handlers: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssd_lightning.training.callbacks.IMPATIENCE", 0.0)
    raised = []

    class Listen(lightning.Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            raised.append(type(exception))

    module = OneWeight()
    stop = StopOnSignal(tmp_path / "last.ckpt")
    with pytest.raises(SystemExit):  # into which Lightning turns a KeyboardInterrupt
        trainer_with(Interrupt(1, signal.SIGINT, signal.SIGINT), stop, Listen()).fit(module, odd_data())
    assert raised == [KeyboardInterrupt]
    assert len(module.batches) == 2
    assert not (tmp_path / "last.ckpt").exists()
    assert current_handlers() == handlers


class Former(BaseException):
    """Exception of the handler from before the run."""


def former(number: int, frame: object) -> None:
    raise Former(number)


class DuringValidation(lightning.Callback):
    """Sends a signal in the middle of a validation."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_validation_batch_start(self, *args: Any) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("method", ["fit", "validate"])
def test_before_and_after_training_signals_do_what_they_did(
    tmp_path: Path, number: signal.Signals, method: str
) -> None:
    """The signal arrives in the sanity check, or while weights are scored."""
    signal.signal(number, former)
    trainer = trainer_with(StopOnSignal(tmp_path / "last.ckpt"), DuringValidation(number), num_sanity_val_steps=1)
    with pytest.raises(Former):
        getattr(trainer, method)(OneWeight(), odd_data())
    assert not trainer.received_sigterm, "Lightning's own handler makes the ranks wait for each other"
    assert signal.getsignal(number) is former
    assert not (tmp_path / "last.ckpt").exists()


def test_a_second_ctrl_c_does_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd_lightning.training.callbacks.IMPATIENCE", 0.0)
    signal.signal(signal.SIGINT, former)
    module = OneWeight()
    with pytest.raises(Former):
        trainer_with(Interrupt(1, signal.SIGINT, signal.SIGINT), StopOnSignal(tmp_path / "last.ckpt")).fit(
            module, odd_data()
        )
    assert len(module.batches) == 2
    assert not (tmp_path / "last.ckpt").exists()


def fail(trainer: Any) -> None:
    raise RuntimeError("something else")


def nothing(trainer: Any) -> None: ...


@pytest.mark.parametrize(("during", "error"), [(nothing, None), (fail, "something else")])
def test_afterwards_signals_are_handled_as_before(
    tmp_path: Path, handlers: dict[int, Any], during: Callable[[Any], None], error: str | None
) -> None:
    """Lightning's handler would otherwise stay, and swallow the SIGTERM that is to end the process."""
    seen = []

    class During(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            seen.append(current_handlers())
            during(trainer)

    trainer = trainer_with(StopOnSignal(tmp_path / "last.ckpt"), During())
    if error is None:
        trainer.fit(OneWeight(), odd_data())
        assert trainer.global_step == 2 * BATCHES
    else:
        with pytest.raises(RuntimeError, match=error):
            trainer.fit(OneWeight(), odd_data())
    assert all(seen[0][number] != handler for number, handler in handlers.items())
    assert current_handlers() == handlers
    assert not (tmp_path / "last.ckpt").exists()


def test_the_same_callback_serves_the_next_run(tmp_path: Path) -> None:
    stop = StopOnSignal(tmp_path / "last.ckpt")
    with pytest.raises(StoppedBySignal):
        trainer_with(Interrupt(0, signal.SIGINT), stop).fit(OneWeight(), odd_data())
    trainer = trainer_with(stop)
    trainer.fit(OneWeight(), odd_data())
    assert trainer.global_step == 2 * BATCHES


# --- a checkpoint every few steps ---


@pytest.mark.parametrize(
    ("every", "settings", "expected"),
    [
        (1, {}, [1, 2, 3, 5, 6, 7]),
        (3, {}, [3, 6]),
        (BATCHES, {}, []),  # the steps that validation follows
        (1, {"check_val_every_n_epoch": 2}, [1, 2, 3, 5, 6, 7]),
        (1, {"val_check_interval": 3}, [1, 2, 5, 6]),
        (1, {"val_check_interval": 3, "check_val_every_n_epoch": None}, [1, 2, 5, 7]),
        (1, {"accumulate_grad_batches": 2}, [1, 3]),
        (1, {"accumulate_grad_batches": 3}, [1, 3]),
    ],
)
def test_steps_that_are_saved(tmp_path: Path, every: int, settings: dict[str, Any], expected: list[int]) -> None:
    saving = SaveEverySteps(every, dirpath=tmp_path, filename="{step}", save_top_k=-1)
    trainer_with(saving, **settings).fit(OneWeight(), odd_data())
    steps = sorted(torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("*.ckpt"))
    assert steps == expected


def test_a_number_of_steps_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="every_n_train_steps: expected a whole number of at least 1, got 0"):
        SaveEverySteps(0)
