"""Detectors by name, and their way through a checkpoint."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ssd_lightning.detector.presets import CONFIG_FOLDER, build_model, default_boxes_of, model_names
from ssd_lightning.training.checkpoint import load_detector


def test_names_are_the_files():
    assert model_names() == sorted({path.stem for path in (CONFIG_FOLDER / "model").iterdir()} - {"ssd"})


def test_choices_are_those_of_the_command_line():
    model = build_model("ssd300_vgg16", 2, "backbone=resnet18", "model.image_size=128", "box_scales=tiny")
    assert model.image_size == (128, 128)
    assert "body.layer4" in dict(model.backbone.named_modules())


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"name: .*tiny_ssd, tiny_ssd128, got 'ssd300'"):
        build_model("ssd300", 2)


def test_a_model_can_be_built_inside_a_command():
    """A command is a Hydra job, and Hydra allows one per process."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        build_model("tiny_ssd", 2)
        with pytest.raises(ValueError, match="tiny_ssd"):
            build_model("ssd300", 2)
        assert "model" in compose("train")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "512" in name else []) for name in model_names()]
)
def test_each_comes_back_from_a_checkpoint(name: str, tmp_path: Path):
    choices = [f"model={name}", "+model.num_classes=2", "model.frozen_batch_norm=true"]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", choices)
    with torch.device("meta"):
        model = build_model(name, 2, "model.frozen_batch_norm=true")
    # Each tensor repeats a number of its own, so that the file is small.
    weights = {
        key: torch.tensor(number, dtype=value.dtype).expand(value.shape)
        for number, (key, value) in enumerate(model.state_dict().items())
    }
    own = {key: OmegaConf.to_container(config[key], resolve=True) for key in ("model", "postprocess")}
    own["classes"] = ["cat", "dog"]
    state = {f"model.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": state, "ssd_lightning": own}, tmp_path / "best.ckpt")

    detector = load_detector(tmp_path / "best.ckpt")
    assert detector.classes == ("cat", "dog")
    assert str(detector.model) == str(model)
    assert torch.equal(detector.model.default_boxes, default_boxes_of(name)(model.grids, model.image_size))
    found = detector.model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) for key, value in weights.items())
