"""Default boxes (others say prior boxes or anchors): section 2.2 of the SSD paper, arXiv 1512.02325."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int]
"""(height, width) of a feature map in cells."""


def linear_scales(levels: int, smallest: float = 0.2, largest: float = 0.9) -> list[float]:
    """Equation 4 of the paper for ``levels`` levels, and one more step for the last level's geometric mean.

    ``linear_scales(6)`` is 0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 1.04.
    """
    if levels < 2:
        raise ValueError(f"levels: expected at least 2 for a linear rule, got {levels}")
    step = (largest - smallest) / (levels - 1)
    return [smallest + step * level for level in range(levels + 1)]


def pixel_scales(sizes: Sequence[float], image_size: float) -> list[float]:
    """Scales from box sizes in pixels, as configuration files of the authors' code give them."""
    return [size / image_size for size in sizes]


class DefaultBoxes:
    """The shapes of the default boxes of each level, laid over the levels' grids by calling it.

    A level with scale s and next scale s' gives each cell a square of side s, a square of side √(s s'), and for each of
    its aspect ratios a the two boxes (s√a, s/√a) and (s/√a, s√a).

    Args:
        scales: one for each level and one more; a fraction of the image, ascending.
        aspect_ratios: for each level its ratios above 1. The squares and the inverse ratios come by themselves.
        steps: pixels from one cell to the next, for each level. Cell i then has its centre at (i + ½) · step / image
            size. Weights released by the authors want it (for SSD300, 38 cells of 8 pixels are not 300). Without
            steps the centre is (i + ½) / cells.
        clip: cut the boxes at the border of the image. Off, as in the authors' code.
    """

    def __init__(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[Sequence[float]],
        steps: Sequence[float] | None = None,
        clip: bool = False,
    ) -> None:
        self.scales = [float(scale) for scale in scales]
        self.aspect_ratios = [[float(ratio) for ratio in level] for level in aspect_ratios]
        self.steps = None if steps is None else [float(step) for step in steps]
        self.clip = clip
        self._check()

    @property
    def levels(self) -> int:
        return len(self.aspect_ratios)

    @property
    def boxes_per_cell(self) -> list[int]:
        """Number of default boxes in one cell, for each level."""
        return [2 + 2 * len(ratios) for ratios in self.aspect_ratios]

    def shapes(self) -> list[Float[Tensor, "shapes 2"]]:
        """(width, height) of the boxes of one cell, for each level."""
        return [
            torch.tensor(_level_shapes(scale, next_scale, ratios))
            for (scale, next_scale), ratios in zip(pairwise(self.scales), self.aspect_ratios, strict=True)
        ]

    def __call__(self, grids: Sequence[Grid], image_size: tuple[int, int]) -> Float[Tensor, "boxes 4"]:
        """Lay the boxes over the grids.

        Args:
            grids: (height, width) of each level's feature map.
            image_size: (height, width) in pixels of the network's input; only ``steps`` depend on it.

        Returns:
            All default boxes as cxcywh, ordered by level, row, column, then as in the class's text.
        """
        if len(grids) != self.levels:
            raise ValueError(f"the network gives {len(grids)} levels, aspect_ratios and scales are for {self.levels}")
        steps: Sequence[float | None] = self.steps or [None] * self.levels
        levels = [
            _lay(shapes, grid, None if step is None else (step / image_size[0], step / image_size[1]))
            for shapes, grid, step in zip(self.shapes(), grids, steps, strict=True)
        ]
        boxes = torch.cat(levels)
        if not self.clip:
            return boxes
        left_top, right_bottom = (
            (boxes[:, :2] - boxes[:, 2:] / 2).clamp(0, 1),
            (boxes[:, :2] + boxes[:, 2:] / 2).clamp(0, 1),
        )
        return torch.cat(((left_top + right_bottom) / 2, right_bottom - left_top), dim=1)

    def _check(self) -> None:
        if len(self.scales) != self.levels + 1:
            raise ValueError(
                f"aspect_ratios has {self.levels} levels, scales makes {len(self.scales) - 1} "
                "(m levels take m + 1 scales)"
            )
        for name, values in (("scales", self.scales), ("steps", self.steps or [])):
            if not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"{name}: expected finite numbers above 0, got {values}")
        if any(first >= second for first, second in pairwise(self.scales)):
            raise ValueError(f"scales: expected ascending numbers, got {self.scales}")
        for level, ratios in enumerate(self.aspect_ratios):
            if not all(math.isfinite(ratio) and ratio > 1 for ratio in ratios):
                raise ValueError(
                    f"aspect_ratios of level {level}: expected finite numbers above 1 "
                    f"(1 and the inverse ratios are added), got {ratios}"
                )
        if self.steps is not None and len(self.steps) != self.levels:
            raise ValueError(f"steps has {len(self.steps)} levels, aspect_ratios has {self.levels}")


def _level_shapes(scale: float, next_scale: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    between = math.sqrt(scale * next_scale)
    wide_and_tall = [
        shape
        for root in map(math.sqrt, ratios)
        for shape in ((scale * root, scale / root), (scale / root, scale * root))
    ]
    return [(scale, scale), (between, between), *wide_and_tall]


def _lay(
    shapes: Float[Tensor, "shapes 2"], grid: Grid, cell: tuple[float, float] | None
) -> Float[Tensor, "level_boxes 4"]:
    """One level; ``cell`` is the (height, width) of a cell as a fraction of the image, if the grid does not tell."""
    (rows, columns), (height, width) = grid, cell or (1 / grid[0], 1 / grid[1])
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) * height, (torch.arange(columns) + 0.5) * width, indexing="ij")
    centres = torch.stack((x, y), dim=-1).view(-1, 1, 2)
    return torch.cat((centres.expand(-1, len(shapes), 2), shapes.expand(rows * columns, -1, 2)), dim=-1).view(-1, 4)
