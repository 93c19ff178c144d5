"""Geometry is checked with pictures whose pixels tell where they come from, so that no formula is written twice."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssd_lightning.data.transforms import (
    FILL,
    WHOLE,
    Augmentation,
    BrightnessContrast,
    Window,
    ZoomIn,
    boxes_in_window,
    mirror_boxes,
    mirror_image,
    resample,
)
from ssd_lightning.structures import Sample

SIDE = 256
IN_PICTURE = 255
"""Third channel of the map; the fill colour has another."""


def picture_of_places() -> np.ndarray:
    """Red is the column of a pixel, green its row."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.stack((columns, rows, np.full_like(rows, IN_PICTURE)), axis=-1).astype(np.uint8)


def sample_with(*boxes: tuple[float, float, float, float], image: np.ndarray | None = None) -> Sample:
    """Object n of the sample has label n + 1, and every second one is difficult."""
    return Sample(
        picture_of_places() if image is None else image,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.arange(1, len(boxes) + 1),
        np.arange(len(boxes)) % 2 == 1,
    )


def random_boxes(rng: np.random.Generator, count: int, width: int = 500, height: int = 375) -> np.ndarray:
    """Boxes with edges on the pixels of a picture, as annotations have them."""
    columns = np.sort(rng.permuted(np.tile(np.arange(width + 1), (count, 1)), axis=1)[:, :2], axis=1) / width
    rows = np.sort(rng.permuted(np.tile(np.arange(height + 1), (count, 1)), axis=1)[:, :2], axis=1) / height
    return np.stack((columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]), axis=1).astype(np.float32)


def assert_frames_the_same_pixels(result: Sample, new_box: np.ndarray, old_box: np.ndarray, tolerance: float) -> None:
    """A pixel of the result is in the new box if and only if the place that it shows is in the old box.

    Pixels nearer than ``tolerance`` pixels of the result to an edge of the new box may be on either side.
    """
    height, width = result.image.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    left, top, right, bottom = new_box * (width, height, width, height)

    def inside(margin: float) -> np.ndarray:
        return (x > left - margin) & (x < right + margin) & (y > top - margin) & (y < bottom + margin)

    shows_picture = result.image[..., 2] == IN_PICTURE
    shown_x, shown_y = (result.image[..., :2].astype(float) + 0.5).transpose(2, 0, 1) / SIDE
    was_inside = (shown_x > old_box[0]) & (shown_x < old_box[2]) & (shown_y > old_box[1]) & (shown_y < old_box[3])
    assert was_inside[inside(-tolerance) & shows_picture].all()
    assert not was_inside[~inside(tolerance) & shows_picture].any()


# --- windows: picture and boxes together ---


@pytest.mark.parametrize("mirrored", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("size", [(256, 256), (300, 300), (96, 160)])
def test_boxes_frame_the_same_pixels_before_and_after(size: tuple[int, int], mirrored: tuple[bool, bool]) -> None:
    """Windows inside the picture and beyond it, magnified and reduced, and mirrored in each way."""
    rng = np.random.default_rng(0)
    horizontally, vertically = (float(way) for way in mirrored)
    for box in random_boxes(rng, 20):
        left, top = rng.uniform(-0.5, 0.5, 2)
        window = Window(left, top, left + rng.uniform(0.5, 1.5), top + rng.uniform(0.5, 1.5))
        augment = Augmentation(lambda sample, rng, window=window: window, horizontally, vertically)
        result = augment(sample_with(box), size, rng)
        assert result.image.shape == (*size, 3)
        if len(result.boxes):
            # A picture pixel may be as wide as 300 / 256 / 0.5 = 2.3 pixels of the result; half of it, and half of one
            # for the border of the picture, which falls on a whole pixel.
            assert_frames_the_same_pixels(result, result.boxes[0], box, tolerance=1.7)


def test_without_arguments_it_only_resizes() -> None:
    sample = sample_with((0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 1, 1))
    result = Augmentation()(sample, (128, 64), np.random.default_rng(0))
    assert result.image.shape == (128, 64, 3)
    np.testing.assert_array_equal(result.boxes, sample.boxes)
    np.testing.assert_array_equal(result.labels, [1, 2])
    np.testing.assert_array_equal(result.difficult, [False, True])


def test_the_same_size_gives_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resample(image, WHOLE, (40, 60)), image)


def test_a_window_on_whole_pixels_is_a_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resample(image, Window(0.25, 0.5, 0.75, 1.0), (20, 40)), image[20:, 20:60])


def test_reducing_averages_so_that_fine_patterns_become_grey() -> None:
    chequered = np.indices((200, 200)).sum(axis=0) % 2 * 255
    image = chequered[..., None].repeat(3, axis=2).astype(np.uint8)
    reduced = resample(image, WHOLE, (50, 50))
    assert np.abs(reduced.astype(int) - 127).max() <= 3


def test_beyond_the_picture_is_the_fill_colour() -> None:
    """A picture seen at half its size in the middle: a frame of a quarter on each side."""
    image = np.full((100, 100, 3), 255, dtype=np.uint8)
    result = resample(image, Window(-0.5, -0.5, 1.5, 1.5), (40, 40))
    assert (result[10:30, 10:30] == 255).all()
    frame = np.ones((40, 40), dtype=bool)
    frame[10:30, 10:30] = False
    assert (result[frame] == FILL).all()


def test_a_window_that_reaches_beyond_one_corner() -> None:
    image = np.full((100, 100, 3), 255, dtype=np.uint8)
    result = resample(image, Window(0.5, 0.75, 1.5, 1.75), (40, 40))
    assert (result[:10, :20] == 255).all()
    assert (result[10:] == FILL).all()
    assert (result[:, 20:] == FILL).all()


def test_resampling_leaves_the_picture_as_it_is() -> None:
    image = picture_of_places()
    Augmentation(colours=[BrightnessContrast()])(sample_with(image=image), (64, 64), np.random.default_rng(0))
    np.testing.assert_array_equal(image, picture_of_places())


# --- which objects stay ---


def test_an_object_stays_if_its_centre_is_seen() -> None:
    boxes = np.array(
        [
            (0.1, 0.1, 0.3, 0.3),  # inside
            (0.4, 0.1, 0.58, 0.3),  # centre at 0.49: cut
            (0.4, 0.1, 0.62, 0.3),  # centre at 0.51: gone, though much of it is seen
            (0.6, 0.6, 0.9, 0.9),  # outside
            (-0.2, 0.0, 0.9, 1.0),  # larger than the window, centred in it
        ],
        dtype=np.float32,
    )
    moved, kept = boxes_in_window(boxes, Window(0.0, 0.0, 0.5, 1.0))
    np.testing.assert_array_equal(kept, [True, True, False, False, True])
    np.testing.assert_allclose(moved, [(0.2, 0.1, 0.6, 0.3), (0.8, 0.1, 1, 0.3), (0, 0, 1, 1)], atol=1e-6)
    assert moved.dtype == np.float32


def test_no_objects_in_no_objects_out() -> None:
    moved, kept = boxes_in_window(np.zeros((0, 4), dtype=np.float32), Window(0.2, 0.2, 0.4, 0.4))
    assert moved.shape == (0, 4)
    assert kept.shape == (0,)


def test_labels_and_flags_go_with_their_boxes() -> None:
    sample = sample_with((0.6, 0.6, 0.9, 0.9), (0.1, 0.1, 0.2, 0.2), (0.2, 0.2, 0.4, 0.4))
    augment = Augmentation(lambda sample, rng: Window(0.0, 0.0, 0.5, 0.5))
    result = augment(sample, (64, 64), np.random.default_rng(0))
    np.testing.assert_array_equal(result.labels, [2, 3])
    np.testing.assert_array_equal(result.difficult, [True, False])


# --- mirroring ---


def test_mirrored_boxes_by_hand() -> None:
    box = np.array([[0.1, 0.2, 0.4, 0.9]], dtype=np.float32)
    for mirrored, expected in {
        (False, False): (0.1, 0.2, 0.4, 0.9),
        (True, False): (0.6, 0.2, 0.9, 0.9),
        (False, True): (0.1, 0.1, 0.4, 0.8),
        (True, True): (0.6, 0.1, 0.9, 0.8),
    }.items():
        np.testing.assert_allclose(mirror_boxes(box, *mirrored), [expected], atol=1e-7)
    assert mirror_boxes(np.zeros((0, 4), dtype=np.float32), True, True).shape == (0, 4)


def test_mirrored_pictures_are_those_of_numpy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mirror_image(image, True, False), np.fliplr(image))
    np.testing.assert_array_equal(mirror_image(image, False, True), np.flipud(image))
    np.testing.assert_array_equal(mirror_image(image, True, True), np.rot90(image, 2))


def test_probability_of_mirroring() -> None:
    sample, rng = sample_with(image=picture_of_places()[::64, ::64]), np.random.default_rng(0)
    augment = Augmentation(horizontal_flip=0.25)
    left_columns = [augment(sample, (4, 4), rng).image[0, 0, 0] for _ in range(1000)]
    assert set(left_columns) == {0, 192}
    assert 0.2 < np.mean(np.array(left_columns) == 192) < 0.3  # 0.25 ± 3.6 σ


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["horizontal_flip", "vertical_flip"])
def test_probabilities_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a probability in \[0, 1\], got {value}"):
        Augmentation(**{name: value})


# --- zooming in ---


@settings(deadline=None, max_examples=300)
@given(
    box=hnp.arrays(np.float32, (2, 2), elements=st.floats(0, 1, width=32), unique=True),
    largest=st.floats(1, 10),
    seed=st.integers(0, 2**32),
)
def test_the_chosen_object_is_entirely_seen(box: np.ndarray, largest: float, seed: int) -> None:
    """For boxes of any size, also where rounding errors leave no room at all."""
    left_top, right_bottom = box.min(axis=0), box.max(axis=0)
    sample = sample_with((*left_top.tolist(), *right_bottom.tolist()), image=np.zeros((2, 2, 3), dtype=np.uint8))
    window = ZoomIn(probability=1.0, largest=largest)(sample, np.random.default_rng(seed))
    rounding = 1e-12
    assert (np.array([window.left, window.top]) <= left_top + rounding).all()
    assert (np.array([window.right, window.bottom]) >= right_bottom - rounding).all()
    assert min(window.left, window.top) >= 0
    assert max(window.right, window.bottom) <= 1 + rounding
    sides = window.right - window.left, window.bottom - window.top
    assert sides[0] == pytest.approx(sides[1])  # the picture's own shape
    assert sides[0] >= 1 / largest - rounding


def test_boxes_on_the_pixels_of_ordinary_pictures() -> None:
    """Their edges are no binary fractions, and for one in nine rounding used to raise an error."""
    rng = np.random.default_rng(0)
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    zoom = ZoomIn(probability=1.0)
    for box in random_boxes(rng, 2000):
        window = zoom(sample_with(tuple(box.tolist()), image=image), rng)
        moved, kept = boxes_in_window(box[None], window)
        assert kept.all()
        # Nothing was cut off: the box has the size that the factor gives it.
        side = window.right - window.left
        np.testing.assert_allclose(moved[0, 2:] - moved[0, :2], (box[2:] - box[:2]) / side, atol=1e-5)


def test_boxes_that_begin_next_to_the_border() -> None:
    """1 - (1 - ε) is not ε: the first place for the window may come after the last one."""
    rng, image = np.random.default_rng(0), np.zeros((2, 2, 3), dtype=np.uint8)
    for epsilon in np.geomspace(1e-12, 1e-3, 200):
        window = ZoomIn(probability=1.0, largest=1.02)(sample_with((epsilon, 0.2, 0.99, 0.8), image=image), rng)
        assert 0 <= window.left <= epsilon * 1.001
        assert window.right >= np.float32(0.99) - 1e-12


def test_one_object_of_many_is_chosen_each_in_turn() -> None:
    corners = [(0.0, 0.0, 0.1, 0.1), (0.9, 0.0, 1.0, 0.1), (0.0, 0.9, 0.1, 1.0), (0.9, 0.9, 1.0, 1.0)]
    sample, rng = sample_with(*corners, image=np.zeros((2, 2, 3), dtype=np.uint8)), np.random.default_rng(0)
    zoom, seen = ZoomIn(probability=1.0, largest=4.0), np.zeros(4)
    for _ in range(200):
        _, kept = boxes_in_window(sample.boxes, zoom(sample, rng))
        assert kept.any()
        seen += kept
    assert (seen > 20).all()


def test_the_factor_is_uniform_in_its_logarithm() -> None:
    sample, rng = sample_with(image=np.zeros((2, 2, 3), dtype=np.uint8)), np.random.default_rng(0)
    windows = [ZoomIn(probability=1.0, largest=3.0)(sample, rng) for _ in range(2000)]
    assert all(0 <= w.left <= w.right <= 1 + 1e-12 and 0 <= w.top <= w.bottom <= 1 + 1e-12 for w in windows)
    exponents = np.sort([-np.log(w.right - w.left) / np.log(3) for w in windows])
    distance = np.abs(exponents - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.63 / np.sqrt(2000)  # Kolmogorov and Smirnov, 1 %
    # Without an object the window is anywhere: in the middle on average.
    assert np.mean([w.left + w.right for w in windows]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 440, 560), (1.0, 1000, 1000)])
def test_probability_of_zooming(probability: float, least: int, most: int) -> None:
    sample, rng = sample_with((0.4, 0.4, 0.5, 0.5), image=np.zeros((2, 2, 3), dtype=np.uint8)), np.random.default_rng(0)
    zoomed = sum(ZoomIn(probability)(sample, rng) != WHOLE for _ in range(1000))
    assert least <= zoomed <= most


def test_largest_of_one_and_objects_as_large_as_the_picture_leave_it_whole() -> None:
    rng = np.random.default_rng(0)
    small, full = sample_with((0.4, 0.4, 0.5, 0.5)), sample_with((0.0, 0.0, 1.0, 1.0))
    assert ZoomIn(1.0, largest=1.0)(small, rng) == WHOLE
    assert ZoomIn(1.0, largest=1.0)(sample_with(), rng) == WHOLE
    assert ZoomIn(1.0, largest=3.0)(full, rng) == WHOLE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, r"probability: expected a number in \[0, 1\], got 1.5"),
        ({"probability": -0.5}, r"probability: expected a number in \[0, 1\], got -0.5"),
        ({"largest": 0.5}, "largest: expected a factor of at least 1, got 0.5"),
        ({"largest": float("nan")}, "largest: expected a factor of at least 1, got nan"),
    ],
)
def test_zoom_arguments_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZoomIn(**arguments)


# --- colours ---

ALL_LEVELS = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)


def test_no_change_of_colours_is_no_change() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(BrightnessContrast(0, 0, 0)(image, np.random.default_rng(0)), image)


def test_brightness_shifts_all_levels_alike_and_at_most_by_its_share() -> None:
    rng, shifts = np.random.default_rng(0), []
    for _ in range(300):
        changed = BrightnessContrast(brightness=0.2, contrast=0, tint=0)(ALL_LEVELS, rng).astype(int)
        middle = changed[0, 60:196] - ALL_LEVELS[0, 60:196]  # far enough from both ends not to be cut there
        assert (middle == middle[0, 0]).all()
        shifts.append(middle[0, 0])
    assert -52 <= min(shifts) < -40  # 0.2 · 255 is 51
    assert 40 < max(shifts) <= 51


def test_contrast_turns_levels_about_middle_grey() -> None:
    rng, slopes = np.random.default_rng(0), []
    for _ in range(300):
        changed = BrightnessContrast(brightness=0, contrast=0.3, tint=0)(ALL_LEVELS, rng).astype(int)
        assert np.abs(changed[0, 127:129] - 127.5).max() <= 1.5
        assert (changed[..., 0] == changed[..., 1]).all()
        assert (np.diff(changed[0, :, 0]) >= 0).all()
        slopes.append((changed[0, 158, 0] - changed[0, 97, 0]) / 61)
    assert 0.68 <= min(slopes) < 0.75
    assert 1.25 < max(slopes) <= 1.32


def test_tint_changes_each_channel_for_itself() -> None:
    rng = np.random.default_rng(0)
    changed = BrightnessContrast(brightness=0, contrast=0, tint=0.1)(ALL_LEVELS, rng)
    slopes = {(int(changed[0, 200, channel]) - int(changed[0, 50, channel])) / 150 for channel in range(3)}
    assert len(slopes) == 3
    assert all(0.89 <= slope <= 1.11 for slope in slopes)


@pytest.mark.parametrize("name", ["brightness", "contrast", "tint"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_colour_arguments_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1\), got {value}"):
        BrightnessContrast(**{name: value})


def test_colours_change_in_the_given_order_and_see_the_small_picture() -> None:
    seen = []

    def brighter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(image.shape)
        return np.full_like(image, 10)

    def doubled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image * 2

    result = Augmentation(colours=[brighter, doubled])(sample_with(), (16, 24), np.random.default_rng(0))
    assert (result.image == 20).all()
    assert seen == [(16, 24, 3)]


# --- randomness ---


def test_the_generator_decides_everything() -> None:
    augment = Augmentation(ZoomIn(), 0.5, 0.5, [BrightnessContrast()])
    sample = sample_with((0.3, 0.3, 0.6, 0.5), (0.1, 0.7, 0.2, 0.8))

    def result(seed: int) -> Sample:
        return augment(sample, (32, 32), np.random.default_rng(seed))

    for seed in range(20):
        once, again = result(seed), result(seed)
        for first, second in zip(once, again, strict=True):
            np.testing.assert_array_equal(first, second)
    assert len({result(seed).image.tobytes() for seed in range(20)}) == 20
