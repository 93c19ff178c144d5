"""Quick checks of the notebooks' content. The build of the documentation executes them, and fails if a cell fails."""

import ast
from pathlib import Path

import nbformat
import pytest
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
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
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
