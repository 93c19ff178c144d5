"""Sweeps over a grid: ``ssd-train -m``. A stand-in takes the place of training."""

import contextlib
import json
import os
import re
import shutil
import signal
from datetime import datetime, tzinfo
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_line import QUICK, Outcome, run_command
from omegaconf import OmegaConf
from places import TESTS
from processes import finish, start, wait_for
from run_folder import summary_of
from sweep_folder import column, table

from ssd_lightning.cli import run_folders
from ssd_lightning.cli.folder_lock import FolderLock
from ssd_lightning.cli.sweep import jobs as sweep
from ssd_lightning.cli.sweep import start as start_of_sweep
from ssd_lightning.cli.sweep import table as sweep_table
from ssd_lightning.scoring.csv_tables import read_table

pytestmark = pytest.mark.usefixtures("stand_in")

GRID = ["-m", "optimizer.lr=0.1,0.3", "hydra.sweep.dir=sweep"]


class TestGrid:
    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, stand_in, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
        """The folder of a sweep of four jobs, started as if on a cluster, and what it printed."""
        folder = tmp_path_factory.mktemp("work")
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            for variable in ("WORLD_SIZE", "MASTER_PORT"):
                patch.setenv(variable, "2")
            patch.setenv("SLURM_JOB_NAME", "ssd-train")
            outcome = run_command("ssd-train", *GRID, "seed=0,6", "model=tiny_ssd")
        assert outcome.exit_code == 0, outcome.error
        return folder / "sweep", outcome

    def test_each_job_has_its_folder_and_a_row(self, finished: tuple[Path, Outcome]):
        folder, outcome = finished
        rows = table(folder)
        varied = [(row["optimizer.lr"], row["seed"], row["AP50"], row["folder"]) for row in rows]
        assert varied == [
            ("0.1", "0", "0.1", "0"), ("0.1", "6", "0.16", "1"), ("0.3", "0", "0.3", "2"), ("0.3", "6", "0.36", "3"),
        ]  # fmt: skip
        assert ",".join(rows[0]) == "optimizer.lr,seed,AP50,AP,VOC07,VOC12,job seconds,parameters,status,reason,folder"
        assert {row["status"] for row in rows} == {"finished"}
        assert "4 of 4 jobs finished" in outcome.out
        assert "0.360" in outcome.out
        for number, row in enumerate(rows):
            config = yaml.safe_load((folder / str(number) / ".hydra/config.yaml").read_text())
            assert str(config["optimizer"]["lr"]) == row["optimizer.lr"]

    def test_mean_and_deviation_over_seeds(self, finished: tuple[Path, Outcome]):
        folder, outcome = finished
        rows = table(folder, "seeds.csv")
        assert [(row["optimizer.lr"], row["seeds"]) for row in rows] == [("0.1", "2"), ("0.3", "2")]
        assert [float(row["AP50 mean"]) for row in rows] == pytest.approx([0.13, 0.33])
        assert [float(row["VOC12 std"]) for row in rows] == pytest.approx([0.0018**0.5] * 2)
        assert "0.130 ± 0.042" in outcome.out

    def test_a_job_is_an_ordinary_run_and_no_rank(self, finished: tuple[Path, Outcome]):
        folder = finished[0]
        child = summary_of(folder / "1")
        assert child["arguments"] == [
            "--config-path", str(folder / "1/.hydra"), "--config-name", "config",
            f'hydra.run.dir="{folder / "1"}"', "hydra.output_subdir=null", "hydra/job_logging=stdout",
            "hydra.job.name=ssd-train",
        ]  # fmt: skip
        assert not {"WORLD_SIZE", "MASTER_PORT", "HYDRA_FULL_ERROR"} & set(child["environment"])
        assert child["environment"]["SLURM_JOB_NAME"] == "interactive"

    def test_a_job_with_a_damaged_file_is_not_finished(self, finished: tuple[Path, Outcome], tmp_path: Path):
        sweep = shutil.copytree(finished[0], tmp_path / "sweep")
        (sweep / "0/summary.json").write_text('{"scores": {"val/map_50": "0.1"}}')
        (sweep / "1/summary.json").write_text("[" * 100_000)
        (sweep / "2/job.json").write_text('{"status": "fin')
        jobs = sweep_table.read_jobs(sweep)
        assert [job.status for job in jobs] == ["failed", "failed", "interrupted", "finished"]
        assert "summary.json" in jobs[0].reason
        (sweep / "3/.hydra/overrides.yaml").write_text("a: &a [1]\nb: *a\n")
        with pytest.raises(ValueError, match=r"3/.hydra/overrides\.yaml: expected no aliases"):
            sweep_table.read_jobs(sweep)

    def test_a_sweep_folder_is_never_used_twice(self, run, finished: tuple[Path, Outcome]):
        folder = finished[0]
        before = [(folder / name).read_bytes() for name in ("sweep.csv", "multirun.yaml")]
        outcome = run("ssd-train", "-m", "seed=5,6", f"hydra.sweep.dir={folder}")
        assert outcome.exit_code == 1
        assert outcome.message.startswith("ssd-train: hydra.sweep.dir: ")
        assert str(folder) in outcome.message
        assert before == [(folder / name).read_bytes() for name in ("sweep.csv", "multirun.yaml")]

    def test_a_failed_job_does_not_stop_it(self, run, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "batch_size=3,4")
        assert outcome.exit_code == 1
        assert "2 of the jobs failed" in outcome.error
        assert column(tmp_path / "sweep", "status") == ["failed", "finished"] * 2
        assert column(tmp_path / "sweep", "reason") == ["out of memory", ""] * 2
        assert column(tmp_path / "sweep", "AP50") == ["", "0.1", "", "0.3"]
        assert "0 failed: out of memory" in outcome.out
        assert (tmp_path / "sweep/0/.hydra/config.yaml").exists()

    def test_a_failed_job_stops_it_on_request(self, run, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "batch_size=3,4", "stop_sweep_on_failure=true")
        assert outcome.exit_code == 1
        assert f"{tmp_path / 'sweep/0'} failed, and no other job starts" in outcome.error
        assert column(tmp_path / "sweep", "status") == ["failed", "waiting", "waiting", "waiting"]

    @pytest.mark.parametrize("at_once", [1, 2])
    def test_number_of_jobs_that_run_at_once(self, run, tmp_path: Path, monkeypatch, at_once: int):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
        outcome = run(
            "ssd-train", "-m", "seed=0,1,2", "batch_size=5", f"jobs_at_once={at_once}", "hydra.sweep.dir=sweep"
        )
        assert outcome.exit_code == 0, outcome.error
        jobs = [summary_of(tmp_path / "sweep" / str(number)) for number in range(3)]
        most = max(sum(a["began"] <= b["began"] < a["ended"] for a in jobs) for b in jobs)
        assert most == at_once
        if at_once == 2:
            assert [job["environment"]["OMP_NUM_THREADS"] for job in jobs] == ["4"] * 3
            assert {job["environment"]["CUDA_VISIBLE_DEVICES"] for job in jobs} == {"4,6", "5,7"}
        else:
            assert "OMP_NUM_THREADS" not in jobs[0]["environment"]
        assert column(tmp_path / "sweep", "status") == ["finished"] * 3

    def test_failures_of_jobs_that_run_at_once(self, run, tmp_path: Path):
        outcome = run("ssd-train", "-m", "batch_size=3,4", "jobs_at_once=2", "hydra.sweep.dir=sweep")
        assert outcome.exit_code == 1
        assert column(tmp_path / "sweep", "status") == ["failed", "finished"]
        assert "a warning" in (tmp_path / "sweep/0/output.log").read_text()

    def test_two_jobs_with_one_folder_are_refused(self, run):
        outcome = run("ssd-train", *GRID, "hydra.sweep.subdir=job")
        assert outcome.exit_code == 1
        assert "hydra.sweep.subdir: " in outcome.error


@pytest.mark.usefixtures("empty_figures")
def test_the_arguments_of_a_job_train_what_the_sweep_says(run, bananas: Path, tmp_path: Path):
    """The arguments that the stand-in got are run, in this process."""
    outcome = run("ssd-train", "-m", "data=banana", f"data.root={bananas}", *QUICK, "seed=3", "hydra.sweep.dir=sweep")
    assert outcome.exit_code == 0, outcome.error
    job = tmp_path / "sweep/0"
    outcome = run("ssd-train", *summary_of(job)["arguments"])
    assert outcome.exit_code == 0, outcome.error
    assert (summary_of(job)["seed"], summary_of(job)["steps"]) == (3, 3)
    assert summary_of(job)["choices"]["data"] == "banana"


class TestResume:
    @pytest.mark.slow
    def test_runs_only_the_jobs_that_failed_or_are_missing(self, run, tmp_path: Path, monkeypatch):
        run("ssd-train", *GRID, "batch_size=3,4")
        folder = tmp_path / "sweep"
        shutil.rmtree(folder / "3")  # It then counts as not begun.
        files = {path: path.read_bytes() for path in (folder / "1").rglob("*") if path.is_file()}
        monkeypatch.setenv("REPAIRED", "yes")
        for others in (["jobs_at_once=2"], []):
            outcome = run("ssd-train", f"resume_sweep={folder}", *others)
            assert outcome.exit_code == 0, outcome.error
            assert column(folder, "status") == ["finished"] * 4
            assert column(folder, "folder") == ["0", "1", "2", "3"]
            assert column(folder, "AP50") == ["0.1", "0.1", "0.3", "0.3"]
            assert {path: path.read_bytes() for path in (folder / "1").rglob("*") if path.is_file()} == files
            assert (folder / "set_aside/0_1/job.json").exists()
        config = yaml.safe_load((folder / "3/.hydra/config.yaml").read_text())
        assert (config["batch_size"], config["resume_sweep"]) == (4, None)
        assert run_folders.chosen_options(folder / "3")["model"] == "tiny_ssd128"

    @pytest.mark.parametrize("share", [0, 0.5])
    def test_a_config_that_a_full_disk_has_cut(self, run, tmp_path: Path, monkeypatch, share: float):
        """Hydra empties multirun.yaml and writes it anew at every start of a sweep."""
        run("ssd-train", *GRID, "batch_size=3")
        saved = tmp_path / "sweep/multirun.yaml"
        saved.write_text(saved.read_text()[: int(share * saved.stat().st_size)])
        monkeypatch.setenv("REPAIRED", "yes")
        outcome = run("ssd-train", "resume_sweep=sweep")
        assert outcome.exit_code == 0, outcome.error
        assert column(tmp_path / "sweep", "status") == ["finished"] * 2
        assert yaml.safe_load(saved.read_text())["optimizer"]

    def test_finds_the_data_from_another_folder_too(self, run, tmp_path: Path, monkeypatch):
        run("ssd-train", *GRID, "data=banana", "data.root=Äpfel (1)")
        shutil.rmtree(tmp_path / "sweep/1")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        outcome = run("ssd-train", "resume_sweep=../sweep")
        assert outcome.exit_code == 0, outcome.error
        for job in ("0", "1"):
            config = yaml.safe_load((tmp_path / "sweep" / job / ".hydra/config.yaml").read_text())
            run_in = summary_of(tmp_path / "sweep" / job)["cwd"]
            assert Path(run_in, config["data"]["root"]) == tmp_path / "Äpfel (1)"
        assert column(tmp_path / "sweep", "status") == ["finished"] * 2

    def test_leaves_alone_a_job_that_another_process_runs(self, run, tmp_path: Path, monkeypatch):
        run("ssd-train", *GRID, "batch_size=3")
        job = tmp_path / "sweep/0"
        (job / "job.json").write_text('{"status": "running"}')
        monkeypatch.setattr(start_of_sweep, "PATIENCE", 0)
        lock = FolderLock(job)
        outcome = run("ssd-train", f"resume_sweep={tmp_path / 'sweep'}")
        assert f"{job} is being run on host " in outcome.out
        assert f"process {os.getpid()}" in outcome.out
        assert column(tmp_path / "sweep", "status") == ["running", "failed"]
        lock.release()
        assert [job.status for job in sweep_table.read_jobs(tmp_path / "sweep")] == ["interrupted", "failed"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["resume_sweep=nowhere"],
            ["resume_sweep=sweep", "loss=focal"],
            ["resume_sweep=sweep", "hydra.sweep.dir=other"],
        ],
    )
    def test_mistakes(self, run, tmp_path: Path, arguments: list[str]):
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep/multirun.yaml").touch()
        outcome = run("ssd-train", *arguments)
        assert outcome.exit_code == 1
        assert outcome.message.startswith("ssd-train: resume_sweep: ")
        assert arguments[-1].removeprefix("resume_sweep=") in outcome.message


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_stops_the_job_and_no_other_starts(run, tmp_path: Path, number: signal.Signals, to_all: bool):
    """SIGTERM goes to the sweep's process alone, SIGINT to all processes as from a terminal."""
    folder = tmp_path / "sweep"
    process = start(tmp_path, str(TESTS / "sweep_program.py"), *GRID, "name=slow", "seed=1")
    wait_for(lambda: (folder / "0/trains").exists() and (folder / "sweep.csv").exists(), process)
    assert column(folder, "status") == ["running", "waiting"]
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, error = finish(process, exit_code=128 + number)
    assert "Traceback" not in error
    assert column(folder, "status") == ["interrupted", "waiting"]
    assert column(folder, "reason")[0].startswith(f"stopped by {number.name}")
    assert "0 of 2 jobs finished" in out
    assert f"resume_sweep={folder}" in out

    (folder / "1/checkpoints").mkdir(parents=True)  # With a checkpoint, the stand-in does not wait.
    (folder / "1/checkpoints/last.ckpt").touch()
    outcome = run("ssd-train", f"resume_sweep={folder}")
    assert outcome.exit_code == 0, outcome.error
    assert summary_of(folder / "0")["resumed"]
    assert summary_of(folder / "0")["arguments"] == [f"resume={folder / '0'}"]
    assert column(folder, "status") == ["finished"] * 2


def test_a_killed_sweep_is_resumed_at_the_first_attempt(run, tmp_path: Path):
    """The job saves itself and ends, also while the sweep is resumed. Unfinished files are removed."""
    folder = tmp_path / "sweep"
    process = start(tmp_path, str(TESTS / "sweep_program.py"), "-m", "name=slow,quick", "hydra.sweep.dir=sweep")
    wait_for((folder / "0/trains").exists, process)
    process.kill()
    process.wait()
    (folder / "1/.hydra").mkdir(parents=True)
    (folder / "1/.hydra/config.yaml").write_text("name: slow\n")
    for place in (".sweep.csv", "0/.metrics.csv", "0/checkpoints/.last.ckpt"):
        (folder / f"{place}.1.part").parent.mkdir(exist_ok=True)
        (folder / f"{place}.1.part").touch()
    outcome = run("ssd-train", f"resume_sweep={folder}")
    assert outcome.exit_code == 0, outcome.error
    assert column(folder, "status") == ["finished"] * 2
    assert [summary_of(folder / job)["resumed"] for job in ("0", "1")] == [True, False]
    assert (folder / "set_aside/1_1/.hydra/config.yaml").exists()
    assert not [path for path in folder.rglob(".*") if path.suffix == ".part" or path.name == ".running"]
    process.communicate()


@pytest.mark.slow
def test_sweeps_that_start_in_the_same_second_have_folders_of_their_own(run, tmp_path: Path, monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr("hydra.core.utils.datetime", Stopped)
    place, name = tmp_path / "runs/banana_tiny", "sweep_2026-01-02_03-04-05"
    lock = FolderLock(place / name)  # as of another process that has just begun
    outcome = run("ssd-train", "-m", "seed=1")
    lock.release()
    assert outcome.exit_code == 0, outcome.error
    outcome = run("ssd-train", "-m", "seed=2,3", "batch_size=3")
    assert outcome.exit_code == 1
    outcome = run("ssd-train", "-m", "seed=4")
    assert outcome.exit_code == 0, outcome.error
    folders = [place / name, place / f"{name}_2", place / f"{name}_3"]
    assert sorted(place.iterdir()) == folders
    assert [column(folder, "folder") for folder in folders] == [["0", "1"], ["0"], ["0"]]
    assert [summary_of(folder / "0")["parameters"] for folder in folders[1:]]
    monkeypatch.setenv("REPAIRED", "yes")
    outcome = run("ssd-train", f"resume_sweep={folders[0]}")
    assert outcome.exit_code == 0, outcome.error
    assert column(folders[0], "AP50") == ["0.025", "0.035"]  # of the learning rate and the seed
    assert sorted(place.iterdir()) == folders
    chosen = run("ssd-train", "-m", "seed=5", f"hydra.sweep.dir={folders[0]}")
    assert (chosen.exit_code, sorted(place.iterdir())) == (1, folders)
    assert str(folders[0]) in chosen.message


def test_the_table_holds_no_formulas(tmp_path: Path, monkeypatch):
    jobs = [sweep_table.Job({"name": name, "optimizer.lr": "-1"}, "failed", "=reason") for name in ("=a", "@b")]
    monkeypatch.setattr(sweep_table, "all_jobs", lambda sweep: jobs)
    monkeypatch.setattr(sweep_table, "objectives_of", lambda sweep: {})
    sweep_table.update(tmp_path)
    assert column(tmp_path, "name") == ["'=a", "'@b"]
    assert column(tmp_path, "reason") == ["'=reason"] * 2
    assert read_table(tmp_path / "sweep.csv")["name"].tolist() == ["=a", "@b"]


@pytest.mark.parametrize(
    ("values", "directions", "front"),
    [
        ([(1, 5), (2, 4), (1, 4), (3, 1), None], ("maximize", "maximize"), [True, True, False, True, False]),
        ([(1, 5), (2, 4), (1, 4), (3, 1), None], ("maximize", "minimize"), [False, False, False, True, False]),
        ([(1, 1), (1, 1)], ("minimize", "maximize"), [True, True]),
        ([(1, 2, 3), (1, 2, 2), (0, 9, 3)], ("minimize", "minimize", "maximize"), [True, False, True]),
        ([], ("minimize",), []),
    ],
)
def test_the_front_is_what_no_other_row_beats_in_all_values(values, directions, front):
    assert sweep_table.on_front(values, directions) == front


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["jobs_at_once=0"], {}, "jobs_at_once: .* got 0"),
        ([], {"LOCAL_RANK": "0"}, "LOCAL_RANK.*torchrun"),
        (["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"], {}, "tasks_per_node: expected 1"),
    ],
)
def test_wrong_settings_of_a_sweep_are_refused(run, tmp_path: Path, monkeypatch, arguments, environment, message: str):
    if arguments and "submitit" in arguments[0]:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    outcome = run("ssd-train", *GRID, *arguments)
    assert outcome.exit_code == 1
    assert re.search(message, outcome.error)
    assert not (tmp_path / "sweep/0").exists()


@pytest.mark.parametrize(
    ("argument", "package"),
    [
        ("hparams_search=banana_optuna", "optuna"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher"),
    ],
)
def test_a_missing_plugin_is_named(run, monkeypatch, argument: str, package: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = run("ssd-train", "-m", argument)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-train: {argument}: ")
    assert package in outcome.message


@pytest.mark.parametrize(
    ("lines", "code", "reason"),
    [
        (["ssd-train: batch_size: too large", "a later line"], 1, "batch_size: too large"),
        (["[rank1]: Traceback", "[rank1]: torch.OutOfMemoryError: no more", ""], 1, "torch.OutOfMemoryError: no more"),
        (["anything"], -9, "killed by SIGKILL"),
        (["anything"], 7, "exit code 7"),
        ([], 0, "ended without a summary.json"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(lines: list[str], code: int, reason: str):
    assert sweep.reason_of(lines, code) == reason


# --- a job that SLURM queues again ---


def test_a_job_that_is_queued_again_is_itself_though_another_has_the_same_values(tmp_path: Path, monkeypatch):
    folders = [tmp_path / "sweep" / name for name in ("2", "5")]
    for folder, status in zip(folders, ("finished", "interrupted"), strict=True):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra/config.yaml").write_text("seed: 1\n")
        (folder / ".hydra/overrides.yaml").write_text("[seed=1]\n")
        (folder / "job.json").write_text(json.dumps({"status": status}))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").touch()
        scores = dict.fromkeys(("val/map_50", "val/map", "val/map_voc07", "val/map_voc12"), 0.5)
        (folder / "summary.json").write_text(json.dumps({"scores": scores}))
    overrides = SimpleNamespace(task=["seed=1"])
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(folders[1])), overrides=overrides)
    monkeypatch.setattr(start_of_sweep, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    config = OmegaConf.create({"resume_sweep": None})
    assert start_of_sweep.find_folder(config, tmp_path / "sweep") == (folders[1], False)


@pytest.mark.parametrize("code", [0, 1])
def test_a_preempted_job_waits_for_its_end_only_if_it_is_queued_again(code: int, monkeypatch):
    commands, waited = [], []

    def run(command: list[str], **settings: object) -> SimpleNamespace:
        commands.append(command[1])
        return SimpleNamespace(stdout="PreemptTime=2026-01-01T00:00:00", returncode=code)

    monkeypatch.setattr(start_of_sweep, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(start_of_sweep, "time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(start_of_sweep, "shutil", SimpleNamespace(which=lambda name: name))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start_of_sweep._queue_again(signal.SIGTERM)
    assert commands == ["show", "requeue"]
    assert len(waited) == (1 if code == 0 else 0)
