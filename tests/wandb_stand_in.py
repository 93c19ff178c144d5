"""A stand-in for the server of Weights & Biases, and a reader of the files of its runs."""

import json
import re
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from wandb.proto.wandb_internal_pb2 import Record

HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
WHOLE, LAST = 1, 4
"""Kinds of chunks: a whole record, or the end of a record."""


def read_records(path: Path) -> list[Record]:
    """Read the records of a ``.wandb`` file, which is a log like LevelDB's: chunks that do not cross blocks."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    records, at, so_far = [], HEADER_BYTES, b""
    while at + HEADER_BYTES <= len(content):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        so_far += content[at + HEADER_BYTES : at + HEADER_BYTES + length]
        at += HEADER_BYTES + length
        if kind in (WHOLE, LAST):
            records.append(Record.FromString(so_far))
            so_far = b""
    return records


class Run:
    """A run of wandb, read from its files.

    Args:
        folder: a folder ``offline-run-…`` or ``run-…`` in the folder ``wandb`` of a run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        [path] = folder.glob("*.wandb")
        self.records = read_records(path)

    def of_type(self, name: str) -> list[Any]:
        return [getattr(record, name) for record in self.records if record.WhichOneof("record_type") == name]

    @property
    def run(self) -> Any:
        return self.of_type("run")[0]

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self.run.config.update}

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each call of log. Nested keys are joined by dots."""
        rows = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.item}
            for record in self.of_type("history")
        ]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    @property
    def exit_codes(self) -> list[int]:
        return [record.exit_code for record in self.of_type("exit")]


def runs_in(folder: Path) -> list[Run]:
    """Return all runs of wandb in a run folder, in the order of their start."""
    paths = [path for path in (folder / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink()]
    return [Run(path) for path in sorted(paths, key=lambda path: path.name.removeprefix("offline-"))]


Way = Literal["answers", "hangs", "fails"]


class StandIn:
    """A server on this machine, which runs within a ``with`` block.

    Args:
        way: whether the server answers, never answers, or answers with an error.
        leaves_after: GraphQL operation, or beginning of a path, after which the server stops.
    """

    def __init__(self, way: Way = "answers", leaves_after: str | None = None) -> None:
        self.requests: list[tuple[str, Any]] = []
        """Operations with their variables, and paths with their content."""
        self._way = way
        self._leaves_after = leaves_after
        self._is_over = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stand_in._answer(self, content)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *arguments: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                """Do nothing when a client has gone."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if not self._is_over.is_set():
            self._is_over.set()
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        if self._way == "hangs":
            self.requests.append((handler.path, None))
            self._is_over.wait()
        if self._is_over.is_set():
            handler.close_connection = True
            handler.connection.close()
            return
        name, given, answer = self._understand(handler.path, content)
        self.requests.append((name, given))
        text = json.dumps(answer).encode()
        handler.send_response(500 if self._way == "fails" else 200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)
        if self._leaves_after is not None and name.startswith(self._leaves_after):
            threading.Thread(target=self._leave, daemon=True).start()

    def _understand(self, path: str, content: bytes) -> tuple[str, Any, dict[str, Any]]:
        if path != "/graphql":
            is_json = path.endswith("file_stream")
            return path, json.loads(content) if is_json else content, {}
        request = json.loads(content)
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
        given = request.get("variables") or {}
        return name, given, {"data": self._data(name, given)}

    def _data(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "P", "name": given.get("project"), "entity": {"id": "E", "name": "somebody"}}
        if name == "UpsertBucket":
            bucket = {"id": "B", "name": given["name"], "displayName": given["displayName"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": None}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/uploaded/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        if name == "Viewer":
            teams = {"edges": [{"node": {"name": "somebody"}}]}
            return {"viewer": {"id": "V", "username": "somebody", "entity": "somebody", "flags": "{}", "teams": teams}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "CreateArtifact":
            return {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": {"id": "S"}}}}
        return {}

    def named(self, beginning: str) -> list[Any]:
        return [given for name, given in self.requests if name.startswith(beginning)]
