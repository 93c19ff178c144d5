"""A cache of annotations: the first run reads all files, and later runs read only the files that have changed.

The cache is in ``$SSD_CACHE``, or else in ``ssd_lightning`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, because the folder
of the data may be read-only. It can be deleted at any time.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track

from ssd_lightning.data.folders import DataFolder, is_picture
from ssd_lightning.data.formats.annotations import (
    WRITINGS,
    Annotations,
    Format,
    PictureAnnotation,
    as_columns,
    concatenate,
)
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.require import require_regular
from ssd_lightning.run_folder import written_whole

LAYOUT = 5
"""Version of the cache files; a new number makes all annotations be read again."""

TEXTS = ("sources", "pictures", "vocabulary", "splits", "listing")
"""The columns of texts."""

logger = logging.getLogger(__name__)


class Stored(NamedTuple):
    """Annotations, and the stamps of their files at the time of reading."""

    annotations: Annotations
    source_stamps: Int[np.ndarray, "pictures 2"]
    picture_stamps: Int[np.ndarray, "pictures 2"]
    listing: list[str]
    """The files of pictures that were there, among which those of the annotations were searched."""


def listing_of(folders: Iterable[DataFolder]) -> list[str]:
    """Return the paths of the pictures in some folders."""
    return [folder.path(file) for folder in folders for file in folder.files if is_picture(file)]


def stamps(paths: Sequence[str]) -> Int[np.ndarray, "files 2"]:
    """Return the time of the last change in nanoseconds and the size in bytes of each file; -1 for missing files."""
    return np.array([_stamp(path) for path in paths], dtype=np.int64).reshape(-1, 2)


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_mtime_ns, status.st_size


def read_annotations(
    sources: Sequence[str],
    read: Callable[[str], PictureAnnotation],
    box_format: Format,
    key: str,
    folders: Iterable[DataFolder] = (),
) -> tuple[Annotations, list[Finding]]:
    """Return the annotations of one picture per file, in order, and findings about the files that cannot be read.

    Args:
        sources: annotation files.
        read: reader of one file, which raises a ValueError with the name of a file that it cannot read.
        box_format: format of the boxes in these files.
        key: name of the cache, the same for all files of one folder.
        folders: folders in which the reader searches for pictures.
    """
    known = load(key)
    listing = listing_of(folders)
    now = stamps(sources)
    rows = np.full(len(sources), -1)
    if known is not None:
        row_of = {source: row for row, source in enumerate(known.annotations.sources)}
        rows = np.array([row_of.get(source, -1) for source in sources], dtype=np.int64)
        found = np.flatnonzero(rows >= 0)
        is_same = (known.source_stamps[rows[found]] == now[found]).all(axis=1)
        pictures = [known.annotations.pictures[row] for row in rows[found]]
        is_same &= (known.picture_stamps[rows[found]] == stamps(pictures)).all(axis=1)
        is_same &= ~_may_have_another_picture(known, listing)[rows[found]]
        rows[found[~is_same]] = -1
        if (rows >= 0).all():
            return known.annotations.select(rows), []
    fresh = np.flatnonzero(rows < 0).tolist()
    read_rows = in_parallel(lambda row: _read(sources[row], read), fresh, "Reading annotations")
    findings = [answer for answer in read_rows if isinstance(answer, Finding)]
    readable = [row for row, answer in zip(fresh, read_rows, strict=True) if not isinstance(answer, Finding)]
    new = as_columns([answer for answer in read_rows if isinstance(answer, PictureAnnotation)], box_format)
    kept = np.flatnonzero(rows >= 0)
    parts = [new] if known is None else [known.annotations.select(rows[kept]), new]
    order = np.argsort(np.concatenate((kept, np.array(readable, dtype=np.int64))), kind="stable")
    annotations = concatenate(parts).select(order)
    position = np.sort(np.concatenate((kept, np.array(readable, dtype=np.int64))))
    stored = Stored(annotations, now[position], stamps(annotations.pictures), listing)
    save(key, stored if known is None else _with_others(stored, known, sources))
    return annotations, findings


def _may_have_another_picture(known: Stored, listing: Sequence[str]) -> Bool[np.ndarray, " pictures"]:
    """Return True for the annotations for which a search may find another, new picture: one with a name like theirs."""
    added = {_stem(path) for path in set(listing).difference(known.listing)}
    if not added:
        return np.zeros(len(known.annotations.sources), dtype=bool)
    pairs = zip(known.annotations.sources, known.annotations.pictures, strict=True)
    return np.array([not added.isdisjoint(map(_stem, pair)) for pair in pairs], dtype=bool)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0].casefold()


def _with_others(stored: Stored, known: Stored, sources: Sequence[str]) -> Stored:
    """Add the cached annotations of other files that still exist, since several lists may be read from one folder."""
    asked_for = set(sources)
    there = stamps(known.annotations.sources)[:, 1] >= 0
    there &= ~_may_have_another_picture(known, stored.listing)
    rows = np.array([row for row, s in enumerate(known.annotations.sources) if there[row] and s not in asked_for], int)
    if len(rows) == 0:
        return stored
    return Stored(
        concatenate([stored.annotations, known.annotations.select(rows)]),
        np.concatenate((stored.source_stamps, known.source_stamps[rows])),
        np.concatenate((stored.picture_stamps, known.picture_stamps[rows])),
        stored.listing,
    )


def _read(source: str, read: Callable[[str], PictureAnnotation]) -> PictureAnnotation | Finding:
    try:
        return read(source)
    except ValueError as error:
        return Finding("unreadable", str(error))


AT_ONCE = 32
"""Largest number of files that a thread reads before the progress is shown."""

Given = TypeVar("Given")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Given], Result], items: Sequence[Given], description: str) -> list[Result]:
    """Apply a function in threads, and return the results in order; a terminal shows a progress bar."""
    console = Console(stderr=True)
    # A thread takes several items at once, since handing over an item takes longer than reading a small file.
    size = max(1, min(AT_ONCE, len(items) // 100))
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda part: list(map(function, part)), parts)
        shown = track(
            results, description, total=len(parts), console=console, transient=True, disable=not console.is_terminal
        )
        return list(itertools.chain.from_iterable(shown))


def load(key: str) -> Stored | None:
    """Return what was saved under that name, or None if nothing can be read."""
    try:
        require_regular(cache_file(key))
        with np.load(cache_file(key), allow_pickle=False) as file:
            return _stored({name: file[name] for name in file.files})
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files.
        logger.warning("%s: cannot be read and is written again (%s)", cache_file(key), error)
        return None


def _stored(columns: dict[str, Any]) -> Stored:
    texts = {name: _split(columns.pop(name)) for name in TEXTS}
    source_stamps, picture_stamps = columns.pop("source_stamps"), columns.pop("picture_stamps")
    listing = texts.pop("listing")
    stored = Stored(
        Annotations(**{**columns, **texts, "box_format": str(columns["box_format"])}),
        source_stamps,
        picture_stamps,
        listing,
    )
    _check(stored)
    return stored


def _check(stored: Stored) -> None:
    """Raise an error if the columns do not belong together; a zip file can be whole with rows missing."""
    known = stored.annotations
    rows, objects = len(known.sources), int(known.counts.sum())
    shapes = (
        ((rows,), (known.counts, known.orientations, known.polygons)),
        ((rows, 2), (known.sizes, known.told_sizes, stored.source_stamps, stored.picture_stamps)),
        ((objects,), (known.names, known.difficult, known.numbers)),
        ((objects, 4), (known.boxes,)),
    )
    whole = (
        known.counts,
        known.sizes,
        known.told_sizes,
        known.names,
        known.numbers,
        known.orientations,
        known.polygons,
    )
    has_shapes = all(column.shape == shape for shape, columns in shapes for column in columns)
    if not has_shapes or not len(known.pictures) == len(known.splits) == rows:
        raise ValueError("expected as many rows in each column as there are pictures or objects")
    is_sensible = (
        known.box_format in WRITINGS
        and (known.counts >= 0).all()
        and (known.sizes > 0).all()
        and np.isin(known.names, np.arange(len(known.vocabulary))).all()
        and np.isfinite(known.boxes).all()
        and known.difficult.dtype == bool
        and all(column.dtype == np.int64 for column in whole)
    )
    if not is_sensible:
        raise ValueError("expected sizes, classes and boxes as they are saved")


def save(key: str, stored: Stored) -> None:
    """Save annotations. Where nothing can be written, a warning is logged, and the next run reads everything again."""
    columns = stored.annotations._asdict() | {"listing": stored.listing}
    # The files are the same, whatever their boxes are taken to refer to.
    del columns["boxes_of"]
    columns |= {name: _joined(columns[name]) for name in TEXTS}
    columns |= {"source_stamps": stored.source_stamps, "picture_stamps": stored.picture_stamps}
    path = cache_file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            np.savez(file, **columns)
    except OSError as error:
        logger.warning("Annotations are not cached: %s", error)


def known_annotations(key: str, source: str, folders: Iterable[DataFolder]) -> Annotations | None:
    """Return the cached annotations of one file about many pictures; ``None`` if the file or a picture has changed."""
    known = load(key)
    if known is None or (known.source_stamps != stamps([source])).any():
        return None
    has_changed = (known.picture_stamps != stamps(known.annotations.pictures)).any()
    has_changed |= _may_have_another_picture(known, listing_of(folders)).any()
    return None if has_changed else known.annotations


def keep_annotations(
    key: str, stamp: Int[np.ndarray, "1 2"], annotations: Annotations, folders: Iterable[DataFolder]
) -> None:
    """Save the annotations of one file about many pictures, with the stamp that the file had before it was read."""
    # Without a row nothing would tell that the file has changed.
    if annotations.sources:
        source_stamps = np.repeat(stamp, len(annotations.sources), axis=0)
        save(key, Stored(annotations, source_stamps, stamps(annotations.pictures), listing_of(folders)))


def cache_folder() -> Path:
    """Return the folder of the cache; it may not exist yet."""
    if "SSD_CACHE" in os.environ:
        return Path(os.environ["SSD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd_lightning"


def limited_key(key: str, max_megapixels: float | None) -> str:
    """Return the key of the annotations of pictures up to a size, since a lower limit makes some of them findings."""
    return key if max_megapixels is None else f"{key} {max_megapixels:g}"


def cache_file(key: str) -> Path:
    """Return the cache file of a key."""
    name = hashlib.sha256(f"{LAYOUT} {key}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return cache_folder() / f"annotations-{name}.npz"


def _joined(texts: Sequence[str]) -> np.ndarray:
    """Join texts into one array of bytes, since an array of texts would give each text the room of the longest."""
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _split(joined: np.ndarray) -> list[str]:
    return joined.tobytes().decode("utf-8", "surrogatepass").split("\0")[:-1]
