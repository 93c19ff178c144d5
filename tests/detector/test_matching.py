"""The matcher, compared with its definition as a slow loop, hand-made cases, and torchvision's SSDMatcher."""

import math
import statistics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.matching import AdaptiveMatcher, BoxMatcher, claim_default_boxes
from ssd_lightning.structures import Matches, Objects

seeds = st.integers(0, 2**31 - 1)
fast = settings(derandomize=True, deadline=None, max_examples=60)

# On a regular grid an object often lies inside two default boxes of the same size and IoU. Random shifts make each IoU
# different, so that no rule for ties is needed, except in the tests of that rule.
DEFAULT_BOXES = DefaultBoxes([0.2, 0.4, 0.7, 0.95], [[2.0], [2.0], [2.0]])([(4, 4), (2, 2), (1, 1)], (64, 64))
DEFAULT_BOXES = DEFAULT_BOXES * (
    1 + 0.1 * torch.rand(len(DEFAULT_BOXES), 4, generator=torch.Generator().manual_seed(0))
)
JUNK = torch.tensor([[float("nan")] * 4, [float("inf")] * 4, [-3.0, 7.0, 1e30, -1e30], [0.0, 0.0, 1.0, 1.0], [0.0] * 4])


def random_objects(seed: int, images: int, slots: int, validity: float = 0.6) -> Objects:
    """Make boxes inside the image; each slot holds an object with probability ``validity``, else junk."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.1 + 0.8 * torch.rand(images, slots, 2, generator=generator)
    left_top = (1 - size) * torch.rand(images, slots, 2, generator=generator)
    boxes = torch.cat((left_top, left_top + size), dim=2)
    labels = torch.randint(1, 21, (images, slots), generator=generator)
    valid = torch.rand(images, slots, generator=generator) < validity
    junk = JUNK[torch.randint(len(JUNK), (images, slots), generator=generator)]
    boxes = torch.where(valid.unsqueeze(2), boxes, junk)
    return Objects(boxes, torch.where(valid, labels, 99), torch.zeros_like(valid), valid)


def one_image(boxes: list[tuple], labels: list[int]) -> Objects:
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    return Objects(torch.tensor(boxes).view(1, -1, 4), torch.tensor(labels).view(1, -1), ~valid, valid)


def as_default_boxes(boxes: list[tuple]) -> Tensor:
    """Convert from xyxy, in which cases are easier to read."""
    return xyxy_to_cxcywh(torch.tensor(boxes))


def match_by_definition(
    boxes: Tensor, default_boxes: Tensor, iou_threshold: float, background_threshold: float | None
) -> list[int | str]:
    """Match one image without padding: give each default box its object's number, "background" or "ignored"."""
    iou = box_iou(boxes, cxcywh_to_xyxy(default_boxes)).tolist()
    owner: dict[int, int] = {}
    while True:
        pairs = [
            (iou[number][box], number, box)
            for number in range(len(boxes))
            for box in range(len(default_boxes))
            if number not in owner.values() and box not in owner and iou[number][box] > 0
        ]
        if not pairs:
            break
        _, number, box = min((-value, number, box) for value, number, box in pairs)
        owner[box] = number

    outcome: list[int | str] = []
    for box in range(len(default_boxes)):
        best_iou, best = max(((iou[number][box], -number) for number in range(len(boxes))), default=(0.0, 0))
        if box in owner:
            outcome.append(owner[box])
        elif best_iou >= iou_threshold:
            outcome.append(-best)
        elif background_threshold is not None and best_iou >= background_threshold:
            outcome.append("ignored")
        else:
            outcome.append("background")
    return outcome


def assert_matches_are(matches: Matches, objects: Objects, outcomes: list[list[int | str]]) -> None:
    for image, outcome in enumerate(outcomes):
        labels, boxes = objects.labels[image][objects.valid[image]], objects.boxes[image][objects.valid[image]]
        special = {"background": 0, "ignored": -1}
        expected = [special[o] if isinstance(o, str) else int(labels[o]) for o in outcome]
        assert matches.labels[image].tolist() == expected
        for box, number in enumerate(outcome):
            if not isinstance(number, str):
                assert torch.equal(matches.boxes[image, box], boxes[number])


# ------------------------------------------------------------------------------------------------------- the definition


@fast
@given(
    seed=seeds,
    images=st.integers(1, 3),
    slots=st.integers(0, 7),
    validity=st.sampled_from([0.0, 0.5, 1.0]),
    thresholds=st.sampled_from([(0.5, None), (0.5, 0.4), (0.5, 0.5), (0.3, 0.1), (1.0, None)]),
)
def test_as_defined(seed, images, slots, validity, thresholds):
    objects = random_objects(seed, images, slots, validity)
    matches = BoxMatcher(*thresholds)(objects, DEFAULT_BOXES)
    assert matches.labels.shape == (images, len(DEFAULT_BOXES))
    assert matches.labels.dtype == torch.int64
    outcomes = [
        match_by_definition(boxes[valid], DEFAULT_BOXES, *thresholds)
        for boxes, valid in zip(objects.boxes, objects.valid, strict=True)
    ]
    assert_matches_are(matches, objects, outcomes)


@fast
@given(seed=seeds, slots=st.integers(1, 12), count=st.integers(1, 6))
def test_more_objects_than_default_boxes(seed, slots, count):
    objects = random_objects(seed, 2, slots, validity=0.9)
    default_boxes = DEFAULT_BOXES[torch.randperm(len(DEFAULT_BOXES), generator=torch.Generator().manual_seed(seed))]
    default_boxes = default_boxes[:count]
    matches = BoxMatcher()(objects, default_boxes)
    outcomes = [
        match_by_definition(boxes[valid], default_boxes, 0.5, None)
        for boxes, valid in zip(objects.boxes, objects.valid, strict=True)
    ]
    assert_matches_are(matches, objects, outcomes)


@fast
@given(seed=seeds, slots=st.integers(1, 6))
def test_padding_and_order_do_not_matter(seed, slots):
    """Compare with the same objects in reverse order and without padding."""
    objects = random_objects(seed, 1, slots)
    compact = Objects(*(column[:, objects.valid[0]].flip(1) for column in objects))
    matches, compact_matches = (BoxMatcher(0.5, 0.4)(o, DEFAULT_BOXES) for o in (objects, compact))
    assert torch.equal(matches.labels, compact_matches.labels)
    positive = matches.labels > 0
    assert torch.equal(matches.boxes[positive], compact_matches.boxes[positive])
    assert matches.boxes.isfinite().all()


@fast
@given(seed=seeds, slots=st.integers(0, 6))
def test_images_do_not_influence_each_other(seed, slots):
    objects = random_objects(seed, 3, slots)
    together = BoxMatcher(0.5, 0.4)(objects, DEFAULT_BOXES)
    for image in range(3):
        alone = BoxMatcher(0.5, 0.4)(Objects(*(column[image : image + 1] for column in objects)), DEFAULT_BOXES)
        assert torch.equal(alone.labels[0], together.labels[image])


def test_leaves_its_arguments_alone():
    objects, default_boxes = random_objects(1, 2, 4, validity=1.0), DEFAULT_BOXES.clone()
    before = [column.clone() for column in objects]
    BoxMatcher(0.5, 0.4)(objects, default_boxes)
    assert all(torch.equal(column, old) for column, old in zip(objects, before, strict=True))
    assert torch.equal(default_boxes, DEFAULT_BOXES)


# ------------------------------------------------------------------------------------------------------------ no object


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("slots", [0, 1, 4])
def test_without_objects_all_is_background(images, slots):
    matches = BoxMatcher(0.5, 0.4)(random_objects(1, images, slots, validity=0.0), DEFAULT_BOXES)
    assert matches.labels.shape == (images, len(DEFAULT_BOXES))
    assert matches.boxes.shape == (images, len(DEFAULT_BOXES), 4)
    assert not matches.labels.any()


def test_an_image_without_objects_among_others():
    objects = random_objects(1, 2, 3, validity=1.0)
    valid = objects.valid & torch.tensor([[True], [False]])
    matches = BoxMatcher()(objects._replace(valid=valid), DEFAULT_BOXES)
    assert set(objects.labels[0].tolist()) <= set(matches.labels[0].tolist())
    assert not matches.labels[1].any()


# ------------------------------------------------------------------------------------------------- adaptive thresholds

LEVELS = DefaultBoxes([0.2, 0.4, 0.7, 0.95], [[2.0], [2.0, 3.0], [2.0]])([(6, 5), (3, 2), (1, 1)], (64, 64))


def adaptive_by_definition(boxes: Tensor, candidates: int) -> list[int | str]:
    """Match one image to ``LEVELS`` as ATSS does, level by level: 30, 6 and 1 cells with 4, 6 and 4 default boxes."""
    centres = LEVELS[:, :2].tolist()
    overlaps = box_iou(boxes, cxcywh_to_xyxy(LEVELS)).tolist()
    outcome = match_by_definition(boxes, LEVELS, 2.0, None)  # The forced matches.
    claimed = [box for box, owner in enumerate(outcome) if owner != "background"]
    best = [0.0] * len(LEVELS)
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        chosen: list[int] = []
        for first, cells, each in ((0, 30, 4), (120, 6, 6), (156, 1, 4)):
            away = [
                (math.dist(centres[first + cell * each], ((left + right) / 2, (top + bottom) / 2)), cell)
                for cell in range(cells)
            ]
            chosen += [first + cell * each + box for _, cell in sorted(away)[:candidates] for box in range(each)]
        iou = [overlaps[number][box] for box in chosen]
        threshold = statistics.mean(iou) + statistics.stdev(iou)
        for box, value in zip(chosen, iou, strict=True):
            x, y = centres[box]
            is_inside = left < x < right and top < y < bottom
            if is_inside and value >= threshold and value > best[box] and box not in claimed:
                best[box], outcome[box] = value, number
    return outcome


@fast
@given(seed=seeds, images=st.integers(1, 3), slots=st.integers(0, 7), candidates=st.sampled_from([1, 3, 9, 1000]))
def test_adaptive_matches_are_those_of_a_slow_loop(seed, images, slots, candidates):
    objects = random_objects(seed, images, slots)
    outcomes = [
        adaptive_by_definition(boxes[valid], candidates)
        for boxes, valid in zip(objects.boxes, objects.valid, strict=True)
    ]
    assert_matches_are(AdaptiveMatcher(candidates)(objects, LEVELS), objects, outcomes)


def test_adaptive_thresholds_reach_objects_that_no_default_box_fits():
    """Give a thin object several positives, whose best IoU is below one half."""
    objects = one_image([(0.05, 0.1, 0.2, 0.95)], [3])
    assert box_iou(objects.boxes[0], cxcywh_to_xyxy(LEVELS)).max() < 0.5
    assert (BoxMatcher()(objects, LEVELS).labels > 0).sum() == 1
    assert (AdaptiveMatcher()(objects, LEVELS).labels > 0).sum() > 2


def test_an_adaptive_matcher_follows_the_default_boxes_that_it_is_given():
    matcher, objects = AdaptiveMatcher(), random_objects(0, 2, 4)
    other = DefaultBoxes([0.3, 0.6, 0.9], [[2.0], [2.0]])([(3, 3), (1, 1)], (64, 64))
    for default_boxes in (LEVELS, other, LEVELS.clone()):
        matches, expected = matcher(objects, default_boxes), AdaptiveMatcher()(objects, default_boxes)
        assert torch.equal(matches.labels, expected.labels)
        assert torch.equal(matches.objects, expected.objects)


def test_a_claim_outranks_an_adaptive_match_with_an_iou_of_1():
    """Two equal objects lie exactly on a default box: the first claims it, and the second claims the next best."""
    box = tuple(cxcywh_to_xyxy(LEVELS[120:121])[0].tolist())
    matches = AdaptiveMatcher()(one_image([box, box], [1, 2]), LEVELS)
    assert {1, 2} == set(matches.labels[matches.labels > 0].tolist())


# ----------------------------------------------------------------------------------------------- claims, worked by hand

# Two objects in the left half of the image. The left half is the best default box of both, with an IoU of 0.8 and 0.6.
# The second best is the upper left quarter. The right half touches neither object.
LEFT, UPPER_LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 0.25), (0.5, 0.0, 1.0, 1.0)
TALL_OBJECT, SHORT_OBJECT = (0.0, 0.2, 0.5, 1.0), (0.0, 0.1, 0.5, 0.7)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_objects_with_the_same_best_default_box_both_get_one(order):
    default_boxes = as_default_boxes([LEFT, UPPER_LEFT, RIGHT])
    boxes, labels = [TALL_OBJECT, SHORT_OBJECT], [5, 7]
    objects = one_image([boxes[i] for i in order], [labels[i] for i in order])
    assert BoxMatcher()(objects, default_boxes).labels.tolist() == [[5, 7, 0]]


def test_torchvision_loses_one_of_them():
    """Show the reason for our own matcher: in torchvision, the last object overwrites the others."""
    default_boxes = torch.tensor([LEFT, UPPER_LEFT, RIGHT])
    theirs = SSDMatcher(0.5)(box_iou(torch.tensor([TALL_OBJECT, SHORT_OBJECT]), default_boxes))
    assert theirs.tolist() == [1, -1, -1]


def test_a_claim_needs_no_threshold():
    """Match an object whose only default box has an IoU of 0.01."""
    objects = one_image([(0.0, 0.0, 0.1, 0.1)], [3])
    default_boxes = as_default_boxes([(0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0)])
    assert BoxMatcher(0.5, 0.4)(objects, default_boxes).labels.tolist() == [[3, 0]]


def test_a_claim_goes_before_the_better_object():
    """Give the lower default box to object 2, which has no other, though object 1 has the higher IoU."""
    upper, lower = (0.0, 0.0, 0.5, 0.5), (0.0, 0.1, 0.5, 0.6)
    near_upper, far_below = (0.0, 0.01, 0.5, 0.51), (0.0, 0.55, 0.5, 0.9)
    default_boxes = as_default_boxes([upper, lower])
    objects = one_image([near_upper, far_below], [1, 2])
    assert box_iou(torch.tensor([near_upper]), torch.tensor([lower])).item() > 0.5
    assert BoxMatcher()(objects, default_boxes).labels.tolist() == [[1, 2]]


def test_an_object_that_touches_no_default_box_is_not_matched():
    objects = one_image([(0.9, 0.9, 1.0, 1.0)], [3])
    assert BoxMatcher()(objects, as_default_boxes([(0.0, 0.0, 0.5, 0.5)])).labels.tolist() == [[0]]


def test_the_best_pairs_claim_first():
    """Leave out the object with the lowest IoU of three, as there are two default boxes."""
    default_boxes = as_default_boxes([(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)])
    objects = one_image([(0.0, 0.0, 0.5, 0.2), (0.0, 0.0, 0.5, 0.9), (0.4, 0.0, 1.0, 1.0)], [1, 2, 3])
    assert BoxMatcher()(objects, default_boxes).labels.tolist() == [[2, 3]]


@pytest.mark.parametrize("copies", [2, 5])
def test_identical_objects_have_a_default_box_each(copies):
    box = (0.1, 0.1, 0.6, 0.6)
    matches = BoxMatcher()(one_image([box] * copies, list(range(1, copies + 1))), DEFAULT_BOXES)
    assert set(range(1, copies + 1)) <= set(matches.labels[0].tolist())
    iou = box_iou(torch.tensor([box]), cxcywh_to_xyxy(DEFAULT_BOXES))
    claims = claim_default_boxes(iou.expand(copies, -1).unsqueeze(0))
    assert claims.made.all()
    claimed = iou[0, claims.default_box[0]].sort(descending=True).values
    torch.testing.assert_close(claimed, iou[0].topk(copies).values)
    assert len(claims.default_box.unique()) == copies


GRID = DefaultBoxes([0.25, 0.5, 1.0], [[], []])([(8, 8), (4, 4)], (64, 64))


def objects_on_a_grid(seed: int, images: int, slots: int) -> Objects:
    """Make boxes whose edges lie on eighths of the image, so that many pairs have exactly the same IoU."""
    generator = torch.Generator().manual_seed(seed)
    left_top = torch.randint(0, 7, (images, slots, 2), generator=generator)
    size = torch.randint(1, 5, (images, slots, 2), generator=generator)
    boxes = torch.cat((left_top, (left_top + size).clamp(max=8)), dim=2) / 8
    labels = torch.arange(1, slots + 1).expand(images, -1)
    number = torch.randint(0, slots + 1, (images, 1), generator=generator)
    valid = torch.arange(slots) < number
    return Objects(boxes, labels, torch.zeros_like(valid), valid)


@pytest.mark.parametrize("seed", range(4))
def test_the_first_of_equal_pairs_claims_whatever_the_batch(seed):
    """Match alone, in a batch, and beside more objects as a slow loop does, in which the lowest index wins."""
    objects = objects_on_a_grid(seed, images=24, slots=6)
    together = BoxMatcher()(objects, GRID)
    shared = 0
    for image in range(24):
        valid = objects.valid[image]
        expected = match_by_definition(objects.boxes[image][valid], GRID, 0.5, None)
        iou = box_iou(objects.boxes[image][valid], cxcywh_to_xyxy(GRID))
        shared += int(((iou == iou.amax(dim=1, keepdim=True)).sum(dim=1) > 1).sum())
        alone = Objects(*(column[image : image + 1, : max(int(valid.sum()), 1)] for column in objects))
        assert_matches_are(BoxMatcher()(alone, GRID), alone, [expected])
        assert torch.equal(together.labels[image], BoxMatcher()(alone, GRID).labels[0])
    assert shared > 24  # Ties for the best default box are frequent.


@fast
@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6))
def test_claims_are_one_to_one_and_best_first_whatever_the_ties(rows):
    iou = torch.tensor(rows)
    claims = claim_default_boxes(iou.unsqueeze(0))
    made, default_box = claims.made[0], claims.default_box[0]
    assert len(default_box[made].unique()) == made.sum()
    claimed = iou[torch.arange(len(iou)), default_box] * made
    assert (claimed[made] > 0).all()
    taken = torch.zeros(4, dtype=torch.bool)
    taken[default_box[made]] = True
    for number in range(len(iou)):
        # A default box that this object prefers to its own is claimed by a pair that is at least as good.
        for box in (iou[number] > claimed[number]).nonzero().flatten().tolist():
            assert taken[box]
            assert claimed[(default_box == box) & made].item() >= iou[number, box]


# ----------------------------------------------------------------------------------------------------------- thresholds

# The IoU of a default box with the object (0, 0, 1, 1) is its area.
WHOLE = [(0.0, 0.0, 1.0, 1.0)]
AREAS = as_default_boxes(
    [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.4375, 1.0), (0.0, 0.0, 0.25, 1.0), (0.0, 0.0, 0.125, 1.0)]
)


@pytest.mark.parametrize(
    ("iou_threshold", "background_threshold", "labels"),
    [
        pytest.param(0.5, None, [9, 9, 0, 0, 0], id="0.5 reaches 0.5"),
        pytest.param(0.51, None, [9, 0, 0, 0, 0], id="0.5 does not reach 0.51"),
        pytest.param(0.25, None, [9, 9, 9, 9, 0], id="lower threshold"),
        pytest.param(0.5, 0.25, [9, 9, -1, -1, 0], id="ignored from 0.25 on"),
        pytest.param(0.5, 0.26, [9, 9, -1, 0, 0], id="ignored from 0.26 on"),
        pytest.param(0.5, 0.5, [9, 9, 0, 0, 0], id="an empty band"),
        pytest.param(1.0, 0.1, [9, -1, -1, -1, -1], id="all but the claim"),
    ],
)
def test_thresholds_by_hand(iou_threshold, background_threshold, labels):
    matches = BoxMatcher(iou_threshold, background_threshold)(one_image(WHOLE, [9]), AREAS)
    assert matches.labels.tolist() == [labels]


def test_a_free_default_box_joins_the_object_it_overlaps_most():
    default_boxes = as_default_boxes([(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.05, 0.0, 0.55, 1.0)])
    objects = one_image([(0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0)], [1, 2])
    matches = BoxMatcher()(objects, default_boxes)
    assert matches.labels.tolist() == [[2, 1, 2]]
    assert torch.equal(matches.boxes[0], torch.tensor([[0.0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 1]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iou_threshold": 0.0}, r"iou_threshold: expected a number in \(0, 1\], got 0.0"),
        ({"iou_threshold": 1.1}, r"iou_threshold: .* got 1.1"),
        ({"iou_threshold": float("nan")}, r"iou_threshold: .* got nan"),
        ({"background_threshold": 0.6}, r"background_threshold: .*\(0, .*0.5\], got 0.6"),
        ({"background_threshold": 0.0}, r"background_threshold: .* got 0.0"),
        ({"background_threshold": float("nan")}, r"background_threshold: .* got nan"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoxMatcher(**arguments)


# ---------------------------------------------------------------------------------------------------------- torchvision


@fast
@given(seed=seeds, slots=st.integers(1, 4))
def test_as_torchvision_where_no_best_default_box_is_shared(seed, slots):
    objects = random_objects(seed, 1, slots, validity=1.0)
    iou = box_iou(objects.boxes[0], cxcywh_to_xyxy(DEFAULT_BOXES))
    assume(len(iou.argmax(dim=1).unique()) == slots)
    theirs = SSDMatcher(0.5)(iou)
    expected = torch.where(theirs >= 0, objects.labels[0][theirs.clamp(min=0)], 0)
    matches = BoxMatcher()(objects, DEFAULT_BOXES)
    assert torch.equal(matches.labels[0], expected)
    assert torch.equal(matches.boxes[0][expected > 0], objects.boxes[0][theirs[expected > 0]])
