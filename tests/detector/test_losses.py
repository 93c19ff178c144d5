"""The objectives: against torchvision's SSD, d2l.ai's formulas, and the definitions written out as slow loops."""

import contextlib
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssd_lightning.detector import losses
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, decode
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.losses import (
    L1,
    BoxIoULoss,
    FocalLoss,
    MeanOverBoxesLoss,
    MinedCrossEntropy,
    MultiBoxLoss,
    SmoothL1,
    plain_errors,
)
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.structures import Matches, Objects, Predictions

CLASSIFICATIONS = {"mined": MinedCrossEntropy(), "focal": FocalLoss()}
LOCALIZATIONS = {
    "smooth L1": SmoothL1(),
    "L1": L1(),
    "GIoU": BoxIoULoss("giou"),
    "DIoU": BoxIoULoss("diou"),
    "CIoU": BoxIoULoss("ciou"),
}
DEFAULT_BOXES = DefaultBoxes([0.25, 0.5, 0.9], [[2.0], [2.0]])([(4, 4), (2, 2)], (64, 64))  # 80


class Scene(NamedTuple):
    """What a loss takes."""

    predictions: Predictions
    matches: Matches
    default_boxes: Tensor


def make_objects(counts: list[int], seed: int = 0, num_classes: int = 3) -> Objects:
    """As many objects as ``counts`` says for each image, padded with zeros as a data loader does."""
    generator = torch.Generator().manual_seed(seed)
    slots = max(counts)
    valid = torch.arange(slots) < torch.tensor(counts).unsqueeze(1)
    size = 0.2 + 0.6 * torch.rand(len(counts), slots, 2, generator=generator)
    left_top = (1 - size) * torch.rand(len(counts), slots, 2, generator=generator)
    labels = torch.randint(1, num_classes + 1, (len(counts), slots), generator=generator)
    return Objects(
        torch.cat((left_top, left_top + size), dim=2) * valid.unsqueeze(2),
        labels * valid,
        torch.zeros_like(valid),
        valid,
    )


def make_predictions(images: int, seed: int = 0, num_classes: int = 3) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        (2 * torch.randn(images, len(DEFAULT_BOXES), num_classes + 1, generator=generator)).requires_grad_(),
        torch.randn(images, len(DEFAULT_BOXES), 4, generator=generator).requires_grad_(),
    )


def make_scene(counts: list[int], seed: int = 0, background_threshold: float | None = None) -> Scene:
    matches = BoxMatcher(0.5, background_threshold)(make_objects(counts, seed), DEFAULT_BOXES)
    return Scene(make_predictions(len(counts), seed), matches, DEFAULT_BOXES)


def labels_alone(labels: list[list[int]]) -> Matches:
    """All objects are the whole image."""
    labels = torch.tensor(labels)
    return Matches(labels, torch.zeros_like(labels), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(labels), 1, 4))


def gradients(total: Tensor, predictions: Predictions) -> Predictions:
    return Predictions(*torch.autograd.grad(total, predictions, allow_unused=True))


@pytest.fixture(params=["leave out", "mask"])
def either_path(request, monkeypatch):
    """A CPU leaves out the default boxes that do not count; a GPU and a compiled graph compute all and mask."""
    if request.param == "mask":
        monkeypatch.setattr(losses, "can_read", lambda tensor: False)


# ------------------------------------------------------------------------------------------------------ torchvision


def torchvision_ssd() -> nn.Module:
    """What ``compute_loss`` needs, without a network."""
    # Imported here, because each of the ranks below imports this file, and torchvision takes longer than torch.
    from torchvision.models.detection._utils import BoxCoder, SSDMatcher
    from torchvision.models.detection.ssd import SSD

    detector = SSD.__new__(SSD)
    nn.Module.__init__(detector)
    detector.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    detector.proposal_matcher = SSDMatcher(0.5)
    detector.neg_to_pos_ratio = 3.0
    return detector


def torchvision_losses(scene: Scene) -> tuple[Tensor, Tensor]:
    """(classification, localization). Its targets here are one object for each default box."""
    predictions, matches, default_boxes = scene
    number = torch.arange(len(default_boxes)).expand_as(matches.labels)
    result = torchvision_ssd().compute_loss(
        [{"boxes": boxes, "labels": labels} for labels, boxes in zip(matches.labels, matches.boxes, strict=True)],
        {"bbox_regression": predictions.offsets, "cls_logits": predictions.logits},
        [cxcywh_to_xyxy(default_boxes)] * len(matches.labels),
        list(torch.where(matches.labels > 0, number, -1)),
    )
    return result["classification"], result["bbox_regression"]


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [[1], [2, 1], [4, 1, 7]])
def test_as_torchvision_where_every_image_has_objects(counts, seed):
    scene = make_scene(counts, seed)
    ours, (classification, localization) = MultiBoxLoss()(*scene), torchvision_losses(scene)
    torch.testing.assert_close(ours.classification, classification)
    torch.testing.assert_close(ours.localization, localization)
    torch.testing.assert_close(ours.total, classification + localization)
    theirs = gradients(classification + localization, scene.predictions)
    for gradient, expected in zip(gradients(ours.total, scene.predictions), theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------- by the definition


def mined_by_definition(losses_as_background: list[float], labels: list[int], ratio: float, least: int) -> set[int]:
    positives = sum(label > 0 for label in labels)
    wanted = ratio * positives if positives else least
    negatives = [box for box, label in enumerate(labels) if label == 0]
    negatives.sort(key=lambda box: -losses_as_background[box])
    return {box for rank, box in enumerate(negatives) if rank < wanted}


def multibox_by_definition(
    scene: Scene, alpha: float = 1.0, ratio: float = 3.0, least: int = 3, sigma: float = 1.0
) -> tuple[float, float, float]:
    """(total, classification, localization) in Python's floats, one default box at a time."""
    probabilities = scene.predictions.logits.double().softmax(dim=2).tolist()
    labels = scene.matches.labels.tolist()
    classification = localization = 0.0
    for image in range(len(labels)):
        background_losses = [-math.log(p[0]) for p in probabilities[image]]
        mined = mined_by_definition(background_losses, labels[image], ratio, least)
        for box, label in enumerate(labels[image]):
            if label > 0 or box in mined:
                classification -= math.log(probabilities[image][box][label])
            if label > 0:
                left, top, right, bottom = scene.matches.boxes[image, box].tolist()
                cx, cy, width, height = scene.default_boxes[box].tolist()
                wanted = (
                    ((left + right) / 2 - cx) / width / 0.1,
                    ((top + bottom) / 2 - cy) / height / 0.1,
                    math.log((right - left) / width) / 0.2,
                    math.log((bottom - top) / height) / 0.2,
                )
                for offset, target in zip(scene.predictions.offsets[image, box].tolist(), wanted, strict=True):
                    x = abs(offset - target)
                    localization += (sigma * x) ** 2 / 2 if x < sigma**-2 else x - 0.5 / sigma**2
    count = max(1, sum(label > 0 for row in labels for label in row))
    return (classification + alpha * localization) / count, classification / count, localization / count


@pytest.mark.parametrize("counts", [[0], [3], [0, 2], [0, 0, 0], [5, 0, 1, 2]])
@pytest.mark.parametrize("background_threshold", [None, 0.3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"alpha": 0.3, "sigma": 2.0}, {"ratio": 0.0, "least": 0}, {"ratio": 1.7, "least": 5}, {"ratio": 1000.0}],
    ids=str,
)
def test_multibox_as_defined(counts, background_threshold, settings):
    scene = make_scene(counts, seed=sum(counts), background_threshold=background_threshold)
    loss = MultiBoxLoss(
        MinedCrossEntropy(settings.get("ratio", 3.0), settings.get("least", 3)),
        SmoothL1(settings.get("sigma", 1.0)),
        settings.get("alpha", 1.0),
    )
    ours = [value.item() for value in loss(*scene)]
    assert ours == pytest.approx(multibox_by_definition(scene, **settings), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("counts", [[2], [3, 0, 5], [0, 0]], ids=["one image", "three", "no objects"])
def test_what_is_left_out_and_what_is_masked_are_the_same(classification, localization, counts, monkeypatch):
    """Without an object the target may be padding: an empty box, whose aspect ratio is 0 / 0."""
    scene = make_scene(counts, seed=3, background_threshold=0.3)
    assert (scene.matches.labels == -1).any() == any(counts)
    loss = MultiBoxLoss(CLASSIFICATIONS[classification], LOCALIZATIONS[localization])
    compact = loss(*scene)
    compact_gradients = gradients(compact.total, scene.predictions)
    monkeypatch.setattr(losses, "can_read", lambda tensor: False)
    masked = loss(*scene)
    torch.testing.assert_close(masked, compact)
    for gradient, expected in zip(gradients(masked.total, scene.predictions), compact_gradients, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("localization", LOCALIZATIONS)
def test_targets_without_an_object_do_no_harm(localization):
    """Matches promise nothing about boxes without an object."""
    scene = make_scene([2, 0], seed=1)
    labels, boxes = scene.matches.labels, scene.matches.boxes
    # An object for each default box; those of boxes without one are junk.
    junk = torch.where((labels > 0).unsqueeze(2), boxes, float("nan"))
    matches = Matches(labels, torch.arange(labels.shape[1]).expand_as(labels), junk)
    loss = MultiBoxLoss(localization=LOCALIZATIONS[localization])
    expected, actual = loss(*scene), loss(scene.predictions, matches, scene.default_boxes)
    torch.testing.assert_close(actual, expected)
    assert gradients(actual.total, scene.predictions).offsets.isfinite().all()


# ------------------------------------------------------------------------------------------------- hard negatives


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize(
    ("ratio", "least", "labels", "counts"),
    [
        pytest.param(3.0, 3, [1, 0, 0, 0, 0, 0, 0, 0], 3, id="three for one"),
        pytest.param(3.0, 3, [1, 0, 2, 0, 0, 0, 0, 0], 6, id="six for two"),
        pytest.param(3.0, 3, [1, 0, 2, 3, 0, 0, 0, 0], 5, id="more wanted than there are"),
        pytest.param(3.0, 3, [1, 1, 2, 3, 1, 1, 1, 1], 0, id="no negatives"),
        pytest.param(2.5, 3, [1, 0, 0, 0, 0, 0, 0, 0], 3, id="2.5 for one"),
        pytest.param(2.5, 3, [1, 1, 0, 0, 0, 0, 0, 0], 5, id="5 for two"),
        pytest.param(0.5, 3, [1, 0, 0, 0, 0, 0, 0, 0], 1, id="half for one"),
        pytest.param(0.0, 3, [1, 0, 0, 0, 0, 0, 0, 0], 0, id="none"),
        pytest.param(3.0, 3, [0, 0, 0, 0, 0, 0, 0, 0], 3, id="no positives"),
        pytest.param(3.0, 0, [0, 0, 0, 0, 0, 0, 0, 0], 0, id="no positives, none wanted"),
        pytest.param(3.0, 99, [0, 0, 0, 0, 0, 0, 0, 0], 8, id="no positives, more wanted than there are"),
        pytest.param(3.0, 3, [1, -1, -1, -1, -1, -1, 0, 0], 2, id="the ignored do not fill in"),
        pytest.param(3.0, 3, [-1, -1, -1, -1, -1, -1, -1, -1], 0, id="all ignored"),
    ],
)
def test_number_of_negatives(ratio, least, labels, counts):
    """Of equal logits too, where only the order of the default boxes can decide."""
    labels = torch.tensor([labels, labels])
    for logits in (torch.zeros(2, 8, 4), torch.randn(2, 8, 4), torch.tensor([1e4, 0, 0, 0]).expand(2, 8, 4)):
        mined = MinedCrossEntropy(ratio, least).mine(logits, labels)
        assert mined.sum(dim=1).tolist() == [counts, counts]
        assert not mined[labels != 0].any()


def test_negatives_are_counted_for_each_image():
    mined = MinedCrossEntropy().mine(
        torch.zeros(3, 20, 2), F.one_hot(torch.tensor([4, 7, 7]), 20) * torch.tensor([[1], [1], [0]])
    )
    assert mined.sum(dim=1).tolist() == [3, 3, 3]
    two = torch.zeros(2, 20, dtype=torch.int64)
    two[0, :5] = 1
    assert MinedCrossEntropy().mine(torch.zeros(2, 20, 2), two).sum(dim=1).tolist() == [15, 3]


def test_negatives_are_those_least_like_background():
    """By the loss, not by the logit: what all classes share says nothing."""
    background = torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0])
    logits = torch.stack((background, torch.zeros(6)), dim=1) + torch.tensor([0.0, 9, 0, -30, 20, 3]).unsqueeze(1)
    mined = MinedCrossEntropy(min_negatives=2).mine(logits.unsqueeze(0), torch.zeros(1, 6, dtype=torch.int64))
    assert mined[0].nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize("shift", [0.0, 95.0, -75.0, -95.0, -110.0, 1000.0])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_negatives_are_those_of_double_precision(shift, spread):
    """Where exponentials overflow, and where they have no digits left."""
    logits = torch.randn(2, 300, 21, generator=torch.Generator().manual_seed(0)) * spread + shift
    loss = -logits.double().log_softmax(dim=-1)[..., 0]
    expected = torch.zeros(2, 300, dtype=torch.bool).scatter(1, loss.topk(30).indices, True)
    mined = MinedCrossEntropy(min_negatives=30).mine(logits, torch.zeros(2, 300, dtype=torch.int64))
    torch.testing.assert_close(mined, expected)


def test_negatives_are_chosen_in_float32_whatever_the_autocast():
    """Of easy ones, the order is in the last digits of a sum of exponentials."""
    logits = torch.randn(2, 300, 21, generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 9
    nothing = torch.zeros(2, 300, dtype=torch.int64)
    expected = MinedCrossEntropy(min_negatives=30).mine(logits, nothing)
    with torch.autocast("cpu", torch.bfloat16):
        mined = MinedCrossEntropy(min_negatives=30).mine(logits, nothing)
    torch.testing.assert_close(mined, expected)


@pytest.mark.parametrize("classes", [2, 21])
def test_loss_of_equal_logits(classes):
    """1 positive and 3 negatives, each ln(C + 1): a fresh network starts at 4 ln(C + 1)."""
    matches = labels_alone([[1, *[0] * 30, 1], [0] * 31 + [1]])
    default_boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(32, 4)
    predictions = Predictions(torch.full((2, 32, classes), 0.7), torch.zeros(2, 32, 4))
    loss = MultiBoxLoss()(predictions, matches, default_boxes)
    assert loss.classification.item() == pytest.approx(4 * math.log(classes), rel=1e-5)
    assert loss.localization.item() == 0


# ----------------------------------------------------------------------------------------------------------- edges


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("images", [1, 3])
def test_no_object_in_the_batch(classification, localization, images):
    """The loss is finite, the background teaches, and boxes have nothing to learn."""
    scene = make_scene([0] * images, seed=2)
    loss = MultiBoxLoss(CLASSIFICATIONS[classification], LOCALIZATIONS[localization])(*scene)
    assert loss.total.isfinite()
    assert loss.total > 0
    assert loss.localization == 0
    gradient = gradients(loss.total, scene.predictions)
    assert gradient.logits.isfinite().all()
    assert (gradient.logits[..., 0].sum(dim=1) < 0).all()  # in every image the background has to rise
    assert not gradient.offsets.any()


def test_min_negatives_of_an_image_without_objects():
    """Its three hardest negatives, divided by 1."""
    scene = make_scene([0], seed=5)
    background_losses = F.cross_entropy(
        scene.predictions.logits[0], torch.zeros(80, dtype=torch.int64), reduction="none"
    )
    hardest = background_losses.topk(4).values
    for count in (1, 3, 4):
        loss = MultiBoxLoss(MinedCrossEntropy(min_negatives=count))(*scene)
        torch.testing.assert_close(loss.total, hardest[:count].sum())
    assert MultiBoxLoss(MinedCrossEntropy(min_negatives=0))(*scene).total == 0


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_ignored_default_boxes_never_contribute(classification):
    scene = make_scene([3, 2], seed=4, background_threshold=0.3)
    ignored = scene.matches.labels == -1
    assert ignored.sum() > 5
    loss = MultiBoxLoss(CLASSIFICATIONS[classification])
    before = loss(*scene)
    gradient = gradients(before.total, scene.predictions)
    assert not gradient.logits[ignored].any()
    assert not gradient.offsets[ignored].any()

    surely_wrong = torch.tensor([-50.0, 50.0, 0.0, 0.0])
    changed = Predictions(
        torch.where(ignored.unsqueeze(2), surely_wrong, scene.predictions.logits),
        torch.where(ignored.unsqueeze(2), 1e3, scene.predictions.offsets),
    )
    torch.testing.assert_close(loss(changed, scene.matches, scene.default_boxes), before)


def test_alpha_weighs_the_localization():
    scene = make_scene([2, 1])
    once = MultiBoxLoss()(*scene)
    for alpha in (0.0, 0.5, 4.0):
        loss = MultiBoxLoss(alpha=alpha)(*scene)
        torch.testing.assert_close(loss.total, once.classification + alpha * once.localization)
        torch.testing.assert_close(loss.localization, once.localization)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [MultiBoxLoss(), MultiBoxLoss(FocalLoss(), BoxIoULoss("ciou")), MeanOverBoxesLoss()])
def test_float32_under_autocast(dtype, loss):
    scene = make_scene([2, 0, 3])
    half = Predictions(*(values.detach().to(dtype).requires_grad_() for values in scene.predictions))
    exact = Predictions(*(values.detach().float() for values in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(half, scene.matches, scene.default_boxes)
    assert [value.dtype for value in actual] == [torch.float32] * 3
    torch.testing.assert_close(actual, loss(exact, scene.matches, scene.default_boxes), rtol=0, atol=0)
    actual.total.backward()
    assert half.logits.grad.dtype == dtype
    assert half.logits.grad.isfinite().all()


@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("classification", CLASSIFICATIONS)
def test_nothing_is_read_by_the_host(classification, localization, monkeypatch):
    """Meta tensors have shapes and no values: ``item``, ``nonzero`` and boolean indexing, for which a GPU would have to
    wait, are errors there."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none for meta
    loss = MultiBoxLoss(CLASSIFICATIONS[classification], LOCALIZATIONS[localization])
    default_boxes = DEFAULT_BOXES.to("meta")
    predictions = Predictions(*(values.detach().to("meta").requires_grad_() for values in make_predictions(2)))
    objects = Objects(*(column.to("meta") for column in make_objects([2, 1])))
    matches = BoxMatcher(0.5, 0.4)(objects, default_boxes)
    loss(predictions, matches, default_boxes).total.backward()
    assert predictions.offsets.grad.shape == (2, 80, 4)
    with pytest.raises(NotImplementedError):
        matches.labels.nonzero()  # as the test supposes


# --------------------------------------------------------------------------------------------------- classification


def focal_by_definition(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> float:
    total = 0.0
    for p, label in zip(logits.double().softmax(dim=2).flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label >= 0:
            total -= (alpha if label else 1 - alpha) * (1 - p[label]) ** gamma * math.log(p[label])
    return total


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.0), (0.9, 0.5), (0.25, 0.0), (1.0, 5.0), (0.0, 2.0)])
def test_focal_as_defined(alpha, gamma):
    scene = make_scene([3, 0, 2], background_threshold=0.3)
    logits, labels = scene.predictions.logits.detach(), scene.matches.labels
    ours = FocalLoss(alpha, gamma)(logits, labels).item()
    assert ours == pytest.approx(focal_by_definition(logits, labels, alpha, gamma), rel=1e-5, abs=1e-7)
    positives = (labels > 0).sum()
    assert MultiBoxLoss(FocalLoss(alpha, gamma))(*scene).classification.item() == pytest.approx(ours / positives.item())


def test_focal_without_gamma_is_weighted_cross_entropy():
    scene = make_scene([3, 2])
    logits, labels = scene.predictions.logits, scene.matches.labels
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), weight=torch.tensor([0.75, 0.25, 0.25, 0.25]), reduction="sum"
    )
    torch.testing.assert_close(FocalLoss(0.25, 0.0)(logits, labels), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [30.0, 1e4, 1e30])
@pytest.mark.parametrize("classification", ["mined", "focal"])
def test_gradient_of_huge_logits_is_finite(classification, gamma, scale):
    """Of right and of wrong ones."""
    logits = (scale * torch.eye(4)).unsqueeze(0).requires_grad_()
    loss = MinedCrossEntropy() if classification == "mined" else FocalLoss(0.25, gamma)
    for labels in itertools.permutations(range(4)):
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor([labels])), logits)
        assert gradient.isfinite().all()


# ------------------------------------------------------------------------------------------------------ localization


@pytest.mark.parametrize(
    ("sigma", "distance", "value"),
    [
        (1.0, 0.0, 0.0),
        (1.0, 0.5, 0.125),
        (1.0, 1.0, 0.5),  # where both pieces meet
        (1.0, 3.0, 2.5),
        (2.0, 0.125, 0.03125),  # (2 / 8)² / 2
        (2.0, 0.25, 0.125),  # meet at 1 / σ² = ¼
        (2.0, 1.0, 0.875),
        (3.0, 2.0, 2 - 0.5 / 9),
        (0.5, 2.0, 0.5),
        (0.5, 4.0, 2.0),  # meet at 4
        (0.5, 5.0, 3.0),
    ],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_smooth_l1_by_hand(sigma, distance, value, sign):
    """The target is 0, the default box itself; all four offsets count."""
    default_boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25]])
    boxes = cxcywh_to_xyxy(default_boxes)
    for axis in range(4):
        offsets = torch.zeros(1, 4)
        offsets[0, axis] = sign * distance
        assert SmoothL1(sigma)(offsets, boxes, default_boxes).tolist() == pytest.approx([value], abs=1e-6)
        assert L1()(offsets, boxes, default_boxes).tolist() == pytest.approx([distance], abs=1e-6)
    everywhere = SmoothL1(sigma)(torch.full((1, 4), sign * distance), boxes, default_boxes)
    assert everywhere.tolist() == pytest.approx([4 * value], abs=1e-6)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_as_torchvision_on_decoded_boxes(kind):
    """Theirs add 1e-7 to areas, which in fractions of the image is much; none of the three depends on the unit."""
    from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

    theirs = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}[kind]
    objects = make_objects([80, 80], seed=6).boxes
    offsets = make_predictions(2, seed=6).offsets
    ours = BoxIoULoss(kind)(offsets, objects, DEFAULT_BOXES)
    pixels = 1000
    expected = theirs(decode(offsets, DEFAULT_BOXES) * pixels, objects * pixels)
    assert ours.shape == (2, 80)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    gradient, expected = (torch.autograd.grad(loss.sum(), offsets)[0] for loss in (ours, expected))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_by_hand(kind):
    """Equal boxes lose nothing, however small. A box beside its object: IoU 0, a sixth of the hull is empty."""
    tiny = torch.tensor([[0.5, 0.5, 1e-3, 2e-3]])
    assert BoxIoULoss(kind)(torch.zeros(1, 4), cxcywh_to_xyxy(tiny), tiny).item() == pytest.approx(0, abs=1e-5)

    # Left of the image's middle a square of 0.4, right of it one of 0.2, both standing on the same ground.
    default_box, box = torch.tensor([[0.3, 0.5, 0.4, 0.4]]), torch.tensor([[0.5, 0.5, 0.7, 0.7]])
    hull = 0.6 * 0.4
    empty = (hull - 0.16 - 0.04) / hull
    distance = (0.3**2 + 0.1**2) / (0.6**2 + 0.4**2)
    expected = {"giou": 1 + empty, "diou": 1 + distance, "ciou": 1 + distance}[kind]  # squares: aspect ratios agree
    assert BoxIoULoss(kind)(torch.zeros(1, 4), box, default_box).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBoxLoss(alpha=-1.0), "alpha: expected a number of at least 0, got -1.0"),
        (lambda: MultiBoxLoss(alpha=float("nan")), "alpha: .* got nan"),
        (lambda: MinedCrossEntropy(negative_ratio=-0.5), "negative_ratio: .* got -0.5"),
        (lambda: MinedCrossEntropy(min_negatives=-1), "min_negatives: .* got -1"),
        (lambda: FocalLoss(alpha=1.5), r"alpha: expected a number in \[0, 1\], got 1.5"),
        (lambda: FocalLoss(gamma=-1.0), "gamma: .* got -1.0"),
        (lambda: SmoothL1(sigma=0.0), "sigma: .* above 0, got 0.0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------------------- d2l.ai


class D2LValues(NamedTuple):
    loss: Tensor
    class_error: float
    box_mae: float


def d2l_values(scene: Scene) -> D2LValues:
    """Section 14.7: ``calc_loss``, ``cls_eval`` and ``bbox_eval``, on the targets of ``multibox_target``."""
    predictions, matches, default_boxes = scene
    batch_size, _, num_classes = predictions.logits.shape
    left_top, right_bottom = matches.boxes.split(2, dim=2)
    xy = 10 * ((left_top + right_bottom) / 2 - default_boxes[:, :2]) / default_boxes[:, 2:]
    wh = 5 * torch.log(1e-6 + (right_bottom - left_top) / default_boxes[:, 2:])
    bbox_masks = (matches.labels > 0).float().unsqueeze(-1).repeat(1, 1, 4).reshape(batch_size, -1)
    bbox_labels = torch.cat((xy, wh), dim=2).reshape(batch_size, -1) * bbox_masks
    bbox_preds, cls_labels = predictions.offsets.reshape(batch_size, -1), matches.labels

    cls_loss, bbox_loss = nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none")
    cls = cls_loss(predictions.logits.reshape(-1, num_classes), cls_labels.reshape(-1)).reshape(batch_size, -1)
    bbox = bbox_loss(bbox_preds * bbox_masks, bbox_labels * bbox_masks)
    loss = (cls.mean(dim=1) + bbox.mean(dim=1)).mean()

    cls_eval = float((predictions.logits.argmax(dim=-1).type(cls_labels.dtype) == cls_labels).sum())
    bbox_eval = float((torch.abs((bbox_labels - bbox_preds.detach()) * bbox_masks)).sum())
    return D2LValues(loss, 1 - cls_eval / cls_labels.numel(), bbox_eval / bbox_labels.numel())


@pytest.mark.parametrize("counts", [[1], [3, 1], [2, 0, 5], [0, 0]])
def test_mean_over_boxes_as_d2l(counts):
    scene = make_scene(counts, seed=7)
    theirs, ours = d2l_values(scene), MeanOverBoxesLoss()(*scene)
    torch.testing.assert_close(ours.total, theirs.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.total, ours.classification + ours.localization)
    expected = gradients(theirs.loss, scene.predictions)
    torch.testing.assert_close(gradients(ours.total, scene.predictions), expected, rtol=1e-4, atol=1e-8)
    errors = plain_errors(*scene)
    assert errors.class_error.item() == pytest.approx(theirs.class_error, abs=1e-6)
    assert errors.box_mae.item() == pytest.approx(theirs.box_mae, rel=1e-4, abs=1e-7)


def test_plain_errors_by_hand():
    """Four default boxes, one of them wrong; one positive whose offsets are off by 1, 0, 0 and 3."""
    default_boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(4, 4)
    logits = 9 * F.one_hot(torch.tensor([[1, 0, 2, 0]]), 3).float()
    offsets = torch.zeros(1, 4, 4)
    offsets[0, 0] = torch.tensor([1.0, 0.0, 0.0, -3.0])
    offsets[0, 1:] = 100.0
    errors = plain_errors(Predictions(logits, offsets), labels_alone([[1, 0, 0, 0]]), default_boxes)
    assert errors.class_error.item() == 0.25
    assert errors.box_mae.item() == pytest.approx(4 / 16)


def test_mean_over_boxes_does_not_count_the_ignored():
    """d2l.ai ignores nothing; where a matcher does, such default boxes add nothing to either sum."""
    scene = make_scene([3], seed=4, background_threshold=0.3)
    ignored = scene.matches.labels == -1
    assert ignored.any()
    gradient = gradients(MeanOverBoxesLoss()(*scene).total, scene.predictions)
    assert not gradient.logits[ignored].any()
    assert not gradient.offsets[ignored].any()


# ---------------------------------------------------------------------------------------------------- several ranks


class Network(nn.Module):
    """Predictions from the default boxes' features, with weights that all images share."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.classification = nn.Parameter(torch.randn(8, 4, generator=generator))
        self.localization = nn.Parameter(torch.randn(8, 4, generator=generator))

    def forward(self, features: Tensor) -> Predictions:
        return Predictions(features @ self.classification, features @ self.localization)


def gradients_of_images(network: nn.Module, images: slice, counts: list[int], loss: nn.Module) -> list[Tensor]:
    features = torch.randn(len(counts), len(DEFAULT_BOXES), 8, generator=torch.Generator().manual_seed(2))
    matches = BoxMatcher()(Objects(*(column[images] for column in make_objects(counts))), DEFAULT_BOXES)
    network.zero_grad()
    loss(network(features[images]), matches, DEFAULT_BOXES).total.backward()
    return [parameter.grad for parameter in network.parameters()]


OBJECTS_OF_FOUR_IMAGES = {"uneven": [1, 4, 2, 0], "all on one rank": [0, 0, 3, 2], "nowhere": [0, 0, 0, 0]}


def train_on_two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = DistributedDataParallel(Network())
    images = slice(2 * rank, 2 * rank + 2)
    results = {
        (name, loss): gradients_of_images(network, images, counts, MultiBoxLoss(CLASSIFICATIONS[loss]))
        for name, counts in OBJECTS_OF_FOUR_IMAGES.items()
        for loss in CLASSIFICATIONS
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gradients_on_two_ranks(tmp_path_factory):
    """By DistributedDataParallel, which averages them."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train_on_two_ranks, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("loss", CLASSIFICATIONS)
@pytest.mark.parametrize("name", OBJECTS_OF_FOUR_IMAGES)
def test_two_ranks_learn_what_one_learns(gradients_on_two_ranks, name, loss):
    """Two images each, or four on one: N is counted over all ranks, however the objects are spread over them."""
    one_rank = gradients_of_images(
        Network(), slice(0, 4), OBJECTS_OF_FOUR_IMAGES[name], MultiBoxLoss(CLASSIFICATIONS[loss])
    )
    assert any(gradient.any() for gradient in one_rank)
    for results in gradients_on_two_ranks:
        for gradient, expected in zip(results[name, loss], one_rank, strict=True):
            # Of the largest: sums of up to 320 products, added in another order.
            assert (gradient - expected).abs().max() <= 1e-6 * max(1, expected.abs().max())
