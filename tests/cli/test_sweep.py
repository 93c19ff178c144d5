"""Sweeps: ``ssd-train -m``. A stand-in trains where training itself does not matter."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssd_lightning.cli import run_folders
from ssd_lightning.cli.sweep import jobs as sweep
from ssd_lightning.cli.sweep import table as sweep_table

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
import yaml

[folder] = [a.partition("=")[2].strip('"') for a in sys.argv if a.startswith(("hydra.run.dir=", "resume="))]
folder = Path(folder)
config = yaml.safe_load((folder / ".hydra/config.yaml").read_text())
checkpoint = folder / "checkpoints/last.ckpt"
resumed = checkpoint.exists()

def save_and_stop(number, frame):
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    sys.exit(f"ssd-train: stopped by {signal.Signals(number).name}; saved in {checkpoint}")

if config["name"] == "slow" and not resumed:
    signal.signal(signal.SIGTERM, save_and_stop)
    signal.signal(signal.SIGINT, save_and_stop)
    (folder / "trains").touch()
    time.sleep(60)
began = time.time()
if config["batch_size"] == 3 and not os.environ.get("REPAIRED"):
    print("a warning", file=sys.stderr)
    sys.exit("ssd-train: out of memory")
if config["batch_size"] == 5:  # ends when as many have begun as may run at once, so that a slow machine changes nothing
    (folder / "began").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.parent.glob("*/began"))) < config["jobs_at_once"] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
score = round(config["optimizer"]["lr"] + config["seed"] / 100, 6)
names = ("map_50", "map", "map_voc07", "map_voc12")
summary = {
    "scores": {f"val/{name}": score for name in names}, "parameters": 1000000, "resumed": resumed,
    "began": began, "ended": time.time(), "environment": dict(os.environ), "arguments": sys.argv[1:],
    "cwd": os.getcwd(),
}
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of training: writes the summary of a run whose scores are its learning rate + seed/100."""
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(sweep, "CHILD", [sys.executable, str(path)])
    return path


def table(folder: Path, name: str = "sweep.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> list[str]:
    return [row[name] for row in table(folder)]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


GRID = ["-m", "optimizer.lr=0.1,0.3", "hydra.sweep.dir=sweep"]


class TestGrid:
    def test_each_job_has_its_folder_and_a_row(self, run, stand_in: Path, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "seed=0,1", "model=tiny_ssd")
        assert outcome.exit_code == 0, outcome.error
        rows = table(tmp_path / "sweep")
        varied = [(row["optimizer.lr"], row["seed"], row["AP50"], row["folder"]) for row in rows]
        assert varied == [
            ("0.1", "0", "0.1", "0"), ("0.1", "1", "0.11", "1"), ("0.3", "0", "0.3", "2"), ("0.3", "1", "0.31", "3"),
        ]  # fmt: skip
        assert ",".join(rows[0]) == "optimizer.lr,seed,AP50,AP,VOC07,VOC12,seconds,parameters,status,reason,folder"
        assert {row["status"] for row in rows} == {"finished"}
        assert "4 of 4 jobs finished" in outcome.out
        assert "0.310" in outcome.out
        for number, row in enumerate(rows):
            config = yaml.safe_load((tmp_path / "sweep" / str(number) / ".hydra/config.yaml").read_text())
            assert str(config["optimizer"]["lr"]) == row["optimizer.lr"]

    def test_mean_and_deviation_over_seeds(self, run, stand_in: Path, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "seed=0,3,6")
        rows = table(tmp_path / "sweep", "seeds.csv")
        assert [(row["optimizer.lr"], row["seeds"]) for row in rows] == [("0.1", "3"), ("0.3", "3")]
        assert [float(row["AP50 mean"]) for row in rows] == pytest.approx([0.13, 0.33])
        assert [float(row["VOC12 std"]) for row in rows] == pytest.approx([0.03, 0.03])
        assert "0.130 ± 0.030" in outcome.out

    def test_a_failed_job_does_not_stop_it(self, run, stand_in: Path, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "batch_size=3,4")
        assert outcome.exit_code == 1
        assert "2 of the jobs failed" in outcome.error
        assert column(tmp_path / "sweep", "status") == ["failed", "finished"] * 2
        assert column(tmp_path / "sweep", "reason") == ["out of memory", ""] * 2
        assert column(tmp_path / "sweep", "AP50") == ["", "0.1", "", "0.3"]
        assert "0 failed: out of memory" in outcome.out
        assert (tmp_path / "sweep/0/.hydra/config.yaml").exists()

    def test_unless_it_is_told_to(self, run, stand_in: Path, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "batch_size=3,4", "stop_sweep_on_failure=true")
        assert outcome.exit_code == 1
        assert f"{tmp_path / 'sweep/0'} failed, and no other job starts" in outcome.error
        assert column(tmp_path / "sweep", "status") == ["failed", "waiting", "waiting", "waiting"]

    def test_a_job_is_an_ordinary_run_and_no_rank(self, run, stand_in: Path, tmp_path: Path, monkeypatch):
        for variable in ("WORLD_SIZE", "MASTER_PORT"):
            monkeypatch.setenv(variable, "2")
        monkeypatch.setenv("SLURM_JOB_NAME", "ssd-train")
        run("ssd-train", *GRID)
        child = summary(tmp_path / "sweep/1")
        assert child["arguments"] == [
            "--config-path", str(tmp_path / "sweep/1/.hydra"), "--config-name", "config",
            f'hydra.run.dir="{tmp_path / "sweep/1"}"', "hydra.output_subdir=null", "hydra.job.name=ssd-train",
        ]  # fmt: skip
        assert not {"WORLD_SIZE", "MASTER_PORT", "HYDRA_FULL_ERROR"} & set(child["environment"])
        assert child["environment"]["SLURM_JOB_NAME"] == "interactive"

    @pytest.mark.parametrize("at_once", [1, 2])
    def test_so_many_jobs_run_at_once(self, run, stand_in: Path, tmp_path: Path, monkeypatch, at_once: int):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
        outcome = run(
            "ssd-train", "-m", "seed=0,1,2", "batch_size=5", f"jobs_at_once={at_once}", "hydra.sweep.dir=sweep"
        )
        assert outcome.exit_code == 0, outcome.error
        jobs = [summary(tmp_path / "sweep" / str(number)) for number in range(3)]
        most = max(sum(a["began"] <= b["began"] < a["ended"] for a in jobs) for b in jobs)
        assert most == at_once
        if at_once == 2:
            assert [job["environment"]["OMP_NUM_THREADS"] for job in jobs] == ["4"] * 3
            assert {job["environment"]["CUDA_VISIBLE_DEVICES"] for job in jobs} == {"4,6", "5,7"}
        else:
            assert "OMP_NUM_THREADS" not in jobs[0]["environment"]
        assert column(tmp_path / "sweep", "status") == ["finished"] * 3

    def test_failures_of_jobs_that_run_at_once(self, run, stand_in: Path, tmp_path: Path):
        outcome = run("ssd-train", *GRID, "batch_size=3,4", "jobs_at_once=4")
        assert outcome.exit_code == 1
        assert column(tmp_path / "sweep", "status") == ["failed", "finished"] * 2
        assert "a warning" in (tmp_path / "sweep/0/output.log").read_text()

    def test_a_sweep_folder_is_never_used_twice(self, run, stand_in: Path, tmp_path: Path):
        assert run("ssd-train", *GRID).exit_code == 0
        before = (tmp_path / "sweep/sweep.csv").read_bytes(), (tmp_path / "sweep/multirun.yaml").read_bytes()
        outcome = run("ssd-train", "-m", "seed=5,6", "hydra.sweep.dir=sweep")
        assert outcome.exit_code == 1
        assert "holds a sweep already" in outcome.error
        assert before == (
            (tmp_path / "sweep/sweep.csv").read_bytes(),
            (tmp_path / "sweep/multirun.yaml").read_bytes(),
        )

    def test_two_jobs_with_one_folder_are_refused(self, run, stand_in: Path):
        outcome = run("ssd-train", *GRID, "hydra.sweep.subdir=job")
        assert outcome.exit_code == 1
        assert "hydra.sweep.subdir: expected a folder for each job" in outcome.error


class TestResume:
    def test_runs_what_failed_or_is_missing_and_nothing_else(self, run, stand_in: Path, tmp_path: Path, monkeypatch):
        run("ssd-train", *GRID, "batch_size=3,4")
        folder = tmp_path / "sweep"
        shutil.rmtree(folder / "3")  # as if it had not begun
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
            again = {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
        assert again == {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
        config = yaml.safe_load((folder / "3/.hydra/config.yaml").read_text())
        assert (config["batch_size"], config["resume_sweep"]) == (4, None)
        assert run_folders.chosen_options(folder / "3")["model"] == "tiny_ssd"

    def test_data_is_where_it_was_from_elsewhere_too(self, run, stand_in: Path, tmp_path: Path, monkeypatch):
        run("ssd-train", *GRID, "data=banana", "data.root=Äpfel (1)")
        shutil.rmtree(tmp_path / "sweep/1")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        outcome = run("ssd-train", "resume_sweep=../sweep")
        assert outcome.exit_code == 0, outcome.error
        for job in ("0", "1"):
            config = yaml.safe_load((tmp_path / "sweep" / job / ".hydra/config.yaml").read_text())
            stands_in = summary(tmp_path / "sweep" / job)["cwd"]
            assert Path(stands_in, config["data"]["root"]) == tmp_path / "Äpfel (1)"
        assert column(tmp_path / "sweep", "status") == ["finished"] * 2

    def test_a_job_that_another_process_runs_is_left_alone(self, run, stand_in: Path, tmp_path: Path):
        run("ssd-train", *GRID, "batch_size=3")
        job = tmp_path / "sweep/0"
        (job / "job.json").write_text('{"status": "running"}')
        held = sweep_table.lock_job(job)
        outcome = run("ssd-train", f"resume_sweep={tmp_path / 'sweep'}")
        assert f"{job} is being run by another process" in outcome.out
        assert column(tmp_path / "sweep", "status") == ["running", "failed"]
        os.close(held)
        assert [job.status for job in sweep_table.read_jobs(tmp_path / "sweep")] == ["interrupted", "failed"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["resume_sweep=nowhere"], "is no folder of a sweep, it has no multirun.yaml"),
            (["resume_sweep=sweep", "loss=focal"], "loss=focal is not possible"),
            (["resume_sweep=sweep", "hydra.sweep.dir=other"], "hydra.sweep.dir=other is not possible"),
        ],
    )
    def test_mistakes(self, run, tmp_path: Path, arguments: list[str], message: str):
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep/multirun.yaml").touch()
        outcome = run("ssd-train", *arguments)
        assert outcome.exit_code == 1
        assert message in outcome.error
        assert "Traceback" not in outcome.error


PROGRAM = """
import sys
from ssd_lightning.cli import commands
from ssd_lightning.cli.sweep import jobs
jobs.CHILD = [sys.executable, sys.argv.pop(1)]
try:
    commands.train()
finally:
    assert not {"torch", "lightning", "pandas"} & set(sys.modules)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_all", [True, False])
def test_stopping_a_sweep_saves_the_job_and_starts_no_other(
    run, stand_in: Path, tmp_path: Path, number: signal.Signals, to_all: bool
):
    """The signal goes to the sweep's process alone, or to all as from a terminal."""
    arguments = [*GRID, "name=slow", "seed=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(stand_in), *arguments],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(tmp_path / "sweep/0/trains")
    assert column(tmp_path / "sweep", "status") == ["running", "waiting"]
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert column(tmp_path / "sweep", "status") == ["interrupted", "waiting"]
    assert column(tmp_path / "sweep", "reason")[0].startswith(f"stopped by {number.name}")
    assert "0 of 2 jobs finished" in out
    assert f"resume_sweep={tmp_path / 'sweep'}" in out

    (tmp_path / "sweep/1/checkpoints").mkdir(parents=True)  # so that the stand-in does not wait
    (tmp_path / "sweep/1/checkpoints/last.ckpt").touch()
    outcome = run("ssd-train", f"resume_sweep={tmp_path / 'sweep'}")
    assert outcome.exit_code == 0, outcome.error
    assert summary(tmp_path / "sweep/0")["resumed"]
    assert summary(tmp_path / "sweep/0")["arguments"] == [f"resume={tmp_path / 'sweep/0'}"]
    assert column(tmp_path / "sweep", "status") == ["finished"] * 2


def wait_for(path: Path, patience: float = 60) -> None:
    end = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["jobs_at_once=0"], {}, "jobs_at_once: expected a whole number of at least 1, got 0"),
        ([], {"LOCAL_RANK": "0"}, "start it without torchrun"),
        (["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"], {}, "expected tasks_per_node=1"),
    ],
)
def test_sweeps_that_cannot_be_right(run, tmp_path: Path, monkeypatch, arguments, environment, message: str):
    if arguments and "submitit" in arguments[0]:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    outcome = run("ssd-train", *GRID, *arguments)
    assert outcome.exit_code == 1
    assert message in outcome.error
    assert not (tmp_path / "sweep/0").exists()


@pytest.mark.parametrize(
    ("argument", "package"),
    [
        ("hparams_search=banana_optuna", "hydra-optuna-sweeper"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher"),
    ],
)
def test_a_missing_plugin_is_named(run, tmp_path: Path, monkeypatch, argument: str, package: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = run("ssd-train", "-m", argument)
    assert outcome.exit_code == 1
    assert outcome.error == f"ssd-train: {argument}: expected {package} to be installed: uv sync --extra sweep\n"


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


class TestOptuna:
    ARGUMENTS = ("hparams_search=banana_optuna", "hydra.sweep.dir=sweep")

    @pytest.fixture(autouse=True)
    def plugin(self):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    def trials(self, folder: Path) -> list[Any]:
        import optuna

        return optuna.load_study(study_name="banana_tiny", storage=f"sqlite:///{folder / 'study.db'}").trials

    def test_a_study_is_kept_and_goes_on(self, run, stand_in: Path, tmp_path: Path):
        folder = tmp_path / "sweep"
        outcome = run("ssd-train", *self.ARGUMENTS, "hydra.sweeper.n_trials=2", "jobs_at_once=2")
        assert outcome.exit_code == 0, outcome.error
        assert [trial.state.name for trial in self.trials(folder)] == ["COMPLETE"] * 2
        outcome = run("ssd-train", "resume_sweep=sweep")
        assert "all 2 trials are finished" in outcome.error
        outcome = run("ssd-train", "resume_sweep=sweep", "hydra.sweeper.n_trials=4")
        assert outcome.exit_code == 0, outcome.error
        trials = self.trials(folder)
        assert len({trial.params["optimizer.lr"] for trial in trials}) == 4
        assert [trial.value for trial in trials] == pytest.approx([t.params["optimizer.lr"] for t in trials], abs=1e-6)
        assert sorted(float(rate) for rate in column(folder, "optimizer.lr")) == pytest.approx(
            sorted(trial.params["optimizer.lr"] for trial in trials)
        )
        best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
        assert best["best_value"] == max(trial.value for trial in trials)

    def test_a_failed_trial_is_told_and_done_again(self, run, stand_in: Path, tmp_path: Path, monkeypatch):
        folder = tmp_path / "sweep"
        outcome = run("ssd-train", *self.ARGUMENTS, "hydra.sweeper.n_trials=2", "batch_size=3")
        assert outcome.exit_code == 1
        first = self.trials(folder)
        assert [trial.state.name for trial in first] == ["FAIL"] * 2
        monkeypatch.setenv("REPAIRED", "yes")
        outcome = run("ssd-train", "resume_sweep=sweep")
        assert outcome.exit_code == 0, outcome.error
        again = self.trials(folder)[2:]
        assert [trial.params for trial in again] == [trial.params for trial in first]
        assert column(folder, "status") == ["finished"] * 2
        assert column(folder, "folder") == ["0", "1"]


REAL = [
    "data=banana",
    "model.image_size=64",
    "batch_size=4",
    "num_workers=0",
    "trainer=ddp_cpu",
    "trainer.devices=1",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
    "hydra.sweep.dir=sweep",
]

CALLBACKS = """
import time
from pathlib import Path
import lightning

class FailsOnRankOne(lightning.Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_rank == 1 and Path("broken").exists():
            raise ValueError("rank 1 cannot go on")

class TellsRate(lightning.Callback):
    def on_train_start(self, trainer, module):
        rate = module.config["config"]["optimizer"]["lr"]
        (Path(trainer.default_root_dir) / f"rate_of_rank_{trainer.global_rank}").write_text(str(rate))

class SlowSteps(lightning.Callback):
    def on_train_batch_end(self, trainer, *args):
        (Path(trainer.default_root_dir) / "step").write_text(str(trainer.global_step))
        time.sleep(0.3 if Path("slow").exists() else 0)
"""


def start_sweep(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """With real training, in a process of its own."""
    (folder / "own_callbacks.py").write_text(CALLBACKS)
    return subprocess.Popen(
        [sys.executable, "-c", "from ssd_lightning.cli.commands import train; train()", *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


def finished(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output; nothing of it is left behind if it hangs."""
    try:
        out, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out


@pytest.mark.slow
def test_the_number_of_devices_varies_and_one_rank_fails(bananas: Path, tmp_path: Path):
    """Known of one process for all jobs: ranks repeat the sweep, two jobs mix, and devices=1,2,1 hangs."""
    (tmp_path / "broken").touch()
    choices = [f"data.root={bananas}", "+callbacks.own._target_=own_callbacks.FailsOnRankOne"]
    code, out = finished(start_sweep(tmp_path, "-m", *REAL, *choices, "trainer.devices=1,2,1"))
    folder = tmp_path / "sweep"
    assert code == 1, out
    assert column(folder, "trainer.devices") == ["1", "2", "1"]
    assert column(folder, "status") == ["finished", "failed", "finished"], out
    assert "rank 1 cannot go on" in column(folder, "reason")[1]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2"]

    (tmp_path / "broken").unlink()
    code, out = finished(start_sweep(tmp_path, "resume_sweep=sweep"))
    assert code == 0, out
    assert column(folder, "status") == ["finished"] * 3
    jobs = [summary(folder / name) for name in ("0", "1", "2")]
    assert jobs[0]["scores"] == jobs[2]["scores"]
    assert [job["choices"]["trainer"] for job in jobs] == ["ddp_cpu"] * 3
    # 12 pictures in batches of 4; on two devices, 6 each.
    assert [job["steps"] for job in jobs] == [3, jobs[1]["steps"], 3]
    assert 1 <= jobs[1]["steps"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize("searched", [False, True], ids=["grid", "optuna"])
def test_both_ranks_of_a_job_train_what_it_says(bananas: Path, tmp_path: Path, searched: bool):
    """Known of one process for all jobs: with Optuna, each rank draws hyperparameters of its own."""
    choices = [f"data.root={bananas}", "trainer.devices=2", "+callbacks.own._target_=own_callbacks.TellsRate"]
    if searched:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
        # No tag of the option's own: these are all that is looked for.
        choices += ["hparams_search=banana_optuna", "hydra.sweeper.n_trials=2", "matcher=iou50", "loss=multibox"]
    else:
        choices += ["-m", "optimizer.lr=0.001,0.002"]
    code, out = finished(start_sweep(tmp_path, *REAL, *choices))
    folder = tmp_path / "sweep"
    assert code == 0, out
    assert column(folder, "status") == ["finished"] * 2
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
    rates = [float(rate) for rate in column(folder, "optimizer.lr")]
    assert len(set(rates)) == 2
    for job, rate in zip(("0", "1"), rates, strict=True):
        told = [float((folder / job / f"rate_of_rank_{rank}").read_text()) for rank in (0, 1)]
        assert told == [rate, rate]
        assert summary(folder / job)["world_size"] == 2
    if searched:
        import optuna

        study = optuna.load_study(study_name="banana_tiny", storage=f"sqlite:///{folder / 'study.db'}")
        assert [trial.params["optimizer.lr"] for trial in study.trials] == rates
        assert [trial.value for trial in study.trials] == [
            summary(folder / job)["scores"]["val/map_50"] for job in ("0", "1")
        ]
    else:
        assert rates == [0.001, 0.002]


@pytest.mark.slow
def test_an_interrupted_job_goes_on_where_it_was(bananas: Path, tmp_path: Path):
    (tmp_path / "slow").touch()
    choices = [f"data.root={bananas}", "+callbacks.own._target_=own_callbacks.SlowSteps", "trainer.max_epochs=5"]
    process = start_sweep(tmp_path, "-m", *REAL, *choices, "seed=1,2")
    step = tmp_path / "sweep/0/step"
    wait_for(step, patience=120)
    while int(step.read_text() or 0) < 4:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    code, out = finished(process)
    assert code == 130, out
    assert column(tmp_path / "sweep", "status") == ["interrupted", "waiting"], out
    log = (tmp_path / "sweep/0/metrics.csv").read_text()

    (tmp_path / "slow").unlink()
    code, out = finished(start_sweep(tmp_path, "resume_sweep=sweep", "jobs_at_once=2"))
    assert code == 0, out
    assert column(tmp_path / "sweep", "status") == ["finished"] * 2
    assert (tmp_path / "sweep/0/metrics.csv").read_text().splitlines()[1] == log.splitlines()[1]
    assert [summary(tmp_path / "sweep" / job)["steps"] for job in ("0", "1")] == [15, 15]
    assert table(tmp_path / "sweep", "seeds.csv")[0]["seeds"] == "2"


@pytest.mark.slow
def test_jobs_of_a_cluster_are_processes_too(bananas: Path, tmp_path: Path):
    """By submitit, with the executor that runs its jobs on this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    choices = [f"data.root={bananas}", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    code, out = finished(start_sweep(tmp_path, "-m", *REAL, *choices, "batch_size=4,0"))
    assert code == 1, out
    folder = tmp_path / "sweep"
    assert column(folder, "status") == ["finished", "failed"], out
    assert "batch_size: expected a whole number of at least 1, got 0" in column(folder, "reason")[1]
    assert "1 of 2 jobs finished" in out
    assert summary(folder / "0")["choices"]["trainer"] == "ddp_cpu"
    assert len(list((folder / ".submitit").glob("*/*_result.pkl"))) == 2
