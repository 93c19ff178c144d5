"""A server on 127.0.0.1 that misbehaves on demand."""

import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = random.Random(0).randbytes(1_000_000)
HALF = len(CONTENT) // 2


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        script = self.server.scripts.get(self.path, [])
        self.close_connection = True
        (script.pop(0) if script else self.server.default)(self)

    def start(self) -> int:
        """First byte that was asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        assert match, self.headers["Range"]
        return int(match[1])

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
        self.requests: list[tuple[str, str | None]] = []
        self.scripts: dict[str, list[Behaviour]] = {}
        self.default: Behaviour = serve
        self.stopping = threading.Event()

    def url(self, path: str = "/a.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self, path: str = "/a.bin") -> list[str | None]:
        return [asked for requested, asked in self.requests if requested == path]


Behaviour = Callable[[Handler], None]


def sending(content: bytes, stop: int | None = None, *, knows_ranges: bool = True) -> Behaviour:
    """A server of ``content`` that closes the connection when it has sent the bytes up to ``stop``."""

    def behave(handler: Handler) -> None:
        start = handler.start() if knows_ranges else 0
        if start and start >= len(content):
            handler.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.head(
            206 if start else 200, Content_Length=len(content) - start, **({"Content_Range": span} if start else {})
        )
        handler.wfile.write(content[start:stop])

    return behave


serve = sending(CONTENT)
cut = sending(CONTENT, HALF)


def reset(handler: Handler) -> None:
    """Half of the content, then RST instead of an orderly end."""
    handler.head(200, Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[:HALF])
    time.sleep(0.1)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def chunked_and_cut(handler: Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.wfile.write(f"{HALF:x}\r\n".encode() + CONTENT[:HALF] + b"\r\nffff\r\n" + CONTENT[HALF : HALF + 3])


def hang(handler: Handler) -> None:
    handler.server.stopping.wait(10)


def hang_in_the_middle(handler: Handler) -> None:
    handler.head(200, Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[:HALF])
    handler.server.stopping.wait(10)


def answering(status: int, **headers: object) -> Behaviour:
    return lambda handler: handler.head(status, Content_Length=0, **headers)


def wrong_range(handler: Handler) -> None:
    handler.head(206, Content_Range=f"bytes 999999-999999/{len(CONTENT)}", Content_Length=1)
    handler.wfile.write(b"?")
