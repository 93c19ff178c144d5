"""The step as a whole: no host synchronisation in it, and one graph when it is compiled."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import DynamicOutputShapeException, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from ssd_lightning.detector.losses import BoxIoULoss, FocalLoss, MeanOverBoxesLoss, MultiBoxLoss
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher, boxes_of_shapes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.presets import build_model
from ssd_lightning.structures import Objects

OBJECTIVES = {
    "multibox": MultiBoxLoss,
    "focal": lambda: MultiBoxLoss(FocalLoss()),
    "giou": lambda: MultiBoxLoss(localization=BoxIoULoss("giou")),
    "ciou": lambda: MultiBoxLoss(localization=BoxIoULoss("ciou")),
    "mean over boxes": MeanOverBoxesLoss,
}


MATCHER = BoxMatcher(0.5, 0.4)


def make_objects(images: int = 2) -> Objects:
    """Two in the first image, none in the others."""
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8]]).repeat(images, 1, 1)
    valid = torch.zeros(images, 2, dtype=torch.bool)
    valid[0] = True
    return Objects(boxes, torch.tensor([[1, 2]]).repeat(images, 1), torch.zeros_like(valid), valid)


def step(model: SSD, objective: nn.Module, images: Tensor, objects: Objects, matcher: BoxMatcher = MATCHER) -> Tensor:
    matches = matcher(objects, model.default_boxes)
    return objective(model(images), matches, model.default_boxes).total


@pytest.mark.parametrize("read", [Tensor.item, Tensor.nonzero, bool, Tensor.tolist, Tensor.numpy])
def test_a_fake_tensor_cannot_be_read(read):
    """The next test rests on this."""
    with FakeTensorMode(), pytest.raises((RuntimeError, DataDependentOutputException, DynamicOutputShapeException)):
        read(torch.ones(1))


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        *(("tiny_ssd", objective) for objective in OBJECTIVES),
        *((name, "multibox") for name in ("ssd300_vgg16", "ssd300_resnet18", "ssdlite320_mobilenet_v2")),
    ],
)
def test_nothing_is_read_in_a_step(name: str, objective: str):
    """Fake tensors have no values: whatever would make a GPU wait fails here, forward and backward."""
    with FakeTensorMode():
        model = build_model(name, 3)
        objects = Objects(*(torch.zeros_like(tensor) for tensor in make_objects()))
        images = torch.zeros(2, 3, *model.image_size, dtype=torch.uint8)
        loss = step(model, OBJECTIVES[objective](), images, objects)
        loss.backward()
        assert loss.shape == ()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", ["tiny_ssd128", "ssdlite320_mobilenet_v2"])
def test_nothing_is_read_in_a_step_with_adaptive_matches(name: str):
    shapes = boxes_of_shapes(build_model(name, 3).default_boxes)
    matcher = AdaptiveMatcher()
    with FakeTensorMode() as mode:
        model = build_model(name, 3)
        objects = Objects(*(torch.zeros_like(tensor) for tensor in make_objects()))
        images = torch.zeros(2, 3, *model.image_size, dtype=torch.uint8)
        # As after the first call, which finds the shapes.
        matcher._known = model.default_boxes, [mode.from_tensor(of_shape) for of_shape in shapes]
        step(model, MultiBoxLoss(), images, objects, matcher).backward()
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            AdaptiveMatcher()(objects, model.default_boxes)  # A first call reads them.


@pytest.mark.slow
def test_forward_matching_and_loss_compile_as_one_graph():
    """Run the end of this file in another process, because dynamo cannot trace the tests' checks of shapes."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compare_with_compiled(name: str, objective: nn.Module, matcher: BoxMatcher = MATCHER) -> None:
    torch.manual_seed(0)
    model = build_model(name, 3, "model.image_size=160", "box_scales=tiny").eval()
    objects = make_objects()
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    parameters = list(model.parameters())
    expected = step(model, objective, images, objects, matcher)
    # "aot_eager" traces forward and backward as a compiler gets them, and needs none.
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss = compiled(model, objective, images, objects, matcher)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    found, gradients = (torch.autograd.grad(total, parameters) for total in (loss, expected))
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * largest)


if __name__ == "__main__":
    for preset in ("tiny_ssd", "ssd300_vgg16", "ssdlite320_mobilenet_v2"):
        compare_with_compiled(preset, MultiBoxLoss())
    for loss in (MultiBoxLoss(FocalLoss(), BoxIoULoss("ciou")), MeanOverBoxesLoss()):
        compare_with_compiled("tiny_ssd", loss)
    compare_with_compiled("tiny_ssd", MultiBoxLoss(), AdaptiveMatcher())
