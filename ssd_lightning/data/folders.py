"""The files below a folder: which of them are read, and how a picture is found by the name in its annotation."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

from ssd_lightning.data.pictures import PICTURE_SUFFIXES

PICTURE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pictures", "photos")
"""Usual names of folders of pictures beside a folder of annotations, in lower case."""

LABEL_FOLDERS = ("labels", "label", "annotations", "txt")
"""Usual names of folders of text files beside a folder of pictures, in lower case."""

MOST_PARTS = 100
"""Number of folders in the longest path that is searched for."""

MOST_NAMED = 3
"""Number of candidates in an error message."""


def visible_files(folder: str | os.PathLike[str], key: str = "data.root") -> list[str]:
    """Return the paths of all files in a folder and its subfolders, relative to it, with slashes, in order.

    Files and folders whose names begin with a dot are left out, such as the ``._a.jpg`` of macOS. Links to folders are
    followed, but each folder is read once, so that links in a circle do no harm.

    Args:
        folder: folder to search.
        key: name of the folder in messages.

    Raises:
        ValueError: if one of the folders cannot be read.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        # Real folders come first, so that a file has its own name even if a link leads to it, too.
        inside = folders.pop() if folders else links.pop(0)
        path = os.path.join(folder, inside)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"{key}: expected a readable folder, got {path} ({error.strerror})") from error
        for entry in visible:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if not _is_folder(entry):
                found.append(name)
            elif entry.is_symlink():
                links.append(name)
            else:
                folders.append(name)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself is read like a file, so that the error names it.
        return False


def is_picture(name: str) -> bool:
    """Return whether a file has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


class DataFolder:
    """An index of the files of a data folder, read once, in which annotations are matched with pictures.

    Nothing outside the folder is ever found.

    Args:
        root: folder; the paths of files begin with it as it is given.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)

    @cached_property
    def files(self) -> list[str]:
        """All visible files, relative to ``root``, with slashes."""
        return visible_files(self.root)

    def path(self, file: str) -> str:
        """Return the path of a file of the index."""
        return os.path.join(self.root, *file.split("/"))

    @cached_property
    def folders(self) -> set[str]:
        """All folders that hold visible files, also in their subfolders; ``root`` is the empty text."""
        return {""} | {file[:end] for file in self.files for end, letter in enumerate(file) if letter == "/"}

    @cached_property
    def _exact(self) -> set[str]:
        return set(self.files)

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """Files by path in lower case."""
        return _grouped(self.files, str.casefold)

    @cached_property
    def _folders_by_path(self) -> dict[str, list[str]]:
        """Folders by path in lower case."""
        return _grouped(sorted(self.folders), str.casefold)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Files by name in lower case."""
        return _grouped(self.files, lambda file: file.rpartition("/")[2].casefold())

    @cached_property
    def _pictures_by_stem(self) -> dict[str, list[str]]:
        """Pictures by path without suffix, in lower case."""
        return _grouped(filter(is_picture, self.files), lambda file: os.path.splitext(file)[0].casefold())

    def at(self, path: str) -> str | None:
        """Return the file of a path; the case of letters may differ where only one file is meant."""
        if path in self._exact:
            return path
        alike = _nearest(path, self._by_path.get(path.casefold(), []))
        return alike[0] if len(alike) == 1 else None

    def folder_at(self, path: str) -> str | None:
        """Return the folder of a path; the case of letters may differ where only one folder is meant."""
        alike = [path] if path in self.folders else self._folders_by_path.get(path.casefold(), [])
        return alike[0] if len(alike) == 1 else None

    def pictures_with_stem(self, path: str) -> list[str]:
        """Return the pictures of a path without suffix; the case of letters may differ where none is the same."""
        return _nearest(path, self._pictures_by_stem.get(path.casefold(), []))

    def named(self, name: str) -> list[str]:
        """Return all files of a name, in any folder; the case of letters may differ."""
        return self._by_name.get(_name(name).casefold(), [])

    def find(self, name: str, places: Sequence[str]) -> str | None:
        """Find the file that an annotation names in likely places.

        The whole name is looked for in each place, then the name without its first folder, and so on. Some tools write
        paths of another computer.

        Args:
            name: path in the annotation, with slashes or backslashes.
            places: folders to search, relative to ``root``; the likeliest first.
        """
        return next((file for path in _paths(name, places) if (file := self.at(path)) is not None), None)

    def find_folder(self, name: str, places: Sequence[str]) -> str | None:
        """Find the folder that a description of the data names, in the same way as :meth:`find`."""
        paths = list(_paths(name, places)) or places[:1]
        return next((folder for path in paths if (folder := self.folder_at(path)) is not None), None)

    def pictures_in(self, folder: str) -> list[str]:
        """Return the pictures in a folder and its subfolders."""
        return [file for file in self.files if is_picture(file) and (not folder or file.startswith(f"{folder}/"))]

    def only(self, name: str) -> str | None:
        """Return the only file of a name in all folders; ``None`` if there is none or more than one."""
        found = _nearest(_name(name), self.named(name))
        return found[0] if len(found) == 1 else None

    def candidates(self, name: str) -> str:
        """Return a text about the files of the same name, for messages; empty if there are none."""
        found = self.named(name)
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        return f"{', '.join(found[:MOST_NAMED])}{more}"

    def relative(self, path: str | os.PathLike[str]) -> str | None:
        """Return a path relative to ``root``, with slashes; ``None`` if it is outside."""
        start = os.path.join(self.root, "")
        given = os.fspath(path)
        # Resolving a path takes longer than everything else in finding a picture.
        if given.startswith(start) and given[len(start) :].replace(os.sep, "/") in self._exact:
            return given[len(start) :].replace(os.sep, "/")
        inside = os.path.relpath(os.path.abspath(path), os.path.abspath(self.root)).replace(os.sep, "/")
        return None if inside.split("/")[0] == ".." else "" if inside == "." else inside


def picture_places(folder: str) -> list[str]:
    """Return the places of pictures whose annotations are in a folder: this folder, and those that mirror it.

    ``a/Annotations/b`` is mirrored by ``a/JPEGImages/b``, ``a/images/b`` and so on, at any depth.
    """
    swapped, below = _mirrored(folder, PICTURE_FOLDERS)
    return [folder, *swapped, *below]


def label_places(folder: str) -> list[str]:
    """Return the places of the text files for pictures in a folder: those that mirror it, and the folder itself.

    ``a/images/b`` is mirrored by ``a/labels/b`` and so on, at any depth.
    """
    swapped, below = _mirrored(folder, LABEL_FOLDERS)
    return [*swapped, folder, *below]


def _mirrored(folder: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the folders that differ from a folder in one name, and the folders of these names in it."""
    parts = folder.split("/") if folder else []
    swapped = [
        "/".join((*parts[:depth], name, *parts[depth + 1 :])) for depth in reversed(range(len(parts))) for name in names
    ]
    return swapped, ["/".join((*parts, name)) for name in names]


def _name(path: str) -> str:
    return path.strip().replace("\\", "/").rpartition("/")[2]


def _nearest(path: str, alike: list[str]) -> list[str]:
    """Return the files whose name has the same letters as ``path`` in the same case, where there are any."""
    name = _name(path)
    same = [file for file in alike if name in (_name(file), os.path.splitext(_name(file))[0])]
    return [file for file in same if path in (file, os.path.splitext(file)[0])] or same or alike


def _paths(name: str, places: Sequence[str]) -> Iterator[str]:
    """Yield the paths for a name in an annotation, with fewer and fewer of its first folders, in all places."""
    parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    if len(parts) > MOST_PARTS:
        return iter(())
    joined = (_joined(place, parts[first:]) for first in range(len(parts)) for place in places)
    return (path for path in joined if path is not None)


def _joined(place: str, parts: Sequence[str]) -> str | None:
    """Join a place and a path; ``None`` if the path leads out of the data folder."""
    joined: list[str] = place.split("/") if place else []
    for part in parts:
        if part != "..":
            joined.append(part)
        elif joined:
            joined.pop()
        else:
            return None
    return "/".join(joined)


def _grouped(files: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for file in files:
        groups[key(file)].append(file)
    return dict(groups)
