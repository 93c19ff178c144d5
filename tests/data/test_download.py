"""Downloads from a server on 127.0.0.1 that misbehaves on demand; nothing here reaches further."""

import hashlib
import io
import logging
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import pytest
from http_server import Handler, Server, answering, hang, sending, serving, unreachable_url
from places import ROOT as REPOSITORY

from ssd_lightning.data import download as download_module
from ssd_lightning.data.download import (
    RETRIES,
    Archive,
    DownloadError,
    download,
    download_and_extract,
    extract,
    only_one_process_in,
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.default = sending(ZIP)
        yield server


def zip_of(files: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def tar_of(*members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


FILES = {"set/images/0.png": b"\x89PNG" * 1000, "set/label.csv": b"img_name,label\n"}
EXPECTED = PurePath("set/label.csv")
ZIP = zip_of({"set/": b"", **FILES})
TAR = tar_of(special("./set", tarfile.DIRTYPE), *((f"./{name}", text) for name, text in FILES.items()))
TAR_GZ = tar_of(*FILES.items(), mode="w:gz")


def archive_of(*urls: str, content: bytes = ZIP) -> Archive:
    return Archive("a.zip", urls, f"sha256:{hashlib.sha256(content).hexdigest()}")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- from the network to a file ---


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_downloads_once_with_each_checksum(server: Server, tmp_path: Path, algorithm: str) -> None:
    archive = Archive("a.zip", (server.url(),), f"{algorithm}:{hashlib.new(algorithm, ZIP).hexdigest()}")
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        path = download_and_extract(archive, folder, EXPECTED)
        assert path == folder / EXPECTED
        assert path.read_bytes() == FILES[str(EXPECTED)]
        assert names(folder) == {"a.zip", "set", "set/images", *FILES}
    assert server.requests == ["/a.zip"]
    (tmp_path / "other").touch()
    assert (folder / "a.zip").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_archive_that_was_put_there_by_hand_is_used(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.zip", ZIP)
    assert download_and_extract(archive_of(server.url()), tmp_path, EXPECTED).exists()
    assert server.requests == []


def test_data_that_is_there_needs_neither_archive_nor_lock(server: Server, tmp_path: Path) -> None:
    write(tmp_path / EXPECTED, b"mine")
    download_and_extract(archive_of(server.url()), tmp_path, EXPECTED)
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


def test_another_file_is_refused_and_left_alone(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "a.zip", b"mine")
    mine, archive = hashlib.sha256(b"mine").hexdigest(), archive_of(server.url())
    with pytest.raises(DownloadError, match=rf"a\.zip: expected {archive.checksum}, got sha256:{mine}\."):
        download(archive, tmp_path)
    assert (tmp_path / "a.zip").read_bytes() == b"mine"
    assert server.requests == []


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_progress_bar_is_for_terminals(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    download(archive_of(server.url()), tmp_path)
    out, shown = capsys.readouterr()
    assert out == ""
    assert ("100%" in shown) == is_terminal


def test_imports_nothing_that_takes_long() -> None:
    code = "import sys, ssd_lightning.data.download; print({'torch', 'pooch', 'requests', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    "fault", [sending(ZIP, 100), sending(b"rubbish"), answering(503)], ids=["cut", "other bytes", "server error"]
)
def test_a_fault_that_may_pass_is_followed_by_more_attempts(server: Server, tmp_path: Path, fault) -> None:
    server.scripts["/a.zip"] = [fault] * RETRIES
    assert download(archive_of(server.url()), tmp_path).read_bytes() == ZIP
    assert len(server.requests) == RETRIES + 1
    assert server.pauses == [1, 2]
    assert names(tmp_path) == {"a.zip"}


@pytest.mark.parametrize("fault", [sending(ZIP, 100), sending(b"rubbish"), answering(503), answering(404), hang])
def test_the_next_mirror_is_as_good(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT", 0.1)
    server.scripts["/bad"] = [fault] * 9
    assert download(archive_of(server.url("/bad"), server.url("/good")), tmp_path).read_bytes() == ZIP
    assert server.requests[-1] == "/good"
    assert names(tmp_path) == {"a.zip"}


def test_the_error_names_everything_that_helps(server: Server, tmp_path: Path) -> None:
    server.scripts |= {"/gone": [answering(404)], "/liar": [sending(b"rubbish")] * 9}
    urls = (server.url("/gone"), unreachable_url("/a.zip"), server.url("/liar"))
    archive = archive_of(*urls)
    with pytest.raises(DownloadError) as caught:
        download_and_extract(archive, tmp_path, EXPECTED, hint="Or use data=banana_generated.")
    first, *reasons, advice = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path / 'a.zip'}: expected")
    for reason, url, part in zip(reasons, urls, ["404", "no connection", "hash"], strict=True):
        assert re.search(rf"{re.escape(url)}: .*{part}", reason)
    assert f"put a.zip ({archive.checksum}) into {tmp_path} by hand" in advice
    assert advice.endswith("Or use data=banana_generated.")
    assert names(tmp_path) == set()
    assert len(server.pauses) == RETRIES, "only the mirror that answers is asked again"


def test_a_full_disk_is_not_blamed_on_the_mirror(server: Server, tmp_path: Path, monkeypatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", no_space)
    with pytest.raises(OSError, match=rf"{tmp_path / 'a.zip'} could not be written: No space left") as caught:
        download(archive_of(server.url(), server.url("/two")), tmp_path)
    assert not isinstance(caught.value, DownloadError)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("place", ["", "file://", "ftp://127.0.0.1"])
def test_redirects_stay_on_the_web(server: Server, tmp_path: Path, place: str) -> None:
    write(tmp_path / "secret", ZIP)
    server.scripts["/a.zip"] = [answering(302, Location=place + str(tmp_path / "secret") if place else "/here")] * 9
    (tmp_path / "data").mkdir()
    if place:
        with pytest.raises(DownloadError, match="No connection adapters"):
            download(archive_of(server.url()), tmp_path / "data")
    else:
        download(archive_of(server.url()), tmp_path / "data")
    assert names(tmp_path / "data") == (set() if place else {"a.zip"})


def test_proxies_of_the_environment_are_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    download(archive_of("http://mirror.invalid/a.zip"), tmp_path)
    assert server.requests == ["http://mirror.invalid/a.zip"]


# --- several at once ---


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released once for each thread that begins to wait for another process or thread."""
    count = threading.Semaphore(0)

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Waiting" in record.msg:
                count.release()

    monkeypatch.setattr(download_module.logger, "handlers", [Watch()])
    monkeypatch.setattr(download_module.logger, "level", logging.INFO)
    return count


def test_of_several_threads_one_works(server: Server, tmp_path: Path, waiting: threading.Semaphore) -> None:
    def send_when_all_wait(handler: Handler) -> None:
        for _ in range(3):
            waiting.acquire(timeout=10)
        sending(ZIP)(handler)

    server.default = send_when_all_wait
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(download_and_extract, archive_of(server.url()), tmp_path, EXPECTED) for _ in range(4)]
    assert [job.result() for job in jobs] == [tmp_path / EXPECTED] * 4
    assert len(server.requests) == 1
    assert names(tmp_path) == {"a.zip", "set", "set/images", *FILES}


DOWNLOAD = """
import sys
from pathlib import Path
from ssd_lightning.data.download import Archive, download_and_extract
url, checksum, folder = sys.argv[1:]
download_and_extract(Archive("a.zip", (url,), checksum), Path(folder), Path("set"))
"""


def test_a_killed_process_leaves_no_lock_and_no_half_file(
    server: Server, tmp_path: Path, waiting: threading.Semaphore
) -> None:
    server.scripts["/a.zip"] = [hang]
    archive = archive_of(server.url())
    command = [sys.executable, "-c", DOWNLOAD, server.url(), archive.checksum, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as process, ThreadPoolExecutor(1) as pool:
        assert server.hanging.wait(30)
        other = pool.submit(download_and_extract, archive, tmp_path, EXPECTED)
        assert waiting.acquire(timeout=10)
        assert not (tmp_path / "a.zip").exists()
        process.kill()
        assert other.result(10).exists()
    assert names(tmp_path) == {"a.zip", "set", "set/images", *FILES}


# --- from an archive to a folder ---


@pytest.mark.parametrize(("name", "content"), [("a.zip", ZIP), ("a.tar", TAR), ("a.tar.gz", TAR_GZ)])
def test_unpacks_each_format_beside_what_is_there(tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "data"
    write(folder / "mine.txt", b"mine")
    extract(write(tmp_path / name, content), folder, EXPECTED)
    assert {file: (folder / file).read_bytes() for file in FILES} == FILES
    assert names(folder) == {"mine.txt", "set", "set/images", *FILES}
    assert os.access(folder / "set", os.W_OK | os.X_OK)


UNSAFE = {
    "parent.zip": zip_of({"fine": b"", "../evil": b"x"}),
    "inner_parent.zip": zip_of({"fine": b"", "a/../../evil": b"x"}),
    "absolute.zip": zip_of({"fine": b"", "/tmp/evil": b"x"}),
    "drive.zip": zip_of({"fine": b"", "C:/evil": b"x"}),
    "backslash.zip": zip_of({"fine": b"", "..\\evil": b"x"}),
    "link.zip": zip_of({"fine": b"", "evil": b"../evil"}, {"evil": stat.S_IFLNK | 0o777}),
    "parent.tar": tar_of(("fine", b""), ("../evil", b"x")),
    "absolute.tar": tar_of(("fine", b""), ("/tmp/evil", b"x")),
    "symlink.tar": tar_of(("fine", b""), special("evil", tarfile.SYMTYPE, ".."), ("evil/file", b"x")),
    "hardlink.tar": tar_of(("fine", b""), special("evil", tarfile.LNKTYPE, "../evil")),
    "device.tar": tar_of(("fine", b""), special("evil", tarfile.CHRTYPE)),
    "pipe.tar": tar_of(("fine", b""), special("evil", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, UNSAFE[name])
    (tmp_path / "data").mkdir()
    with pytest.raises(DownloadError, match=rf"{re.escape(str(path))}: .*unsafe.*evil"):
        extract(path, tmp_path / "data", PurePath("fine"))
    assert names(tmp_path) == {name, "data"}


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(download_module, "MAX_EXTRACTED_BYTES", 999_999)
    zeros = {f"{i}": bytes(100_000) for i in range(10)}
    path = write(tmp_path / name, zip_of(zeros) if name.endswith("zip") else tar_of(*zeros.items(), mode="w:gz"))
    (tmp_path / "data").mkdir()
    with pytest.raises(DownloadError, match="at most 999999 bytes"):
        extract(path, tmp_path / "data", PurePath("0"))
    assert names(tmp_path / "data") == set()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.zip", b"<html>"),
        ("cut.zip", ZIP[:-30]),
        ("empty.tar", b""),
        ("cut.tar", TAR[:2500]),
        ("cut.tgz", TAR_GZ[:-40]),
    ],
)
def test_a_corrupt_archive_is_named_and_leaves_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    (tmp_path / "data").mkdir()
    with pytest.raises(DownloadError, match=re.escape(f"{path}: expected an archive")):
        extract(path, tmp_path / "data", EXPECTED)
    assert names(tmp_path / "data") == set()


def test_an_archive_without_the_expected_file_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"a\.zip: expected set/labels\.csv"):
        download_and_extract(archive_of(server.url()), tmp_path, PurePath("set/labels.csv"))


def test_folders_are_merged_and_files_never_replaced(tmp_path: Path) -> None:
    """The train and test archives of VOC2007 fill the same folders."""
    folder = tmp_path / "data"
    folder.mkdir()
    train = write(tmp_path / "train.tar", tar_of(("V/xml/1.xml", b"1"), ("V/readme", b"same")))
    test = write(tmp_path / "test.tar", tar_of(("V/xml/2.xml", b"2"), ("V/test.txt", b"2"), ("V/readme", b"same")))
    extract(train, folder, PurePath("V/xml/1.xml"))
    extract(test, folder, PurePath("V/test.txt"))
    files = {"V/xml/1.xml", "V/xml/2.xml", "V/test.txt", "V/readme"}
    assert names(folder) == {"V", "V/xml", *files}
    other = write(tmp_path / "other.tar", tar_of(("V/xml/0.xml", b"0"), ("V/xml/2.xml", b"other")))
    with pytest.raises(DownloadError, match=re.escape(str(folder / "V/xml/2.xml"))):
        extract(other, folder, PurePath("V/xml/0.xml"))
    assert (folder / "V/xml/2.xml").read_bytes() == b"2"
    assert names(folder) == {"V", "V/xml", *files}


@pytest.mark.parametrize("existing", ["file for folder", "folder for file", "dangling link"])
def test_what_is_in_the_way_stays(tmp_path: Path, existing: str) -> None:
    folder = tmp_path / "data"
    if existing == "file for folder":
        write(folder / "set", b"mine")
    elif existing == "folder for file":
        (folder / EXPECTED).mkdir(parents=True)
    else:
        (folder / "set").mkdir(parents=True)
        (folder / EXPECTED).symlink_to("nowhere")
    before = names(folder)
    with pytest.raises(DownloadError, match="Try to move it away"):
        extract(write(tmp_path / "a.zip", ZIP), folder, EXPECTED)
    assert names(folder) == before


def test_an_interrupted_extraction_is_finished_by_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected file arrives last, so that its presence means that everything is there."""
    archive = archive_of(server.url(), content=zip_of({"V/a/done.txt": b"", "V/b/1": b"1", "V/b/2": b"2"}))
    write(tmp_path / "a.zip", zip_of({"V/a/done.txt": b"", "V/b/1": b"1", "V/b/2": b"2"}))
    (tmp_path / "V/b").mkdir(parents=True)
    write(tmp_path / ".a.zip.extracting" / "stale", b"of a killed process")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.name == "2":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            download_and_extract(archive, tmp_path, PurePath("V/a/done.txt"))
    assert names(tmp_path) == {"a.zip", "V", "V/b", "V/b/1"}
    download_and_extract(archive, tmp_path, PurePath("V/a/done.txt"))
    assert names(tmp_path) == {"a.zip", "V", "V/a", "V/b", "V/b/1", "V/b/2", "V/a/done.txt"}


# --- the lock ---


def test_only_one_works_at_a_time_and_the_lock_file_is_removed(tmp_path: Path) -> None:
    """Every thread enters a folder that the others remove, so each meets a lock file that has gone."""
    folder = tmp_path / "new" / "folder"
    inside: list[int] = []
    entered: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with only_one_process_in(folder):
                inside.append(number)
                assert inside == [number]
                entered.append(inside.pop())

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert len(entered) == 300
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with only_one_process_in(tmp_path / "mine"):
        assert (tmp_path / "mine/.download.lock").exists()
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link to nothing"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "data")
    with pytest.raises(FileExistsError, match="data"), only_one_process_in(tmp_path / "data"):
        pass
