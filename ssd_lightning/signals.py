"""Ctrl-C and SIGTERM outside of training steps. Nothing here takes long to import."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

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
        self.code = 128 + number
        """The exit code of the process, as a shell reports the signal."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted on SIGINT and SIGTERM inside the block, unless another handler is set already."""
    handler = _Interrupt()
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        former = {n: old for n, old in former.items() if old in (signal.SIG_DFL, signal.default_int_handler)}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in former.items():
            signal.signal(number, old)


class _Interrupt:
    """The handler, which ignores a request that arrives a second time within IMPATIENCE."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._received_at: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked process, such as a worker of a data loader, ends with the process that needs it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self._received_at is None or time.monotonic() - self._received_at >= IMPATIENCE:
            self._received_at = time.monotonic()
            raise Interrupted(number)
