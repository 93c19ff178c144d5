"""Tests of the notebooks: quick checks of their content, and slow ones that execute them."""

import ast
import json
import shlex
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
    """Execute a notebook in a folder and return the number of pictures that it shows."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


SMALLER = {
    "03_train_bananas": ("PICTURES, EPOCHS, IMAGE_SIZE = 200, 8, 128", "PICTURES, EPOCHS, IMAGE_SIZE = 16, 1, 64")
}
"""Lines of notebooks, and the lines that are run in their place."""


def read(path: Path) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    if path.stem in SMALLER:
        line, smaller = SMALLER[path.stem]
        [cell] = [cell for cell in notebook.cells if cell.source.startswith(line)]
        cell.source = cell.source.replace(line, smaller)
    return notebook


@pytest.fixture
def sweep(run: Callable[..., Any]) -> None:
    """Train one run with the notebook's own command, on fewer pictures, and write two copies with other settings."""
    [cell] = [cell for cell in read(ROOT / "notebooks" / "04_review_a_sweep.ipynb").cells if "COMMAND =" in cell.source]
    command = shlex.split(cell.source.split('"""')[1])
    sizes = {"data.num_train": "8", "data.num_val": "4", "trainer.max_epochs": "1"}
    assert command[:2] == ["ssd-train", "-m"]
    assert sizes.keys() <= {argument.partition("=")[0] for argument in command}
    swept = ("loss", "seed", "hydra.sweep.dir", *sizes)
    arguments = [argument for argument in command[2:] if argument.partition("=")[0] not in swept]
    arguments += [f"{key}={value}" for key, value in sizes.items()]
    outcome = run("ssd-train", *arguments, "trainer.log_every_n_steps=1", "hydra.run.dir=runs/small_sweep/0")
    assert outcome.exit_code == 0, outcome.error
    for number, changes in enumerate(({"seed": 1}, {"batch_size": 8}), start=1):
        folder = Path(f"runs/small_sweep/{number}")
        shutil.copytree("runs/small_sweep/0", folder)
        config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config | changes))
        summary = json.loads((folder / "summary.json").read_text())
        summary["scores"]["val/map_50"] = number / 10
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.slow
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
    """Outputs would differ with every run."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [cell.id for cell in cells if cell.outputs or cell.execution_count is not None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_is_python_and_every_import_resolves(path: Path):
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    lines = [line for source in code for line in source.splitlines() if not line.startswith(("%", "!"))]
    tree = ast.parse("\n".join(lines))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, type_ignores=[]), path.name, "exec"), {})


WIDGETS = """
class FloatSlider:
    def __init__(self, value, min, max, step, continuous_update):
        assert min <= value <= max and step > 0 and not continuous_update
        self.ends = min, max

def interact(draw, **sliders):
    for values in zip(*(slider.ends for slider in sliders.values()), strict=True):
        draw(**dict(zip(sliders, values, strict=True)))
"""
"""The part of ipywidgets that the notebooks use, with sliders moved to both ends."""


@pytest.mark.slow
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
