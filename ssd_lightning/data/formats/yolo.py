"""Pictures with the text files of YOLO: one file for each picture, one line for each object."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ssd_lightning.data.folders import DataFolder, is_picture, label_places
from ssd_lightning.data.formats.annotations import Annotations, BoxesOf, PictureAnnotation
from ssd_lightning.data.formats.cache import limited_key, read_annotations
from ssd_lightning.data.formats.findings import Finding, Fix
from ssd_lightning.data.formats.splits import SplitData, Splits, as_list, usual_splits
from ssd_lightning.data.formats.yolo_files import (
    LONGEST,
    Description,
    has_labels,
    lines_of,
    read_description,
    read_labels,
    read_names,
)

DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""Usual names of the file that describes a data set, in lower case."""

NAMES_FILES = ("classes.txt", "obj.names", "data.names", "classes.names")
"""Usual names of a file with one class name in each line."""

logger = logging.getLogger(__name__)


class YOLO(SplitData):
    """Pictures with text files as Ultralytics, Darknet and labelling tools write them.

    A line of a text file is ``class cx cy w h``: the number of the class, counted from 0, then centre, width and height
    as fractions of the picture. A polygon, ``class x1 y1 x2 y2 …``, becomes the box around it. A picture whose text
    file is empty or missing has no objects.

    The text file of ``images/a/1.jpg`` is ``labels/a/1.txt``, or lies beside the picture. ``data.yaml`` names the
    classes, and the folders or lists of each split. Without it, folders or lists ``train``, ``val`` and ``test`` are
    the splits, and ``classes.txt`` or ``obj.names`` names the classes. Where there are no splits, a share is drawn.
    Paths of another computer are searched for in ``root``; hidden files and files outside are never read.

    Args:
        root: folder of the data.
        classes: names in the order of their labels. ``None``: all names, by number. In a folder without names, these
            names are numbered from 0.
        val_share: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        seed: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        fix: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        boxes_of: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        max_megapixels: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        train: folders, or text files that list pictures, to train on. ``None``: those of the description.
        val: folders or lists to score on. ``None`` beside ``train``: a share of ``train`` is drawn.
        test: folders or lists for the test at the end of a training. ``None`` beside ``train``: no test.
        test_share: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        description: yaml file that describes the data set; ``None``: ``data.yaml``, or the only one in ``root``.
    """

    searched = "pictures"

    def __init__(
        self,
        root: Path | str,
        classes: Sequence[str] | None = None,
        val_share: float = 0.2,
        seed: int = 0,
        fix: Fix | None = None,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        test_share: float = 0.0,
        description: Path | str | None = None,
        boxes_of: BoxesOf = "shown",
        max_megapixels: float | None = None,
    ) -> None:
        super().__init__(root, classes, True, fix, val_share, test_share, seed, boxes_of, max_megapixels)
        if val is not None and train is None:
            raise ValueError(f"train: expected folders or lists beside val={val}, got null")
        self.given = {"train": as_list(train), "val": as_list(val), "test": as_list(test)}
        self.description = None if description is None else Path(description).expanduser()

    @cached_property
    def files(self) -> DataFolder:
        """Index of the files of the folder."""
        return DataFolder(self.root)

    @cached_property
    def described(self) -> Description:
        """Class names and splits that the files in the folder describe."""
        path = self._description_file()
        told = Description(str(self.root), {}, {}, 0) if path is None else read_description(path)
        if told.names:
            return told
        listed = next((found for name in NAMES_FILES if (found := self.files.named(name))), [])
        names = [read_names(self.files.path(file)) for file in listed]
        if any(other != names[0] for other in names):
            raise ValueError(f"data.root: expected the same names in {' and '.join(listed)}, got different ones")
        numbered = names[0] if names else dict(enumerate(self.given_classes or ()))
        if not numbered:
            raise ValueError(f"data.classes: expected names, got none in {told.path}. Try data.classes=[<name>,<name>]")
        return told._replace(names=numbered)

    def _description_file(self) -> str | None:
        given = self.description
        if given is not None:
            return str(given if given.is_absolute() or given.exists() else self.root / given)
        there = [file for file in self.files.files if file.lower().endswith((".yaml", ".yml"))]
        top = [file for file in there if "/" not in file]
        usual = [file for name in DESCRIPTIONS for file in (*top, *there) if _name(file).lower() == name]
        found = usual[:1] or top
        if len(found) > 1:
            told = f"expected one yaml file in {self.root}, got {', '.join(found)}"
            raise ValueError(f"data.description: {told}. Try data.description={found[0]}")
        return self.files.path(found[0]) if found else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels."""
        names = self.described.names
        return self.given_classes or tuple(names[number] for number in sorted(names))

    def read(self) -> Splits:
        """Read the text files of all splits."""
        pictures_of, findings = self._pictures_of_splits()
        label_of, more = match_labels(self.files)
        labels = {
            split: None if pictures is None else [self.files.path(label_of[p]) for p in pictures if p in label_of]
            for split, pictures in pictures_of.items()
        }
        picture_of = {self.files.path(label): self.files.path(picture) for picture, label in label_of.items()}
        keypoints = self.described.keypoints

        def read(path: str) -> PictureAnnotation:
            return read_labels(path, picture_of[path], keypoints, self.max_megapixels)

        # A picture may be in several splits, which ssd-check reports.
        sources = list(dict.fromkeys(path for paths in labels.values() for path in paths or ()))
        key = limited_key(f"yolo {self.root.resolve()} {keypoints}", self.max_megapixels)
        everything, unreadable = read_annotations(sources, read, "yolo", key, [self.files])
        everything = everything._replace(vocabulary=[self._class_name(int(name)) for name in everything.vocabulary])
        row_of = {source: row for row, source in enumerate(everything.sources)}

        def selected(split: str) -> Annotations | None:
            paths = labels[split]
            if paths is None:
                return None
            return everything.select(np.array([row_of[path] for path in paths if path in row_of], dtype=np.int64))

        train, val, test = selected("train"), selected("val"), selected("test")
        assert train is not None
        if test is not None and self.given["test"] is None and not test.counts.any():
            test = None  # The pictures of a test may have been published without their labels.
        splits = Splits(train, val, test, [*findings, *more, *unreadable], [])
        return splits._replace(remarks=told_without_objects(splits))

    def _class_name(self, number: int) -> str:
        return self.described.names.get(number, f"{number}, a number without a name in {self.described.path}")

    def _pictures_of_splits(self) -> tuple[dict[str, list[str] | None], list[Finding]]:
        """Return the pictures of each split, and findings about the lists."""
        described = {} if self.given["train"] else self.described.splits
        splits: dict[str, list[str] | None] = dict.fromkeys(self.given)
        findings: list[Finding] = []
        for split, given in self.given.items():
            names = given or described.get(split)
            if not names:
                continue
            pictures, more = self._pictures(names)
            findings += more
            if pictures or more:
                splits[split] = pictures
                continue
            key = f"data.{split}" if given else f"{self.described.path}: {split}"
            text = f"{key}: expected folders of pictures in {self.root}, or lists of them, got {', '.join(names)}"
            if given or split != "test":
                raise ValueError(text)
            logger.warning("%s, so there is no test", text)
        if splits["train"] is None:
            usual, more = self._usual_splits()
            held_out = set(splits["test"] or ())
            kept = {split: pictures and [p for p in pictures if p not in held_out] for split, pictures in usual.items()}
            return kept | ({"test": splits["test"]} if held_out else {}), [*findings, *more]
        if splits["train"] == splits["val"] and described:
            # Small data sets for demonstrations are described in this way.
            text = f"{self.described.path}: val: expected other pictures than train, got the same"
            raise ValueError(f"{text}. Try data.train={described['train'][0]}, of which a share is drawn.")
        return splits, findings

    def _usual_splits(self) -> tuple[dict[str, list[str] | None], list[Finding]]:
        """Return the pictures of the lists or folders with the names of splits, or else all pictures."""
        splits: dict[str, list[str] | None] = dict.fromkeys(self.given)
        everything = self.files.pictures_in("")
        lists = {_stem(file).casefold(): file for file in self.files.files if "/" not in file and is_list(file)}
        by_list = usual_splits(lists)
        if by_list is not None:
            listed = {split: self._listed(lists[name]) for split, name in by_list._asdict().items() if name}
            findings = [finding for _, more in listed.values() for finding in more]
            return splits | {split: pictures for split, (pictures, _) in listed.items()}, findings
        folders: dict[str, list[str]] = defaultdict(list)
        for picture in everything:
            for part in set(picture.casefold().split("/")[:-1]):
                folders[part].append(picture)
        by_folder = usual_splits(folders)
        if by_folder is not None and by_folder.val is not None:
            return splits | {split: folders[name] for split, name in by_folder._asdict().items() if name}, []
        return splits | {"train": everything}, []

    def _pictures(self, names: list[str]) -> tuple[list[str], list[Finding]]:
        """Return the pictures of folders and lists, and findings about lines of the lists."""
        folder = self.files.relative(Path(self.described.path).parent)
        places = list(dict.fromkeys((folder or "", "", "images")))
        found: list[str] = []
        findings: list[Finding] = []
        for name in names:
            file = (self.files.find(name, places) or self.files.only(name)) if is_list(name) else None
            inside = self.files.find_folder(name, places) if file is None else None
            if file is not None:
                listed, more = self._listed(file)
                found += listed
                findings += more
            elif inside is not None:
                found += self.files.pictures_in(inside)
        return list(dict.fromkeys(found)), findings

    def _listed(self, file: str) -> tuple[list[str], list[Finding]]:
        """Return the pictures in a list, and findings about its lines."""
        path = self.files.path(file)
        found: dict[str, None] = {}
        findings = []
        for number, line in enumerate(lines_of(path), 1):
            picture = (self.files.find(line, (_folder(file), "", "images")) or self.files.only(line)) if line else None
            if picture is not None and is_picture(picture):
                found[picture] = None
            elif line:
                text = f"{path}, line {number}: expected a picture in {self.root}, got {line[:LONGEST]!r}"
                findings.append(Finding("unreadable", text))
        return list(found), findings


def match_labels(files: DataFolder) -> tuple[dict[str, str], list[Finding]]:
    """Return the text file of each picture in a folder, which may be missing, and findings about the others.

    The file has the name of its picture, and is in one of the usual places. If these have no file for any picture of a
    folder, the last resort is the only file of the name that belongs to no other picture.
    """
    pictures = files.pictures_in("")
    folders = {_folder(picture) for picture in pictures}
    places = {folder: [p for p in label_places(folder) if files.folder_at(p) is not None] for folder in folders}
    found = {}
    for picture in pictures:
        names = (f"{place}/{_stem(picture)}.txt".lstrip("/") for place in places[_folder(picture)])
        found[picture] = next((file for name in names if (file := files.at(name)) is not None), None)
    taken = set(found.values())
    in_order = {_folder(picture) for picture, file in found.items() if file is not None}
    label_of: dict[str, str] = {}
    owner: dict[str, str] = {}
    findings = []
    for picture, file in found.items():
        only = files.only(f"{_stem(picture)}.txt") if _folder(picture) not in in_order else None
        expected = f"{places[_folder(picture)][0]}/{_stem(picture)}.txt".lstrip("/")
        label = (
            file or (only if only not in taken else None) or (expected if expected not in owner else f"{picture}.txt")
        )
        if label in owner:
            text = f"{files.path(label)}: expected one picture of this name, got {owner[label]} and {picture}"
            findings.append(Finding("unreadable", text))
            continue
        label_of[picture], owner[label] = label, picture
    labelled = {_folder(label) for label in owner if label in taken}
    for file in files.files:
        if is_list(file) and file not in owner and _folder(file) in labelled and has_labels(files.path(file)):
            findings.append(Finding("unreadable", f"{files.path(file)}: expected a picture of this name, got none"))
    return label_of, findings


def told_without_objects(splits: Splits) -> list[Finding]:
    """Return a remark on the pictures without objects, whose text file is empty or missing."""
    empty = [source for source, _ in splits.without_objects()]
    if not empty:
        return []
    missing = [source for source in empty if not os.path.exists(source)]
    first = f"{missing[0]} is missing" if missing else f"{empty[0]} is empty"
    number = f"pictures without objects: {len(empty)}, of which {len(missing)} have no text file"
    return [Finding("background", f"{first}; {number}")]


def is_list(file: str) -> bool:
    """Return whether a file has the suffix of a text."""
    return file.lower().endswith(".txt")


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def _name(file: str) -> str:
    return file.rpartition("/")[2]


def _stem(file: str) -> str:
    return os.path.splitext(_name(file))[0]
