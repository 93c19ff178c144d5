"""resume=: what it continues, what it starts again, and what it refuses."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import torch
import yaml
from command_line import QUICK
from run_folder import COMPLETE, Trained, files_of

from ssd_lightning.cli.run_folders import holding_folders, resume_in_run_folder
from ssd_lightning.training import checkpoint_files


@pytest.fixture(autouse=True)
def holding(request):
    """Hold folders as a command does, for tests that run no command."""
    with contextlib.nullcontext() if "run" in request.fixturenames else holding_folders():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as a killed run leaves it before its first checkpoint."""
    saved = tmp_path / "run" / ".hydra"
    saved.mkdir(parents=True)
    (saved / "config.yaml").write_text(yaml.safe_dump({"resume": None, "batch_size": 4}))
    (saved / "overrides.yaml").write_text(yaml.safe_dump(["batch_size=4", "++data.num_train=8", "loss=focal"]))
    return saved.parent


def write_checkpoint(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").touch()


def is_started_anew(arguments: list[str], folder: Path) -> bool:
    assert arguments[:4] == ["--config-path", str(folder / ".hydra"), "--config-name", "config"]
    assert f'hydra.run.dir="{folder}"' in arguments
    return not any(argument.startswith("resume=") for argument in arguments)


def test_a_run_with_a_checkpoint_is_continued(folder: Path):
    write_checkpoint(folder)
    arguments = resume_in_run_folder([f"resume={folder}", "trainer.max_epochs=9"])
    assert not is_started_anew(arguments, folder)
    assert arguments[-2:] == [f'resume="{folder}"', "trainer.max_epochs=9"]


def test_the_last_checkpoint_stands_for_its_run(folder: Path):
    write_checkpoint(folder)
    arguments = resume_in_run_folder([f"resume={folder}/checkpoints/last.ckpt"])
    assert arguments == resume_in_run_folder([f"resume={folder}"])
    # Hydra would make a second log beside that of the start, and both stay empty.
    assert "hydra/job_logging=stdout" in arguments


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "metrics.csv", "figures/curves.png"])
def test_another_file_is_refused_with_its_run(folder: Path, name: str):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(ValueError, match=rf"^resume: .*{name}\. Try resume={folder}\b") as caught:
        resume_in_run_folder([f"resume={folder / name}"])
    assert (f"pretrained={folder / name}" in str(caught.value)) == name.endswith(".ckpt")


def test_a_sweep_is_resumed_by_another_key(folder: Path):
    (folder / "multirun.yaml").touch()
    with pytest.raises(ValueError, match=rf"^resume: .* Try resume_sweep={folder}\."):
        resume_in_run_folder([f"resume={folder}"])


def test_a_run_without_a_checkpoint_starts_again(folder: Path, capsys):
    assert is_started_anew(resume_in_run_folder([f"resume={folder}"]), folder)
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize("target", ["/no/such/disk/last.ckpt", "last.ckpt", "."])
def test_a_checkpoint_that_cannot_be_found_now_is_not_started_again(folder: Path, target: str):
    """The link may lead to a disk that is not mounted."""
    (folder / "checkpoints").mkdir()
    last = folder / "checkpoints" / "last.ckpt"
    last.symlink_to(target)
    with pytest.raises(ValueError, match=r"^resume: expected a checkpoint") as caught:
        resume_in_run_folder([f"resume={folder}"])
    assert str(last) in str(caught.value)


def test_auto_starts_what_has_not_begun(folder: Path):
    shutil.rmtree(folder)
    arguments = ["batch_size=4", f"hydra.run.dir={folder}"]
    assert resume_in_run_folder([*arguments, "resume=auto"]) == arguments


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_auto_continues_with_the_command_line_of_the_start(folder: Path, has_checkpoint: bool):
    if has_checkpoint:
        write_checkpoint(folder)
    typed = ["batch_size=4", "data.num_train=8", "loss=focal", f"hydra.run.dir={folder}", "resume=auto"]
    arguments = resume_in_run_folder([*typed, "trainer.max_epochs=9"])
    assert is_started_anew(arguments, folder) != has_checkpoint
    assert arguments[-1] == "trainer.max_epochs=9"
    assert "loss=focal" not in arguments


@pytest.mark.parametrize("other", ["batch_size=8", "loss=giou", "optimizer.lr=1", "+loss.alpha=2", "-m"])
@pytest.mark.parametrize("resume", ["auto", "folder"])
def test_what_is_being_trained_cannot_change(folder: Path, other: str, resume: str):
    where = [f"resume={folder}"] if resume == "folder" else ["resume=auto", f"hydra.run.dir={folder}"]
    with pytest.raises(ValueError, match=r"^resume: expected only changes of length.*, got ") as caught:
        resume_in_run_folder([*where, other])
    assert str(caught.value).endswith(other)


REMAINS = [{}, {"config.yaml": ""}, {"config.yaml": "resume: null\n"}, {"config.yaml": "a", "overrides.yaml": ""}]
"""Remains in ``.hydra`` of a process that was killed, or found the disk full, while Hydra wrote its three files."""


@pytest.mark.parametrize("remains", REMAINS)
@pytest.mark.parametrize("arguments", [["resume=auto"], []])
def test_the_remains_of_a_start_are_no_run(run, tmp_path: Path, remains: dict[str, str], arguments: list[str]):
    """The command gets as far as its next mistake, and leaves nothing."""
    (tmp_path / "run/.hydra").mkdir(parents=True)
    for name, content in remains.items():
        (tmp_path / "run/.hydra" / name).write_text(content)
    outcome = run("ssd-train", "hydra.run.dir=run", *arguments, "batch_size=0")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-train: batch_size: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "key"), [([], "hydra.run.dir"), (["resume=auto"], "resume"), (["-m"], "hydra.sweep.dir")]
)
def test_a_folder_that_cannot_be_made(run, tmp_path: Path, arguments: list[str], key: str):
    (tmp_path / "file").touch()
    where = "hydra.sweep.dir" if arguments == ["-m"] else "hydra.run.dir"
    outcome = run("ssd-train", *arguments, f"{where}=file/run")
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-train: {key}: expected a folder that can be written to, got {tmp_path}")


def test_a_mistake_leaves_no_folder(run, tmp_path: Path):
    outcome = run("ssd-train", "hydra.run.dir=a/b/run", "resume=auto", "modle=ssd")
    assert outcome.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("remains", REMAINS)
def test_the_remains_of_a_start_cannot_be_resumed(tmp_path: Path, remains: dict[str, str]):
    (tmp_path / ".hydra").mkdir()
    for name, content in remains.items():
        (tmp_path / ".hydra" / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^resume: expected a run .* got {tmp_path}"):
        resume_in_run_folder([f"resume={tmp_path}"])


@pytest.mark.usefixtures("empty_figures")
def test_a_disk_that_is_full_at_the_first_checkpoint(run, bananas: Path, tmp_path: Path, monkeypatch):
    """The same command starts the run again once there is space."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ["ssd-train", "data=banana", f"data.root={bananas}", *QUICK, "hydra.run.dir=run", "resume=auto"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "_save", refuse)
        outcome = run(*command)
    assert outcome.exit_code == 1
    assert "No space left on device" in outcome.message
    outcome = run(*command)
    assert outcome.exit_code == 0, outcome.error
    assert files_of(tmp_path / "run") >= COMPLETE


def test_auto_waits_for_the_end_of_the_former_process(folder: Path):
    """SLURM may queue a job again while its former process still saves the run."""
    program = "import sys, time, pathlib; from ssd_lightning.cli.folder_lock import FolderLock\n"
    program += "lock = FolderLock(pathlib.Path(sys.argv[1])); print(flush=True); time.sleep(1.5); lock.release()"
    former = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE)
    assert former.stdout is not None
    former.stdout.readline()
    resume_in_run_folder([f"hydra.run.dir={folder}", "resume=auto"])
    assert former.wait(timeout=20) == 0


@pytest.mark.parametrize("others", [[], ["hydra.run.dir=runs/${name}"], ["hydra.run.dir='${now:%H}'"]])
def test_auto_needs_a_folder(others: list[str]):
    with pytest.raises(ValueError, match=r"^resume: expected hydra\.run\.dir=<folder>"):
        resume_in_run_folder(["resume=auto", *others])


@pytest.mark.parametrize("content", ["a: 1", "[1]", "", "resume"])
def test_another_file_in_place_of_the_config(folder: Path, content: str):
    (folder / ".hydra/config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"^resume: expected the config of a run, got .*config\.yaml"):
        resume_in_run_folder([f"resume={folder}"])


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=rf"^resume: expected a run folder with \.hydra/config\.yaml, got {tmp_path}$"):
        resume_in_run_folder([f"resume={tmp_path}"])


def test_a_moved_run_keeps_its_best(run, trained, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    """Resuming at another path continues from the best score, and does not overwrite the best checkpoint."""
    folder = tmp_path / "moved"
    shutil.copytree(trained.folder, folder)
    best = folder / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    last = folder / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    [state] = [state for state in content["callbacks"].values() if state.get("monitor") == "val/map_50"]
    # No score is better than this one, so that the best checkpoint has to stay as it is.
    state["best_model_score"] = torch.tensor(2.0)
    state["kth_value"] = torch.tensor(2.0)
    state["best_k_models"] = {path: torch.tensor(2.0) for path in state["best_k_models"]}
    torch.save(content, last)
    outcome = run("ssd-train", f"resume={folder}", "trainer.max_epochs=3")
    assert outcome.exit_code == 0, outcome.error
    assert best.read_bytes() == before
    assert not [warning for warning in recwarn if "Checkpoint directory" in str(warning.message)]
    assert not list(folder.glob("*.log"))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["best.ckpt", "last.ckpt"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == 3
    assert summary["best_epoch"] == torch.load(best, weights_only=True)["epoch"]


@pytest.mark.parametrize("overrides", [["callbacks.best.monitor=val/map"], []], ids=["another score", "no states"])
def test_a_run_that_would_forget_its_best_is_refused(run, trained: Trained, tmp_path: Path, overrides: list[str]):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    best, last = folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"
    if not overrides:
        torch.save(torch.load(last, weights_only=True) | {"callbacks": {}}, last)
    before = best.read_bytes()
    outcome = run("ssd-train", f"resume={folder}", "trainer.max_epochs=3", *overrides)
    assert outcome.exit_code == 1
    [line] = outcome.error.splitlines()
    assert line.startswith("ssd-train: checkpoint: expected the best ")
    assert str(last) in line
    assert str(best) in line
    assert best.read_bytes() == before


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_runs_that_start_in_the_same_second_have_folders_of_their_own(
    run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr("hydra.core.utils.datetime", Stopped)
    for _ in range(3):
        outcome = run("ssd-evaluate", f"detections={trained.folder}")
        assert outcome.exit_code == 0, outcome.error
    names = sorted(path.name for path in (tmp_path / "runs/evaluate").iterdir())
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]
    assert str(tmp_path / "runs/evaluate" / names[2]) in outcome.out
    chosen = "hydra.run.dir=runs/evaluate/2026-01-02_03-04-05"
    assert run("ssd-evaluate", f"detections={trained.folder}", chosen).exit_code == 1
