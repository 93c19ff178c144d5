"""Every file of ``conf`` is composed, and what it describes is built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from ssd_lightning.cli.command import CONFIG_FOLDER, GROUPS
from ssd_lightning.model import SSD

FOLDERS = {path.name: path for path in CONFIG_FOLDER.iterdir() if path.is_dir()}
OPTIONS = {group: sorted(path.stem for path in folder.glob("*.yaml")) for group, folder in FOLDERS.items()}
BUILT_GROUPS = [group for group in OPTIONS if group not in ("experiment", "callbacks", "box_scales", "aspect_ratios")]


@pytest.fixture
def composed(tmp_path: Path):
    """Compose ``train.yaml`` with overrides, as in a job that writes to a temporary folder."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train", list(overrides), return_hydra_config=True)
        with open_dict(config):
            config.hydra.runtime.output_dir = str(tmp_path)
            config.model.num_classes = 1
        HydraConfig.instance().set_config(config)
        return config

    yield compose_with
    HydraConfig.instance().cfg = None


def test_each_group_is_explained_in_the_help():
    assert set(GROUPS) == set(FOLDERS)


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in BUILT_GROUPS for o in OPTIONS[g]])
def test_each_option_builds_what_it_names(composed, group: str, option: str):
    node = composed(f"{group}={option}")[group]
    if node.get("precision") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    built = instantiate(node, _convert_="all")
    target = get_object(node._target_)
    if node.get("_partial_"):
        assert built.func is target
    else:
        assert isinstance(built, target)


@pytest.mark.parametrize("option", OPTIONS["callbacks"])
def test_each_callback_is_built(composed, option: str):
    for name, node in composed(f"callbacks={option}").callbacks.items():
        assert isinstance(instantiate(node, _convert_="all"), get_object(node._target_)), name


@pytest.mark.parametrize("option", OPTIONS["experiment"])
def test_each_experiment_is_complete(composed, option: str):
    config = composed(f"experiment={option}")
    assert config.name == option
    model = instantiate(config.model, _convert_="all")
    assert isinstance(model, SSD)
    assert model.image_size == (config.image_size, config.image_size)
    for group in ("matcher", "loss", "postprocess", "augmentation", "optimizer", "lr_scheduler", "data"):
        assert instantiate(config[group], _convert_="all") is not None
    assert config.trainer.max_epochs > 0


@pytest.mark.parametrize("scales", OPTIONS["box_scales"])
@pytest.mark.parametrize("ratios", OPTIONS["aspect_ratios"])
@pytest.mark.parametrize("backbone", OPTIONS["backbone"])
def test_choices_that_go_together_give_a_model(composed, scales: str, ratios: str, backbone: str):
    config = composed(f"box_scales={scales}", f"aspect_ratios={ratios}", f"backbone={backbone}", "image_size=256")
    model = instantiate(config.model, _convert_="all")
    cells = [height * width for height, width in model.grids]
    expected = sum(cell * (2 + 2 * len(level)) for cell, level in zip(cells, config.aspect_ratios, strict=True))
    assert len(model.default_boxes) == expected


def test_every_key_of_the_main_configs_is_read():
    """A key that nothing reads would be set in vain."""
    code = "\n".join(path.read_text() for path in (CONFIG_FOLDER.parent / "ssd_lightning" / "cli").glob("*.py"))
    yaml = "\n".join(path.read_text() for path in CONFIG_FOLDER.rglob("*.yaml"))
    for name in ("train", "evaluate", "predict"):
        keys: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml"))
        for key in keys.keys() - {"defaults", "hydra"}:
            assert f"config.{key}" in code or f"${{{key}}}" in yaml, f"{name}.yaml: {key}"
