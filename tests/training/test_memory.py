"""The memory of a long run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import TESTS

GROWTH = 20
"""Largest growth in MiB. One batch kept in each step would be 37 MiB, and one graph kept in each step much more."""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and uses glibc")
def test_memory_stays_flat_over_many_steps_and_validations(bananas: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(TESTS / "memory_program.py"), str(bananas), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["validations"] == 38
    first, last = found["sizes"]
    assert last - first < GROWTH
