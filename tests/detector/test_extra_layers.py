"""Extra layers, compared with torchvision's, and every preset, compared with published grids."""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import SSD300_VGG16_Weights, SSDLite320_MobileNet_V3_Large_Weights
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.models.detection.ssdlite import _mobilenet_extractor
from torchvision.models.vgg import cfgs, make_layers

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.backbones.vgg import VGG16
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.extra_layers import ExtraLayers
from ssd_lightning.detector.model import SSD, DepthwiseHead
from ssd_lightning.detector.presets import build_model, model_names


@cache
def preset(name: str, num_classes: int = 90, *overrides: str) -> SSD:
    """Build a detector without values, only with shapes."""
    with torch.device("meta"):
        return build_model(name, num_classes, *overrides)


def maps_of(model: SSD) -> list[tuple[int, ...]]:
    """Return the (channels, rows, columns) of the head's inputs."""
    seen: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda head, inputs: seen.extend(inputs[0]))
    model.eval()(torch.empty(1, 3, *model.image_size, device="meta"))
    hook.remove()
    return [tuple(m.shape[1:]) for m in seen]


def grids_after(layers: nn.ModuleList, channels: int, grid: tuple[int, int]) -> list[tuple[int, ...]]:
    x, grids = torch.empty(1, channels, *grid, device="meta"), []
    for layer in layers.eval().to("meta"):
        x = layer(x)
        grids.append(tuple(x.shape[2:]))
    return grids


# ------------------------------------------------------------------------------------------------------- every preset


class Published(NamedTuple):
    """Published numbers of a preset, for square pictures."""

    grids: list[int]
    channels: list[int]
    boxes: int


VGG_300 = Published([38, 19, 10, 5, 3, 1], [512, 1024, 512, 256, 256, 256], 8732)
PRESETS = {
    "ssd300_amdegroot": VGG_300,
    "ssd300_resnet18": Published([38, 19, 10, 5, 3, 1], [128, 256, 512, 512, 256, 256], 8732),
    "ssd300_resnet50": Published([38, 19, 10, 5, 3, 1], [512, 1024, 2048, 512, 256, 256], 8732),
    "ssd300_torchvision": VGG_300,
    "ssd300_vgg16": VGG_300,
    "ssd512_resnet34": Published([64, 32, 16, 8, 6, 4, 1], [512, 1024, 512, 256, 256, 256, 256], 24732),
    "ssd512_vgg16": Published([64, 32, 16, 8, 4, 2, 1], [512, 1024, 512, 256, 256, 256, 256], 24564),
    "ssdlite320_mobilenet_v2": Published([20, 10, 5, 3, 2, 1], [576, 1280, 512, 256, 256, 128], 3234),
    "ssdlite320_mobilenet_v3_large": Published([20, 10, 5, 3, 2, 1], [672, 960, 512, 256, 256, 128], 3234),
    "ssdlite320_torchvision": Published([20, 10, 5, 3, 2, 1], [672, 480, 512, 256, 256, 128], 3234),
    "tiny_ssd": Published([32, 16, 8, 4, 1], [64, 128, 128, 128, 128], 5444),
    # Not published: half the side of tiny_ssd, and 4 boxes in each of 256 + 64 + 16 + 4 + 1 cells.
    "tiny_ssd128": Published([16, 8, 4, 2, 1], [64, 128, 128, 128, 128], 1364),
}


def test_every_preset_is_in_the_table():
    assert sorted(PRESETS) == model_names()


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_the_published_grids_channels_and_default_boxes(name):
    model, published = preset(name), PRESETS[name]
    expected = [(c, grid, grid) for c, grid in zip(published.channels, published.grids, strict=True)]
    assert maps_of(model) == expected
    assert model.grids == [(grid, grid) for grid in published.grids]
    assert model.default_boxes.shape == (published.boxes, 4)
    predictions = model(torch.empty(1, 3, *model.image_size, device="meta"))
    assert predictions.logits.shape == (1, published.boxes, 91)
    assert predictions.offsets.shape == (1, published.boxes, 4)


@pytest.mark.parametrize(
    ("name", "weights", "parameters"),
    [
        ("ssd300_torchvision", SSD300_VGG16_Weights.COCO_V1, 35_641_826),
        ("ssdlite320_torchvision", SSDLite320_MobileNet_V3_Large_Weights.COCO_V1, 3_440_060),
    ],
)
def test_presets_for_torchvisions_weights_have_as_many_parameters(name, weights, parameters):
    assert len(weights.meta["categories"]) == 90 + 1  # torchvision counts background.
    assert weights.meta["num_params"] == parameters
    assert sum(p.numel() for p in preset(name).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "size", "grids"),
    [
        # The third pooling rounds up, and the others down. Extra layers halve a side of more than 5 cells.
        ("ssd300_vgg16", (320, 512), [(40, 64), (20, 32), (10, 16), (5, 8), (3, 4), (1, 2)]),
        ("ssd300_vgg16", (512, 320), [(64, 40), (32, 20), (16, 10), (8, 5), (4, 3), (2, 1)]),
        ("ssd300_vgg16", (301, 333), [(38, 42), (19, 21), (10, 11), (5, 6), (3, 3), (1, 1)]),
        # Strides of 2 with padding round up.
        ("ssd300_resnet18", (299, 320), [(38, 40), (19, 20), (10, 10), (5, 5), (3, 3), (1, 1)]),
        ("ssdlite320_mobilenet_v2", (96, 321), [(6, 21), (3, 11), (2, 6), (1, 3), (1, 2), (1, 1)]),
        ("ssd512_vgg16", (320, 512), [(40, 64), (20, 32), (10, 16), (5, 8), (3, 4), (2, 2), (1, 1)]),
        # A side of one cell stays one cell.
        ("ssd512_vgg16", (512, 256), [(64, 32), (32, 16), (16, 8), (8, 4), (4, 2), (2, 1), (1, 1)]),
        # The pools of TinySSD round down.
        ("tiny_ssd", (300, 300), [(37, 37), (18, 18), (9, 9), (4, 4), (1, 1)]),
        ("tiny_ssd", (256, 100), [(32, 12), (16, 6), (8, 3), (4, 1), (1, 1)]),
    ],
)
def test_grids_of_pictures_that_are_odd_or_not_square(name, size, grids):
    model = preset(name, 1, f"model.image_size=[{size[0]},{size[1]}]")
    assert [shape[1:] for shape in maps_of(model)] == grids
    assert model.grids == grids


# --------------------------------------------------------------------------------------------------------- torchvision


def random_weights(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, *((0.5, 1.5) if name.endswith("weight") else (-0.1, 0.1)))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 2)


def assert_same_levels(ours: nn.ModuleList, theirs: nn.ModuleList, x: Tensor, grids: list[int]) -> None:
    """Compare after copying their weights, which are in the same order."""
    random_weights(theirs)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    levels = []
    for our, their in zip(ours.eval(), theirs.eval(), strict=True):
        level = our(x)
        torch.testing.assert_close(level, their(x), rtol=1e-4, atol=1e-5)
        assert level.abs().max() > 0
        levels.append(level.shape[2])
        x = level
    assert levels == grids


@pytest.mark.parametrize(
    ("layers", "highres", "grid", "grids"),
    [
        (ExtraLayers(), False, 19, [10, 5, 3, 1]),
        # For 512 pixels, torchvision adds a layer with a 4×4 kernel.
        (ExtraLayers([512, 256, 256, 256, 256], halve_above=8, last_kernel=4), True, 32, [16, 8, 6, 4, 1]),
    ],
    ids=["300 pixels", "512 pixels"],
)
@torch.no_grad()
def test_extra_layers_compute_what_torchvision_computes(layers, highres, grid, grids):
    torch.manual_seed(0)
    backbone = nn.Sequential(*make_layers(cfgs["D"], batch_norm=False))
    theirs = SSDFeatureExtractorVGG(backbone, highres).extra[1:]
    assert_same_levels(layers(1024, (grid, grid), len(grids)), theirs, torch.randn(2, 1024, grid, grid), grids)


@torch.no_grad()
def test_depthwise_extra_layers_compute_what_torchvision_computes():
    torch.manual_seed(0)

    def norm(channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)  # As in ssdlite320_mobilenet_v3_large.

    theirs = _mobilenet_extractor(mobilenet_v3_large(reduced_tail=True), 6, norm).extra
    layers = ExtraLayers([512, 256, 256, 128], halve_above=1, depthwise=True)(480, (10, 10), 4)
    assert_same_levels(layers, theirs, torch.randn(2, 480, 10, 10), [5, 3, 2, 1])
    momenta = {m.momentum for m in layers.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.03}


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_batch_norm_comes_after_each_convolution_and_before_its_relu(training):
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(5, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )
    random_weights(theirs)
    (ours,) = ExtraLayers([8], batch_norm=True)(5, (9, 12), 1)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 5, 9, 12)
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- depthwise


def channels_that_change(module: nn.Module, channels: int, channel: int) -> list[int]:
    """Return the output channels that change with one input channel."""
    torch.manual_seed(0)
    x = torch.randn(1, channels, 6, 6)
    other = x.clone()
    other[:, channel] += torch.randn(6, 6)
    with torch.no_grad():
        difference = (module.eval()(x) - module(other)).abs().amax(dim=(0, 2, 3))
    return difference.nonzero().flatten().tolist()


@pytest.mark.parametrize("channel", [0, 5])
def test_depthwise_convolutions_see_one_channel_each(channel):
    """Check an extra layer and the head, whose 1×1 convolutions see all channels."""
    (layer,) = ExtraLayers([12], depthwise=True)(8, (6, 6), 1)
    into, depthwise, out = layer
    # The convolutions are compared without the ReLU6, which may hide the change.
    assert channels_that_change(depthwise[0], 6, channel) == [channel]
    assert channels_that_change(into[0], 8, channel) == list(range(6))
    assert channels_that_change(out[0], 6, channel) == list(range(12))

    head = DepthwiseHead([6], [4], num_classes=2)
    for predictor, outputs in ((head.classification[0], 12), (head.localization[0], 16)):
        depthwise, last = predictor
        assert channels_that_change(depthwise[0], 6, channel) == [channel]
        assert channels_that_change(last, 6, channel) == list(range(outputs))


def test_parameters_of_a_depthwise_layer_by_hand():
    """Count 8 → 6 channels, 3×3 for each of the 6, and 6 → 12. A batch norm has two numbers per channel."""
    (layer,) = ExtraLayers([12], depthwise=True)(8, (6, 6), 1)
    assert sum(p.numel() for p in layer.parameters()) == 8 * 6 + 9 * 6 + 6 * 12 + 2 * (6 + 6 + 12)


# --------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize(
    ("arguments", "grid", "grids"),
    [
        # In SSD300, more than 5 cells are halved, rounding up; 3 to 5 cells lose one at each end; 2 become 1.
        ({}, (6, 6), [(3, 3), (1, 1)]),
        ({}, (5, 5), [(3, 3), (1, 1)]),
        ({}, (4, 4), [(2, 2), (1, 1)]),
        ({}, (3, 3), [(1, 1)]),
        ({}, (2, 2), [(1, 1)]),
        # Each side follows the rule alone.
        ({}, (19, 1), [(10, 1), (5, 1), (3, 1), (1, 1)]),
        ({}, (2, 11), [(1, 6), (1, 3), (1, 1)]),
        ({"halve_above": 1}, (10, 7), [(5, 4), (3, 2), (2, 1), (1, 1)]),
        ({"halve_above": 1}, (1, 2), [(1, 1)]),
        ({"halve_above": 100}, (7, 9), [(5, 7), (3, 5), (1, 3), (1, 1)]),
        # The last level has its own kernel only where that covers the whole map.
        ({"halve_above": 8, "last_kernel": 4}, (8, 8), [(6, 6), (4, 4), (1, 1)]),
        ({"halve_above": 2, "last_kernel": 4}, (4, 4), [(2, 2), (1, 1)]),
        ({"halve_above": 2, "last_kernel": 4}, (2, 2), [(1, 1)]),
        ({"last_kernel": 4}, (6, 6), [(3, 3)]),
        ({"last_kernel": 1}, (3, 3), [(1, 1)]),
        # A side of one cell stays one cell.
        ({"last_kernel": 4}, (4, 1), [(1, 1)]),
        ({"last_kernel": 4}, (1, 2), [(1, 1)]),
    ],
)
@pytest.mark.parametrize("depthwise", [False, True])
def test_grids_by_hand(arguments, grid, grids, depthwise):
    layers = ExtraLayers([8], depthwise=depthwise, **arguments)(4, grid, len(grids))
    assert grids_after(layers, 4, grid) == grids


def test_channels_of_the_last_layer_are_those_of_any_further_one():
    layers = ExtraLayers([20, 12])(4, (40, 40), 4)
    x, channels = torch.empty(1, 4, 40, 40), []
    for layer in layers:
        x = layer(x)
        channels.append(x.shape[1])
    assert channels == [20, 12, 12, 12]
    assert [layer[0][0].out_channels for layer in layers] == [10, 6, 6, 6]  # Half of the channels lie between.


@pytest.mark.parametrize("grid", [(1, 1), (10, 10)])
def test_no_levels_are_no_layers(grid):
    """Make no layers where the backbone has all levels."""
    assert len(ExtraLayers()(8, grid, 0)) == 0


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("grid", "levels", "made"), [((1, 1), 1, 0), ((1, 1), 3, 0), ((19, 19), 5, 4), ((2, 1), 4, 1), ((10, 3), 6, 3)]
)
def test_no_level_is_made_from_a_single_cell(grid, levels, made):
    with pytest.raises(ValueError, match=f"extra_layers: expected at most {made}, .* got {levels}"):
        ExtraLayers()(8, grid, levels)


@pytest.mark.parametrize(
    ("backbone", "levels", "size", "message"),
    [
        # 38, 19, 10, 5, 3 and 1.
        (VGG16, 7, (300, 300), "VGG16, which has 2 at 300×300 pixels, got 7 .*at most 4, .* got 5"),
        # A longer side gives one more level: 50, 25, 13, 7, 4, 2 and 1.
        (VGG16, 8, (300, 400), "VGG16, which has 2 at 300×400 pixels, got 8 .*at most 5, .* got 6"),
        # Tiny's last map is one cell.
        (Tiny, 6, (64, 64), "Tiny, which has 5 at 64×64 pixels, got 6 .*at most 0, .* got 1"),
    ],
)
def test_a_detector_with_too_many_levels_is_refused_by_both_sides(backbone, levels, size, message):
    def detector(levels: int) -> SSD:
        scales = [n / (levels + 1) for n in range(1, levels + 2)]
        return SSD(backbone(), DefaultBoxes(scales, [[2.0]] * levels), num_classes=1, image_size=size)

    with torch.device("meta"):
        with pytest.raises(ValueError, match=f"scales: expected fewer levels for {message}"):
            detector(levels)
        assert detector(levels - 1).grids[-1] == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"channels": []}, r"channels: .* at least 2, .*got \[\]", id="no channels"),
        # Half of one is none.
        pytest.param({"channels": [1]}, r"channels: .* at least 2, .*got \[1\]", id="one channel"),
        pytest.param({"channels": [512, 0]}, r"channels: .* got \[512, 0\]", id="then none"),
        pytest.param({"channels": [-4]}, r"channels: .* got \[-4\]", id="negative channels"),
        pytest.param({"halve_above": 0}, "halve_above: .* at least 1, got 0", id="halve a cell"),
        pytest.param({"halve_above": -5}, "halve_above: .* got -5", id="negative cells"),
        pytest.param({"last_kernel": 0}, "last_kernel: .* at least 1, got 0", id="no kernel"),
        pytest.param({"last_kernel": -1}, "last_kernel: .* got -1", id="negative kernel"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExtraLayers(**arguments)


def test_the_smallest_values_are_taken():
    (layer,) = ExtraLayers([2], halve_above=1, last_kernel=1)(1, (2, 2), 1)
    assert layer(torch.zeros(1, 1, 2, 2)).shape == (1, 2, 1, 1)
