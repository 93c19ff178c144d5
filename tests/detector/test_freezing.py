"""What is trained and how fast: layers and batch norms that are frozen, and the optimizer's groups."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.backbones.vgg import VGG16
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes
from ssd_lightning.detector.extra_layers import ExtraLayers
from ssd_lightning.detector.freezing import freeze
from ssd_lightning.detector.model import SSD, DepthwiseHead
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.parameter_groups import ParameterGroups
from ssd_lightning.training.schedules import constant, one_cycle, warmup_cosine, warmup_multistep

SIDE = 64
"""Pixels: large enough for two cells on ResNet's last map, which a batch norm in training needs."""


def detector(backbone: nn.Module, levels: int, **settings) -> SSD:
    scales = [(level + 1) / (levels + 1) for level in range(levels + 1)]
    return SSD(backbone, DefaultBoxes(scales, AspectRatios([2.0])), num_classes=1, image_size=SIDE, **settings)


def resnet18(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(TorchvisionFeatures("resnet18", ["layer2", "layer3", "layer4"]), 3, **settings)


def mobilenet_v2(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(TorchvisionFeatures("mobilenet_v2", ["features.6", "features.13"], lift=[16, 16]), 2, **settings)


def vgg16(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(VGG16(), 2, **settings)


def tiny(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(Tiny(), 5, **settings)


def random_pictures(count: int) -> Tensor:
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def step(model: SSD, pictures: Tensor) -> None:
    """One step of plain SGD on all parameters that there are, whoever is frozen; with decay, so that all would move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    predictions = model.train()(pictures)
    (predictions.logits.square().mean() + (predictions.offsets - 1).square().mean()).backward()
    optimizer.step()


def batch_norms(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, kind)]


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms of a fresh network do nothing; here they do, each another thing."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.2, generator=generator)
    return model


# ----------------------------------------------------------------------------------------------- freezing until a layer

VGG_FROZEN = ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"]
RESNET_FROZEN = ["body.conv1", "body.bn1", "body.layer1", "body.layer2"]


@pytest.mark.parametrize(
    ("make", "until", "frozen"),
    [
        # Edges: the first layer alone; a layer without weights before all others; the whole backbone.
        pytest.param(vgg16, "conv1_1", ["conv1_1"], id="vgg16, the first"),
        pytest.param(tiny, "normalize", [], id="tiny, nothing to learn there"),
        pytest.param(vgg16, "conv3_3", VGG_FROZEN, id="vgg16, in the middle"),
        pytest.param(resnet18, "body.layer2", RESNET_FROZEN, id="resnet18, a stage"),
        # Up to the layer of that name, and not to the end of the block that contains it.
        pytest.param(
            resnet18,
            "body.layer2.1.conv1",
            ["body.conv1", "body.bn1", "body.layer1", "body.layer2.0", "body.layer2.1.conv1"],
            id="resnet18, inside a block",
        ),
        pytest.param(resnet18, "body", ["body"], id="resnet18, all"),
        # Names that begin alike: features.1 is no part of features.10 and the following ones.
        pytest.param(mobilenet_v2, "body.features.1", ["body.features.0", "body.features.1"], id="mobilenet, stem"),
        pytest.param(mobilenet_v2, "body", ["body"], id="mobilenet, all but the lifts"),
        pytest.param(tiny, "levels.1.3", ["levels.0", "levels.1.0", "levels.1.1", "levels.1.3"], id="tiny, inside"),
    ],
)
def test_layers_until_the_named_one_stay_as_they_are_and_later_ones_learn(make, until, frozen):
    model = make(frozen_until=until)
    before = copy.deepcopy(model.state_dict())
    step(model, random_pictures(2))

    def is_frozen(name: str) -> bool:
        """By the list: these layers and what is in them."""
        return any(name.startswith(f"backbone.{layer}.") for layer in frozen)

    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if is_frozen(name):
            assert torch.equal(value, before[name]), name
        # Statistics move in training; a bias may be 0 and stay it, where a batch norm takes it away again.
        elif name in parameters and value.ndim > 1:
            assert not torch.equal(value, before[name]), name
    for name, parameter in parameters.items():
        assert (parameter.grad is None) == is_frozen(name), name
        assert parameter.requires_grad != is_frozen(name), name
    # Batch norms among them have no parameters any more.
    names = {name.rpartition(".")[0] for name in before}
    assert [f for f in frozen if not any(n.startswith(f"backbone.{f}") for n in names)] == []
    assert any(p.requires_grad for n, p in parameters.items() if n.startswith("head."))


def test_without_a_name_all_learns():
    assert all(parameter.requires_grad for parameter in resnet18().parameters())
    assert batch_norms(resnet18(), FrozenBatchNorm2d) == []


def test_only_the_batch_norms_until_the_layer_are_frozen():
    model = resnet18(frozen_until="body.layer1")
    assert batch_norms(model, FrozenBatchNorm2d) == [
        f"backbone.body.{name}" for name in ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"]
    ]
    # Two in each of the other six blocks, and one in the short cut of each of the three stages.
    assert len(batch_norms(model, nn.BatchNorm2d)) == 2 * 6 + 3


@pytest.mark.parametrize("make", [vgg16, resnet18, tiny])
@pytest.mark.parametrize("until", ["", "conv9_9", "layer1.conv", "backbone"])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(make, until):
    there = {vgg16: "conv3_3, conv4_1", resnet18: "body.layer1.0.conv1, body.layer1.0.bn1", tiny: "levels.0.0.0"}
    with pytest.raises(ValueError, match=rf"frozen_until: \w+ has no layer '{until}'; it has .*{there[make]}"):
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
    """Another one with frozen batch norms and the weights of ``model``."""
    frozen = make(**settings)
    frozen.load_state_dict(model.state_dict())
    return frozen


@pytest.mark.parametrize("make", [resnet18, tiny])
@torch.no_grad()
def test_a_detector_with_frozen_batch_norms_is_the_same_in_training(make):
    """And it is what the unfrozen one is in evaluation. One picture is as good as any."""
    model = with_statistics(make())
    frozen = frozen_like(model, make, frozen_batch_norm=True)
    assert batch_norms(frozen, nn.BatchNorm2d) == []
    pictures = random_pictures(3)
    expected = model.eval()(pictures)
    torch.testing.assert_close(frozen.eval()(pictures), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen.train()(pictures), frozen.eval()(pictures), rtol=0, atol=0)
    alone = frozen.train()(pictures[:1])
    torch.testing.assert_close(alone.logits, expected.logits[:1], rtol=1e-4, atol=1e-4)
    # The unfrozen one takes its statistics from the batch.
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
    """They are new, and have to learn."""
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
def test_weights_go_from_unfrozen_to_frozen_and_back(tmp_path, settings):
    """Through a file and without a name missing, as a run does that is continued with other settings."""
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


def test_frozen_batch_norms_keep_what_is_there():
    """Freezing comes after the reading of weights: what was read stays, to the bit. A count of batches is no use."""
    backbone = with_statistics(Tiny())
    before = copy.deepcopy(backbone.state_dict())
    freeze(backbone, batch_norm=True)
    assert set(backbone.state_dict()) == {name for name in before if not name.endswith("num_batches_tracked")}
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---------------------------------------------------------------------------------------------------- parameter groups


def convnext(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(TorchvisionFeatures("convnext_tiny", ["features.1"]), 1, **settings)


def depthwise(**settings) -> SSD:
    torch.manual_seed(0)
    backbone = TorchvisionFeatures("mobilenet_v2", ["features.6"])
    return detector(backbone, 2, extra_layers=ExtraLayers([8], depthwise=True), head=DepthwiseHead, **settings)


def weights_of_convolutions(model: nn.Module) -> set[str]:
    """By the kind of layer; a fully connected layer is a 1×1 convolution, as in ConvNeXt."""
    kinds = (nn.Conv2d, nn.Linear)
    return {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, kinds)}


MODELS = {
    "vgg16": vgg16,
    "resnet18": resnet18,
    "depthwise": depthwise,
    "frozen": partial(resnet18, frozen_until="body.layer2", frozen_batch_norm=True),
}
SETTINGS = [(1.0, True), (0.1, True), (1.0, False), (0.1, False), (0.0, False)]


@pytest.mark.parametrize(("factor", "decay"), SETTINGS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_each_parameter_that_learns_is_in_one_group(make, factor, decay):
    with torch.device("meta"):
        model = make()
    groups = ParameterGroups(factor, decay)(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if len(groups) > 1:  # rates of several are logged by their names
        assert len({group["name"] for group in groups}) == len(groups)

    convolutions = weights_of_convolutions(model)
    for group in groups:
        assert group["params"]
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr_factor"] == (factor if name.startswith("backbone.") else 1), name
            if decay:
                assert "weight_decay" not in group, name  # the optimizer's
            else:
                assert ("weight_decay" not in group) == (name in convolutions), name
                assert group.get("weight_decay", 0.0) == 0, name


def test_factors_that_scale_a_block_do_not_decay():
    """ConvNeXt's ``layer_scale`` has three axes and is no convolution's weight: arXiv 2201.03545, appendix A.1."""
    with torch.device("meta"):
        model = convnext()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying = {
        names[id(parameter)]
        for group in ParameterGroups(decay_norms_and_biases=False)(model)
        for parameter in group["params"]
        if "weight_decay" not in group
    }
    assert any("layer_scale" in name for name in names.values())
    assert decaying == weights_of_convolutions(model)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_step_is_as_long_as_the_factors_say(factor):
    """With gradients of 1, and decay of convolutions alone: w − lr · factor · (1 + decay · w)."""
    model = mobilenet_v2()
    groups = ParameterGroups(factor, decay_norms_and_biases=False)
    module = SSDModule(model, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), parameter_groups=groups)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = module.new_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    convolutions = weights_of_convolutions(model)
    for name, parameter in model.named_parameters():
        # The lift is new, and learns as fast as the head.
        is_slow = name.startswith("backbone.") and not name.startswith("backbone.lift.")
        rate = 0.1 * (factor if is_slow else 1)
        decay = 0.5 if name in convolutions else 0
        torch.testing.assert_close(parameter.detach(), before[name] - rate * (1 + decay * before[name]))


@pytest.mark.parametrize(
    "make_optimizer",
    [partial(torch.optim.SGD, lr=0.03, momentum=0.9), partial(torch.optim.AdamW, lr=0.03, weight_decay=0.01)],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize(
    "schedule", [constant, one_cycle, partial(warmup_cosine, warmup_steps=4), partial(warmup_multistep, warmup_steps=4)]
)
def test_rates_stay_in_proportion_over_a_schedule(schedule, make_optimizer):
    """At each step the rate of an optimizer without groups, times the group's factor."""
    steps = 40
    module = SSDModule(tiny(), optimizer=make_optimizer, parameter_groups=ParameterGroups(0.1, False))
    optimizer = module.new_optimizer()
    single = make_optimizer([nn.Parameter(torch.zeros(1))])
    assert [group["name"] for group in optimizer.param_groups] == [
        "backbone",
        "backbone without decay",
        "weights",
        "weights without decay",
    ]
    schedulers = schedule(optimizer, steps), schedule(single, steps)
    seen = set()
    for _ in range(steps):
        rate = single.param_groups[0]["lr"]
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * rate, 0.1 * rate, rate, rate], rel=1e-6)
        assert rate > 0
        seen.add(rate)
        for each in (optimizer, single, *schedulers):
            each.step()
    assert (len(seen) > 1) == (schedule is not constant)


def test_a_factor_of_0_keeps_the_backbone_as_it_is():
    model = tiny()
    module = SSDModule(model, optimizer=partial(torch.optim.SGD, lr=0.1), parameter_groups=ParameterGroups(0.0))
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = module.new_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone."), name


def test_all_alike_is_what_no_groups_are():
    """The default; the optimizer's own decay is for all."""
    module = SSDModule(tiny(), optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.5))
    (group,) = module.new_optimizer().param_groups
    assert group["lr"] == 0.1
    assert group["weight_decay"] == 0.5
    assert len(group["params"]) == len(list(module.model.parameters()))


def test_frozen_parameters_are_in_no_optimizer():
    module = SSDModule(resnet18(frozen_until="body"), parameter_groups=ParameterGroups(0.1, False))
    optimizer = module.new_optimizer()
    assert [group["name"] for group in optimizer.param_groups] == ["weights", "weights without decay"]
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert owned == {id(parameter) for parameter in module.model.head.parameters()}


def test_nothing_to_train_is_refused():
    model = tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is left to train: all parameters are frozen"):
        ParameterGroups()(model)
    with pytest.raises(ValueError, match="nothing is left to train"):
        SSDModule(model).new_optimizer()


@pytest.mark.parametrize("factor", [-0.1, float("-inf"), float("nan")])
def test_a_factor_below_0_is_refused(factor):
    with pytest.raises(ValueError, match=f"backbone_lr_factor: expected a number of at least 0, got {factor}"):
        ParameterGroups(factor)
