"""Two network namespaces on this machine, joined by a cable: each has its own addresses, as two machines have."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.213.7.1", "10.213.7.2")

INTERFACE = "cable"


def reason_not_to_run() -> str | None:
    """Return why no namespaces can be made here, or None."""
    if shutil.which("ip") is None:
        return "ip not found; Debian has it in iproute2"
    try:
        with two_machines():
            return None
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"


@contextmanager
def two_machines() -> Iterator[tuple[list[str], list[str]]]:
    """Make the namespaces, and remove them with the block.

    Returns:
        For each, the words that start a command in it.
    """
    names = [f"ssd{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", INTERFACE, "netns", names[0], "type", "veth", "peer", INTERFACE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = (["ip", "netns", "exec", name] for name in names)
        yield first, second
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def kill_all(machine: list[str]) -> None:
    """Kill all processes of a namespace, as if the machine were switched off."""
    for process in _ip("netns", "pids", machine[-1]).split():
        os.kill(int(process), signal.SIGKILL)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
