"""Tests of the augmentation pipeline, with pictures whose pixels encode their own position."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from random_boxes import random_boxes

from ssd_lightning.data.augmentation.colours import BrightnessContrast, PhotometricDistortion
from ssd_lightning.data.augmentation.pipeline import FILL, Augmentation, View, mirror_boxes, resample
from ssd_lightning.data.augmentation.windows import WHOLE, MinIoUCrop, Window, ZoomIn, ZoomOut
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.records import Sample, Truth

SIDE = 256
IN_PICTURE = 255
"""Value of the third channel inside the picture; the fill colour has a different value."""


def picture_of_places() -> np.ndarray:
    """Return a picture whose red channel is the column of a pixel and whose green channel is its row."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.stack((columns, rows, np.full_like(rows, IN_PICTURE)), axis=-1).astype(np.uint8)


def sample_with(*boxes: tuple[float, float, float, float], image: np.ndarray | None = None) -> Sample:
    """Build a sample with labels 1, 2, 3, …; every second object is difficult."""
    return Sample(
        picture_of_places() if image is None else image,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.arange(1, len(boxes) + 1),
        np.arange(len(boxes)) % 2 == 1,
    )


def assert_frames_the_same_pixels(result: Sample, new_box: np.ndarray, old_box: np.ndarray, tolerance: float) -> None:
    """Assert that a pixel is inside the new box exactly if the position that it shows is inside the old box.

    Pixels within ``tolerance`` pixels of an edge of the new box are not checked.
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


def tolerance_of(view: View, size: tuple[int, int]) -> float:
    """Return half a source pixel at the scale of the result, plus the effect of the filter at the border."""
    left, top, right, bottom = view.window
    return 0.5 * max(size[1] / (right - left), size[0] / (bottom - top)) / SIDE + 0.25


@pytest.mark.parametrize("mirrored", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("size", [(256, 256), (300, 300), (96, 160)])
def test_boxes_frame_the_same_pixels_before_and_after(size: tuple[int, int], mirrored: tuple[bool, bool]) -> None:
    """The windows lie inside and outside the picture, magnify and reduce it, and use all flips."""
    rng = np.random.default_rng(0)
    horizontally, vertically = (float(way) for way in mirrored)
    for box in random_boxes(rng, 20):
        left, top = rng.uniform(-0.5, 0.5, 2)
        window = Window(left, top, left + rng.uniform(0.5, 1.5), top + rng.uniform(0.5, 1.5))
        augment = Augmentation([lambda truth, rng, window=window: window], horizontally, vertically)
        result = augment(sample_with(box), size, rng)
        assert result.image.shape == (*size, 3)
        if len(result.boxes):
            assert_frames_the_same_pixels(result, result.boxes[0], box, tolerance_of(View(window, *mirrored), size))


def preset(name: str) -> Augmentation:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return instantiate(compose("train", [f"augmentation={name}"]).augmentation, _convert_="all")


@pytest.mark.parametrize(
    ("name", "decoded_side"),
    [("paper", SIDE), ("paper", SIDE // 2), ("ssdlite", SIDE // 2), ("light", SIDE // 2), ("banana_zoom", SIDE)],
)
def test_boxes_frame_the_same_pixels_in_the_presets(name: str, decoded_side: int) -> None:
    """Some of the pictures are decoded at half their size."""
    augment, size, framed = preset(name), (200, 300), 0
    augment.colours = []  # The pixels must keep encoding their position.
    image = resample(picture_of_places(), WHOLE, (decoded_side, decoded_side))
    for seed, boxes in enumerate(random_boxes(np.random.default_rng(1), 3 * 40).reshape(40, 3, 4)):
        rng = np.random.default_rng(seed)
        truth = Truth((SIDE, SIDE), *sample_with(*boxes)[1:])
        view = augment.plan(truth, rng)
        result = augment.show(image, truth, view, size, rng)
        tolerance = tolerance_of(view, size) * SIDE / decoded_side
        for box, label in zip(result.boxes, result.labels, strict=True):
            assert_frames_the_same_pixels(result, box, boxes[label - 1], tolerance)
            framed += 1
    assert framed > 60


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


def test_reducing_averages_fine_patterns_to_grey() -> None:
    chequered = np.indices((200, 200)).sum(axis=0) % 2 * 255
    image = chequered[..., None].repeat(3, axis=2).astype(np.uint8)
    reduced = resample(image, WHOLE, (50, 50))
    assert np.abs(reduced.astype(int) - 127).max() <= 3


def test_the_area_outside_the_picture_has_the_fill_colour() -> None:
    """The picture appears at half its size in the middle, with a frame of a quarter on each side."""
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


def test_partly_covered_pixels_have_the_fill_colour() -> None:
    """The edges of the picture lie in the middle of pixels; the pixels between them are not stretched."""
    ramp = picture_of_places()
    result = resample(ramp, Window(-0.375, -0.375, 1.625, 1.625), (20, 20))  # The picture spans 3.75 to 13.75.
    assert (result[3] == FILL).all()
    assert (result[13] == FILL).all()
    assert (result[4:13, 4:13, 2] == IN_PICTURE).all()
    # Pixel 8 spans 8 to 9, which is 4.25 to 5.25 tenths of the picture.
    np.testing.assert_allclose(result[8, 8, :2], 0.475 * SIDE, atol=1)


@pytest.mark.parametrize("window", [Window(1.5, 0.0, 2.5, 1.0), Window(-99.7, -99.7, 100.3, 100.3)])
def test_a_window_without_any_picture_is_all_fill_colour(window: Window) -> None:
    """The first window lies beside the picture; in the second one the picture is smaller than a pixel."""
    result = Augmentation([lambda truth, rng: window], colours=[BrightnessContrast()])(
        sample_with((0.2, 0.2, 0.4, 0.4)), (30, 20), np.random.default_rng(0)
    )
    assert result.image.shape == (30, 20, 3)
    assert (result.image == FILL).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_pictures_of_one_pixel(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, dtype=np.uint8)
    augment = preset("paper")
    augment.colours = []
    for seed in range(50):
        result = augment(sample_with((0, 0, 1, 1), image=image), (30, 30), np.random.default_rng(seed))
        is_picture = (result.image == 200).all(axis=-1)
        assert (is_picture | (result.image == FILL).all(axis=-1)).all()
        assert is_picture.any()
        assert len(result.boxes) == 1


@pytest.mark.parametrize("size", [(30, 20), (90, 130), (17, 130), (60, 80), (1, 1)])
def test_without_anti_aliasing_a_picture_is_interpolated_as_by_torch(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    theirs = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), size, mode="bilinear", align_corners=False
    )
    ours = resample(image, WHOLE, size, antialias=False)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), rtol=0, atol=1e-4)


def test_without_anti_aliasing_a_window_equals_a_crop_of_the_resized_picture() -> None:
    """The window is the lower right of the picture, with as much of the fill colour on its right side."""
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    whole = resample(image, WHOLE, (40, 30), antialias=False)
    part = resample(image, Window(0.5, 0.5, 1.5, 1.0), (20, 30), antialias=False)
    np.testing.assert_allclose(part[:, :15], whole[20:, 15:], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(part[:, 15:], np.broadcast_to(np.float32(FILL), (20, 15, 3)))


def test_without_anti_aliasing_pictures_are_mirrored_and_get_whole_levels_for_colours() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    rng, plain = np.random.default_rng(0), resample(image, WHOLE, (40, 30), antialias=False)
    mirrored = Augmentation(horizontal_flip=1.0, vertical_flip=1.0)(sample_with(image=image), (40, 30), rng, False)
    np.testing.assert_array_equal(mirrored.image, plain[::-1, ::-1])
    seen = []
    Augmentation(colours=[lambda pixels, _: seen.append(pixels) or pixels])(
        sample_with(image=image), (40, 30), rng, False
    )
    assert seen[0].dtype == np.uint8
    np.testing.assert_allclose(seen[0], plain, rtol=0, atol=0.5)


def test_a_window_equals_a_crop_of_the_resized_picture() -> None:
    """Rows and columns have different scales, and the filter uses pixels beyond the window's border."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(image).resize((30, 40), Image.Resampling.BILINEAR))
    part = resample(image, Window(1 / 3, 0.5, 1.0, 1.0), (20, 20))
    assert np.abs(part.astype(int) - whole[20:, 10:]).max() <= 1


def test_the_sample_is_not_changed_in_place() -> None:
    boxes = ((0.1, 0.2, 0.5, 0.6), (0.4, 0.4, 0.9, 0.8))
    sample, untouched = sample_with(*boxes), sample_with(*boxes)
    augment = preset("paper")
    for seed in range(20):
        augment(sample, (64, 64), np.random.default_rng(seed))
        for now, before in zip(sample, untouched, strict=True):
            np.testing.assert_array_equal(now, before)


# --- views: geometry sampled before any pixel is read ---


def test_windows_are_nested_in_order() -> None:
    seen: list[Truth] = []

    def right_half(truth: Truth, rng: np.random.Generator) -> Window:
        seen.append(truth)
        return Window(0.5, 0.0, 1.0, 1.0)

    def twice_as_far(truth: Truth, rng: np.random.Generator) -> Window:
        seen.append(truth)
        return Window(-0.5, -0.5, 1.5, 1.5)

    boxes = np.array([(0.1, 0.1, 0.2, 0.2), (0.4, 0.2, 0.8, 0.6), (0.7, 0.7, 0.9, 1.0)], dtype=np.float32)
    truth = Truth((300, 400), boxes, np.array([1, 2, 3]), np.array([False, True, False]))
    augment = Augmentation([right_half, twice_as_far, right_half])
    view = augment.plan(truth, np.random.default_rng(0))
    # The windows are the right half, twice that around it, and the right half of the result.
    assert view == View(Window(0.75, -0.5, 1.25, 1.5), False, False)
    assert [each.size for each in seen] == [(300, 400), (300, 200), (600, 400)]
    np.testing.assert_allclose(seen[1].boxes, [(0, 0.2, 0.6, 0.6), (0.4, 0.7, 0.8, 1.0)], atol=1e-6)
    # The part that the first window clipped is visible again.
    np.testing.assert_allclose(seen[2].boxes, [(0.15, 0.35, 0.55, 0.55), (0.45, 0.6, 0.65, 0.75)], atol=1e-6)
    for each in seen[1:]:
        np.testing.assert_array_equal(each.labels, [2, 3])
        np.testing.assert_array_equal(each.difficult, [True, False])


@given(
    left=st.floats(-3, 0.9),
    top=st.floats(-3, 0.9),
    sides=st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)),
    size=st.tuples(st.integers(1, 600), st.integers(1, 600)),
)
def test_the_least_size_is_the_smallest_sufficient_size(
    left: float, top: float, sides: tuple[float, float], size: tuple[int, int]
) -> None:
    view = View(Window(left, top, left + sides[0], top + sides[1]), False, True)
    height, width = view.least_size(size)
    rounding = 1e-9
    assert height * sides[1] >= size[0] * (1 - rounding)
    assert (height - 1) * sides[1] < size[0] * (1 + rounding)
    assert width * sides[0] >= size[1] * (1 - rounding)
    assert (width - 1) * sides[0] < size[1] * (1 + rounding)


def test_the_whole_picture_needs_the_size_of_the_result() -> None:
    assert View(WHOLE, True, False).least_size((300, 512)) == (300, 512)


def test_a_call_equals_plan_and_show() -> None:
    augment, sample = preset("paper"), sample_with((0.3, 0.3, 0.6, 0.5), (0.1, 0.7, 0.2, 0.8))
    truth = Truth((SIDE, SIDE), *sample[1:])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shown = augment.show(sample.image, truth, augment.plan(truth, rng), (60, 50), rng)
        for one, other in zip(augment(sample, (60, 50), np.random.default_rng(seed)), shown, strict=True):
            np.testing.assert_array_equal(one, other)


# --- objects ---


def test_labels_and_flags_stay_with_their_boxes() -> None:
    sample = sample_with((0.6, 0.6, 0.9, 0.9), (0.1, 0.1, 0.2, 0.2), (0.2, 0.2, 0.4, 0.4))
    augment = Augmentation([lambda truth, rng: Window(0.0, 0.0, 0.5, 0.5)])
    result = augment(sample, (64, 64), np.random.default_rng(0))
    np.testing.assert_array_equal(result.labels, [2, 3])
    np.testing.assert_array_equal(result.difficult, [True, False])


# --- flips ---


def test_flipped_boxes_by_hand() -> None:
    box = np.array([[0.1, 0.2, 0.4, 0.9]], dtype=np.float32)
    for mirrored, expected in {
        (False, False): (0.1, 0.2, 0.4, 0.9),
        (True, False): (0.6, 0.2, 0.9, 0.9),
        (False, True): (0.1, 0.1, 0.4, 0.8),
        (True, True): (0.6, 0.1, 0.9, 0.8),
    }.items():
        np.testing.assert_allclose(mirror_boxes(box, *mirrored), [expected], atol=1e-7)
    assert mirror_boxes(np.zeros((0, 4), dtype=np.float32), True, True).shape == (0, 4)


def test_flipped_pictures_agree_with_numpy() -> None:
    image, rng = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8), np.random.default_rng(0)
    sample = sample_with(image=image)
    np.testing.assert_array_equal(Augmentation((), 1, 0)(sample, (5, 7), rng).image, np.fliplr(image))
    np.testing.assert_array_equal(Augmentation((), 0, 1)(sample, (5, 7), rng).image, np.flipud(image))
    np.testing.assert_array_equal(Augmentation((), 1, 1)(sample, (5, 7), rng).image, np.rot90(image, 2))


def test_probability_of_a_flip() -> None:
    sample, rng = sample_with(image=picture_of_places()[::64, ::64]), np.random.default_rng(0)
    augment = Augmentation(horizontal_flip=0.25)
    left_columns = [augment(sample, (4, 4), rng).image[0, 0, 0] for _ in range(1000)]
    assert set(left_columns) == {0, 192}
    assert 0.2 < np.mean(np.array(left_columns) == 192) < 0.3  # 0.25 ± 3.6 σ


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["horizontal_flip", "vertical_flip"])
def test_probabilities_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1\], got {value}"):
        Augmentation(**{name: value})


# --- colours ---


def test_colour_changes_run_in_order_on_the_resampled_picture() -> None:
    seen = []

    def brighter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(image.shape)
        return np.full_like(image, 10)

    def doubled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image * 2

    result = Augmentation(colours=[brighter, doubled])(sample_with(), (16, 24), np.random.default_rng(0))
    assert (result.image == 20).all()
    assert seen == [(16, 24, 3)]


def test_colour_changes_leave_the_fill_colour() -> None:
    def negative(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return 255 - image

    augment = Augmentation([lambda truth, rng: Window(0.0, 0.0, 2.0, 2.0)], 1.0, 0.0, [negative])
    result = augment(sample_with(image=np.full((50, 50, 3), 250, dtype=np.uint8)), (40, 40), np.random.default_rng(0))
    assert (result.image[:20, 20:] == 5).all()  # The picture is flipped.
    assert (result.image[:, :20] == FILL).all()
    assert (result.image[20:] == FILL).all()


@pytest.mark.parametrize("mirrored", list(itertools.product((0.0, 1.0), repeat=2)))
def test_colour_changes_get_contiguous_arrays(mirrored: tuple[float, float]) -> None:
    contiguous = []

    def look(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        contiguous.append(image.flags.c_contiguous)
        return image

    for size in ((SIDE, SIDE), (40, 50)):
        result = Augmentation((), *mirrored, [look])(sample_with(), size, np.random.default_rng(0))
        assert result.image.flags.c_contiguous
    assert all(contiguous)


# --- randomness ---


def test_the_generator_determines_the_result() -> None:
    augment = Augmentation(
        [ZoomOut(), MinIoUCrop(), ZoomIn()], 0.5, 0.5, [PhotometricDistortion(), BrightnessContrast()]
    )
    sample = sample_with((0.3, 0.3, 0.6, 0.5), (0.1, 0.7, 0.2, 0.8))

    def result(seed: int) -> Sample:
        return augment(sample, (32, 32), np.random.default_rng(seed))

    for seed in range(20):
        once, again = result(seed), result(seed)
        for first, second in zip(once, again, strict=True):
            np.testing.assert_array_equal(first, second)
    assert len({result(seed).image.tobytes() for seed in range(20)}) == 20
