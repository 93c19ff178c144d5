"""What the README says is run."""

import re
import tomllib

import pytest
import torch
from places import ROOT

from ssd_lightning.cli.help import GROUPS
from ssd_lightning.detector.presets import CONFIG_FOLDER

README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_example_without_hydra_runs():
    [example] = [block for block in PYTHON_BLOCKS if "MultiBoxLoss" in block]
    scope: dict = {}
    exec(example, scope)
    assert torch.isfinite(scope["losses"].total)
    assert scope["model"].head.classification[0].weight.grad.abs().sum() > 0


def test_links_and_files_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_modules_of_the_table_exist_and_all_are_in_it():
    table = README.split("## Where is what")[1].split("## Speed")[0]
    named = set(re.findall(r"`([a-z_]+(?:\.py|/))`", table))
    package = ROOT / "ssd_lightning"
    for name in named - {"ssd_lightning/", "conf/", "benchmarks/", "tests/", "notebooks/"}:
        assert (package / name).exists(), name
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "allocator.py"}
    assert modules <= named


def test_commands_are_installed():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(re.findall(r"\bssd-[a-z]+\b", README)) == set(scripts)


CHOICES = re.findall(r"\b([a-z_]+)=([a-z0-9_]+(?:,[a-z0-9_]+)*)", README)


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@[A-Z]+@", README)


@pytest.mark.parametrize(("group", "options"), [choice for choice in CHOICES if choice[0] in GROUPS])
def test_named_options_exist(group: str, options: str):
    for option in options.split(","):
        assert (CONFIG_FOLDER / group / f"{option}.yaml").exists(), option
