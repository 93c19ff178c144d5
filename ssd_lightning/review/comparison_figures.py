"""The figures of the page that compares runs, as images in the page. Nothing else of the page needs matplotlib."""

import base64
import contextlib
import io
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from ssd_lightning.review.run_figures import (
    draw_class_differences,
    draw_importance,
    draw_learning_curves,
    draw_pareto,
)
from ssd_lightning.review.runs import learning_curves, objectives_of

DOTS_PER_INCH = 200
"""Resolution of figures that are stored as pixels; sharp on a screen of double density."""

COSTS = ("train_seconds", "parameters")
"""Columns that the score is drawn against, beside the other objectives of a search."""


class Figures(NamedTuple):
    """Figures as data URIs; None for a figure that would be empty."""

    curves: str | None
    fronts: list[str]
    """The score against each cost."""
    importance: str | None
    classes: str | None


def draw_figures(
    runs: pd.DataFrame,
    finished: pd.DataFrame,
    labels: pd.Series,
    by_setting: pd.Series | None,
    score: str,
    mattered: pd.DataFrame | None,
    classes: pd.DataFrame | None,
) -> Figures:
    """Draw the figures of the page.

    Args:
        runs: the table of :func:`ssd_lightning.review.load_runs`.
        finished: its finished runs.
        labels: a text for each run.
        by_setting: texts that are the same for runs with one colour; None: each run has its own.
        score: the column that ranks the runs.
        mattered: the table of :func:`ssd_lightning.review.importance`, if there is one.
        classes: the table of :func:`ssd_lightning.review.compare_classes`, if two runs are compared.
    """
    # A dollar sign in a class or folder does not start a formula.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "comparison"}):
        costs = [name for name in dict.fromkeys([*COSTS, *objectives_of(runs)]) if name != score]
        return Figures(
            _curves(runs, labels if by_setting is None else by_setting, score),
            [_image(draw_pareto(finished, score, cost, labels)) for cost in costs if finished[cost].nunique() > 1],
            None if mattered is None else _image(draw_importance(mattered, score)),
            _image(draw_class_differences(classes)) if classes is not None and len(classes) > 1 else None,
        )


def _curves(runs: pd.DataFrame, labels: pd.Series, score: str) -> str | None:
    """Draw the learning curves; None if no run has logged any."""
    parts = []
    for key in dict.fromkeys(("train/loss", "val/loss", f"val/{score.removeprefix('val/')}")):
        with contextlib.suppress(ValueError):
            parts.append(learning_curves(runs, [key]))
    return _image(draw_learning_curves(pd.concat(parts), labels)) if parts else None


def _image(figure: Figure) -> str:
    """Return a figure as a data URI, of lines or of pixels, whichever is smaller."""
    files = []
    for kind, media, options in (
        ("svg", "image/svg+xml", {"metadata": {"Date": None}}),
        ("png", "image/png", {"dpi": DOTS_PER_INCH}),
    ):
        file = io.BytesIO()
        figure.savefig(file, format=kind, **options)
        files.append((media, file.getvalue()))
    media, content = min(files, key=lambda pair: len(pair[1]))
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
