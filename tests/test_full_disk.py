"""A disk that is full: every file that is written is named in the error, and nothing is left of it."""

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import ssd_lightning
from ssd_lightning.cli.check import write_findings
from ssd_lightning.data.bananas.generator import generate_bananas
from ssd_lightning.data.formats.findings import Finding
from ssd_lightning.drawing import save_figure
from ssd_lightning.records import DetectionRecords, ObjectRecords
from ssd_lightning.run_folder import replace_text
from ssd_lightning.scoring.csv_tables import write_table
from ssd_lightning.scoring.stored_detections import save_detections

PACKAGE = Path(ssd_lightning.__file__).parent


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


WRITERS = {
    "text": lambda path: replace_text(path, "a" * 1000),
    "table": lambda path: write_table(pd.DataFrame({"a": range(1000)}), path),
    "figure": lambda path: save_figure(Figure(), path),
    "findings": lambda path: write_findings(path, [Finding("names", "a" * 1000)] * 20, [], []),
    "detections": write_detections,
}
"""Functions that write a file anew where a run is resumed, or a command repeated."""


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("former", [None, "a former file"])
def test_the_file_is_named_and_stays_as_it_was(full_disk: None, tmp_path: Path, name: str, former: str | None):
    path = tmp_path / "written.png"
    if former is not None:
        path.write_text(former)
    with pytest.raises(OSError, match=rf"^{path} could not be written: File too large$"):
        WRITERS[name](path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if former is None else [former])


def test_a_generated_data_set_is_named(full_disk: None, tmp_path: Path):
    with pytest.raises(OSError, match=rf"^{tmp_path}/written.* could not be written: File too large$"):
        generate_bananas(tmp_path / "written", 1, 1, 1, 1, 0, workers=1)


def test_no_other_function_of_the_package_empties_a_file_that_is_there():
    """Files are opened for writing in few places, each of which makes a new file, or one that nobody needs again."""
    opened = re.compile(
        r"open\([^)\n]*\"[wx]b?\"|write_text\(|write_bytes\(|OmegaConf\.save\(|\.to_csv\(path|savefig\(path"
    )
    found = {
        str(file.relative_to(PACKAGE)): len(opened.findall(file.read_text())) for file in sorted(PACKAGE.rglob("*.py"))
    }
    assert {name: count for name, count in found.items() if count} == {
        "cli/predict.py": 1,  # A file of a new name, line by line, so that it holds what is done.
        "cli/sources.py": 1,  # A picture is downloaded to a temporary folder.
        "data/bananas/generator.py": 2,  # A data set is generated in a folder that gets its name at the end.
        "deploy/benchmark.py": 1,  # A file of the system, which sets a counter back.
        "run_folder.py": 1,  # written_whole itself.
    }


def test_the_run_folder_is_named_where_hydra_writes(run, full_disk: None, tmp_path: Path):
    outcome = run("ssd-train", "data=banana", "hydra.run.dir=run")
    assert outcome.exit_code == 1
    assert outcome.message == f"ssd-train: {tmp_path}/run could not be written: File too large"
