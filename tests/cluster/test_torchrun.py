"""A run of torchrun on two machines that a network joins."""

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from command_line import QUICK
from processes import MODULE, finish, free_port, start, wait_for
from run_folder import COMPLETE, files_of, summary_of
from two_machines import ADDRESSES, INTERFACE, kill_all, reason_not_to_run, two_machines

pytestmark = pytest.mark.slow

Machines = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    if reason := reason_not_to_run():
        pytest.skip(reason)
    with two_machines() as found:
        yield found


@pytest.fixture
def arguments(bananas: Path) -> list[str]:
    data = ["data=banana", f"data.root={bananas}", *QUICK]
    return [*data, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2", "batch_size=2", "hydra.run.dir=run"]


def node(machines: Machines, rank: int, port: str, folder: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start torchrun on a machine, as the documentation says."""
    place = [f"--node_rank={rank}", f"--master_addr={ADDRESSES[0]}", f"--master_port={port}"]
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *place]
    return start(folder, *torchrun, *MODULE, *arguments, inside=machines[rank], GLOO_SOCKET_IFNAME=INTERFACE)


def test_a_machine_that_comes_late_joins_the_run(machines: Machines, arguments, tmp_path: Path):
    port = free_port()
    first = node(machines, 0, port, tmp_path, arguments)
    time.sleep(5)
    second = node(machines, 1, port, tmp_path, arguments)
    out, _ = finish(first)
    finish(second)
    assert out.count("Results:") == 1
    assert summary_of(tmp_path / "run")["world_size"] == 2
    assert files_of(tmp_path / "run") >= COMPLETE


def test_the_run_ends_with_a_machine_that_dies_and_is_resumed(machines: Machines, arguments, tmp_path: Path):
    port = free_port()
    first, second = (node(machines, rank, port, tmp_path, [*arguments, "trainer.max_epochs=999"]) for rank in (0, 1))
    last = tmp_path / "run/checkpoints/last.ckpt"
    wait_for(last.exists, first)
    kill_all(machines[1])
    second.communicate()
    _, error = finish(first, exit_code=1)
    [line] = [line for line in error.splitlines() if line.startswith("ssd-train: ")]
    assert re.search(r"lost one \(Connection (closed|reset) by peer.*\). Try resume=", line)
    assert error.count("Traceback (most recent call last)") == 1, "that of torchrun itself"

    steps = torch.load(last, weights_only=True)["global_step"]
    port, epochs = free_port(), steps // 3 + 1
    again = ["resume=run", f"trainer.max_epochs={epochs}"]
    for process in [node(machines, rank, port, tmp_path, again) for rank in (0, 1)]:
        finish(process)
    assert summary_of(tmp_path / "run")["steps"] == 3 * epochs
