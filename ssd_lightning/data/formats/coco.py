"""Pictures annotated in one json file, as COCO has it and most labelling tools export."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_lightning.data.formats import cache as annotation_cache
from ssd_lightning.data.formats.annotations import (
    AnnotatedPictures,
    Annotations,
    Finding,
    Fix,
    PictureAnnotation,
    annotated_pictures,
    as_columns,
    check_fix,
    distinct,
    refuse_unreadable,
)
from ssd_lightning.data.formats.cache import Stored, in_parallel, stamps
from ssd_lightning.data.pictures import picture_size
from ssd_lightning.require import require_number

LAYOUTS = (
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
)
"""Where the files for training and for scoring lie in COCO itself, and in what is exported by Roboflow."""


class COCO:
    """Pictures with boxes from COCO-style json files.

    A picture is looked for by its ``file_name`` in the folder of pictures; where none is given, beside the json, in
    ``root``, in its folder ``images``, and in the folder that the json is named after (``train2017`` for
    ``instances_train2017.json``). Class ids may have gaps: labels follow their order. Crowds are left out in training;
    in scoring they are neither found nor missed.

    Args:
        root: folder that paths are in.
        annotations: json file, in ``root`` or anywhere. ``None``: as in COCO 2017 or an export of Roboflow.
        val_annotations: json file of the pictures to score on. ``None`` with ``annotations``: a share of those is
            drawn.
        pictures, val_pictures: folders of pictures, in ``root`` or anywhere; ``val_pictures`` is ``pictures`` where
            it is not given.
        classes: names in the order of their labels. ``None``: all categories of the json, in the order of their ids.
        val_share: of the pictures, where it is drawn.
        seed: of that draw.
        fix: what is done about objects that are wrong, see :data:`~ssd_lightning.data.formats.annotations.Fix`; ``None``:
            training stops at the first. ``skip`` also leaves out what is not of the given classes.
    """

    def __init__(
        self,
        root: Path | str,
        annotations: Path | str | None = None,
        val_annotations: Path | str | None = None,
        pictures: Path | str | None = None,
        val_pictures: Path | str | None = None,
        classes: Sequence[str] | None = None,
        val_share: float = 0.2,
        seed: int = 0,
        fix: Fix | None = None,
    ) -> None:
        check_fix(fix)
        require_number("val_share", val_share, "(0, 1)")
        if annotations is None and val_annotations is not None:
            raise ValueError(f"annotations: expected a json file beside val_annotations={val_annotations}, got null")
        self.root = Path(root).expanduser()
        self.files = (annotations, val_annotations)
        self.folders = (pictures, val_pictures or pictures)
        self.given_classes = None if classes is None else distinct(classes)
        self.val_share, self.seed = val_share, seed
        self.fix: Fix | None = fix

    def prepare(self) -> None:
        """Nothing to make or to download.

        Raises:
            ValueError: if a folder or file is not there.
        """
        self.json_files()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.given_classes or tuple(self.annotations[0].vocabulary)

    def train(self) -> AnnotatedPictures:
        return annotated_pictures(self._readable[0], self.classes, difficult=False, fix=self.fix)

    def val(self) -> AnnotatedPictures:
        return annotated_pictures(self._readable[1], self.classes, fix=self.fix)

    def json_files(self) -> tuple[Path, Path | None]:
        """For training, and for scoring unless that is to be drawn."""
        if not self.root.is_dir():
            raise ValueError(f"data.root: no folder {self.root}")
        train, val = self.files
        if train is None:
            layouts = [(self.root / train, self.root / val) for train, val in LAYOUTS]
            found = next(((t, v) for t, v in layouts if t.is_file() and v.is_file()), None)
            if found is None:
                known = " nor ".join(f"{train} with {val}" for train, val in LAYOUTS)
                raise ValueError(
                    f"data.root: {self.root} has neither {known}; name the json with data.annotations=<file>"
                )
            return found
        paths = [None if name is None else _below(self.root, name) for name in (train, val)]
        for argument, path in zip(("annotations", "val_annotations"), paths, strict=True):
            if path is not None and not path.is_file():
                raise ValueError(f"data.{argument}: no file {path}")
        assert paths[0] is not None
        return paths[0], paths[1]

    @cached_property
    def annotations(self) -> tuple[Annotations, Annotations, list[Finding]]:
        """For training, for scoring, and what could not be read."""
        train_file, val_file = self.json_files()
        folders = [None if folder is None else _below(self.root, folder) for folder in self.folders]
        train, findings = read_json(train_file, self.root, folders[0])
        if val_file is not None:
            val, more = read_json(val_file, self.root, folders[1])
            return train, val, findings + more
        order = np.random.default_rng(self.seed).permutation(len(train.sources))
        count = round(self.val_share * len(order))
        return train.select(np.sort(order[count:])), train.select(np.sort(order[:count])), findings

    @cached_property
    def _readable(self) -> tuple[Annotations, Annotations]:
        train, val, findings = self.annotations
        refuse_unreadable(findings, self.fix)
        train_file, val_file = self.json_files()
        for purpose, part, path in (("training", train, train_file), ("scoring", val, val_file or train_file)):
            if not part.sources:
                raise ValueError(f"{path}: images: expected at least one that can be read for {purpose}, got none")
        return train, val


def read_json(path: Path, root: Path, folder: Path | None = None) -> tuple[Annotations, list[Finding]]:
    """What one file says of its pictures, and which of them cannot be read.

    It is parsed again only if it or one of the pictures has changed.

    Raises:
        ValueError: naming the file and what in it is not as COCO has it.
    """
    key = f"coco {path.resolve()} {root.resolve()} {folder}"
    stamp = stamps([str(path)])
    known = annotation_cache.load(key)
    if known is not None and (known.source_stamps == stamp).all():
        is_same = (known.picture_stamps == stamps(known.annotations.pictures)).all()
        if is_same:
            return known.annotations, []
    content = _parsed(path)
    category_ids = _distinct_ids(content, "categories", path)
    categories = dict(zip(category_ids, (str(entry.get("name") or "") for entry in content["categories"]), strict=True))
    names = [categories[number] for number in sorted(categories)]
    if "" in names or len(set(names)) != len(names):
        raise ValueError(f"{path}: categories: expected a name for each, and each once, got {names}")
    objects: dict[int, list[_Entry]] = {number: [] for number in _distinct_ids(content, "images", path)}
    spoilt: dict[int, str] = {}
    for entry in content["annotations"]:
        number, image, category = (_number(entry, key, path) for key in ("id", "image_id", "category_id"))
        place = f"{path}, annotation {number}"
        if image not in objects:
            raise ValueError(f"{place}: image_id: expected an id of one of the images, got {image}")
        if category not in categories:
            raise ValueError(f"{place}: category_id: expected one of {sorted(categories)}, got {category}")
        box = entry.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(_is_finite(value) for value in box)):
            # As an xml with such a box, it makes its picture one that cannot be read.
            expected = "expected left, top, width, height in pixels"
            spoilt.setdefault(image, f"annotation {number}: bbox: {expected}, got {box}")
            continue
        left, top, width, height = map(float, box)
        objects[image].append(
            _Entry(categories[category], (left, top, left + width, top + height), bool(entry.get("iscrowd", 0)))
        )
    usual = (path.parent, root, root / "images", root / path.stem.rpartition("_")[2])
    folders = [folder] if folder else list(dict.fromkeys(usual))

    def read(entry: dict[str, Any]) -> PictureAnnotation | Finding:
        source = f"{path}, image {entry['id']} ({entry.get('file_name')})"
        if entry["id"] in spoilt:
            return Finding("unreadable", f"{source}, {spoilt[entry['id']]}")
        try:
            picture = _picture(source, entry, folders)
            size = picture_size(Path(picture))
        except ValueError as error:
            return Finding("unreadable", str(error))
        mine = objects[entry["id"]]
        told = _told(entry, "height"), _told(entry, "width")
        return PictureAnnotation(
            source, picture, size, told, [e.name for e in mine], [e.box for e in mine], [e.is_crowd for e in mine]
        )

    answers = in_parallel(read, content["images"], "Reading pictures")
    rows = [answer for answer in answers if isinstance(answer, PictureAnnotation)]
    annotations = as_columns(rows, "coco", names)
    findings = [answer for answer in answers if isinstance(answer, Finding)]
    if rows and not findings:
        source_stamps = np.repeat(stamp, len(rows), axis=0)
        annotation_cache.save(key, Stored(annotations, source_stamps, stamps(annotations.pictures)))
    return annotations, findings


class _Entry(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    is_crowd: bool


PARTS = ("images", "annotations", "categories")
"""Of a json, that are read. Others need not be lists."""


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as json ({error})") from error
    for key in PARTS:
        entries = content.get(key) if isinstance(content, dict) else None
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError(f"{path}: expected lists of objects named {', '.join(PARTS)}, as in COCO")
    return {key: content[key] for key in PARTS}


def _number(entry: dict[str, Any], key: str, path: Path) -> int:
    if not isinstance(entry.get(key), int):
        raise ValueError(f"{path}: {key}: expected a whole number, got {entry.get(key)!r} in {str(entry)[:200]}")
    return entry[key]


def _distinct_ids(content: dict[str, list[dict[str, Any]]], kind: str, path: Path) -> list[int]:
    ids = [_number(entry, "id", path) for entry in content[kind]]
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {kind}: expected each id once, got {repeated[0]} more often")
    return ids


def _told(entry: dict[str, Any], side: str) -> int:
    """0 where nothing is told."""
    return int(entry[side]) if _is_finite(entry.get(side)) else 0


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _picture(source: str, entry: dict[str, Any], folders: Sequence[Path]) -> str:
    name = str(entry.get("file_name") or "").replace("\\", "/")
    candidates = [os.path.join(folder, name) for folder in folders if name]
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is None:
        places = ", ".join(str(folder) for folder in folders)
        raise ValueError(f"{source}: file_name: expected a picture in {places}, got {name!r}")
    return found


def _below(root: Path, name: Path | str) -> Path:
    """As given if it is there, from where one stands, and else in ``root``."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or path.exists() else root / path
