"""A disk that is full: every file that is written is named in the error, and nothing is left of it."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ssd_lightning.cli.check import write_findings
from ssd_lightning.data.bananas.generator import generate_bananas
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.drawing import save_figure
from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.run_folder import replace_text
from ssd_lightning.scoring.csv_tables import write_table
from ssd_lightning.scoring.stored_detections import save_detections


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let the system refuse more than 500 bytes in a file, with an error that names no file."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def write_detections(path: Path) -> None:
    rng = np.random.default_rng(0)
    ids, boxes = np.zeros(300, dtype=int), rng.random((300, 4), dtype=np.float32)
    detections = DetectionRecords(ids, ids + 1, boxes, boxes[:, 0])
    save_detections(path, detections, ObjectRecords(ids, ids + 1, boxes, ids > 0), ["a.png"], ["a"])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: replace_text(path, "a" * 1000),
        lambda path: write_table(pd.DataFrame({"a": range(1000)}), path),
        lambda path: save_figure(Figure(), path.with_suffix(".png")),
        lambda path: write_findings(path, [Finding("names", "a" * 1000)] * 20, [], []),
        lambda path: generate_bananas(path, 1, 1, 1, 1, 0, workers=1),
        write_detections,
    ],
    ids=["text", "table", "figure", "findings", "bananas", "detections"],
)
def test_the_file_is_named(full_disk: None, tmp_path: Path, write: Callable[[Path], None]):
    with pytest.raises(OSError, match=rf"^{tmp_path}/written.* could not be written: File too large$"):
        write(tmp_path / "written")
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size <= 500
    assert list(tmp_path.glob(".*")) == []


def test_the_run_folder_is_named_where_hydra_writes(run, full_disk: None, tmp_path: Path):
    outcome = run("ssd-train", "data=banana", "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert outcome.message == f"ssd-train: {tmp_path}/run could not be written: File too large"
