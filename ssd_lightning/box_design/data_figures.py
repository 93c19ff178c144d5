"""A figure of a data set and the default boxes of a model."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from ssd_lightning.box_design.coverage import shapes, sides
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures
from ssd_lightning.detector.model import SSD
from ssd_lightning.drawing import COLOURS, LONGEST_NAME, WIDTH, legend_above, shown_names

MOST_CLASSES = 30
"""Number of classes with room for a bar."""

TRAIN, VAL, UNREACHED = COLOURS[4], COLOURS[1], COLOURS[5]


def draw_data_set(
    train: AnnotatedPictures,
    val: AnnotatedPictures,
    classes: Sequence[str],
    model: SSD,
    best: Float[np.ndarray, " objects"],
    iou_threshold: float = 0.5,
) -> Figure:
    """Draw the objects of a data set by class, by picture, and by size and shape in the network's input.

    ``best`` holds the highest IoU of each object with any default box, first for ``train``, then for ``val``.
    """
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    (by_class, by_size), (by_picture, by_shape) = figure.subplots(2, 2)
    _classes(by_class, train, val, classes)
    boxes = np.concatenate((train.boxes, val.boxes))
    reached = best >= iou_threshold
    _sizes(by_size, sides(boxes, model.image_size), reached, model)
    _shapes(by_shape, shapes(boxes, model.image_size), reached, model)
    _pictures(by_picture, train, val)
    unreached = f"none has ({(~reached).mean():.1%} of the objects)" if len(best) else "none has"
    legend_above(
        by_size,
        handles=[
            Patch(color=TRAIN, label=f"a default box has IoU {iou_threshold:g} or more"),
            Patch(color=UNREACHED, label=unreached),
        ],
    )
    for ax in (by_class, by_size, by_picture, by_shape):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _classes(ax: Axes, train: AnnotatedPictures, val: AnnotatedPictures, classes: Sequence[str]) -> None:
    counts = np.stack([np.bincount(part.labels, minlength=len(classes) + 1)[1:] for part in (train, val)])
    order = np.argsort(-counts.sum(axis=0), kind="stable")
    shown = order[:MOST_CLASSES]
    names, families = shown_names([classes[row] for row in shown], LONGEST_NAME)
    places = np.arange(len(shown))
    ax.barh(places, counts[0, shown], color=TRAIN, label=f"training ({counts[0].sum()})")
    ax.barh(places, counts[1, shown], left=counts[0, shown], color=VAL, label=f"scoring ({counts[1].sum()})")
    ax.set_yticks(places, names, fontsize=8 if len(shown) <= 20 else 6, fontfamily=families, parse_math=False)
    ax.invert_yaxis()
    more = f", {len(order) - len(shown)} more classes" if len(order) > len(shown) else ""
    ax.set(xlabel=f"objects of each class{more}")
    legend_above(ax, ncols=2)


def _sizes(ax: Axes, side: Float[np.ndarray, " objects"], reached: Bool[np.ndarray, " objects"], model: SSD) -> None:
    most = float(np.sqrt(np.prod(model.image_size)))
    edges = np.geomspace(min(4.0, most / 2), most, 36)
    _stacked(ax, side, reached, edges)
    # A grey bar for each level spans the sizes of its default boxes.
    sizes = model.default_boxes.cpu().numpy()[:, 2:] * model.image_size[::-1]
    for number, level in enumerate(np.split(np.sqrt(sizes.prod(axis=1)), np.cumsum(model.boxes_of_level)[:-1])):
        place = -0.04 - 0.022 * (number % 2)
        ax.plot(
            [level.min(), level.max()],
            [place] * 2,
            color="0.35",
            linewidth=3,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            solid_capstyle="butt",
        )
    ax.tick_params(axis="x", pad=12)
    ticks = [tick for tick in (4, 8, 16, 32, 64, 128, 256, 512) if edges[0] <= tick <= most]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set(xlabel="√area in pixels of the network's input; grey: default boxes", ylabel="objects")


def _shapes(ax: Axes, shape: Float[np.ndarray, " objects"], reached: Bool[np.ndarray, " objects"], model: SSD) -> None:
    _stacked(ax, shape, reached, np.geomspace(1 / 8, 8, 33))
    ratios = np.unique((model.default_boxes[:, 2] / model.default_boxes[:, 3]).cpu().numpy().round(2))
    height, width = model.image_size
    for ratio in np.unique((ratios * width / height).round(2)):
        ax.axvline(ratio, color="0.35", linewidth=0.8, linestyle=":")
    ax.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    ax.set(xlabel="width to height as the network sees it; dotted: default boxes", ylabel="objects")


def _pictures(ax: Axes, train: AnnotatedPictures, val: AnnotatedPictures) -> None:
    most = int(min(max(train.counts.max(), val.counts.max()), 20))
    edges = np.arange(most + 2) - 0.5
    clipped = [np.minimum(part.counts, most) for part in (train, val)]
    ax.hist(
        clipped,
        bins=edges.tolist(),
        stacked=True,
        color=[TRAIN, VAL],
        label=[f"training ({len(train)})", f"scoring ({len(val)})"],
    )
    beyond = " (last: that many or more)" if max(train.counts.max(), val.counts.max()) > most else ""
    ax.set(xlabel=f"objects in a picture{beyond}", ylabel="pictures")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(ax, ncols=2)


def _stacked(
    ax: Axes, values: Float[np.ndarray, " objects"], reached: Bool[np.ndarray, " objects"], edges: np.ndarray
) -> None:
    parts = [values[reached].clip(edges[0], edges[-1]), values[~reached].clip(edges[0], edges[-1])]
    ax.hist(parts, bins=edges.tolist(), stacked=True, color=[TRAIN, UNREACHED])
    ax.set(xscale="log", xlim=(edges[0], edges[-1]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
