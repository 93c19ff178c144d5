"""Pictures that are downloaded: what servers answer, and the names that the files get."""

import time
from pathlib import Path

import pytest
from http_server import Behaviour, Handler, answering, sending, serving
from one_line import refused

from ssd_lightning.cli import sources
from ssd_lightning.cli.sources import download_picture

PICTURE = {"Content_Type": "image/png"}


def ends_early(handler: Handler) -> None:
    handler.head(200, Content_Length=1000, **PICTURE)
    handler.wfile.write(b"x" * 10)


def breaks_off_a_chunk(handler: Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked", **PICTURE)
    handler.wfile.write(b"ff\r\nabc")


def is_no_server(handler: Handler) -> None:
    handler.wfile.write(b"HELLO\r\n\r\n")


def has_a_long_header(handler: Handler) -> None:
    handler.head(200, X="x" * 70_000, **PICTURE)


def turns_in_a_circle(handler: Handler) -> None:
    handler.head(302, Location=handler.path)


def leads_nowhere(handler: Handler) -> None:
    handler.head(302, Location="http://[::1")


@pytest.mark.parametrize(
    "behaviour",
    [
        *(ends_early, breaks_off_a_chunk, is_no_server, has_a_long_header, turns_in_a_circle, leads_nowhere),
        answering(404),
    ],
    ids=lambda behaviour: behaviour.__name__,
)
def test_an_answer_that_is_no_picture_names_its_address(tmp_path: Path, behaviour: Behaviour):
    with serving() as server:
        server.default = behaviour
        address = server.url("/a.png")
        with refused("source", address):
            download_picture(address, tmp_path / "0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:x/a.jpg", "http://[::1/a.jpg", f"http://{'a' * 70}.test/a.jpg"])
def test_an_address_that_is_none(tmp_path: Path, address: str):
    with refused("source", address[:20]):
        download_picture(address, tmp_path / "0")


def test_a_download_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def drips(handler: Handler) -> None:
        handler.head(200, **PICTURE)
        for _ in range(500):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    monkeypatch.setattr(sources, "LONGEST_DOWNLOAD", 0.2)
    with serving() as server:
        server.default = drips
        with refused("source", server.url("/a.png"), "0.2 seconds"):
            download_picture(server.url("/a.png"), tmp_path / "0")


def test_a_download_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "LARGEST_DOWNLOAD", 1000)
    with serving() as server:
        server.default = sending(b"x" * 1001, content_type="image/png")
        with refused("source", server.url("/a.png"), "1000 bytes"):
            download_picture(server.url("/a.png"), tmp_path / "0")


@pytest.mark.parametrize(
    ("path", "asked", "name"),
    [
        ("/photos/a.png?size=3", "/photos/a.png?size=3", "a.png"),
        ("/a b.png", "/a%20b.png", "a_b.png"),
        ("/ü.png", "/%C3%BC.png", "ü.png"),
        ("/%C3%BC.png", "/%C3%BC.png", "ü.png"),
        ("/..", "/..", "picture"),
        ("/", "/", "picture"),
        (f"/{'漢' * 300}.png", f"/{'%E6%BC%A2' * 300}.png", f"{'漢' * 77}-776a42aa"),
    ],
    ids=["query", "space", "letter", "quoted letter", "parent", "none", "long"],
)
def test_names(tmp_path: Path, path: str, asked: str, name: str):
    with serving() as server:
        server.default = sending(b"x", content_type="image/png")
        found = download_picture(server.url(path), tmp_path / "0")
        assert server.requests == [asked]
    assert found == tmp_path / "0" / name
    assert found.read_bytes() == b"x"
