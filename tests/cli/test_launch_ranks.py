"""The end of the ranks of a machine, with other processes in place of the other ranks."""

import os
import signal
import subprocess
import sys
import threading
import time

import lightning
import pytest

from ssd_lightning.cli import launch_ranks, ranks
from ssd_lightning.cli.launch_ranks import OtherRanks, together
from ssd_lightning.cli.ranks import FailedElsewhere
from ssd_lightning.signals import Interrupted, interruptible


@pytest.fixture
def trainer() -> lightning.Trainer:
    """A trainer on two devices. Signals have the handlers of a new process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    return lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)


def second_rank(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(launch_ranks, "CHILD", [sys.executable, "-c", f"import os, time\n{program}"])


def work(seconds: float = 30) -> None:
    """Do something that a signal can end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.parametrize("program", ["os.kill(os.getpid(), 15)", "os._exit(143)"])
def test_a_signal_to_one_rank_ends_the_first(trainer, monkeypatch, program: str):
    """The second rank ends at the signal, and the first one, which did not get it, is interrupted too."""
    second_rank(monkeypatch, program)
    began = time.monotonic()
    with pytest.raises(Interrupted) as caught, interruptible(), together(trainer, []):
        work()
    assert caught.value.code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("program", "error", "text"),
    [
        ("os.kill(os.getpid(), 15)", Interrupted, "SIGTERM"),
        ("os.kill(os.getpid(), 9)", ChildProcessError, "rank 1 was killed by SIGKILL"),
        ("time.sleep(60)", ConnectionError, "lost"),
    ],
)
def test_the_failure_of_the_first_is_that_of_the_second(trainer, monkeypatch, program: str, error, text: str):
    """A rank that loses the other one gets an error about the connection."""
    second_rank(monkeypatch, program)

    def lose_the_other() -> None:
        time.sleep(0.5)
        raise ConnectionError("lost")

    with pytest.raises(error, match=text), interruptible(), together(trainer, []):
        lose_the_other()


def test_the_signal_of_torchrun_comes_after_the_loss_of_another_rank(trainer, monkeypatch):
    second_rank(monkeypatch, "pass")
    monkeypatch.setattr(ranks, "is_one_of_several_started_alike", lambda: True)

    def lose_the_other() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise ConnectionError("lost")

    with pytest.raises(Interrupted, match="SIGTERM"), interruptible(), together(trainer, []):
        lose_the_other()


@pytest.mark.parametrize(("program", "error"), [("os._exit(1)", FailedElsewhere), ("os._exit(143)", Interrupted)])
def test_the_second_fails_after_the_first_is_done(trainer, monkeypatch, program: str, error):
    second_rank(monkeypatch, program)
    with pytest.raises(error), together(trainer, []):
        pass


def test_a_signal_to_the_first_ends_all_at_once(trainer, monkeypatch):
    second_rank(monkeypatch, "time.sleep(60)")
    others: list[subprocess.Popen[bytes]] = []
    wait = OtherRanks.end

    def end(self: OtherRanks, patience: float) -> None:
        others.extend(self._processes)
        wait(self, patience)

    monkeypatch.setattr(OtherRanks, "end", end)
    began = time.monotonic()
    with pytest.raises(Interrupted, match="SIGINT"), interruptible(), together(trainer, []):
        os.kill(os.getpid(), signal.SIGINT)
    assert time.monotonic() - began < 5
    assert [process.poll() for process in others] == [-signal.SIGKILL]


WAITS_FOR_EVER = """
import signal, sys, time
import lightning
from ssd_lightning.cli import launch_ranks, ranks
launch_ranks.CHILD = [sys.executable, "-c", "import os; os._exit(143)"]
launch_ranks.PATIENCE_AFTER_SIGNAL = 0.2
signal.signal(signal.SIGTERM, lambda *arguments: None)
trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
with launch_ranks.together(trainer, []):
    time.sleep(60)
"""


@pytest.mark.slow
def test_the_first_waits_where_it_hears_no_signal():
    """Waiting for the other ranks is a call into C++, during which no handler of Python is called."""
    ended = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_EVER], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert [line for line in ended.stderr.splitlines() if "interrupted" in line] == [
        "ssd-train: interrupted by SIGTERM"
    ]
