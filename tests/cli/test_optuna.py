"""Sweeps by Optuna. A stand-in takes the place of training."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_folder import column

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
pytestmark = pytest.mark.usefixtures("stand_in")

SEARCH = ("hparams_search=banana_optuna", "hydra.sweep.dir=sweep", "hydra.sweeper.n_trials=2")


def trials(folder: Path) -> list[Any]:
    import optuna

    return optuna.load_study(study_name="banana_tiny", storage=f"sqlite:///{folder / 'study.db'}").trials


@pytest.mark.slow
def test_a_study_is_stored_and_resumed(run, tmp_path: Path):
    folder = tmp_path / "sweep"
    outcome = run("ssd-train", *SEARCH, "jobs_at_once=2")
    assert outcome.exit_code == 0, outcome.error
    assert [trial.state.name for trial in trials(folder)] == ["COMPLETE"] * 2
    outcome = run("ssd-train", "resume_sweep=sweep")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-train: resume_sweep: ")
    assert "n_trials" in outcome.message
    outcome = run("ssd-train", "resume_sweep=sweep", "hydra.sweeper.n_trials=4")
    assert outcome.exit_code == 0, outcome.error
    found = trials(folder)
    assert len({trial.params["optimizer.lr"] for trial in found}) == 4
    assert [trial.value for trial in found] == pytest.approx([t.params["optimizer.lr"] for t in found], abs=1e-6)
    assert sorted(float(rate) for rate in column(folder, "optimizer.lr")) == pytest.approx(
        sorted(trial.params["optimizer.lr"] for trial in found)
    )
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(trial.value for trial in found)


def test_a_failed_trial_is_recorded_and_repeated(run, tmp_path: Path, monkeypatch):
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
