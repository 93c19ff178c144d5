"""Packages that take long to import, and that commands which do not need them do not import."""

from pathlib import Path

import pytest
from places import TESTS
from processes import finish, start
from random_detector import photo
from run_folder import Trained


@pytest.mark.slow
def test_files_are_compared_without_torch_and_pictures_predicted_without_lightning(trained: Trained, tmp_path: Path):
    photo().save(tmp_path / "photo.png")
    out, _ = finish(start(tmp_path, str(TESTS / "start_up_program.py"), str(trained.folder), "photo.png"))
    assert [line for line in out.splitlines() if line.startswith("loaded")] == ["loaded", "loaded"]
    for file in ("compare/comparison.html", "predict/predictions.json", "evaluate/scores.json"):
        assert (tmp_path / "out" / file).is_file()
