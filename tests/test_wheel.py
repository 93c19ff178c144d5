"""The package as installed from a wheel, away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds only the installed wheel. The dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    target = folder / "site"
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv:
        install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--target", str(target), str(wheel)]
        subprocess.run([*install, "--python", sys.executable], check=True, capture_output=True)
    else:
        zipfile.ZipFile(wheel).extractall(target)
    return target


def run_installed(site: Path, folder: Path, *arguments: str) -> str:
    """Run the installed ``ssd-train`` from another folder, and return what it prints."""
    program = (
        f"from ssd_lightning.cli import commands; assert commands.__file__.startswith({str(site)!r}); commands.train()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_holds_every_config_and_module(installed: Path):
    for folder, suffix in ((ROOT / "conf", ".yaml"), (ROOT / "ssd_lightning", ".py")):
        expected = {path.relative_to(folder) for path in folder.rglob(f"*{suffix}")}
        inside = installed / "ssd_lightning" / ("conf" if folder.name == "conf" else "")
        assert expected == {p.relative_to(inside) for p in inside.rglob(f"*{suffix}")}


def test_has_the_sweeper_where_hydra_looks_for_it(installed: Path):
    assert (installed / "hydra_plugins/ssd_optuna.py").is_file()
    assert not (installed / "hydra_plugins/__init__.py").exists()  # It would hide the plugins of other packages.


def test_composes_the_default_config_from_another_folder(installed: Path, tmp_path: Path):
    out = run_installed(installed, tmp_path, "--cfg", "job")
    assert re.search(r"^  _target_: ssd_lightning\S*\.SSD$", out, re.MULTILINE)
    assert "name: banana_tiny" in out


def test_help_lists_the_groups(installed: Path, tmp_path: Path):
    assert "box_scales" in run_installed(installed, tmp_path, "--help")
