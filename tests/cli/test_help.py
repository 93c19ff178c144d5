"""``--help`` of the commands."""

import re
from pathlib import Path

import pytest
from command_line import COMMANDS
from places import TESTS
from processes import finish, start

from ssd_lightning.cli.help import GROUPS
from ssd_lightning.detector.presets import CONFIG_FOLDER


def test_imports_nothing_heavy(tmp_path: Path):
    out, _ = finish(start(tmp_path, str(TESTS / "help_program.py")))
    assert re.findall(r"^(ssd-[a-z]+) - ", out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_shows_name_and_keys(run, name: str):
    out = run(name, "--help").out
    assert out.startswith(name)
    assert re.search(r"\b(checkpoint|resume|runs)=", out)


def test_lists_every_group_with_a_line_and_its_options(run):
    out = run("ssd-train", "--help").out
    for group, about in GROUPS.items():
        assert about in out
        for option in (CONFIG_FOLDER / group).glob("*.yaml"):
            assert option.stem in out


def test_marks_the_options_of_the_default_experiment(run):
    out = run("ssd-train", "--help").out
    assert "banana_tiny*" in out
    assert "banana_generated*" in out


def test_shows_examples_and_defaults(run):
    out = run("ssd-evaluate", "--help").out
    assert "ssd-evaluate detections=<run folder> iou_threshold=0.3" in out
    assert "  iou_threshold=0.5" in out
