"""Runs ``ssd-train`` with the stand-in in place of training, and fails if a heavy library was imported for that."""

import sys

from places import TESTS

from ssd_lightning.cli import commands
from ssd_lightning.cli.sweep import jobs

jobs.CHILD = [sys.executable, str(TESTS / "stand_in_for_training.py")]
try:
    commands.train()
finally:
    assert not {"torch", "lightning", "pandas"} & set(sys.modules)
