"""Pictures annotated in one json file, in the format of COCO, which most labelling tools export."""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssd_lightning.data.folders import DataFolder, picture_places
from ssd_lightning.data.formats import scalars
from ssd_lightning.data.formats.annotations import Annotations, BoxesOf, PictureAnnotation, as_columns
from ssd_lightning.data.formats.cache import in_parallel, keep_annotations, known_annotations, limited_key, stamps
from ssd_lightning.data.formats.findings import Finding, Fix
from ssd_lightning.data.formats.scalars import brief, shown
from ssd_lightning.data.formats.splits import PURPOSES, SplitData, Splits
from ssd_lightning.data.pictures import read_header
from ssd_lightning.require import read_bytes

LAYOUTS = (
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json", None),
    ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
    ("annotations/instances_Train.json", "annotations/instances_Validation.json", "annotations/instances_Test.json"),
    ("annotations/instances_Train.json", "annotations/instances_Val.json", "annotations/instances_Test.json"),
    ("annotations/instances_Train.json", "annotations/instances_Test.json", None),
)
"""Places of the json files for training, scoring and test, in COCO itself and in exports of Roboflow and CVAT.

The case of letters may differ. The file for the test may be missing."""


VAL_NAMES = ("val", "valid", "validation")
"""Words in place of ``train`` in the name of the json file of the pictures to score on, or of its folder."""

LARGEST_JSON = 2**34
"""Bytes of the largest json file that is read."""

logger = logging.getLogger(__name__)


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
        val_annotations: json file of the pictures to score on. ``None``: the file beside ``annotations`` whose name
            has ``val``, ``valid`` or ``validation`` for ``train``; without it, a share of ``annotations`` is drawn.
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
        boxes_of: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
        max_megapixels: see :class:`~ssd_lightning.data.formats.splits.SplitData`.
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
        boxes_of: BoxesOf = "shown",
        max_megapixels: float | None = None,
    ) -> None:
        # Crowds are difficult objects.
        super().__init__(
            root, classes, False, fix, val_share, test_share, seed, boxes_of=boxes_of, max_megapixels=max_megapixels
        )
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
        try:
            return self._json_files()
        except PermissionError as error:
            raise ValueError(
                f"data.root: expected a readable folder, got {Path(error.filename).parent} ({error.strerror})"
            ) from error

    def _json_files(self) -> tuple[Path, Path | None, Path | None]:
        if not self.root.is_dir():
            raise ValueError(f"data.root: expected a folder, got {self.root}, which does not exist")
        given = {key: None if name is None else _below(self.root, name) for key, name in self.files.items()}
        for key, path in given.items():
            if path is not None and not path.is_file():
                reason = "is no file" if path.exists() else "does not exist"
                raise ValueError(f"data.{key}: expected a file, got {path}, which {reason}")
        train, val, test = given.values()
        if train is not None:
            beside = _val_beside(train) if val is None else None
            if beside is not None:
                logger.info("%s: the pictures to score on, by its name beside %s", beside, train)
            return train, val or beside, test
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
            inside = None if folder is None else _below(self.root, folder)
            part, found = read_json(path, self.root, inside, indexes, self.max_megapixels)
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
    path: Path,
    root: Path,
    folder: Path | None = None,
    indexes: dict[Path, DataFolder] | None = None,
    max_megapixels: float | None = None,
) -> tuple[Annotations, list[Finding]]:
    """Return the annotations in one file, and findings about the pictures that cannot be read.

    The file is parsed again only if the file or one of the pictures has changed.

    Args:
        path: json file.
        root: folder of the data.
        folder: folder of the pictures; ``None``: the usual ones.
        indexes: indexes of folders that have been read already; new ones are added.
        max_megapixels: see :func:`~ssd_lightning.data.pictures.read_header`.

    Raises:
        ValueError: if the file is not in the format of COCO; the message names the file and the place.
    """
    key = limited_key(f"coco {path.resolve()} {root.resolve()} {folder}", max_megapixels)
    stamp = stamps([str(path)])
    searches = _searches(path, root, folder, {} if indexes is None else indexes)
    folders = [search.files for search in searches]
    known = known_annotations(key, str(path), folders)
    if known is not None:
        return known, []
    content = _parsed(path)
    category_ids = _distinct_ids(content, "categories", path)
    told = (scalars.class_name(entry.get("name"), f"{path}: categories: name") for entry in content["categories"])
    categories = dict(zip(category_ids, told, strict=True))
    names = [categories[number] for number in sorted(categories, key=_in_order)]
    if "" in names or len(set(names)) != len(names):
        raise ValueError(f"{path}: categories: expected a name for each, and each once, got {shown(names)}")
    objects: dict[Hashable, list[_Entry]] = {number: [] for number in _distinct_ids(content, "images", path)}
    spoilt: dict[Hashable, str] = {}
    for position, entry in enumerate(content["annotations"], 1):
        # The ids of annotations mean nothing here.
        what = f"annotation {brief(entry['id']) if 'id' in entry else f'at position {position}'}"
        place = f"{path}, {what}"
        image, category = (scalars.identity(entry, key, place) for key in ("image_id", "category_id"))
        if image not in objects:
            raise ValueError(f"{place}: image_id: expected an id of one of the images, got {shown(image)}")
        if category not in categories:
            known_ids = sorted(categories, key=_in_order)
            raise ValueError(f"{place}: category_id: expected one of {shown(known_ids)}, got {shown(category)}")
        try:
            _refuse_repeated(entry, what)
            edges, is_around = _edges(entry, what)
            is_crowd = scalars.flag(entry.get("iscrowd"), f"{what}: iscrowd")
        except ValueError as error:
            # Such an entry makes its picture unreadable, as it does in an xml file.
            spoilt.setdefault(image, str(error))
            continue
        objects[image].append(_Entry(categories[category], edges, is_crowd, is_around))

    def read(entry: dict[str, Any]) -> PictureAnnotation | Finding:
        source = f"{path}, image {brief(entry['id'])} ({brief(entry.get('file_name'))})"
        if entry["id"] in spoilt:
            return Finding("unreadable", f"{source}, {spoilt[entry['id']]}")
        try:
            _refuse_repeated(entry, source)
            picture = _picture(source, entry, searches)
            header = read_header(Path(picture), max_megapixels)
        except ValueError as error:
            return Finding("unreadable", str(error))
        mine = objects[entry["id"]]
        told = scalars.side(entry.get("height")), scalars.side(entry.get("width"))
        return PictureAnnotation(
            source,
            picture,
            header.size,
            told,
            [e.name for e in mine],
            [e.box for e in mine],
            [e.is_crowd for e in mine],
            orientation=header.orientation,
            polygons=sum(e.is_around for e in mine),
        )

    answers = in_parallel(read, content["images"], "Reading pictures")
    rows = [answer for answer in answers if isinstance(answer, PictureAnnotation)]
    annotations = as_columns(rows, "coco", names)
    findings = [answer for answer in answers if isinstance(answer, Finding)]
    if not findings:
        keep_annotations(key, stamp, annotations, folders)
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
    is_around: bool
    """True for a box that is made from a polygon."""


def _edges(entry: dict[str, Any], what: str) -> tuple[tuple[float, float, float, float], bool]:
    """Return the edges of an object, and whether they go around a polygon because no box is given."""
    box, parts = entry.get("bbox"), entry.get("segmentation")
    if box in (None, []) and parts:
        # Some tools leave out the outer list of a single polygon.
        polygons = [parts] if isinstance(parts, list) and not isinstance(parts[0], list) else parts
        if not isinstance(polygons, list) or not all(map(_is_polygon, polygons)):
            told = f"expected polygons x1, y1, x2, y2, x3, y3, … in pixels, got {shown(parts)}"
            raise ValueError(f"{what}: bbox: expected left, top, width, height, got none; segmentation: {told}")
        across, down = ([float(value) for part in polygons for value in part[first::2]] for first in (0, 1))
        return (min(across), min(down), max(across), max(down)), True
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_coordinate, box))):
        raise ValueError(f"{what}: bbox: expected left, top, width, height in pixels, got {shown(box)}")
    left, top, width, height = map(float, box)
    return (left, top, left + width, top + height), False


def _is_polygon(part: object) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_is_coordinate, part))


def _is_coordinate(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(scalars.coordinate(value))


PARTS = ("images", "annotations", "categories")
"""Lists of a json that are read."""


class _Repeated(dict[str, Any]):
    """An object in which a key occurs more than once; it has the last value of each."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(pairs)


def _refuse_repeated(entry: object, place: str, keys: Sequence[str] | None = None) -> None:
    """Raise an error if one of some keys occurs more than once in an object; ``None``: any key."""
    repeated = [key for key in getattr(entry, "repeated", []) if keys is None or key in keys]
    if repeated:
        raise ValueError(f"{place}: expected each key once, got {shown(repeated[0])} more often")


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(read_bytes(path, LARGEST_JSON), object_pairs_hook=_as_object)
    except RecursionError:
        raise ValueError(f"{path}: cannot be read as json (lists or objects in each other are too deep)") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as json ({error})") from error
    _refuse_repeated(content, str(path), PARTS)
    for key in PARTS:
        entries = content.get(key) if isinstance(content, dict) else None
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError(f"{path}: {key}: expected a list of objects, as in COCO, got {shown(entries)}")
    # A picture or an annotation with another repeated key is a finding.
    for key, ids in (("images", ["id"]), ("categories", None), ("annotations", ["image_id", "category_id"])):
        for entry in content[key]:
            _refuse_repeated(entry, f"{path}: {key}", ids)
    return {key: content[key] for key in PARTS}


def _distinct_ids(content: dict[str, list[dict[str, Any]]], kind: str, path: Path) -> list[Hashable]:
    ids = [scalars.identity(entry, "id", f"{path}: {kind}") for entry in content[kind]]
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {kind}: expected each id once, got {shown(repeated[0])} more often")
    return ids


def _picture(source: str, entry: dict[str, Any], searches: Sequence[_Search]) -> str:
    name = scalars.name(entry.get("file_name"))
    found = next((s.files.path(file) for s in searches if (file := s.files.find(name, s.places)) is not None), None)
    found = found or next((s.files.path(file) for s in searches if (file := s.files.only(name)) is not None), None)
    if found is None:
        places = ", ".join(str(Path(search.files.root, place)) for search in searches for place in search.places[:5])
        there = ", ".join(filter(None, (search.files.candidates(name) for search in searches)))
        raise ValueError(
            f"{source}: file_name: expected a picture in {places}, got {shown(name)}"
            + f", which may be {there}. Try data.pictures=<folder>" * bool(there)
        )
    return found


def _val_beside(train: Path) -> Path | None:
    """Return the json file whose name, or whose folder, has ``val`` for ``train``; ``None`` without such a file."""
    word = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)
    for name in VAL_NAMES:
        file, folder = word.sub(name, train.name), word.sub(name, train.parent.name)
        places = [(train.parent, file)] * (file != train.name)
        places += [(train.parent.with_name(folder), file)] * (folder != train.parent.name)
        for place, other in places:
            found = _file_at(place, other)
            if found is not None:
                return found
    return None


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
