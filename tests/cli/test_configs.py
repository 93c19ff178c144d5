"""Every file of ``conf`` is composed, and the part that it describes is built."""

import copy
import functools
from itertools import product
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from ssd_lightning.cli.help import GROUPS
from ssd_lightning.detector.backbones.shapes import channels_and_grids
from ssd_lightning.detector.default_boxes import DefaultBoxes, Grid
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import CONFIG_FOLDER

FOLDERS = {path.name: path for path in CONFIG_FOLDER.iterdir() if path.is_dir() and path.name != "hydra"}
OPTIONS = {group: sorted(path.stem for path in folder.glob("*.yaml")) for group, folder in FOLDERS.items()}
COMPOSED_GROUPS = ("experiment", "callbacks", "box_scales", "model", "debug", "hparams_search", "logger")
"""Groups without a part of their own. The parts that they choose are built."""
BUILT_OPTIONS = {group: options for group, options in OPTIONS.items() if group not in COMPOSED_GROUPS}

MOST_LEVELS = {
    "convnext_tiny": 6,  # grids of 37, 18 and 9 cells, then 5, 3 and 1
    "efficientnet_b0": 6,
    "mobilenet_v2": 5,  # 19 and 10, then 5, 3 and 1
    "mobilenet_v3_large": 5,
    "mobilenet_v3_large_reduced": 5,
    "resnet101": 6,
    "resnet18": 6,  # 38, 19 and 10, then 5, 3 and 1
    "resnet34": 6,
    "resnet34_512": 6,  # 38 and 19, then 10, 5, 3 and 1
    "resnet50": 6,
    "tiny": 5,
    "vgg16": 6,
}
"""The most levels of each backbone with the paper's extra layers at 300×300 pixels, where the last has one cell."""


@functools.cache
def compose_train(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.fixture
def composed(tmp_path: Path):
    """Compose ``train.yaml`` with overrides, as in a job that writes to a temporary folder."""

    def compose_with(*overrides: str) -> DictConfig:
        config = copy.deepcopy(compose_train(*overrides))
        with open_dict(config):
            config.hydra.runtime.output_dir = str(tmp_path)
            config.model.num_classes = 1
        HydraConfig.instance().set_config(config)
        return config

    yield compose_with
    HydraConfig.instance().cfg = None


def test_each_group_is_explained_in_the_help():
    assert set(GROUPS) == set(FOLDERS)


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in BUILT_OPTIONS.items() for o in options])
def test_each_option_builds_what_it_names(composed, group: str, option: str):
    # Groups do not depend on each other, so one config holds an option of each: composing takes long.
    place = OPTIONS[group].index(option)
    node = composed(*(f"{other}={options[place % len(options)]}" for other, options in BUILT_OPTIONS.items()))[group]
    if node.get("accelerator") == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    with torch.device("meta" if group == "backbone" else "cpu"):
        built = instantiate(node, _convert_="all")
    target = get_object(node._target_)
    if node.get("_partial_"):
        assert built.func is target
    else:
        assert isinstance(built, target)


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in ("callbacks", "logger") for o in OPTIONS[g]])
def test_each_callback_and_each_logger_is_built(composed, monkeypatch, group: str, option: str):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name, node in composed(f"{group}={option}")[group].items():
        target = get_object(node._target_)
        # A function, such as the choice of the progress bar, is named for what it returns.
        kind = target if isinstance(target, type) else lightning.Callback
        assert isinstance(instantiate(node, _convert_="all"), kind), name


@pytest.mark.parametrize("option", OPTIONS["experiment"])
def test_each_experiment_is_complete(composed, option: str):
    config = composed(f"experiment={option}")
    assert config.name == option
    if "weights" in config.backbone:
        config.backbone.weights = None  # They would be downloaded.
    with torch.device("meta"):
        model = instantiate(config.model, _convert_="all")
    assert isinstance(model, SSD)
    assert model.image_size == (config.model.image_size, config.model.image_size)
    for group in ("matcher", "loss", "postprocess", "augmentation", "optimizer", "lr_scheduler", "data"):
        assert instantiate(config[group], _convert_="all") is not None
    assert (config.trainer.get("max_epochs") or config.trainer.max_steps) > 0


@pytest.mark.parametrize("option", OPTIONS["model"])
def test_each_model_is_built_as_its_file_says(composed, option: str):
    config = composed(f"model={option}")
    with torch.device("meta"):
        model = instantiate(config.model, _convert_="all")
    assert isinstance(model, SSD)
    assert model.image_size == (config.model.image_size, config.model.image_size)


def test_most_levels_are_of_all_backbones():
    assert sorted(MOST_LEVELS) == OPTIONS["backbone"]


@functools.cache
def part(group: str, option: str) -> Any:
    """Return the part that a file describes, on the meta device. Cached, since composing takes long."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        node = compose("train", [f"{group}={option}"])[group]
    with torch.device("meta"):
        return instantiate(node, _convert_="all")


class MapsOf(torch.nn.Module):
    def __init__(self, channels: list[int], grids: list[Grid]) -> None:
        super().__init__()
        self.shapes = [(c, *grid) for c, grid in zip(channels, grids, strict=True)]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.new_empty((len(images), *shape)) for shape in self.shapes]


@functools.cache
def maps_of(backbone: str, size: tuple[int, int]) -> MapsOf:
    return MapsOf(*channels_and_grids(part("backbone", backbone), size))


@pytest.mark.parametrize("backbone", OPTIONS["backbone"])
@pytest.mark.slow
def test_every_backbone_takes_every_box_config_with_few_enough_levels(backbone: str):
    """An impossible combination is refused with both sides named. The whole product is tried with one backbone."""
    # The shapes of the maps suffice, so that the backbone is run only once.
    network = maps_of(backbone, (300, 300))
    extra_layers = part("extra_layers", "paper")
    all_ratios = OPTIONS["aspect_ratios"] if backbone == "vgg16" else ["paper"]
    for scales, ratios in product(OPTIONS["box_scales"], all_ratios):
        default_boxes = DefaultBoxes(part("box_scales", scales), part("aspect_ratios", ratios))
        with torch.device("meta"):
            if default_boxes.levels > MOST_LEVELS[backbone]:
                refusal = f"scales: expected fewer levels .* at 300×300 pixels, got {default_boxes.levels} "
                with pytest.raises(ValueError, match=refusal):
                    SSD(network, default_boxes, 3, 300, extra_layers)
                continue
            model = SSD(network, default_boxes, 3, 300, extra_layers)
        cells = [height * width for height, width in model.grids]
        expected = sum(c * (2 + len(level)) for c, level in zip(cells, default_boxes.ratios, strict=True))
        assert len(model.default_boxes) == expected, (scales, ratios)


@pytest.mark.parametrize("extra_layers", OPTIONS["extra_layers"])
@pytest.mark.parametrize("backbone", OPTIONS["backbone"])
@pytest.mark.slow
def test_every_backbone_goes_with_every_kind_of_layers(backbone: str, extra_layers: str):
    default_boxes = DefaultBoxes([0.1, 0.2, 0.4, 0.6, 0.8, 1.0], part("aspect_ratios", "paper"))
    network = maps_of(backbone, (320, 256))
    for head in OPTIONS["head"]:
        with torch.device("meta"):
            model = SSD(network, default_boxes, 3, (320, 256), part("extra_layers", extra_layers), part("head", head))
            logits, _ = model.eval()(torch.empty(1, 3, 320, 256))
        assert logits.shape == (1, len(model.default_boxes), 4)


def test_every_key_of_the_main_configs_is_read():
    """A key that nothing reads would be set without any effect."""
    code = "\n".join(path.read_text() for path in (CONFIG_FOLDER.parent / "ssd_lightning" / "cli").rglob("*.py"))
    yaml = "\n".join(path.read_text() for path in CONFIG_FOLDER.rglob("*.yaml"))
    for name in ("train", "evaluate", "predict", "export", "check", "boxes", "compare"):
        keys: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml"))
        for key in keys.keys() - {"defaults", "hydra"}:
            assert f"config.{key}" in code or f"${{{key}}}" in yaml, f"{name}.yaml: {key}"
