"""Fetches the archives of public data sets: several mirrors, resumed when cut off, used only if the checksum matches.

What lies in the folder, for an archive ``voc.tar``:

- ``voc.tar``: complete; a download gets this name, by one atomic rename, once its checksum matched;
- ``voc.tar.part``: what has arrived so far; this run or a later one continues there;
- ``.voc.tar.extracting``: being unpacked; its entries are renamed into the folder when all are there;
- ``.download.lock``: held by the process that works in the folder; the others (DDP ranks, jobs of a sweep) wait.
"""

import filecmp
import gzip
import hashlib
import http.client
import logging
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePath, PureWindowsPath
from typing import BinaryIO, NamedTuple
from urllib import request

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ALGORITHMS = ("sha256", "sha1", "md5")
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt at a mirror; one more attempt in a row that brings nothing new, and it has failed."""
TIMEOUT = 30.0
"""Seconds without an answer or without a byte."""
MAX_EXTRACTED_BYTES = 20 * 2**30
"""Ten times what VOC2012 unpacks to."""
CHUNK_BYTES = 2**18
CORRUPT = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What the libraries raise for unreadable archives; RuntimeError is zipfile's for passwords and odd compressions."""

logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """The file is not there, is a different one, or cannot be unpacked.

    An OSError because the surroundings failed (network, disk, server); wrong arguments are a ValueError.
    """


class Archive(NamedTuple):
    """A file on the web, pinned by its checksum, so that any mirror is as good as any other."""

    name: str
    """File name on disk; its ending (.zip, .tar, .tar.gz, .tgz) tells the format."""
    urls: tuple[str, ...]
    """Mirrors, tried in order; http or https."""
    checksum: str
    """Hex digest."""
    algorithm: str = "sha256"
    """sha256, sha1 or md5."""


def download(
    archive: Archive, folder: Path, *, hint: str = "", timeout: float = TIMEOUT, pauses: Sequence[float] = PAUSES
) -> Path:
    """The verified file in ``folder``. A file that is there already is checked and used; nothing is requested then.

    Proxies are taken from the environment (``https_proxy``, ``no_proxy``). ``hint`` ends the text of the error.

    Raises:
        DownloadError: every mirror failed, or the file that is there has another checksum (it is left as it is).
        ValueError: the archive's name, URLs, algorithm or checksum cannot be right.
    """
    _validate(archive)
    target = folder / archive.name
    if target.exists():  # before the lock, which cannot be created in a read-only folder
        return _verified(target, archive)
    with only_one_process_in(folder):
        if target.exists():  # another process fetched it while this one waited
            return _verified(target, archive)
        return _download_from_mirrors(archive, folder, hint, timeout, pauses)


def extract(
    archive_path: Path, folder: Path, *, expected: PurePath | None = None, max_bytes: int = MAX_EXTRACTED_BYTES
) -> None:
    """Unpacks a zip or tar file into ``folder``; every member is checked before the first is written.

    Folders that exist are merged with the archive's (the archives of VOC share ``VOCdevkit/VOC2007``); an existing file
    stays, and is an error unless its content is the same. ``expected``, a path in ``folder``, is put into place last,
    so that its presence means that everything is there; if it is there already, nothing is done.

    Raises:
        DownloadError: the archive is corrupt, larger than ``max_bytes``, has a member outside of its folder or one that
            is neither file nor folder (links, devices), or would replace a file. Nothing has been put into place then.
        ValueError: the file name has none of the known endings.
    """
    with only_one_process_in(folder):
        if expected is not None and (folder / expected).exists():
            return
        staging = folder / f".{archive_path.name}.extracting"
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        try:
            _unpack(archive_path, staging, max_bytes)
            _put_into_place(staging, folder, expected)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def download_and_extract(archive: Archive, folder: Path, expected: PurePath, *, hint: str = "") -> Path:
    """``folder / expected``, from the archive if it is not there yet; the archive itself stays in ``folder``.

    Raises:
        DownloadError: as :func:`download` and :func:`extract`, or the archive does not hold ``expected``.
    """
    if not (folder / expected).exists():
        archive_path = download(archive, folder, hint=hint)
        extract(archive_path, folder, expected=expected)
        if not (folder / expected).exists():
            raise DownloadError(f"{archive_path} was unpacked into {folder} but holds no {expected}")
    return folder / expected


def has_begun(archive: Archive, folder: Path) -> bool:
    """Whether the archive, or a part of it, is in ``folder``."""
    return any((folder / name).exists() for name in (archive.name, f"{archive.name}.part"))


def _validate(archive: Archive) -> None:
    if archive.name in ("", "..") or PureWindowsPath(archive.name).name != archive.name:
        raise ValueError(f"name must be a plain file name, got {archive.name!r}")
    if not archive.urls or not all(url.startswith(("http://", "https://")) for url in archive.urls):
        raise ValueError(f"urls of {archive.name} must be one or more of http or https, got {archive.urls}")
    if archive.algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm of {archive.name} must be one of {ALGORITHMS}, got {archive.algorithm!r}")
    digits = 2 * hashlib.new(archive.algorithm, usedforsecurity=False).digest_size
    if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", archive.checksum):
        raise ValueError(f"checksum of {archive.name} must be {digits} hex digits, got {archive.checksum!r}")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        # The checksum finds damage; it need not withstand an attacker, and hardened builds forbid md5 otherwise.
        return hashlib.file_digest(file, partial(hashlib.new, algorithm, usedforsecurity=False)).hexdigest()


def _verified(target: Path, archive: Archive) -> Path:
    found = _digest(target, archive.algorithm)
    if found != archive.checksum.lower():
        raise DownloadError(
            f"{target} is not the expected file: its {archive.algorithm} is {found}, expected {archive.checksum}.\n"
            "It was left as it is. Move or delete it, then run again to download it, or put the right file there."
        )
    return target


# --- from the network to <name>.part ---


class _MirrorFailed(Exception):
    """The text says why; the next mirror may do better."""


class _Interrupted(Exception):
    """The text says why; another attempt at the same mirror may get the rest."""


class _Unreachable(_Interrupted):
    """There was no connection at all."""


def _download_from_mirrors(archive: Archive, folder: Path, hint: str, timeout: float, pauses: Sequence[float]) -> Path:
    part = folder / f"{archive.name}.part"
    failures = []
    for url in archive.urls:
        logger.info("Downloading %s to %s", url, folder)
        try:
            _complete_part(part, url, archive, timeout, pauses)
        except _MirrorFailed as failure:
            failures.append(f"  {url}: {failure}")
        else:
            return part.replace(folder / archive.name)
    pinned = f"{archive.name} ({archive.algorithm} {archive.checksum})"
    advice = f"Put {pinned} into {folder.resolve()} by hand, then run again."
    raise DownloadError("\n".join([f"{archive.name} could not be downloaded:", *failures, advice, hint]).rstrip())


def _complete_part(part: Path, url: str, archive: Archive, timeout: float, pauses: Sequence[float]) -> None:
    """Leaves ``part`` complete and verified, or raises _MirrorFailed."""
    furthest = _size(part)
    has_foreign_bytes = furthest > 0  # of an earlier run or another mirror, which may have sent a different file
    was_reached = False
    waits = iter(pauses)
    while True:
        try:
            _append_rest(part, url, timeout)
        except _Interrupted as interruption:
            if _size(part) > furthest:  # patience is for attempts in a row that bring nothing
                furthest, waits = _size(part), iter(pauses)
            was_reached |= not isinstance(interruption, _Unreachable)
            pause = next(waits, None) if was_reached else None  # off-line, the error comes without waiting
            if pause is None:
                raise _MirrorFailed(str(interruption)) from interruption
            logger.info("%s: %s; next attempt in %g s", url, interruption, pause)
            time.sleep(pause)
            continue
        found = _digest(part, archive.algorithm)
        if found == archive.checksum.lower():
            return
        part.unlink()
        if not has_foreign_bytes:
            raise _MirrorFailed(f"sent a file with {archive.algorithm} {found}, expected {archive.checksum}")
        furthest, has_foreign_bytes = 0, False  # this mirror is not to blame yet: once more, from the start


def _append_rest(part: Path, url: str, timeout: float) -> None:
    """One request for all that ``part`` lacks; what arrives stays in ``part`` even when this raises."""
    size = _size(part)
    response = _request(url, size, timeout)
    if response is None:
        return
    with response:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server does not know ranges
            start, end = 0, response.length
        elif match and int(match[1]) <= size:
            start, end = int(match[1]), int(match[2])
        else:
            part.unlink(missing_ok=True)  # the next attempt then asks for no range
            raise _Interrupted(f"asked for the bytes from {size} on, got Content-Range {content_range!r}")
        with part.open("ab") as file, _progress_bar(part.stem, start, end) as advance:
            file.truncate(start)
            for chunk in _chunks(response):
                file.write(chunk)
                advance(len(chunk))
    if end is not None and _size(part) < end:
        raise _Interrupted(f"the connection ended after {_size(part)} of {end} bytes")


def _request(url: str, start: int, timeout: float) -> http.client.HTTPResponse | None:
    """The response from byte ``start`` on; None if the server has no bytes there (416), so ``part`` may be complete."""
    headers = {"User-Agent": "ssd_lightning"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return _opener().open(request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return None
        is_passing = error.code >= 500 or error.code in (408, 429)  # timeout, too many requests
        raise (_Interrupted if is_passing else _MirrorFailed)(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Unreachable(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no answer: {error!r}") from error


def _opener() -> request.OpenerDirector:
    """Speaks http and https, through the proxies of the environment, and nothing else: the usual one also knows ftp."""
    opener = request.OpenerDirector()
    transports = (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler)
    replies = (request.HTTPRedirectHandler, request.HTTPErrorProcessor, request.HTTPDefaultErrorHandler)
    for handler in (*transports, *replies):
        opener.add_handler(handler())
    return opener


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Turns errors of the network into _Interrupted, and only those: a full disk must not look like a bad mirror."""
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)  # read() would lose what it has when the connection breaks
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"the connection broke: {error!r}") from error
        if not chunk:
            return
        yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# --- from the archive to the folder ---


class _Member(NamedTuple):
    name: str
    size: int
    is_file_or_folder: bool
    extract_to: Callable[[Path], object]


def _unpack(archive_path: Path, staging: Path, max_bytes: int) -> None:
    try:
        with _open_archive(archive_path) as archive:
            members = list(_checked_members(_members(archive), archive_path, max_bytes))
            staging.mkdir()
            total = sum(member.size for member in members)
            with _progress_bar(f"unpacking {archive_path.name}", 0, total) as advance:
                for member in members:
                    member.extract_to(staging)
                    advance(member.size)
    except CORRUPT as error:
        raise DownloadError(f"{archive_path} cannot be unpacked: {error!r}. Delete it, then run again.") from error


def _open_archive(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if path.name.endswith(".zip"):
        return zipfile.ZipFile(path)
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return tarfile.open(path)
    raise ValueError(f"archive_path must end in .zip, .tar, .tar.gz or .tgz, got {path}")


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0: made on a system without such modes
            is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            yield _Member(info.filename, info.file_size, is_plain, partial(archive.extract, info))
    else:
        for entry in archive:
            is_plain = entry.isreg() or entry.isdir()
            yield _Member(entry.name, entry.size, is_plain, partial(archive.extract, entry, filter="data"))


def _checked_members(members: Iterator[_Member], archive_path: Path, max_bytes: int) -> Iterator[_Member]:
    """Both libraries would quietly put a member that points elsewhere somewhere inside; this raises instead.

    Links are refused altogether: no data set of ours has any, and tarfile's checks of them had holes more than once.
    """
    total = 0
    for member in members:
        path = PureWindowsPath(member.name)  # reads / and \ as separators, and knows drives
        if path.drive or path.root or ".." in path.parts:
            raise DownloadError(f"{archive_path} is not safe: member {member.name!r} lies outside of its folder")
        if not member.is_file_or_folder:
            raise DownloadError(f"{archive_path} is not safe: member {member.name!r} is neither a file nor a folder")
        total += member.size
        if total > max_bytes:
            raise DownloadError(f"{archive_path} is not safe: it unpacks to more than max_bytes = {max_bytes}")
        yield member


def _put_into_place(staging: Path, folder: Path, expected: PurePath | None) -> None:
    moves = list(_moves(staging, folder))  # all conflicts are found before the first rename
    if expected is not None:
        last = folder / expected
        moves.sort(key=lambda move: move[1] == last or move[1] in last.parents)
    for source, target in moves:
        source.rename(target)


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """The fewest renames that bring the entries of ``source`` into ``target``.

    Equal files are passed over, so that a merge that was interrupted can be finished by a second one.
    """
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if not os.path.lexists(place):
            yield entry, place
        elif entry.is_dir() and place.is_dir():
            yield from _moves(entry, place)
        elif not (entry.is_file() and place.is_file() and filecmp.cmp(entry, place, shallow=False)):
            raise DownloadError(f"{place} exists and is not the one of the archive. Move it away, then run again.")


# --- for both ---


@contextmanager
def only_one_process_in(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread is in this block with the same folder.

    The system drops the lock with the process that holds it, however that ends. A lock that consists in the existence
    of a file would stay after a kill, and private .part files could not be resumed by another process.

    Folders that are made here go again if the block fails and leaves nothing in them.
    """
    path = folder / ".download.lock"
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with _locked(path):
        try:
            yield
        except BaseException:
            if made and list(folder.iterdir()) == [path]:
                with suppress(OSError):
                    path.unlink()
                    for place in made:
                        place.rmdir()
            raise


def _locked(path: Path) -> BinaryIO:
    """The file, open and locked; it and its folder are made."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the process that held it has taken the file away
            lock = path.open("ab")
            if not _try_lock(lock.fileno()):
                logger.info("Waiting for another process that works in %s", path.parent)
                while not _try_lock(lock.fileno()):
                    time.sleep(0.1)
            if os.path.samefile(lock.fileno(), path):
                return lock


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what Linux and Windows raise when another holds it
        return False
    return True


@contextmanager
def _progress_bar(description: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Bytes, speed and remaining time on a terminal or in a notebook; silent in log files and tests."""
    from rich import progress  # takes longer to import than this module, and most runs download nothing
    from rich.console import Console

    console = Console(stderr=True)
    is_seen = console.is_terminal or console.is_jupyter
    numbers = (progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn())
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), *numbers)
    with progress.Progress(*columns, console=console, transient=True, disable=not is_seen) as bar:
        task = bar.add_task(description, completed=done, total=total)
        yield lambda count: bar.advance(task, count)
