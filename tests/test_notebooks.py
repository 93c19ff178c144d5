"""The notebooks run from top to bottom."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def pictures_of(notebook: NotebookNode, folder: Path) -> int:
    """How many it shows when it is run in a folder."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


SMALLER = {
    "03_train_bananas": ("PICTURES, EPOCHS, IMAGE_SIZE = 200, 8, 128", "PICTURES, EPOCHS, IMAGE_SIZE = 16, 1, 64")
}
"""Lines of notebooks, and what is run in their place."""


def read(path: Path) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    if path.stem in SMALLER:
        line, smaller = SMALLER[path.stem]
        [cell] = [cell for cell in notebook.cells if cell.source.startswith(line)]
        cell.source = cell.source.replace(line, smaller)
    return notebook


@pytest.fixture
def sweep(run: Callable[..., Any], bananas: Path) -> None:
    """A run, and two as if it had been trained with other settings, in the folder that the notebook looks into."""
    quick = ["model.image_size=64", "batch_size=4", "num_workers=0", "trainer=cpu", "trainer.precision=32-true"]
    short = ["trainer.max_epochs=1", "trainer.log_every_n_steps=1", "hydra.run.dir=runs/banana_tiny/0"]
    outcome = run("ssd-train", "data=banana", f"data.root={bananas}", *quick, *short)
    assert outcome.exit_code == 0, outcome.error
    for number, changes in enumerate(({"seed": 1}, {"batch_size": 8}), start=1):
        folder = Path(f"runs/banana_tiny/{number}")
        shutil.copytree("runs/banana_tiny/0", folder)
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config | changes))
        summary = json.loads((folder / "summary.json").read_text())
        summary["scores"]["val/map_50"] = number / 10
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, request: pytest.FixtureRequest):
    if path.stem == "04_review_a_sweep":
        request.getfixturevalue("sweep")
    assert pictures_of(read(path), tmp_path) > 0, "a notebook should show something"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_small(path: Path):
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path: Path):
    """They would differ with every run."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [cell.id for cell in cells if cell.outputs or cell.execution_count is not None]


WIDGETS = """
class FloatSlider:
    def __init__(self, value, min, max, step, continuous_update):
        assert min <= value <= max and step > 0 and not continuous_update
        self.ends = min, max

def interact(draw, **sliders):
    for values in zip(*(slider.ends for slider in sliders.values()), strict=True):
        draw(**dict(zip(sliders, values, strict=True)))
"""
"""What the notebooks take of ipywidgets, moved to both ends."""


def test_sliders_can_be_moved_to_their_ends(tmp_path: Path):
    (tmp_path / "ipywidgets.py").write_text(WIDGETS)
    [path] = [path for path in NOTEBOOKS if path.stem == "02_matching_and_loss"]
    notebook = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    assert "STEPS = 40" in cells["training"].source
    cells["training"].source = cells["training"].source.replace("STEPS = 40", "STEPS = 1")
    sliders = sum(cell.source.count("explore(") for cell in notebook.cells if cell.cell_type == "code") - 1
    figures = sum("plt.show()" in cell.source for cell in notebook.cells)
    assert sliders == 4
    assert pictures_of(notebook, tmp_path) == figures + sliders
