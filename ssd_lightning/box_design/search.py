"""Scales and aspect ratios for a data set, searched for under a budget of default boxes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ssd_lightning.box_design.coverage import best_ious
from ssd_lightning.detector.default_boxes import AspectRatios, DefaultBoxes, Grid

RATIOS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
"""To choose from, beside those of the present default boxes."""

MOST_RATIOS = 6
"""Of a cell, inverses counted; each has two squares as well."""

SMALLEST_SCALE, LARGEST_SCALE = 0.005, 1.5

DECIMALS = 4
"""Of scales and ratios that are tried, so that they are what is written."""

STEPS = (1.3, 1.15, 1.07, 1.03, 1.01)
"""Factors by which scales are moved, the coarse ones first."""

RESTARTS = 30
"""Times that the search begins anew near the best that it has found."""

JITTER = 0.15
"""How near: standard deviation of the scales' logarithms."""

MOST_OBJECTS = 20_000
"""That the search looks at; of more objects a part is drawn."""


class BoxShapes(NamedTuple):
    """Shapes of default boxes in the form in which they are searched for and written."""

    scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    """With inverses: those of each level that are above 1. Without: those of the inner levels, then of the outer
    ones, as :class:`~ssd_lightning.detector.default_boxes.AspectRatios` tells them apart."""
    inverses: bool

    @classmethod
    def of(cls, default_boxes: DefaultBoxes) -> "BoxShapes":
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
        """With the steps and the clipping of others."""
        if self.inverses:
            return DefaultBoxes(self.scales, self.ratios, like.steps, like.clip)
        inner, outer = self.ratios
        return DefaultBoxes(self.scales, AspectRatios(inner, outer, inverses=False), like.steps, like.clip)

    def write(self, folder: Path, name: str, comment: str) -> None:
        """As options of the config groups ``box_scales`` and ``aspect_ratios`` in a folder of configs."""
        ratios = [_as_yaml(group) for group in self.ratios]
        if self.inverses:
            rule = f"[{', '.join(ratios)}]\n"
        else:
            target = f"_target_: {AspectRatios.__module__}.{AspectRatios.__name__}"
            rule = f"{target}\ninner: {ratios[0]}\nouter: {ratios[1]}\ninverses: false\n"
        for group, text in (("box_scales", f"{_as_yaml(self.scales)}\n"), ("aspect_ratios", rule)):
            (folder / group).mkdir(parents=True, exist_ok=True)
            (folder / group / f"{name}.yaml").write_text(f"# {comment}\n{text}", encoding="utf-8")


Neighbours = Callable[[BoxShapes], Iterator[BoxShapes]]
"""What is one change away from some shapes."""


class Reach(NamedTuple):
    """How well default boxes reach objects; the more, the better."""

    objects: int
    """With whom a default box has the wanted IoU."""
    mean_iou: float
    """Of each object and its best default box."""

    @classmethod
    def of(cls, best: Float[np.ndarray, " objects"], iou_threshold: float) -> "Reach":
        # Rounded, because a search that follows ever smaller gains does not end.
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
    """Search for the shapes that reach most objects, and of those for the highest mean of their best IoU.

    From several starts, one scale or one aspect ratio is changed at a time, or a ratio is given up for another one
    elsewhere, as long as it helps. Ratios come with their inverses on each level, or without on inner and outer levels.

    Args:
        boxes: xyxy of the objects.
        present: what there is. Its number of levels, its steps and its clipping stay, and what is found is no worse
            for these objects if the budget allows for it.
        grids: (height, width) of each level in cells.
        image_size: (height, width) in pixels of the network's input.
        budget: most default boxes; ``None``: as many as there are at present.
        iou_threshold: from which a default box reaches an object.
        seed: of the objects that are drawn if there are too many, and of restarts.
        track: to show progress, wrapped around the numbers of the starts.

    Raises:
        ValueError: if there are no objects, or the budget is less than two squares in each cell.
    """
    if len(boxes) == 0:
        raise ValueError("data: expected at least one object to design default boxes for, got none")
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
        # By the default boxes themselves, where it matters.
        exact = [
            Reach.of(best_ious(boxes, shapes.default_boxes(present)(grids, image_size)), iou_threshold)
            for shapes in (best, at_present)
        ]
        return best if exact[0] > exact[1] else at_present
    return best


class ShapesReach:
    """How well shapes reach objects, without laying them over the grids.

    Of all default boxes of one shape on one level, the one with the nearest centre has the highest IoU: its overlap is
    the longest both across and down, and their areas are all the same. (Those that are cut at the border differ; for
    them this is close, not exact.)
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
        # Of numpy's own type, because Python's numbers would be float64 in some versions and float32 in others.
        mine = np.minimum((width, height), self.largest).astype(np.float32)
        common = np.ones_like(self.area)
        for own, side, distance in zip(mine, self.size, self.distances[level], strict=True):
            common *= np.minimum((side + own) / 2 - distance, np.minimum(side, own)).clip(0)
        return common / (self.area + mine.prod() - common)


def _distances(
    places: Float[np.ndarray, " objects"], centres: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, " objects"]:
    """From each place to the nearest of the centres, which ascend."""
    after = np.searchsorted(centres, places).clip(max=len(centres) - 1)
    return np.minimum(np.abs(places - centres[after]), np.abs(places - centres[(after - 1).clip(0)]))


def _climb(
    start: BoxShapes,
    reach: Callable[[BoxShapes], Reach],
    neighbourhoods: Sequence[Neighbours],
) -> BoxShapes:
    """To the best neighbour, again and again, until no neighbourhood has a better one."""
    best, stands = start, None
    while stands != best:
        stands = best
        for neighbours in neighbourhoods:
            while reach(candidate := max(neighbours(best), key=reach, default=best)) > reach(best):
                best = candidate
    return best


def _starts(boxes: Float[np.ndarray, "objects 4"], present: tuple[float, ...]) -> Iterator[BoxShapes]:
    """Squares alone: of the present scales, as the sides of the objects are distributed, and over their whole range."""
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    number = len(present)
    spread = np.quantile(side, (np.arange(number) + 0.5) / number)
    smallest, largest = np.quantile(side, (0.02, 0.98)).tolist()
    for scales in (present, spread, np.geomspace(smallest, largest, number)):
        for inverses in (True, False):
            groups = number - 1 if inverses else 2
            yield BoxShapes(_ascending(scales), ((),) * groups, inverses)


def _jittered(shapes: BoxShapes, rng: np.random.Generator) -> BoxShapes:
    scales = np.array(shapes.scales) * np.exp(rng.normal(0, JITTER, len(shapes.scales)))
    return shapes._replace(scales=_ascending(np.sort(scales)))


def _ascending(scales: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Within bounds, and each a little above the one before it."""
    result: list[float] = []
    for scale in np.clip(scales, SMALLEST_SCALE, 1.0).tolist():
        least = 1.02 * result[-1] + 10**-DECIMALS if result else 0.0
        result.append(round(max(scale, least), DECIMALS))
    return tuple(result)


def _moved_scales(shapes: BoxShapes, step: float) -> Iterator[BoxShapes]:
    """One scale larger or smaller, or all of them."""
    scales = shapes.scales
    for factor in (step, 1 / step):
        moved = tuple(round(scale * factor, DECIMALS) for scale in scales)
        for candidate in (moved, *((*scales[:k], moved[k], *scales[k + 1 :]) for k in range(len(scales)))):
            within = candidate[0] >= SMALLEST_SCALE and candidate[-1] <= LARGEST_SCALE
            if within and all(low < high for low, high in pairwise(candidate)):
                yield shapes._replace(scales=candidate)


def _other_ratios(shapes: BoxShapes, palette: Sequence[float]) -> Iterator[BoxShapes]:
    """One ratio more, or another one in the place of one."""
    for group, ratios in enumerate(shapes.ratios):
        for ratio in _new_ratios(shapes, group, palette):
            if _has_room(shapes, group):
                yield _with_ratios(shapes, group, (*ratios, ratio))
            for old in ratios:
                yield _with_ratios(shapes, group, (*_without(ratios, old), ratio))


def _exchanged_ratios(shapes: BoxShapes, palette: Sequence[float]) -> Iterator[BoxShapes]:
    """One ratio less somewhere, and one more elsewhere."""
    for giving, given in ((g, ratio) for g, ratios in enumerate(shapes.ratios) for ratio in ratios):
        less = _with_ratios(shapes, giving, _without(shapes.ratios[giving], given))
        for group in range(len(shapes.ratios)):
            if group != giving and _has_room(shapes, group):
                for ratio in _new_ratios(shapes, group, palette):
                    yield _with_ratios(less, group, (*less.ratios[group], ratio))


def _new_ratios(shapes: BoxShapes, group: int, palette: Sequence[float]) -> list[float]:
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
    """Which of the ratios each level has."""
    if inverses:
        return list(range(levels))
    return [len(ratios) for ratios in AspectRatios([], [2], inverses=False).of(levels)]


def _count(shapes: BoxShapes, cells: Sequence[int]) -> int:
    """Default boxes."""
    each = [len(shapes.ratios[group]) * (1 + shapes.inverses) for group in _groups(len(cells), shapes.inverses)]
    return sum(number * (2 + ratios) for number, ratios in zip(cells, each, strict=True))


def _as_yaml(values: Sequence[float]) -> str:
    """All digits, and no more."""
    return f"[{', '.join(f'{value:g}' if float(f'{value:g}') == value else repr(value) for value in values)}]"
