"""Parameter groups of the optimizer."""

import copy
from functools import partial

import pytest
import torch
from small_detectors import detector, mobilenet_v2, resnet18, tiny, vgg16
from torch import nn

from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.extra_layers import ExtraLayers
from ssd_lightning.detector.model import SSD, DepthwiseHead
from ssd_lightning.training.module import SSDModule
from ssd_lightning.training.parameter_groups import ParameterGroups
from ssd_lightning.training.schedules import constant, one_cycle, warmup_cosine, warmup_multistep


def convnext(**settings) -> SSD:
    torch.manual_seed(0)
    return detector(TorchvisionFeatures("convnext_tiny", ["features.1"]), 1, **settings)


def depthwise(**settings) -> SSD:
    torch.manual_seed(0)
    backbone = TorchvisionFeatures("mobilenet_v2", ["features.6"])
    return detector(backbone, 2, extra_layers=ExtraLayers([8], depthwise=True), head=DepthwiseHead, **settings)


def weights_of_convolutions(model: nn.Module) -> set[str]:
    """Return the names of weights of convolutions and of linear layers, which are 1×1 convolutions in ConvNeXt."""
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
def test_each_trained_parameter_is_in_one_group(make, factor, decay):
    with torch.device("meta"):
        model = make()
    groups = ParameterGroups(factor, decay)(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if len(groups) > 1:  # Learning rates are logged by these names.
        assert len({group["name"] for group in groups}) == len(groups)

    convolutions = weights_of_convolutions(model)
    for group in groups:
        assert group["params"]
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr_factor"] == (factor if name.startswith("backbone.") else 1), name
            if decay:
                assert "weight_decay" not in group, name  # The optimizer's decay applies.
            else:
                assert ("weight_decay" not in group) == (name in convolutions), name
                assert group.get("weight_decay", 0.0) == 0, name


def test_factors_that_scale_a_block_do_not_decay():
    """Exclude ConvNeXt's ``layer_scale``, which has three axes: arXiv 2201.03545, appendix A.1."""
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
    """Expect w − lr · factor · (1 + decay · w), with gradients of 1 and decay of convolutions alone."""
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
        # The lift is not pretrained, and has the head's learning rate.
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
    """Compare with an optimizer without groups, times each group's factor."""
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


def test_the_default_is_a_single_group():
    """Apply the optimizer's decay to all parameters."""
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
    with pytest.raises(ValueError, match="model: expected parameters to train"):
        ParameterGroups()(model)
    with pytest.raises(ValueError, match="model: expected parameters to train"):
        SSDModule(model).new_optimizer()


@pytest.mark.parametrize("factor", [-0.1, float("-inf"), float("nan")])
def test_a_factor_below_0_is_refused(factor):
    with pytest.raises(ValueError, match=f"backbone_lr_factor: expected a number in .*, got {factor}"):
        ParameterGroups(factor)
