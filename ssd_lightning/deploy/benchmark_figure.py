"""The figure of a benchmark."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ssd_lightning.deploy.benchmark import Measured, Stages
from ssd_lightning.drawing import COLOURS, WIDTH, legend_above, shown_names

LONGEST_LABEL = 60
"""Number of characters from which the name of a setting is shortened."""


def draw_stages(results: Sequence[Measured], labels: Sequence[str]) -> Figure:
    """Draw the median milliseconds of one picture in each stage as a bar for each setting, the first on top."""
    names, families = shown_names(labels, LONGEST_LABEL, noun=None)
    figure = Figure(figsize=(WIDTH, 1.2 + 0.35 * len(results)), layout="constrained")
    ax = figure.subplots()
    rows = range(len(results))
    left = [0.0] * len(results)
    for stage, colour in zip(Stages._fields, COLOURS, strict=False):
        widths = [1000 * result.median(stage) / result.setting.batch_size for result in results]
        ax.barh(rows, widths, left=left, color=colour, label=stage)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    ax.set_yticks(rows, names, fontfamily=families, parse_math=False)
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds per picture, median")
    legend_above(ax, ncols=len(Stages._fields))
    return figure
