"""Prediction on pictures of any kind and size, with boxes in pixels of each picture."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ssd_lightning.data.augmentation.pipeline import View, resample
from ssd_lightning.data.augmentation.windows import WHOLE, Window
from ssd_lightning.data.pictures import picture_size, pixels_of, read_picture
from ssd_lightning.detector.postprocess import PostProcess, non_maximum_suppression
from ssd_lightning.drawing import draw_boxes
from ssd_lightning.records import DRAW_THRESHOLD
from ssd_lightning.require import require_number, require_whole_number
from ssd_lightning.structures import Detections

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor
"""A picture file; a picture of Pillow in any mode; an array (H, W, 3) or a tensor (3, H, W) of uint8, red first."""


class Resized(NamedTuple):
    """A picture at the input size of a network."""

    image: UInt8[np.ndarray, "height width 3"] | Float[np.ndarray, "height width 3"]
    """Levels in 0 … 255."""
    size: tuple[int, int]
    """(height, width) in pixels of the picture before it was resized, upright."""


class Decoded(NamedTuple):
    """The pixels of a picture, upright. A file may be decoded at less than its size."""

    image: UInt8[np.ndarray, "height width 3"]
    size: tuple[int, int]
    """(height, width) in pixels of the whole picture."""

    def resize(self, image_size: tuple[int, int], antialias: bool, window: Window = WHOLE) -> Resized:
        """Resize a window of the picture to the input of a network, as in training."""
        return Resized(resample(self.image, window, image_size, antialias), self.size)


class Found(NamedTuple):
    """The detections of one picture, best first."""

    boxes: Float[np.ndarray, "detections 4"]
    """xyxy, in pixels of the upright picture."""
    labels: Int[np.ndarray, " detections"]
    """1 … C."""
    names: tuple[str, ...]
    """Name of the class of each detection."""
    scores: Float[np.ndarray, " detections"]
    size: tuple[int, int]
    """(height, width) in pixels of the upright picture."""

    def where(self, mask: np.ndarray) -> "Found":
        """Return the detections that a mask chooses."""
        names = tuple(name for name, chosen in zip(self.names, mask, strict=True) if chosen)
        return Found(self.boxes[mask], self.labels[mask], names, self.scores[mask], self.size)

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO annotations, whose ``bbox`` is left, top, width and height in pixels.

        Args:
            image_id: the number of the picture.
            first_id: the number of the first annotation.
        """
        return [
            {
                "id": first_id + row,
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [round(float(value), 2) for value in (left, top, right - left, bottom - top)],
                "score": round(float(score), 5),
            }
            for row, ((left, top, right, bottom), label, score) in enumerate(
                zip(self.boxes, self.labels, self.scores, strict=True)
            )
        ]

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``. Its ``class_id`` counts from 0, as a position in the detector's classes.

        Raises:
            ImportError: if the package supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise ImportError("supervision: expected this package, got none. Try pip install supervision.") from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )


class Predictor(ABC):
    """A detector that takes pictures of any kind and size.

    Attributes:
        classes: names of the object classes; label n is ``classes[n - 1]``.
    """

    classes: tuple[str, ...]

    @property
    @abstractmethod
    def settings(self) -> PostProcess:
        """The post-processing, which also merges the detections of tiles."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input in pixels."""

    @property
    @abstractmethod
    def antialias(self) -> bool:
        """True if pictures are resized with anti-aliasing, as in the training of the weights."""

    @abstractmethod
    def run(self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]) -> Detections:
        """Detect objects in a batch of pictures at the network's input size.

        Args:
            images: levels in 0 … 255, red first.

        Returns:
            Detections with boxes as fractions of the picture.
        """

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        pictures: Picture,
        *,
        score_threshold: float = ...,
        classes: Collection[str] | None = ...,
        batch_size: int = ...,
        tiles: tuple[int, int] | None = ...,
    ) -> Found: ...

    @overload
    def predict(
        self,
        pictures: Iterable[Picture],
        *,
        score_threshold: float = ...,
        classes: Collection[str] | None = ...,
        batch_size: int = ...,
        tiles: tuple[int, int] | None = ...,
    ) -> list[Found]: ...

    def predict(
        self,
        pictures: Any,
        *,
        score_threshold: float = DRAW_THRESHOLD,
        classes: Any = None,
        batch_size: int = 8,
        tiles: tuple[int, int] | None = None,
    ) -> Found | list[Found]:
        """Detect objects in one picture or in many.

        Pictures are converted and resized as in training. The rotation in EXIF data is applied to files and to
        pictures of Pillow.

        Args:
            pictures: a picture as :data:`Picture` describes, or a list or iterator of them.
            score_threshold: lowest score of the detections that are returned. Post-processing has a threshold of its
                own, which comes first.
            classes: names of the classes whose detections are returned. ``None``: all.
            batch_size: number of pictures, or of tiles, that the network gets at once.
            tiles: (rows, columns) of tiles, in which small objects of a large picture are found; see
                :func:`tile_windows`. ``None``: the picture is used as a whole.

        Returns:
            The detections of the picture; or a list of them for a list or an iterator.

        Raises:
            PictureError: if a file is missing or damaged; the message names the file.
            ValueError: with the position of a picture that has another type or shape.
        """
        require_number("score_threshold", score_threshold, "[0, 1]")
        require_whole_number("batch_size", batch_size, 1)
        labels = self._labels(classes)
        is_one = isinstance(pictures, Picture)
        if not is_one and not isinstance(pictures, Iterable):
            raise ValueError(_unexpected("pictures", type(pictures).__name__))
        windows = tile_windows(tiles)
        # All views of a picture are in memory at once.
        several = batch_size if len(windows) == 1 else 1
        results = [
            found.where((found.scores >= score_threshold) & np.isin(found.labels, labels))
            for batch in self._batches(iter([pictures] if is_one else pictures), several, is_one, windows)
            for found in self.detect_views(batch, windows, batch_size)
        ]
        return results[0] if is_one else results

    def detect(self, pictures: Sequence[Resized]) -> list[Found]:
        """Return all detections that post-processing keeps in pictures of :func:`views_of`, which are one batch."""
        return self.in_pixels(self.run(batch_of(pictures)), pictures) if pictures else []

    def detect_views(
        self, pictures: Sequence[Sequence[Resized]], windows: Sequence[Window], batch_size: int
    ) -> list[Found]:
        """Detect objects in pictures, each of which is given by the views of its windows.

        Detections of several views are merged by non-maximum suppression with the settings of the detector.

        Args:
            pictures: views from :func:`views_of`.
            windows: the windows of the views.
            batch_size: number of views that the network gets at once, if there are several of a picture.
        """
        if len(windows) == 1 or not pictures:
            return self.detect([view for [view] in pictures])
        views = [view for views in pictures for view in views]
        parts = [self.run(batch_of(views[row : row + batch_size])) for row in range(0, len(views), batch_size)]
        found = Detections(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        return self.in_pixels(merge_views(found, windows, self.settings), [views[0] for views in pictures])

    def in_pixels(self, detections: Detections, pictures: Sequence[Resized]) -> list[Found]:
        """Return the detections of a batch by picture, in pixels of each picture."""
        columns = (column.cpu() for column in detections)
        return [
            self._found(boxes[valid], labels[valid], scores[valid], picture.size)
            for picture, boxes, labels, scores, valid in zip(pictures, *columns, strict=True)
        ]

    def draw(self, picture: Picture, found: Found) -> Image.Image:
        """Return a copy of a picture, upright, with the boxes of detections, their classes and scores.

        Raises:
            ValueError: if the detections belong to a picture of another size.
        """
        image = pixels(picture)
        if image.shape[:2] != found.size:
            raise ValueError(
                f"found: expected detections in a picture of {image.shape[:2]} pixels (height, width), got {found.size}"
            )
        return Image.fromarray(draw_boxes(image, found.boxes, found.labels, found.scores, self.classes))

    def _batches(
        self, pictures: Iterator[Any], batch_size: int, is_one: bool, windows: Sequence[Window]
    ) -> Iterator[list[list[Resized]]]:
        numbered = enumerate(pictures)
        while batch := list(islice(numbered, batch_size)):
            yield [
                views_of(
                    picture,
                    self.image_size,
                    self.antialias,
                    windows,
                    "pictures" if is_one else f"pictures[{position}]",
                )
                for position, picture in batch
            ]

    def _found(
        self,
        boxes: Float[Tensor, "detections 4"],
        labels: Int[Tensor, " detections"],
        scores: Float[Tensor, " detections"],
        size: tuple[int, int],
    ) -> Found:
        height, width = size
        names = tuple(self.classes[label - 1] for label in labels.tolist())
        in_pixels = boxes * torch.tensor([width, height, width, height])
        return Found(in_pixels.numpy(), labels.numpy(), names, scores.numpy(), size)

    def _labels(self, classes: Any) -> list[int]:
        """Return the labels of some classes."""
        if classes is None:
            return list(range(1, len(self.classes) + 1))
        is_list = isinstance(classes, Collection) and not isinstance(classes, str)
        unknown = [name for name in classes if name not in self.classes] if is_list else [classes]
        if unknown:
            known = ", ".join(self.classes)
            raise ValueError(f"classes: expected a list of names out of {known}, got {unknown[0]!r}")
        return [self.classes.index(name) + 1 for name in classes]


def batch_of(
    pictures: Sequence[Resized],
) -> UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]:
    """Return resized pictures as one batch for a network."""
    return torch.from_numpy(np.stack([picture.image for picture in pictures])).permute(0, 3, 1, 2)


TILE_OVERLAP = 0.25
"""Share of the length of a tile that it has in common with the next one."""


def tile_windows(tiles: Any) -> list[Window]:
    """Return the whole picture, and the windows of its tiles.

    The whole picture is among them, since a large object is in no tile as a whole.

    Args:
        tiles: number of (rows, columns), which overlap by :data:`TILE_OVERLAP`. ``None`` or (1, 1): no tiles.

    Raises:
        ValueError: if ``tiles`` is something else.
    """
    if tiles is None:
        return [WHOLE]
    if not isinstance(tiles, Sequence) or len(tiles) != 2:
        raise ValueError(f"tiles: expected the number of rows and of columns, got {tiles}")
    for number in tiles:
        require_whole_number("tiles", number, 1)
    rows, columns = (_spans(number) for number in tiles)
    parts = [Window(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    return [WHOLE] if parts == [WHOLE] else [WHOLE, *parts]


def _spans(number: int) -> list[tuple[float, float]]:
    """Return the start and the end of overlapping parts of a length of 1."""
    length = 1 / (number - (number - 1) * TILE_OVERLAP)
    step = length * (1 - TILE_OVERLAP)
    # Rounding must leave no part beyond the end.
    return [(row * step, 1.0 if row == number - 1 else row * step + length) for row in range(number)]


def merge_views(found: Detections, windows: Sequence[Window], settings: PostProcess) -> Detections:
    """Merge the detections of the views of each picture by non-maximum suppression.

    Args:
        found: detections of all views of the first picture, then of the second, and so on, as fractions of the views.
        windows: the windows of the views of a picture.
        settings: settings of suppression, and the number of detections to keep.

    Returns:
        Detections of the pictures, as fractions of them.
    """
    edges = torch.tensor(windows, dtype=found.boxes.dtype, device=found.boxes.device).unsqueeze(1)
    start, size = edges[..., :2].repeat(1, 1, 2), (edges[..., 2:] - edges[..., :2]).repeat(1, 1, 2)
    all_boxes, all_labels, all_scores, all_valid = (column.unflatten(0, (-1, len(windows))) for column in found)
    # Padding has a score of 0, and comes last.
    scores, order = all_scores.flatten(1).sort(dim=1, descending=True, stable=True)
    boxes = (all_boxes * size + start).flatten(1, 2).gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    labels, valid = all_labels.flatten(1).gather(1, order), all_valid.flatten(1).gather(1, order)
    groups = torch.zeros_like(labels) if settings.class_agnostic else labels
    kept = non_maximum_suppression(boxes, groups, valid, settings.nms_threshold, settings.max_detections)
    return kept.detections(boxes, labels, scores)


def views_of(
    picture: Any,
    image_size: tuple[int, int],
    antialias: bool,
    windows: Sequence[Window] = (WHOLE,),
    key: str = "picture",
    max_megapixels: float | None = None,
) -> list[Resized]:
    """Read a picture and resize its windows to the input of a network, as in training.

    Args:
        picture: see :data:`Picture`.
        image_size: (height, width) in pixels.
        antialias: see :class:`~ssd_lightning.detector.model.SSD`.
        windows: parts of the picture.
        key: the argument that gave the picture, for messages.
        max_megapixels: largest picture file; see :func:`~ssd_lightning.data.pictures.read_header`.
    """
    sizes = [View(window, False, False).least_size(image_size) for window in windows]
    least = (max(height for height, _ in sizes), max(width for _, width in sizes)) if antialias else None
    decoded = decode(picture, least, key, max_megapixels)
    return [decoded.resize(image_size, antialias, window) for window in windows]


def decode(
    picture: Any, least: tuple[int, int] | None, key: str = "picture", max_megapixels: float | None = None
) -> Decoded:
    """Return the pixels of a picture; see :func:`views_of`.

    Args:
        picture: see :data:`Picture`.
        least: (height, width) that suffices for a file; see :func:`~ssd_lightning.data.pictures.read_picture`.
        key: the argument that gave the picture, for messages.
        max_megapixels: largest picture file.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        size = picture_size(path, max_megapixels)
        # Files are decoded as for scoring, so that the detections are the same.
        return Decoded(read_picture(path, least, max_megapixels), size)
    image = pixels(picture, key)
    return Decoded(image, (image.shape[0], image.shape[1]))


def pixels(picture: Any, key: str = "picture") -> UInt8[np.ndarray, "height width 3"]:
    """Return the pixels of a picture, upright; see :data:`Picture`.

    Raises:
        PictureError: if a file cannot be read; the message names the file.
        ValueError: with ``key``, if the picture has another type, shape or type of numbers.
    """
    if isinstance(picture, str | os.PathLike):
        return read_picture(Path(picture))
    if isinstance(picture, Image.Image):
        array = pixels_of(picture)
    elif isinstance(picture, np.ndarray):
        array = picture
    elif isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(_unexpected(key, f"a tensor of {tuple(picture.shape)}"))
        array = picture.detach().permute(1, 2, 0).cpu().numpy()
    else:
        raise ValueError(_unexpected(key, type(picture).__name__))
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(_unexpected(key, f"an array of {array.shape}"))
    if array.dtype != np.uint8:
        raise ValueError(_unexpected(key, f"numbers of {array.dtype}"))
    return np.ascontiguousarray(array)


def _unexpected(key: str, got: str) -> str:
    return (
        f"{key}: expected a file, a picture of Pillow, an array (height, width, 3) or a tensor (3, height, width) of "
        f"uint8, or a list of these, got {got}"
    )
