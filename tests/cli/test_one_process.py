"""One process at a time works in the folder of a run or of a sweep."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import QUICK
from places import TESTS
from processes import TRAIN, finish, start, wait_for
from run_folder import COMPLETE, files_of, summary_of
from sweep_folder import column

from ssd_lightning.cli.folder_lock import LOCK_FILE

PAUSE = ["+callbacks.pause._target_=added_callbacks.PauseAtStep", "+callbacks.pause.step=4"]
TRUST = "trusted_packages=[added_callbacks]"


@pytest.fixture(scope="module")
def live(bananas: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run that has saved its first epoch, writes two files and waits for a signal."""
    folder = tmp_path_factory.mktemp("live")
    choices = ["data=banana", f"data.root={bananas}", *QUICK, "num_workers=1", "trainer.max_epochs=2", *PAUSE]
    process = start(folder, *TRAIN, *choices, "hydra.run.dir=run")
    wait_for((folder / "run/paused").exists, process)
    (folder / "run/checkpoints/.last.ckpt.1.part").touch()
    (folder / "run/.metrics.csv.1.part").touch()
    yield folder / "run", process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
class TestRun:
    """The tests run in this order: the last one kills the run."""

    @pytest.mark.parametrize(
        ("arguments", "key"),
        [
            (["resume={folder}"], "resume"),
            (["resume={folder}", TRUST, "trainer.max_epochs=3"], "resume"),
            (["resume=auto", "hydra.run.dir={folder}"], "resume"),
            (["hydra.run.dir={folder}"], "hydra.run.dir"),
        ],
    )
    def test_a_run_that_goes_on_is_not_touched(self, run, live, monkeypatch, arguments: list[str], key: str):
        folder, process = live
        monkeypatch.setattr("ssd_lightning.cli.run_folders.PATIENCE", 0.0)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != LOCK_FILE}
        outcome = run("ssd-train", *(argument.format(folder=folder) for argument in arguments))
        assert outcome.exit_code == 1
        assert outcome.message.startswith(f"ssd-train: {key}: expected ")
        assert f"got {folder}, which runs on host {os.uname().nodename} as process {process.pid}. " in outcome.message
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != LOCK_FILE} == before
        assert process.poll() is None

    @pytest.mark.usefixtures("empty_figures")
    def test_it_can_be_scored(self, run, live):
        folder, process = live
        scored = run("ssd-evaluate", f"checkpoint={folder}/checkpoints/best.ckpt", "num_workers=0", "device=cpu")
        assert scored.exit_code == 0, scored.error
        assert process.poll() is None

    @pytest.mark.usefixtures("empty_figures")
    def test_a_killed_run_is_resumed_at_once_without_its_remains(self, run, live):
        """The worker that loads pictures lives on for some seconds."""
        folder, process = live
        process.kill()
        process.wait()
        outcome = run("ssd-train", f"resume={folder}", TRUST, "num_workers=0")
        assert outcome.exit_code == 0, outcome.error
        assert summary_of(folder)["steps"] == 6
        assert files_of(folder) >= COMPLETE
        assert [path.name for path in folder.rglob("*") if path.name.endswith(".part") or path.name == LOCK_FILE] == []


@pytest.mark.slow
def test_a_sweep_that_goes_on_is_not_touched(run, stand_in, tmp_path: Path):
    folder = tmp_path / "sweep"
    process = start(
        tmp_path, str(TESTS / "sweep_program.py"), "-m", "seed=1,2", "name=slow", f"hydra.sweep.dir={folder}"
    )
    wait_for(lambda: (folder / "0/trains").exists() and (folder / "sweep.csv").exists(), process)
    for argument, key, path in [
        (f"resume_sweep={folder}", "resume_sweep", folder),
        (f"resume={folder / '0'}", "resume", folder / "0"),
        (f"hydra.sweep.dir={folder}", "hydra.sweep.dir", folder),
    ]:
        outcome = run("ssd-train", *(["-m", "seed=3,4"] if key == "hydra.sweep.dir" else []), argument)
        assert outcome.exit_code == 1
        assert outcome.message.startswith(f"ssd-train: {key}: expected ")
        assert f"got {path}, which runs on host {os.uname().nodename} as process {process.pid}. " in outcome.message
    assert column(folder, "status") == ["running", "waiting"]
    process.send_signal(signal.SIGTERM)
    finish(process, exit_code=128 + signal.SIGTERM)
    assert column(folder, "status") == ["interrupted", "waiting"]
    assert not list(folder.rglob(LOCK_FILE))
