"""The start and the end of the ranks of a machine.

The first rank starts the other ranks, and all ranks end together. Each rank runs the config saved in the run folder.
A rank that fails reports its reason before the first rank ends with exit code 1.

Lightning's launcher repeats the command line, which composes the config anew and creates a second run folder. It also
ends all ranks by SIGKILL when one fails. torchrun adds an agent and a report of some twenty lines to every failure.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import lightning
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from ssd_lightning import collectives
from ssd_lightning.cli import ranks
from ssd_lightning.cli.ranks import FailedElsewhere
from ssd_lightning.cli.sweep.jobs import CHILD, NAME
from ssd_lightning.run_folder import flatten
from ssd_lightning.signals import (
    AT_FORCED_END,
    POLL_SECONDS,
    STARTED_BY,
    STOPPING,
    Interrupted,
    StoppedBySignal,
    signal_that_ended,
)

PATIENCE = 10.0
"""Seconds for a rank to notice the failure of another rank. A rank that waits on a GPU never notices it."""

PATIENCE_AFTER_SIGNAL = 2.0
"""Seconds for a rank to end, or to get the signal too, after a signal has ended another rank."""

PATIENCE_FOR_SIGNAL = 5.0
"""Seconds for torchrun or SLURM to send the signal too, which takes longer on a machine with much work."""


@contextlib.contextmanager
def together(trainer: lightning.Trainer, arguments: list[str]) -> Iterator[None]:
    """Run the other ranks of this machine while the block runs, with these arguments of ``ssd-train``.

    Raises:
        FailedElsewhere: if the block failed because another rank failed.
        ChildProcessError: if another rank was killed.
        ConnectionError: if a rank on another machine is gone.
        Interrupted: if another rank was asked to stop before the training.
    """
    others = OtherRanks(trainer, arguments)
    patience = PATIENCE
    try:
        yield
    except Interrupted:
        patience = 0  # Nothing is saved before the training, nor after it.
        raise
    except Exception as error:
        # A request to stop reaches all ranks at the same step, and is no failure.
        if not isinstance(error, StoppedBySignal):
            if ranks.is_one_of_several_started_alike():
                # A rank that a signal has ended makes others lose it, before torchrun or SLURM sends them the signal.
                time.sleep(PATIENCE_FOR_SIGNAL)
            is_first_to_fail = collectives.is_first_to_fail()
            others.refuse_if_ended_by_signal()
            if not is_first_to_fail:
                raise FailedElsewhere from error
            patience = 0  # The other ranks wait for this one, and have nothing to report.
            if lost := re.search(r"Connection (closed|reset) by peer( \S*\w)?", str(error)):
                raise ConnectionError(
                    f"ranks: expected all to run, lost one ({lost[0]}). Try resume=<run folder> on all machines."
                ) from error
        raise
    else:
        others.wait()
    finally:
        others.end(patience)


class OtherRanks:
    """The processes of the other ranks: none for one device, or where torchrun or SLURM has started the ranks."""

    def __init__(self, trainer: lightning.Trainer, arguments: list[str]) -> None:
        self._is_over = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._variables: dict[str, str] = {}
        launcher, environment = trainer.strategy.launcher, trainer._accelerator_connector.cluster_environment
        if launcher is None or environment.creates_processes_externally:
            return
        if not isinstance(launcher, _SubprocessScriptLauncher):
            raise ValueError(
                "trainer.strategy: expected a strategy that starts ranks as subprocesses, "
                f"got {getattr(trainer.strategy, 'strategy_name', type(trainer.strategy).__name__)}. Try ddp."
            )
        # These variables keep Lightning from starting ranks itself.
        self._variables = variables(environment, trainer.world_size)
        os.environ |= self._variables
        inherited = os.environ | {STARTED_BY: str(os.getpid()), "HYDRA_FULL_ERROR": str(int(ranks.wants_traceback))}
        self._processes = [
            subprocess.Popen([*CHILD, *arguments], env=inherited | {"LOCAL_RANK": str(rank)})
            for rank in range(1, trainer.num_devices)
        ]
        AT_FORCED_END.append(self._kill)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End this process if another rank has failed and this one does not notice."""
        while not self._is_over.wait(POLL_SECONDS):
            if any(process.poll() for process in self._processes):
                break
        patience = PATIENCE_AFTER_SIGNAL if self._ended_by_signal() else PATIENCE
        if self._is_over.wait(patience):
            return
        exit_code = 1
        try:
            self.refuse_if_ended_by_signal()
        except Interrupted as error:
            exit_code = error.code
            # Ends all but a wait for the other rank, in which no handler of Python is called.
            os.kill(os.getpid(), exit_code - 128)
            if self._is_over.wait(patience):
                return
            print(f"{NAME}: {error}", file=sys.stderr, flush=True)
        except ChildProcessError as error:
            print(f"{NAME}: {error}", file=sys.stderr, flush=True)
        self._kill()
        os._exit(exit_code)

    def _ended_by_signal(self) -> list[tuple[int, signal.Signals]]:
        """Return the ranks that a signal has ended, with the signal."""
        ended = [(rank, signal_that_ended(process.poll() or 0)) for rank, process in enumerate(self._processes, 1)]
        return [(rank, number) for rank, number in ended if number is not None]

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def refuse_if_ended_by_signal(self) -> None:
        """Report a rank that a signal has ended, since it does not report that itself.

        Raises:
            Interrupted: if the rank was asked to stop, so that all ranks stop.
            ChildProcessError: naming the rank and the signal, if the rank was killed.
        """
        if self._processes:
            time.sleep(POLL_SECONDS)
        for rank, number in self._ended_by_signal():
            if number in STOPPING:
                raise Interrupted(number)
            raise ChildProcessError(f"the process of rank {rank} was killed by {number.name}")

    def wait(self) -> None:
        """Wait until the other ranks have ended too.

        Raises:
            FailedElsewhere: if a rank ended with an error.
            ChildProcessError: if a rank was killed.
            Interrupted: if a rank was asked to stop after the training.
        """
        for process in self._processes:
            process.wait()
        self.refuse_if_ended_by_signal()
        if any(process.returncode for process in self._processes):
            raise FailedElsewhere

    def end(self, patience: float) -> None:
        """Wait for the ranks that still run, at most ``patience`` seconds, and kill what is left."""
        self._is_over.set()
        until = time.monotonic() + patience
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, until - time.monotonic()))
        self._kill()
        if self._kill in AT_FORCED_END:
            AT_FORCED_END.remove(self._kill)
        for name in self._variables:
            os.environ.pop(name, None)


def variables(environment: ClusterEnvironment, world_size: int) -> dict[str, str]:
    """Return the environment variables by which ranks find each other, on this machine and on others."""
    return {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
    }


class SameOnAllRanks(lightning.Callback):
    """A callback that refuses to start where ranks would train different things, or in different precisions.

    Args:
        settings: the values that must be equal on all ranks, by key.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = flatten(settings)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Compare the settings of all ranks.

        Raises:
            ValueError: naming each key that differs, with both values.
        """
        settings = self.settings | {"precision": trainer.precision}
        text = json.dumps(settings, sort_keys=True, default=str)
        if len(set(collectives.all_gather(hashlib.sha256(text.encode()).hexdigest()))) == 1:
            return
        first, *others = collectives.all_gather(settings)
        for rank, other in enumerate(others, start=1):
            different = [key for key in sorted({*first, *other}) if first.get(key) != other.get(key)]
            if different:
                values = ", ".join(f"{key}: {first.get(key)} and {other.get(key)}" for key in different)
                raise ValueError(f"ranks: expected equal settings on all ranks, got on rank 0 and rank {rank} {values}")
