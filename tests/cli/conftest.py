"""Fixtures for the tests of commands: the stand-in for training, for sweeps, and types that nobody checks."""

import sys

import pytest
from hydra.plugins.sweeper import Sweeper
from places import TESTS

from ssd_lightning.cli.sweep import jobs


@pytest.fixture(scope="module")
def stand_in():
    """Let jobs of sweeps in this process run ``stand_in_for_training.py`` in place of a training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "CHILD", [sys.executable, str(TESTS / "stand_in_for_training.py")])
        # Hydra composes each job twice, first to see whether all can be composed.
        patch.setattr(Sweeper, "validate_batch_is_legal", lambda sweeper, batch: None)
        yield
