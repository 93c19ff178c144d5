"""Runs resumed from checkpoints that are whole files, but hold something else than the run needs."""

import copy
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import STEPS, make_data, make_module, make_trainer

from ssd_lightning.training.callbacks import RunCheckpoint
from ssd_lightning.training.resuming import errors_of_restoring_named

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
)

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


def trainer_in(folder: Path, epochs: int) -> Any:
    best = RunCheckpoint(folder / "own", filename="own", monitor="val/map_50", mode="max", enable_version_counter=False)
    return make_trainer(folder, best, epochs=epochs)


def resumed(path: Path, bananas: Path, folder: Path, optimizer: MakeOptimizer = ADAMW) -> int:
    """Resume a run of one epoch for a second epoch, and return the number of its steps."""
    trainer = trainer_in(folder, epochs=2)
    with errors_of_restoring_named(path):
        trainer.fit(make_module(optimizer=optimizer), make_data(bananas), ckpt_path=path, weights_only=True)
    return trainer.global_step


@pytest.fixture(scope="module")
def make_checkpoint(bananas: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[MakeOptimizer], Path]:
    def make(optimizer: MakeOptimizer) -> Path:
        folder = tmp_path_factory.mktemp("run")
        trainer_in(folder, epochs=1).fit(make_module(optimizer=optimizer), make_data(bananas))
        return folder / "checkpoints" / "last.ckpt"

    return make


@pytest.fixture(scope="module")
def content(make_checkpoint: Callable[[MakeOptimizer], Path]) -> dict[str, Any]:
    return torch.load(make_checkpoint(ADAMW), weights_only=True)


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adamw": ADAMW,
    "amsgrad": partial(ADAMW, amsgrad=True),
    "sgd": SGD,
    "sgd without momentum": partial(torch.optim.SGD, lr=1e-3),
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,  # Its states have other shapes than the weights.
    "fused": partial(ADAMW, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes(
    bananas: Path, tmp_path: Path, make_checkpoint: Callable[[MakeOptimizer], Path], name: str
) -> None:
    path = make_checkpoint(OPTIMIZERS[name])
    assert resumed(path, bananas, tmp_path, OPTIMIZERS[name]) == 2 * STEPS


def states(content: dict[str, Any]) -> list[dict[str, Any]]:
    return list(content["optimizer_states"][0]["state"].values())


def group(content: dict[str, Any]) -> dict[str, Any]:
    return content["optimizer_states"][0]["param_groups"][0]


def of_run_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    [key] = [key for key in content["callbacks"] if key.startswith("RunCheckpoint")]
    return content["callbacks"][key]


def other_shapes(content: dict[str, Any]) -> None:
    for state in states(content):
        state["exp_avg"] = torch.zeros(3, 1)


def with_sgd(content: dict[str, Any]) -> None:
    content["optimizer_states"] = [SGD(make_module().model.parameters()).state_dict()]


def with_fewer_weights(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["params"].pop()


def with_garbage_for_callbacks(content: dict[str, Any]) -> None:
    content["callbacks"] = dict.fromkeys(content["callbacks"], 5)


def total(content: dict[str, Any]) -> dict[str, Any]:
    return content["loops"]["fit_loop"]["epoch_progress"]["total"]


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "shapes of another optimizer": other_shapes,
    "another optimizer": with_sgd,
    "fewer weights in the optimizer": with_fewer_weights,
    "a moment is missing": lambda content: [state.pop("exp_avg") for state in states(content)],
    "no optimizer": lambda content: content.update(optimizer_states=[]),
    "text for the optimizer": lambda content: content.update(optimizer_states="garbage"),
    "a number for the optimizer": lambda content: content.update(optimizer_states=[5]),
    "empty loops": lambda content: content.update(loops={}),
    "text for the loops": lambda content: content.update(loops="garbage"),
    "an empty loop": lambda content: content.update(loops={"fit_loop": {}}),
    "a list for a loop": lambda content: content.update(loops={"fit_loop": [1]}),
    "text for a count": lambda content: total(content).update(completed="many"),
    "a negative count": lambda content: total(content).update(completed=-1),
    "a count is missing": lambda content: total(content).pop("ready"),
    "text for the callbacks": lambda content: content.update(callbacks="garbage"),
    "a list for the callbacks": lambda content: content.update(callbacks=[1, 2]),
    "numbers for the callbacks": with_garbage_for_callbacks,
    "text for a score": lambda content: of_run_checkpoint(content).update(best_model_score="high"),
    "text for all scores": lambda content: of_run_checkpoint(content).update(best_k_models="high"),
    "other files with scores": lambda content: of_run_checkpoint(content).update(
        best_k_models={"a": torch.tensor(1.0)}
    ),
    "no schedule": lambda content: content.update(lr_schedulers=[]),
    "the schedule is missing": lambda content: content.pop("lr_schedulers"),
    "text for the schedule": lambda content: content.update(lr_schedulers=["garbage"]),
    "an empty schedule": lambda content: content.update(lr_schedulers=[{}]),
    "a schedule at another step": lambda content: content["lr_schedulers"][0].update(last_epoch=10**9),
    "a list for a count of the schedule": lambda content: content["lr_schedulers"][0].update(_step_count=[1]),
    "NaN for a rate of the schedule": lambda content: content["lr_schedulers"][0].update(base_lrs=[math.nan]),
    "NaN in a moment": lambda content: states(content)[3]["exp_avg"].view(-1)[0].fill_(math.nan),
    "infinity in a moment": lambda content: states(content)[3]["exp_avg_sq"].view(-1)[0].fill_(math.inf),
    "NaN for a setting": lambda content: group(content).update(betas=(math.nan, 0.9)),
    "another setting": lambda content: group(content).update(weight_decay=0.5),
    "a negative learning rate": lambda content: group(content).update(lr=-1e-3),
    "no epoch": lambda content: content.pop("epoch"),
    "text for the step": lambda content: content.update(global_step="last"),
    "no callbacks": lambda content: content.pop("callbacks"),
    "null for the callbacks": lambda content: content.update(callbacks=None),
    "a number among the weights": lambda content: content["state_dict"].update({5: torch.zeros(1)}),
    "text for the position in the epoch": lambda content: content.update(DetectionDataModule="garbage"),
    "text for the epoch": lambda content: content["DetectionDataModule"].update(epoch="first"),
    "a number for the version": lambda content: content.update({"pytorch-lightning_version": 5}),
    "text for the version": lambda content: content.update({"pytorch-lightning_version": "garbage"}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_in_one_line(
    bananas: Path, tmp_path: Path, content: dict[str, Any], name: str
) -> None:
    damaged = copy.deepcopy(content)
    DAMAGES[name](damaged)
    path = tmp_path / "damaged.ckpt"
    torch.save(damaged, path)
    with pytest.raises(ValueError, match=r"^checkpoint: expected ") as caught:
        resumed(path, bananas, tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 450


def test_errors_after_the_restoring_are_not_about_the_file(
    bananas: Path, tmp_path: Path, content: dict[str, Any]
) -> None:
    path = tmp_path / "whole.ckpt"
    torch.save(content, path)

    class Fails(RunCheckpoint):
        def on_train_batch_end(self, *arguments: Any, **settings: Any) -> None:
            raise KeyError("a fault of the callback")

    trainer = make_trainer(tmp_path, Fails(tmp_path), epochs=2)
    with pytest.raises(KeyError, match="a fault of the callback"), errors_of_restoring_named(path):
        trainer.fit(make_module(), make_data(bananas), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize("file", ["last.ckpt", "best.ckpt"])
def test_the_command_ends_in_one_line(run, trained, tmp_path: Path, file: str) -> None:
    """The best checkpoint is read again at the end of the run."""
    shutil.copytree(trained.folder, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / file
    damaged = torch.load(path, weights_only=True)
    damaged["state_dict"][5] = torch.zeros(1)
    torch.save(damaged, path)
    outcome = run("ssd-train", f"resume={tmp_path / 'run'}")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-train: checkpoint: expected weights by name")
    assert str(path) in outcome.message
