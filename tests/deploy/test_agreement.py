"""The comparison of an exported file with its detector: differences that count, and differences that do not."""

import math

import pytest
import torch

from ssd_lightning.deploy.agreement import agreement, generated_pictures, raw_agreement
from ssd_lightning.deploy.export import Scored
from ssd_lightning.structures import Detections


def detections(*rows: tuple[int, float, float], room: int = 5) -> Detections:
    """Detections of one picture: label, score and left edge of each, padded."""
    padding = room - len(rows)
    boxes = [[left, 0.2, left + 0.3, 0.6] for _, _, left in rows] + [[0.0] * 4] * padding
    return Detections(
        torch.tensor([boxes]),
        torch.tensor([[label for label, _, _ in rows] + [0] * padding]),
        torch.tensor([[score for _, score, _ in rows] + [0.0] * padding]),
        torch.tensor([[True] * len(rows) + [False] * padding]),
    )


MINE = detections((1, 0.9, 0.1), (2, 0.8, 0.1), (1, 0.7, 0.5))


@pytest.mark.parametrize(
    ("found", "box", "score"),
    [
        (MINE, 0, 0),
        (detections((2, 0.8, 0.1), (1, 0.9, 0.1), (1, 0.7, 0.5)), 0, 0),  # other ranks
        (detections((1, 0.9, 0.12), (2, 0.8, 0.1), (1, 0.7, 0.5)), 0.02, 0),
        (detections((1, 0.9, 0.1), (2, 0.83, 0.1), (1, 0.7, 0.5)), 0, 0.03),
        (detections((1, 0.9, 0.1), (1, 0.7, 0.5)), 1, 1),  # one is missing, with no other of its class
        (detections((1, 0.9, 0.1), (2, 0.8, 0.1), (1, 0.7, 0.5), (1, 0.6, 0.2)), 0.1, 0.3),  # one is too many
        (detections((1, 0.9, 0.1), (2, 0.8, 0.1), (1, 0.7, 0.5), (3, 0.04, 0.2)), 0, 0),  # one that does not count
        (detections(), 1, 1),
    ],
)
def test_largest_differences(found: Detections, box: float, score: float):
    for pair in ((MINE, found), (found, MINE)):
        result = agreement(*pair)
        assert result.pictures == 1
        assert result.detections == sum(pair[0].scores[0] > 0.05)
        assert result.box_difference == pytest.approx(box, abs=1e-6)
        assert result.score_difference == pytest.approx(score, abs=1e-6)
        assert result.is_close == (box == score == 0)


def test_nothing_to_compare():
    nothing = detections((1, 0.05, 0.1))
    assert agreement(nothing, nothing) == (1, 0, 0, 0)
    assert agreement(nothing, nothing).is_close


@pytest.mark.parametrize(("difference", "is_close"), [(9e-4, True), (1.2e-3, False)])
def test_limits(difference: float, is_close: bool):
    assert agreement(MINE, MINE._replace(scores=MINE.scores + difference)).is_close == is_close
    assert agreement(MINE, MINE._replace(boxes=MINE.boxes - difference)).is_close == is_close


def test_scores_and_boxes_before_suppression():
    scores = torch.tensor([[[0.9, 0.1], [0.01, 0.02]]])
    boxes = torch.full((1, 2, 4), 0.5)
    mine = Scored(scores, boxes)
    assert raw_agreement(mine, mine) == (1, 2, 0, 0)
    # The second default box has no score that counts.
    moved = torch.tensor([[[0.25], [0.75]]])
    other = raw_agreement(mine, Scored(scores + torch.tensor([0.125, 0.0]), boxes + moved))
    assert other[:2] == (1, 3)
    assert other.score_difference == pytest.approx(0.125)
    assert other.box_difference == 0.75
    low = raw_agreement(mine, Scored(scores + torch.tensor([0.015, 0.0]), boxes + moved))
    assert low.box_difference == 0.25


def test_generated_pictures_are_always_the_same_and_not_flat():
    pictures = generated_pictures((40, 64), 2)
    assert pictures.shape == (2, 3, 40, 64)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, generated_pictures((40, 64), 2))
    assert (pictures.float().std(dim=(2, 3)) > 5).all()
    assert not math.isclose(float(pictures[0].float().mean()), float(pictures[1].float().mean()))
