"""Freezing of layers and batch norms."""

import copy

import pytest
import torch
from small_detectors import detector, mobilenet_v2, random_pictures, resnet18, tiny, vgg16, with_statistics
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.extra_layers import ExtraLayers
from ssd_lightning.detector.freezing import freeze
from ssd_lightning.detector.model import SSD, DepthwiseHead


def step(model: SSD, pictures: Tensor) -> None:
    """Take a step of SGD on all parameters, with weight decay, so that each one would change."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    predictions = model.train()(pictures)
    (predictions.logits.square().mean() + (predictions.offsets - 1).square().mean()).backward()
    optimizer.step()


def batch_norms(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, kind)]


# ----------------------------------------------------------------------------------------------- freezing until a layer

VGG_FROZEN = ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"]
RESNET_FROZEN = ["body.conv1", "body.bn1", "body.layer1", "body.layer2"]


@pytest.mark.parametrize(
    ("make", "until", "frozen"),
    [
        pytest.param(vgg16, "conv1_1", ["conv1_1"], id="vgg16, the first"),
        pytest.param(tiny, "normalize", [], id="tiny, a layer without weights"),
        pytest.param(vgg16, "conv3_3", VGG_FROZEN, id="vgg16, in the middle"),
        pytest.param(resnet18, "body.layer2", RESNET_FROZEN, id="resnet18, a stage"),
        # Later layers of the block are not frozen.
        pytest.param(
            resnet18,
            "body.layer2.1.conv1",
            ["body.conv1", "body.bn1", "body.layer1", "body.layer2.0", "body.layer2.1.conv1"],
            id="resnet18, inside a block",
        ),
        pytest.param(resnet18, "body", ["body"], id="resnet18, all"),
        # features.1 does not include features.10 and its successors.
        pytest.param(mobilenet_v2, "body.features.1", ["body.features.0", "body.features.1"], id="mobilenet, stem"),
        pytest.param(mobilenet_v2, "body", ["body"], id="mobilenet, all but the lifts"),
        pytest.param(tiny, "levels.1.3", ["levels.0", "levels.1.0", "levels.1.1", "levels.1.3"], id="tiny, inside"),
    ],
)
def test_layers_until_the_named_one_are_frozen(make, until, frozen):
    model = make(frozen_until=until)
    before = copy.deepcopy(model.state_dict())
    step(model, random_pictures(2))

    def is_frozen(name: str) -> bool:
        """Look the layer up in the list."""
        return any(name.startswith(f"backbone.{layer}.") for layer in frozen)

    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if is_frozen(name):
            assert torch.equal(value, before[name]), name
        # A bias before a batch norm has no gradient, and may stay 0.
        elif name in parameters and value.ndim > 1:
            assert not torch.equal(value, before[name]), name
    for name, parameter in parameters.items():
        assert (parameter.grad is None) == is_frozen(name), name
        assert parameter.requires_grad != is_frozen(name), name
    # Frozen batch norms have no parameters, but they have buffers.
    names = {name.rpartition(".")[0] for name in before}
    assert [f for f in frozen if not any(n.startswith(f"backbone.{f}") for n in names)] == []
    assert any(p.requires_grad for n, p in parameters.items() if n.startswith("head."))


def test_without_a_name_no_layer_is_frozen():
    with torch.device("meta"):
        model = resnet18()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert batch_norms(model, FrozenBatchNorm2d) == []


def test_only_the_batch_norms_until_the_layer_are_frozen():
    model = resnet18(frozen_until="body.layer1")
    assert batch_norms(model, FrozenBatchNorm2d) == [
        f"backbone.body.{name}" for name in ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"]
    ]
    # The other six blocks have two each, and three stages have one in a shortcut.
    assert len(batch_norms(model, nn.BatchNorm2d)) == 2 * 6 + 3


@pytest.mark.parametrize("make", [vgg16, resnet18, tiny])
@pytest.mark.parametrize("until", ["", "conv9_9", "layer1.conv", "backbone"])
def test_an_unknown_layer_is_refused_with_the_known_ones(make, until):
    there = {vgg16: "conv3_3, conv4_1", resnet18: "body.layer1.0.conv1, body.layer1.0.bn1", tiny: "levels.0.0.0"}
    message = rf"frozen_until: .*{there[make]}.*, got '{until}'"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make(frozen_until=until)


def test_freezing_again_changes_nothing():
    backbone = with_statistics(Tiny())
    freeze(backbone, "levels.1", batch_norm=True)
    once = copy.deepcopy(backbone.state_dict())
    freeze(backbone, "levels.1", batch_norm=True)
    assert backbone.state_dict().keys() == once.keys()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, once[name])


# --------------------------------------------------------------------------------------------------- frozen batch norm


def frozen_like(model: SSD, make, **settings) -> SSD:
    """Make a detector with frozen batch norms and the weights of ``model``."""
    frozen = make(**settings)
    frozen.load_state_dict(model.state_dict())
    return frozen


@pytest.mark.parametrize("make", [resnet18, tiny])
@torch.no_grad()
def test_a_detector_with_frozen_batch_norms_is_the_same_in_training(make):
    """Compare with the unfrozen detector in evaluation, and with a batch of one picture."""
    model = with_statistics(make())
    frozen = frozen_like(model, make, frozen_batch_norm=True)
    assert batch_norms(frozen, nn.BatchNorm2d) == []
    pictures = random_pictures(3)
    expected = model.eval()(pictures)
    torch.testing.assert_close(frozen.eval()(pictures), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen.train()(pictures), frozen.eval()(pictures), rtol=0, atol=0)
    alone = frozen.train()(pictures[:1])
    torch.testing.assert_close(alone.logits, expected.logits[:1], rtol=1e-4, atol=1e-4)
    # An unfrozen detector uses the statistics of the batch.
    assert not torch.allclose(model.train()(pictures).logits, expected.logits, rtol=1e-2, atol=1e-2)


def test_frozen_batch_norms_do_not_move_and_all_else_learns():
    model = frozen_like(with_statistics(resnet18()), resnet18, frozen_batch_norm=True)
    norms = batch_norms(model, FrozenBatchNorm2d)
    assert len(norms) == 1 + 2 * 8 + 3
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        step(model, random_pictures(2))
    for name, value in model.state_dict().items():
        is_norm = name.rpartition(".")[0] in norms
        if is_norm:
            assert torch.equal(value, before[name]), name
        elif name in dict(model.named_parameters()) and value.ndim > 1:
            assert not torch.equal(value, before[name]), name


def test_batch_norms_of_the_extra_layers_and_the_head_are_not_frozen():
    """Train them, as they are not pretrained."""
    backbone = TorchvisionFeatures("resnet18", ["layer3"])
    model = detector(
        backbone,
        2,
        extra_layers=ExtraLayers([8], batch_norm=True),
        head=DepthwiseHead,
        frozen_until="body.layer3",
        frozen_batch_norm=True,
    )
    learning = batch_norms(model, nn.BatchNorm2d)
    assert len([name for name in learning if name.startswith("extra_layers.")]) == 2
    assert len([name for name in learning if name.startswith("head.")]) == 2 * 2
    assert len(learning) == 6
    assert [n for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad] == []


@pytest.mark.parametrize("settings", [{"frozen_batch_norm": True}, {"frozen_until": "body.layer2"}])
@torch.no_grad()
def test_weights_load_from_unfrozen_to_frozen_and_back(tmp_path, settings):
    """Load every name from a file, as a run does that continues with other settings."""
    pictures = random_pictures(2)
    unfrozen = with_statistics(resnet18())
    expected = unfrozen.eval()(pictures)
    torch.save(unfrozen.state_dict(), tmp_path / "unfrozen.pth")
    frozen = resnet18(**settings)
    frozen.load_state_dict(torch.load(tmp_path / "unfrozen.pth"))
    torch.testing.assert_close(frozen.eval()(pictures), expected, rtol=1e-4, atol=1e-4)

    torch.save(frozen.state_dict(), tmp_path / "frozen.pth")
    again = resnet18()
    again.load_state_dict(torch.load(tmp_path / "frozen.pth"))
    torch.testing.assert_close(again.eval()(pictures), expected, rtol=1e-4, atol=1e-4)


def test_freezing_keeps_the_batch_norms_values():
    """Keep all values exactly, except for the number of batches."""
    backbone = with_statistics(Tiny())
    before = copy.deepcopy(backbone.state_dict())
    freeze(backbone, batch_norm=True)
    assert set(backbone.state_dict()) == {name for name in before if not name.endswith("num_batches_tracked")}
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("affine", "has_statistics"),
    [(False, True), (True, False), (False, False)],
    ids=["no scale", "no statistics", "none"],
)
def test_batch_norms_without_a_scale_or_statistics(affine: bool, has_statistics: bool):
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=affine, track_running_stats=has_statistics))
    pictures = torch.randn(2, 3, 5, 5)
    body(pictures)
    expected = body.eval()(pictures)
    freeze(body, batch_norm=True)
    torch.testing.assert_close(body.train()(pictures), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(body[1], FrozenBatchNorm2d) == has_statistics
