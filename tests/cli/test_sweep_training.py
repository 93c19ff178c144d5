"""Sweeps with real training, on one and two devices."""

import os
import signal
from pathlib import Path

import pytest
import torch
from command_line import QUICK
from processes import TRAIN, finish, start, wait_for
from run_folder import summary_of
from sweep_folder import column, table

from ssd_lightning.cli.folder_lock import holder_of
from ssd_lightning.run_folder import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def choices(bananas: Path) -> list[str]:
    data = ["data=banana", f"data.root={bananas}"]
    return [*data, *QUICK, "trainer=ddp_cpu", "trainer.devices=1", "hydra.sweep.dir=sweep"]


def test_the_number_of_devices_varies_and_one_rank_fails(choices: list[str], tmp_path: Path):
    """Ranks would repeat the sweep, jobs would mix and devices=2,1 would hang if one process ran all jobs."""
    fail = [f"+callbacks.fail.{item}" for item in ("rank=1", "step=0", 'how="user\'s mistake"', "unless=repaired")]
    fail = ["+callbacks.fail._target_=added_callbacks.Fail", *fail]
    _, error = finish(start(tmp_path, *TRAIN, "-m", *choices, *fail, "trainer.devices=2,1"), exit_code=1)
    folder = tmp_path / "sweep"
    assert column(folder, "trainer.devices") == ["2", "1"]
    assert column(folder, "status") == ["failed", "finished"], error
    assert "rank 1 fails" in column(folder, "reason")[0]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]

    (tmp_path / "repaired").touch()
    finish(start(tmp_path, *TRAIN, "resume_sweep=sweep", "trusted_packages=[added_callbacks]"))
    assert column(folder, "status") == ["finished"] * 2
    jobs = [summary_of(folder / name) for name in ("0", "1")]
    assert [job["choices"]["trainer"] for job in jobs] == ["ddp_cpu"] * 2
    # 12 pictures in batches of 4; on two devices, 6 pictures each.
    assert jobs[0]["steps"] in (1, 2)
    assert jobs[1]["steps"] == 3


def test_both_ranks_of_a_trial_train_what_optuna_chose(choices: list[str], tmp_path: Path):
    """The ranks would draw different hyperparameters if one process ran all jobs."""
    optuna = pytest.importorskip("optuna")
    write = "+callbacks.write._target_=added_callbacks.WriteLearningRate"
    search = ["hparams_search=banana_optuna", "hydra.sweeper.n_trials=2", "matcher=iou50", "loss=multibox"]
    finish(start(tmp_path, *TRAIN, *choices, *search, write, "trainer.devices=2"))
    folder = tmp_path / "sweep"
    assert column(folder, "status") == ["finished"] * 2
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
    rates = [float(rate) for rate in column(folder, "optimizer.lr")]
    assert len(set(rates)) == 2
    for job, rate in zip(("0", "1"), rates, strict=True):
        assert [float((folder / job / f"rate_of_rank_{rank}").read_text()) for rank in (0, 1)] == [rate, rate]
        assert summary_of(folder / job)["world_size"] == 2
    study = optuna.load_study(study_name="banana_tiny", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.params["optimizer.lr"] for trial in study.trials] == rates
    scores = [summary_of(folder / job)["scores"]["val/map_50"] for job in ("0", "1")]
    assert [trial.value for trial in study.trials] == scores


def test_an_interrupted_job_resumes_from_its_step(choices: list[str], tmp_path: Path):
    pause = ["+callbacks.pause._target_=added_callbacks.PauseAtStep", "+callbacks.pause.step=4"]
    process = start(tmp_path, *TRAIN, "-m", *choices, *pause, "trainer.max_epochs=2", "seed=1,2")
    wait_for((tmp_path / "sweep/0/paused").exists, process)
    (tmp_path / "sweep/1").mkdir()
    (tmp_path / "sweep/1/paused").touch()  # Only the first job pauses.
    os.killpg(process.pid, signal.SIGINT)
    finish(process, exit_code=130)
    assert column(tmp_path / "sweep", "status") == ["interrupted", "waiting"]
    before = read_metrics(tmp_path / "sweep/0/metrics.csv")
    assert before

    trust = "trusted_packages=[added_callbacks]"
    finish(start(tmp_path, *TRAIN, "resume_sweep=sweep", "jobs_at_once=2", trust))
    assert column(tmp_path / "sweep", "status") == ["finished"] * 2
    after = read_metrics(tmp_path / "sweep/0/metrics.csv")
    assert {step: after[step] for step in before} == before
    assert len(after) > len(before)
    assert [summary_of(tmp_path / "sweep" / job)["steps"] for job in ("0", "1")] == [6, 6]
    assert table(tmp_path / "sweep", "seeds.csv")[0]["seeds"] == "2"


def test_jobs_of_a_killed_sweep_save_themselves(choices: list[str], tmp_path: Path):
    pause = ["+callbacks.pause._target_=added_callbacks.PauseAtStep", "+callbacks.pause.step=4"]
    process = start(tmp_path, *TRAIN, "-m", *choices, *pause, "trainer.max_epochs=2", "seed=1")
    wait_for((tmp_path / "sweep/0/paused").exists, process)
    process.kill()
    process.communicate()
    wait_for(lambda: holder_of(tmp_path / "sweep/0") is None)
    assert torch.load(tmp_path / "sweep/0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    finish(start(tmp_path, *TRAIN, "resume_sweep=sweep", "trusted_packages=[added_callbacks]"))
    assert column(tmp_path / "sweep", "status") == ["finished"]
    assert summary_of(tmp_path / "sweep/0")["steps"] == 6


def test_jobs_of_a_cluster_are_processes_too(choices: list[str], tmp_path: Path):
    """Submitit runs its jobs on this machine here."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    local = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    out, _ = finish(start(tmp_path, *TRAIN, "-m", *choices, *local, "batch_size=4,0"), exit_code=1)
    folder = tmp_path / "sweep"
    assert column(folder, "status") == ["finished", "failed"], out
    assert "batch_size: expected a whole number of at least 1, got 0" in column(folder, "reason")[1]
    assert "1 of 2 jobs finished" in out
    assert summary_of(folder / "0")["choices"]["trainer"] == "ddp_cpu"
    assert len(list((folder / ".submitit").glob("*/*_result.pkl"))) == 2


def test_a_pruner_stops_a_job_of_a_cluster(choices: list[str], tmp_path: Path):
    """No score is good enough for this pruner. The job would wait for ever after its first epoch, of 3 steps.

    The pruner decides when the job waits, so that the job is always stopped in the same step.
    """
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pause = ["+callbacks.pause._target_=added_callbacks.PauseAtStep", "+callbacks.pause.step=4", "trainer.max_epochs=2"]
    search = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=1", "loss=choice(focal)"]
    paused = tmp_path / "sweep/0/paused"
    pruner = ["hydra.sweeper.pruner._target_=added_pruner.PruneWhenPaused", f"+hydra.sweeper.pruner.file={paused}"]
    local = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    finish(start(tmp_path, *TRAIN, "-m", *choices, *search, *pruner, *local, *pause))
    assert column(tmp_path / "sweep", "status") == ["pruned"]
    assert column(tmp_path / "sweep", "reason") == ["validation 1 of trial 0 was not good enough"]
    assert torch.load(tmp_path / "sweep/0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert not (tmp_path / "sweep/0/pruning.txt").exists()
