"""Assertions that a figure is legible."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

NOTEBOOK = 10.0
"""Width of a notebook's output in inches. Wider figures are shown smaller."""


def texts(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Return the visible text, with its edges in pixels: left, bottom, right, top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer()).extents) for text in found]


def assert_legible(figure: Figure, smallest: float) -> None:
    """Assert that all text has at least a size in points, is inside the figure and does not overlap."""
    assert figure.get_figwidth() <= NOTEBOOK
    found = texts(figure)
    assert found
    right, top = figure.bbox.width, figure.bbox.height
    for text, edges in found:
        assert edges.min() >= -0.5, text
        assert edges[2] <= right + 0.5, text
        assert edges[3] <= top + 0.5, text
    edges = np.stack([edges for _, edges in found])
    shared = np.minimum(edges[:, None, 2:], edges[None, :, 2:]) - np.maximum(edges[:, None, :2], edges[None, :, :2])
    for a, b in np.argwhere(np.triu(shared.min(axis=2) >= 1, k=1)):
        raise AssertionError(f"{found[a][0]!r} and {found[b][0]!r} overlap by {shared[a, b]}")
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert min(sizes) >= smallest


def assert_legends_are_outside(figure: Figure) -> None:
    """Assert that there are legends, and that no legend overlaps the plot of any axis."""
    FigureCanvasAgg(figure).draw()
    legends = figure.findobj(Legend)
    assert legends
    for legend in legends:
        box = legend.get_window_extent()
        for ax in figure.axes:
            if ax.axison:
                shared = [min(box.x1, ax.bbox.x1) - max(box.x0, ax.bbox.x0)]
                shared += [min(box.y1, ax.bbox.y1) - max(box.y0, ax.bbox.y0)]
                assert min(shared) <= 1, f"{legend.get_texts()} covers {shared} pixels of a plot"
