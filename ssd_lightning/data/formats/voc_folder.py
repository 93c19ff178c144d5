"""Folders of pictures with VOC-style xml files, as labelling tools write them."""

import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ssd_lightning.data.folders import DataFolder, is_picture
from ssd_lightning.data.formats.annotations import Annotations, BoxesOf, PictureAnnotation
from ssd_lightning.data.formats.cache import limited_key, read_annotations
from ssd_lightning.data.formats.findings import Finding, Fix
from ssd_lightning.data.formats.scalars import text_of
from ssd_lightning.data.formats.splits import SPLIT_NAMES, SplitData, Splits, as_list, usual_splits
from ssd_lightning.data.formats.voc_xml import read_xml
from ssd_lightning.data.pictures import PICTURE_SUFFIXES
from ssd_lightning.require import read_bytes

LISTS = ("ImageSets/Main", "ImageSets", "")
"""Folders with lists of pictures; the first that holds any is used. In the last one, only lists of a split count."""

LARGEST_LIST = 2**30
"""Bytes of the largest list of pictures that is read."""

WHOLE = {"default", "all"}
"""Names of lists that tools write for all pictures, which are no split."""


class VOCPictures(SplitData):
    """Pictures of lists of xml files, for training, scoring and test; subclasses provide the lists.

    The arguments are those of :class:`~ssd_lightning.data.formats.splits.SplitData`.
    """

    searched = "xml files beside the pictures or in Annotations"

    @abstractmethod
    def xml_files(self) -> tuple[list[str], list[str] | None, list[str] | None]:
        """Return the xml files for training, scoring and test.

        ``None`` in the second place: the files to score on are drawn from the first. ``None`` in the last place: there
        is no test.
        """

    @property
    def folder(self) -> Path:
        """The folder that holds all pictures and annotations."""
        return self.root

    @cached_property
    def files(self) -> DataFolder:
        """Index of the files of the folder."""
        return DataFolder(self.folder)

    def read(self) -> Splits:
        """Read the xml files of all splits."""
        lists = self.xml_files()
        # A picture may be in several lists, which ssd-check reports.
        sources = list(dict.fromkeys(path for paths in lists for path in paths or ()))
        key = limited_key(f"voc {self.root.resolve()}", self.max_megapixels)

        def read(path: str) -> PictureAnnotation:
            return read_xml(path, self.files, self.max_megapixels)

        everything, findings = read_annotations(sources, read, "voc", key, [self.files])
        row_of = {source: row for row, source in enumerate(everything.sources)}

        def selected(paths: list[str]) -> Annotations:
            return everything.select(np.array([row_of[path] for path in paths if path in row_of], dtype=np.int64))

        train, val, test = (None if paths is None else selected(paths) for paths in lists)
        assert train is not None
        return Splits(train, val, test, findings, self.remarks(everything))

    def remarks(self, annotations: Annotations) -> list[Finding]:
        """Return remarks on the folder, which do not stop training."""
        return []


class VOCFolder(VOCPictures):
    """A folder of pictures with VOC-style xml files.

    Lists ``ImageSets/Main/train.txt`` and ``val.txt``, or folders of these names, split the pictures. ``trainval``
    stands for ``train``, and ``test``, ``valid`` and ``validation`` for ``val``. ``test`` beside ``train`` and ``val``
    is the test at the end of a training, if it has xml files. Lists of one class such as ``dog_train.txt`` are joined;
    their flags are not used. Without lists or folders, a share of all pictures is drawn for scoring, class by class. A
    picture lies beside its xml, or in ``JPEGImages``, ``images`` and the like beside the folder of the xml. Hidden
    files and folders are not read.

    Args:
        root: see :class:`VOCPictures`; the folder is searched with its subfolders.
        classes: see :class:`VOCPictures`.
        val_share: see :class:`VOCPictures`.
        seed: see :class:`VOCPictures`.
        difficult: see :class:`VOCPictures`.
        fix: see :class:`VOCPictures`.
        train: names of the lists or folders to train on. ``None``: the names above.
        val: names of the lists or folders to score on.
        test: names of the lists or folders for the test. ``None``: ``test``, unless ``train`` and ``val`` are given.
        test_share: see :class:`VOCPictures`.
        boxes_of: see :class:`VOCPictures`.
        max_megapixels: see :class:`VOCPictures`.
    """

    def __init__(
        self,
        root: Path | str,
        classes: Sequence[str] | None = None,
        val_share: float = 0.2,
        seed: int = 0,
        difficult: bool = True,
        fix: Fix | None = None,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        test_share: float = 0.0,
        boxes_of: BoxesOf = "shown",
        max_megapixels: float | None = None,
    ) -> None:
        super().__init__(
            root, classes, difficult, fix, val_share, test_share, seed, boxes_of=boxes_of, max_megapixels=max_megapixels
        )
        if (train is None) != (val is None):
            raise ValueError(f"train, val: expected names for both or for none, got train={train}, val={val}")
        self.names = as_list(train), as_list(val), as_list(test)

    def xml_files(self) -> tuple[list[str], list[str] | None, list[str] | None]:
        """Return the xml files for training, scoring and test, as :meth:`VOCPictures.xml_files`."""
        xml = [file for file in self.files.files if file.lower().endswith(".xml")]
        place, lists = self._lists()
        folders: dict[str, list[str]] = defaultdict(list)
        for file in xml:
            for part in dict.fromkeys(file.casefold().split("/")[:-1]):
                folders[part].append(self.files.path(file))
        given = [
            None if names is None else self._named(key, names, place, lists, folders)
            for key, names in zip(("data.train", "data.val", "data.test"), self.names, strict=True)
        ]
        if given[0] is not None:
            return given[0], given[1], given[2]
        # The lists or folders of a given test take no part in the other splits.
        held_out = {_folded(name) for name in self.names[2] or ()}
        lists = {name: stem for name, stem in lists.items() if name not in held_out}
        ends = {name: _of_split(lists, name) for name in SPLIT_NAMES}
        found = usual_splits({name for name, stems in ends.items() if stems})
        if found is not None and (found.val or held_out):
            val, test = (self._joined(place, ends[name]) if name else None for name in found[1:])
            is_annotated = test is not None and any(map(os.path.exists, test))
            return self._joined(place, ends[found.train]), val, given[2] or (test if is_annotated else None)
        if len(lists) == 1 and lists.keys() <= WHOLE:
            return self._joined(place, list(lists.values())), None, given[2]
        if lists:
            told = ", ".join(sorted(lists.values()))
            raise ValueError(
                f"data.root: expected lists train and val, or trainval and test, got {told} in {self.root / place}. "
                f"Try data.train=<list> data.val=<list>"
            )
        found = usual_splits(folders.keys() - held_out)
        if found is not None and found.val:
            return folders[found.train], folders[found.val], given[2] or (folders[found.test] if found.test else None)
        tested = set(given[2] or ())
        return [path for path in map(self.files.path, xml) if path not in tested], None, given[2]

    def _lists(self) -> tuple[str, dict[str, str]]:
        """Return the folder of lists and the names of the lists in it, by the name in lower case."""
        for place in LISTS:
            inside = [file for file in self.files.files if file.rpartition("/")[0].casefold() == place.casefold()]
            stems = [os.path.splitext(file.rpartition("/")[2])[0] for file in inside if file.lower().endswith(".txt")]
            lists = {stem.casefold(): stem for stem in stems}
            if not place:
                # A folder of pictures has all kinds of texts, such as a readme.
                lists = {name: stem for name, stem in lists.items() if name in SPLIT_NAMES}
                lists = lists if len(lists) > 1 else {}
            if lists:
                return place, lists
        return "", {}

    def _named(
        self, key: str, names: list[str], place: str, lists: dict[str, str], folders: dict[str, list[str]]
    ) -> list[str]:
        found = []
        for name in names:
            folded = _folded(name)
            if folded in lists:
                found += self._joined(place, [lists[folded]])
            elif folded in folders:
                found += folders[folded]
            else:
                there = ", ".join(sorted({*lists.values(), *folders})) or "none"
                raise ValueError(f"{key}: expected names of lists or folders ({there}), got {name}")
        return found

    def _joined(self, place: str, names: Sequence[str]) -> list[str]:
        files = [f"{place}/{name}.txt".lstrip("/") for name in names]
        listed = [path for file in files for path in listed_xml(self.files, self.files.at(file) or file)]
        return list(dict.fromkeys(listed)) if len(names) > 1 else listed

    def remarks(self, annotations: Annotations) -> list[Finding]:
        """Return a remark on the pictures without xml."""
        with_xml = {os.path.splitext(_name(file))[0] for file in self.files.files if file.lower().endswith(".xml")}
        used = {self.files.relative(picture) for picture in annotations.pictures}
        without = [
            file
            for file in self.files.files
            if is_picture(file)
            and file not in used
            and os.path.splitext(_name(file))[0] not in with_xml
            and _name(file) not in with_xml
        ]
        if not without:
            return []
        first = self.files.path(without[0])
        return [
            Finding("unannotated", f"{first}: expected an xml file, got none; pictures without one: {len(without)}")
        ]


def _folded(name: str) -> str:
    """Return the name of a list or folder in the form in which names are compared."""
    return name.casefold().removesuffix(".txt")


def _of_split(lists: dict[str, str], split: str) -> list[str]:
    """Return the list of a split, or else the lists of the split for one class each."""
    if split in lists:
        return [lists[split]]
    return [stem for name, stem in lists.items() if name.endswith(f"_{split}")]


def _name(file: str) -> str:
    return file.rpartition("/")[2]


def listed_xml(files: DataFolder, list_file: str) -> list[str]:
    """Return the xml files of the pictures in a list, in its order.

    Args:
        files: folder of the data.
        list_file: a text file in it, with one picture per line. A line may have a folder, the suffix of the picture,
            and the flag of VOC's lists of one class.

    Raises:
        ValueError: if the list cannot be read; the message names it.
    """
    path = files.path(list_file)
    try:
        content = read_bytes(path, LARGEST_LIST)
    except OSError as error:
        raise ValueError(f"{path}: expected a list of pictures ({error.strerror})") from error
    lines = (line.strip() for line in text_of(content, path).replace("\ufeff", "").split("\n"))
    return [_xml_of(files, line) for line in lines if line]


def _xml_of(files: DataFolder, line: str) -> str:
    names = [line]
    name, *flag = line.rsplit(maxsplit=1)
    # Names may have spaces, too.
    if flag in (["-1"], ["0"], ["1"]):
        names.append(name)
    candidates = []
    for name in names:
        stem, suffix = os.path.splitext(name)
        candidates += (
            [f"{name}.xml", f"{stem}.xml"] if suffix.lower() in {".xml", *PICTURE_SUFFIXES} else [f"{name}.xml"]
        )
    for find in (lambda name: files.find(name, ("Annotations", "")), files.only):
        found = next((file for file in map(find, candidates) if file is not None), None)
        if found is not None:
            return files.path(found)
    return os.path.join(files.root, "Annotations", f"{line}.xml")
