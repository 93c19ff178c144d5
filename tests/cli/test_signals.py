"""Signals that ask to stop, in and outside the steps of training."""

import contextlib
import gc
import os
import pty
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import QUICK
from processes import TRAIN, catches, finish, start, wait_for
from run_folder import COMPLETE, files_of, summary_of

from ssd_lightning import signals as interruption
from ssd_lightning.signals import STARTED_BY, STOPPING, Interrupted, interruptible, signal_that_ended

PAUSE = ["+callbacks.pause._target_=added_callbacks.PauseInValidation", "hydra.run.dir=run"]


def message_of(process, number: signal.Signals) -> str:
    """Return the message of a process that a signal ends, with the exit code of that signal and without a traceback."""
    _, error = finish(process, exit_code=128 + number)
    assert "Traceback" not in error
    [line] = [line for line in error.splitlines() if line.startswith("ssd-train: ")]
    return line.removeprefix("ssd-train: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_anything_is_written(bananas: Path, tmp_path: Path, number: signal.Signals):
    """The signal comes while torch is imported, which takes most of the time of a start."""
    process = start(tmp_path, *TRAIN, "data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=run")
    wait_for(lambda: catches(process.pid, signal.SIGTERM), process)
    os.killpg(process.pid, number)
    assert message_of(process, number).startswith(f"interrupted by {number.name}; ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_in_the_sanity_check(bananas: Path, tmp_path: Path):
    """The signal comes twice, as ``uv run`` passes on what the terminal sends too. A worker loads pictures."""
    choices = ["data=banana", f"data.root={bananas}", *QUICK, "num_workers=1"]
    process = start(tmp_path, *TRAIN, *choices, *PAUSE, "+callbacks.pause.moment=sanity_check")
    wait_for((tmp_path / "paused").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    assert message_of(process, signal.SIGINT).startswith("interrupted by SIGINT; ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_while_the_best_weights_are_scored(run, bananas: Path, tmp_path: Path):
    """A resumed run then scores the weights."""
    choices = ["data=banana", f"data.root={bananas}", *QUICK]
    process = start(tmp_path, *TRAIN, *choices, *PAUSE, "+callbacks.pause.moment=validate")
    wait_for((tmp_path / "paused").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    folder = tmp_path / "run"
    message = message_of(process, signal.SIGTERM)
    assert message.startswith("interrupted by SIGTERM; ")
    assert f"resume={folder}" in message
    assert not (folder / "summary.json").exists()
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3

    outcome = run("ssd-train", f"resume={folder}", "trusted_packages=[added_callbacks]", "~callbacks.pause")
    assert outcome.exit_code == 0, outcome.error
    assert files_of(folder) >= COMPLETE
    assert summary_of(folder)["steps"] == 3


@pytest.mark.slow
def test_while_bananas_are_drawn(tmp_path: Path):
    arguments = ["data.root=drawn", "+data.num_train=2000", "trainer=cpu", "hydra.run.dir=run"]
    process = start(tmp_path, *TRAIN, *arguments)
    wait_for(lambda: list(tmp_path.glob(".drawn-unfinished-*/*/*/images/*.png")), process)
    os.kill(process.pid, signal.SIGINT)
    assert message_of(process, signal.SIGINT).startswith("interrupted by SIGINT; ")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", STOPPING)
def test_in_a_step_the_exit_code_is_that_of_the_signal(run, bananas: Path, tmp_path: Path, number: signal.Signals):
    kill = ["+callbacks.kill._target_=added_callbacks.SignalAtStep", f"+callbacks.kill.number={int(number)}"]
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, *kill, "hydra.run.dir=run")
    assert outcome.exit_code == 128 + number
    assert outcome.message.startswith(f"ssd-train: stopped by {number.name}; saved in ")
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


# --- the handler ---


@pytest.fixture(autouse=True)
def hears_sighup(handlers_of_signals: None):
    """Tests that run under ``nohup`` ignore SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_raised_within_and_not_after(number: signal.Signals):
    signal.signal(number, signal.SIG_DFL)
    with interruptible():
        pass
    assert signal.getsignal(number) == signal.SIG_DFL
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}") as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    os.kill(os.getpid(), number)  # the same request again


def pass_over() -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)


class Deleted:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def pass_over_another_error() -> None:
    try:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise KeyError
    except KeyError:
        pass


@pytest.mark.parametrize("pass_over", [pass_over, Deleted, pass_over_another_error])
def test_a_signal_that_other_code_passes_over_is_raised_again(pass_over: Callable[[], object], monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's keeps the error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    began = time.monotonic()

    def work() -> None:
        pass_over()
        pass_over()
        time.sleep(30)

    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        work()
    assert time.monotonic() - began < 10


def test_a_signal_that_ends_the_block_late_is_raised_once():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tidied = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted:
            gc.collect()
            time.sleep(0.1)
            tidied.append(1)
            raise
        finally:
            gc.collect()
            tidied.append(2)

    with pytest.raises(Interrupted), interruptible():
        work()
    assert tidied == [1, 2]


ENDING = """
import atexit, os
from ssd_lightning.signals import interruptible
class Late:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, 15)  # Python has restored the handlers of signals
late = Late()
with interruptible():
    atexit.register(os.kill, os.getpid(), 15)
    os.kill(os.getpid(), 15)
"""


def test_another_signal_to_a_process_that_is_ending_changes_nothing(tmp_path: Path):
    """torchrun signals all ranks when the first of them has ended."""
    assert finish(start(tmp_path, "-c", ENDING), exit_code=128 + signal.SIGTERM) == ("", "")


@pytest.mark.parametrize("number", STOPPING)
def test_an_existing_handler_is_kept(number: signal.Signals):
    """A sweep has its own handler, and a shell lets processes in the background ignore SIGINT."""
    seen = []
    signal.signal(number, lambda *arguments: seen.append(arguments[0]))
    with interruptible():
        os.kill(os.getpid(), number)
    assert seen == [number]
    signal.signal(number, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), number)


def tidy_in_spite_of_a_second_signal() -> None:
    with interruptible():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)


def test_a_request_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch):
    for number in (*STOPPING, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    with pytest.raises(Interrupted, match="SIGTERM"):
        tidy_in_spite_of_a_second_signal()
    assert signal.signal(signal.SIGALRM, signal.SIG_DFL) == signal.SIG_IGN

    monkeypatch.setattr(interruption, "IMPATIENCE", 0.0)
    with pytest.raises(Interrupted, match="SIGINT"):
        tidy_in_spite_of_a_second_signal()
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 7), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_forked_process_ignores_ctrl_c(number: signal.Signals, expected: int):
    """A forked process leaves Ctrl-C to its parent."""
    for each in STOPPING:
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


@pytest.mark.parametrize(
    ("exit_code", "number"),
    [
        (0, None), (1, None), (127, None), (128, None), (137, None), (255, None),
        (-9, signal.SIGKILL), (-15, signal.SIGTERM), (143, signal.SIGTERM), (130, signal.SIGINT), (129, signal.SIGHUP),
    ],
)  # fmt: skip
def test_which_signal_ended_a_process(exit_code: int, number: signal.Signals | None):
    assert signal_that_ended(exit_code) == number


WAITS = """
import sys, time
from ssd_lightning.signals import Interrupted, end_with_the_process_that_started_this, interruptible
try:
    with interruptible():
        end_with_the_process_that_started_this(can_save=sys.argv[1] == "saves")
        print("waits", flush=True)
        time.sleep(60)
except Interrupted as error:
    print("saved", flush=True, file=sys.stderr)
    open("saved", "w").write(str(error))
    sys.exit(error.code)
"""


def test_a_terminal_that_is_closed(tmp_path: Path):
    """Each line to such a terminal is an error."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", WAITS, ""])
    assert b"waits" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert (tmp_path / "saved").read_text() == "interrupted by SIGHUP"


@pytest.mark.parametrize("how", ["saves", "ends"])
def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path, how: str):
    """The errors of the process go to a pipe that nobody reads any longer."""
    starts = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {WAITS!r}, "{how}"], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                         env=os.environ | {{"{STARTED_BY}": str(os.getpid())}})
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    process = start(tmp_path, "-c", starts)
    child = int(process.communicate()[0])
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text())
    assert (tmp_path / "saved").exists() == (how == "saves")


def test_the_warning_of_slurm_saves_the_run_in_its_own_way(run, bananas: Path, tmp_path: Path, monkeypatch):
    """Lightning would save another file, which no run is resumed from, and train on."""
    slurm = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "NODELIST": "localhost", "NNODES": "1", "JOB_NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    kill = ["+callbacks.kill._target_=added_callbacks.SignalAtStep", f"+callbacks.kill.number={int(signal.SIGUSR1)}"]
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *QUICK, *kill, "hydra.run.dir=run", "resume=auto")
    assert outcome.exit_code == 128 + signal.SIGUSR1, outcome.error
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))


BLOCKED = """
import ctypes, os, sys
from ssd_lightning import signals
signals.PATIENCE = 0.5
with signals.interruptible(lambda error: print(error, file=sys.stderr, flush=True)):
    mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    print("waits", flush=True)
    library.pthread_mutex_lock(mutex)  # waits for ever, also after a signal
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_waits_outside_of_python_ends_after_some_patience(tmp_path: Path, number: signal.Signals):
    process = start(tmp_path, "-c", BLOCKED)
    assert process.stdout is not None
    process.stdout.readline()
    wait_for(lambda: "(sleeping)" in Path(f"/proc/{process.pid}/status").read_text(), process)
    os.kill(process.pid, number)
    _, error = finish(process, exit_code=128 + number)
    assert error == f"interrupted by {number.name}\n"


FORCED_END = f"""
import threading
from ssd_lightning import signals
signals.AT_FORCED_END += [lambda: print("first", flush=True), lambda: print("second", flush=True), lambda: 1 / 0]
{BLOCKED}
"""


def test_what_is_to_be_done_at_a_forced_end_is_done_after_the_report(tmp_path: Path):
    """An error there does not keep the process, which has the exit code of the signal."""
    process = start(tmp_path, "-c", FORCED_END.replace("print(error, file=sys.stderr, flush=True)", "print(error)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    wait_for(lambda: "(sleeping)" in Path(f"/proc/{process.pid}/status").read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = finish(process, exit_code=128 + signal.SIGTERM)
    assert out.splitlines() == ["interrupted by SIGTERM", "first", "second"]


def test_what_is_to_be_done_at_a_forced_end_is_not_done_at_an_orderly_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interruption, "PATIENCE", 0.0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    done = []
    monkeypatch.setattr(interruption, "AT_FORCED_END", [lambda: done.append(1)])
    with pytest.raises(Interrupted), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    assert done == []


def test_the_signals_of_a_forked_process_are_its_own(monkeypatch: pytest.MonkeyPatch):
    """Data loaders end their workers by SIGTERM."""
    monkeypatch.setattr(interruption, "PATIENCE", 0.0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reported = []
    with interruptible(reported.append):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writes, b"w")
            time.sleep(60)
            os._exit(1)
        os.read(reads, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
        # This process still watches its own signals.
        file = signal.set_wakeup_fd(-1)
        assert file != -1
        signal.set_wakeup_fd(file)
        time.sleep(0.1)
    assert reported == []
