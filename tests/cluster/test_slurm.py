"""Trainings and sweeps on a real SLURM: two nodes on this machine. Skipped where SLURM is not installed."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import QUICK
from processes import PATIENCE, wait_for
from run_folder import summary_of
from slurm_cluster import Cluster, cluster, reason_not_to_run, ssd_train, words
from sweep_folder import column

from ssd_lightning.run_folder import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(reason_not_to_run() is not None, reason=str(reason_not_to_run())),
]

PAUSE = ["+callbacks.pause._target_=added_callbacks.PauseAtStep", "+callbacks.pause.step=4"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def arguments(bananas: Path) -> list[str]:
    return ["data=banana", f"data.root={bananas}", *QUICK, "trainer=ddp_cpu", "trainer.devices=1", "hydra.run.dir=run"]


def last_step(run: Path) -> int:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


class TestRanks:
    """One run on several devices, whose ranks SLURM starts."""

    @pytest.mark.parametrize(
        ("tasks", "settings"),
        [
            (["-N2", "--ntasks-per-node=1"], ["trainer.num_nodes=2"]),
            (["-N1", "--ntasks-per-node=2"], ["trainer.devices=2"]),
        ],
        ids=["two nodes", "two devices"],
    )
    def test_are_one_run(self, slurm: Cluster, arguments, tasks: list[str], settings: list[str], tmp_path: Path):
        done = slurm.run("srun", *tasks, *words([*arguments, *settings]), cwd=tmp_path)
        summary = summary_of(tmp_path / "run")
        assert summary["world_size"] == 2
        # 12 pictures in batches of 4, 6 pictures on each device.
        assert summary["steps"] in (1, 2)
        assert done.stdout.count("Results:") == 1

    def test_without_the_number_of_tasks_of_a_node_are_refused(self, slurm: Cluster, arguments, tmp_path: Path):
        done = slurm.run("srun", "-n2", *words([*arguments, "trainer.devices=2"]), cwd=tmp_path, exit_code=None)
        assert done.returncode == 1
        assert "--ntasks-per-node" in done.stderr
        assert "Traceback" not in done.stderr

    def test_end_with_the_rank_that_fails(self, slurm: Cluster, arguments, tmp_path: Path):
        fail = [f"+callbacks.fail.{item}" for item in ("rank=1", "step=0", 'how="user\'s mistake"')]
        fail = ["+callbacks.fail._target_=added_callbacks.Fail", *fail, "trainer.num_nodes=2"]
        done = slurm.run(
            "srun", "-N2", "--ntasks-per-node=1", *words([*arguments, *fail]), cwd=tmp_path, exit_code=None
        )
        assert done.returncode != 0
        assert done.stderr.count("rank 1 fails") == 1


class TestRequeue:
    def test_a_job_resumes_when_it_is_queued_again(self, slurm: Cluster, arguments, tmp_path: Path):
        """The script of the documentation: a signal saves the run, and the script requeues it."""
        train = ssd_train(
            *arguments, *PAUSE, "trainer.max_epochs=2", "resume=auto", "trusted_packages=[added_callbacks]"
        )
        is_preempted = 'scontrol show job "$SLURM_JOB_ID" | grep -q "PreemptTime=[0-9]"'
        requeue = f'if [ $? -eq 138 ] || {is_preempted}; then scontrol requeue "$SLURM_JOB_ID"; fi'
        script = f"srun --ntasks-per-node=1 {train}\n{requeue}"
        job = slurm.submit(tmp_path, script, "--requeue")
        slurm.wait_for(tmp_path / "run/paused", job)
        slurm.run("scancel", "--signal=USR1", job, cwd=tmp_path)
        assert slurm.wait(job) == "COMPLETED", slurm.output(job)
        assert "stopped by SIGUSR1" in slurm.output(job)
        assert summary_of(tmp_path / "run")["steps"] == 6
        assert len(read_metrics(tmp_path / "run/metrics.csv")) > 0

    def test_scancel_saves_the_run(self, slurm: Cluster, arguments, tmp_path: Path):
        train = [*arguments, *PAUSE, "trainer.max_epochs=2"]
        job = slurm.submit(tmp_path, f"srun --ntasks-per-node=1 {ssd_train(*train)}")
        slurm.wait_for(tmp_path / "run/paused", job)
        slurm.run("scancel", "--signal=TERM", job, cwd=tmp_path)
        slurm.wait(job)
        assert last_step(tmp_path / "run") == 5
        trust = "trusted_packages=[added_callbacks]"
        slurm.run("srun", "--ntasks-per-node=1", *words(["resume=run", trust]), cwd=tmp_path)
        assert summary_of(tmp_path / "run")["steps"] == 6

    def test_the_time_limit_ends_a_run_that_has_saved(self, slurm: Cluster, arguments, tmp_path: Path):
        train = ssd_train(*arguments, *PAUSE, "trainer.max_epochs=2")
        script = f"srun --ntasks-per-node=1 {train}; echo code=$?"
        job = slurm.submit(tmp_path, script, "--time=30", "--signal=USR1@60")
        slurm.wait_for(tmp_path / "run/paused", job)
        # The limit is a number of whole minutes. SLURM sends the signal at some time in the last of them, or before.
        slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={slurm.minutes(job) + 2}", cwd=tmp_path)
        wait_for(lambda: "code=" in slurm.output(job))
        assert f"code={128 + signal.SIGUSR1}" in slurm.output(job)
        assert last_step(tmp_path / "run") == 5


class TestSweep:
    """Jobs that submitit sends to SLURM."""

    LAUNCHER = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=10")

    def test_a_job_fails_and_the_others_finish(self, slurm: Cluster, arguments, tmp_path: Path):
        sweep = [*arguments[:-1], "hydra.sweep.dir=sweep", "-m", *self.LAUNCHER, "batch_size=4,0,2"]
        done = slurm.run(*words(sweep), cwd=tmp_path, exit_code=1)
        assert column(tmp_path / "sweep", "status") == ["finished", "failed", "finished"], done.stdout + done.stderr
        assert "batch_size: expected a whole number of at least 1, got 0" in column(tmp_path / "sweep", "reason")[1]
        assert "2 of 3 jobs finished" in done.stdout

    def test_a_pruner_stops_a_job(self, slurm: Cluster, arguments, tmp_path: Path):
        """No score is good enough for this pruner. The job would wait for ever after its first epoch, of 3 steps."""
        search = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "loss=choice(focal)"]
        pruner = ["hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.lower=2"]
        sweep = [*arguments[:-1], *PAUSE, "trainer.max_epochs=2", "hydra.sweep.dir=sweep", "-m"]
        slurm.run(*words([*sweep, *search, *pruner, *self.LAUNCHER]), cwd=tmp_path)
        assert column(tmp_path / "sweep", "status") == ["pruned"]
        assert last_step(tmp_path / "sweep/0") == 5

    def start(self, slurm: Cluster, arguments: list[str], folder: Path) -> tuple[subprocess.Popen[str], str]:
        """Start two jobs that train alike. Return the process and SLURM's id of the first job, when that job pauses."""
        pause = [PAUSE[0], "+callbacks.pause.step=4,99", "trusted_packages=[added_callbacks]"]
        sweep = [*arguments[:-1], *pause, "trainer.max_epochs=2", "hydra.sweep.dir=sweep", "-m"]
        process = slurm.start(*words([*sweep, *self.LAUNCHER, "hydra.launcher.max_num_timeout=1"]), cwd=folder)
        jobs = folder / "sweep"
        wait_for(lambda: (jobs / "0/paused").exists() and (jobs / "1/summary.json").exists(), process)
        shown = slurm.run("squeue", "--noheader", "--format=%i", cwd=folder).stdout.split()
        [first] = [job for job in shown if job.endswith("_0")]
        return process, first

    def test_a_job_that_is_cancelled_saves_itself(self, slurm: Cluster, arguments, tmp_path: Path):
        process, job = self.start(slurm, arguments, tmp_path)
        slurm.run("scancel", job, cwd=tmp_path)
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, out + error
        assert column(tmp_path / "sweep", "status") == ["interrupted", "finished"]
        assert last_step(tmp_path / "sweep/0") == 5
        assert "resume_sweep=" in out

    @pytest.mark.parametrize("why", ["time limit", "preemption"])
    def test_a_job_is_queued_again_and_resumes(self, slurm: Cluster, arguments, tmp_path: Path, why: str):
        """It trains what the other job trains, which is not disturbed."""
        process, job = self.start(slurm, arguments, tmp_path)
        if why == "time limit":
            slurm.run("scancel", "--signal=USR2", job, cwd=tmp_path)
        else:
            slurm.submit(tmp_path, "true", "--nodes=2", "--exclusive", "--partition=urgent")
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + error
        assert column(tmp_path / "sweep", "status") == ["finished"] * 2
        jobs = [tmp_path / "sweep" / name for name in ("0", "1")]
        first, second = (torch.load(job / "checkpoints/last.ckpt", weights_only=True) for job in jobs)
        assert first["global_step"] == second["global_step"] == 6
        assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
        assert read_metrics(jobs[0] / "metrics.csv") == read_metrics(jobs[1] / "metrics.csv")
