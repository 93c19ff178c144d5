"""Processes of their own: started, watched and awaited."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from places import TESTS

TRAIN = (str(Path(sys.executable).with_name("ssd-train")),)
"""Arguments of Python that run ``ssd-train`` as users do, where the process of a sweep imports no torch."""

MODULE = ("-m", "ssd_lightning.cli.train")
"""Arguments of Python that run ``ssd-train`` as one rank of several."""

PATIENCE = 300.0
"""Seconds after which something that should happen counts as hanging."""


def start(folder: Path, *arguments: str, inside: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
    """Start Python in a folder, as the first of a new group of processes that can import what tests can.

    Args:
        folder: the working folder.
        arguments: arguments of Python.
        inside: words before the command, of a program that starts it somewhere else.
        variables: environment variables.
    """
    importable = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*inside, sys.executable, *arguments],
        cwd=folder,
        env=os.environ | importable | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], exit_code: int = 0, patience: float = PATIENCE) -> tuple[str, str]:
    """Wait for the end of a process and of its whole group. Return what the process wrote to stdout and stderr."""
    try:
        out, error = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == exit_code, out + error
    wait_for(lambda: not is_running(process.pid), patience=10)
    return out, error


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, patience: float = PATIENCE
) -> None:
    """Wait until a condition holds, as long as a process runs."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def is_running(group: int) -> bool:
    """Return True if a group has a process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def catches(process: int, number: signal.Signals) -> bool:
    """Return True if a process has a handler of its own for a signal."""
    [mask] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
