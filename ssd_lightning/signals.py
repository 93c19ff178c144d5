"""Signals that ask a command to stop, outside of training steps. Nothing here takes long to import."""

import atexit
import contextlib
import math
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a command to stop: Ctrl-C, the end of a job or a machine, a terminal that is closed, and two
warnings of a scheduler before its time limit. The second is for jobs of submitit."""

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


AT_FORCED_END: list[Callable[[], None]] = []
"""Actions before the process ends without cleaning up, such as ending the processes that it has started."""

RAISE_AGAIN = 0
"""Byte that says that an error was passed over. It is the number of no signal."""


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

    Some code swallows any exception, such as Python's own where it deletes an object. Interrupted is then raised again.

    Python calls no handler while the process waits in another language, as for another rank that never comes. After
    PATIENCE the process ends without cleaning up.

    A signal ends the process. So the handlers stay after the block if a signal has ended it: another signal, such as
    that of torchrun to all ranks, would otherwise change the exit code.

    Args:
        report: reports the signal before the process ends in this way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Interrupt()
    replaced = (signal.SIG_DFL, signal.default_int_handler)
    former = {n: old for n, old in heard().items() if old in replaced or isinstance(old, _Interrupt)}
    for number in former:
        signal.signal(number, handler)
    atexit.register(_ignore_signals)
    stop_watching = _watch(handler, report)
    try:
        yield
    except (Interrupted, StoppedBySignal):
        handler.end()
        raise
    finally:
        if not handler.is_over:
            stop_watching()
            for number, old in former.items():
                signal.signal(number, old)


def _ignore_signals() -> None:
    """Ignore signals while the process is ending, when Python would restore the handlers that kill it.

    ``atexit`` calls this after the functions of libraries that are imported later. These may still wait and be stopped.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _watch(handler: "_Interrupt", report: Callable[[Interrupted], None]) -> Callable[[], None]:
    """End this process where a signal arrives for a handler that is not called. Return what stops watching."""
    ours, of_python = socket.socketpair()
    of_python.setblocking(False)

    def watch() -> None:
        with ours:
            # Python writes the number of each signal at once, also where it cannot call the handler.
            while received := ours.recv(1):
                arrived = time.monotonic()
                number = received[0]
                if number == RAISE_AGAIN:
                    time.sleep(0.05)  # for the code that has passed over the error to end
                    handler.send_again()
                    continue
                is_handled_here = number in STOPPING and signal.getsignal(number) is handler
                # One call may be for several signals.
                while is_handled_here and handler.called_at < arrived - IMPATIENCE:
                    if time.monotonic() >= arrived + PATIENCE:
                        error = Interrupted(number)
                        if not handler.is_over:
                            report(error)
                        try:
                            for act in AT_FORCED_END:
                                act()
                        finally:
                            os._exit(error.code)
                    time.sleep(0.05)

    def stop() -> None:
        signal.set_wakeup_fd(former)
        handler.file = -1
        os.close(file)

    threading.Thread(target=watch, daemon=True).start()
    # The file stays open without the object, until it is closed here or the process ends.
    file = handler.file = of_python.detach()
    former = signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    return stop


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
    """Keep the file of :func:`_watch` from forked processes, whose signals would count as those of this process.

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
        self._received_at = -math.inf
        self._raised: weakref.ref[Interrupted] | None = None
        self._number = 0
        self.file = -1
        """File of the thread that watches, where a byte RAISE_AGAIN sends the signal again; -1 if it is closed."""
        self.called_at = -math.inf
        """Time of the last call, of ``time.monotonic``."""
        self.is_over = False
        """True after a signal has ended the block in which signals are raised."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked process, such as a worker of a data loader, ends with the process that needs it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self.called_at = time.monotonic()
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if self.called_at - self._received_at >= IMPATIENCE:
            self._received_at = self.called_at
            raise self._error(number)

    def end(self) -> None:
        """Say that a signal has ended the block. It may arrive twice here too."""
        self.is_over = True
        self._received_at = time.monotonic()

    def send_again(self) -> None:
        """Send the signal that was received to this process again."""
        is_handled_here = signal.getsignal(self._number) == self
        if is_handled_here:
            os.kill(os.getpid(), self._number)

    def _error(self, number: int) -> Interrupted:
        """Return an error that asks to be raised again if it is deleted inside the block: nothing raises it then.

        No variable of the handler may hold the error, or its traceback would keep it.
        """
        self._number = number
        error = Interrupted(number)
        self._raised = weakref.ref(error, self._raise_again)
        return error

    def _raise_again(self, _: "weakref.ref[Interrupted]") -> None:
        # A signal that is sent here would be raised here, where Python passes over all errors.
        if not self.is_over and self.file != -1 and os.getpid() == self._process:
            self._received_at = -math.inf
            os.write(self.file, bytes([RAISE_AGAIN]))
