"""Shape checks for every test, and the fixtures that tests of several rooms share."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

if sys.dont_write_bytecode:
    # Each of the many processes that tests start would compile the package again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:
    # The tests themselves run in parallel. Set before torch is imported, and for the commands that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
from banana_folder import write_banana_folder
from command_line import QUICK, run_command
from filelock import FileLock
from jaxtyping import install_import_hook
from matplotlib.figure import Figure
from run_folder import Trained

install_import_hook("ssd_lightning", "typechecker.typechecker")

# A shell that runs the tests in the background ignores Ctrl-C for them, and for the commands that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave the imported modules out of garbage collection, which takes a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # Some libraries warn about objects that outlive them.


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep tests, and the commands that they start, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def handlers_of_signals():
    """Restore the handlers of signals. A command that a signal has ended leaves its own, since its process ends."""
    from ssd_lightning.signals import STOPPING  # after the import hook

    former = {number: signal.getsignal(number) for number in STOPPING}
    file = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    yield
    signal.set_wakeup_fd(file, warn_on_full_buffer=False)
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command in this process, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return run_command


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write figures as empty files: drawing takes longer than a short training."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **settings: None)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory):
    """Make a folder with a given name once, for all of pytest's processes, and return its path."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def bananas(made_once) -> Path:
    return made_once("bananas", lambda folder: write_banana_folder(folder, num_train=12, num_val=4, side=64))


@pytest.fixture(scope="session")
def trained(bananas: Path, made_once) -> Trained:
    """A run of two epochs. Tests that change its files work on a copy."""

    def train(folder: Path) -> None:
        with contextlib.chdir(folder):
            outcome = run_command(
                "ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "trainer.max_epochs=2", "hydra.run.dir=run"
            )
        assert outcome.exit_code == 0, outcome.error
        (folder / "out.txt").write_text(outcome.out)

    folder = made_once("trained", train)
    return Trained(folder / "run", (folder / "out.txt").read_text())


@pytest.fixture
def types_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parts get values of wrong types, as from a command line, which checks no types of arguments."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
