"""Packages that take long to import, and that commands which do not need them do not import."""

import re
from pathlib import Path

import pytest
from places import TESTS
from processes import finish, start
from random_detector import photo
from run_folder import Trained


@pytest.mark.slow
def test_files_are_compared_without_torch_and_detectors_used_without_lightning(
    trained: Trained, bananas: Path, tmp_path: Path
):
    photo().save(tmp_path / "photo.png")
    arguments = str(trained.folder), "photo.png", str(bananas)
    out, error = finish(start(tmp_path, str(TESTS / "start_up_program.py"), *arguments))
    assert [line for line in out.splitlines() if line.startswith("loaded")] == ["loaded"] * 3
    assert re.search(r"^ssd-compare: .*nowhere", error, re.MULTILINE)
    for file in (
        *("compare/comparison.html", "predict/predictions.json", "evaluate/misses.csv"),
        *("export/detector.onnx", "check/classes.csv", "benchmark/benchmark.json"),
    ):
        assert (tmp_path / "out" / file).is_file()
