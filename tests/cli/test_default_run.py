"""The default run, compared with its curve of before."""

import json
import os
from pathlib import Path

import pytest
from places import TESTS
from processes import TRAIN, finish, start
from run_folder import COMPLETE, files_of

from ssd_lightning.run_folder import read_metrics


@pytest.mark.slow
def test_the_default_run_learns_as_before(tmp_path: Path):
    """A change of matching, loss, augmentation or schedule that costs accuracy shows here and in no other test."""
    finish(start(tmp_path, *TRAIN, "hydra.run.dir=run", OMP_NUM_THREADS=str(os.cpu_count())), patience=580)
    assert files_of(tmp_path / "run") >= COMPLETE
    golden = json.loads((TESTS / "fixtures" / "golden_curves.json").read_text())["banana_tiny"]
    rows = read_metrics(tmp_path / "run" / "metrics.csv").values()
    scores = [row["val/map_50"] for row in rows if "val/map_50" in row]
    assert len(scores) == len(golden)
    off = [
        (point, score)
        for point, score in zip(golden, scores, strict=True)
        if abs(score - point["AP50"]) > point["tolerance"]
    ]
    assert off == []
