"""Reading of files that strangers may have made: only regular files are opened, so that no read waits for ever."""

import os
import stat
from pathlib import Path

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
"""Kinds of entries in a folder that are not regular files, for messages."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise an error if a path is not a regular file or a link to one.

    Raises:
        OSError: if there is nothing, or it may not be looked at.
        ValueError: if there is something else, such as a named pipe; the message names the path.
    """
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{os.fspath(path)}: expected the name of a file, got one with a zero byte")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{os.fspath(path)}: expected a file, got {kind}")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the path is not a regular file, or the file is larger; the message names the path.
    """
    require_regular(path)
    size = os.stat(path).st_size
    if size > most:
        raise ValueError(f"{os.fspath(path)}: expected at most {most} bytes, got {size}")
    return Path(path).read_bytes()
