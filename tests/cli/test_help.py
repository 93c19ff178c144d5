"""``--help`` of the commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from command_line import COMMANDS
from hydra import compose, initialize_config_dir
from places import TESTS
from processes import TRAIN, finish, start

from ssd_lightning.cli.help import GROUPS
from ssd_lightning.detector.presets import CONFIG_FOLDER


def test_imports_nothing_heavy(tmp_path: Path):
    out, _ = finish(start(tmp_path, str(TESTS / "help_program.py")))
    assert re.findall(r"^(ssd-[a-z]+) - ", out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_shows_name_and_keys(run, name: str):
    out = run(name, "--help").out
    assert out.startswith(name)
    assert re.search(r"^  (checkpoint|resume|runs)=", out.partition("\nKeys:")[2], re.MULTILINE)


def test_lists_every_group_with_a_line_and_its_options(run):
    out = run("ssd-train", "--help").out
    for group, about in GROUPS.items():
        assert about in out
        for option in (CONFIG_FOLDER / group).glob("*.yaml"):
            assert option.stem in out


def test_marks_the_options_of_the_default_run(run):
    out = run("ssd-train", "--help").out
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        choices = compose("train", return_hydra_config=True).hydra.runtime.choices
    expected = {choices[group] for group in GROUPS if choices[group] is not None}
    assert {"banana_tiny", "tiny_ssd128"} < expected
    assert set(re.findall(r"(\w+)\*", out)) == expected


@pytest.mark.parametrize("argument", ["model=foo", "loss=focal_"])
def test_an_option_that_does_not_exist(run, argument: str):
    outcome = run("ssd-train", "--help", argument)
    assert outcome.exit_code == 1
    group, _, option = argument.partition("=")
    assert outcome.message.startswith(f"ssd-train: {group}: expected one of ")
    assert outcome.message.endswith(f", got {option}")


def test_commands_without_groups_do_not_offer_their_options(run):
    out = run("ssd-compare", "--help").out
    assert "group=option" not in out
    assert run("ssd-compare", "--help", "model=tiny_ssd128").out == out
    assert "group=option" in run("ssd-train", "--help").out


def test_ends_quietly_with_the_reader_of_its_pipe(tmp_path: Path):
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen([*TRAIN, "--help"], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, error = process.communicate(timeout=60)
    assert error == b""
    assert process.returncode == 1


def test_shows_examples_and_defaults(run):
    out = run("ssd-evaluate", "--help").out
    assert "ssd-evaluate detections=<run folder> iou_threshold=0.3" in out
    assert "  iou_threshold=0.5" in out
