"""The pictures, videos and cameras that ``source`` names."""

import glob
import hashlib
import http.client
import io
import os
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from ssd_lightning.data.folders import is_picture, visible_files
from ssd_lightning.deploy.video import PATIENCE, VIDEO_SUFFIXES
from ssd_lightning.require import one_line
from ssd_lightning.run_folder import naming

STDIN = "-"
"""The source that stands for a list of sources on standard input, one a line."""


PARTS_OF_ADDRESSES = "%/:=&?~#+!$,;'@()*[]"
"""Characters that an address may have as they are."""

LONGEST_DOWNLOAD = 120.0
"""Seconds in which a picture has to be downloaded."""

LARGEST_DOWNLOAD = 2**28
"""Bytes of the largest picture that is downloaded."""

LONGEST_NAME = 240
"""Bytes of the name of a file; systems allow 255, and a suffix and a number may follow."""


class PictureFile(NamedTuple):
    """A picture to detect objects in."""

    path: Path
    name: str
    """The file, or the address that it was downloaded from."""


class Sources(NamedTuple):
    """Everything to detect objects in."""

    pictures: list[PictureFile]
    videos: list[str | int]
    """Files and addresses of videos, and numbers of cameras."""


def find_sources(sources: list[Any], downloads: Path) -> Sources:
    """Sort sources into pictures and videos, and download the pictures among them.

    Args:
        sources: as :func:`find_pictures` takes them; also videos, numbers of cameras, addresses, and ``-``.
        downloads: folder for downloaded pictures.

    Raises:
        ValueError: with the source that has nothing, or cannot be read.
    """
    _check(sources)
    given: list[Any] = []
    for source in sources:
        lines = [line for line in _lines_of_stdin() if line.strip()] if source == STDIN else [source]
        if not lines:
            raise ValueError("source: expected a list of pictures on standard input, got none")
        given += lines
    pictures: dict[Path, PictureFile] = {}
    videos: dict[str | int, None] = {}
    for source in given:
        text = str(source)
        if "://" in text:
            path = download_picture(text, downloads / str(len(pictures)))
            if path is None:
                videos.setdefault(text)
            else:
                pictures[path] = PictureFile(path, text)
        elif text.isdecimal() and not Path(text).exists():
            videos.setdefault(int(text))
        elif is_video(text):
            videos.setdefault(text)
        else:
            files = find_files(text)
            videos |= dict.fromkeys(str(file) for file in files if is_video(str(file)))
            for file in files:
                if not is_video(str(file)):
                    pictures.setdefault(
                        Path(os.path.realpath(file)), PictureFile(file.absolute(), str(file.absolute()))
                    )
    return Sources(list(pictures.values()), list(videos))


def _lines_of_stdin() -> list[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A name of a file may hold bytes that are no text.
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin.read().splitlines()


def find_pictures(sources: list[Any], key: str = "source") -> list[Path]:
    """Return the picture files of some sources, each file once.

    Args:
        sources: files, patterns such as ``photos/*.jpg``, and folders, which are searched with their subfolders
            as :func:`~ssd_lightning.data.folders.visible_files` does.
        key: the argument that gave them, for messages.

    Raises:
        ValueError: with the source that has no pictures.
    """
    _check(sources, key)
    found: dict[Path, Path] = {}
    for source in map(str, sources):
        for file in find_files(source, key):
            found.setdefault(Path(os.path.realpath(file)), file.absolute())
    return list(found.values())


def find_files(source: str, key: str = "source") -> list[Path]:
    """Return the files of one source; see :func:`find_pictures`."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [path.joinpath(*file.split("/")) for file in visible_files(path, key) if is_picture(file)]
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        what = "a folder with pictures" if path.is_dir() else "a file, folder or pattern that exists"
        raise ValueError(f"{key}: expected {what}, got {source}")
    return found


def is_video(name: str) -> bool:
    """Return True for the name of a video file that exists."""
    path = Path(name).expanduser()
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def download_picture(address: str, folder: Path) -> Path | None:
    """Download a picture to a folder. Return None for an address of something else, which is left to FFmpeg.

    Raises:
        ValueError: with the address, if it does not answer.
    """
    if not address.lower().startswith(("http://", "https://")):
        return None
    try:
        # An address may have spaces and letters of any language, as a browser shows it.
        with urllib.request.urlopen(urllib.parse.quote(address, safe=PARTS_OF_ADDRESSES), timeout=PATIENCE) as answer:
            if not answer.headers.get_content_type().startswith("image/"):
                return None
            content = _content(answer)
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"source: expected a picture or a stream, got {one_line(address)} ({reason})") from error
    path = folder / shortened(re.sub(r"[^\w.-]", "_", name).strip(".") or "picture")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


def shortened(name: str) -> str:
    """Return the name of a file as it is, or its beginning and a checksum if it is too long for a suffix."""
    content = os.fsencode(name)
    if len(content) <= LONGEST_NAME:
        return name
    checksum = hashlib.sha256(content).hexdigest()[:8]
    return f"{os.fsdecode(content[: LONGEST_NAME - 9]).encode('utf-8', 'ignore').decode()}-{checksum}"


def _content(answer: http.client.HTTPResponse) -> bytes:
    """Return the content of an answer, which ends in time and is no larger than a picture.

    Raises:
        ValueError: if it is too long, takes too long, or ends too early.
    """
    content, end = bytearray(), time.monotonic() + LONGEST_DOWNLOAD
    while block := answer.read1(2**16):
        content += block
        if len(content) > LARGEST_DOWNLOAD:
            raise ValueError(f"more than {LARGEST_DOWNLOAD} bytes")
        if time.monotonic() > end:
            raise ValueError(f"not complete after {LONGEST_DOWNLOAD:g} seconds")
    if answer.length:
        raise ValueError(f"it ended {answer.length} bytes too early")
    return bytes(content)


def _check(sources: list[Any], key: str = "source") -> None:
    # Hydra turns a file name of digits into a number.
    if not sources or any(source in ("", None) or not isinstance(source, str | int) for source in sources):
        raise ValueError(f"{key}: expected a picture, a folder, a pattern, or a list of them, got {sources}")
