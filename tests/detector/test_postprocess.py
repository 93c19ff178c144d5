"""Post-processing, compared with torchvision's SSD and batched NMS, a slow loop, and hand-made cases."""

import math
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import batched_nms, nms

from ssd_lightning.detector import postprocess
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, decode, encode, pairwise_iou
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.postprocess import BLOCK, PostProcess, best_candidates, non_maximum_suppression
from ssd_lightning.structures import Detections, Predictions

seeds = st.integers(0, 2**31 - 1)
fast = settings(derandomize=True, deadline=None, max_examples=60)

SMALL = DefaultBoxes([0.15, 0.4, 0.7, 0.95], [[2.0], [2.0], [2.0]])([(6, 6), (3, 3), (1, 1)], (64, 64))  # 184
SSD300 = DefaultBoxes(
    [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
)([(grid, grid) for grid in (38, 19, 10, 5, 3, 1)], (300, 300))


class Found(NamedTuple):
    """Detections of one image without padding."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def images_of(detections: Detections) -> list[Found]:
    return [
        Found(boxes[valid], labels[valid], scores[valid])
        for boxes, labels, scores, valid in zip(*detections, strict=True)
    ]


def random_predictions(seed: int, images: int, default_boxes: Tensor, num_classes: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, len(default_boxes))
    return Predictions(
        2 * torch.randn(*shape, num_classes + 1, generator=generator), torch.randn(*shape, 4, generator=generator)
    )


def trained_predictions(seed: int, images: int, default_boxes: Tensor, num_classes: int) -> Predictions:
    """Imitate a trained network, with 12 objects in each image.

    The default boxes around an object agree on its place, and nearly agree on its class. All others are background.
    """
    generator = torch.Generator().manual_seed(seed)
    size = 0.1 + 0.4 * torch.rand(images, 12, 2, generator=generator)
    left_top = (1 - size) * torch.rand(images, 12, 2, generator=generator)
    objects = torch.cat((left_top, left_top + size), dim=2)
    labels = torch.randint(1, num_classes + 1, (images, 12), generator=generator)
    iou, nearest = pairwise_iou(objects, cxcywh_to_xyxy(default_boxes).unsqueeze(0)).max(dim=1)

    logits = torch.randn(images, len(default_boxes), num_classes + 1, generator=generator)
    logits[..., 0] += 7
    near = (12 * iou).unsqueeze(2) * nn.functional.one_hot(labels.gather(1, nearest), num_classes + 1)
    offsets = encode(objects.gather(1, nearest.unsqueeze(2).expand(-1, -1, 4)), default_boxes)
    return Predictions(logits + near, offsets + 0.5 * torch.randn(offsets.shape, generator=generator))


def assert_found(actual: list[Found], expected: list[Found]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.labels.tolist() == theirs.labels.tolist()
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=2e-6)


# ---------------------------------------------------------------------------------------------------------- torchvision


def torchvision_detections(predictions: Predictions, default_boxes: Tensor, settings: PostProcess) -> list[Found]:
    # This is the part of an SSD that `postprocess_detections` needs, without a network.
    detector = TorchvisionSSD.__new__(TorchvisionSSD)
    nn.Module.__init__(detector)
    detector.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    detector.score_thresh = settings.score_threshold
    detector.nms_thresh = settings.nms_threshold
    detector.topk_candidates = settings.candidates_per_class
    detector.detections_per_img = settings.max_detections
    images = len(predictions.logits)
    results = detector.postprocess_detections(
        {"bbox_regression": predictions.offsets, "cls_logits": predictions.logits},
        [cxcywh_to_xyxy(default_boxes)] * images,
        [(1, 1)] * images,
    )
    return [Found(result["boxes"], result["labels"], result["scores"]) for result in results]


@pytest.mark.parametrize("make", [random_predictions, trained_predictions])
def test_ssd300_as_torchvision(make):
    """Use 8732 default boxes, 20 classes and the paper's settings."""
    predictions = make(1, 2, SSD300, num_classes=20)
    expected = torchvision_detections(predictions, SSD300, PostProcess())
    assert all(len(found.scores) == 200 for found in expected)
    assert_found(images_of(PostProcess()(predictions, SSD300)), expected)


def test_equal_scores_stay_in_the_order_of_the_default_boxes():
    scores = torch.tensor([0.5, 0.25, 0.75])[torch.randint(3, (2, 3, 900), generator=torch.Generator().manual_seed(0))]
    best = best_candidates(scores, 700)
    for rows, found, boxes in zip(scores.flatten(0, 1), best.scores.flatten(0, 1), best.box.flatten(0, 1), strict=True):
        expected = sorted(range(900), key=lambda box: (-rows[box], box))
        certain = int((rows > found[-1]).sum())
        assert boxes[:certain].tolist() == expected[:certain]
        assert boxes[certain:].tolist() == sorted(boxes[certain:].tolist())
        assert torch.equal(rows[boxes], found)
        assert found.tolist() == rows.sort(descending=True).values[:700].tolist()


@pytest.mark.parametrize("make", [random_predictions, trained_predictions])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score_threshold": 0.0},
        {"score_threshold": 0.3},
        {"nms_threshold": 0.1},
        {"nms_threshold": 1.0},
        {"candidates_per_class": 1},
        {"candidates_per_class": 7},
        {"max_detections": 1},
        {"max_detections": 1000},
        {"score_threshold": 0.0, "nms_threshold": 1.0, "candidates_per_class": 10_000, "max_detections": 10_000},
    ],
    ids=str,
)
def test_settings_as_torchvision(make, settings):
    predictions = make(2, 3, SMALL, num_classes=4)
    expected = torchvision_detections(predictions, SMALL, PostProcess(**settings))
    assert sum(len(found.scores) for found in expected) > 0
    assert_found(images_of(PostProcess(**settings)(predictions, SMALL)), expected)


@fast
@given(
    seed=seeds,
    images=st.integers(1, 3),
    num_classes=st.integers(1, 4),
    score_threshold=st.sampled_from([0.0, 0.01, 0.2, 0.6]),
    nms_threshold=st.sampled_from([0.2, 0.45, 0.7]),
    candidates_per_class=st.sampled_from([1, 20, 400]),
    max_detections=st.sampled_from([1, 10, 200]),
    block=st.sampled_from([1, 3, 50, 256]),
)
def test_any_settings_as_torchvision(seed, images, num_classes, block, **settings):
    predictions = random_predictions(seed, images, SMALL, num_classes)
    with mock.patch.object(postprocess, "BLOCK", block):
        detections = PostProcess(**settings)(predictions, SMALL)
    assert_found(images_of(detections), torchvision_detections(predictions, SMALL, PostProcess(**settings)))


# ------------------------------------------------------------------------------------------------------- by a slow loop


def detect_by_definition(logits: Tensor, offsets: Tensor, default_boxes: Tensor, settings: PostProcess) -> Found:
    """Detect in one image, class by class."""
    scores = logits.softmax(dim=1)[:, 1:]
    boxes = decode(offsets, default_boxes).clamp(0, 1)
    if settings.class_agnostic:
        scores, labels = scores.max(dim=1)
        scores = scores.unsqueeze(1)
    found = []
    for number, class_scores in enumerate(scores.unbind(dim=1)):
        candidates = class_scores.argsort(descending=True)[: settings.candidates_per_class]
        candidates = candidates[class_scores[candidates] > settings.score_threshold]
        for kept in candidates[nms(boxes[candidates], class_scores[candidates], settings.nms_threshold)].tolist():
            label = labels[kept].item() + 1 if settings.class_agnostic else number + 1
            found.append((class_scores[kept].item(), label, boxes[kept]))
    found = sorted(found, key=lambda detection: -detection[0])[: settings.max_detections]
    return Found(
        torch.stack([box for _, _, box in found]) if found else torch.zeros(0, 4),
        torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        torch.tensor([score for score, _, _ in found]),
    )


@fast
@given(
    seed=seeds,
    class_agnostic=st.booleans(),
    score_threshold=st.sampled_from([0.01, 0.3]),
    candidates_per_class=st.sampled_from([5, 400]),
    max_detections=st.sampled_from([3, 200]),
)
def test_as_defined(seed, **settings):
    predictions = random_predictions(seed, 2, SMALL, num_classes=3)
    settings = PostProcess(**settings)
    expected = [detect_by_definition(*image, SMALL, settings) for image in zip(*predictions, strict=True)]
    assert_found(images_of(settings(predictions, SMALL)), expected)


def test_class_agnostic_by_hand():
    """Put three default boxes in one place: one box per class is kept, or only the best of all classes."""
    default_boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).expand(3, 4)
    scores = torch.tensor([[[0.1, 0.5, 0.4], [0.3, 0.1, 0.6], [0.2, 0.45, 0.35]]])
    predictions = Predictions(scores.log(), torch.zeros(1, 3, 4))
    (by_class,) = images_of(PostProcess()(predictions, default_boxes))
    assert by_class.labels.tolist() == [2, 1]
    assert by_class.scores.tolist() == pytest.approx([0.6, 0.5])
    (agnostic,) = images_of(PostProcess(class_agnostic=True)(predictions, default_boxes))
    assert agnostic.labels.tolist() == [2]
    assert agnostic.scores.tolist() == pytest.approx([0.6])
    torch.testing.assert_close(agnostic.boxes, torch.tensor([[0.3, 0.3, 0.7, 0.7]]))


# ---------------------------------------------------------------------------------------------------------------- edges


def sure_of_background(images: int, default_boxes: Tensor, num_classes: int = 2) -> Predictions:
    logits = torch.zeros(images, len(default_boxes), num_classes + 1)
    logits[..., 0] = 20
    return Predictions(logits, torch.zeros(images, len(default_boxes), 4))


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_nothing_found(class_agnostic):
    detections = PostProcess(class_agnostic=class_agnostic)(sure_of_background(2, SMALL), SMALL)
    assert detections.boxes.shape == (2, 200, 4)
    assert not detections.valid.any()
    assert not any(column.any() for column in detections)  # Padding is 0.


def test_an_empty_and_a_full_image():
    """Compare with each image alone, as blocks continue until every image has enough."""
    full = random_predictions(3, 1, SSD300, num_classes=4)
    empty = sure_of_background(1, SSD300, num_classes=4)
    settings = PostProcess(max_detections=300)
    batch = Predictions(*(torch.cat(pair) for pair in zip(empty, full, empty, strict=True)))
    nothing, found, nothing_again = images_of(settings(batch, SSD300))
    assert len(nothing.scores) == len(nothing_again.scores) == 0
    (alone,) = images_of(settings(full, SSD300))
    assert len(alone.scores) == 300 > BLOCK
    assert_found([found], [alone])


def test_padding_is_zero_and_last():
    detections = PostProcess(score_threshold=0.6)(random_predictions(4, 3, SMALL, num_classes=2), SMALL)
    found = detections.valid.sum(dim=1)
    assert (found > 0).all()
    assert (found < 200).all()
    assert torch.equal(detections.valid, torch.arange(200) < found.unsqueeze(1))
    assert not any(column[~detections.valid].any() for column in detections)
    assert (detections.scores[:, :-1] >= detections.scores[:, 1:]).all()
    assert (detections.labels[detections.valid] >= 1).all()


def test_a_score_has_to_be_above_the_threshold():
    default_boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.1]]])  # The scores are ½ and 0.525.
    (found,) = images_of(PostProcess(score_threshold=0.5)(Predictions(logits, torch.zeros(1, 2, 4)), default_boxes))
    torch.testing.assert_close(found.boxes, torch.tensor([[0.75, 0.75, 0.85, 0.85]]))


def test_boxes_are_cut_before_suppression():
    """Use two boxes that differ only outside the image."""
    default_boxes = torch.tensor([[0.0, 0.5, 0.4, 0.4], [-0.3, 0.5, 1.0, 0.4]])
    predictions = Predictions(torch.tensor([[[0.0, 3.0], [0.0, 2.0]]]), torch.zeros(1, 2, 4))
    (found,) = images_of(PostProcess()(predictions, default_boxes))
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0.3, 0.2, 0.7]]))


def test_a_box_without_a_score_does_not_hide_the_others():
    default_boxes = torch.tensor([[0.2, 0.5, 0.3, 0.4], [0.7, 0.5, 0.3, 0.4]])
    logits = torch.tensor([[[0.0, math.nan], [0.0, 3.0]], [[0.0, 3.0], [0.0, 3.0]]])
    both = images_of(PostProcess()(Predictions(logits, torch.zeros(2, 2, 4)), default_boxes))
    (alone,) = images_of(PostProcess()(Predictions(logits[:1], torch.zeros(1, 2, 4)), default_boxes))
    assert len(alone.scores) == 1
    torch.testing.assert_close(alone, both[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_and_boxes_are_float32(dtype):
    predictions = Predictions(*(values.to(dtype) for values in random_predictions(1, 2, SMALL, num_classes=3)))
    exact = Predictions(*(values.float() for values in predictions))
    detections = PostProcess()(predictions, SMALL)
    assert detections.scores.dtype == detections.boxes.dtype == torch.float32
    torch.testing.assert_close(detections, PostProcess()(exact, SMALL), rtol=0, atol=0)


def test_takes_no_gradient():
    predictions = Predictions(*(values.requires_grad_() for values in random_predictions(1, 1, SMALL, num_classes=2)))
    assert not PostProcess()(predictions, SMALL).scores.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 1.0}, r"score_threshold: expected a number in \[0, 1\), got 1.0"),
        ({"score_threshold": -0.1}, "score_threshold: .* got -0.1"),
        ({"nms_threshold": 0.0}, r"nms_threshold: expected a number in \(0, 1\], got 0.0"),
        ({"nms_threshold": 1.5}, "nms_threshold: .* got 1.5"),
        ({"candidates_per_class": 0}, "candidates_per_class: expected a whole number of at least 1, got 0"),
        ({"max_detections": 0}, "max_detections: expected a whole number of at least 1, got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PostProcess(**arguments)


# ---------------------------------------------------------------------------------------------------------- suppression


def sixteenths(numbers: list[list[int]]) -> Tensor:
    """Make boxes from (left, top, width, height) in sixteenths, where areas and sums are exact."""
    rows = torch.tensor(numbers, dtype=torch.float32).view(-1, 4) / 16
    return torch.cat((rows[:, :2], rows[:, :2] + rows[:, 2:]), dim=1)


grid_boxes = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40
).map(lambda rows: sixteenths([list(row) for row in rows]))


@fast
@given(
    boxes=grid_boxes,
    seed=seeds,
    num_groups=st.integers(1, 3),
    alive=st.integers(0, 40),
    iou_threshold=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    most=st.integers(1, 45),
    block=st.sampled_from([1, 2, 5, 256]),
)
def test_suppression_as_torchvision(boxes, seed, num_groups, alive, iou_threshold, most, block):
    """Include equal boxes, empty boxes, IoUs equal to the threshold, and all ends of blocks."""
    groups = torch.randint(num_groups, (len(boxes),), generator=torch.Generator().manual_seed(seed))
    falling = torch.arange(len(boxes), 0, -1).float()
    is_alive = torch.arange(len(boxes)) < alive
    with mock.patch.object(postprocess, "BLOCK", block):
        kept = non_maximum_suppression(boxes[None], groups[None], is_alive[None], iou_threshold, most)
    expected = batched_nms(boxes[is_alive], falling[is_alive], groups[is_alive], iou_threshold)[:most].tolist()
    assert kept.candidate.shape == kept.valid.shape == (1, most)
    assert kept.candidate[kept.valid].tolist() == expected
    assert not kept.candidate[~kept.valid].any()


@pytest.mark.parametrize("block", [1, 2, 256])
def test_the_suppressed_do_not_suppress(block):
    """Keep every second box of a row in which each box overlaps the next."""
    boxes = sixteenths([[x, 0, 4, 4] for x in range(0, 12, 2)])  # Neighbours have an IoU of ⅓.
    groups, alive = torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.bool)
    with mock.patch.object(postprocess, "BLOCK", block):
        kept = non_maximum_suppression(boxes.unsqueeze(0), groups, alive, 0.25, 6)
    assert kept.candidate[kept.valid].tolist() == [0, 2, 4]


@pytest.mark.parametrize("iou_threshold", [0.3, 0.6, 0.9])
def test_blocks_as_torchvision(iou_threshold):
    """Use 2000 crowded candidates, so that blocks suppress candidates of other blocks."""
    generator = torch.Generator().manual_seed(1)
    left_top = torch.rand(3, 2000, 2, generator=generator) * 0.6
    boxes = torch.cat((left_top, left_top + 0.1 + 0.3 * torch.rand(3, 2000, 2, generator=generator)), dim=2)
    groups = torch.randint(3, (3, 2000), generator=generator)
    alive = torch.arange(2000) < torch.tensor([[2000], [700], [0]])
    assert boxes.shape[1] > 4 * BLOCK
    for most in (10, 1999):
        kept = non_maximum_suppression(boxes, groups, alive, iou_threshold, most)
        for image in range(3):
            expected = batched_nms(
                boxes[image][alive[image]],
                torch.arange(2000, 0, -1).float()[alive[image]],
                groups[image][alive[image]],
                iou_threshold,
            )
            assert kept.candidate[image][kept.valid[image]].tolist() == expected[:most].tolist()
    assert kept.candidate[0].max() > BLOCK
