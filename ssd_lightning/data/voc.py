"""Folders of pictures with PASCAL VOC's xml beside them: VOC itself, and what labelling tools write."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd_lightning.data.pictures import PICTURE_SUFFIXES, picture_size, read_picture
from ssd_lightning.structures import Sample

VAL_NAMES = ("val", "valid", "validation", "test")
"""What the folder or list of pictures to score on may be called."""

BORDER = 1.0
"""Pixels that a box may reach over the edge of its picture: tools count pixels from 0 or from 1."""


class Annotation(NamedTuple):
    """What one xml file says."""

    path: Path
    picture: Path
    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    """In pixels: 1-based, the last one included, as VOC has them."""
    difficult: list[bool]


class VOCFolder:
    """Anybody's VOC-style folder.

    Which pictures are for training and which for scoring is told by lists ``ImageSets/Main/train.txt`` and
    ``val.txt``, or by folders of these names; ``test``, ``valid`` and ``validation`` stand for ``val``. Where neither
    is there, a share of all is drawn for scoring. A picture lies beside its xml or in ``JPEGImages``.

    Args:
        root: folder, searched with its subfolders.
        classes: names in the order of their labels. ``None``: all that there are, sorted.
        val_share: of the pictures, where nothing tells which are for scoring.
        seed: of that draw.
        difficult: whether objects that are flagged as difficult are trained on, as in the paper. In scoring they are
            neither found nor missed in any case.
    """

    def __init__(
        self,
        root: Path | str,
        classes: Sequence[str] | None = None,
        val_share: float = 0.2,
        seed: int = 0,
        difficult: bool = True,
    ) -> None:
        if not 0 < val_share < 1:
            raise ValueError(f"val_share: expected a number in (0, 1), got {val_share}")
        self.root = Path(root)
        self.given_classes = None if classes is None else tuple(classes)
        self.val_share = val_share
        self.seed = seed
        self.difficult = difficult

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if self.given_classes is not None:
            return self.given_classes
        return tuple(sorted({name for split in self._splits for annotation in split for name in annotation.names}))

    def prepare(self) -> None:
        """Nothing to make or to download."""
        if not self.root.is_dir():
            raise ValueError(f"data.root: no folder {self.root}")

    def train(self) -> "VOCPictures":
        return VOCPictures(self._splits[0], self.classes, self.difficult)

    def val(self) -> "VOCPictures":
        return VOCPictures(self._splits[1], self.classes)

    @cached_property
    def _splits(self) -> tuple[list[Annotation], list[Annotation]]:
        train, val = (read_annotations(paths) for paths in split_files(self.root, self.val_share, self.seed))
        return train, val


class VOCPictures:
    """Annotated pictures, as samples by position.

    Args:
        annotations: of the pictures, in order.
        classes: names in the order of their labels.
        difficult: whether objects flagged as difficult are among the samples' objects.

    Raises:
        ValueError: naming the xml, the object and what is wrong with it.
    """

    def __init__(self, annotations: Sequence[Annotation], classes: Sequence[str], difficult: bool = True) -> None:
        self.paths = [annotation.picture for annotation in annotations]
        with ThreadPoolExecutor() as pool:
            sizes = list(pool.map(picture_size, self.paths))
        labels = {name: number for number, name in enumerate(classes, 1)}
        self._objects = [
            _objects(annotation, size, labels, difficult) for annotation, size in zip(annotations, sizes, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        return Sample(read_picture(self.paths[index]), *self._objects[index])


def split_files(root: Path, val_share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """The xml files for training and for scoring.

    Raises:
        ValueError: naming the folder, if there are none, or none on one side.
    """
    lists = root / "ImageSets" / "Main"
    val_name = next((name for name in VAL_NAMES if (lists / f"{name}.txt").is_file()), None)
    if (lists / "train.txt").is_file() and val_name is not None:
        train, val = (_listed(lists / f"{name}.txt", root / "Annotations") for name in ("train", val_name))
    else:
        val_name = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
        if (root / "train").is_dir() and val_name is not None:
            train, val = (_xml_files(root / name) for name in ("train", val_name))
        else:
            files = _xml_files(root)
            order = np.random.default_rng(seed).permutation(len(files))
            count = round(val_share * len(files))
            train, val = ([files[i] for i in sorted(chosen)] for chosen in (order[count:], order[:count]))
    if not train or not val:
        raise ValueError(
            f"data.root: {root} has {len(train)} annotated pictures for training and {len(val)} for scoring; expected "
            "xml files beside the pictures or in Annotations, at least one on either side"
        )
    return train, val


def _listed(path: Path, annotations: Path) -> list[Path]:
    # VOC's lists of one class have a second column.
    names = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return [annotations / f"{name}.xml" for name in names]


def _xml_files(folder: Path) -> list[Path]:
    found = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() == ".xml" and not path.name.startswith("."))


def read_annotations(paths: Iterable[Path]) -> list[Annotation]:
    """Of each xml file, in order.

    Raises:
        ValueError: naming the file that is none, or has no picture.
    """
    return [_read_annotation(path) for path in paths]


def _read_annotation(path: Path) -> Annotation:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as xml ({error})") from error
    objects = root.findall("object")
    return Annotation(
        path,
        _picture_of(path, root.findtext("filename") or ""),
        [(entry.findtext("name") or "").strip() for entry in objects],
        [_edges(path, number, entry) for number, entry in enumerate(objects, 1)],
        [(entry.findtext("difficult") or "0").strip() == "1" for entry in objects],
    )


def _picture_of(path: Path, named: str) -> Path:
    """With the name of the xml, or else with the name that it tells, without the folder on somebody's computer."""
    named = named.replace("\\", "/").rpartition("/")[2].strip()
    for folder in (path.parent, path.parent.parent / "JPEGImages"):
        for suffix in (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG", *sorted(PICTURE_SUFFIXES)):
            picture = folder / f"{path.stem}{suffix}"
            if picture.is_file():
                return picture
        if named and (folder / named).is_file():
            return folder / named
    raise ValueError(f"{path}: its picture {named or path.stem} is neither beside it nor in JPEGImages")


def _edges(path: Path, number: int, entry: ElementTree.Element) -> tuple[float, float, float, float]:
    edges = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = entry.findtext(f"bndbox/{name}")
        try:
            value = math.nan if text is None else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{path}, object {number}: {name}: expected a number of pixels, got {text!r}")
        edges.append(value)
    return edges[0], edges[1], edges[2], edges[3]


def _objects(
    annotation: Annotation, size: tuple[int, int], labels: dict[str, int], with_difficult: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes as fractions of the picture, labels, difficult."""
    height, width = size
    boxes = np.zeros((len(annotation.boxes), 4), dtype=np.float32)
    for row, (name, box) in enumerate(zip(annotation.names, annotation.boxes, strict=True)):
        place = f"{annotation.path}, object {row + 1}"
        if name not in labels:
            raise ValueError(f"{place}: name: expected one of {', '.join(labels)}, got {name!r}")
        left, top, right, bottom = box[0] - 1, box[1] - 1, box[2], box[3]
        if not (left + 1 <= right and top + 1 <= bottom):
            raise ValueError(f"{place}: expected xmin <= xmax and ymin <= ymax, got {_told(box)}")
        is_far_out = min(left, top) < -BORDER or right > width + BORDER or bottom > height + BORDER
        if is_far_out or left >= width or top >= height or right <= 0 or bottom <= 0:
            raise ValueError(
                f"{place}: expected a box inside {annotation.picture.name} of {width}×{height} pixels, got {_told(box)}"
            )
        boxes[row] = (left / width, top / height, right / width, bottom / height)
    difficult = np.array(annotation.difficult, dtype=bool)
    kept = np.ones(len(boxes), dtype=bool) if with_difficult else ~difficult
    numbers = np.array([labels[name] for name in annotation.names], dtype=np.int64)
    return boxes.clip(0, 1)[kept], numbers[kept], difficult[kept]


def _told(box: tuple[float, float, float, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
