"""The README and the documentation: their Python runs, and their commands name what exists."""

import itertools
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from places import ROOT
from run_folder import Trained

from ssd_lightning.cli import overrides
from ssd_lightning.cli.commands import COMMANDS
from ssd_lightning.cli.help import GROUPS
from ssd_lightning.cli.keys import check_keys
from ssd_lightning.cli.plain import without_weights
from ssd_lightning.detector.presets import CONFIG_FOLDER
from ssd_lightning.training.checkpoint import load_detector

README = ROOT / "README.md"
PAGES = [
    README,
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not page.is_relative_to(ROOT / "docs" / "_build") and page.parent.parent != ROOT / "docs" / "reference"
    ),
]
"""Pages that are written by hand."""

NETWORK = ("aspect_ratios", "backbone", "box_scales", "experiment", "extra_layers", "head", "model")
"""Groups that change the network."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks() -> list[tuple[Path, str]]:
    blocks = (
        (page, re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)) for page in PAGES
    )
    return [(page, block) for page, found in blocks for block in found]


def command_lines() -> list[tuple[Path, str]]:
    """Return each line that begins with a command, with its continuation lines."""
    found = []
    for page in PAGES:
        text = re.sub(r"\s*\\\n\s*", " ", page.read_text())
        lines = re.findall(r"^(?:    )?(?:uv run )?(ssd-[a-z]+(?: .*)?)$", text, re.MULTILINE)
        found += [(page, line) for line in lines]
    return found


def arguments_of(line: str) -> list[str]:
    """Split a command line, with a word in place of each ``<placeholder>``."""
    return shlex.split(re.sub(r"<[^>]+>", "some", line), comments=True)


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_runs(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path, block: str):
    monkeypatch.chdir(tmp_path)
    for picture in ("photo.jpg", "a.jpg", "b.png"):
        Image.new("RGB", (80, 60)).save(picture)
    for job in "0123":
        (tmp_path / job).symlink_to(trained.folder)
    block = re.sub(r'"[^"\n]*/checkpoints/best\.ckpt"', repr(str(trained.best)), block)
    block = re.sub(r'"[^"\n]*sweep_<time>(/\d)?"', lambda found: repr(str(tmp_path) + (found[1] or "")), block)
    if re.search(r'"<[^"\n]*"', block):
        # The file of the example is missing here, so only the names are checked.
        block = "\n".join(line for line in block.splitlines() if line.startswith(("import ", "from ")))
    scope: dict[str, Any] = {"images": torch.zeros(2, 3, 64, 64, dtype=torch.uint8)}
    if "detector" in block:
        scope["detector"] = load_detector(trained.best)
    exec(compile(block, name_of(page), "exec"), scope)
    if "losses" in scope:
        assert torch.isfinite(scope["losses"].total)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_keys_and_options_that_exist(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for line in (line for found, line in command_lines() if found == page):
        name, *arguments = arguments_of(line)
        assert name in COMMANDS, line
        if "--help" in arguments or any(f"{group}=some" in arguments for group in GROUPS):
            continue
        arguments = [argument for argument in arguments if argument not in ("design", "--cfg", "job", "-m")]
        arguments = overrides.readable(arguments)
        check_keys(COMMANDS[name], arguments)
        for group, _, options in (argument.partition("=") for argument in arguments):
            if group in GROUPS and "--config-dir" not in arguments:
                for option in options.removeprefix("choice(").strip("[])").split(","):
                    assert (CONFIG_FOLDER / group / f"{option}.yaml").exists(), line


def networks() -> list[tuple[str, ...]]:
    """Return the arguments for the network on each line with ``ssd-train``, one value of a sweep after another."""
    found = set()
    for _, line in command_lines():
        name, *arguments = arguments_of(line)
        if name != "ssd-train" or "--help" in arguments or "--config-dir" in arguments or "<" in line:
            continue
        own = [argument for argument in arguments if argument.split("=")[0].split(".")[0] in NETWORK]
        values = [re.sub(r"=choice\((.*)\)$", r"=\1", argument) for argument in own if "weights=" not in argument]
        pairs = [argument.partition("=") for argument in values]
        choices = [
            [f"{key}={value}" for value in (text.split(",") if text[0] != "[" else [text])] for key, _, text in pairs
        ]
        found |= set(itertools.product(*choices))
    return sorted(found - {()})


@pytest.mark.slow
@pytest.mark.parametrize("arguments", networks(), ids=" ".join)
def test_networks_on_training_lines_can_be_built(arguments: tuple[str, ...]):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", [*arguments, "+model.num_classes=3"])
    model = without_weights(OmegaConf.to_container(config.model, resolve=True))
    assert len(instantiate(model, _convert_="all").grids) > 2


def test_every_command_is_shown():
    shown = {line.split()[0] for _, line in command_lines()}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert shown == set(scripts) == set(COMMANDS)


def test_links_and_files_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert not re.findall(r"@[A-Z]+@", page.read_text()), page
