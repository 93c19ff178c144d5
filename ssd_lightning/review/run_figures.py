"""Figures that compare runs, legible at the width of a notebook.

Learning curves, score against cost, importance of the settings, and differences of two runs by class.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ssd_lightning.drawing import (
    COLOURS,
    LONGEST_NAME,
    MOST_WITH_NUMBERS,
    SMOOTHED_SHARE,
    WIDTH,
    legend_above,
    place_labels,
    running_mean,
    score_limits,
    shown_names,
    smoothing_window,
    text_size,
)
from ssd_lightning.review.bootstrap import HOLDS
from ssd_lightning.review.runs import NAMES, more_is_better, pareto, run_labels, with_numbers

LINES: list[tuple[str, Any]] = [(COLOURS[n], style) for style in ("solid", "dashed") for n in (4, 0, 2, 5, 6, 1)]
"""Twelve colours and styles of lines that can be distinguished. Yellow is left out, since it is invisible on white."""

MOST_NUMBERED = 15
"""Largest number of runs in the list beside a Pareto front."""

MOST_SETTINGS = 20
"""Largest number of bars."""

LONGEST_AT_POINT = 24
"""Largest number of characters of a name beside a point."""

LONGEST_LABEL = 60
"""Largest number of characters in a label; longer labels are shortened."""


def draw_learning_curves(curves: pd.DataFrame, labels: pd.Series | None = None) -> Figure:
    """Draw learning curves: a plot for each key, a line for each run.

    Args:
        curves: result of :func:`ssd_lightning.review.learning_curves`. Without any number, the figure says so.
        labels: text by run, such as :func:`ssd_lightning.review.run_labels` or a column of the table of runs
            (``runs["loss"]``). Default: the folders. Runs with the same label have the same colour. With more than
            twelve labels, the twelve that end best in the last key have colours, and the others are grey.

    Raises:
        ValueError: if a run has no label.
    """
    if curves.empty:
        figure = Figure(figsize=(WIDTH, 1.2))
        figure.text(0.5, 0.5, "No run has logged any of the numbers yet.", ha="center", va="center")
        return figure
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
        about = NAMES.get(key.removeprefix("val/"), NAMES.get(key, key))
        # The loss of one batch jumps from step to step.
        is_smoothed = key.startswith("train/") and smoothing_window(int(mine["run"].value_counts().max())) > 1
        if is_smoothed:
            about += f"\n(mean of {SMOOTHED_SHARE:.0%} of the logged steps)"
        for run, line in mine.groupby("run", sort=False):
            colour, style = look.get(texts[run], ("0.8", "solid"))
            is_other = texts[run] not in look
            marker = None if len(line) >= 30 or is_other else "o"
            ax.plot(
                line["step"],
                running_mean(line["value"].tolist(), smoothing_window(len(line))) if is_smoothed else line["value"],
                color=colour,
                linestyle=style,
                linewidth=0.8 if is_other else 1.4,
                marker=marker,
                markersize=2.5,
                zorder=1 if is_other else 2,
            )
        ax.set(xlabel="step", ylabel=about)
        ax.set_xlim(left=0)
        if "loss" in key and (mine["value"] > 0).all():
            ax.set_yscale("log")
            _plain_log(ax, "y", mine["value"])
        elif "map" in key:
            ax.set_ylim(score_limits(mine["value"].to_numpy()))
        _tidy(ax)
    names, families = shown_names(list(look), LONGEST_LABEL, noun=None)
    lines = zip(names, look.values(), strict=True)
    handles = [Line2D([], [], color=colour, linestyle=style, label=text) for text, (colour, style) in lines]
    if others:
        handles.append(Line2D([], [], color="0.8", label=f"{others} others"))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set(parse_math=False, fontfamily=families)
    return figure


def draw_pareto(
    runs: pd.DataFrame, score: str = "map_50", cost: str = "parameters", labels: pd.Series | None = None
) -> Figure:
    """Draw all runs by score and cost, with numbers and a list for the runs of the Pareto front.

    Args:
        runs: the table of :func:`ssd_lightning.review.load_runs`.
        score: a column of numbers.
        cost: a column of numbers.
        labels: text by run; default: :func:`ssd_lightning.review.run_labels`.

    Raises:
        ValueError: as :func:`ssd_lightning.review.pareto`.
    """
    front = pareto(runs, score, cost)
    all_runs = with_numbers(runs, score=score, cost=cost)
    if labels is None:
        labels = run_labels(runs)
    names, families = shown_names([str(labels.loc[run]) for run in front.index], LONGEST_LABEL, noun=None)
    of_run = dict(zip(front.index, names, strict=True))
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
    texts = []
    # Runs in the same place share a number.
    places = front.groupby([cost, score], sort=False).groups
    for number, ((x, y), group) in enumerate(places.items(), start=1):
        if number > MOST_NUMBERED:
            texts.append(f"… and {len(places) - MOST_NUMBERED} more")
            break
        more = f" (+ {len(group) - 1} alike)" if len(group) > 1 else ""
        texts.append(f"{number}  {y:.3g} · {_number(x)}{more}\n     {of_run[group[0]]}")
    ax.set(xlabel=_with_direction(cost), ylabel=_with_direction(score))
    ax.margins(0.08)
    if len(all_runs) and all_runs[cost].min() > 0 and all_runs[cost].max() > 8 * all_runs[cost].min():
        ax.set_xscale("log")
        _plain_log(ax, "x", all_runs[cost])
    ax.xaxis.set_major_formatter(lambda x, _: _number(x))
    _tidy(ax)
    legend_above(ax, ncols=2)
    beside.set_axis_off()
    title = f"{NAMES.get(score, score)} · {NAMES.get(cost, cost)}"
    beside.text(
        0, 1, "\n".join([title, *texts]), fontsize=8, va="top", linespacing=1.4, parse_math=False, fontfamily=families
    )
    shown = [(number, group[0]) for number, group in enumerate(places.values(), start=1)][:MOST_NUMBERED]
    short, _ = shown_names([of_run[run] for _, run in shown], LONGEST_AT_POINT, noun=None)
    at_points = [f"{number}  {name}" for (number, _), name in zip(shown, short, strict=True)]
    points = front.loc[[run for _, run in shown], [cost, score]].to_numpy(dtype=float)
    _label_points(ax, points, all_runs[[cost, score]].to_numpy(dtype=float), at_points, families)
    return figure


def _label_points(ax: Axes, points: np.ndarray, all_points: np.ndarray, texts: list[str], families: list[str]) -> None:
    """Write a text beside each point, or its first word, the number in the list, if the texts do not all have room."""
    if not texts:
        return
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # The places in pixels depend on the layout.
    size = 8 * figure.dpi / 72
    height, width = ax.bbox.height, ax.bbox.width

    def markers(data: np.ndarray) -> np.ndarray:
        across, up = (ax.transData.transform(data) - (ax.bbox.x0, ax.bbox.y0)).T
        middle = np.stack((across, height - up), axis=1)
        return np.concatenate((middle - size / 2, middle + size / 2), axis=1)

    for part in (texts, [text.partition(" ")[0] for text in texts]):
        sizes = np.array([text_size(text, size) for text in part])
        places = place_labels(markers(points), sizes, (height, width), markers(all_points))
        if all(places):
            break
    for text, place in zip(part, places, strict=True):
        if place is not None:
            ax.text(
                place[0] / width,
                1 - place[1] / height,
                text,
                transform=ax.transAxes,
                fontsize=8,
                fontfamily=families,
                va="top",
                parse_math=False,
            )


def draw_importance(table: pd.DataFrame, score: str = "map_50") -> Figure:
    """Draw the share of the variance that each setting explains, with a line for the share expected by chance.

    Args:
        table: result of :func:`ssd_lightning.review.importance`. The first twenty settings are drawn.
        score: the column that was explained.
    """
    table = table.iloc[:MOST_SETTINGS]
    figure = Figure(figsize=(0.75 * WIDTH, 0.42 * max(len(table), 1) + 1.5), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(table))
    bars = ax.barh(places, table["explained"], height=0.6, color=COLOURS[1], label="explained by the setting alone")
    chance = ax.vlines(
        table["by chance"], places - 0.42, places + 0.42, color="black", linewidth=1.4, label="expected by chance"
    )
    names, families = shown_names([str(name) for name in table.index], 30, noun=None)
    ax.set_yticks(places, names, fontsize=9, fontfamily=families, parse_math=False)
    values, value_families = shown_names([str(value) for value in table["best"]], 24, noun=None)
    for x, title, texts in (
        (1.17, "spread", [f"{value:.3f}" for value in table["spread"]]),
        (1.22, "best value (number of values)", None),
    ):
        ax.text(x, -0.6, title, fontsize=8, ha="right" if texts else "left", va="bottom")
        cells = texts or [f"{best}  ({n})" for best, n in zip(values, table["groups"], strict=True)]
        for place, text in enumerate(cells):
            ax.text(
                x,
                place,
                text,
                fontsize=8,
                fontfamily=value_families,
                ha="right" if texts else "left",
                va="center",
                parse_math=False,
            )
    ax.set(xlim=(0, 1.75), ylim=(len(table) - 0.4, -0.7), xticks=np.arange(6) / 5)
    runs = int(table["runs"].iloc[0]) if len(table) else 0
    ax.set_xlabel(f"share of the variance of {NAMES.get(score, score)} over {runs} runs", x=0.5 / 1.75)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(0, 1)
    figure.legend(handles=[bars, chance], loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_class_differences(table: pd.DataFrame) -> Figure:
    """Draw the differences of :func:`ssd_lightning.review.compare_classes` with their intervals, the largest first."""
    names, families = shown_names([str(name) for name in table.index], longest=LONGEST_NAME)
    order = table.assign(name=names).sort_values("difference", ascending=False, kind="stable")
    count = len(order)
    height, size = (0.3, 9.0) if count <= MOST_WITH_NUMBERS else (0.17, 7.5)
    figure = Figure(figsize=(WIDTH, height * count + 1.5), layout="constrained")
    ax = figure.subplots()
    reach = max(float(np.nanmax(np.abs(order[["difference", "low", "high"]].to_numpy()), initial=0)) * 1.05, 0.01)
    ax.axvline(0, color="black", linewidth=1)
    for place, row in enumerate(order.itertuples()):
        is_real = bool(order[HOLDS].iloc[place])
        colour = "0.55" if not is_real else COLOURS[4] if row.difference > 0 else COLOURS[5]
        ax.plot([row.low, row.high], [place, place], color=colour, linewidth=2.5 if is_real else 1.5)
        ax.plot(row.difference, place, "o", color=colour, markersize=6 if is_real else 4)
    # Numbers have columns of their own, away from the intervals.
    for x, title, texts in (
        (1.35, "A", [f"{value:.3f}" for value in order["a"]]),
        (1.58, "B", [f"{value:.3f}" for value in order["b"]]),
        (1.85, "objects", [f"{value}" for value in order["objects"]]),
    ):
        ax.text(x * reach, -0.8, title, fontsize=size, ha="right", va="bottom")
        for place, text in enumerate(texts):
            ax.text(x * reach, place, text, fontsize=size, ha="right", va="center")
    ax.set_yticks(np.arange(count), order["name"], fontsize=size, fontfamily=families, parse_math=False)
    ax.set(xlim=(-reach, 1.87 * reach), ylim=(count - 0.4, -0.7))
    ax.set_xticks([tick for tick in ax.get_xticks() if abs(tick) <= reach])
    ax.set_xlabel("AP of B − AP of A, with the interval of the bootstrap", x=1 / 2.87)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_bounds(-reach, reach)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=markersize, linewidth=2, label=label)
        for colour, markersize, label in (
            (COLOURS[4], 6, "B better, also on other pictures"),
            (COLOURS[5], 6, "A better, also on other pictures"),
            ("0.55", 4, "other pictures may differ"),
        )
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _with_direction(column: str) -> str:
    return f"{NAMES.get(column, column)} ({'more' if more_is_better(column) else 'less'} is better)"


def _columns(texts: list[str]) -> int:
    """Return the number of columns of a legend as wide as the figure, at 8 points."""
    longest = min(max(map(len, texts), default=1), LONGEST_LABEL)
    return max(1, min(4, int(WIDTH * 72 / (5 * longest + 40))))


def _number(value: float) -> str:
    """Return a short text, such as 1.4M or 0.3."""
    return EngFormatter(sep="", places=None)(float(f"{value:.3g}")) if value >= 1000 else f"{value:.3g}"


def _plain_log(ax: Axes, axis: str, values: pd.Series) -> None:
    which = ax.xaxis if axis == "x" else ax.yaxis
    # Over few decades, powers of ten alone could leave the axis without any number.
    decades = np.log10(values.max() / values.min())
    subs = (1, 2, 3, 5) if decades < 1 else (1, 2, 5) if decades < 2 else (1,)
    which.set_major_locator(LogLocator(subs=subs))
    which.set_major_formatter("{x:g}")
    which.set_minor_formatter(NullFormatter())


def _tidy(ax: Axes) -> None:
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
