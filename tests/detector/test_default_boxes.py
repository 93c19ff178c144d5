"""Default boxes, compared with the numbers of the paper and d2l.ai, hand-made cases, and torchvision's generator."""

from typing import NamedTuple

import jaxtyping
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes, LinearScales, pixel_scales


class Layout(NamedTuple):
    """Default boxes of a published detector."""

    image_size: int
    grids: list[int]
    scales: list[float]
    aspect_ratios: list[list[float]]
    steps: list[float] | None
    count: int

    def make(self, **changes) -> Tensor:
        arguments = {"scales": self.scales, "aspect_ratios": self.aspect_ratios, "steps": self.steps, **changes}
        return DefaultBoxes(**arguments)([(grid, grid) for grid in self.grids], (self.image_size, self.image_size))


SSD300_RATIOS = [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
SSD512_RATIOS = [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
LAYOUTS = {
    "SSD300 VOC": Layout(
        300,
        [38, 19, 10, 5, 3, 1],
        [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
        SSD300_RATIOS,
        [8.0, 16.0, 32.0, 64.0, 100.0, 300.0],
        8732,
    ),
    "SSD300 COCO": Layout(
        300,
        [38, 19, 10, 5, 3, 1],
        [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        SSD300_RATIOS,
        [8.0, 16.0, 32.0, 64.0, 100.0, 300.0],
        8732,
    ),
    "SSD512 VGG": Layout(
        512,
        [64, 32, 16, 8, 4, 2, 1],
        [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05],
        SSD512_RATIOS,
        None,
        24564,
    ),
    "SSD512 ResNet-34": Layout(
        512,
        [64, 32, 16, 8, 6, 4, 1],
        [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05, 1.2],
        SSD512_RATIOS,
        [8.0, 16.0, 32.0, 64.0, 100.0, 300.0, 512.0],
        24732,
    ),
    "SSDLite320 MobileNetV3": Layout(
        320, [20, 10, 5, 3, 2, 1], [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0], [[2.0, 3.0]] * 6, None, 3234
    ),
    "TinySSD 256": Layout(256, [32, 16, 8, 4, 1], [0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2.0]] * 5, None, 5444),
}


# ---------------------------------------------------------------------------------------------------- published layouts


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_number_of_boxes(layout):
    boxes = layout.make()
    assert boxes.shape == (layout.count, 4)
    assert boxes.dtype == torch.float32
    assert layout.count == sum(
        grid**2 * (2 + 2 * len(ratios)) for grid, ratios in zip(layout.grids, layout.aspect_ratios, strict=True)
    )


def test_boxes_of_each_cell():
    boxes = DefaultBoxes(LAYOUTS["SSD300 VOC"].scales, SSD300_RATIOS)
    assert boxes.levels == 6
    assert boxes.boxes_per_cell == [4, 6, 6, 6, 4, 4]
    assert [len(shapes) for shapes in boxes.shapes()] == [4, 6, 6, 6, 4, 4]


def test_ssd300_by_hand():
    """Use a first cell of 8 of 300 pixels; √2 · 0.1 = 0.141421 and 0.1 / √2 = 0.0707107."""
    boxes = LAYOUTS["SSD300 VOC"].make()
    centre = 4 / 300
    torch.testing.assert_close(
        boxes[:4],
        torch.tensor(
            [
                [centre, centre, 0.1, 0.1],
                [centre, centre, 0.141421, 0.141421],
                [centre, centre, 0.141421, 0.0707107],
                [centre, centre, 0.0707107, 0.141421],
            ]
        ),
        rtol=0,
        atol=1e-6,
    )
    second_level = boxes[38 * 38 * 4 :][:6]
    torch.testing.assert_close(second_level[:, :2], torch.full((6, 2), 8 / 300))
    torch.testing.assert_close(
        second_level[:, 2:],
        torch.tensor(
            [
                [0.2, 0.2],
                [0.272029, 0.272029],  # √(0.2 · 0.37)
                [0.282843, 0.141421],
                [0.141421, 0.282843],
                [0.346410, 0.115470],  # √3
                [0.115470, 0.346410],
            ]
        ),
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(boxes[-1], torch.tensor([0.5, 0.5, 0.622254, 1.244508]), rtol=0, atol=1e-6)


def test_d2l_sizes():
    """Compare with both squares of each level, which section 14.7 of d2l.ai gives with three digits."""
    published = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    for shapes, sizes in zip(DefaultBoxes(LAYOUTS["TinySSD 256"].scales, [[2.0]] * 5).shapes(), published, strict=True):
        torch.testing.assert_close(shapes[:2], torch.tensor([[size, size] for size in sizes]), rtol=0, atol=5e-4)


def d2l_multibox_prior(rows: int, columns: int, sizes: list[float], ratios: list[float]) -> Tensor:
    """Compute section 14.4's anchors by a loop: s₁ with all ratios, and s₂ … with the first ratio."""
    return torch.tensor(
        [
            [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            for y in ((row + 0.5) / rows for row in range(rows))
            for x in ((column + 0.5) / columns for column in range(columns))
            for width, height in [
                *((size * ratios[0] ** 0.5, size / ratios[0] ** 0.5) for size in sizes),
                *((sizes[0] * ratio**0.5, sizes[0] / ratio**0.5) for ratio in ratios[1:]),
            ]
        ]
    )


def test_tiny_ssd_boxes_are_d2l_anchors_in_their_order():
    sizes = [(0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)]
    anchors = torch.cat(
        [d2l_multibox_prior(grid, grid, list(s), [1, 2, 0.5]) for grid, s in zip([32, 16, 8, 4, 1], sizes, strict=True)]
    )
    torch.testing.assert_close(cxcywh_to_xyxy(LAYOUTS["TinySSD 256"].make()), anchors, rtol=0, atol=5e-4)


# --------------------------------------------------------------------------------------------------------- torchvision


def torchvision_default_boxes(generator: DefaultBoxGenerator, grids: list, height: int, width: int) -> Tensor:
    """Convert torchvision's xyxy pixels to cxcywh fractions."""
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (boxes,) = generator(images, [torch.zeros(1, 1, *grid) for grid in grids])
    return xyxy_to_cxcywh(boxes / torch.tensor([width, height, width, height]))


@pytest.mark.parametrize("with_steps", [True, False])
@pytest.mark.parametrize("image_size", [(300, 300), (300, 600)], ids=["square", "wide"])
def test_ssd300_as_torchvision(with_steps, image_size):
    """Compare without torchvision's ``clip``, which limits sizes to 1, unlike the authors."""
    _, grids, scales, ratios, steps, _ = LAYOUTS["SSD300 VOC"]
    grids = [(grid, grid * image_size[1] // image_size[0]) for grid in grids]
    steps = steps if with_steps else None
    generator = DefaultBoxGenerator(ratios, scales=scales, steps=steps, clip=False)
    torch.testing.assert_close(
        DefaultBoxes(scales, ratios, steps)(grids, image_size),
        torchvision_default_boxes(generator, grids, *image_size),
        rtol=0,
        atol=1e-6,
    )


def test_torchvision_clips_the_size_alone():
    _, grids, scales, ratios, steps, _ = LAYOUTS["SSD300 VOC"]
    ours = LAYOUTS["SSD300 VOC"].make()
    theirs = torchvision_default_boxes(
        DefaultBoxGenerator(ratios, scales=scales, steps=steps), [(grid, grid) for grid in grids], 300, 300
    )
    assert (ours[:, 2:] > 1).any()
    torch.testing.assert_close(theirs, torch.cat((ours[:, :2], ours[:, 2:].clamp(max=1)), dim=1), rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- layout


def test_order_is_level_row_column_shape():
    boxes = DefaultBoxes([0.1, 0.4, 0.9], [[], [4.0]])([(2, 3), (1, 2)], (10, 10))
    sixth = 1 / 6
    square, between = (0.1, 0.1), (0.2, 0.2)  # √(0.1 · 0.4) = 0.2
    centres = [(x, y) for y in (0.25, 0.75) for x in (sixth, 3 * sixth, 5 * sixth)]
    first_level = [(*centre, *shape) for centre in centres for shape in (square, between)]
    second_shapes = ((0.4, 0.4), (0.6, 0.6), (0.8, 0.2), (0.2, 0.8))
    second_level = [(x, 0.5, *shape) for x in (0.25, 0.75) for shape in second_shapes]
    torch.testing.assert_close(boxes, torch.tensor([*first_level, *second_level]))


def test_steps_and_grid_agree_where_they_fill_the_image():
    layout = LAYOUTS["SSD512 VGG"]
    steps = [512 / grid for grid in layout.grids]
    torch.testing.assert_close(layout.make(steps=steps), layout.make())


def test_steps_are_pixels_of_each_axis():
    """Use a step of half the height and a quarter of the width."""
    boxes = DefaultBoxes([0.1, 0.4], [[]], steps=[20.0])([(2, 4)], (40, 80))
    assert boxes[::2, 0].tolist() == [0.125, 0.375, 0.625, 0.875] * 2
    assert boxes[::2, 1].tolist() == [0.25] * 4 + [0.75] * 4


def test_clip_cuts_at_the_border_of_the_image():
    layout = LAYOUTS["SSD300 VOC"]
    whole, cut = layout.make(), layout.make(clip="border")
    expected = clip_boxes_to_image(cxcywh_to_xyxy(whole), (1, 1))
    torch.testing.assert_close(cxcywh_to_xyxy(cut), expected, rtol=0, atol=1e-6)
    # The first box extends from 4 / 300 − 0.05 < 0 to 4 / 300 + 0.05.
    side = 4 / 300 + 0.05
    torch.testing.assert_close(cut[0], torch.tensor([side / 2, side / 2, side, side]))


def test_levels_without_ratios_have_their_squares():
    assert DefaultBoxes([0.2, 0.4], [[]])([(3, 3)], (9, 9)).shape == (18, 4)


# -------------------------------------------------------------------------------------------------------------- scales


def test_linear_scales_of_the_paper():
    assert LinearScales(6) == pytest.approx([0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 1.04])
    assert LinearScales(2, smallest=0.1, largest=0.5) == pytest.approx([0.1, 0.5, 0.9])


def test_pixel_scales_of_the_authors_code():
    """Convert min_sizes and the last max_size of ssd_pascal.py."""
    assert pixel_scales([30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0], 300.0) == pytest.approx(
        LAYOUTS["SSD300 VOC"].scales
    )


@pytest.mark.parametrize("levels", [1, 0, -3])
def test_linear_scales_need_two_levels(levels):
    with pytest.raises(ValueError, match=f"levels: expected a whole number of at least 2, got {levels}"):
        LinearScales(levels)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"scales": [0.1, 0.2, 0.37, 0.54, 0.71, 0.8, 0.9, 1.05], "aspect_ratios": [[2.0]] * 6},
            "scales: expected 7 numbers",
            id="too many scales",
        ),
        pytest.param(
            {"scales": [0.1, 0.2], "aspect_ratios": [[2.0], [2.0]]},
            r"scales: expected 3 numbers.* got \[0.1, 0.2\]",
            id="as many scales as levels",
        ),
        pytest.param({"scales": [0.0, 0.2]}, r"scales: .* in \(0, 10\], got \[0.0, 0.2\]", id="a scale of 0"),
        pytest.param({"scales": [-0.1, 0.2]}, r"scales: .* in \(0, 10\], got \[-0.1, 0.2\]", id="a negative scale"),
        pytest.param({"scales": [0.1, float("inf")]}, r"scales: expected .* got \[0.1, inf\]", id="infinite"),
        pytest.param({"scales": [0.1, float("nan")]}, r"scales: expected .* got \[0.1, nan\]", id="nan"),
        pytest.param({"scales": [0.2, 0.1]}, r"scales: expected ascending .* got \[0.2, 0.1\]", id="falling scales"),
        pytest.param({"scales": [0.2, 0.2]}, r"scales: expected ascending .* got \[0.2, 0.2\]", id="equal scales"),
        pytest.param(
            {"scales": [0.1, 0.2, 0.3], "aspect_ratios": [[2.0], [1.0]]},
            r"aspect_ratios.1: .* above 1 .* got \[1.0\]",
            id="ratio 1, which is added",
        ),
        pytest.param({"aspect_ratios": [[2.0, 0.5]]}, r"aspect_ratios.0: .* got \[2.0, 0.5\]", id="an inverse"),
        pytest.param({"aspect_ratios": [[float("nan")]]}, r"aspect_ratios.0: .* got \[nan\]", id="ratio nan"),
        pytest.param({"steps": [8.0, 16.0]}, r"steps: .* of 1 levels, got \[8.0, 16.0\]", id="too many steps"),
        pytest.param({"steps": []}, r"steps: .* of 1 levels, got \[\]", id="no steps"),
        pytest.param({"steps": [0.0]}, r"steps: .* in \(0, .*, got \[0.0\]", id="a step of 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DefaultBoxes(**{"scales": [0.1, 0.2], "aspect_ratios": [[2.0]], **arguments})


def test_refuses_grids_of_another_network():
    with pytest.raises(ValueError, match=r"scales: expected 4 numbers.* got \[0.1, 0.2, 0.3\]"):
        DefaultBoxes([0.1, 0.2, 0.3], [[2.0], [2.0]])([(4, 4), (2, 2), (1, 1)], (64, 64))


# ------------------------------------------------------------------------------------------------ aspect ratios by rule

TWO, THREE = [2.0, 0.5], [2.0, 0.5, 3.0, 1 / 3]
"""Ratios 2, and 2 and 3, with their inverses."""


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        # Up to three levels are all outer levels.
        (1, [TWO]),
        (2, [TWO, TWO]),
        (3, [TWO, TWO, TWO]),
        (4, [TWO, THREE, TWO, TWO]),
        (5, [TWO, THREE, THREE, TWO, TWO]),
        (6, [TWO, THREE, THREE, THREE, TWO, TWO]),
        (7, [TWO, THREE, THREE, THREE, THREE, TWO, TWO]),
    ],
)
def test_aspect_ratios_of_the_paper(levels, expected):
    """Give conv4_3 and the last two levels 4 boxes in a cell, the others 6: sections 3.1 and 3.4."""
    rule = AspectRatios([2.0, 3.0], outer=[2.0])
    assert rule.of(levels) == expected
    boxes = DefaultBoxes([0.1 * (level + 1) for level in range(levels + 1)], rule)
    assert boxes.levels == levels
    assert boxes.boxes_per_cell == [2 + len(ratios) for ratios in expected]


@pytest.mark.parametrize("name", ["SSD300 VOC", "SSD512 VGG"])
def test_the_rule_gives_the_boxes_of_the_list(name):
    layout = LAYOUTS[name]
    assert torch.equal(layout.make(aspect_ratios=AspectRatios([2.0, 3.0], outer=[2.0])), layout.make())


def test_one_rule_for_all_levels():
    assert AspectRatios([2.0, 3.0]).of(3) == [THREE, THREE, THREE]
    assert AspectRatios([]).of(2) == [[], []]
    # An empty list means no ratios, while None means those of the inner levels.
    assert AspectRatios([2.0], outer=[]).of(4) == [[], TWO, [], []]


def test_boxes_without_inverses():
    """Make boxes twice as wide and half as high as the square for 4, and the reverse for ¼."""
    (lying,) = DefaultBoxes([0.2, 0.45], AspectRatios([4.0], inverses=False)).shapes()
    torch.testing.assert_close(lying, torch.tensor([[0.2, 0.2], [0.3, 0.3], [0.4, 0.1]]))
    (standing,) = DefaultBoxes([0.2, 0.45], AspectRatios([0.25], inverses=False)).shapes()
    torch.testing.assert_close(standing, torch.tensor([[0.2, 0.2], [0.3, 0.3], [0.1, 0.4]]))
    both = AspectRatios([0.5, 3.0], outer=[2.0], inverses=False)
    assert both.of(4) == [[2.0], [0.5, 3.0], [2.0], [2.0]]
    assert DefaultBoxes([0.1, 0.2, 0.3, 0.4, 0.5], both).boxes_per_cell == [3, 4, 3, 3]


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("inner", "outer", "inverses", "message"),
    [
        ([1.0], None, True, r"inner: .* above 1 .* got \[1.0\]"),
        ([2.0, 0.5], None, True, r"inner: .* above 1 .* got \[2.0, 0.5\]"),
        ([0.0], None, True, r"inner: .* got \[0.0\]"),
        ([-2.0], None, True, r"inner: .* got \[-2.0\]"),
        ([NAN], None, True, r"inner: .* got \[nan\]"),
        ([INFINITY], None, True, r"inner: .* got \[inf\]"),
        ([2.0], [1.0], True, r"outer: .* above 1 .* got \[1.0\]"),
        ([2.0], [2.0, NAN], True, r"outer: .* got \[2.0, nan\]"),
        # Ratios below 1 are allowed without inverses, but 1 is not.
        ([0.5, 1.0], None, False, r"inner: .* above 0 except 1.* got \[0.5, 1.0\]"),
        ([0.0], None, False, r"inner: .* in \(0, .* got \[0.0\]"),
        ([-0.5], None, False, r"inner: .* in \(0, .* got \[-0.5\]"),
        ([NAN], None, False, r"inner: .* got \[nan\]"),
        ([0.5], [INFINITY], False, r"outer: .* got \[inf\]"),
    ],
)
def test_a_rule_refuses_bad_ratios(inner, outer, inverses, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        AspectRatios(inner, outer, inverses)


# ---------------------------------------------------------------------------------------- clip="size", as torchvision's


def test_clipped_sizes_of_ssd300_are_torchvisions():
    """Use the settings of ``ssd300_vgg16``, whose last boxes are larger than the picture."""
    ratios = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
    scales, steps = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05], [8, 16, 32, 64, 100, 300]
    grids = [(grid, grid) for grid in (38, 19, 10, 5, 3, 1)]
    theirs = torchvision_default_boxes(
        DefaultBoxGenerator(ratios, scales=scales, steps=steps, clip=True), grids, 300, 300
    )
    ours = DefaultBoxes(scales, AspectRatios([2, 3], outer=[2]), steps, clip="size")(grids, (300, 300))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours[:, 2:].max() == 1
    assert LAYOUTS["SSD300 COCO"].make()[:, 2:].max() > 1
    # Boxes still extend over the border, because only their size is limited.
    assert (cxcywh_to_xyxy(ours) < 0).any()


def test_clipped_sizes_of_ssdlite320_are_torchvisions():
    """Use the generator of ``ssdlite320_mobilenet_v3_large``, which has no steps."""
    generator = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95, clip=True)
    grids = [(grid, grid) for grid in (20, 10, 5, 3, 2, 1)]
    layout = LAYOUTS["SSDLite320 MobileNetV3"]
    ours = layout.make(aspect_ratios=AspectRatios([2, 3]), clip="size")
    torch.testing.assert_close(ours, torchvision_default_boxes(generator, grids, 320, 320), rtol=0, atol=1e-6)
    assert ours[:, 2:].max() == 1
    assert layout.make()[:, 2:].max() > 1.5  # 0.95 · √3


@pytest.mark.parametrize("clip", ["sizes", "", True, False, 1])
def test_clip_refuses(clip, monkeypatch: pytest.MonkeyPatch):
    """Refuse ``False`` too."""
    # The tests' own check of the signature would fail first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"clip: expected border, size, centre_and_size or null, got {clip!r}"):
        DefaultBoxes([0.1, 0.2], [[2.0]], clip=clip)
