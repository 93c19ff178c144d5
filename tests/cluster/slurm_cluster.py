"""A SLURM cluster of two nodes on this machine, with all of its files in one folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from places import TESTS
from processes import PATIENCE, TRAIN, free_port, wait_for

NODES = ("n1", "n2")

GOING_ON = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "PREEMPTED", "REQUEUED")

DAEMONS = ("munged", "slurmctld", "slurmd")


def reason_not_to_run() -> str | None:
    """Return why no cluster can be started here, or None."""
    missing = [name for name in (*DAEMONS, "srun") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; Debian has them in slurm-wlm and munge"
    return "SLURM's daemons need root" if os.geteuid() != 0 else None


class Cluster:
    """A running cluster.

    Args:
        folder: folder of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            # Both nodes are this machine.
            "MASTER_ADDR": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str, cwd: Path, exit_code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``exit_code`` None permits any."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, text=True, capture_output=True, timeout=PATIENCE, check=False
        )
        assert exit_code is None or done.returncode == exit_code, done.stdout + done.stderr
        return done

    def start(self, *command: str, cwd: Path) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            command, cwd=cwd, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def submit(self, folder: Path, script: str, *options: str) -> str:
        """Submit a batch script, whose output goes to ``<id>.out`` in its folder, and return the id of the job."""
        file = folder / "job.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        return self.run(
            "sbatch", "--parsable", "--output=%j.out", "--open-mode=append", *options, file.name, cwd=folder
        ).stdout.strip()

    def shown(self, job: str, key: str) -> str:
        """Return what SLURM shows for a key of a job."""
        words = self.run("scontrol", "show", "job", job, cwd=self.folder).stdout.split()
        [value] = [word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")]
        return value

    def state(self, job: str) -> str:
        """Return SLURM's name of the state of a job, such as RUNNING."""
        return self.shown(job, "JobState")

    def minutes(self, job: str) -> int:
        """Return how many whole minutes a job has run, if less than an hour."""
        return int(self.shown(job, "RunTime").split(":")[1])

    def wait(self, job: str) -> str:
        """Wait until a job has ended, and return its state."""
        wait_for(lambda: self.state(job) not in GOING_ON)
        return self.state(job)

    def wait_for(self, file: Path, job: str) -> None:
        """Wait until a job has written a file."""
        wait_for(lambda: file.exists() or self.state(job) not in GOING_ON)
        assert file.exists(), self.output(job)

    def output(self, job: str) -> str:
        """Return what a job of :meth:`submit` has printed."""
        file = Path(self.shown(job, "StdOut"))
        return file.read_text() if file.exists() else ""


CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=30
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
MinJobAge=3600
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=2
"""


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and end it with the block."""
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(256))
    key.chmod(0o600)
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    nodes = [f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2" for name in NODES]
    settings = {
        "folder": folder,
        "host": host,
        "port": free_port(),
        "nodes": "\n".join(nodes),
        "names": ",".join(NODES),
    }
    (folder / "slurm.conf").write_text(CONFIG.format(**settings))
    config = str(folder / "slurm.conf")  # Jobs get this path, too.
    found = Cluster(folder)
    munge = ["socket", "key-file", "pid-file", "seed-file", "log-file"]
    files = ["munge.socket", "munge.key", "munged.pid", "munge.seed", "munged.log"]
    try:
        options = [f"--{option}={folder / file}" for option, file in zip(munge, files, strict=True)]
        found.run("munged", "--force", *options, cwd=folder)
        found.run("slurmctld", "-f", config, cwd=folder)
        for name in NODES:
            (folder / f"spool-{name}").mkdir()
            found.run("slurmd", "-f", config, "-N", name, cwd=folder)
        wait_for(
            lambda: found.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", cwd=folder).stdout.split() == ["idle"] * 2
        )
        yield found
    finally:
        found.run("scancel", "--full", "--user=root", cwd=folder, exit_code=None)
        pids = ["munged", "slurmctld", *(f"slurmd-{name}" for name in NODES)]
        for name in reversed(pids):
            _end(folder / f"{name}.pid")


def _end(file: Path) -> None:
    if not file.exists():
        return
    pid = int(file.read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def ssd_train(*arguments: str) -> str:
    """Return the command line of ssd-train for a shell."""
    quoted = [f"'{argument}'" for argument in arguments]
    return " ".join([sys.executable, *TRAIN, *quoted])


def words(arguments: Sequence[str]) -> list[str]:
    """Return the command of ssd-train without a shell."""
    return [sys.executable, *TRAIN, *arguments]
