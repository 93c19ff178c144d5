"""Locks on folders, with real processes. Another machine is a lock file that names one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ssd_lightning.cli import folder_lock
from ssd_lightning.cli.folder_lock import (
    LOCK_FILE,
    STALE_SECONDS,
    FolderInUseError,
    FolderLock,
    InheritedLock,
    holder_of,
)

HOLD = """
import os, sys, time
from pathlib import Path
from ssd_lightning.cli.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if sys.argv[2] == "forks" and os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    time.sleep(60)
elif sys.argv[2] != "forks":
    print(os.getpid(), flush=True)
time.sleep(float(sys.argv[3]))
lock.release()
"""


def hold_elsewhere(folder: Path, how: str = "alone", seconds: float = 60) -> tuple[subprocess.Popen[str], int]:
    """Hold a folder in another process. Return the process, and the number that it or its fork has printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how, str(seconds)], text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def write_lock_file(folder: Path, **content: Any) -> None:
    here = folder_lock.this_process()
    heartbeat = datetime.now(UTC) - timedelta(seconds=content.pop("age", 0))
    known = {"host": here.host, "boot": here.boot, "process": here.process, "heartbeat": heartbeat.isoformat()}
    (folder / LOCK_FILE).write_text(json.dumps({**known, **content}))


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path):
    process, number = hold_elsewhere(tmp_path)
    began = time.monotonic()
    with pytest.raises(FolderInUseError) as caught:
        FolderLock(tmp_path)
    assert time.monotonic() - began < 5
    assert caught.value.holder is not None
    assert caught.value.holder.process == number == process.pid
    assert f"on host {os.uname().nodename} as process {number}" in str(caught.value)
    assert holder_of(tmp_path) is not None
    process.kill()
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    assert holder_of(tmp_path) is None
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path):
    """A worker of a data loader lives on for some seconds after its process was killed."""
    process, fork = hold_elsewhere(tmp_path, "forks")
    assert holder_of(tmp_path) is not None
    process.kill()
    process.wait()
    os.kill(fork, 0)
    try:
        FolderLock(tmp_path).release()
    finally:
        os.kill(fork, signal.SIGKILL)


def test_patience(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    process, number = hold_elsewhere(tmp_path, seconds=1.5)
    FolderLock(tmp_path, patience=60).release()
    process.wait()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} is in use on host ")
    assert f"process {number}" in line


def test_a_lock_is_passed_on_to_a_process_that_outlives_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock = FolderLock(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock.descriptor,))
    monkeypatch.setenv(folder_lock.INHERITED, str(os.dup(lock.descriptor)))
    inherited = InheritedLock()
    assert folder_lock.INHERITED not in os.environ
    assert inherited.is_of(tmp_path)
    assert not inherited.is_of(tmp_path.parent)
    os.close(inherited._descriptor)
    folder_lock._descriptors.discard(inherited._descriptor)
    os.close(lock.descriptor)
    folder_lock._descriptors.discard(lock.descriptor)
    assert holder_of(tmp_path) is not None
    child.kill()
    child.wait()
    assert holder_of(tmp_path) is None


ELSEWHERE = {"host": "another", "boot": "5eed"}


@pytest.mark.parametrize(
    ("content", "is_held"),
    [
        ({}, False),
        ({"process": 1}, False),
        ({"boot": "before a restart"}, False),
        ({"host": "a container on this machine"}, False),
        ({**ELSEWHERE}, True),
        ({**ELSEWHERE, "age": STALE_SECONDS - 5}, True),
        ({**ELSEWHERE, "age": -30}, True),
        ({**ELSEWHERE, "age": STALE_SECONDS + 5}, False),
        ({**ELSEWHERE, "heartbeat": "yesterday"}, False),
        ({**ELSEWHERE, "process": None}, False),
    ],
)
def test_a_lock_file_of_a_process_that_holds_no_lock_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], is_held: bool
):
    write_lock_file(tmp_path, **content)
    holder = holder_of(tmp_path)
    assert (holder is not None) == is_held
    if holder is None:
        FolderLock(tmp_path).release()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (content.get("age", 0) > STALE_SECONDS)
        assert all("taken over" in line and "on host another" in line and " s ago" in line for line in lines)
        return
    assert "on host another" in str(holder)
    age = max(0, content.get("age", 0))
    assert any(f"last heartbeat {seconds} s ago" in str(holder) for seconds in (-30, -29, age, age + 1, int(age)))
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path)


@pytest.mark.parametrize(("process", "age", "is_held"), [("alive", 0, True), ("alive", 90, False), ("dead", 0, False)])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch, process: str, age: float, is_held: bool):
    def refuse(*arguments: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    ended = subprocess.Popen(["true"])
    ended.wait()
    write_lock_file(tmp_path, process=os.getppid() if process == "alive" else ended.pid, age=age)
    assert (holder_of(tmp_path) is not None) == is_held
    if not is_held:
        lock = FolderLock(tmp_path)
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
        lock.release()


def test_the_heartbeat_is_renewed_and_a_loss_ends_the_process(tmp_path: Path):
    program = "from ssd_lightning.cli import folder_lock; folder_lock.HEARTBEAT_SECONDS = 0.1\n" + HOLD
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), "alone", "60"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    first = json.loads((tmp_path / LOCK_FILE).read_text())
    assert first.keys() == {"host", "boot", "process", "heartbeat"}
    until = time.monotonic() + 20
    while json.loads((tmp_path / LOCK_FILE).read_text()) == first:
        assert time.monotonic() < until
        time.sleep(0.05)
    write_lock_file(tmp_path, **ELSEWHERE)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "taken over" in error
    assert "another" in error


def test_a_full_disk_refuses_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    lock = FolderLock(tmp_path)
    holder = holder_of(tmp_path)
    assert holder is not None
    assert holder.holder is None
    lock.release()


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path):
    """The former holder removes a folder without results."""
    folder = tmp_path / "run"
    lock = FolderLock(folder)
    (folder / LOCK_FILE).unlink()
    other = FolderLock(folder)
    lock.release()
    assert (folder / LOCK_FILE).exists()
    assert holder_of(folder) is not None
    other.release()
    assert list(folder.iterdir()) == []


def test_a_heartbeat_is_not_written_into_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A released lock closes its file, whose number the next opened file gets."""
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.01)
    lock = FolderLock(tmp_path / "run")
    read, beats, goes_on = folder_lock._read, threading.Event(), threading.Event()

    def read_slowly(descriptor: int) -> folder_lock.Holder | None:
        beats.set()
        goes_on.wait(10)
        return read(descriptor)

    monkeypatch.setattr(folder_lock, "_read", read_slowly)
    beats.wait()
    release = threading.Thread(target=lock.release)
    release.start()
    release.join(0.2)
    with (tmp_path / "other").open("wb") as other:
        other.write(b"of the user")
        other.flush()
        goes_on.set()
        release.join()
        time.sleep(0.1)
    assert (tmp_path / "other").read_bytes() == b"of the user"
    assert not (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.parametrize(
    "changes", [{"process": float("inf")}, {"process": []}, {"heartbeat": "0001-01-01T00:00:00+23:59"}, None, [], 3]
)
def test_an_odd_lock_file_names_nobody(tmp_path: Path, changes: Any):
    known: dict[str, Any] = {"host": "a", "boot": "b", "process": 1, "heartbeat": "2026-01-01T00:00:00+00:00"}
    path = tmp_path / "lock"
    for content in (json.dumps({**known, **changes} if isinstance(changes, dict) else changes), "[" * 1000):
        path.write_text(content)
        with path.open() as file:
            assert folder_lock._read(file.fileno()) is None
