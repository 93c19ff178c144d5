"""Tests of the windows; zoom-out and crops are compared with torchvision as distributions."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from places import FIXTURES
from random_boxes import random_boxes
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2

from ssd_lightning.data.augmentation.pipeline import Augmentation
from ssd_lightning.data.augmentation.windows import (
    WHOLE,
    MinIoUCrop,
    Window,
    WindowSampler,
    ZoomIn,
    ZoomOut,
    boxes_in_window,
)
from ssd_lightning.records import Truth


def truth_with(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (375, 500)) -> Truth:
    return Truth(
        size,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.arange(1, len(boxes) + 1),
        np.zeros(len(boxes), dtype=bool),
    )


# --- objects in a window ---


def test_an_object_stays_if_its_centre_is_in_the_window() -> None:
    boxes = np.array(
        [
            (0.1, 0.1, 0.3, 0.3),  # Inside.
            (0.4, 0.1, 0.58, 0.3),  # Centre at 0.49: clipped.
            (0.4, 0.1, 0.62, 0.3),  # Centre at 0.51: dropped, though much of it is visible.
            (0.6, 0.6, 0.9, 0.9),  # Outside.
            (-0.2, 0.0, 0.9, 1.0),  # Larger than the window, with the centre inside.
        ],
        dtype=np.float32,
    )
    moved, kept = boxes_in_window(boxes, Window(0.0, 0.0, 0.5, 1.0))
    np.testing.assert_array_equal(kept, [True, True, False, False, True])
    np.testing.assert_allclose(moved, [(0.2, 0.1, 0.6, 0.3), (0.8, 0.1, 1, 0.3), (0, 0, 1, 1)], atol=1e-6)
    assert moved.dtype == np.float32


def test_no_objects() -> None:
    moved, kept = boxes_in_window(np.zeros((0, 4), dtype=np.float32), Window(0.2, 0.2, 0.4, 0.4))
    assert moved.shape == (0, 4)
    assert kept.shape == (0,)


# --- zooming in ---


@settings(deadline=None, max_examples=300)
@given(
    box=hnp.arrays(np.float32, (2, 2), elements=st.floats(0, 1, width=32), unique=True),
    largest=st.floats(1, 10),
    seed=st.integers(0, 2**32),
)
def test_the_chosen_object_is_completely_visible(box: np.ndarray, largest: float, seed: int) -> None:
    """Boxes have any size, even one where rounding errors leave no room."""
    left_top, right_bottom = box.min(axis=0), box.max(axis=0)
    truth = truth_with((*left_top.tolist(), *right_bottom.tolist()))
    window = ZoomIn(probability=1.0, largest=largest)(truth, np.random.default_rng(seed))
    rounding = 1e-12
    assert (np.array([window.left, window.top]) <= left_top + rounding).all()
    assert (np.array([window.right, window.bottom]) >= right_bottom - rounding).all()
    assert min(window.left, window.top) >= 0
    assert max(window.right, window.bottom) <= 1 + rounding
    sides = window.right - window.left, window.bottom - window.top
    assert sides[0] == pytest.approx(sides[1])  # The aspect ratio of the picture.
    assert sides[0] >= 1 / largest - rounding


def test_boxes_on_the_pixels_of_ordinary_pictures() -> None:
    """Their edges are not binary fractions, and in one of nine cases rounding used to raise an error."""
    rng = np.random.default_rng(0)
    zoom = ZoomIn(probability=1.0)
    for box in random_boxes(rng, 2000):
        window = zoom(truth_with(tuple(box.tolist())), rng)
        moved, kept = boxes_in_window(box[None], window)
        assert kept.all()
        # The box is not clipped: it has the size that the magnification gives it.
        side = window.right - window.left
        np.testing.assert_allclose(moved[0, 2:] - moved[0, :2], (box[2:] - box[:2]) / side, atol=1e-5)


def test_boxes_that_begin_next_to_the_border() -> None:
    """The first position of the window can come after the last one, because 1 - (1 - ε) is not ε."""
    rng = np.random.default_rng(0)
    for epsilon in np.geomspace(1e-12, 1e-3, 200):
        window = ZoomIn(probability=1.0, largest=1.02)(truth_with((epsilon, 0.2, 0.99, 0.8)), rng)
        assert 0 <= window.left <= epsilon * 1.001
        assert window.right >= np.float32(0.99) - 1e-12


def test_every_object_is_chosen_sometimes() -> None:
    corners = [(0.0, 0.0, 0.1, 0.1), (0.9, 0.0, 1.0, 0.1), (0.0, 0.9, 0.1, 1.0), (0.9, 0.9, 1.0, 1.0)]
    truth, rng = truth_with(*corners), np.random.default_rng(0)
    zoom, seen = ZoomIn(probability=1.0, largest=4.0), np.zeros(4)
    for _ in range(200):
        _, kept = boxes_in_window(truth.boxes, zoom(truth, rng))
        assert kept.any()
        seen += kept
    assert (seen > 20).all()


def test_the_magnification_is_log_uniform() -> None:
    truth, rng = truth_with(), np.random.default_rng(0)
    windows = [ZoomIn(probability=1.0, largest=3.0)(truth, rng) for _ in range(2000)]
    assert all(0 <= w.left <= w.right <= 1 + 1e-12 and 0 <= w.top <= w.bottom <= 1 + 1e-12 for w in windows)
    exponents = np.sort([-np.log(w.right - w.left) / np.log(3) for w in windows])
    distance = np.abs(exponents - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.63 / np.sqrt(2000)  # Kolmogorov-Smirnov test at 1 %.
    # Without an object the window is anywhere, so its mean position is the middle.
    assert np.mean([w.left + w.right for w in windows]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 440, 560), (1.0, 1000, 1000)])
def test_probability_of_zooming_in(probability: float, least: int, most: int) -> None:
    truth, rng = truth_with((0.4, 0.4, 0.5, 0.5)), np.random.default_rng(0)
    zoomed = sum(ZoomIn(probability)(truth, rng) != WHOLE for _ in range(1000))
    assert least <= zoomed <= most


def test_zooming_in_can_leave_the_picture_whole() -> None:
    rng = np.random.default_rng(0)
    small, full = truth_with((0.4, 0.4, 0.5, 0.5)), truth_with((0.0, 0.0, 1.0, 1.0))
    assert ZoomIn(1.0, largest=1.0)(small, rng) == WHOLE
    assert ZoomIn(1.0, largest=1.0)(truth_with(), rng) == WHOLE
    assert ZoomIn(1.0, largest=3.0)(full, rng) == WHOLE


@pytest.mark.parametrize("zoom", [ZoomIn, ZoomOut])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, r"probability: expected a number in \[0, 1\], got 1.5"),
        ({"probability": -0.5}, r"probability: expected a number in \[0, 1\], got -0.5"),
        ({"largest": 0.5}, "largest: expected a number in .*, got 0.5"),
        ({"largest": float("nan")}, "largest: expected a number in .*, got nan"),
        ({"largest": float("inf")}, "largest: expected a number in .*, got inf"),
    ],
)
def test_zoom_arguments_are_checked(zoom: type, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoom(**arguments)


# --- zooming out ---


def test_the_picture_is_anywhere_on_the_canvas() -> None:
    truth, rng = truth_with(), np.random.default_rng(0)
    windows = np.array([ZoomOut(probability=1.0, largest=4.0)(truth, rng) for _ in range(4000)])
    sides = windows[:, 2:] - windows[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])  # The aspect ratio of the picture.
    places = -windows[:, :2] / (sides - 1)  # Position of the picture's corner, as a share of the free space.
    for values in ((sides[:, 0] - 1) / 3, places[:, 0], places[:, 1]):
        distance = np.abs(np.sort(values) - (np.arange(4000) + 0.5) / 4000).max()
        assert distance < 1.63 / np.sqrt(4000)  # Kolmogorov-Smirnov test at 1 %.
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.06


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 430, 570), (1.0, 1000, 1000)])
def test_probability_of_zooming_out(probability: float, least: int, most: int) -> None:
    rng = np.random.default_rng(0)
    assert least <= sum(ZoomOut(probability)(truth_with(), rng) != WHOLE for _ in range(1000)) <= most


def test_zooming_out_by_one_leaves_the_picture_whole() -> None:
    assert ZoomOut(1.0, largest=1.0)(truth_with(), np.random.default_rng(0)) == WHOLE


# --- crops ---


@settings(deadline=None, max_examples=200)
@given(
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    boxes=hnp.arrays(
        np.float32, st.tuples(st.integers(0, 5), st.just(2), st.just(2)), elements=st.floats(0, 1, width=32)
    ),
    min_iou=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**32),
)
def test_crops_contain_an_object_with_enough_overlap(
    size: tuple[int, int], boxes: np.ndarray, min_iou: float, seed: int
) -> None:
    """Pictures have any shape and boxes any size, including empty boxes."""
    boxes = np.concatenate((boxes.min(axis=1), boxes.max(axis=1)), axis=1)
    truth = Truth(size, boxes, np.arange(len(boxes)), np.zeros(len(boxes), dtype=bool))
    window = MinIoUCrop([min_iou])(truth, np.random.default_rng(seed))
    if window == WHOLE:
        return
    assert 0 <= window.left < window.right <= 1 + 1e-12
    assert 0 <= window.top < window.bottom <= 1 + 1e-12
    width, height = window.right - window.left, window.bottom - window.top
    assert min(width, height) >= 0.3 - 1e-12
    assert 0.5 - 1e-9 <= width * size[1] / (height * size[0]) <= 2 + 1e-9
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    rounding = 1e-6
    kept = (x > window.left - rounding) & (x < window.right + rounding)
    kept &= (y > window.top - rounding) & (y < window.bottom + rounding)
    assert kept.any()
    iou = box_iou(torch.from_numpy(boxes[kept]).double(), torch.tensor([window], dtype=torch.float64)).nan_to_num(0)
    assert iou.max() >= min_iou - 1e-6


def test_the_object_with_enough_overlap_is_itself_kept() -> None:
    """A crop of a corner overlaps the large object enough, but contains only the centre of the small one."""
    large, small = (0.1, 0.1, 0.9, 0.9), (0.2, 0.2, 0.22, 0.22)
    truth, rng = truth_with(large, small), np.random.default_rng(0)
    windows = [MinIoUCrop([0.1])(truth, rng) for _ in range(500)]
    assert all(window.left < 0.5 < window.right and window.top < 0.5 < window.bottom for window in windows)


def test_without_objects_the_picture_stays_whole() -> None:
    rng = np.random.default_rng(0)
    assert all(MinIoUCrop()(truth_with(), rng) == WHOLE for _ in range(100))


def test_a_full_size_object_is_cropped_down_to_the_minimum_iou() -> None:
    rng, truth = np.random.default_rng(0), truth_with((0, 0, 1, 1))
    windows = np.array([MinIoUCrop([0.7])(truth, rng) for _ in range(500)])
    areas = (windows[:, 2:] - windows[:, :2]).prod(axis=1)
    assert 0.7 <= areas.min() < 0.72
    assert 0.4 < np.mean(areas == 1) < 0.6  # The whole picture is drawn as often as the minimum.


def test_no_crop_contains_an_object_centred_on_the_border() -> None:
    rng = np.random.default_rng(0)
    for box in ((0.0, 0.0, 0.0, 0.0), (0.0, 0.3, 0.0, 0.6), (0.2, 1.0, 0.8, 1.0)):
        assert all(MinIoUCrop()(truth_with(box), rng) == WHOLE for _ in range(20))


def test_a_narrow_picture_has_no_crop_of_permitted_shape() -> None:
    rng = np.random.default_rng(0)
    truth = truth_with((0.1, 0.1, 0.9, 0.9), size=(10, 100))
    assert all(MinIoUCrop()(truth, rng) == WHOLE for _ in range(50))
    assert any(MinIoUCrop(aspect_ratio=(0.5, 12))(truth, rng) != WHOLE for _ in range(50))


def test_the_same_generator_gives_the_same_windows() -> None:
    truth = truth_with((0.2, 0.2, 0.5, 0.6), (0.5, 0.1, 0.9, 0.9))
    for sampler in (ZoomIn(), ZoomOut(), MinIoUCrop()):
        windows = [sampler(truth, np.random.default_rng(seed)) for seed in range(30)]
        assert windows == [sampler(truth, np.random.default_rng(seed)) for seed in range(30)]
        assert len(set(windows)) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_ious": ()}, "min_ious: expected at least one number, got none"),
        ({"min_ious": (0.5, 1.0)}, r"min_ious: expected a list of numbers in \[0, 1\), got \[0.5, 1.0\]"),
        ({"min_ious": (-0.1,)}, r"min_ious: .* got \[-0.1\]"),
        ({"min_ious": (float("nan"),)}, r"min_ious: .* got \[nan\]"),
        ({"shortest_side": 0.0}, r"shortest_side: expected a number in \(0, 1\], got 0.0"),
        ({"shortest_side": 1.1}, r"shortest_side: expected a number in \(0, 1\], got 1.1"),
        ({"aspect_ratio": (2.0, 0.5)}, r"aspect_ratio: expected the least .*, got \[2.0, 0.5\]"),
        ({"aspect_ratio": (0.0, 2.0)}, "aspect_ratio: expected a list of 2 numbers above 0"),
        ({"aspect_ratio": (1.0,)}, "aspect_ratio: expected a list of 2 numbers"),
        ({"trials": 0}, "trials: expected a whole number of at least 1, got 0"),
    ],
)
def test_crop_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MinIoUCrop(**arguments)


# --- zooming out and crops: the same distribution as in torchvision ---

PICTURES = {
    "one object": truth_with((0.3, 0.2, 0.6, 0.7), size=(750, 1000)),
    "three objects, one of them small": truth_with(
        (0.05, 0.1, 0.15, 0.2), (0.4, 0.3, 0.95, 0.9), (0.1, 0.5, 0.35, 0.95), size=(1000, 680)
    ),
    "an object that nearly fills the picture": truth_with((0.02, 0.05, 0.97, 1.0), size=(800, 800)),
}
EXPECTED = json.loads((FIXTURES / "torchvision_windows.json").read_text())
"""Moments of 4000 draws of torchvision for each picture, as computed by :func:`moments_of_torchvision`."""
DRAWS = 1500
MOST_STANDARD_ERRORS = 4.5


class Moments(NamedTuple):
    """Means and standard deviations (rows) of all statistics (columns), and the standard errors of both."""

    values: np.ndarray
    errors: np.ndarray


def statistics(window_size: np.ndarray, picture_size: tuple[int, int], boxes: np.ndarray) -> tuple[float, ...]:
    """Return relative area, aspect ratio, number of objects, and the share of the largest object in the window.

    ``window_size`` is (height, width) in pixels, and ``boxes`` are fractions of the window.
    """
    shares = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    height, width = window_size
    area = height * width / (picture_size[0] * picture_size[1])
    return area, width / height, len(boxes), shares.max(initial=0)


def moments(draws: list[tuple[float, ...]]) -> Moments:
    values = np.array(draws)
    count, spread = len(values), values.std(axis=0)
    fourth = ((values - values.mean(axis=0)) ** 4).mean(axis=0)
    spread_error = np.sqrt(np.maximum(fourth - spread**4, 0) / count) / np.maximum(2 * spread, 1e-12)
    return Moments(np.stack((values.mean(axis=0), spread)), np.stack((spread / np.sqrt(count), spread_error)))


def moments_of_torchvision(name: str, count: int) -> Moments:
    """Draw windows with torchvision.

    Pictures without channels are fast on any canvas, and sides near 1000 pixels make its rounding negligible.
    """
    size, boxes, labels, _ = PICTURES[name]
    chain = v2.Compose([v2.RandomZoomOut(), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])
    picture = {
        "image": tv_tensors.Image(torch.empty(0, *size, dtype=torch.uint8)),
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes) * torch.tensor([size[1], size[0]] * 2), format="XYXY", canvas_size=size
        ),
        "labels": torch.from_numpy(labels),
    }
    draws = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(count):
            result = chain(picture)
            height, width = result["image"].shape[-2:]
            fractions = result["boxes"].numpy() / (width, height, width, height)
            draws.append(statistics(np.array([height, width]), size, fractions))
    return moments(draws)


def our_moments(name: str, windows: list[WindowSampler]) -> Moments:
    augment, truth, rng, draws = Augmentation(windows), PICTURES[name], np.random.default_rng(0), []
    for _ in range(DRAWS):
        window = augment.plan(truth, rng).window
        size = np.array(truth.size) * (window.bottom - window.top, window.right - window.left)
        draws.append(statistics(size, truth.size, boxes_in_window(truth.boxes, window)[0]))
    return moments(draws)


def standard_errors_apart(name: str, found: Moments) -> float:
    """Return the largest difference of any moment from torchvision's, in standard errors."""
    expected = Moments(*(np.array(EXPECTED[name][field]) for field in Moments._fields))
    # A statistic that never varies has no error, so any difference in it counts as large.
    errors = np.maximum(np.hypot(found.errors, expected.errors), 1e-6)
    return float((np.abs(found.values - expected.values) / errors).max())


@pytest.mark.parametrize("name", PICTURES)
def test_windows_have_the_distribution_of_torchvision(name: str) -> None:
    assert standard_errors_apart(name, our_moments(name, [ZoomOut(), MinIoUCrop()])) < MOST_STANDARD_ERRORS


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_the_expected_moments_are_those_of_torchvision(name: str) -> None:
    assert standard_errors_apart(name, moments_of_torchvision(name, 800)) < MOST_STANDARD_ERRORS


@pytest.mark.parametrize(
    ("windows", "name"),
    [
        ([ZoomOut(), MinIoUCrop(trials=1)], "three objects, one of them small"),
        ([ZoomOut(), MinIoUCrop(shortest_side=0.4)], "three objects, one of them small"),
        ([ZoomOut(), MinIoUCrop(min_ious=[0.0] * 6)], "one object"),
        ([ZoomOut(), MinIoUCrop(aspect_ratio=(0.7, 1.4))], "an object that nearly fills the picture"),
        ([ZoomOut(largest=3.0), MinIoUCrop()], "one object"),
        ([ZoomOut(probability=0.7), MinIoUCrop()], "one object"),
    ],
    ids=["trials", "shortest side", "min IoU", "aspect ratio", "largest", "probability"],
)
def test_the_comparison_notices_other_settings(windows: list[WindowSampler], name: str) -> None:
    assert standard_errors_apart(name, our_moments(name, windows)) > MOST_STANDARD_ERRORS
