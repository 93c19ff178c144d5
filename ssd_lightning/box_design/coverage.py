"""Coverage of the objects of a data set by default boxes, measured before any training.

A default box *reaches* an object if their IoU is at least the matcher's threshold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssd_lightning.data.augmentation.pipeline import Augmentation, mirror_boxes
from ssd_lightning.data.augmentation.windows import truth_in_window
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.detector.boxes import cxcywh_to_xyxy, pairwise_iou
from ssd_lightning.detector.default_boxes import Grid
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.structures import Objects

CHUNK = 32
"""Number of objects compared with all default boxes at once; small enough for the cache of a core."""

SIDES = (0, 16, 32, 64, 128, 256, np.inf)
"""Bounds of the size groups: square root of the area, in pixels of the network's input."""

SHAPES = {"below 1:4": 0, "1:4 to 1:2": 1 / 4, "1:2 to 1:1": 1 / 2, "1:1 to 2:1": 1, "2:1 to 4:1": 2, "from 4:1": 4}
"""Lower bounds of the shape groups: width over height, in pixels of the network's input."""


def best_ious(
    boxes: Float[np.ndarray, "objects 4"], default_boxes: Float[Tensor, "boxes 4"]
) -> Float[np.ndarray, " objects"]:
    """Return the highest IoU of each object (xyxy) with any default box (cxcywh)."""
    edges = cxcywh_to_xyxy(default_boxes).unsqueeze(0)
    objects, best = torch.from_numpy(boxes), np.zeros(len(boxes), dtype=np.float32)

    def fill(first: int) -> None:
        chunk = slice(first, first + CHUNK)
        best[chunk] = pairwise_iou(objects[chunk].unsqueeze(0), edges)[0].amax(dim=1).numpy()

    _in_threads(fill, range(0, len(boxes), CHUNK))
    return best


class ObjectMatches(NamedTuple):
    """The default boxes matched to the objects of a data set, with one row per object."""

    best_iou: Float[np.ndarray, " objects"]
    """Highest IoU with any default box."""
    best_box: Int[np.ndarray, " objects"]
    """Index of the first default box with the highest IoU."""
    positives: Int[np.ndarray, "objects levels"]
    """Number of default boxes on each level that are trained on the object."""
    by_claim_alone: Bool[np.ndarray, " objects"]
    """True if the only positive is the claimed default box (the forced match) and its IoU is below the threshold."""


def match_objects(
    boxes: Float[np.ndarray, "objects 4"],
    counts: Int[np.ndarray, " pictures"],
    default_boxes: Float[Tensor, "boxes 4"],
    boxes_of_level: Sequence[int],
    matcher: BoxMatcher,
) -> ObjectMatches:
    """Match the objects of all pictures as training does.

    Args:
        boxes: boxes of the objects (xyxy), in the order of the pictures.
        counts: number of objects in each picture.
        default_boxes: default boxes (cxcywh), in the order of the levels.
        boxes_of_level: number of default boxes on each level.
        matcher: the matcher that training uses.
    """
    levels = len(boxes_of_level)
    edges = cxcywh_to_xyxy(default_boxes).unsqueeze(0)
    level_of_box = torch.arange(levels).repeat_interleave(torch.tensor(boxes_of_level))
    all_boxes = torch.from_numpy(boxes)

    def match(rows: Int[np.ndarray, "pictures objects"]) -> ObjectMatches:
        objects = _objects(all_boxes[torch.from_numpy(rows)])
        iou = pairwise_iou(objects.boxes, edges)
        best_iou, best_box = iou.flatten(0, 1).max(dim=1)
        matches = matcher(objects, default_boxes)
        picture, box = (matches.labels > 0).nonzero(as_tuple=True)
        owner = matches.objects[picture, box]
        row = picture * rows.shape[1] + owner
        positives = (row * levels + level_of_box[box]).bincount(minlength=rows.size * levels).view(-1, levels)
        overlapping = row[iou[picture, owner, box] >= matcher.iou_threshold].bincount(minlength=rows.size)
        alone = (positives.sum(dim=1) == 1) & (overlapping == 0)
        return ObjectMatches(best_iou.numpy(), best_box.numpy(), positives.numpy(), alone.numpy())

    matched = ObjectMatches(
        np.zeros(len(boxes), dtype=np.float32),
        np.zeros(len(boxes), dtype=np.int64),
        np.zeros((len(boxes), levels), dtype=np.int64),
        np.zeros(len(boxes), dtype=bool),
    )

    def fill(rows: Int[np.ndarray, "pictures objects"]) -> None:
        for column, values in zip(matched, match(rows), strict=True):
            column[rows.ravel()] = values

    _in_threads(fill, list(_batches_of_equal_count(counts)))
    return matched


def sharing_pictures(matches: ObjectMatches, counts: Int[np.ndarray, " pictures"]) -> Bool[np.ndarray, " pictures"]:
    """Find the pictures where two objects have the same best default box, so that one must claim another box."""
    touching = matches.best_iou > 0
    picture = np.repeat(np.arange(len(counts)), counts)[touching]
    pairs, objects = np.unique(np.stack((picture, matches.best_box[touching])), axis=1, return_counts=True)
    return np.isin(np.arange(len(counts)), pairs[0, objects > 1])


def augmented(
    pictures: AnnotatedPictures, augmentation: Augmentation, seed: int = 0, epoch: int = 0
) -> AnnotatedPictures:
    """Augment the annotations of all pictures as a training with this seed does in this epoch.

    No picture is decoded.
    """
    truths = []
    for position in range(len(pictures)):
        truth = pictures.truth(position)
        view = augmentation.plan(truth, np.random.default_rng([seed, epoch, position]))
        part = truth_in_window(truth, view.window)
        boxes = mirror_boxes(part.boxes, view.mirrored_horizontally, view.mirrored_vertically)
        truths.append(part._replace(boxes=boxes))
    return AnnotatedPictures(
        pictures.paths,
        np.array([truth.size for truth in truths]),
        np.array([len(truth.labels) for truth in truths]),
        np.concatenate([truth.boxes for truth in truths]),
        np.concatenate([truth.labels for truth in truths]),
        np.concatenate([truth.difficult for truth in truths]),
    )


def sides(boxes: Float[np.ndarray, "objects 4"], image_size: tuple[int, int]) -> Float[np.ndarray, " objects"]:
    """Return the square root of the area of each object, in pixels of the network's input."""
    height, width = image_size
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * width * (boxes[:, 3] - boxes[:, 1]) * height)


def shapes(boxes: Float[np.ndarray, "objects 4"], image_size: tuple[int, int]) -> Float[np.ndarray, " objects"]:
    """Return width over height of each object, in pixels of the network's input."""
    height, width = image_size
    return (boxes[:, 2] - boxes[:, 0]) * width / ((boxes[:, 3] - boxes[:, 1]) * height)


def coverage_by_class(
    labels: Int[np.ndarray, " objects"],
    best: Float[np.ndarray, " objects"],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
    more: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Tabulate the number of objects and the share that no default box reaches, by class and for all classes.

    An unreached object is trained through its claimed default box alone and is rarely found.

    Args:
        labels: class of each object, 1 … C.
        best: highest IoU of each object with any default box.
        classes: class names, without background.
        iou_threshold: IoU from which a default box reaches an object.
        more: further columns by name, with one value per object; the table holds their means.
    """
    table = _coverage(np.array([*classes])[labels - 1], best, iou_threshold, more).reindex(list(classes))
    table["objects"] = table["objects"].fillna(0).astype(int)
    values = _columns(best, iou_threshold, more).values()
    overall = [len(best), *(column.mean() if len(best) else np.nan for column in values)]
    last = pd.DataFrame([overall], columns=table.columns, index=["all"])
    # table.loc["all"] would overwrite a class with the name "all".
    return pd.concat([table, last]).astype({"objects": int}).rename_axis("class")


def worst_classes(table: pd.DataFrame, reached: pd.Series, most: int = 20) -> pd.DataFrame:
    """Return the rows of the classes with the lowest values of ``reached``, and the last row, which is of all classes.

    Args:
        table: a table with a row for each class and a last row for all classes.
        reached: a value for each row, such as a column of the table.
        most: highest number of classes. A table with at most as many classes is returned whole.
    """
    if len(table) <= most + 1:
        return table
    worst = np.argsort(reached.to_numpy()[:-1], kind="stable")[:most]
    return table.iloc[[*worst, -1]]


def coverage_by_size(
    side: Float[np.ndarray, " objects"],
    best: Float[np.ndarray, " objects"],
    iou_threshold: float = 0.5,
    more: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Tabulate the same columns by size, see :func:`sides`; groups without objects are left out."""
    names = [f"{low:g} to {high:g}" if np.isfinite(high) else f"from {low:g}" for low, high in pairwise(SIDES)]
    rows = np.searchsorted(SIDES, side, side="right") - 1
    table = _coverage(np.array(names)[rows], best, iou_threshold, more)
    return table.reindex([name for name in names if name in table.index]).rename_axis("size in pixels")


def coverage_by_shape(
    shape: Float[np.ndarray, " objects"],
    best: Float[np.ndarray, " objects"],
    iou_threshold: float = 0.5,
    more: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Tabulate the same columns by shape, see :func:`shapes`; groups without objects are left out."""
    rows = np.searchsorted([*SHAPES.values()], shape, side="right") - 1
    table = _coverage(np.array([*SHAPES])[rows], best, iou_threshold, more)
    return table.reindex([name for name in SHAPES if name in table.index]).rename_axis("width to height")


def coverage_by_level(
    matches: ObjectMatches, grids: Sequence[Grid], boxes_of_level: Sequence[int], pictures: int
) -> pd.DataFrame:
    """Tabulate, for each level, the objects that it matches best and the number of its positives."""
    level_of_best = np.searchsorted(np.cumsum(boxes_of_level), matches.best_box, side="right")
    positives = matches.positives.sum(axis=0)
    table = pd.DataFrame(
        {
            "grid": [f"{height}×{width}" for height, width in grids],
            "default boxes": list(boxes_of_level),
            "best for": np.bincount(level_of_best, minlength=len(grids)),
            "trained on": (matches.positives > 0).sum(axis=0),
            "positives": positives,
            "per picture": positives / pictures,
        },
        index=range(1, len(grids) + 1),
    )
    return table.rename_axis("level")


def _coverage(
    keys: np.ndarray, best: np.ndarray, iou_threshold: float, more: Mapping[str, np.ndarray] | None
) -> pd.DataFrame:
    groups = pd.DataFrame({"objects": keys, **_columns(best, iou_threshold, more)}).groupby("objects")
    means = groups.mean()
    means.insert(0, "objects", groups.size())
    return means.rename_axis(None)


def _columns(best: np.ndarray, iou_threshold: float, more: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    return {"unreached": best < iou_threshold, "mean best IoU": best, **(more or {})}


def _objects(boxes: Float[Tensor, "batch objects 4"]) -> Objects:
    """Build a batch with one class, because matching does not depend on the class."""
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    return Objects(boxes, valid.long(), ~valid, valid)


def _batches_of_equal_count(counts: Int[np.ndarray, " pictures"]) -> Iterator[Int[np.ndarray, "some_pictures objects"]]:
    """Yield the row numbers of the objects of pictures with equal counts, which need no padding."""
    first = np.cumsum(counts) - counts
    for count in np.unique(counts[counts > 0]):
        rows = first[counts == count][:, None] + np.arange(count)
        yield from np.array_split(rows, -(-rows.size // max(CHUNK, count)))


Chunk = TypeVar("Chunk")


def _in_threads(fill: Callable[[Chunk], None], chunks: Sequence[Chunk]) -> None:
    """Process each chunk on one core, and write its results into an array that is there already.

    With several cores per operation, the cores wait for each other, many times as long on a busy machine. Small results
    of each chunk would lie between its large freed blocks, which could not be used again: 1.5 GB for 90,000 objects.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, chunks):
                pass
    finally:
        torch.set_num_threads(threads)
