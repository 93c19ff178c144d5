"""Turns the shapes in the package's signatures into checks, and keeps out of the user's cache."""

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side already. Before torch is imported, and for the commands that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from banana_folder import write_banana_folder
from jaxtyping import install_import_hook

install_import_hook("ssd_lightning", "typechecker.typechecker")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """No test reads what is cached for somebody's own data sets, or adds to it; commands that are started neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Outcome(NamedTuple):
    exit_code: int
    out: str
    error: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a command in this process, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    # Hydra's handlers write to what pytest captures, which is closed afterwards.
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))

    def run_command(name: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))
        exit_code = 0
        try:
            getattr(importlib.import_module("ssd_lightning.cli.commands"), name.removeprefix("ssd-"))()
        except SystemExit as exit_:
            exit_code = exit_.code if isinstance(exit_.code, int) else 1
        finally:
            monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        captured = capsys.readouterr()
        return Outcome(exit_code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def bananas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_banana_folder(tmp_path_factory.mktemp("data") / "bananas", num_train=12, num_val=4, side=64)
