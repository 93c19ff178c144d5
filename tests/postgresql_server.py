"""A server of PostgreSQL on this machine."""

import getpass
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from processes import free_port, wait_for

USER = "postgres" if os.geteuid() == 0 else getpass.getuser()
"""The user of the server, which refuses to run as root. Debian's package makes this user."""


def _program(name: str) -> str | None:
    """Return the path of a program. Debian keeps those of the server off the search path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, folders)]))


def reason_not_to_run() -> str | None:
    """Return why no server can be started here, or None."""
    if _program("initdb") is None or _program("postgres") is None:
        return "initdb or postgres not found; Debian has them in postgresql"
    if USER not in [user.pw_name for user in pwd.getpwall()]:
        return f"there is no user {USER}, and the server refuses to run as root"
    return "psycopg2 is not installed" if importlib.util.find_spec("psycopg2") is None else None


@contextmanager
def server() -> Iterator[str]:
    """Start a server, end it with the block, and return the URL of its database."""
    initdb, postgres, port = _program("initdb"), _program("postgres"), free_port()
    assert initdb is not None
    assert postgres is not None
    user = USER if os.geteuid() == 0 else None
    # pytest's own folders are closed to other users.
    with TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        shutil.chown(folder, user=USER)
        create = [initdb, "--pgdata", f"{folder}/data", "--auth=trust", "--no-sync", "--username=tests"]
        subprocess.run(create, user=user, cwd=folder, check=True, capture_output=True)
        serve = [postgres, "-D", f"{folder}/data", "-k", folder, "-h", "127.0.0.1", "-p", port, "-F"]
        process = subprocess.Popen(serve, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            wait_for(lambda: "ready to accept connections" in Path(log.name).read_text())
            yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for its clients
            process.wait()
