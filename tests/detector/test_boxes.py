"""Box formats, IoU and the box encoding, compared with hand-made cases and torchvision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert, box_iou

from ssd_lightning.detector.boxes import VARIANCES, cxcywh_to_xyxy, decode, encode, pairwise_iou, xyxy_to_cxcywh

seeds = st.integers(0, 2**31 - 1)
fast = settings(derandomize=True, deadline=None, max_examples=40)


def random_boxes(*shape: int, seed: int, smallest: float = 0.01) -> Tensor:
    """Make boxes (xyxy) inside the image."""
    generator = torch.Generator().manual_seed(seed)
    size = smallest + (0.9 - smallest) * torch.rand(*shape, 2, generator=generator)
    left_top = (1 - size) * torch.rand(*shape, 2, generator=generator)
    return torch.cat((left_top, left_top + size), dim=-1)


# ------------------------------------------------------------------------------------------------------------ formats


def test_formats_by_hand():
    xyxy, cxcywh = torch.tensor([[0.1, 0.2, 0.5, 0.8]]), torch.tensor([[0.3, 0.5, 0.4, 0.6]])
    torch.testing.assert_close(xyxy_to_cxcywh(xyxy), cxcywh)
    torch.testing.assert_close(cxcywh_to_xyxy(cxcywh), xyxy)


@pytest.mark.parametrize("shape", [(7,), (0,), (2, 3), (2, 3, 5)])
def test_formats_as_torchvision(shape):
    boxes = random_boxes(*shape, seed=1)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))


# ---------------------------------------------------------------------------------------------------------------- IoU


@pytest.mark.parametrize(
    ("box", "other", "iou"),
    [
        pytest.param((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), 1.0, id="the same"),
        pytest.param((0.0, 0.0, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75), 0.25, id="one inside the other"),
        pytest.param((0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), 1 / 7, id="corners overlap"),
        pytest.param((0.0, 0.0, 0.5, 0.5), (0.0, 0.25, 0.5, 0.75), 1 / 3, id="moved down by half"),
        pytest.param((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), 0.0, id="side by side"),
        pytest.param((0.0, 0.0, 0.2, 0.2), (0.7, 0.7, 1.0, 1.0), 0.0, id="apart on both axes"),
        pytest.param((0.0, 0.0, 0.2, 1.0), (0.5, 0.0, 1.0, 1.0), 0.0, id="apart on one axis"),
        pytest.param((0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), 0.0, id="a point in a box"),
        pytest.param((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0, id="the same point"),
        pytest.param((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), 0.0, id="nothing and nothing"),
        pytest.param((0.1, 0.5, 0.9, 0.5), (0.1, 0.5, 0.9, 0.5), 0.0, id="the same line"),
    ],
)
def test_iou_by_hand(box, other, iou):
    assert pairwise_iou(torch.tensor([[box]]), torch.tensor([[other]])).item() == pytest.approx(iou, abs=1e-7)


@fast
@given(seeds, st.integers(1, 3), st.integers(0, 6), st.integers(0, 6))
def test_iou_as_torchvision(seed, batch, count, other_count):
    boxes, others = random_boxes(batch, count, seed=seed), random_boxes(batch, other_count, seed=seed + 1)
    iou = pairwise_iou(boxes, others)
    assert iou.shape == (batch, count, other_count)
    for image in range(batch):
        torch.testing.assert_close(iou[image], box_iou(boxes[image], others[image]), rtol=1e-5, atol=1e-7)


def test_one_list_of_others_serves_all_images():
    boxes, others = random_boxes(3, 5, seed=1), random_boxes(1, 4, seed=2)
    torch.testing.assert_close(pairwise_iou(boxes, others), pairwise_iou(boxes, others.expand(3, -1, -1)))
    torch.testing.assert_close(pairwise_iou(boxes, others)[2], box_iou(boxes[2], others[0]))


def test_iou_leaves_its_arguments_alone():
    boxes, others = random_boxes(2, 5, seed=1), random_boxes(2, 4, seed=2)
    before, others_before = boxes.clone(), others.clone()
    pairwise_iou(boxes, others)
    assert torch.equal(boxes, before)
    assert torch.equal(others, others_before)


# -------------------------------------------------------------------------------------------------------------- coder

DEFAULT_BOX = (0.5, 0.5, 0.2, 0.4)


@pytest.mark.parametrize(
    ("box", "offsets"),
    [
        pytest.param((0.4, 0.3, 0.6, 0.7), (0, 0, 0, 0), id="the default box itself"),
        pytest.param((0.45, 0.4, 0.65, 0.8), (0.05 / 0.2 / 0.1, 0.1 / 0.4 / 0.1, 0, 0), id="moved"),
        pytest.param((0.3, 0.4, 0.7, 0.6), (0, 0, math.log(2) / 0.2, -math.log(2) / 0.2), id="wider and lower"),
        pytest.param(
            (0.6, 0.5, 0.7, 0.6), (7.5, 1.25, math.log(0.5) / 0.2, math.log(0.25) / 0.2), id="moved and smaller"
        ),
    ],
)
def test_offsets_by_hand(box, offsets):
    box, offsets = torch.tensor([box]), torch.tensor([offsets], dtype=torch.float32)
    torch.testing.assert_close(encode(box, torch.tensor([DEFAULT_BOX])), offsets, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(offsets, torch.tensor([DEFAULT_BOX])), box)


def test_variances_divide_the_offsets():
    box, default_box = torch.tensor([[0.45, 0.4, 0.65, 0.6]]), torch.tensor([DEFAULT_BOX])
    shares = torch.tensor([[0.25, 0, 0, math.log(0.5)]])
    torch.testing.assert_close(encode(box, default_box, variances=(1.0, 1.0)), shares, rtol=1e-5, atol=1e-6)
    quartered = encode(box, default_box, variances=(0.5, 0.25))
    torch.testing.assert_close(quartered, shares * torch.tensor([2, 2, 4, 4]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decode(quartered, default_box, variances=(0.5, 0.25)), box)
    assert VARIANCES == (0.1, 0.2)


@fast
@given(seeds, st.integers(0, 20))
def test_coder_as_torchvision(seed, count):
    """Compare with weights that are one over the variances, and default boxes as xyxy."""
    theirs = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    boxes, default_boxes = random_boxes(count, seed=seed), random_boxes(count, seed=seed + 1)
    offsets = encode(boxes, xyxy_to_cxcywh(default_boxes))
    torch.testing.assert_close(offsets, theirs.encode_single(boxes, default_boxes), rtol=1e-4, atol=1e-4)
    offsets = 5 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        decode(offsets, xyxy_to_cxcywh(default_boxes)), theirs.decode_single(offsets, default_boxes)
    )


@fast
@given(seeds, st.sampled_from([(9,), (2, 9), (2, 3, 9)]))
def test_decoding_undoes_encoding(seed, shape):
    """Stay below the limit of 62.5 times the default box."""
    boxes = random_boxes(*shape, seed=seed)
    default_boxes = xyxy_to_cxcywh(random_boxes(9, seed=seed + 1, smallest=0.02))
    torch.testing.assert_close(decode(encode(boxes, default_boxes), default_boxes), boxes, rtol=0, atol=1e-6)


def test_each_image_may_have_default_boxes_of_its_own():
    """Decode the candidates of each image, as in post-processing."""
    offsets, default_boxes = torch.randn(2, 5, 4), xyxy_to_cxcywh(random_boxes(2, 5, seed=1))
    together = decode(offsets, default_boxes)
    for image in range(2):
        torch.testing.assert_close(together[image], decode(offsets[image], default_boxes[image]))


@pytest.mark.parametrize("box", [(0.3, 0.3, 0.3, 0.6), (0.3, 0.3, 0.6, 0.3), (0.0,) * 4, (0.6, 0.6, 0.3, 0.3)])
def test_a_box_without_size_has_finite_offsets(box):
    assert encode(torch.tensor([box]), torch.tensor([DEFAULT_BOX])).isfinite().all()


def test_a_box_grows_to_a_limit():
    """Grow to 62.5 times the default box, as in torchvision, so that ``exp`` does not overflow."""
    offsets, default_box = torch.tensor([[0.0, 0.0, 1e4, 1e30]]), torch.tensor([DEFAULT_BOX])
    decoded = decode(offsets, default_box)
    width, height = xyxy_to_cxcywh(decoded)[0, 2:].tolist()
    assert width == pytest.approx(62.5 * DEFAULT_BOX[2], rel=1e-5)
    assert height == pytest.approx(62.5 * DEFAULT_BOX[3], rel=1e-5)
    theirs = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(decoded, theirs.decode_single(offsets, cxcywh_to_xyxy(default_box)))


def test_a_box_shrinks_to_nothing():
    decoded = decode(torch.tensor([[0.0, 0.0, -1e4, -1e30]]), torch.tensor([DEFAULT_BOX]))
    torch.testing.assert_close(decoded, torch.full((1, 4), 0.5))
