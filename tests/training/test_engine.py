"""Averaged weights, waiting backbones, debugging, clipping and learning rates, by callbacks and by the command line."""

import math
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from run_folder import COMPLETE, files_of, summary_of
from small_training import BATCH_SIZE, STEPS, Crash, Signal, assert_same_run, make_data, make_module, make_trainer
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from ssd_lightning.data.bananas.dataset import Bananas
from ssd_lightning.data.overfit import OverfitData
from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.run_folder import read_metrics
from ssd_lightning.scoring.stored_detections import load_detections
from ssd_lightning.training.callbacks import AveragedWeights, HeadsFirst, SaveEverySteps, StoppedBySignal
from ssd_lightning.training.checkpoint import load_detector
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.parameter_groups import ParameterGroups
from ssd_lightning.training.schedules import constant

pytestmark = [
    pytest.mark.usefixtures("empty_figures"),
    pytest.mark.filterwarnings(
        "ignore::UserWarning:lightning", "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*"
    ),
]


@pytest.fixture
def composed():
    """The config of ``ssd-train`` with these arguments."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            return compose("train", list(overrides))

    return compose_with


# --- averaged weights ---


class Follow(lightning.Callback):
    """Records the weights after each step, and those that are validated."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.states.append(deepcopy(pl_module.state_dict()))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(deepcopy(pl_module.state_dict()))


def average(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The average in float64 as a sum over all steps. Before the first step, the weights are taken as constant."""
    shares = [decay ** (len(states) - 1)]
    shares += [(1 - decay) * decay ** (len(states) - 1 - step) for step in range(1, len(states))]
    assert sum(shares) == pytest.approx(1)
    return {
        name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
        for name in states[0]
        if states[0][name].is_floating_point()
    }


def assert_average(state: dict[str, Tensor], states: list[dict[str, Tensor]], decay: float) -> None:
    for name, expected in average(states, decay).items():
        torch.testing.assert_close(state[name].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def averaged(bananas: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Follow, dict[str, Tensor]]:
    """The folder of a run, its recorded weights, and the weights of the module at its end."""
    folder, follow, module = tmp_path_factory.mktemp("averaged"), Follow(), make_module()
    trainer = make_trainer(folder, follow, AveragedWeights(0.75), every_step(folder))
    trainer.fit(module, make_data(bananas), weights_only=True)
    return folder, follow, deepcopy(module.state_dict())


def every_step(folder: Path) -> ModelCheckpoint:
    return SaveEverySteps(1, dirpath=folder / "steps", filename="{step}", save_top_k=-1)


def test_what_is_validated_is_the_average(averaged: tuple[Path, Follow, dict[str, Tensor]]):
    _, follow, end = averaged
    assert len(follow.states) == 3 * STEPS
    assert len(follow.validated) == 3
    for epoch, state in enumerate(follow.validated, 1):
        assert_average(state, follow.states[: epoch * STEPS], 0.75)
    weight = "model.head.classification.0.weight"
    assert not torch.allclose(follow.validated[0][weight], follow.states[STEPS - 1][weight], atol=1e-5)
    assert_average(end, follow.states, 0.75)


def test_checkpoints_have_the_average_and_what_is_needed_to_go_on(averaged: tuple[Path, Follow, dict[str, Tensor]]):
    folder, follow, _ = averaged
    paths = [folder / "steps" / f"step={step}.ckpt" for step in (1, 2, 4, 8)]
    for path in [folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt", *paths]:
        content = torch.load(path, weights_only=True)
        states = follow.states[: content["global_step"]]
        assert_average(content["state_dict"], states, 0.75)
        assert list(content["state_dict"]) == list(states[-1])
        for name, tensor in content["current_model_state"].items():
            assert torch.equal(tensor, states[-1][name]), name


def test_other_weights_can_be_validated_afterwards(bananas: Path, tmp_path: Path):
    """The trainer of the run validates other weights, as ssd-train does with the best ones."""
    trainer, module, data, follow = (
        make_trainer(tmp_path, AveragedWeights(), epochs=1),
        make_module(),
        make_data(bananas),
        Follow(),
    )
    trainer.fit(module, data)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    other = {name: tensor + 1 for name, tensor in best.items()}
    module.load_state_dict(other)
    trainer.callbacks.append(follow)
    trainer.validate(module, data, verbose=False)
    for name, tensor in other.items():
        assert torch.equal(follow.validated[0][name], tensor)


@pytest.mark.parametrize(
    "interruptions",
    [[Signal, 0], [Signal, STEPS - 1], [Signal, STEPS + 1], [Crash, STEPS + 1], [Signal, 3 * STEPS - 1]],
    ids=["first step", "end of an epoch", "mid-epoch", "crash", "last step"],
)
def test_an_interrupted_average_goes_on(
    bananas: Path, tmp_path: Path, averaged: tuple[Path, Follow, dict[str, Tensor]], interruptions: list[Any]
):
    kind, step = interruptions
    with pytest.raises((StoppedBySignal, ConnectionError)):
        make_trainer(tmp_path, kind(step), AveragedWeights(0.75)).fit(make_module(), make_data(bananas))
    module = make_module()
    make_trainer(tmp_path, AveragedWeights(0.75)).fit(
        module, make_data(bananas), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True
    )
    folder, _, end = averaged
    for name, tensor in end.items():
        assert torch.equal(module.state_dict()[name], tensor), name
    (found, expected) = (torch.load(f / "checkpoints" / "best.ckpt", weights_only=True) for f in (tmp_path, folder))
    assert found["global_step"] == expected["global_step"]
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert list(found[key]) == list(expected[key])
        assert all(torch.equal(found[key][name], tensor) for name, tensor in expected[key].items())
    assert (tmp_path / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()


def test_what_does_not_change_stays_in_the_average_to_the_bit(bananas: Path, tmp_path: Path):
    """Default boxes, frozen layers and frozen batch norms, of a backbone with its own way to copy itself."""
    torch.manual_seed(0)
    backbone = TorchvisionFeatures("resnet18", ["layer2", "layer3", "layer4"])
    for layer in backbone.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2]] * 5)
    model = SSD(backbone, boxes, 1, 128, frozen_until="body.layer1", frozen_batch_norm=True)
    module = SSDModule(model)
    before, default_boxes = deepcopy(module.state_dict()), model.default_boxes.clone()
    norms = [name for name, layer in module.named_modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert len(norms) == 20
    fixed = [f"{name}.{key}" for name in norms for key in ("weight", "bias", "running_mean", "running_var")]
    fixed += [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert "model.backbone.body.layer1.1.conv2.weight" in fixed
    data = make_data(bananas)
    data.image_size = (128, 128)
    make_trainer(tmp_path, AveragedWeights(0.9), epochs=1).fit(module, data)
    state = module.state_dict()
    for name in fixed:
        assert torch.equal(state[name], before[name]), name
    assert torch.equal(model.default_boxes, default_boxes)
    assert not torch.equal(
        state["model.backbone.body.layer4.1.conv2.weight"], before["model.backbone.body.layer4.1.conv2.weight"]
    )


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_large"])
def test_a_copy_of_a_backbone_is_in_the_mode_of_the_original(network: str, mode: bool):
    nodes = {"resnet18": ["layer2", "layer3", "layer4"], "mobilenet_v3_large": ["features.13.block.0", "features.16"]}
    backbone = TorchvisionFeatures(network, nodes[network], lift=[8] * len(nodes[network])).train(mode)
    next(layer for layer in backbone.body.modules() if isinstance(layer, torch.nn.BatchNorm2d)).eval()
    copy = deepcopy(backbone)
    modes, expected = ({name: layer.training for name, layer in b.named_modules()} for b in (copy, backbone))
    assert modes == expected
    assert list(copy.state_dict()) == list(backbone.state_dict())
    assert not {id(p) for p in copy.parameters()} & {id(p) for p in backbone.parameters()}
    images = torch.rand(2, 3, 64, 64)
    for found, original in zip(copy(images), backbone(images), strict=True):
        torch.testing.assert_close(found, original)
    for found, original in zip(copy.train(not mode)(images), backbone.train(not mode)(images), strict=True):
        torch.testing.assert_close(found, original)


@pytest.mark.parametrize("decay", [-0.1, 1, float("nan")])
def test_decay_is_a_share(decay: float):
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\), got"):
        AveragedWeights(decay)


# --- the backbone later ---


@pytest.mark.parametrize("when", [{"epochs": 1}, {"steps": 4}], ids=str)
def test_the_backbone_waits_and_joins(bananas: Path, tmp_path: Path, when: dict[str, int]):
    follow = Follow()
    module = make_module(
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=0.1),
        parameter_groups=ParameterGroups(backbone_lr_factor=0.5, decay_norms_and_biases=False),
    )
    before = deepcopy(module.state_dict())
    make_trainer(tmp_path, HeadsFirst(**when), follow).fit(module, make_data(bananas))
    waits = when.get("steps", STEPS)
    learning = ["model.head.classification.0.weight", "model.head.localization.0.bias"]
    for step, state in enumerate(follow.states):
        moved = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
        assert set(learning) <= moved
        of_backbone = {name for name in moved if name.startswith("model.backbone.")}
        if step < waits:
            assert not of_backbone
        else:
            for kind in ("0.weight", "1.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"):
                assert f"model.backbone.levels.0.0.{kind}" in of_backbone


def test_new_layers_of_a_backbone_do_not_wait(bananas: Path, tmp_path: Path):
    torch.manual_seed(0)
    backbone = TorchvisionFeatures("resnet18", ["layer2", "layer3", "layer4"], lift=[8, 8, 8])
    boxes = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2]] * 5)
    module, data = SSDModule(SSD(backbone, boxes, 1, 128)), make_data(bananas)
    data.image_size = (128, 128)
    before = deepcopy(module.state_dict())
    make_trainer(tmp_path, HeadsFirst(epochs=1), epochs=1).fit(module, data)
    moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in moved if name.startswith("model.backbone.body.")}
    assert {name for name in before if name.startswith("model.backbone.lift.0.")} <= moved


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS + 1])
def test_an_interrupted_wait_goes_on(bananas: Path, tmp_path: Path, step: int):
    folders = [tmp_path / "undisturbed", tmp_path / "resumed"]
    last = folders[1] / "checkpoints" / "last.ckpt"
    with pytest.raises(StoppedBySignal):
        make_trainer(folders[1], Signal(step), HeadsFirst(steps=4)).fit(make_module(), make_data(bananas))
    for folder, checkpoint in zip(folders, (None, last), strict=True):
        trainer = make_trainer(folder, HeadsFirst(steps=4))
        trainer.fit(make_module(), make_data(bananas), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(folder / "end.ckpt")
    assert_same_run(folders[1], folders[0])


@pytest.mark.parametrize("arguments", [{}, {"epochs": 1, "steps": 1}])
def test_the_wait_is_in_epochs_or_in_steps(arguments: dict[str, int]):
    with pytest.raises(ValueError, match=r"epochs, steps: .* got epochs="):
        HeadsFirst(**arguments)


# --- looking for what is wrong ---

QUICK = [
    "data=banana",
    "model.image_size=64",
    "batch_size=4",
    "num_workers=0",
    "trainer=cpu",
    "trainer.precision=32-true",
    "hydra.run.dir=run",
]


class TestDebug:
    @pytest.mark.parametrize("option", ["fast", "profile", "limit"])
    def test_the_run_folder_is_complete(self, run, bananas: Path, tmp_path: Path, option: str):
        more = ["trainer.limit_val_batches=0.5", "trainer.limit_train_batches=0.5"] if option == "limit" else []
        outcome = run(
            "ssd-train",
            *QUICK,
            f"data.root={bananas}",
            "batch_size=2",
            "trainer.max_epochs=1",
            f"debug={option}",
            *more,
        )
        assert outcome.exit_code == 0, outcome.error
        assert files_of(tmp_path / "run") >= COMPLETE
        summary = summary_of(tmp_path / "run")
        assert summary["name"] == f"debug_{option}"
        assert summary["steps"] == {"fast": 1, "profile": 6, "limit": 3}[option]
        stored = load_detections(tmp_path / "run" / "detections.npz")
        # Pictures that nobody has scored would be counted, and drawn without objects.
        assert len(stored.paths) == summary["val_pictures"] == {"fast": 2, "profile": 4, "limit": 2}[option]
        scored = stored.objects.image_ids
        assert len(scored) == {"fast": 2, "profile": 4, "limit": 2}[option]

    def test_profile_tells_how_long_each_part_of_a_step_took(self, run, bananas: Path, tmp_path: Path):
        assert run("ssd-train", *QUICK, f"data.root={bananas}", "debug=profile").exit_code == 0
        table = (tmp_path / "run" / "fit-profile.txt").read_text()
        for action in ("run_training_batch", "train_dataloader_next", "backward", "optimizer_step"):
            assert action in table

    @pytest.mark.slow
    def test_overfit_knows_its_pictures_by_heart(self, run, bananas: Path, tmp_path: Path):
        steps = ["trainer.max_steps=100", "trainer.check_val_every_n_epoch=50"]
        outcome = run("ssd-train", *QUICK, f"data.root={bananas}", "debug=overfit", *steps)
        assert outcome.exit_code == 0, outcome.error
        assert files_of(tmp_path / "run") >= COMPLETE
        summary = summary_of(tmp_path / "run")
        assert summary["scores"]["val/map_50"] >= 0.95
        assert (summary["steps"], summary["train_pictures"], summary["val_pictures"]) == (100, 4, 4)
        stored = load_detections(tmp_path / "run" / "detections.npz")
        expected = [bananas / "bananas_train" / "images" / f"{number}.png" for number in range(4)]
        assert [Path(path) for path in stored.paths] == expected

    def test_overfit_needs_a_picture(self, run, bananas: Path, tmp_path: Path):
        outcome = run("ssd-train", *QUICK, f"data.root={bananas}", "overfit_pictures=0")
        assert outcome.exit_code == 1
        told = "ssd-train: overfit_pictures: expected a whole number of at least 1, got 0"
        assert outcome.error.strip().splitlines()[-1] == told
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    def test_recipes_can_be_tried(self, run, bananas: Path, tmp_path: Path):
        outcome = run(
            "ssd-train", "experiment=ssd300_vgg16_voc0712", "debug=fast", "data=banana", f"data.root={bananas}",
            "backbone.weights=null", "trainer=cpu", "trainer.precision=32-true", "hydra.run.dir=run",
        )  # fmt: skip
        assert outcome.exit_code == 0, outcome.error
        assert files_of(tmp_path / "run") >= COMPLETE
        assert summary_of(tmp_path / "run")["default_boxes"] == 8732

    def test_debug_has_the_last_word(self, composed):
        config = composed("debug=overfit", "experiment=ssd300_vgg16_voc0712")
        assert config.trainer.max_steps == 300
        assert config.trainer.check_val_every_n_epoch == 50
        assert config.overfit_pictures == config.batch_size == 32
        assert "windows" not in config.augmentation
        assert config.backbone._target_.endswith("VGG16")


def test_the_first_pictures_are_trained_and_scored_on(bananas: Path):
    data = OverfitData(Bananas(bananas), 3)
    data.prepare()
    everything = Bananas(bananas).train()
    for pictures in (data.train(), data.val()):
        assert list(pictures.paths) == list(everything.paths)[:3]
        assert len(pictures) == 3
        for index in range(3):
            for found, expected in zip(pictures[index], everything[index], strict=True):
                assert np.array_equal(found, expected)
            assert np.array_equal(pictures.image(index), everything.image(index))
            assert np.array_equal(pictures.truth(index).boxes, everything.truth(index).boxes)
    assert len(OverfitData(Bananas(bananas), 100).train()) == 12
    assert data.classes == ("banana",)


# --- optimizers, schedules, clipping, by the command line ---


class Recorder(torch.optim.SGD):
    """Records its gradients and its learning rates."""

    gradients: ClassVar[list[list[Tensor]]] = []
    rates: ClassVar[list[float]] = []

    def step(self, *args: Any, **settings: Any) -> Any:
        result = super().step(*args, **settings)  # the closure computes them
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        Recorder.gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        Recorder.rates.append(self.param_groups[0]["lr"])
        return result


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """The class without records of other tests."""
    monkeypatch.setattr(Recorder, "gradients", [])
    monkeypatch.setattr(Recorder, "rates", [])
    return Recorder


def norm(gradients: list[Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def largest(gradients: list[Tensor]) -> float:
    return max(gradient.abs().max().item() for gradient in gradients)


def test_gradients_are_clipped_by_lightnings_own_keys(
    composed, bananas: Path, tmp_path: Path, recorder: type[Recorder]
):
    def gradients_with(*arguments: str) -> list[list[Tensor]]:
        recorder.gradients = []
        settings = composed("trainer=cpu", *arguments).trainer
        clipping = {key: value for key, value in settings.items() if key.startswith("gradient_clip")}
        module = make_module(optimizer=lambda parameters: recorder(parameters, 0.01))
        make_trainer(tmp_path, epochs=1, **clipping).fit(module, make_data(bananas))
        return recorder.gradients

    free = gradients_with()
    assert min(map(largest, free)) > 0.02
    by_value = gradients_with("+trainer.gradient_clip_val=0.01", "+trainer.gradient_clip_algorithm=value")
    for expected, found in zip(free[0], by_value[0], strict=True):
        torch.testing.assert_close(found, expected.clamp(-0.01, 0.01))
    assert [largest(gradients) for gradients in by_value] == pytest.approx([0.01] * STEPS)
    by_norm = gradients_with("+trainer.gradient_clip_val=0.1")
    for expected, found in zip(free[0], by_norm[0], strict=True):
        torch.testing.assert_close(found, expected * 0.1 / norm(free[0]), rtol=1e-3, atol=1e-8)
    assert [norm(gradients) for gradients in by_norm] == pytest.approx([0.1] * STEPS, rel=1e-3)


def cosine(step: int, total: int) -> float:
    return 0.01 + 0.99 * (1 + math.cos(math.pi * step / total)) / 2


def one_cycle(step: int, total: int) -> float:
    rising = 0.1 * total
    if step < rising:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rising)) / 2
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (step - rising) / (total - 1 - rising))) / 2


def multistep(step: int, total: int) -> float:
    return 1.0 if step < total * 2 / 3 else 0.1 if step < total * 5 / 6 else 0.01


@pytest.mark.parametrize(
    ("option", "factor"),
    [
        ("warmup_cosine", cosine),
        ("warmup_multistep", multistep),
        ("one_cycle", one_cycle),
        ("constant", lambda step, total: 1.0),
    ],
)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_schedules_go_by_steps_of_the_optimizer(
    composed, bananas: Path, tmp_path: Path, recorder: type[Recorder], option: str, factor: Any, accumulated: int
):
    """An epoch of three batches with two accumulated has two steps, since Lightning ends an epoch with a step."""
    schedule = instantiate(composed(f"lr_scheduler={option}").lr_scheduler, _convert_="all")
    module = make_module(optimizer=lambda parameters: recorder(parameters, 0.5), lr_scheduler=schedule)
    trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulated, check_val_every_n_epoch=3)
    trainer.fit(module, make_data(bananas))
    total = {1: 9, 2: 6}[accumulated]
    assert trainer.global_step == total
    assert recorder.rates == pytest.approx([0.5 * factor(step, total) for step in range(total)])
    logged = [row["lr-Recorder"] for row in read_metrics(tmp_path / "metrics.csv").values() if "lr-Recorder" in row]
    assert logged == pytest.approx(recorder.rates)


@pytest.mark.slow
def test_accumulated_batches_and_rates_by_the_command_line(
    run, bananas: Path, tmp_path: Path, recorder: type[Recorder]
):
    """A step has 2 batches of 2 pictures, and the learning rate is meant for 16 pictures."""
    outcome = run(
        "ssd-train", *QUICK, f"data.root={bananas}", "batch_size=2", "+trainer.accumulate_grad_batches=2",
        "trainer.max_epochs=2", "lr_scheduler=one_cycle", "lr_reference_batch=16",
        "optimizer=sgd_plain", f"optimizer._target_={__name__}.Recorder", "optimizer.lr=0.01",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    assert summary_of(tmp_path / "run")["steps"] == 6
    assert recorder.rates == pytest.approx([0.0025 * one_cycle(step, 6) for step in range(6)])


@pytest.mark.parametrize(("reference", "expected"), [(None, 0.5), (32, 0.125), (8, 0.5), (4, 1.0)])
def test_rates_are_meant_for_a_number_of_pictures(
    bananas: Path, tmp_path: Path, recorder: type[Recorder], reference: int | None, expected: float
):
    """8 in a step, of which 4 at a time."""
    module = make_module(
        optimizer=lambda parameters: recorder(parameters, 0.5), lr_scheduler=constant, lr_reference_batch=reference
    )
    make_trainer(tmp_path, epochs=1, accumulate_grad_batches=2).fit(module, make_data(bananas))
    assert recorder.rates == [expected] * 2


def test_groups_and_schedules_keep_their_proportions(bananas: Path, tmp_path: Path):
    module = make_module(
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.5),
        parameter_groups=ParameterGroups(backbone_lr_factor=0.1),
        lr_scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        lr_reference_batch=BATCH_SIZE * 2,
    )
    make_trainer(tmp_path, epochs=1).fit(module, make_data(bananas))
    rows = read_metrics(tmp_path / "metrics.csv").values()
    assert [row["lr-SGD/weights"] for row in rows] == pytest.approx([0.25, 0.125, 0.0625])
    assert [row["lr-SGD/backbone"] for row in rows] == pytest.approx([0.025, 0.0125, 0.00625])


def test_a_reference_batch_has_a_picture():
    with pytest.raises(ValueError, match="lr_reference_batch: expected a whole number of at least 1, got 0"):
        make_module(lr_reference_batch=0)


@pytest.mark.parametrize(
    ("arguments", "kind", "settings"),
    [
        (["optimizer=sgd"], torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}),
        (["optimizer=adamw"], torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 5e-4}),
        (["optimizer=adamw", "+optimizer.betas=[0.8,0.9]"], torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        (["optimizer._target_=torch.optim.RMSprop", "+optimizer.alpha=0.9"], torch.optim.RMSprop, {"alpha": 0.9}),
        (["optimizer._target_=torch.optim.NAdam"], torch.optim.NAdam, {"weight_decay": 5e-4}),
    ],
)
def test_any_optimizer_by_its_path(composed, arguments: list[str], kind: type, settings: dict[str, Any]):
    optimizer = instantiate(composed(*arguments).optimizer, _convert_="all")([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is kind
    for name, value in settings.items():
        assert optimizer.param_groups[0][name] == value


def test_another_optimizer_trains(run, bananas: Path, tmp_path: Path):
    arguments = ["optimizer._target_=torch.optim.RMSprop", "trainer.max_epochs=1"]
    outcome = run("ssd-train", *QUICK, f"data.root={bananas}", *arguments)
    assert outcome.exit_code == 0, outcome.error
    [state] = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert "square_avg" in state["state"][0]


# --- callbacks, by the command line ---


@pytest.mark.slow
def test_options_of_callbacks_go_together(run, bananas: Path, tmp_path: Path):
    outcome = run(
        "ssd-train", *QUICK, f"data.root={bananas}", "trainer.max_epochs=3", "trainer.log_every_n_steps=1",
        "callbacks=[ema,every_n_steps,early_stopping,heads_first]", "+callbacks.average.decay=0.5",
        "callbacks.steps.every_n_train_steps=2",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    folder = tmp_path / "run"
    best = folder / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    detector = load_detector(best)
    head = "head.classification.0.weight"
    assert not torch.equal(content["current_model_state"][f"model.{head}"], content["state_dict"][f"model.{head}"])
    for name, tensor in detector.model.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][f"model.{name}"])
    summary = summary_of(folder)
    rows = read_metrics(folder / "metrics.csv")
    validated = [row for row in rows.values() if "val/map_50" in row]
    assert summary["scores"]["val/map_50"] == max(row["val/map_50"] for row in validated)
    assert summary["scores"]["val/loss"] in [row["val/loss"] for row in validated]


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_gets_no_better(run, bananas: Path, tmp_path: Path):
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2"]
    # No score is better than the first by more than the greatest score that there is.
    arguments = ["trainer.max_epochs=9", *stopping, "++callbacks.early_stopping.min_delta=1"]
    outcome = run("ssd-train", *QUICK, f"data.root={bananas}", *arguments)
    assert outcome.exit_code == 0, outcome.error
    rows = read_metrics(tmp_path / "run/metrics.csv")
    scores = [row["val/map_50"] for row in rows.values() if "val/map_50" in row]
    assert len(scores) == 1 + 2


# --- compiled, and on several devices ---


COMPILED = """if True:
    import torch
    from ssd_lightning.cli.commands import train

    original = torch.nn.Module.compile
    # Traces forward and backward as a compiler gets them, and needs none.
    torch.nn.Module.compile = lambda self: original(self, backend="aot_eager")
    train()
"""


@pytest.mark.slow
def test_a_compiled_network_trains_and_its_checkpoint_is_an_ordinary_one(bananas: Path, tmp_path: Path):
    """The training is a process of its own, because the shape checks of the tests cannot be compiled."""
    for compiled in ("false", "true"):
        arguments = [*QUICK, f"data.root={bananas}", "optimizer=sgd", "callbacks=ema", "trainer.max_epochs=1"]
        done = subprocess.run(
            [sys.executable, "-c", COMPILED, *arguments, f"compile={compiled}", f"hydra.run.dir=run_{compiled}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    paths = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("run_false", "run_true")]
    plain, compiled = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert list(compiled) == list(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-2, atol=1e-3)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert load_detector(paths[1]).model(images).logits.shape == (1, 344, 2)


@pytest.mark.slow
def test_compiling_is_asked_of_the_network_alone(run, bananas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: compiled.append(type(self)))
    arguments = [*QUICK, f"data.root={bananas}", "debug=fast", "compile=true"]
    assert run("ssd-train", *arguments).exit_code == 0
    assert compiled == [SSD]


def test_batch_norms_are_shared_by_devices_if_asked_for(composed):
    """Lightning replaces them when processes start. The weights keep their names and their order."""
    settings = composed("trainer=ddp_cpu", "+trainer.sync_batchnorm=true").trainer
    trainer = instantiate(settings, logger=False, enable_checkpointing=False, precision="32-true", _convert_="all")
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.num_devices == 2
    before = make_module()
    after = trainer.strategy._layer_sync.apply(deepcopy(before))
    norms = [layer for layer in before.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len([layer for layer in after.modules() if isinstance(layer, torch.nn.SyncBatchNorm)]) == len(norms) > 0
    assert list(after.state_dict()) == list(before.state_dict())


def test_all_gpus_by_one_word(composed):
    settings = composed("trainer=ddp").trainer
    assert (settings.accelerator, settings.devices) == ("gpu", -1)
    assert settings.strategy == composed("trainer=ddp_cpu").trainer.strategy
