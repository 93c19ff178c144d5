"""A search for scales and aspect ratios that fit a data set, within a budget of default boxes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ssd_lightning.box_design.coverage import best_ious
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes, Grid
from ssd_lightning.run_folder import replace_text

RATIOS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
"""Aspect ratios to choose from, in addition to the ratios of the present default boxes."""

MOST_RATIOS = 6
"""Largest number of aspect ratios in a cell, counting inverses; a cell has two squares as well."""

SMALLEST_SCALE, LARGEST_SCALE = 0.005, 1.5

DECIMALS = 4
"""Number of decimals of scales and ratios during the search, so that the written values are the tried ones."""

STEPS = (1.3, 1.15, 1.07, 1.03, 1.01)
"""Factors for changing scales, from coarse to fine."""

RESTARTS = 30
"""Number of restarts near the best shapes so far."""

JITTER = 0.15
"""Standard deviation of the scales' logarithms at a restart."""

MOST_OBJECTS = 20_000
"""Largest number of objects that the search uses; from more objects it draws a sample."""


class BoxShapes(NamedTuple):
    """The shapes of default boxes, in the form that the search changes and writes."""

    scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    """Aspect ratios in groups.

    With inverses there is one group per level, of ratios above 1. Without inverses there are two groups, of the inner
    and of the outer levels, as in :class:`~ssd_lightning.detector.default_boxes.AspectRatios`.
    """
    inverses: bool

    @classmethod
    def of(cls, default_boxes: DefaultBoxes) -> "BoxShapes":
        """Return the shapes of existing default boxes."""
        scales = tuple(default_boxes.scales)
        halves = tuple(tuple(level[::2]) for level in default_boxes.ratios)
        if [[r for half in level for r in (half, 1 / half)] for level in halves] == default_boxes.ratios and all(
            ratio > 1 for level in halves for ratio in level
        ):
            return cls(scales, halves, inverses=True)
        groups = _groups(default_boxes.levels, inverses=False)
        by_group = {group: tuple(level) for group, level in zip(groups, default_boxes.ratios, strict=True)}
        return cls(scales, (by_group.get(0, ()), by_group[1]), inverses=False)

    def default_boxes(self, like: DefaultBoxes) -> DefaultBoxes:
        """Create default boxes of these shapes, with the steps and the clipping of ``like``."""
        if self.inverses:
            return DefaultBoxes(self.scales, self.ratios, like.steps, like.clip)
        inner, outer = self.ratios
        return DefaultBoxes(self.scales, AspectRatios(inner, outer, inverses=False), like.steps, like.clip)

    def write(self, folder: Path, name: str, comment: str) -> None:
        """Write the shapes as options of the config groups ``box_scales`` and ``aspect_ratios``."""
        ratios = [_as_yaml(group) for group in self.ratios]
        if self.inverses:
            rule = f"[{', '.join(ratios)}]\n"
        else:
            rule = f"_target_: ssd_lightning.AspectRatios\ninner: {ratios[0]}\nouter: {ratios[1]}\ninverses: false\n"
        for group, text in (("box_scales", f"{_as_yaml(self.scales)}\n"), ("aspect_ratios", rule)):
            (folder / group).mkdir(parents=True, exist_ok=True)
            replace_text(folder / group / f"{name}.yaml", f"# {comment}\n{text}")


Neighbours = Callable[[BoxShapes], Iterator[BoxShapes]]
"""A function that yields all shapes one change away from the given ones."""


class Reach(NamedTuple):
    """The objective of the search; larger is better, and the number of objects counts first."""

    objects: int
    """Number of objects that a default box reaches."""
    mean_iou: float
    """Mean of each object's highest IoU with a default box."""

    @classmethod
    def of(cls, best: Float[np.ndarray, " objects"], iou_threshold: float) -> "Reach":
        """Compute the objective from the highest IoU of each object."""
        # Without rounding, the search would follow ever smaller gains and take very long.
        return cls(int((best >= iou_threshold).sum()), round(float(best.mean(dtype=np.float64)), 5))


def design_boxes(
    boxes: Float[np.ndarray, "objects 4"],
    present: DefaultBoxes,
    grids: Sequence[Grid],
    image_size: tuple[int, int],
    budget: int | None = None,
    iou_threshold: float = 0.5,
    seed: int = 0,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> BoxShapes:
    """Search for the shapes that reach most objects and, among these, have the highest mean best IoU.

    The search climbs from several starts. One step changes a scale, changes or adds an aspect ratio, or moves a ratio
    to another group. Ratios either come with their inverses, per level, or without, for inner and outer levels.

    Args:
        boxes: boxes of the objects (xyxy).
        present: the present default boxes. The result has the same number of levels, steps and clipping. It reaches
            these objects at least as well, if the budget permits the present boxes.
        grids: (height, width) of each level in cells.
        image_size: (height, width) of the network's input in pixels.
        budget: largest number of default boxes; ``None`` means the present number.
        iou_threshold: IoU from which a default box reaches an object.
        seed: seed of the sample of objects and of the restarts.
        track: a wrapper around the sequence of starts that shows progress.

    Raises:
        ValueError: if there are no objects, or if the budget is below two squares per cell.
    """
    if len(boxes) == 0:
        raise ValueError("data: expected at least one object, got none")
    cells = [rows * columns for rows, columns in grids]
    at_present = BoxShapes.of(present)
    most = _count(at_present, cells) if budget is None else budget
    if most < 2 * sum(cells):
        raise ValueError(f"boxes_budget: expected at least {2 * sum(cells)}, two in each cell, got {most}")
    rng = np.random.default_rng(seed)
    some = boxes if len(boxes) <= MOST_OBJECTS else rng.choice(boxes, MOST_OBJECTS, replace=False)
    reach = ShapesReach(some, present, grids, image_size, iou_threshold)

    def affordable(moves: Neighbours) -> Neighbours:
        return lambda shapes: (moved for moved in moves(shapes) if _count(moved, cells) <= most)

    palette = sorted({*RATIOS, *(ratio for level in present.ratios for ratio in level if ratio > 1)})
    neighbourhoods: list[Neighbours] = [
        affordable(functools.partial(_other_ratios, palette=palette)),
        affordable(functools.partial(_exchanged_ratios, palette=palette)),
        *(functools.partial(_moved_scales, step=step) for step in STEPS),
    ]
    starts = list(_starts(some, at_present.scales))
    can_stay = _count(at_present, cells) <= most
    if can_stay:
        starts.insert(0, at_present)
    found: list[BoxShapes] = []
    for number in track(range(len(starts) + RESTARTS)):
        start = starts[number] if number < len(starts) else _jittered(max(found, key=reach), rng)
        found.append(_climb(start, reach, neighbourhoods))
    best = max(found, key=ShapesReach(boxes, present, grids, image_size, iou_threshold))
    if can_stay:
        # ShapesReach is not exact for clipped boxes, so the last comparison uses the default boxes themselves.
        exact = [
            Reach.of(best_ious(boxes, shapes.default_boxes(present)(grids, image_size)), iou_threshold)
            for shapes in (best, at_present)
        ]
        return best if exact[0] > exact[1] else at_present
    return best


class ShapesReach:
    """A fast evaluation of shapes that does not place a box in every cell.

    Default boxes of one shape and level have the same area, so the box with the nearest centre has the highest IoU.
    The result is approximate for boxes that are clipped at the border.
    """

    def __init__(
        self,
        boxes: Float[np.ndarray, "objects 4"],
        like: DefaultBoxes,
        grids: Sequence[Grid],
        image_size: tuple[int, int],
        iou_threshold: float,
    ) -> None:
        self.size = (boxes[:, 2:] - boxes[:, :2]).T.copy()
        self.area = self.size[0] * self.size[1]
        self.iou_threshold = iou_threshold
        self.largest = 1.0 if like.clip in ("size", "centre_and_size") else np.inf
        clip = like.clip if like.clip == "centre_and_size" else None
        squares = DefaultBoxes(like.scales, [[]] * len(grids), like.steps, clip)(grids, image_size).numpy()
        levels = np.split(squares, np.cumsum([2 * rows * columns for rows, columns in grids])[:-1])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        self.distances = [
            [_distances(centres[:, axis], np.unique(level[:, axis])) for axis in (0, 1)] for level in levels
        ]
        self.best_of_shape = functools.lru_cache(2048)(self._best_of_shape)
        self.best_of_level = functools.lru_cache(1024)(self._best_of_level)
        self.reach = functools.lru_cache(100_000)(self._reach)

    def __call__(self, shapes: BoxShapes) -> Reach:
        """Evaluate the shapes; results are cached."""
        return self.reach(shapes)

    def _reach(self, shapes: BoxShapes) -> Reach:
        groups = _groups(len(self.distances), shapes.inverses)
        best = functools.reduce(
            np.maximum,
            (
                self.best_of_level(level, scale, next_scale, shapes.ratios[group], shapes.inverses)
                for level, ((scale, next_scale), group) in enumerate(zip(pairwise(shapes.scales), groups, strict=True))
            ),
        )
        return Reach.of(best, self.iou_threshold)

    def _best_of_level(
        self, level: int, scale: float, next_scale: float, ratios: tuple[float, ...], inverses: bool
    ) -> Float[np.ndarray, " objects"]:
        between = (scale * next_scale) ** 0.5
        sizes = [(scale, scale), (between, between)]
        for root in (ratio**0.5 for ratio in ratios):
            sizes += [(scale * root, scale / root), (scale / root, scale * root)][: 1 + inverses]
        return functools.reduce(np.maximum, (self.best_of_shape(level, *size) for size in sizes))

    def _best_of_shape(self, level: int, width: float, height: float) -> Float[np.ndarray, " objects"]:
        # The result type for Python floats differs between versions of numpy, so the type is explicit.
        mine = np.minimum((width, height), self.largest).astype(np.float32)
        common = np.ones_like(self.area)
        for own, side, distance in zip(mine, self.size, self.distances[level], strict=True):
            common *= np.minimum((side + own) / 2 - distance, np.minimum(side, own)).clip(0)
        return common / (self.area + mine.prod() - common)


def _distances(
    places: Float[np.ndarray, " objects"], centres: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, " objects"]:
    """Return the distance from each place to the nearest centre; centres are in ascending order."""
    after = np.searchsorted(centres, places).clip(max=len(centres) - 1)
    return np.minimum(np.abs(places - centres[after]), np.abs(places - centres[(after - 1).clip(0)]))


def _climb(
    start: BoxShapes,
    reach: Callable[[BoxShapes], Reach],
    neighbourhoods: Sequence[Neighbours],
) -> BoxShapes:
    """Move to the best neighbour until no neighbourhood has a better one."""
    best, previous = start, None
    while previous != best:
        previous = best
        for neighbours in neighbourhoods:
            while reach(candidate := max(neighbours(best), key=reach, default=best)) > reach(best):
                best = candidate
    return best


def _starts(boxes: Float[np.ndarray, "objects 4"], present: tuple[float, ...]) -> Iterator[BoxShapes]:
    """Yield starts with squares alone: present scales, quantiles of the objects' sides, and the range of the sides."""
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    number = len(present)
    spread = np.quantile(side, (np.arange(number) + 0.5) / number)
    smallest, largest = np.quantile(side, (0.02, 0.98)).tolist()
    for scales in (present, spread, np.geomspace(smallest, largest, number)):
        for inverses in (True, False):
            groups = number - 1 if inverses else 2
            yield BoxShapes(_ascending(scales), ((),) * groups, inverses)


def _jittered(shapes: BoxShapes, rng: np.random.Generator) -> BoxShapes:
    """Change all scales at random."""
    scales = np.array(shapes.scales) * np.exp(rng.normal(0, JITTER, len(shapes.scales)))
    return shapes._replace(scales=_ascending(np.sort(scales)))


def _ascending(scales: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Clip scales to the size of the picture and make each a little larger than the previous one."""
    result: list[float] = []
    for scale in np.clip(scales, SMALLEST_SCALE, 1.0).tolist():
        least = 1.02 * result[-1] + 10**-DECIMALS if result else 0.0
        result.append(round(max(scale, least), DECIMALS))
    return tuple(result)


def _moved_scales(shapes: BoxShapes, step: float) -> Iterator[BoxShapes]:
    """Yield shapes with one scale or all scales made larger or smaller by a factor."""
    scales = shapes.scales
    for factor in (step, 1 / step):
        moved = tuple(round(scale * factor, DECIMALS) for scale in scales)
        for candidate in (moved, *((*scales[:k], moved[k], *scales[k + 1 :]) for k in range(len(scales)))):
            within = candidate[0] >= SMALLEST_SCALE and candidate[-1] <= LARGEST_SCALE
            if within and all(low < high for low, high in pairwise(candidate)):
                yield shapes._replace(scales=candidate)


def _other_ratios(shapes: BoxShapes, palette: Sequence[float]) -> Iterator[BoxShapes]:
    """Yield shapes with one more aspect ratio, or with one ratio replaced."""
    for group, ratios in enumerate(shapes.ratios):
        for ratio in _new_ratios(shapes, group, palette):
            if _has_room(shapes, group):
                yield _with_ratios(shapes, group, (*ratios, ratio))
            for old in ratios:
                yield _with_ratios(shapes, group, (*_without(ratios, old), ratio))


def _exchanged_ratios(shapes: BoxShapes, palette: Sequence[float]) -> Iterator[BoxShapes]:
    """Yield shapes with one ratio removed from a group and one added to another group."""
    for giving, given in ((g, ratio) for g, ratios in enumerate(shapes.ratios) for ratio in ratios):
        less = _with_ratios(shapes, giving, _without(shapes.ratios[giving], given))
        for group in range(len(shapes.ratios)):
            if group != giving and _has_room(shapes, group):
                for ratio in _new_ratios(shapes, group, palette):
                    yield _with_ratios(less, group, (*less.ratios[group], ratio))


def _new_ratios(shapes: BoxShapes, group: int, palette: Sequence[float]) -> list[float]:
    """Return the ratios of the palette that the group does not have yet."""
    both = palette if shapes.inverses else [*palette, *(round(1 / ratio, DECIMALS) for ratio in palette)]
    has = shapes.ratios[group]
    return [ratio for ratio in both if not any(abs(ratio - old) < 10**-DECIMALS for old in has)]


def _has_room(shapes: BoxShapes, group: int) -> bool:
    return (len(shapes.ratios[group]) + 1) * (1 + shapes.inverses) <= MOST_RATIOS


def _with_ratios(shapes: BoxShapes, group: int, ratios: Iterable[float]) -> BoxShapes:
    changed = (*shapes.ratios[:group], tuple(sorted(ratios)), *shapes.ratios[group + 1 :])
    return shapes._replace(ratios=changed)


def _without(ratios: Sequence[float], given: float) -> list[float]:
    return [ratio for ratio in ratios if ratio != given]


def _groups(levels: int, inverses: bool) -> list[int]:
    """Return the group of aspect ratios that each level uses."""
    if inverses:
        return list(range(levels))
    return [len(ratios) for ratios in AspectRatios([], [2], inverses=False).of(levels)]


def _count(shapes: BoxShapes, cells: Sequence[int]) -> int:
    """Count the default boxes."""
    each = [len(shapes.ratios[group]) * (1 + shapes.inverses) for group in _groups(len(cells), shapes.inverses)]
    return sum(number * (2 + ratios) for number, ratios in zip(cells, each, strict=True))


def _as_yaml(values: Sequence[float]) -> str:
    """Write a list of numbers with as many digits as they need."""
    return f"[{', '.join(f'{value:g}' if float(f'{value:g}') == value else repr(value) for value in values)}]"
