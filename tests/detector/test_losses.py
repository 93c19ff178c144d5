"""Losses, compared with torchvision's SSD, d2l.ai's formulas, and slow loops over the definitions."""

import contextlib
import itertools
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSD
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from ssd_lightning import collectives
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
    cross_entropy,
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
    """Arguments of a loss."""

    predictions: Predictions
    matches: Matches
    default_boxes: Tensor


def make_objects(counts: list[int], seed: int = 0, num_classes: int = 3) -> Objects:
    """Make ``counts`` objects for each image, padded with zeros as in a data loader."""
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
    """Make matches whose objects are all the whole image."""
    labels = torch.tensor(labels)
    return Matches(labels, torch.zeros_like(labels), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(labels), 1, 4))


def gradients(total: Tensor, predictions: Predictions) -> Predictions:
    return Predictions(*torch.autograd.grad(total, predictions, allow_unused=True))


# ------------------------------------------------------------------------------------------------------ torchvision


def torchvision_ssd() -> nn.Module:
    """Make the part of an SSD that ``compute_loss`` needs, without a network."""
    detector = SSD.__new__(SSD)
    nn.Module.__init__(detector)
    detector.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    detector.proposal_matcher = SSDMatcher(0.5)
    detector.neg_to_pos_ratio = 3.0
    return detector


def torchvision_losses(scene: Scene) -> tuple[Tensor, Tensor]:
    """Compute (classification, localization), with one object per default box as target."""
    predictions, matches, default_boxes = scene
    number = torch.arange(len(default_boxes)).expand_as(matches.labels)
    result = torchvision_ssd().compute_loss(
        [{"boxes": boxes, "labels": labels} for labels, boxes in zip(matches.labels, matches.boxes, strict=True)],
        {"bbox_regression": predictions.offsets, "cls_logits": predictions.logits},
        [cxcywh_to_xyxy(default_boxes)] * len(matches.labels),
        list(torch.where(matches.labels > 0, number, -1)),
    )
    return result["classification"], result["bbox_regression"]


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
    """Compute (total, classification, localization) in Python floats, one default box at a time."""
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


@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("counts", [[2, 0], [0, 0]])
def test_targets_without_an_object_do_not_matter(localization, counts):
    """Accept any target there, such as NaN, or padding, whose aspect ratio is 0 / 0."""
    scene = make_scene(counts, seed=1)
    labels, boxes = scene.matches.labels, scene.matches.boxes
    # There is an object for each default box, and a junk object for each one without.
    junk = torch.where((labels > 0).unsqueeze(2), boxes, float("nan"))
    matches = Matches(labels, torch.arange(labels.shape[1]).expand_as(labels), junk)
    loss = MultiBoxLoss(localization=LOCALIZATIONS[localization])
    expected, actual = loss(*scene), loss(scene.predictions, matches, scene.default_boxes)
    torch.testing.assert_close(actual, expected)
    assert gradients(actual.total, scene.predictions).offsets.isfinite().all()


# ------------------------------------------------------------------------------------------------- hard negatives


def mine(logits: Tensor, labels: Tensor, ratio: float = 3.0, least: int = 3) -> Tensor:
    return MinedCrossEntropy(ratio, least).mine(cross_entropy(logits, labels), labels)


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
    """Include equal logits, where only the order of the default boxes can decide."""
    labels = torch.tensor([labels, labels])
    for logits in (torch.zeros(2, 8, 4), torch.randn(2, 8, 4), torch.tensor([1e4, 0, 0, 0]).expand(2, 8, 4)):
        mined = mine(logits, labels, ratio, least)
        assert mined.sum(dim=1).tolist() == [counts, counts]
        assert not mined[labels != 0].any()


def test_negatives_are_counted_for_each_image():
    labels = F.one_hot(torch.tensor([4, 7, 7]), 20) * torch.tensor([[1], [1], [0]])
    mined = mine(torch.zeros(3, 20, 2), labels)
    assert mined.sum(dim=1).tolist() == [3, 3, 3]
    two = torch.zeros(2, 20, dtype=torch.int64)
    two[0, :5] = 1
    assert mine(torch.zeros(2, 20, 2), two).sum(dim=1).tolist() == [15, 3]


def test_negatives_are_those_least_like_background():
    """Rank by the loss and not by the logit, since a shift of all logits means nothing."""
    background = torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0])
    logits = torch.stack((background, torch.zeros(6)), dim=1) + torch.tensor([0.0, 9, 0, -30, 20, 3]).unsqueeze(1)
    mined = mine(logits.unsqueeze(0), torch.zeros(1, 6, dtype=torch.int64), least=2)
    assert mined[0].nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize("shift", [0.0, 95.0, -75.0, -95.0, -110.0, 1000.0])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_negatives_are_those_of_double_precision(shift, spread):
    """Include logits whose exponentials overflow or underflow."""
    logits = torch.randn(2, 300, 21, generator=torch.Generator().manual_seed(0)) * spread + shift
    loss = -logits.double().log_softmax(dim=-1)[..., 0]
    expected = torch.zeros(2, 300, dtype=torch.bool).scatter(1, loss.topk(30).indices, True)
    mined = mine(logits, torch.zeros(2, 300, dtype=torch.int64), least=30)
    torch.testing.assert_close(mined, expected)


def test_negatives_are_chosen_in_float32_whatever_the_autocast():
    """Use easy negatives, whose order depends on the last digits."""
    logits = torch.randn(2, 300, 21, generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 9
    nothing = torch.zeros(2, 300, dtype=torch.int64)
    expected = mine(logits, nothing, least=30)
    with torch.autocast("cpu", torch.bfloat16):
        mined = mine(logits, nothing, least=30)
    torch.testing.assert_close(mined, expected)


@pytest.mark.parametrize("classes", [2, 21])
def test_loss_of_equal_logits(classes):
    """Start at 4 ln(C + 1), for 1 positive and 3 negatives."""
    matches = labels_alone([[1, *[0] * 30, 1], [0] * 31 + [1]])
    default_boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(32, 4)
    predictions = Predictions(torch.full((2, 32, classes), 0.7), torch.zeros(2, 32, 4))
    loss = MultiBoxLoss()(predictions, matches, default_boxes)
    assert loss.classification.item() == pytest.approx(4 * math.log(classes), rel=1e-5)
    assert loss.localization.item() == 0


# ----------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("classification", CLASSIFICATIONS)
@pytest.mark.parametrize("localization", LOCALIZATIONS)
@pytest.mark.parametrize("images", [1, 3])
def test_no_object_in_the_batch(classification, localization, images):
    """Give a finite loss, a gradient from the background, and none from the offsets."""
    scene = make_scene([0] * images, seed=2)
    loss = MultiBoxLoss(CLASSIFICATIONS[classification], LOCALIZATIONS[localization])(*scene)
    assert loss.total.isfinite()
    assert loss.total > 0
    assert loss.localization == 0
    gradient = gradients(loss.total, scene.predictions)
    assert gradient.logits.isfinite().all()
    assert (gradient.logits[..., 0].sum(dim=1) < 0).all()  # The background rises in every image.
    assert not gradient.offsets.any()


def test_min_negatives_of_an_image_without_objects():
    """Sum its hardest negatives, divided by 1."""
    scene = make_scene([0], seed=5)
    background_losses = F.cross_entropy(
        scene.predictions.logits[0], torch.zeros(80, dtype=torch.int64), reduction="none"
    )
    hardest = background_losses.topk(4).values
    for count in (1, 3, 4):
        loss = MultiBoxLoss(MinedCrossEntropy(min_negatives=count))(*scene)
        torch.testing.assert_close(loss.total, hardest[:count].sum())
    assert MultiBoxLoss(MinedCrossEntropy(min_negatives=0))(*scene).total == 0


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
    """Use meta tensors, which have no values: operations for which a GPU would wait fail with them."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # Meta has no autocast.
    loss = MultiBoxLoss(CLASSIFICATIONS[classification], LOCALIZATIONS[localization])
    default_boxes = DEFAULT_BOXES.to("meta")
    predictions = Predictions(*(values.detach().to("meta").requires_grad_() for values in make_predictions(2)))
    objects = Objects(*(column.to("meta") for column in make_objects([2, 1])))
    matches = BoxMatcher(0.5, 0.4)(objects, default_boxes)
    loss(predictions, matches, default_boxes).total.backward()
    assert predictions.offsets.grad.shape == (2, 80, 4)
    with pytest.raises(NotImplementedError):
        matches.labels.nonzero()  # The test depends on this.


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
    """Include right and wrong predictions."""
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
        (1.0, 1.0, 0.5),  # Both pieces meet here.
        (1.0, 3.0, 2.5),
        (2.0, 0.125, 0.03125),  # (2 / 8)² / 2
        (2.0, 0.25, 0.125),  # They meet at 1 / σ² = ¼.
        (2.0, 1.0, 0.875),
        (3.0, 2.0, 2 - 0.5 / 9),
        (0.5, 2.0, 0.5),
        (0.5, 4.0, 2.0),  # They meet at 4.
        (0.5, 5.0, 3.0),
    ],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_smooth_l1_by_hand(sigma, distance, value, sign):
    """Use the default box as target, whose offsets are 0."""
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
    """Compare in pixels, because torchvision adds 1e-7 to areas; the losses do not depend on the unit."""
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
    """Compare equal small boxes, and a box beside its object, where a sixth of the hull is empty."""
    tiny = torch.tensor([[0.5, 0.5, 1e-3, 2e-3]])
    assert BoxIoULoss(kind)(torch.zeros(1, 4), cxcywh_to_xyxy(tiny), tiny).item() == pytest.approx(0, abs=1e-5)

    # A square of 0.4 and, on its right, a square of 0.2 have the same lower edge.
    default_box, box = torch.tensor([[0.3, 0.5, 0.4, 0.4]]), torch.tensor([[0.5, 0.5, 0.7, 0.7]])
    hull = 0.6 * 0.4
    empty = (hull - 0.16 - 0.04) / hull
    distance = (0.3**2 + 0.1**2) / (0.6**2 + 0.4**2)
    expected = {"giou": 1 + empty, "diou": 1 + distance, "ciou": 1 + distance}[
        kind
    ]  # Squares have equal aspect ratios.
    assert BoxIoULoss(kind)(torch.zeros(1, 4), box, default_box).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBoxLoss(alpha=-1.0), "alpha: expected a number in .*, got -1.0"),
        (lambda: MultiBoxLoss(alpha=float("nan")), "alpha: .* got nan"),
        (lambda: MinedCrossEntropy(negative_ratio=-0.5), "negative_ratio: .* got -0.5"),
        (lambda: MinedCrossEntropy(min_negatives=-1), "min_negatives: .* got -1"),
        (lambda: FocalLoss(alpha=1.5), r"alpha: expected a number in \[0, 1\], got 1.5"),
        (lambda: FocalLoss(gamma=-1.0), "gamma: .* got -1.0"),
        (lambda: SmoothL1(sigma=0.0), "sigma: .* got 0.0"),
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
    """Compute section 14.7's ``calc_loss``, ``cls_eval`` and ``bbox_eval``."""
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
    """Use four default boxes: one is wrong, and one is positive, with errors of 1, 0, 0 and 3."""
    default_boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(4, 4)
    logits = 9 * F.one_hot(torch.tensor([[1, 0, 2, 0]]), 3).float()
    offsets = torch.zeros(1, 4, 4)
    offsets[0, 0] = torch.tensor([1.0, 0.0, 0.0, -3.0])
    offsets[0, 1:] = 100.0
    errors = plain_errors(Predictions(logits, offsets), labels_alone([[1, 0, 0, 0]]), default_boxes)
    assert errors.class_error.item() == 0.25
    assert errors.box_mae.item() == pytest.approx(4 / 16)


def test_mean_over_boxes_does_not_count_the_ignored():
    """Let ignored default boxes add nothing, though d2l.ai ignores none."""
    scene = make_scene([3], seed=4, background_threshold=0.3)
    ignored = scene.matches.labels == -1
    assert ignored.any()
    gradient = gradients(MeanOverBoxesLoss()(*scene).total, scene.predictions)
    assert not gradient.logits[ignored].any()
    assert not gradient.offsets[ignored].any()


# ---------------------------------------------------------------------------------------------------- several ranks


def gradients_of_images(images: slice, counts: list[int], loss: nn.Module) -> list[Tensor]:
    """Return the gradients of two weights that all images share, one for the logits and one for the offsets."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(8, 4, generator=generator).requires_grad_() for _ in range(2)]
    features = torch.randn(len(counts), len(DEFAULT_BOXES), 8, generator=generator)[images]
    matches = BoxMatcher()(Objects(*(column[images] for column in make_objects(counts))), DEFAULT_BOXES)
    predictions = Predictions(*(features @ weight for weight in weights))
    return list(torch.autograd.grad(loss(predictions, matches, DEFAULT_BOXES).total, weights))


@pytest.mark.parametrize("loss", CLASSIFICATIONS)
@pytest.mark.parametrize("counts", [[1, 4, 2, 0], [0, 0, 3, 2], [0, 0, 0, 0]], ids=["uneven", "one rank", "nowhere"])
def test_two_ranks_learn_what_one_learns(monkeypatch, counts, loss):
    """Divide by the positives of all ranks, with two images on each of two ranks, whose gradients DDP averages."""
    objective = MultiBoxLoss(CLASSIFICATIONS[loss])
    one_rank = gradients_of_images(slice(0, 4), counts, objective)
    positives = (BoxMatcher()(make_objects(counts), DEFAULT_BOXES).labels > 0).sum().float()
    own_positives: list[Tensor] = []

    def all_reduce_sum(values: Tensor) -> Tensor:
        own_positives.append(values)
        return positives

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "all_reduce_sum", all_reduce_sum)
    ranks = [gradients_of_images(images, counts, objective) for images in (slice(0, 2), slice(2, 4))]
    assert sum(own_positives) == positives
    for expected, first, second in zip(one_rank, *ranks, strict=True):
        # Sums of up to 320 products have rounding errors relative to the largest gradient.
        assert ((first + second) / 2 - expected).abs().max() <= 1e-6 * max(1, expected.abs().max())
    assert any(gradient.any() for gradient in one_rank)
