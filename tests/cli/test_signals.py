"""SIGINT and SIGTERM outside the steps of training, as the commands take them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import QUICK
from processes import is_running
from run_folder import COMPLETE, files_of, summary_of

from ssd_lightning import signals as interruption
from ssd_lightning.signals import Interrupted, interruptible

BOTH = [signal.SIGINT, signal.SIGTERM]
CALLBACK = """
import time
from pathlib import Path
import lightning

class SlowValidation(lightning.Callback):
    def on_validation_batch_start(self, trainer, *args, **settings):
        moment = "sanity check" if trainer.sanity_checking else trainer.state.fn.value
        Path(moment).touch()
        time.sleep(2 if moment in ("sanity check", "validate") else 0)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "slow_callback.py").write_text(CALLBACK)
    return subprocess.Popen(
        [sys.executable, "-m", "ssd_lightning.cli.train", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def told(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What a process says that has got a signal; it ends with its exit code, and leaves no other process."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out
    assert "Traceback" not in out
    until = time.monotonic() + 10
    while is_running(process.pid):
        assert time.monotonic() < until
        time.sleep(0.1)
    [line] = [line for line in out.splitlines() if line.startswith("ssd-train: ")]
    return line.removeprefix("ssd-train: ")


SLOW = ["+callbacks.slow._target_=slow_callback.SlowValidation", "hydra.run.dir=run"]


@pytest.mark.parametrize("number", BOTH)
def test_before_anything_is_written(bananas: Path, tmp_path: Path, number: signal.Signals):
    """While torch is imported, the longest time of a start."""
    process = start(tmp_path, "data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=run")
    wait_for(tmp_path / "run" / ".hydra" / "overrides.yaml", process)
    time.sleep(0.3)
    os.killpg(process.pid, number)
    assert told(process, number) == f"interrupted by {number.name}; nothing is left of it"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_in_the_sanity_check(bananas: Path, tmp_path: Path, number: signal.Signals):
    """Twice, as ``uv run`` passes on what the terminal brings too; with workers that load pictures."""
    choices = ["data=banana", f"data.root={bananas}", *QUICK, "num_workers=1"]
    process = start(tmp_path, *choices, *SLOW)
    wait_for(tmp_path / "sanity check", process)
    os.killpg(process.pid, number)
    os.kill(process.pid, number)
    assert told(process, number) == f"interrupted by {number.name}; nothing is left of it"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_while_the_best_weights_are_scored(run, bananas: Path, tmp_path: Path, number: signal.Signals):
    """What is left to be done is done by resuming."""
    process = start(tmp_path, "data=banana", f"data.root={bananas}", *QUICK, *SLOW)
    wait_for(tmp_path / "validate", process)
    os.killpg(process.pid, number)
    folder = tmp_path / "run"
    assert told(process, number) == f"interrupted by {number.name}; resume={folder} goes on from its last checkpoint"
    assert not (folder / "summary.json").exists()
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3

    outcome = run("ssd-train", f"resume={folder}", "~callbacks.slow")
    assert outcome.exit_code == 0, outcome.error
    assert files_of(folder) >= COMPLETE
    assert summary_of(folder)["steps"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_while_bananas_are_drawn(tmp_path: Path, number: signal.Signals):
    process = start(tmp_path, "data.root=drawn", "+data.num_train=2000", "trainer=cpu", "hydra.run.dir=run")
    while not list(tmp_path.glob(".drawn-unfinished-*/*/*/images/*.png")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert told(process, number) == f"interrupted by {number.name}; nothing is left of it"
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir()] == ["slow_callback.py"]


# --- the handler ---


@pytest.fixture(autouse=True)
def handlers():
    """Those from before the test, whatever the test leaves behind."""
    former = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_raised_within_and_not_after(number: signal.Signals):
    signal.signal(number, signal.SIG_DFL)
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}") as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", BOTH)
def test_a_handler_that_is_there_stays(number: signal.Signals):
    """Such as that of a sweep; and what a shell lets a process in the background ignore, it ignores."""
    seen = []
    signal.signal(number, lambda *arguments: seen.append(arguments[0]))
    with interruptible():
        os.kill(os.getpid(), number)
    assert seen == [number]
    signal.signal(number, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), number)


def tidied_in_spite_of_a_second() -> None:
    with interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def test_a_request_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch):
    for number in (*BOTH, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    with pytest.raises(Interrupted, match="SIGTERM"):
        tidied_in_spite_of_a_second()
    assert signal.signal(signal.SIGUSR1, signal.SIG_DFL) == signal.SIG_IGN

    monkeypatch.setattr(interruption, "IMPATIENCE", 0.0)
    with pytest.raises(Interrupted, match="SIGINT"):
        tidied_in_spite_of_a_second()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 7), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_process_that_is_forked_off(number: signal.Signals, expected: int):
    """Ctrl-C is its parent's business."""
    for each in BOTH:
        signal.signal(each, signal.SIG_DFL)
    with interruptible():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), number)
                os._exit(7)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
