"""Downloads of the archives of public data sets: several mirrors, pinned by a checksum, unpacked safely and once.

For an archive ``voc.tar`` the folder holds:

- ``voc.tar``: the whole archive, which gets this name once its checksum matches;
- ``.voc.tar.downloading``, ``.voc.tar.extracting``: unfinished work, renamed into place when it is complete and removed
  by the next process after a kill;
- ``.download.lock``: held by the one process that works in the folder, while DDP ranks and jobs of a sweep wait, and
  removed by it.
"""

import fcntl
import filecmp
import logging
import lzma
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

RETRIES = 2
"""Further attempts at a mirror that answers badly, with growing pauses; none at a mirror that cannot be reached."""

TIMEOUT = 30.0
"""Seconds without a byte after which a mirror has failed."""

MAX_EXTRACTED_BYTES = 20 * 2**30
"""Ten times the unpacked size of VOC2012; a larger archive is refused."""

CORRUPT = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""Errors of the libraries for unreadable archives; zipfile raises RuntimeError for passwords."""

logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """An archive that cannot be downloaded, is another file than expected, or cannot be unpacked."""


class Archive(NamedTuple):
    """A zip or tar file on the web. Its checksum makes any mirror as good as any other."""

    name: str
    """File name on disk."""
    urls: tuple[str, ...]
    """Mirrors, tried in order."""
    checksum: str
    """Algorithm and hex digest, such as ``md5:…``. The first digits are enough, as in the file names of torchvision."""


def download_and_extract(archive: Archive, folder: Path, expected: PurePath, *, hint: str = "") -> Path:
    """Return ``folder / expected``, downloaded and unpacked if it is not there yet.

    Proxies are taken from the environment. The archive stays in ``folder``.

    Args:
        archive: file to download; a file of this name in ``folder`` is verified and used instead.
        folder: folder to fill. Its own files are never replaced.
        expected: file or folder of the archive, whose presence in ``folder`` says that all is there.
        hint: last sentence of the error when no mirror serves the file.

    Raises:
        DownloadError: if there is no good archive to be had, or it is unsafe or does not fit into ``folder``.
    """
    if (folder / expected).exists():
        return folder / expected
    with only_one_process_in(folder):
        if not (folder / expected).exists():  # Another process may have brought it meanwhile.
            path = download(archive, folder, hint=hint)
            extract(path, folder, expected)
            if not (folder / expected).exists():
                raise DownloadError(f"{path}: expected {expected} in it, got an archive without it")
    return folder / expected


def download(archive: Archive, folder: Path, *, hint: str = "") -> Path:
    """Return the verified archive in ``folder``, from the first mirror that serves it. The caller holds the lock."""
    import pooch  # takes a third of a second, and most runs download nothing
    from requests import RequestException

    path = folder / archive.name
    if path.exists():
        found = _other_checksum(path, archive.checksum)
        if found is not None:
            raise DownloadError(
                f"{path}: expected {archive.checksum}, got {found}. The file was left as it is. "
                "Try to move it away, or put the right file there."
            )
        return path

    def fetch(url: str, output_file: str, _: Any) -> None:
        _request(url, output_file)
        if (found := _other_checksum(output_file, archive.checksum)) is not None:
            raise ValueError(f"a file with another hash: expected {archive.checksum}, got {found}")

    pooch.get_logger().setLevel(logging.WARNING)
    failures = []
    with _working_folder(folder / f".{archive.name}.downloading") as unfinished:
        for url in archive.urls:
            logger.info("Downloading %s to %s", url, folder)
            # Pooch knows whole digests only, so the checksum is verified here.
            mirror = pooch.create(
                unfinished, "", registry={path.name: None}, urls={path.name: url}, retry_if_failed=RETRIES
            )
            try:
                return Path(mirror.fetch(path.name, downloader=fetch)).replace(path)
            except (DownloadError, RequestException, ValueError) as error:  # ValueError: another checksum
                failures.append(f"  {url}: {error}")
            except OSError as error:  # that of a full disk names no file
                raise OSError(f"{path} could not be written: {error.strerror or error}") from error
    advice = f"Try again later, or put {archive.name} ({archive.checksum}) into {folder.resolve()} by hand."
    raise DownloadError("\n".join([f"{path}: expected a download, got", *failures, f"{advice} {hint}".rstrip()]))


def _other_checksum(path: Path | str, expected: str) -> str | None:
    """Return the checksum of a file if it differs from the expected one, else None."""
    import pooch

    algorithm, _, digest = expected.partition(":")
    found = pooch.file_hash(str(path), algorithm)
    return None if found.startswith(digest) else f"{algorithm}:{found}"


def _request(url: str, output_file: str) -> None:
    """Download a file with pooch, but raise what pooch does not retry where another attempt would not help."""
    import pooch
    import requests

    os.unlink(output_file)  # Pooch has made it readable for its owner alone.
    get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=2**18, timeout=TIMEOUT)
    try:
        get(url, output_file, None)
    except requests.ConnectionError as error:
        raise DownloadError(f"no connection ({error})") from error
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise DownloadError(str(error)) from error
        raise


def extract(archive_path: Path, folder: Path, expected: PurePath) -> None:
    """Unpack a zip or tar file into ``folder``, which may hold other files. The caller holds the lock.

    Folders are merged: the archives of VOC share ``VOCdevkit/VOC2007``. All members are checked before the first is
    written. ``expected`` is put into place last, so that its presence says that everything is there.

    Raises:
        DownloadError: if the archive is corrupt or unsafe, or would replace a file. Nothing is put into place then.
    """
    logger.info("Unpacking %s", archive_path)
    is_zip = archive_path.suffix == ".zip"
    with _working_folder(folder / f".{archive_path.name}.extracting") as unfinished:
        try:
            with zipfile.ZipFile(archive_path) if is_zip else tarfile.open(archive_path) as archive:
                _refuse_unsafe(archive_path, _members(archive))
                if isinstance(archive, tarfile.TarFile):
                    archive.extraction_filter = tarfile.data_filter
                archive.extractall(unfinished)
        except CORRUPT as error:
            text = f"{archive_path}: expected an archive that can be unpacked, got {error!r}. Try to delete it."
            raise DownloadError(text) from error
        last = folder / expected
        moves = sorted(_moves(unfinished, folder), key=lambda move: move[1] == last or move[1] in last.parents)
        for source, target in moves:
            source.rename(target)


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int, bool]]:
    """Yield the name and size of each member, and whether it is a file or a folder, and no link or device."""
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0: made on a system without such modes
            yield info.filename, info.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR)
    else:
        for entry in archive:
            yield entry.name, entry.size, entry.isreg() or entry.isdir()


def _refuse_unsafe(archive_path: Path, members: Iterator[tuple[str, int, bool]]) -> None:
    """Refuse paths out of the folder, which the libraries would bend quietly, all links, and size bombs."""
    total = 0
    for name, size, is_plain in members:
        path = PureWindowsPath(name)  # reads / and \ as separators, and knows drives
        if path.drive or path.root or ".." in path.parts or not is_plain:
            raise DownloadError(f"{archive_path}: expected files in folders, got the unsafe member {name!r}")
        total += size
        if total > MAX_EXTRACTED_BYTES:
            raise DownloadError(f"{archive_path}: expected at most {MAX_EXTRACTED_BYTES} bytes to unpack, got more")


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the fewest renames that bring the entries of ``source`` into ``target``.

    Equal files are passed over, so that a second extraction finishes an interrupted one.
    """
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if not os.path.lexists(place):
            yield entry, place
        elif entry.is_dir() and place.is_dir():
            yield from _moves(entry, place)
        elif not (entry.is_file() and place.is_file() and filecmp.cmp(entry, place, shallow=False)):
            raise DownloadError(f"{place}: expected the file of the archive or none, got another. Try to move it away.")


@contextmanager
def _working_folder(folder: Path) -> Iterator[Path]:
    """Provide an empty folder, which a killed process may have left, and remove it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def only_one_process_in(folder: Path) -> Iterator[None]:
    """Make other processes and threads wait that enter this block with the same folder, which is created.

    The system drops the lock with the process that holds it, however that process ends. Afterwards the lock file is
    removed, and so are the folders that were created and are still empty.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / ".download.lock"
    descriptor = _locked(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):  # A folder that is not empty stays.
            for path in created:
                path.rmdir()


def _locked(lock: Path) -> int:
    """Wait for the lock on a file, and return the descriptor that holds it."""
    # filelock never removes its file, since a process that waits for it would then hold a lock on no file.
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            if lock.parent.is_file() or lock.parent.is_symlink():
                raise
            continue  # The former holder removes the folder at this moment.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Waiting for another process that works in %s", lock.parent)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)  # The former holder has removed this file.
