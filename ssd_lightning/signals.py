"""Signals that ask a command to stop, outside of training steps. Nothing here takes long to import."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a command to stop: Ctrl-C, the end of a job or a machine, a terminal that is closed, and the warning
of a scheduler before its time limit."""

STARTED_BY = "SSD_STARTED_BY"
"""Environment variable with the id of the process that started this one, and that this one must not outlive."""

POLL_SECONDS = 0.2

PATIENCE = 3.0
"""Seconds for Python to call the handler of a signal. torchrun and SLURM kill a process after 30 seconds."""

IMPATIENCE = 1.0
"""Seconds after which a second signal counts as a second request.

``uv run`` and schedulers forward a signal that the terminal sends to the whole process group too, so that one request
arrives twice.
"""


class Interrupted(SystemExit):
    """A request to stop that arrived while nothing else, such as a training, handled signals."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self._signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"interrupted by {self._signal.name}"


class StoppedBySignal(Exception):
    """The end of a training after a signal, when the last step has been saved.

    Args:
        number: the signal.
        outcome: what was saved, for the message.
    """

    def __init__(self, number: int, outcome: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {outcome}")
        self.outcome = outcome
        self.code = 128 + number
        """The exit code of the process, as a shell reports the signal."""


class Pruned(StoppedBySignal):
    """The end of a training that the process of its sweep has stopped, since the score was not good enough.

    Args:
        reason: why, for the message.
        outcome: what was saved, for the message.
    """

    def __init__(self, reason: str, outcome: str) -> None:
        Exception.__init__(self, f"pruned: {reason}. It has no scores and figures of a finished run; {outcome}")
        self.code = 0


@contextlib.contextmanager
def interruptible(report: Callable[[Interrupted], None] = lambda error: None) -> Iterator[None]:
    """Raise Interrupted on signals that ask to stop inside the block, unless another handler is set already.

    Python calls no handler while the process waits in another language, as for another rank that never comes. After
    PATIENCE the process ends without cleaning up.

    Args:
        report: reports the signal before the process ends in this way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Interrupt()
    former = {n: old for n, old in heard().items() if old in (signal.SIG_DFL, signal.default_int_handler)}
    for number in former:
        signal.signal(number, handler)
    try:
        with _watched(handler, report):
            yield
    finally:
        for number, old in former.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _watched(handler: "_Interrupt", report: Callable[[Interrupted], None]) -> Iterator[None]:
    """End this process where a signal arrives for a handler that is not called."""
    ours, of_python = socket.socketpair()
    of_python.setblocking(False)

    def watch() -> None:
        with ours:
            # Python writes the number of each signal at once, also where it cannot call the handler.
            while received := ours.recv(1):
                number = received[0]
                is_handled_here = number in STOPPING and signal.getsignal(number) is handler
                if is_handled_here and not handler.was_called.wait(PATIENCE):
                    error = Interrupted(number)
                    report(error)
                    os._exit(error.code)

    threading.Thread(target=watch, daemon=True).start()
    former = signal.set_wakeup_fd(of_python.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        of_python.close()


def heard() -> dict[signal.Signals, Any]:
    """Return the signals that ask to stop, with their handlers. Signals that ``nohup`` or a shell ignores are left out.

    Their handlers must not be replaced, as the user wants the process to continue.
    """
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    return {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}


def signal_that_ended(exit_code: int) -> signal.Signals | None:
    """Return the signal that ended a process, by its exit code as Python or as a shell reports it; None if none did."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return signal.Signals(number) if exit_code < 0 or number in STOPPING else None


def leave_closed_terminal() -> None:
    """Drop further output if it would go to a terminal that is closed: each line would be an error, before any saving.

    Call this in a handler of SIGHUP, which a terminal sends when it is closed.
    """
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def end_with_the_process_that_started_this(can_save: bool) -> None:
    """Watch the process that started this one, and end with it, since it may be killed without a word.

    Args:
        can_save: True if this process may save its run first. Several ranks would wait for each other.
    """
    started_by = os.environ.pop(STARTED_BY, None)
    if started_by is None:
        return

    def watch() -> None:
        while os.getppid() == int(started_by):
            time.sleep(POLL_SECONDS)
        if not can_save:
            os._exit(1)
        # Nobody reads the errors of a job after the process of its sweep.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Fork:
    """Keep the file of :func:`_watched` from forked processes, whose signals would count as those of this process.

    A signal to the forked process may arrive before Python runs there. So the file is away before the fork, in the main
    thread, which alone may set it. A fork of another thread becomes a main thread.
    """

    def __init__(self) -> None:
        self._file = -1

    def before(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._file = signal.set_wakeup_fd(-1)

    def after_in_parent(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._file, warn_on_full_buffer=False)

    def after_in_child(self) -> None:
        signal.set_wakeup_fd(-1)


_fork = _Fork()
os.register_at_fork(before=_fork.before, after_in_parent=_fork.after_in_parent, after_in_child=_fork.after_in_child)


class _Interrupt:
    """The handler, which ignores a request that arrives a second time within IMPATIENCE."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._received_at: float | None = None
        self.was_called = threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked process, such as a worker of a data loader, ends with the process that needs it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self.was_called.set()
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if self._received_at is None or time.monotonic() - self._received_at >= IMPATIENCE:
            self._received_at = time.monotonic()
            raise Interrupted(number)
