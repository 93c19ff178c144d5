"""Pictures annotated in one json file, in the format of COCO, which most labelling tools export."""

import json
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssd_lightning.data.folders import DataFolder, picture_places
from ssd_lightning.data.formats import scalars
from ssd_lightning.data.formats.annotations import Annotations, PictureAnnotation, as_columns
from ssd_lightning.data.formats.cache import in_parallel, keep_annotations, known_annotations, stamps
from ssd_lightning.data.formats.findings import Finding, Fix
from ssd_lightning.data.formats.splits import PURPOSES, SplitData, Splits
from ssd_lightning.data.pictures import picture_size

LAYOUTS = (
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json", None),
    ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
    ("annotations/instances_Train.json", "annotations/instances_Validation.json", "annotations/instances_Test.json"),
    ("annotations/instances_Train.json", "annotations/instances_Test.json", None),
)
"""Places of the json files for training, scoring and test, in COCO itself and in exports of Roboflow and CVAT.

The case of letters may differ. The file for the test may be missing."""


class COCO(SplitData):
    """Pictures with boxes from COCO-style json files.

    The ``file_name`` of a picture is searched for in the folder of pictures. If no folder is given, the places are
    beside the json, ``root``, its folder ``images``, and the folder that the json is named after (``train2017`` for
    ``instances_train2017.json``). Folders of another computer at the beginning of a ``file_name`` are left out. The
    last resort is the only file of this name. Hidden files and files outside these folders are
    never read. Class ids may have gaps: labels follow the order of the ids. Crowds are left out in training, and are
    neither found nor missed in scoring.

    Args:
        root: folder that relative paths start from.
        annotations: json file. ``None``: the files of COCO 2017 or of an export of Roboflow.
        val_annotations: json file of the pictures to score on. ``None``: a share of ``annotations`` is drawn.
        pictures: folder of the pictures; ``None``: see above.
        val_pictures: folder of the pictures to score on; ``None``: ``pictures``.
        classes: names in the order of their labels. ``None``: all categories of the json, in the order of their ids.
        val_share: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        seed: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        fix: treatment of faults, see :data:`~ssd_lightning.data.formats.findings.Fix`; ``None``: training stops at the
            first fault. ``skip`` also leaves out objects of other classes than the given ones.
        test_annotations: json file of the pictures for the test at the end of a training. ``None``: the file of an
            export of Roboflow or CVAT, if ``annotations`` is not given.
        test_pictures: folder of the pictures for the test; ``None``: ``pictures``.
        test_share: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
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
        test_annotations: Path | str | None = None,
        test_pictures: Path | str | None = None,
        test_share: float = 0.0,
    ) -> None:
        # Crowds are difficult objects.
        super().__init__(root, classes, False, fix, val_share, test_share, seed)
        if annotations is None and val_annotations is not None:
            raise ValueError(f"annotations: expected a json file beside val_annotations={val_annotations}, got null")
        self.files = {
            "annotations": annotations,
            "val_annotations": val_annotations,
            "test_annotations": test_annotations,
        }
        self.folders = (pictures, val_pictures or pictures, test_pictures or pictures)

    def prepare(self) -> None:
        """Check that the files are there; COCO is not downloaded.

        Raises:
            ValueError: if a folder or file is missing.
        """
        self.json_files()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their labels."""
        return self.given_classes or tuple(self.annotations.train.vocabulary)

    def json_files(self) -> tuple[Path, Path | None, Path | None]:
        """Return the json files for training, scoring and test.

        ``None`` in the second place: the pictures to score on are drawn. ``None`` in the last place: there is no test.
        """
        if not self.root.is_dir():
            raise ValueError(f"data.root: expected a folder, got {self.root}, which does not exist")
        given = {key: None if name is None else _below(self.root, name) for key, name in self.files.items()}
        for key, path in given.items():
            if path is not None and not path.is_file():
                raise ValueError(f"data.{key}: expected a file, got {path}, which does not exist")
        train, val, test = given.values()
        if train is not None:
            return train, val, test
        for layout in LAYOUTS:
            train, val, own = (None if name is None else _file_at(self.root, name) for name in layout)
            if train is not None and val is not None:
                return train, val, test or own
        known = ", or ".join(f"{train} and {val}" for train, val, _ in LAYOUTS)
        raise ValueError(f"data.root: expected a folder with {known}, got {self.root}. Try data.annotations=<file>")

    def read(self) -> Splits:
        """Read the json files of all splits."""
        indexes: dict[Path, DataFolder] = {}
        parts: list[Annotations | None] = []
        findings: list[Finding] = []
        for purpose, path, folder in zip(PURPOSES, self.json_files(), self.folders, strict=True):
            if path is None:
                parts.append(None)
                continue
            part, found = read_json(path, self.root, None if folder is None else _below(self.root, folder), indexes)
            if not part.sources and not found:
                raise ValueError(f"{path}: images: expected at least one for {purpose}, got none")
            parts.append(part)
            findings += found
        train, val, test = parts
        assert train is not None
        # The pictures of a test may have been published without their annotations.
        is_annotated = self.files["test_annotations"] is not None or (test is not None and test.counts.any())
        return Splits(train, val, test if is_annotated else None, findings, [])


def read_json(
    path: Path, root: Path, folder: Path | None = None, indexes: dict[Path, DataFolder] | None = None
) -> tuple[Annotations, list[Finding]]:
    """Return the annotations in one file, and findings about the pictures that cannot be read.

    The file is parsed again only if the file or one of the pictures has changed.

    Args:
        path: json file.
        root: folder of the data.
        folder: folder of the pictures; ``None``: the usual ones.
        indexes: indexes of folders that have been read already; new ones are added.

    Raises:
        ValueError: if the file is not in the format of COCO; the message names the file and the place.
    """
    key = f"coco {path.resolve()} {root.resolve()} {folder}"
    stamp = stamps([str(path)])
    known = known_annotations(key, str(path))
    if known is not None:
        return known, []
    content = _parsed(path)
    category_ids = _distinct_ids(content, "categories", path)
    categories = dict(
        zip(category_ids, (scalars.name(entry.get("name")) for entry in content["categories"]), strict=True)
    )
    names = [categories[number] for number in sorted(categories, key=_in_order)]
    if "" in names or len(set(names)) != len(names):
        raise ValueError(f"{path}: categories: expected a name for each, and each once, got {names}")
    objects: dict[Hashable, list[_Entry]] = {number: [] for number in _distinct_ids(content, "images", path)}
    spoilt: dict[Hashable, str] = {}
    for position, entry in enumerate(content["annotations"], 1):
        # The ids of annotations mean nothing here.
        what = f"annotation {entry.get('id', f'at position {position}')}"
        place = f"{path}, {what}"
        image, category = (scalars.identity(entry, key, place) for key in ("image_id", "category_id"))
        if image not in objects:
            raise ValueError(f"{place}: image_id: expected an id of one of the images, got {image!r}")
        if category not in categories:
            known_ids = sorted(categories, key=_in_order)
            raise ValueError(f"{place}: category_id: expected one of {known_ids}, got {category!r}")
        box = entry.get("bbox")
        try:
            if not (isinstance(box, list) and len(box) == 4 and all(_is_finite(value) for value in box)):
                raise ValueError(f"{what}: bbox: expected left, top, width, height in pixels, got {box}")
            is_crowd = scalars.flag(entry.get("iscrowd"), f"{what}: iscrowd")
        except ValueError as error:
            # Such an entry makes its picture unreadable, as it does in an xml file.
            spoilt.setdefault(image, str(error))
            continue
        left, top, width, height = map(float, box)
        objects[image].append(_Entry(categories[category], (left, top, left + width, top + height), is_crowd))
    searches = _searches(path, root, folder, {} if indexes is None else indexes)

    def read(entry: dict[str, Any]) -> PictureAnnotation | Finding:
        source = f"{path}, image {entry['id']} ({entry.get('file_name')})"
        if entry["id"] in spoilt:
            return Finding("unreadable", f"{source}, {spoilt[entry['id']]}")
        try:
            picture = _picture(source, entry, searches)
            size = picture_size(Path(picture))
        except ValueError as error:
            return Finding("unreadable", str(error))
        mine = objects[entry["id"]]
        told = scalars.side(entry.get("height")), scalars.side(entry.get("width"))
        return PictureAnnotation(
            source, picture, size, told, [e.name for e in mine], [e.box for e in mine], [e.is_crowd for e in mine]
        )

    answers = in_parallel(read, content["images"], "Reading pictures")
    rows = [answer for answer in answers if isinstance(answer, PictureAnnotation)]
    annotations = as_columns(rows, "coco", names)
    findings = [answer for answer in answers if isinstance(answer, Finding)]
    if not findings:
        keep_annotations(key, stamp, annotations)
    return annotations, findings


def _in_order(number: Hashable) -> tuple[bool, Any]:
    """Return the key to sort ids by: numbers first, then texts."""
    return isinstance(number, str), number


class _Search(NamedTuple):
    """A folder to search for pictures, and the likely places in it."""

    files: DataFolder
    places: list[str]


def _searches(path: Path, root: Path, folder: Path | None, indexes: dict[Path, DataFolder]) -> list[_Search]:
    """Return where the pictures of a json file are searched for."""

    def index(folder: Path) -> DataFolder:
        return indexes.setdefault(folder, DataFolder(folder))

    if folder is not None:
        return [_Search(index(folder), [""])]
    subset = path.stem.rpartition("_")[2]
    inside = index(root).relative(path.parent)
    own = [] if inside is None else picture_places(inside)
    places = [*own[:1], "", "images", subset, f"images/{subset}", *own[1:]]
    found = [_Search(index(root), list(dict.fromkeys(places)))]
    # A json outside of the data folder was named by the user, so that its own folder is searched, too.
    return found if inside is not None else [_Search(index(path.parent), [""]), *found]


class _Entry(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    is_crowd: bool


PARTS = ("images", "annotations", "categories")
"""Lists of a json that are read."""


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as json ({error})") from error
    for key in PARTS:
        entries = content.get(key) if isinstance(content, dict) else None
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError(f"{path}: {key}: expected a list of objects, as in COCO, got {str(entries)[:200]}")
    return {key: content[key] for key in PARTS}


def _distinct_ids(content: dict[str, list[dict[str, Any]]], kind: str, path: Path) -> list[Hashable]:
    ids = [scalars.identity(entry, "id", f"{path}: {kind}") for entry in content[kind]]
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {kind}: expected each id once, got {repeated[0]!r} more often")
    return ids


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _picture(source: str, entry: dict[str, Any], searches: Sequence[_Search]) -> str:
    name = scalars.name(entry.get("file_name"))
    found = next((s.files.path(file) for s in searches if (file := s.files.find(name, s.places)) is not None), None)
    found = found or next((s.files.path(file) for s in searches if (file := s.files.only(name)) is not None), None)
    if found is None:
        places = ", ".join(str(Path(search.files.root, place)) for search in searches for place in search.places[:5])
        there = ", ".join(filter(None, (search.files.candidates(name) for search in searches)))
        raise ValueError(
            f"{source}: file_name: expected a picture in {places}, got {name!r}"
            + f", which may be {there}. Try data.pictures=<folder>" * bool(there)
        )
    return found


def _file_at(root: Path, name: str) -> Path | None:
    """Return a file whose name may differ in the case of letters."""
    if (root / name).is_file():
        return root / name
    *folders, file = name.split("/")
    folder = root.joinpath(*folders)
    alike = [path for path in folder.glob("*") if path.name.casefold() == file.casefold()]
    return alike[0] if len(alike) == 1 else None


def _below(root: Path, name: Path | str) -> Path:
    """Return a path that exists in the working folder as it is, and any other path in ``root``."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or path.exists() else root / path
