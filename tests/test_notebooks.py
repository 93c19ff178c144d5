"""Quick checks of the notebooks' content. The build of the documentation executes them, and fails if a cell fails."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells with code as the file has them."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_small(path: Path):
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path: Path):
    """Outputs would differ with every run."""
    cells = code_cells(path)
    assert cells
    assert not [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_is_python_and_every_import_resolves(path: Path):
    code = ["".join(cell["source"]).splitlines() for cell in code_cells(path)]
    lines = [line for source in code for line in source if not line.startswith(("%", "!"))]
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
    # These take seconds to import, which every worker would wait for.
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "ipywidgets.py").write_text(WIDGETS)
    [path] = [path for path in NOTEBOOKS if path.stem == "02_matching_and_loss"]
    notebook = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    assert "STEPS = 40" in cells["training"].source
    cells["training"].source = cells["training"].source.replace("STEPS = 40", "STEPS = 1")
    sliders = sum(cell.source.count("explore(") for cell in notebook.cells if cell.cell_type == "code") - 1
    figures = sum("plt.show()" in cell.source for cell in notebook.cells)
    assert sliders == 4
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures + sliders
