"""Run folders: one run each, and the way in which a run is resumed in its folder."""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ssd_lightning.cli import overrides, ranks
from ssd_lightning.cli.errors import fail
from ssd_lightning.cli.folder_lock import STALE_SECONDS, FolderInUseError, FolderLock, InheritedLock
from ssd_lightning.cli.help import GROUPS
from ssd_lightning.cli.trust import refuse_untrusted_config, trusted_packages_in
from ssd_lightning.run_folder import (
    FIRST_START,
    SWEEP_FILE,
    read_choices,
    read_config,
    remove_unfinished_files,
    replace_text,
    run_of_file,
)

FIXED_AT_THE_START = {
    *(set(GROUPS) - {"data", "trainer", "logger", "callbacks"}),
    *("seed", "batch_size", "lr_reference_batch", "overfit_pictures", "pretrained"),
}
"""Keys that a resumed run cannot change: the checkpoint holds their effect, or the training would change midway."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, of a user's quota, and of a limit of the size of files."""

PATIENCE = STALE_SECONDS + 5
"""Seconds that ``resume=auto`` waits for another process. A process on a machine that was lost counts as ended then."""


class _Held:
    """The folders that a command writes to, and holds until its end."""

    def __init__(self) -> None:
        self.inherited = InheritedLock()
        self.locks: dict[Path, FolderLock] = {}
        self.created: list[Path] = []


_held: ContextVar[_Held | None] = ContextVar("_held", default=None)
"""The folders that the command of this process holds."""


@contextlib.contextmanager
def holding_folders() -> Iterator[None]:
    """Keep the folders of :func:`hold` until the block ends, or the outermost of such blocks."""
    if _held.get() is not None:
        yield
        return
    held = _Held()
    token = _held.set(held)
    try:
        yield
    finally:
        _held.reset(token)
        for lock in held.locks.values():
            lock.release()
        for folder in held.created:
            with contextlib.suppress(OSError):
                folder.rmdir()  # Only an empty folder can be removed.


def hold(folder: Path, key: str, expected: str, advice: str, patience: float = 0.0) -> None:
    """Hold a folder for this command; to be called within :func:`holding_folders`.

    The first rank holds the folder for all ranks, and the process of a sweep holds those of its jobs.

    Args:
        folder: the folder of a run or of a sweep, which is created.
        key: the argument that named the folder, for the message.
        expected: what a folder that no process holds would be, for the message.
        advice: the end of the message.
        patience: seconds to wait for another process.

    Raises:
        ValueError: if another process holds the folder, or the folder cannot be written to.
    """
    folder, held = Path(os.path.realpath(folder)), _held.get()
    assert held is not None
    if not ranks.is_first() or folder in held.locks or held.inherited.is_of(folder):
        return
    held.created += [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        held.locks[folder] = FolderLock(folder, patience)
    except FolderInUseError as error:
        raise ValueError(f"{key}: expected {expected}, got {folder}, which runs {error}. {advice}") from None
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{key}: expected a folder that can be written to, got {folder} ({reason})") from error


@contextlib.contextmanager
def naming_held_folder() -> Iterator[None]:
    """Name the folder that this command holds in an error of a full disk, where the system names no file.

    Hydra writes the first files of a run so.

    Raises:
        OSError: with the folder and the reason that the system gives.
    """
    try:
        yield
    except OSError as error:
        held = _held.get()
        if error.errno not in NO_SPACE or error.filename is not None or held is None or not held.locks:
            raise
        raise OSError(f"{next(reversed(held.locks))} could not be written: {error.strerror}") from error


def has_begun(folder: Path) -> bool:
    """Return True if a run has begun in a folder: Hydra has written the last of its files, or there is a checkpoint."""
    last_of_hydra = folder / ".hydra" / "overrides.yaml"
    is_saved = last_of_hydra.is_file() and last_of_hydra.stat().st_size > 0
    return is_saved or any((folder / "checkpoints").glob("*.ckpt"))


class RunFolderGuard(Callback):
    """A Hydra callback that refuses to start a run, or a sweep, in a folder that holds one.

    Messages end the process here, since Hydra turns exceptions of callbacks into warnings.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the folder of a new sweep, and save how it began."""
        folder, name = _folder_in(config, "hydra.sweep.dir"), str(config.hydra.job.name)
        if config.get("resume_sweep") is not None:
            return
        resume = f" or resume_sweep={folder}" if "resume_sweep" in config else ""

        def begin(path: Path) -> None:
            hold(path, "hydra.sweep.dir", "a new folder", "Try another.")
            if (path / SWEEP_FILE).exists():
                raise ValueError(
                    f"hydra.sweep.dir: expected a new folder, got {path}, which holds a sweep. Try another{resume}."
                )

        try:
            claimed = _claim(folder, "${now:" in OmegaConf.to_yaml(config.hydra.sweep), begin)
            if claimed != folder:
                with read_write(config.hydra), open_dict(config.hydra):
                    config.hydra.sweep.dir = str(claimed)
                    # The config of each job is composed anew, from these arguments.
                    config.hydra.overrides.hydra.append(f"hydra.sweep.dir={overrides.quote(claimed)}")
            text = OmegaConf.to_yaml(config)
            # Hydra's basic sweeper writes the second file anew at every start; other sweepers do not write it.
            replace_text(claimed / FIRST_START, text)
            replace_text(claimed / SWEEP_FILE, text)
        except ValueError as error:
            fail(name, str(error))
        except OSError as error:
            fail(name, f"hydra.sweep.dir: expected a folder that can be written to, got {folder} ({error})")

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the folder of a new run by creating its ``.hydra``."""
        folder, name = _folder_in(config, "hydra.run.dir"), str(config.hydra.job.name)
        is_chosen = any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra)
        if ranks.is_one_of_several_started_alike() and not is_chosen:
            # The default name holds the time, which may differ between ranks that torchrun or SLURM starts.
            fail(
                name,
                f"hydra.run.dir: expected a folder that all ranks share, got {folder}. Try hydra.run.dir=<folder>.",
            )
        if not ranks.is_first():
            return
        try:
            claimed = _claim(folder, "${now:" in OmegaConf.to_yaml(config.hydra.run), _begin_run)
            if claimed != folder:
                with read_write(config.hydra.run):
                    config.hydra.run.dir = str(claimed)
        except ValueError as error:
            fail(name, str(error))
        except FileExistsError as error:
            if (folder / ".hydra").is_dir():
                advice = f"resume={folder}" if "resume" in config else "another"
                fail(name, f"hydra.run.dir: expected a new folder, got {folder}, which holds a run. Try {advice}.")
            fail(name, f"hydra.run.dir: expected a folder that can be made, got {folder} ({error})")
        except OSError as error:
            fail(name, f"hydra.run.dir: expected a folder that can be made, got {folder} ({error})")


def _claim(folder: Path, has_time: bool, begin: Callable[[Path], None]) -> Path:
    """Claim the folder of a new run or sweep, and return the folder.

    Args:
        folder: the folder.
        has_time: True if the name of the folder is made from the time. A run or a sweep that starts in the same second
            as another gets a number as well.
        begin: begins in a folder, and raises a ValueError or FileExistsError if the folder is not free.

    Raises:
        ValueError: if another process works in the folder.
        FileExistsError: if the folder holds a run or sweep, or is a file.
        OSError: if the folder cannot be made.
    """
    for number in itertools.count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            begin(path)
            return path
        except (ValueError, FileExistsError):
            if not has_time or not path.is_dir():
                raise
    raise AssertionError("the numbers do not end")


def _begin_run(folder: Path) -> None:
    """Begin a run in a folder by creating its ``.hydra``."""
    hold(folder, "hydra.run.dir", "a new folder", "Try another.")
    if not has_begun(folder):
        # A process was killed, or found the disk full, while Hydra wrote these files.
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
    (folder / ".hydra").mkdir()


def _folder_in(config: DictConfig, key: str) -> Path:
    """Return the folder of a key, and fail in one line if its name refers to a key that does not exist."""
    name = str(config.hydra.job.name)
    try:
        folder = str(OmegaConf.select(config, key))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        fail(name, f"{key}: expected a folder, got a name with ${{…}} ({reason}). Try another.")
    if not folder:  # As from a variable of a script that is not set. It would be the working folder.
        fail(name, f"{key}: expected a folder, got none. Try {key}=. for the working folder.")
    return Path(folder)


def resume_in_run_folder(arguments: list[str]) -> list[str]:
    """Expand ``resume=<run folder>`` to the arguments that continue the run in that folder, with its saved config.

    A run without a checkpoint starts from its beginning, so that a job that was killed early can be queued again.
    ``resume=auto`` continues the run in ``hydra.run.dir`` if there is one, and starts a run there otherwise. The
    arguments of the first start may be repeated, so that a script for a cluster has one command line. Other arguments
    stay and override the saved config.

    Raises:
        ValueError: if the folder holds no run, its config names untrusted code, or an argument would change the
            training.
    """
    resumed = [overrides.value_of(argument) for argument in arguments if argument.startswith("resume=")]
    if not resumed or not resumed[-1]:
        return arguments
    if "--config-path" in arguments:  # The first rank has expanded them.
        return arguments
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    is_auto = resumed[-1] == "auto"
    if is_auto:
        folders = [overrides.value_of(other) for other in others if other.startswith("hydra.run.dir=")]
        if not folders or not folders[-1]:
            raise ValueError("resume: expected hydra.run.dir=<folder> beside resume=auto, got none")
        if "${" in folders[-1]:  # The name is not known yet.
            raise ValueError(f"resume: expected hydra.run.dir=<folder> without ${{…}}, got {folders[-1]}")
        folder = Path(folders[-1]).resolve()
    else:
        folder = _run_to_resume(Path(resumed[-1]).resolve())
    config = folder / ".hydra" / "config.yaml"
    if is_auto or config.is_file():
        # A cluster may start a job again while its former process still saves the run.
        patience = PATIENCE if is_auto else 0.0
        hold(folder, "resume", "a run that has ended", "Try again when it has ended.", patience)
    if is_auto and not has_begun(folder):
        return others
    if not config.is_file():
        raise ValueError(f"resume: expected a run folder with .hydra/config.yaml, got {folder}")
    if not has_begun(folder):
        raise ValueError(f"resume: expected a run that has begun, got {folder}. Try the command that should start it.")
    if ranks.is_first():
        remove_unfinished_files(folder)
    if is_auto:
        others = _without_saved(others, folder)
    try:
        saved = read_config(config)
    except ValueError as error:
        raise ValueError(f"resume: {error}") from error
    if not isinstance(saved, dict) or "resume" not in saved:
        raise ValueError(f"resume: expected the config of a run, got {config}")
    refuse_untrusted_config(saved, config, "resume", trusted_packages_in(arguments))
    for other in others:
        key = other.partition("=")[0]
        is_fixed = key.lstrip("+~").partition(".")[0] in FIXED_AT_THE_START
        if is_fixed or key in GROUPS or key in ("-m", "--multirun", "hydra.run.dir"):
            raise ValueError(f"resume: expected only changes of length, loggers, devices and data, got {other}")
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        if os.path.lexists(last):  # Such as a link to a disk that is not there now.
            raise ValueError(f"resume: expected a checkpoint, got {last}, which is no file or a link to no file")
        print(f"{folder} has no checkpoint, so the run starts from its beginning", flush=True)
        return [*run_in_folder(folder), *others]
    return [*run_in_folder(folder), f"resume={overrides.quote(folder)}", *others]


def _run_to_resume(given: Path) -> Path:
    """Return the run folder that ``resume=…`` means: the folder itself, or the folder of a last checkpoint.

    Raises:
        ValueError: if another file, or the folder of a sweep, was given.
    """
    if (given / SWEEP_FILE).is_file():
        raise ValueError(f"resume: expected the folder of one run, got the sweep {given}. Try resume_sweep={given}.")
    if not given.is_file():
        return given
    folder = run_of_file(given)
    if given.name != "last.ckpt":
        new = f", or pretrained={given} for a new run from these weights" if given.suffix == ".ckpt" else ""
        raise ValueError(f"resume: expected a run folder, got the file {given}. Try resume={folder}{new}.")
    return folder


def _without_saved(arguments: list[str], folder: Path) -> list[str]:
    """Leave out the arguments that a run was started with, and its folder."""
    path = folder / ".hydra" / "overrides.yaml"
    saved = (read_config(path) if path.is_file() else None) or []
    known = {str(argument).lstrip("+") for argument in saved}
    return [a for a in arguments if a.lstrip("+") not in known and not a.startswith("hydra.run.dir=")]


def run_in_folder(folder: Path) -> list[str]:
    """Return the arguments that run the config saved in a run folder, in that folder."""
    saved = ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    return [*saved, f"hydra.run.dir={overrides.quote(folder)}", "hydra.output_subdir=null", overrides.NO_LOG_FILE]


def chosen_options(folder: Path) -> dict[str, str]:
    """Return the option of each group that a run was composed from, also for a resumed run."""
    choices = read_choices(folder) if os.path.lexists(folder / ".hydra" / "hydra.yaml") else {}
    return {group: option for group, option in choices.items() if group in GROUPS}


def state_of(folder: Path, config: DictConfig) -> str:
    """Describe, after an interruption, what a run folder holds and how to resume it."""
    if not folder.exists():
        return "nothing was written"
    if "resume" not in config:
        return f"{folder} is not complete"
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return f"{folder} has no checkpoint to resume from"
    return f"resume={folder} continues from its last checkpoint"
