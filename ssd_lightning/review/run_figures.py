"""Figures of many runs: their curves, score against cost, settings that mattered. To be read at a notebook's width."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ssd_lightning.drawing import COLOURS, WIDTH
from ssd_lightning.review.runs import more_is_better, pareto, run_labels, with_numbers

NAMES = {
    "map": "AP, IoU 0.5 to 0.95",
    "map_50": "AP at IoU 0.5",
    "map_75": "AP at IoU 0.75",
    "map_voc07": "AP (VOC07)",
    "map_voc12": "AP (VOC12)",
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "train_seconds": "seconds of training",
    "images_per_second": "training images/s",
    "parameters": "parameters",
    "default_boxes": "default boxes",
}
"""How people call columns and metrics."""

LINES: list[tuple[str, Any]] = [(COLOURS[n], style) for style in ("solid", "dashed") for n in (4, 0, 2, 5, 6, 1)]
"""Twelve that can be told apart; yellow is not seen on white."""

MOST_NUMBERED = 15
"""Runs of a front for which there is room in the list beside it."""

MOST_SETTINGS = 20
"""Bars for which there is room."""

LONGEST_LABEL = 60
"""Characters; longer ones are cut."""


def draw_learning_curves(curves: pd.DataFrame, labels: pd.Series | None = None) -> Figure:
    """:func:`ssd_lightning.review.learning_curves`: a plot for each key, a line for each run.

    Args:
        curves: of some runs.
        labels: by run; runs with the same label have the same colour. :func:`ssd_lightning.review.run_labels`, or a
            column of the table of runs, as ``runs["loss"]``. Default: the folders. If there are more than twelve, the
            twelve are told apart that end best in the last of the keys, and the others are grey.

    Raises:
        ValueError: if a run has no label.
    """
    runs = list(dict.fromkeys(curves["run"]))
    keys = list(dict.fromkeys(curves["key"]))
    if labels is None:
        labels = pd.Series(runs, index=runs)
    for run in runs:
        if run not in labels.index:
            raise ValueError(f"labels: expected one for each run, got none for {run}")
    texts = {run: str(labels.loc[run]) for run in runs}
    last = curves[curves["key"] == keys[-1]].groupby("run")["value"].last()
    ends = last.groupby(texts).mean().sort_values(ascending=not more_is_better(keys[-1].removeprefix("train/")))
    shown = list(dict.fromkeys(texts.values()))
    others = 0
    if len(shown) > len(LINES):
        others = len(shown) - len(LINES)
        best = set(ends.index[: len(LINES)])
        shown = [text for text in shown if text in best]
    look = dict(zip(shown, LINES, strict=False))

    in_a_row = min(3, len(keys))
    rows = -(-len(keys) // in_a_row)
    columns = _columns(list(look))
    lines_of_legend = -(-(len(look) + (others > 0)) // columns)
    figure = Figure(figsize=(WIDTH, 3.3 * rows + 0.3 + 0.2 * lines_of_legend), layout="constrained")
    axes = figure.subplots(rows, in_a_row, squeeze=False)
    for ax in axes.flat[len(keys) :]:
        ax.set_axis_off()
    for ax, key in zip(axes.flat, keys, strict=False):
        mine = curves[curves["key"] == key]
        for run, line in mine.groupby("run", sort=False):
            colour, style = look.get(texts[run], ("0.8", "solid"))
            is_other = texts[run] not in look
            marker = None if len(line) >= 30 or is_other else "o"
            ax.plot(
                line["step"],
                line["value"],
                color=colour,
                linestyle=style,
                linewidth=0.8 if is_other else 1.4,
                marker=marker,
                markersize=2.5,
                zorder=1 if is_other else 2,
            )
        ax.set(xlabel="step", ylabel=NAMES.get(key.removeprefix("val/"), NAMES.get(key, key)))
        ax.set_xlim(left=0)
        if "loss" in key and (mine["value"] > 0).all():
            ax.set_yscale("log")
            _plain_log(ax, "y", mine["value"])
        elif "map" in key:
            ax.set_ylim(0, 1.02)
        _tidy(ax)
    handles = [Line2D([], [], color=c, linestyle=style, label=_cut(text)) for text, (c, style) in look.items()]
    if others:
        handles.append(Line2D([], [], color="0.8", label=f"{others} others"))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def draw_pareto(
    runs: pd.DataFrame, score: str = "map_50", cost: str = "parameters", labels: pd.Series | None = None
) -> Figure:
    """All runs by score and cost, and those of :func:`ssd_lightning.review.pareto` with numbers, told in a list.

    Args:
        runs: the table of :func:`ssd_lightning.review.load_runs`.
        score: a column.
        cost: a column.
        labels: by run; default: :func:`ssd_lightning.review.run_labels`.

    Raises:
        ValueError: as :func:`ssd_lightning.review.pareto`.
    """
    front = pareto(runs, score, cost)
    all_runs = with_numbers(runs, score=score, cost=cost)
    if labels is None:
        labels = run_labels(runs)
    figure = Figure(figsize=(WIDTH, max(4.2, 1.6 + 0.4 * min(len(front), MOST_NUMBERED))), layout="constrained")
    ax, beside = figure.subplots(1, 2, width_ratios=(6, 4))
    ax.scatter(all_runs[cost], all_runs[score], s=22, color=COLOURS[1], zorder=2, label="run")
    line = front.sort_values(cost)
    ax.step(
        line[cost],
        line[score],
        where="pre" if more_is_better(cost) else "post",
        color=COLOURS[5],
        linewidth=1,
        zorder=1,
    )
    ax.plot(line[cost], line[score], "o", color=COLOURS[5], markersize=6, label="no other run beats it")
    # Away from the runs: beyond the front there is none.
    across = 6 if more_is_better(cost) else -6
    down = 4 if more_is_better(score) else -4
    texts = []
    # Runs that fall together have one number.
    places = front.groupby([cost, score], sort=False).groups
    for number, ((x, y), group) in enumerate(places.items(), start=1):
        if number > MOST_NUMBERED:
            texts.append(f"… and {len(places) - MOST_NUMBERED} more")
            break
        ax.annotate(
            str(number),
            (x, y),
            (across, down),
            textcoords="offset points",
            ha="left" if across > 0 else "right",
            va="bottom" if down > 0 else "top",
            fontsize=9,
        )
        more = f" (+ {len(group) - 1} alike)" if len(group) > 1 else ""
        texts.append(f"{number}  {y:.3g} · {_number(x)}{more}\n     {_cut(str(labels.loc[group[0]]))}")
    ax.set(xlabel=_with_direction(cost), ylabel=_with_direction(score))
    ax.margins(0.08)
    if len(all_runs) and all_runs[cost].min() > 0 and all_runs[cost].max() > 8 * all_runs[cost].min():
        ax.set_xscale("log")
        _plain_log(ax, "x", all_runs[cost])
    ax.xaxis.set_major_formatter(lambda x, _: _number(x))
    _tidy(ax)
    ax.legend(frameon=False, fontsize=8, loc="best")
    beside.set_axis_off()
    title = f"{NAMES.get(score, score)} · {NAMES.get(cost, cost)}"
    beside.text(0, 1, "\n".join([title, *texts]), fontsize=8, va="top", linespacing=1.4, parse_math=False)
    return figure


def draw_importance(table: pd.DataFrame, score: str = "map_50") -> Figure:
    """:func:`ssd_lightning.review.settings`: bars of what is explained, a line at what chance would explain.

    Of the first twenty settings.
    """
    table = table.iloc[:MOST_SETTINGS]
    figure = Figure(figsize=(0.75 * WIDTH, 0.42 * max(len(table), 1) + 1.5), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(table))
    bars = ax.barh(places, table["explained"], height=0.6, color=COLOURS[1], label="explained by the setting alone")
    chance = ax.vlines(
        table["by chance"], places - 0.42, places + 0.42, color="black", linewidth=1.4, label="expected by chance"
    )
    ax.set_yticks(places, [_cut(str(name), 30) for name in table.index], fontsize=9, parse_math=False)
    for x, title, texts in (
        (1.17, "spread", [f"{value:.3f}" for value in table["spread"]]),
        (1.22, "best of its values (how many)", None),
    ):
        ax.text(x, -0.6, title, fontsize=8, ha="right" if texts else "left", va="bottom")
        cells = texts or [f"{_cut(best, 24)}  ({n})" for best, n in zip(table["best"], table["groups"], strict=True)]
        for place, text in enumerate(cells):
            ax.text(x, place, text, fontsize=8, ha="right" if texts else "left", va="center", parse_math=False)
    ax.set(xlim=(0, 1.75), ylim=(len(table) - 0.4, -0.7), xticks=np.arange(6) / 5)
    runs = int(table["runs"].iloc[0]) if len(table) else 0
    ax.set_xlabel(f"share of the variance of {NAMES.get(score, score)} over {runs} runs", x=0.5 / 1.75)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, 1)
    figure.legend(handles=[bars, chance], loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _with_direction(column: str) -> str:
    return f"{NAMES.get(column, column)} ({'more' if more_is_better(column) else 'less'} is better)"


def _columns(texts: list[str]) -> int:
    """Of a legend as wide as the figure, at 8 points."""
    longest = min(max(map(len, texts), default=1), LONGEST_LABEL)
    return max(1, min(4, int(WIDTH * 72 / (5 * longest + 40))))


def _cut(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _number(value: float) -> str:
    """1.4M, but 0.3."""
    return EngFormatter(sep="", places=None)(float(f"{value:.3g}")) if value >= 1000 else f"{value:.3g}"


def _plain_log(ax: Axes, axis: str, values: pd.Series) -> None:
    which = ax.xaxis if axis == "x" else ax.yaxis
    # With few decades, the powers of ten alone could leave the axis without any number.
    decades = np.log10(values.max() / values.min())
    subs = (1, 2, 3, 5) if decades < 1 else (1, 2, 5) if decades < 2 else (1,)
    which.set_major_locator(LogLocator(subs=subs))
    which.set_major_formatter("{x:g}")
    which.set_minor_formatter(NullFormatter())


def _tidy(ax: Axes) -> None:
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
