"""A server on 127.0.0.1 that misbehaves on demand, without any pause between two attempts at it."""

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

CONTENT = random.Random(0).randbytes(100_000)


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        script = self.server.scripts.get(self.path, [])
        self.close_connection = True
        (script.pop(0) if script else self.server.default)(self)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.pauses: list[float] = []
        self.scripts: dict[str, list[Behaviour]] = {}
        self.default: Behaviour = sending(CONTENT)
        self.hanging = threading.Event()
        self.stopping = threading.Event()

    def url(self, path: str = "/a.zip") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


Behaviour = Callable[[Handler], None]


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setattr("pooch.core.time", SimpleNamespace(sleep=server.pauses.append))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()


def sending(content: bytes, stop: int | None = None, content_type: str = "application/octet-stream") -> Behaviour:
    """A server of ``content`` that closes the connection when it has sent the bytes up to ``stop``."""

    def behave(handler: Handler) -> None:
        handler.head(200, Content_Length=len(content), Content_Type=content_type)
        handler.wfile.write(content[:stop])

    return behave


def hang(handler: Handler) -> None:
    """Half an answer, and then nothing until the end of the test."""
    handler.head(200, Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[: len(CONTENT) // 2])
    handler.server.hanging.set()
    handler.server.stopping.wait(10)


def answering(status: int, **headers: object) -> Behaviour:
    return lambda handler: handler.head(status, Content_Length=0, **headers)


def unreachable_url(path: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
