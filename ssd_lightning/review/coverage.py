"""Whether default boxes reach the objects of a data set, before any training."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssd_lightning.boxes import cxcywh_to_xyxy, pairwise_iou

CHUNK = 512
"""Objects that are compared with all default boxes at once, for bounded memory."""

SIDES = (0, 16, 32, 64, 128, 256, np.inf)
"""Where classes of size begin: square root of the area, in pixels of the network's input."""


def best_ious(
    boxes: Float[np.ndarray, "objects 4"], default_boxes: Float[Tensor, "boxes 4"]
) -> Float[np.ndarray, " objects"]:
    """The highest IoU of each object (xyxy) with any default box (cxcywh)."""
    edges = cxcywh_to_xyxy(default_boxes).unsqueeze(0)
    chunks = torch.from_numpy(boxes).split(CHUNK)
    return np.concatenate(
        [np.zeros(0, dtype=np.float32), *(pairwise_iou(c.unsqueeze(0), edges)[0].amax(dim=1).numpy() for c in chunks)]
    )


def sides(boxes: Float[np.ndarray, "objects 4"], image_size: tuple[int, int]) -> Float[np.ndarray, " objects"]:
    """Square root of the area of each object in pixels of the network's input."""
    height, width = image_size
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * width * (boxes[:, 3] - boxes[:, 1]) * height)


def coverage_by_class(
    labels: Int[np.ndarray, " objects"],
    best: Float[np.ndarray, " objects"],
    classes: Sequence[str],
    iou_threshold: float = 0.5,
) -> pd.DataFrame:
    """Objects, and the share that no default box reaches with ``iou_threshold``, of each class and of all.

    Such an object is trained by the one default box that it claims, and seldom found.
    """
    table = _coverage(np.array([*classes])[labels - 1], best, iou_threshold).reindex(list(classes))
    table["objects"] = table["objects"].fillna(0).astype(int)
    table.loc["all"] = [
        len(best),
        (best < iou_threshold).mean() if len(best) else np.nan,
        best.mean() if len(best) else np.nan,
    ]
    return table.astype({"objects": int}).rename_axis("class")


def coverage_by_size(
    side: Float[np.ndarray, " objects"], best: Float[np.ndarray, " objects"], iou_threshold: float = 0.5
) -> pd.DataFrame:
    """The same by size, in pixels of the network's input."""
    names = [f"{low:g} to {high:g}" if np.isfinite(high) else f"from {low:g}" for low, high in pairwise(SIDES)]
    rows = np.searchsorted(SIDES, side, side="right") - 1
    table = _coverage(np.array(names)[rows], best, iou_threshold)
    return table.reindex([name for name in names if name in table.index]).rename_axis("size in pixels")


def _coverage(keys: np.ndarray, best: np.ndarray, iou_threshold: float) -> pd.DataFrame:
    frame = pd.DataFrame({"key": keys, "unreached": best < iou_threshold, "best": best})
    groups = frame.groupby("key")
    return pd.DataFrame(
        {"objects": groups.size(), "unreached": groups["unreached"].mean(), "mean best IoU": groups["best"].mean()}
    )
