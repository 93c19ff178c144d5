"""Locks on the folders of runs and sweeps: only one process at a time works in a folder. Quick to import.

The system drops a lock with the process that holds it, however that process ends. Some shared file systems hide locks
from other machines. Therefore the lock file also names its holder, with a time that the holder renews: the heartbeat.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ssd_lightning.require import visible_line

LOCK_FILE = ".running"
"""The lock file in a folder. It is removed when its holder ends by itself."""

INHERITED = "SSD_INHERITED_LOCK"
"""Environment variable with the descriptor of a lock that the process which started this one holds for it."""

HEARTBEAT_SECONDS = 10.0

STALE_SECONDS = 60.0
"""Seconds after the last heartbeat at which a process on another machine counts as ended."""

PROBE_SECONDS = 0.5
"""Seconds in which a lock is tried again, since a process that looks for the holder locks the file for a moment."""

POLL_SECONDS = 0.1


class Holder(NamedTuple):
    """The process that holds a lock."""

    host: str
    boot: str
    """Number of this start of the machine's kernel, which containers on one machine share. Empty where unknown."""
    process: int
    heartbeat: datetime

    def age(self) -> float:
        """Return the seconds since the last heartbeat."""
        return (datetime.now(UTC) - self.heartbeat).total_seconds()

    def is_on_this_machine(self) -> bool:
        """Return True if the system's own locks tell whether the process lives."""
        here = this_process()
        return here.host == self.host or (here.boot != "" and here.boot == self.boot)

    def __str__(self) -> str:
        where = f"on host {self.host} as process {self.process}"
        return where if self.is_on_this_machine() else f"{where} (last heartbeat {self.age():.0f} s ago)"


class FolderInUseError(Exception):
    """The error for a folder in which another process works.

    Args:
        holder: the process; None if the lock file does not name it.
    """

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(str(holder or "in another process"))
        self.holder = holder


class FolderLock:
    """A lock on a folder, held until :meth:`release` or until this process ends.

    Args:
        folder: the folder, which is created.
        patience: seconds to wait for another process.

    Raises:
        FolderInUseError: if another process holds the lock.
        OSError: if the lock file cannot be made.
    """

    def __init__(self, folder: Path, patience: float = 0.0) -> None:
        self.path = folder / LOCK_FILE
        self._is_released = threading.Event()
        # The number of a closed file can be that of another file at once, into which a heartbeat must not be written.
        self._descriptor_in_use = threading.Lock()
        self._holder = this_process()
        began = time.monotonic()
        is_announced = patience <= PROBE_SECONDS
        while True:
            try:
                self.descriptor = _lock(self.path)
                break
            except FolderInUseError as error:
                waited = time.monotonic() - began
                if waited >= max(patience, PROBE_SECONDS):
                    raise
                if not is_announced and waited >= PROBE_SECONDS:
                    print(f"{folder} is in use {error}; waiting at most {patience:.0f} s", file=sys.stderr, flush=True)
                    is_announced = True
            time.sleep(POLL_SECONDS)
        _descriptors.add(self.descriptor)
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        """Renew the heartbeat, and end this process if a process on another machine has taken the folder over."""
        while not self._is_released.wait(HEARTBEAT_SECONDS):
            with self._descriptor_in_use:
                if self._is_released.is_set():
                    return
                found = _read(self.descriptor)
                if found is not None and found[:3] != self._holder[:3]:
                    print(f"{self.path.parent} was taken over by a process {found}", file=sys.stderr, flush=True)
                    os._exit(1)
                _write(self.descriptor)

    def release(self) -> None:
        """Remove the lock file and drop the lock. A forked process leaves both to its parent."""
        if self._is_released.is_set() or os.getpid() != self._holder.process:
            return
        with self._descriptor_in_use:
            self._is_released.set()
            if _is_at(self.descriptor, self.path):
                self.path.unlink(missing_ok=True)
            _descriptors.discard(self.descriptor)
            os.close(self.descriptor)


class InheritedLock:
    """A lock that the process which started this one holds for it, and passes on by :data:`INHERITED`."""

    def __init__(self) -> None:
        text = os.environ.pop(INHERITED, "")
        self._descriptor = int(text) if text else None
        if self._descriptor is not None:
            os.set_inheritable(self._descriptor, False)
            _descriptors.add(self._descriptor)

    def is_of(self, folder: Path) -> bool:
        """Return True if the lock is that of a folder."""
        return self._descriptor is not None and _is_at(self._descriptor, folder / LOCK_FILE)


def holder_of(folder: Path) -> FolderInUseError | None:
    """Return an error that names the process that works in a folder; None if there is no such process."""
    try:
        # A named pipe in a stranger's folder would wait for a writer.
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        _refuse_if_in_use(descriptor, fcntl.LOCK_SH)
    except FolderInUseError as error:
        return error
    finally:
        os.close(descriptor)
    return None


def wait_until_free(folder: Path, patience: float) -> FolderInUseError | None:
    """Wait until no process works in a folder. Return what :func:`holder_of` returns after that time."""
    until = time.monotonic() + patience
    while (holder := holder_of(folder)) is not None and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return holder


def this_process() -> Holder:
    """Return this process, with a heartbeat of now."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return Holder(socket.gethostname(), boot, os.getpid(), datetime.now(UTC))


def _lock(path: Path) -> int:
    """Lock a file, which is created, and write this process into it. Return the descriptor that holds the lock."""
    while True:
        # The former holder may remove a folder without results.
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            former = _refuse_if_in_use(descriptor, fcntl.LOCK_EX)
            # The former holder may have removed the file since it was opened.
            if _is_at(descriptor, path):
                if former is not None and not former.is_on_this_machine():
                    print(f"{path.parent} is taken over from a process {former}", file=sys.stderr, flush=True)
                _write(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _refuse_if_in_use(descriptor: int, kind: int) -> Holder | None:
    """Lock an open file, or, where the file system has no locks, judge by the heartbeat. Return the former holder."""
    holder = _read(descriptor)
    has_locks = True
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUseError(holder) from None
    except OSError:
        has_locks = False
    if holder is None or holder.age() > STALE_SECONDS:
        return holder
    # The lock is free, so a process on this machine has ended. Locks of other machines may be invisible here.
    if not holder.is_on_this_machine() or (not has_locks and _lives(holder.process)):
        raise FolderInUseError(holder)
    return holder


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _is_at(descriptor: int, path: Path) -> bool:
    """Return True if an open file is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _read(descriptor: int) -> Holder | None:
    """Return the holder that a lock file names; None for an empty or unreadable file."""
    try:
        content = json.loads(os.pread(descriptor, 1000, 0))
        return Holder(
            visible_line(str(content["host"])),
            str(content["boot"]),
            int(content["process"]),
            datetime.fromisoformat(content["heartbeat"]).astimezone(UTC),
        )
    except (ArithmeticError, OSError, RecursionError, ValueError, KeyError, TypeError):
        return None


def _write(descriptor: int) -> None:
    """Write this process into a lock file. A full disk must not end a run, and the lock itself needs no space."""
    holder = this_process()
    content = holder._asdict() | {"heartbeat": holder.heartbeat.isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):
        written = os.pwrite(descriptor, f"{json.dumps(content)}\n".encode(), 0)
        os.ftruncate(descriptor, written)


_descriptors: set[int] = set()
"""Descriptors of the locks of this process."""


def _close_in_forked_process() -> None:
    """Close the locks in a forked process, such as a data loader's worker, which may outlive this one."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_forked_process)
