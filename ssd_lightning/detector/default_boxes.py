"""Default boxes (others say prior boxes or anchors): section 2.2 of the SSD paper, arXiv 1512.02325."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ssd_lightning.detector.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ssd_lightning.require import require_number, require_numbers, require_switch, require_whole_number

LIMITS = "(0, 10]"
"""Interval of scales. A default box of ten times the picture's side overlaps no object by a tenth."""

Grid = tuple[int, int]
"""(height, width) of a feature map in cells."""


class LinearScales(list[float]):
    """Scales by equation 4 of the paper, and one more step for the second square of the last level.

    ``LinearScales(6)`` is 0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 1.04.
    """

    def __init__(self, levels: int = 6, smallest: float = 0.2, largest: float = 0.9) -> None:
        require_whole_number("levels", levels, 2, most=100)
        require_number("smallest", smallest, LIMITS)
        require_number("largest", largest, LIMITS)
        step = (largest - smallest) / (levels - 1)
        super().__init__(smallest + step * level for level in range(levels + 1))


def pixel_scales(sizes: Sequence[float], image_size: float) -> list[float]:
    """Convert box sizes in pixels, as in the configuration of the authors' code, to scales."""
    return [size / image_size for size in sizes]


class AspectRatios:
    """A rule that gives aspect ratios for any number of levels.

    Args:
        inner: ratios of the inner levels.
        outer: ratios of the first level and the last two, which have fewer in the paper. ``None``: the same as
            ``inner``.
        inverses: add 1/a for each ratio a. Without inverses, ``[2, 3]`` gives only wide boxes and ``[0.5]`` only tall
            ones.
    """

    def __init__(self, inner: Sequence[float], outer: Sequence[float] | None = None, inverses: bool = True) -> None:
        require_switch("inverses", inverses)
        outer = inner if outer is None else outer
        for name, ratios in (("inner", inner), ("outer", outer)):
            _check_ratios(name, ratios, inverses)
        self.inner, self.outer = list(inner), list(outer)
        self.inverses = inverses

    def of(self, levels: int) -> list[list[float]]:
        """Return for each level the aspect ratios (width over height) of the boxes that are not squares."""
        chosen = [self.outer if level in (0, levels - 2, levels - 1) else self.inner for level in range(levels)]
        return [_with_inverses(ratios) if self.inverses else ratios for ratios in chosen]


class DefaultBoxes:
    """Shapes of the default boxes of each level. A call lays them over the grids of the levels.

    A level with scale s and next scale s' gives each cell a square of side s and a square of side √(s s'). Each aspect
    ratio a of the level adds the two boxes (s√a, s/√a) and (s/√a, s√a).

    Args:
        scales: fractions of the image, ascending; one more than there are levels.
        aspect_ratios: the ratios above 1 of each level, or a rule for any number of levels. Squares and inverse
            ratios are added.
        steps: number of pixels between two cells of each level. The centre of cell i is then at (i + ½) · step /
            image size, as the authors' released weights need it. (In SSD300, 38 cells of 8 pixels are not 300 pixels.)
            ``None``: the centre of cell i is at (i + ½) / cells.
        clip: ``None`` leaves the boxes as they are, as in the authors' code. "border" cuts them at the border of the
            image. "size" limits width and height to those of the image, for torchvision's released weights.
            "centre_and_size" also moves centres into the image, for the weights of amdegroot/ssd.pytorch.
    """

    def __init__(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | AspectRatios,
        steps: Sequence[float] | None = None,
        clip: Literal["border", "size", "centre_and_size"] | None = None,
    ) -> None:
        require_numbers("scales", scales, LIMITS)
        if steps is not None:
            require_numbers("steps", steps, "(0, 1e6]")
        self.scales = [float(scale) for scale in scales]
        if isinstance(aspect_ratios, AspectRatios):
            self.ratios = aspect_ratios.of(len(self.scales) - 1)
        else:
            if not isinstance(aspect_ratios, list | tuple):
                raise ValueError(f"aspect_ratios: expected a list of ratios for each level, got {aspect_ratios}")
            for level, ratios in enumerate(aspect_ratios):
                _check_ratios(f"aspect_ratios.{level}", ratios, inverses=True)
            self.ratios = [_with_inverses(level) for level in aspect_ratios]
        self.steps = None if steps is None else [float(step) for step in steps]
        self.clip = clip
        self._check()

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.ratios)

    @property
    def boxes_per_cell(self) -> list[int]:
        """Number of default boxes in a cell of each level."""
        return [2 + len(ratios) for ratios in self.ratios]

    def shapes(self) -> list[Float[Tensor, "shapes 2"]]:
        """Return for each level the (width, height) of the boxes of a cell."""
        shapes = [
            torch.tensor(_level_shapes(scale, next_scale, ratios))
            for (scale, next_scale), ratios in zip(pairwise(self.scales), self.ratios, strict=True)
        ]
        return [level.clamp(max=1) for level in shapes] if self.clip in ("size", "centre_and_size") else shapes

    def __call__(self, grids: Sequence[Grid], image_size: tuple[int, int]) -> Float[Tensor, "boxes 4"]:
        """Lay the boxes over the grids.

        Args:
            grids: (height, width) of each level's feature map.
            image_size: (height, width) in pixels of the network's input, used with ``steps``.

        Returns:
            All default boxes (cxcywh), ordered by level, row, column, then as in the class's description.

        Raises:
            ValueError: if the number of grids differs from the number of levels, or if clipping leaves empty boxes.
        """
        if len(grids) != self.levels:
            raise ValueError(
                f"default_boxes.scales: expected {len(grids) + 1} numbers, one more than the network has levels, "
                f"got {self.scales}"
            )
        steps: Sequence[float | None] = self.steps or [None] * self.levels
        levels = [
            _lay(shapes, grid, None if step is None else (step / image_size[0], step / image_size[1]))
            for shapes, grid, step in zip(self.shapes(), grids, steps, strict=True)
        ]
        boxes = torch.cat(levels)
        if self.clip == "centre_and_size":
            return boxes.clamp(0, 1)
        if self.clip != "border":
            return boxes
        boxes = xyxy_to_cxcywh(cxcywh_to_xyxy(boxes).clamp(0, 1))
        if not bool((boxes[:, 2:] > 0).all()):
            raise ValueError(
                "default_boxes.clip: expected default boxes inside the image, got 'border' for boxes outside of it. "
                "Try null."
            )
        return boxes

    def _check(self) -> None:
        if self.levels < 1:
            raise ValueError(f"scales: expected at least 2 numbers, for one level, got {self.scales}")
        if len(self.scales) != self.levels + 1:
            raise ValueError(
                f"scales: expected {self.levels + 1} numbers, one more than aspect_ratios has levels, got {self.scales}"
            )
        if any(first >= second for first, second in pairwise(self.scales)):
            raise ValueError(f"scales: expected ascending numbers, got {self.scales}")
        if self.clip not in (None, "border", "size", "centre_and_size"):
            raise ValueError(f"clip: expected border, size, centre_and_size or null, got {self.clip!r}")
        if self.steps is not None and len(self.steps) != self.levels:
            raise ValueError(f"steps: expected one number for each of {self.levels} levels, got {self.steps}")


def _check_ratios(name: str, ratios: Sequence[float], inverses: bool) -> None:
    require_numbers(name, ratios, "(0, 100]")
    if inverses and not all(ratio > 1 for ratio in ratios):
        raise ValueError(f"{name}: expected numbers above 1 (squares and inverse ratios are added), got {list(ratios)}")
    if 1 in ratios:
        raise ValueError(f"{name}: expected numbers above 0 except 1 (squares are added), got {list(ratios)}")


def _with_inverses(ratios: Sequence[float]) -> list[float]:
    return [either for ratio in ratios for either in (float(ratio), 1 / ratio)]


def _level_shapes(scale: float, next_scale: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    between = math.sqrt(scale * next_scale)
    others = [(scale * root, scale / root) for root in map(math.sqrt, ratios)]
    return [(scale, scale), (between, between), *others]


def _lay(
    shapes: Float[Tensor, "shapes 2"], grid: Grid, cell: tuple[float, float] | None
) -> Float[Tensor, "level_boxes 4"]:
    """Lay the boxes of one level.

    Args:
        shapes: (width, height) of the boxes of a cell.
        grid: (height, width) in cells.
        cell: (height, width) of a cell as a fraction of the image. ``None``: the grid fills the image.
    """
    (rows, columns), (height, width) = grid, cell or (1 / grid[0], 1 / grid[1])
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) * height, (torch.arange(columns) + 0.5) * width, indexing="ij")
    centres = torch.stack((x, y), dim=-1).view(-1, 1, 2)
    return torch.cat((centres.expand(-1, len(shapes), 2), shapes.expand(rows * columns, -1, 2)), dim=-1).view(-1, 4)
