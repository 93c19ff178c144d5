"""Sweeps by Optuna. A stand-in takes the place of training."""

import importlib.util
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import optuna
import postgresql_server
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.plugins.launcher import Launcher
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.trial import TrialState
from places import TESTS
from processes import finish, start, wait_for
from sweep_folder import column, table

from ssd_lightning.cli.folder_lock import FolderLock
from ssd_lightning.cli.sweep import trials as trials_module
from ssd_lightning.cli.sweep.jobs import PRUNING_FILE
from ssd_lightning.cli.sweep.search import open_study, search
from ssd_lightning.cli.sweep.table import Job, update
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.run_folder import SCORE_NAMES

SEARCH = ("hparams_search=banana_optuna", "hydra.sweep.dir=sweep", "hydra.sweeper.n_trials=2")


def trials(folder: Path) -> list[Any]:
    return optuna.load_study(study_name="banana_tiny", storage=f"sqlite:///{folder / 'study.db'}").trials


# --- with the command, and a process for each job ---


@pytest.fixture(params=["journal", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The storage of a study for several machines."""
    if request.param == "journal":
        yield str(tmp_path / "study.log")
        return
    if reason := postgresql_server.reason_not_to_run():
        pytest.skip(reason)
    with postgresql_server.server() as url:
        yield url


@pytest.mark.usefixtures("stand_in")
class TestCommand:
    @pytest.mark.slow
    def test_a_study_is_stored_and_resumed(self, run, tmp_path: Path):
        folder = tmp_path / "sweep"
        outcome = run("ssd-train", *SEARCH, "jobs_at_once=2")
        assert outcome.exit_code == 0, outcome.error
        assert [trial.state.name for trial in trials(folder)] == ["COMPLETE"] * 2
        outcome = run("ssd-train", "resume_sweep=sweep")
        assert outcome.exit_code == 1
        assert outcome.message.startswith("ssd-train: resume_sweep: ")
        assert "n_trials" in outcome.message
        outcome = run("ssd-train", "resume_sweep=sweep", "hydra.sweeper.n_trials=3")
        assert outcome.exit_code == 0, outcome.error
        found = trials(folder)
        assert len({trial.params["optimizer.lr"] for trial in found}) == 3
        assert [trial.value for trial in found] == pytest.approx([t.params["optimizer.lr"] for t in found], abs=1e-6)
        assert sorted(float(rate) for rate in column(folder, "optimizer.lr")) == pytest.approx(
            sorted(trial.params["optimizer.lr"] for trial in found)
        )
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
        best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
        assert best["best_value"] == max(trial.value for trial in found)

    @pytest.mark.slow
    def test_a_failed_trial_is_recorded_and_repeated(self, run, tmp_path: Path, monkeypatch):
        folder = tmp_path / "sweep"
        outcome = run("ssd-train", *SEARCH, "batch_size=3")
        assert outcome.exit_code == 1
        first = trials(folder)
        assert [trial.state.name for trial in first] == ["FAIL"] * 2
        monkeypatch.setenv("REPAIRED", "yes")
        outcome = run("ssd-train", "resume_sweep=sweep")
        assert outcome.exit_code == 0, outcome.error
        assert [trial.params for trial in trials(folder)[2:]] == [trial.params for trial in first]
        assert column(folder, "status") == ["finished"] * 2
        assert column(folder, "folder") == ["0", "1"]
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "set_aside"]

    def test_a_space_on_the_command_line(self, run, tmp_path: Path):
        outcome = run(
            *("ssd-train", "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweep.dir=sweep"),
            *("optimizer.lr=tag(log,interval(1e-4,1e-2))", "matcher=choice(iou50,ignore_near)", "seed=1,3"),
            *("hydra.sweeper.params.batch_size=choice(4,8)", "box_scales=tiny", "hydra.sweeper.n_trials=1"),
            "model.default_boxes.scales=tag(rising,interval(0.1,1))",
        )
        assert outcome.exit_code == 0, outcome.error
        [trial] = trials(tmp_path / "sweep")
        assert trial.value == pytest.approx(trial.params["optimizer.lr"] + 0.02, abs=1e-6)
        for job, seed in (("0", 1), ("1", 3)):
            config = yaml.safe_load((tmp_path / "sweep" / job / ".hydra/config.yaml").read_text())
            assert config["seed"] == seed
            assert config["batch_size"] == trial.params["batch_size"]
            scales = config["model"]["default_boxes"]["scales"]
            assert scales == sorted(trial.params[f"model.default_boxes.scales.{place}"] for place in range(6))
            chosen = yaml.safe_load((tmp_path / "sweep" / job / ".hydra/hydra.yaml").read_text())
            assert chosen["hydra"]["runtime"]["choices"]["matcher"] == trial.params["matcher"]
        assert table(tmp_path / "sweep", "seeds.csv")[0]["seeds"] == "2"

    def test_a_pruned_job_keeps_its_last_score_and_ends_well(self, run, tmp_path: Path):
        """The better value runs to its end, and the other is pruned at its second validation."""
        folder = tmp_path / "sweep"
        outcome = run(
            *("ssd-train", "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweep.dir=sweep"),
            *("hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=1", "name=validates"),
            *("hydra.sweeper.pruner.n_warmup_steps=2", "optimizer.lr=choice(0.1,0.2)", "hydra.sweeper.sampler.seed=0"),
        )
        assert outcome.exit_code == 0, outcome.error
        study = optuna.load_study(study_name="validates", storage=f"sqlite:///{folder / 'study.db'}")
        assert [(trial.params["optimizer.lr"], trial.state.name) for trial in study.trials] == [
            (0.2, "COMPLETE"),
            (0.1, "PRUNED"),
        ]
        assert study.trials[0].intermediate_values == pytest.approx({1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8})
        assert study.trials[1].intermediate_values == pytest.approx({1: 0.1, 2: 0.2})
        [finished, pruned] = table(folder)
        assert (finished["status"], pruned["status"]) == ("finished", "pruned")
        assert float(pruned["AP50"]) >= 0.2
        assert pruned["reason"].startswith("validation 2 of trial 1 ")
        assert (folder / pruned["folder"] / "checkpoints/last.ckpt").exists()
        assert "1 of 2 jobs finished, 1 pruned" in outcome.out
        outcome = run("ssd-train", "resume_sweep=sweep")
        assert outcome.exit_code == 1
        assert "n_trials" in outcome.message

    def test_no_warning_of_optuna_is_on_the_screen(self, run, recwarn: pytest.WarningsRecorder):
        space = ("optimizer.lr=choice(0.2)", "hydra/sweeper/sampler=grid", "hydra.sweep.dir=sweep")
        outcome = run("ssd-train", "-m", "hydra/sweeper=optuna", "hydra/sweeper/pruner=patience", *space)
        assert outcome.exit_code == 0, outcome.error
        assert not [each for each in recwarn if "experimental" in str(each.message)]

    @pytest.mark.slow
    def test_two_sweeps_share_a_study_and_repeat_the_trial_of_a_killed_one(self, tmp_path: Path, shared: str):
        def begin(name: str, *arguments: str) -> subprocess.Popen[str]:
            storage = f"hydra.sweeper.storage={shared}"
            study = ["hydra/sweeper/sampler=random", storage, "hydra.sweeper.study_name=shared"]
            space = ["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.1,0.9)", f"hydra.sweep.dir={name}"]
            return start(tmp_path, str(TESTS / "sweep_program.py"), *space, *study, *arguments)

        killed = begin("killed", "name=slow")
        wait_for((tmp_path / "killed/0/trains").exists, killed)
        killed.kill()
        killed.communicate()
        study = open_study(shared, "shared", {"map_50": "maximize"})
        [lost] = study.trials
        assert lost.state.name == "RUNNING"
        study._storage.set_trial_user_attr(lost._trial_id, "heartbeat", 0.0)  # As if five minutes had passed.
        for process in [begin(name, "hydra.sweeper.n_trials=2") for name in ("one", "two")]:
            finish(process)
        ended = study.trials[1:]
        assert study.trials[0].state.name == "FAIL"
        assert [trial.state.name for trial in ended] == ["COMPLETE"] * 4
        rates = [trial.params["optimizer.lr"] for trial in ended]
        assert len(set(rates)) == 4
        assert rates.count(lost.params["optimizer.lr"]) == 1
        assert sorted(rates) == sorted(
            float(rate) for name in ("one", "two") for rate in column(tmp_path / name, "optimizer.lr")
        )


# --- without processes: a launcher whose jobs end at once ---


class Returned(NamedTuple):
    return_value: Path


class Jobs(Launcher):
    """Writes the folders of jobs. A job scores 0.1 times ``a`` plus 0.01 times its seed, and has ``a`` parameters."""

    def __init__(self, sweep: Path, failing: tuple[str, ...] = ()) -> None:
        self.sweep = sweep
        self.failing = failing
        self.batches: list[list[dict[str, str]]] = []

    def setup(self, **settings: Any) -> None:
        pass

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        self.batches.append([dict(argument.split("=", 1) for argument in job) for job in job_overrides])
        return [
            self._run(self.sweep / str(initial_job_idx + place), job, values)
            for place, (job, values) in enumerate(zip(job_overrides, self.batches[-1], strict=True))
        ]

    def _run(self, folder: Path, arguments: list[str], values: dict[str, str]) -> Returned:
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(arguments))
        status = "failed" if values.get("loss") in self.failing else "finished"
        (folder / "job.json").write_text(json.dumps({"status": status}))
        a = float(values.get("a", 0))
        score = 0.1 * a + 0.01 * int(values.get("seed", 0))
        scores = {f"val/{name}": score for name in SCORE_NAMES}
        summary = {"scores": scores, "parameters": int(a), "default_boxes": 5 if values.get("loss") == "y" else 9}
        (folder / "summary.json").write_text(json.dumps(summary))
        return Returned(folder)

    @property
    def jobs(self) -> list[dict[str, str]]:
        return [job for batch in self.batches for job in batch]


@cache
def composed() -> Any:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", ["hydra/sweeper=optuna", "hydra.sweep.dir=sweep"], return_hydra_config=True)
    return OmegaConf.to_container(config.hydra.sweeper, resolve=False)


def run_search(folder: Path, *arguments: str, launcher: Jobs | None = None, **settings: Any) -> Jobs:
    """Run a search, and return the launcher that has run its jobs."""
    launcher = launcher or Jobs(folder)
    folder.mkdir(exist_ok=True)
    resumed = settings.pop("resumed", False)
    hydra = {"sweep": {"dir": str(folder)}, "launcher": {"_target_": "SlurmLauncher"}}
    config = OmegaConf.create({"hydra": hydra, "resume_sweep": str(folder) if resumed else None})
    plain = {
        **composed(),
        "storage": f"sqlite:///{folder}/study.db",
        "study_name": "banana_tiny",
        "n_jobs": 1,
        "n_trials": 4,
        **settings,
    }
    for group in ("sampler", "pruner"):
        if isinstance(plain[group], str):
            plain[group] = OmegaConf.load(CONFIG_FOLDER / "hydra/sweeper" / group / f"{plain[group]}.yaml")
    del plain["_target_"]
    built = instantiate(OmegaConf.create(plain), _convert_="all")
    loader: Any = ConfigLoaderImpl.__new__(ConfigLoaderImpl)
    search(config, arguments, launcher, loader, **built)  # type: ignore[arg-type]
    return launcher


@pytest.mark.skipif(importlib.util.find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed")
def test_the_dashboard_of_optuna_opens_a_study(tmp_path: Path):
    dashboard = importlib.import_module("optuna_dashboard")
    run_search(tmp_path / "sweep", "a=interval(0,1)")
    request: dict[str, Any] = {"PATH_INFO": "/api/studies/1"}
    setup_testing_defaults(request)
    answer = dashboard.wsgi(f"sqlite:///{tmp_path}/sweep/study.db")(request, lambda *_: None)
    study = json.loads(b"".join(answer))
    assert study["name"] == "banana_tiny"
    assert [trial["state"] for trial in study["trials"]] == ["Complete"] * 4


SPACE = ("a=interval(0,1)", "loss=choice(x,y)")


def sampler(name: str) -> Any:
    """Return a parameter of a test, which is skipped without the package of the extra ``gp``."""
    is_missing = name in ("gp", "qmc") and importlib.util.find_spec("scipy") is None
    return pytest.param(name, marks=pytest.mark.skipif(is_missing, reason="scipy, of the extra gp, is not installed"))


@pytest.mark.parametrize(
    "sampler", [sampler(path.stem) for path in sorted((CONFIG_FOLDER / "hydra/sweeper/sampler").glob("*.yaml"))]
)
def test_each_sampler_finds_new_values(tmp_path: Path, sampler: str):
    space = ("a=range(4)", "loss=choice(x,y)") if sampler == "grid" else SPACE
    jobs = run_search(tmp_path / "sweep", *space, sampler=sampler, n_trials=13).jobs
    assert len(jobs) == (8 if sampler == "grid" else 13)
    different = {(job["a"], job["loss"]) for job in jobs}
    # The model of a Gaussian process is soon sure that the best value is at the end of the interval.
    assert len(different) >= 11 if sampler == "gp" else len(different) == len(jobs)
    assert [trial.state.name for trial in trials(tmp_path / "sweep")] == ["COMPLETE"] * len(jobs)


@pytest.mark.parametrize("sampler", [sampler("tpe"), sampler("random"), sampler("qmc")])
def test_the_seed_of_a_sampler_repeats_a_search_and_a_resumed_one_draws_new_values(tmp_path: Path, sampler: str):
    first, same = (
        [job["a"] for job in run_search(tmp_path / name, *SPACE, sampler=sampler, n_trials=2).jobs]
        for name in ("one", "two")
    )
    assert first == same
    resumed = run_search(tmp_path / "one", *SPACE, sampler=sampler, n_trials=4, resumed=True).jobs
    assert len(resumed) == 2
    assert not {job["a"] for job in resumed} & set(first)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials"),
        ({"storage": "unknown://x"}, "hydra.sweeper.storage"),
        ({"storage": "sqlite:////no/such/folder/study.db"}, "hydra.sweeper.storage"),
        ({"storage": "/no/such/folder/journal.log"}, "hydra.sweeper.storage"),
        ({"sampler": {"_target_": "optuna.samplers.TPESampler", "_partial_": True, "sed": 1}}, "hydra.sweeper.sampler"),
        ({"objectives": {"map_50": "up"}}, "hydra.sweeper.objectives.map_50"),
        ({"objectives": {"speed": "maximize"}}, "hydra.sweeper.objectives"),
        ({"objectives": {}}, "hydra.sweeper.objectives"),
        ({"objectives": {"parameters": "minimize"}, "pruner": "median"}, "hydra/sweeper/pruner"),
        ({"objectives": {"map_50": "maximize", "map": "maximize"}, "pruner": "median"}, "hydra/sweeper/pruner"),
        ({"resumed": True, "n_trials": 1}, "resume_sweep"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: dict[str, Any], key: str):
    if settings.get("resumed"):
        run_search(tmp_path, *SPACE, n_trials=1)
    with pytest.raises(ValueError, match=f"^{key}: "):
        run_search(tmp_path, *SPACE, **settings)


def test_the_objectives_of_a_study_stay(tmp_path: Path):
    run_search(tmp_path, *SPACE, n_trials=1)
    with pytest.raises(ValueError, match=r"^hydra.sweeper.objectives: .*maximize.*minimize"):
        run_search(tmp_path, *SPACE, objectives={"map_50": "minimize"})


def test_a_grid_of_an_interval_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^a: expected a choice or a range"):
        run_search(tmp_path / "sweep", *SPACE, sampler="grid")


def test_the_value_of_a_trial_is_the_mean_over_its_seeds(tmp_path: Path):
    jobs = run_search(tmp_path / "sweep", "a=interval(0,1)", "seed=0,3,6", n_trials=2).jobs
    assert [job["seed"] for job in jobs] == ["0", "3", "6"] * 2
    assert len({job["a"] for job in jobs}) == 2
    for trial in trials(tmp_path / "sweep"):
        assert trial.value == pytest.approx(0.1 * trial.params["a"] + 0.03)


def test_one_failed_seed_fails_its_trial(tmp_path: Path):
    sweep = tmp_path / "sweep"
    run_search(sweep, "loss=choice(x,y)", "seed=0,1", sampler="grid", launcher=Jobs(sweep, failing=("y",)))
    assert {trial.params["loss"]: trial.state.name for trial in trials(sweep)} == {"x": "COMPLETE", "y": "FAIL"}


def test_a_launcher_gets_as_many_trials_as_may_run_at_once(tmp_path: Path):
    launcher = run_search(tmp_path / "sweep", "a=interval(0,1)", "seed=0,1", n_trials=5, n_jobs=2)
    assert [len(batch) for batch in launcher.batches] == [4, 4, 2]
    assert column_of_folders(tmp_path / "sweep") == [str(number) for number in range(10)]


class Validating(Jobs):
    """A launcher on whose machine the jobs write the scores of three validations, and wait for the end of others.

    A job scores ``a`` at each validation. One with ``a`` below 0.5 does not end by itself.
    """

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        with ThreadPoolExecutor() as machine:
            started = [
                machine.submit(super(Validating, self).launch, [job], initial_job_idx + place)
                for place, job in enumerate(job_overrides)
            ]
            return [job.result()[0] for job in started]

    def _run(self, folder: Path, arguments: list[str], values: dict[str, str]) -> Returned:
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(arguments))
        rows = [f"{step},{values['a']}\n" for step in (1, 2, 3)]
        (folder / "metrics.csv").write_text("step,val/map_50\n" + "".join(rows))
        lock = FolderLock(folder)
        (folder / "job.json").write_text(json.dumps({"status": "running"}))
        content = {"status": "finished"}
        if float(values["a"]) < 0.5:
            wait_for((folder / PRUNING_FILE).exists, patience=60)
            content = {"status": "pruned", "reason": (folder / PRUNING_FILE).read_text()}
        else:
            scores = {f"val/{name}": float(values["a"]) for name in SCORE_NAMES}
            (folder / "summary.json").write_text(json.dumps({"scores": scores}))
        (folder / "job.json").write_text(json.dumps(content))
        lock.release()
        return Returned(folder)


def test_the_other_jobs_count_if_a_launcher_loses_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep = tmp_path / "sweep"

    class Losing(Jobs):
        def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
            super().launch(job_overrides, initial_job_idx)
            raise RuntimeError("a task was killed")

    space = ("loss=choice(x,y)", "a=choice(1)")
    run_search(sweep, *space, sampler="grid", launcher=Losing(sweep, failing=("y",)), n_jobs=2)
    found = {trial.params["loss"]: (trial.state.name, trial.value) for trial in trials(sweep)}
    assert found == {"x": ("COMPLETE", pytest.approx(0.1)), "y": ("FAIL", None)}
    assert "the launcher has lost a job: a task was killed" in capsys.readouterr().err


@pytest.mark.parametrize("started", [0, 1])
def test_a_launcher_that_does_not_start_all_jobs_ends_the_search(tmp_path: Path, started: int):
    """What the started jobs found is kept. A job of an earlier trial with the same values is not taken for one."""
    sweep = tmp_path / "sweep"

    class Refusing(Jobs):
        def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
            if not self.batches:
                return super().launch(job_overrides, initial_job_idx)
            super().launch(job_overrides[:started], initial_job_idx)
            raise RuntimeError("no such partition")

    with pytest.raises(RuntimeError, match="no such partition"):
        run_search(sweep, "a=choice(1)", sampler="random", launcher=Refusing(sweep), n_jobs=2)
    assert [trial.state.name for trial in trials(sweep)] == ["COMPLETE"] * (2 + started) + ["FAIL"] * (2 - started)


@pytest.mark.parametrize("seeds", [[], ["seed=0,1"]])
def test_a_pruner_stops_the_jobs_of_a_launcher(
    tmp_path: Path, seeds: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first looks find a disk that is away."""
    monkeypatch.setattr(trials_module, "SECONDS_BETWEEN_LOOKS", 0.01)
    errors = iter([OSError("the disk is away")] * 3)

    def read_jobs(sweep: Path) -> list[Job]:
        if threading.current_thread() is not threading.main_thread() and (error := next(errors, None)):
            raise error
        return original(sweep)

    original = trials_module.table.read_jobs
    monkeypatch.setattr(trials_module.table, "read_jobs", read_jobs)
    sweep = tmp_path / "sweep"
    pruner = OmegaConf.create({"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.5, "n_warmup_steps": 2})
    launcher = Validating(sweep)
    run_search(sweep, "a=choice(0.2,0.8)", *seeds, sampler="grid", pruner=pruner, launcher=launcher, n_jobs=2)
    found = {trial.params["a"]: trial for trial in trials(sweep)}
    assert {a: trial.state.name for a, trial in found.items()} == {0.8: "COMPLETE", 0.2: "PRUNED"}
    assert found[0.8].intermediate_values == {1: 0.8, 2: 0.8, 3: 0.8}
    assert found[0.2].intermediate_values == {1: 0.2, 2: 0.2}
    jobs = [json.loads(path.read_text()) for path in sweep.glob("*/job.json")]
    reasons = [job["reason"] for job in jobs if job["status"] == "pruned"]
    assert reasons == [f"validation 2 of trial {found[0.2].number} was not good enough"] * max(1, 2 * len(seeds))
    assert not list(sweep.rglob(PRUNING_FILE))
    assert capsys.readouterr().err.count("the disk is away") == 1


def test_a_trial_that_another_sweep_took_for_lost_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sweep = tmp_path / "sweep"

    class Lost(Jobs):
        def _run(self, folder: Path, arguments: list[str], values: dict[str, str]) -> Returned:
            returned = super()._run(folder, arguments, values)
            (folder / "metrics.csv").write_text("step,val/map_50\n1,0.5\n")
            study = optuna.load_study(study_name="banana_tiny", storage=f"sqlite:///{sweep / 'study.db'}")
            study.tell(study.trials[-1].number, state=TrialState.FAIL)
            return returned

    run_search(sweep, "a=interval(0,1)", n_trials=2, launcher=Lost(sweep))
    assert [trial.state.name for trial in trials(sweep)] == ["FAIL"] * 2
    assert capsys.readouterr().out.count("was taken for lost by another sweep") == 2


def test_a_pruned_trial_with_a_job_that_can_go_on_is_repeated(tmp_path: Path):
    sweep = tmp_path / "sweep"

    class Interrupted(Jobs):
        def _run(self, folder: Path, arguments: list[str], values: dict[str, str]) -> Returned:
            returned = super()._run(folder, arguments, values)
            status = {"0": "pruned", "1": "interrupted"}[values["seed"]]
            (folder / "job.json").write_text(json.dumps({"status": status}))
            return returned

    run_search(sweep, "a=choice(1)", "seed=0,1", sampler="grid", launcher=Interrupted(sweep))
    assert [trial.state.name for trial in trials(sweep)] == ["FAIL"]


@pytest.mark.parametrize(
    "pruner", [path.stem for path in sorted((CONFIG_FOLDER / "hydra/sweeper/pruner").glob("*.yaml"))]
)
def test_each_pruner_sees_the_validations(tmp_path: Path, pruner: str):
    sweep = tmp_path / "sweep"
    run_search(sweep, "a=choice(0.6,0.7,0.8)", sampler="grid", pruner=pruner, launcher=Validating(sweep))
    found = trials(sweep)
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    assert all(trial.intermediate_values == dict.fromkeys((1, 2, 3), trial.params["a"]) for trial in found)


def column_of_folders(sweep: Path) -> list[str]:
    return sorted((path.parent.name for path in sweep.glob("*/job.json")), key=int)


OBJECTIVES = {"map_50": "maximize", "parameters": "minimize", "default_boxes": "maximize"}


@pytest.mark.parametrize("seeds", [[], ["seed=0,2"]])
def test_the_front_of_several_objectives_is_in_the_table(tmp_path: Path, seeds: list[str]):
    """A larger ``a`` has the better score and more parameters; loss=y has fewer default boxes."""
    objectives = OBJECTIVES
    sweep = tmp_path / "sweep"
    run_search(sweep, "a=range(2)", "loss=choice(x,y)", *seeds, sampler="grid", objectives=objectives)
    found = trials(sweep)
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 4
    of_seeds = 0.01 if seeds else 0
    for trial in found:
        a, loss = trial.params["a"], trial.params["loss"]
        assert trial.values == pytest.approx([0.1 * a + of_seeds, a, 9 if loss == "x" else 5])
    results = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert sorted(solution["params"]["a"] for solution in results["solutions"]) == [0, 1]
    hydra = {"sweeper": {"_target_": "hydra_plugins.ssd_optuna.OptunaSweeper", "objectives": objectives}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    update(sweep)
    rows = table(sweep, "seeds.csv" if seeds else "sweep.csv")
    assert {(row["a"], row["loss"]): (row["front"], float(row["default_boxes"])) for row in rows} == {
        ("0", "x"): ("yes", 9),
        ("0", "y"): ("", 5),
        ("1", "x"): ("yes", 9),
        ("1", "y"): ("", 5),
    }
    assert ("front" in table(sweep)[0]) == (not seeds)


@pytest.mark.parametrize("storage", ["sqlite:///{}/shared.db", "{}/journal.log"])
def test_two_sweeps_of_one_study_draw_different_values(tmp_path: Path, storage: str):
    jobs = [
        run_search(tmp_path / name, *SPACE, sampler="random", n_trials=3, storage=storage.format(tmp_path)).jobs
        for name in ("one", "two")
    ]
    assert len({job["a"] for job in jobs[0] + jobs[1]}) == 6
    study = open_study(storage.format(tmp_path), "banana_tiny", {"map_50": "maximize"})
    assert [trial.user_attrs["sweep"] for trial in study.trials] == [str(tmp_path / "one")] * 3 + [
        str(tmp_path / "two")
    ] * 3


def test_a_lost_trial_of_another_sweep_is_repeated_and_a_live_one_is_not(tmp_path: Path):
    storage = str(tmp_path / "journal.log")
    study = open_study(storage, "banana_tiny", {"map_50": "maximize"})
    distributions = {"a": optuna.distributions.FloatDistribution(0, 1)}
    lost, alive = (study.ask(distributions) for _ in range(2))
    lost.set_user_attr("heartbeat", 0.0)
    jobs = run_search(tmp_path / "sweep", "a=interval(0,1)", storage=storage, n_trials=2).jobs
    assert float(jobs[0]["a"]) == lost.params["a"]
    assert float(jobs[1]["a"]) not in (lost.params["a"], alive.params["a"])
    states = [trial.state.name for trial in study.trials]
    assert states == ["FAIL", "RUNNING", "COMPLETE", "COMPLETE"]
