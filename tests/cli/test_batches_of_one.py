"""Training on batches of one picture: refused before the start where a batch norm has one value per channel."""

from pathlib import Path

import pytest
import small_detectors
import torch
from command_line import QUICK
from omegaconf import OmegaConf
from torch import nn

from ssd_lightning.cli.build import refuse_batches_of_one
from ssd_lightning.detector.backbones.shapes import needs_two_pictures
from ssd_lightning.detector.extra_layers import ExtraLayers
from ssd_lightning.detector.model import SSD


def mobile(**settings) -> SSD:
    """Two levels of MobileNet, and two more that end in one cell with a batch norm."""
    torch.manual_seed(0)
    backbone = small_detectors.mobilenet_v2().backbone
    return small_detectors.detector(backbone, 4, extra_layers=ExtraLayers([16], depthwise=True), **settings)


MODELS = {
    "tiny": small_detectors.tiny,
    "vgg16": small_detectors.vgg16,
    "resnet18": small_detectors.resnet18,
    "mobile": mobile,
    "mobile, frozen backbone": lambda: mobile(frozen_batch_norm=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_dry_run_fails_where_a_training_step_fails(name: str) -> None:
    model = MODELS[name]().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = needs_two_pictures(model, model.image_size)
    assert found == name.startswith("mobile")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model(small_detectors.random_pictures(2))
    if found:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(small_detectors.random_pictures(1))
    else:
        model(small_detectors.random_pictures(1))


def test_a_compiled_network_is_not_compiled_for_it() -> None:
    def fail(graph: object, inputs: object) -> None:
        raise AssertionError("compiled")

    model = mobile()
    nn.Module.compile(model, backend=fail)
    assert needs_two_pictures(model, model.image_size)


@pytest.mark.parametrize(
    ("batch_size", "pictures", "world_size", "more", "key"),
    [
        (1, 9, 1, {}, "batch_size"),
        (1, 9, 2, {}, "batch_size"),
        (4, 1, 1, {}, "data"),
        (4, 1, 1, {"overfit_pictures": 1}, "overfit_pictures"),
        (4, 3, 2, {}, "data"),
        (2, 9, 1, {}, None),
        (4, 5, 1, {}, None),  # The last batch of one picture is dropped.
        (1, 9, 2, {"trainer": {"sync_batchnorm": True}}, None),
        (1, 9, 1, {"trainer": {"sync_batchnorm": True}}, "batch_size"),
        (1, 9, 1, {"trainer": {"accumulate_grad_batches": 8}}, "batch_size"),
    ],
)
def test_what_makes_the_batches_small_is_named(
    batch_size: int, pictures: int, world_size: int, more: dict, key: str | None
) -> None:
    config = OmegaConf.create({"batch_size": batch_size, "overfit_pictures": None, "trainer": {}, **more})
    if key is None:
        refuse_batches_of_one(config, mobile(), pictures, world_size)
    else:
        with pytest.raises(ValueError, match=rf"^{key}: expected at least 2.* got 1"):
            refuse_batches_of_one(config, mobile(), pictures, world_size)


def test_the_command_refuses_before_the_start(run, bananas: Path, tmp_path: Path) -> None:
    model = ["model=ssdlite320_mobilenet_v2", "model.image_size=320", "batch_size=1"]
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, *model)
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-train: batch_size: expected at least 2")
    assert not (tmp_path / "runs").exists()
