"""Downloads from a server on 127.0.0.1 that misbehaves on demand; nothing here reaches further."""

from places import ROOT as REPOSITORY
import hashlib
import io
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePath

import pytest
from http_server import (
    CONTENT,
    HALF,
    Behaviour,
    Handler,
    Server,
    answering,
    chunked_and_cut,
    cut,
    hang,
    hang_in_the_middle,
    reset,
    sending,
    serve,
    wrong_range,
)

from ssd_lightning.data import download as download_module
from ssd_lightning.data.download import (
    Archive,
    DownloadError,
    download,
    download_and_extract,
    extract,
    only_one_process_in,
)

NO_WAITING = (0.0, 0.0, 0.0)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The downloader honours the environment's proxies, which know nothing of our 127.0.0.1."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


def archive_of(*urls: str, content: bytes = CONTENT, name: str = "a.bin") -> Archive:
    return Archive(name, urls, hashlib.sha256(content).hexdigest())


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {".download.lock"}


def unused_port_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/a.bin"


# --- the ordinary way ---


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_downloads_with_each_checksum_and_leaves_only_the_file(server: Server, tmp_path: Path, algorithm: str) -> None:
    archive = Archive("a.bin", (server.url(),), hashlib.new(algorithm, CONTENT).hexdigest().upper(), algorithm)
    path = download(archive, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"a.bin"}
    assert server.requests == [("/a.bin", None)]


def test_a_verified_file_is_used_without_a_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert download(archive_of(server.url()), tmp_path) == tmp_path / "a.bin"
    assert server.requests == []
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]  # not even a lock: the folder may be read-only


def test_a_wrong_file_is_refused_and_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(DownloadError) as caught:
        download(archive_of(server.url()), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert server.requests == []
    for part in (str(tmp_path / "a.bin"), hashlib.sha256(b"mine").hexdigest(), hashlib.sha256(CONTENT).hexdigest()):
        assert part in str(caught.value)
    assert "delete it" in str(caught.value)


def test_is_quiet_without_a_terminal(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    download(archive_of(server.url()), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_bytes_where_a_terminal_is(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    download(archive_of(server.url()), tmp_path)
    out, shown = capfd.readouterr()
    assert out == ""
    assert "a.bin" in shown
    assert "1.0/1.0 MB" in shown


def test_imports_nothing_heavy() -> None:
    code = "import sys, ssd_lightning.data.download; print({'torch', 'rich', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../a.bin"}, "plain file name"),
        ({"name": ".."}, "plain file name"),
        ({"urls": ()}, "http or https"),
        ({"urls": ("file:///etc/passwd",)}, "http or https"),
        ({"urls": ("http://127.0.0.1:1/", "ftp://127.0.0.1/a.bin")}, "http or https"),
        ({"algorithm": "crc32"}, "one of .*'crc32'"),
        ({"checksum": "abc"}, "64 hex digits, got 'abc'"),
        ({"algorithm": "sha1"}, "40 hex digits"),
    ],
)
def test_an_impossible_archive_is_a_value_error(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        download(archive_of("http://127.0.0.1:1/a.bin")._replace(**change), tmp_path)
    assert names(tmp_path) == set()


# --- connections that break ---


@pytest.mark.parametrize("break_off", [cut, reset, chunked_and_cut], ids=["closed", "reset", "chunked"])
def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path, break_off: Behaviour) -> None:
    server.scripts["/a.bin"] = [break_off]
    path = download(archive_of(server.url()), tmp_path, pauses=NO_WAITING)
    assert path.read_bytes() == CONTENT
    first, second = server.ranges()
    assert first is None
    assert second is not None
    assert HALF <= int(second.removeprefix("bytes=").removesuffix("-")) <= HALF + 3


def test_attempts_that_bring_something_new_do_not_count(server: Server, tmp_path: Path) -> None:
    stops = [100, 200, 300, 400, 500]
    server.scripts["/a.bin"] = [sending(CONTENT, stop) for stop in stops]
    download(archive_of(server.url()), tmp_path, pauses=(0.0,))
    assert server.ranges() == [None, *(f"bytes={stop}-" for stop in stops)]


def test_attempts_are_bounded_and_what_arrived_stays_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.default = cut  # its Content-Length is never met
    archive = archive_of(server.url())
    with pytest.raises(DownloadError, match=f"ended after {HALF} of {len(CONTENT)} bytes"):
        download(archive, tmp_path, pauses=NO_WAITING)
    assert server.ranges() == [None, *[f"bytes={HALF}-"] * len(NO_WAITING)]
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:HALF]
    assert names(tmp_path) == {"a.bin.part"}

    server.default = serve
    server.requests.clear()
    assert download(archive, tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={HALF}-"]
    assert names(tmp_path) == {"a.bin"}


def test_pauses_grow_as_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(download_module.time, "sleep", slept.append)
    server.default = answering(503)
    with pytest.raises(DownloadError, match="HTTP 503"):
        download(archive_of(server.url()), tmp_path, pauses=(1.0, 2.0, 4.0))
    assert slept == [1.0, 2.0, 4.0]
    assert len(server.requests) == 4


def test_another_mirror_continues_what_one_began(server: Server, tmp_path: Path) -> None:
    server.scripts["/one"] = [cut, *[answering(500)] * 10]
    download(archive_of(server.url("/one"), server.url("/two")), tmp_path, pauses=NO_WAITING)
    assert server.ranges("/two") == [f"bytes={HALF}-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again_from_zero(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:HALF])
    server.default = sending(CONTENT, knows_ranges=False)
    assert download(archive_of(server.url()), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={HALF}-"]


@pytest.mark.parametrize(
    "answer",
    [wrong_range, answering(206), answering(206, Content_Range="rubbish"), answering(206, Content_Range="bytes */7")],
    ids=["other", "none", "rubbish", "unsatisfied"],
)
def test_a_wrong_content_range_starts_again_from_zero(server: Server, tmp_path: Path, answer: Behaviour) -> None:
    server.scripts["/a.bin"] = [cut, answer]
    assert download(archive_of(server.url()), tmp_path, pauses=NO_WAITING).read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-", None]


def test_a_range_that_starts_earlier_or_ends_earlier_is_used(server: Server, tmp_path: Path) -> None:
    def earlier(handler: Handler) -> None:
        handler.head(206, Content_Range=f"bytes 10-{HALF + 9}/{len(CONTENT)}", Content_Length=HALF)
        handler.wfile.write(CONTENT[10 : HALF + 10])

    (tmp_path / "a.bin.part").write_bytes(CONTENT[:HALF])
    server.scripts["/a.bin"] = [earlier]
    assert download(archive_of(server.url()), tmp_path, pauses=NO_WAITING).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={HALF}-", f"bytes={HALF + 10}-"]


def test_416_completes_a_finished_part_and_discards_any_other(server: Server, tmp_path: Path) -> None:
    for folder, part, ranges in [
        ("killed_before_renaming", CONTENT, [f"bytes={len(CONTENT)}-"]),
        ("another_file", CONTENT[::-1], [f"bytes={len(CONTENT)}-", None]),
        ("too_long", CONTENT + b"?", [f"bytes={len(CONTENT) + 1}-", None]),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.bin.part").write_bytes(part)
        server.requests.clear()
        assert download(archive_of(server.url()), tmp_path / folder).read_bytes() == CONTENT
        assert server.ranges() == ranges


def test_a_part_of_another_file_does_not_condemn_the_mirror(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * HALF)
    assert download(archive_of(server.url()), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("hanging", [hang, hang_in_the_middle])
def test_a_hanging_server_is_left_after_the_timeout(server: Server, tmp_path: Path, hanging: Behaviour) -> None:
    server.scripts["/a.bin"] = [hanging]
    began = time.monotonic()
    path = download(archive_of(server.url()), tmp_path, timeout=0.3, pauses=NO_WAITING)
    assert 0.3 <= time.monotonic() - began < 3
    assert path.read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-" if hanging is hang_in_the_middle else None]


def test_a_hanging_server_is_named_in_the_error(server: Server, tmp_path: Path) -> None:
    server.default = hang
    with pytest.raises(DownloadError, match=rf"{server.url()}: no answer: .*[tT]ime"):
        download(archive_of(server.url()), tmp_path, timeout=0.1, pauses=(0.0,))
    assert len(server.requests) == 2


def test_a_full_disk_is_not_blamed_on_the_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.BytesIO):
        def write(self, chunk: object) -> int:
            raise OSError(28, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk() if path.suffix == ".part" else real(path, mode))
    with pytest.raises(OSError, match="No space left") as caught:
        download(archive_of(server.url(), server.url("/two")), tmp_path, pauses=NO_WAITING)
    assert not isinstance(caught.value, DownloadError)
    assert server.requests == [("/a.bin", None)]


# --- mirrors that fail ---


def test_wrong_bytes_send_it_to_the_next_mirror(server: Server, tmp_path: Path) -> None:
    server.scripts["/liar"] = [sending(b"rubbish")]
    assert download(archive_of(server.url("/liar"), server.url("/good")), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/liar", None), ("/good", None)]
    assert names(tmp_path) == {"a.bin"}


def test_all_lie(server: Server, tmp_path: Path) -> None:
    server.default = sending(b"rubbish")
    with pytest.raises(DownloadError) as caught:
        download(archive_of(server.url("/one"), server.url("/two")), tmp_path)
    assert str(caught.value).count(hashlib.sha256(b"rubbish").hexdigest()) == 2
    assert names(tmp_path) == set()


def test_not_found_is_final_and_a_server_error_passes(server: Server, tmp_path: Path) -> None:
    server.scripts |= {"/gone": [answering(404)], "/ill": [answering(500), answering(429)]}
    download(archive_of(server.url("/gone"), server.url("/ill")), tmp_path, pauses=NO_WAITING)
    assert [path for path, _ in server.requests] == ["/gone", "/ill", "/ill", "/ill"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_the_error_tells_everything(server: Server, tmp_path: Path) -> None:
    server.scripts |= {"/gone": [answering(404)], "/ill": [answering(500)] * 9, "/liar": [sending(b"rubbish")]}
    urls = (server.url("/gone"), unused_port_url(), server.url("/ill"), server.url("/liar"))
    archive = archive_of(*urls)
    with pytest.raises(DownloadError) as caught:
        download(archive, tmp_path, pauses=(0.0,), hint="data=banana_generated needs no download.")
    first, *reasons, advice, hint = str(caught.value).splitlines()
    assert first == "a.bin could not be downloaded:"
    expected = ["HTTP 404", "no connection: .*refused", "HTTP 500", f"sha256 {hashlib.sha256(b'rubbish').hexdigest()}"]
    for reason, url, pattern in zip(reasons, urls, expected, strict=True):
        assert re.fullmatch(rf"  {re.escape(url)}: .*{pattern}.*", reason)
    assert advice == f"Put a.bin (sha256 {archive.checksum}) into {tmp_path} by hand, then run again."
    assert hint == "data=banana_generated needs no download."


def test_without_a_network_the_error_comes_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DownloadError, match="no connection"):
        download(archive_of(unused_port_url(), unused_port_url()), tmp_path, pauses=(30.0, 30.0))
    assert time.monotonic() - began < 2


def test_redirects_are_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    server.scripts["/moved"] = [answering(302, Location=server.url("/here"))]
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:HALF])
    assert download(archive_of(server.url("/moved")), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/moved", f"bytes={HALF}-"), ("/here", f"bytes={HALF}-")]


@pytest.mark.parametrize("scheme", ["file://", "ftp://127.0.0.1", "data:,"])
def test_redirects_elsewhere_are_refused(server: Server, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    server.scripts["/a.bin"] = [answering(302, Location=f"{scheme}{tmp_path / 'secret'}")]
    with pytest.raises(DownloadError, match=r"not allowed|unknown url type"):
        download(archive_of(server.url()), tmp_path / "folder", pauses=())
    assert names(tmp_path / "folder") == set()


def test_proxies_of_the_environment_are_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url(""))
    server.default = serve
    download(archive_of("http://mirror.invalid/a.bin"), tmp_path)
    assert server.requests == [("http://mirror.invalid/a.bin", None)]


# --- several at once ---

DOWNLOAD_IN_A_PROCESS = """
import sys
from pathlib import Path
from ssd_lightning.data.download import Archive, download
url, checksum, folder = sys.argv[1:]
print(download(Archive("a.bin", (url,), checksum), Path(folder)))
"""


def start_process(server: Server, folder: Path) -> subprocess.Popen[str]:
    arguments = [server.url(), archive_of(server.url()).checksum, str(folder)]
    command = [sys.executable, "-c", DOWNLOAD_IN_A_PROCESS, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def slowly(behave: Behaviour) -> Behaviour:
    def wait_first(handler: Handler) -> None:
        time.sleep(0.4)
        behave(handler)

    return wait_first


def test_processes_wait_for_the_one_that_downloads(server: Server, tmp_path: Path) -> None:
    server.default = slowly(serve)
    processes = [start_process(server, tmp_path) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=15)
        assert (process.returncode, out.strip()) == (0, str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_a_killed_process_leaves_a_part_and_no_lock(server: Server, tmp_path: Path) -> None:
    server.scripts["/a.bin"] = [hang_in_the_middle]
    part = tmp_path / "a.bin.part"
    process = start_process(server, tmp_path)
    wait_until(lambda: part.exists() and part.stat().st_size == HALF)
    process.kill()
    process.communicate()
    assert download(archive_of(server.url()), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_threads_that_need_the_same_data_get_it_from_one_request(server: Server, tmp_path: Path) -> None:
    content = zip_of({"set/1.png": b"one", "set/label.csv": b"two"})
    server.default = sending(content)
    server.scripts["/a.bin"] = [slowly(sending(content))]
    archive = archive_of(server.url(), content=content, name="set.zip")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(download_and_extract, archive, tmp_path, PurePath("set/label.csv")) for _ in range(4)]
    assert [job.result() for job in jobs] == [tmp_path / "set" / "label.csv"] * 4
    assert len(server.requests) == 1
    assert names(tmp_path) == {"set.zip", "set", "set/1.png", "set/label.csv"}


# --- archives ---


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


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


GOOD_FILES = {"bananas/images/0.png": b"\x89PNG" * 1000, "bananas/label.csv": b"img_name,label\n"}
ARCHIVES = {
    "a.zip": zip_of({"bananas/": b"", **GOOD_FILES}),
    "a.tar": tar_of(special("./bananas", tarfile.DIRTYPE), *((f"./{name}", text) for name, text in GOOD_FILES.items())),
    "a.tar.gz": tar_of(*GOOD_FILES.items(), mode="w:gz"),
    "a.tgz": tar_of(*GOOD_FILES.items(), mode="w:gz"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_unpacks_each_format_beside_what_is_there(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "archives" / name, ARCHIVES[name])
    folder = tmp_path / "data"
    write(folder / "mine.txt", b"mine")
    extract(path, folder)
    for file, content in {**GOOD_FILES, "mine.txt": b"mine"}.items():
        assert (folder / file).read_bytes() == content
    assert names(folder) == {"mine.txt", "bananas", "bananas/images", *GOOD_FILES}
    assert os.access(folder / "bananas", os.W_OK | os.X_OK)


UNSAFE = {
    "parent.zip": (zip_of({"fine": b"", "../evil": b"x"}), r"'\.\./evil' lies outside"),
    "inner_parent.zip": (zip_of({"fine": b"", "a/../../evil": b"x"}), r"'a/\.\./\.\./evil' lies outside"),
    "absolute.zip": (b"made in the test, which knows an absolute path", "/outside/evil' lies outside"),
    "drive.zip": (zip_of({"fine": b"", "C:/evil": b"x"}), "'C:/evil' lies outside"),
    "backslash.zip": (zip_of({"fine": b"", "..\\evil": b"x"}), r"evil' lies outside"),
    "link.zip": (zip_of({"fine": b"", "link": b"../evil"}, {"link": stat.S_IFLNK | 0o777}), "'link' is neither"),
    "parent.tar": (tar_of(("fine", b""), ("../evil", b"x")), r"'\.\./evil' lies outside"),
    "absolute.tar": (b"made in the test, which knows an absolute path", "/outside/evil' lies outside"),
    "symlink.tar": (
        tar_of(("fine", b""), special("way", tarfile.SYMTYPE, ".."), ("way/evil", b"x")),
        "'way' is neither",
    ),
    "absolute_symlink.tar.gz": (
        tar_of(("fine", b""), special("way", tarfile.SYMTYPE, "/tmp"), ("way/evil", b"x"), mode="w:gz"),
        "'way' is neither",
    ),
    "hardlink.tar": (tar_of(("fine", b""), special("way", tarfile.LNKTYPE, "../evil")), "'way' is neither"),
    "device.tar": (tar_of(("fine", b""), special("null", tarfile.CHRTYPE)), "'null' is neither"),
    "pipe.tar": (tar_of(("fine", b""), special("pipe", tarfile.FIFOTYPE)), "'pipe' is neither"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_an_archive_that_reaches_outside_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    content, message = UNSAFE[name]
    if name.startswith("absolute."):
        files = {"fine": b"", f"{tmp_path}/outside/evil": b"x"}
        content = zip_of(files) if name.endswith(".zip") else tar_of(*files.items())
    (tmp_path / "outside").mkdir()
    path = write(tmp_path / "archives" / name, content)
    with pytest.raises(DownloadError, match=message) as caught:
        extract(path, tmp_path / "parent" / "data")
    assert str(path) in str(caught.value)
    assert names(tmp_path) == {"archives", f"archives/{name}", "outside"}


def test_an_unsafe_archive_from_a_server_is_refused(server: Server, tmp_path: Path) -> None:
    content = UNSAFE["parent.zip"][0]
    server.default = sending(content)
    archive = archive_of(server.url(), content=content, name="a.zip")
    with pytest.raises(DownloadError, match="lies outside"):
        download_and_extract(archive, tmp_path / "data", PurePath("fine"))
    assert names(tmp_path) - {"data/.download.lock"} == {"data", "data/a.zip"}


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    zeros = {f"{i}": bytes(100_000) for i in range(10)}
    path = write(tmp_path / name, zip_of(zeros) if name.endswith("zip") else tar_of(*zeros.items(), mode="w:gz"))
    assert path.stat().st_size < 10_000
    with pytest.raises(DownloadError, match="more than max_bytes = 999999"):
        extract(path, tmp_path / "data", max_bytes=999_999)
    assert names(tmp_path / "data") == set()
    extract(path, tmp_path / "data", max_bytes=1_000_000)
    assert len(names(tmp_path / "data")) == 10


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 8]) + content[at + 8 :]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.zip", b"<html>not found</html>"),
        ("empty.zip", b""),
        ("truncated.zip", ARCHIVES["a.zip"][:-30]),
        ("damaged.zip", damaged(ARCHIVES["a.zip"], ARCHIVES["a.zip"].index(b"0.png") + 8)),
        ("text.tar", b"<html>not found</html>" * 100),
        ("empty.tar", b""),
        ("truncated.tar", ARCHIVES["a.tar"][:2500]),
        ("truncated.tar.gz", ARCHIVES["a.tar.gz"][:-40]),
        ("damaged.tgz", damaged(ARCHIVES["a.tgz"], len(ARCHIVES["a.tgz"]) // 2)),
    ],
)
def test_a_corrupt_archive_is_named_and_leaves_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / "archives" / name, content)
    with pytest.raises(DownloadError, match=re.escape(f"{path} cannot be unpacked")):
        extract(path, tmp_path / "data")
    assert names(tmp_path / "data") == set()


def test_an_unknown_ending_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.zip.*a\.rar"):
        extract(write(tmp_path / "a.rar", b""), tmp_path / "data")
    assert names(tmp_path / "data") == set()


def test_an_interrupted_extraction_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.zip", ARCHIVES["a.zip"])
    real = zipfile.ZipFile.extract

    def interrupted(self: zipfile.ZipFile, member: zipfile.ZipInfo, to: Path) -> str:
        if member.filename == "bananas/label.csv":
            assert names(tmp_path / "data") >= {".a.zip.extracting/bananas/images/0.png"}
            raise KeyboardInterrupt
        return real(self, member, to)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(path, tmp_path / "data")
    assert names(tmp_path / "data") == set()

    write(tmp_path / "data" / ".a.zip.extracting" / "stale", b"of a killed process")
    extract(path, tmp_path / "data")
    assert names(tmp_path / "data") == {"bananas", "bananas/images", *GOOD_FILES}


def test_folders_are_merged_and_files_never_replaced(tmp_path: Path) -> None:
    """The train and test archives of VOC2007 fill the same folders."""
    folder = tmp_path / "data"
    train = write(tmp_path / "train.tar", tar_of(("V/xml/1.xml", b"1"), ("V/readme", b"same")))
    test = write(tmp_path / "test.tar", tar_of(("V/xml/2.xml", b"2"), ("V/sets/test.txt", b"2"), ("V/readme", b"same")))
    extract(train, folder)
    extract(test, folder)
    files = {"V/xml/1.xml", "V/xml/2.xml", "V/sets/test.txt", "V/readme"}
    assert names(folder) == {"V", "V/xml", "V/sets", *files}

    other = write(tmp_path / "other.tar", tar_of(("V/xml/0.xml", b"0"), ("V/xml/2.xml", b"other")))
    with pytest.raises(DownloadError, match=re.escape(str(folder / "V/xml/2.xml"))):
        extract(other, folder)
    assert (folder / "V/xml/2.xml").read_bytes() == b"2"
    assert names(folder) == {"V", "V/xml", "V/sets", *files}


@pytest.mark.parametrize("existing", ["file for folder", "folder for file", "dangling link"])
def test_what_is_in_the_way_stays(tmp_path: Path, existing: str) -> None:
    path = write(tmp_path / "a.zip", ARCHIVES["a.zip"])
    folder = tmp_path / "data"
    if existing == "file for folder":
        write(folder / "bananas", b"mine")
    elif existing == "folder for file":
        (folder / "bananas" / "label.csv").mkdir(parents=True)
    else:
        (folder / "bananas").mkdir(parents=True)
        (folder / "bananas" / "label.csv").symlink_to("nowhere")
    before = names(folder)
    with pytest.raises(DownloadError, match="Move it away"):
        extract(path, folder)
    assert names(folder) == before


def test_expected_arrives_last_so_that_an_interrupted_merge_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "data", PurePath("V/a/done.txt")
    (folder / "V/b").mkdir(parents=True)
    path = write(tmp_path / "a.tar", tar_of(("V/a/done.txt", b""), ("V/b/1", b"1"), ("V/b/2", b"2")))
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.name == "2":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            extract(path, folder, expected=expected)
    assert names(folder) == {"V", "V/b", "V/b/1"}

    extract(path, folder, expected=expected)
    assert names(folder) == {"V", "V/a", "V/b", "V/b/1", "V/b/2", "V/a/done.txt"}
    path.unlink()
    extract(path, folder, expected=expected)  # is there: the archive is not even opened


def test_download_and_extract_asks_for_nothing_once_it_is_there(server: Server, tmp_path: Path) -> None:
    content = ARCHIVES["a.zip"]
    server.default = sending(content)
    archive = archive_of(server.url(), content=content, name="a.zip")
    for _ in range(2):
        path = download_and_extract(archive, tmp_path, PurePath("bananas/label.csv"))
        assert path == tmp_path / "bananas" / "label.csv"
        assert path.read_bytes() == GOOD_FILES["bananas/label.csv"]
        (tmp_path / "a.zip").unlink(missing_ok=True)
    assert len(server.requests) == 1


def test_download_and_extract_notices_an_archive_without_the_expected(server: Server, tmp_path: Path) -> None:
    server.default = sending(ARCHIVES["a.zip"])
    archive = archive_of(server.url(), content=ARCHIVES["a.zip"], name="a.zip")
    with pytest.raises(DownloadError, match=r"holds no bananas/labels\.csv"):
        download_and_extract(archive, tmp_path, PurePath("bananas/labels.csv"))


def test_the_hint_reaches_the_error_of_download_and_extract(server: Server, tmp_path: Path) -> None:
    server.default = answering(404)
    with pytest.raises(DownloadError, match=r"\nuse data=banana_generated$"):
        download_and_extract(archive_of(server.url()), tmp_path, PurePath("bananas"), hint="use data=banana_generated")


@pytest.mark.parametrize("existing", [(), ("parent",), ("parent", "parent/data")])
def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path, existing: tuple[str, ...]) -> None:
    for folder in existing:
        (tmp_path / folder).mkdir()
    with pytest.raises(KeyError), only_one_process_in(tmp_path / "parent" / "data"):
        raise KeyError
    assert names(tmp_path) - {"parent/data/.download.lock"} == set(existing)


def test_what_has_arrived_stays_with_its_folder(tmp_path: Path) -> None:
    with suppress(KeyError), only_one_process_in(tmp_path / "data"):
        write(tmp_path / "data" / "a.part", b"half")
        raise KeyError
    assert names(tmp_path) == {"data", "data/.download.lock", "data/a.part"}


def test_who_waits_for_one_that_fails_goes_on_and_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that it got at last is one of a file that has gone."""
    folder, waits, works, may_end = tmp_path / "data", threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(download_module.logger, "info", lambda *args: waits.set())

    def wait_and_work() -> None:
        with only_one_process_in(folder):
            works.set()
            may_end.wait(10)

    with ThreadPoolExecutor() as pool:
        with suppress(KeyError), only_one_process_in(folder):
            second = pool.submit(wait_and_work)
            assert waits.wait(10)
            raise KeyError
        assert works.wait(10)
        waits.clear()
        third = pool.submit(wait_and_work)
        assert waits.wait(10)
        may_end.set()
        second.result(10)
        third.result(10)
