"""A comparison of many runs, and of two of them picture by picture, as one HTML file without any other file.

This module computes the content; ``comparison_report.html`` is the template. Jinja escapes all inserted text.
"""

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ssd_lightning.records import BACKGROUND, DRAW_THRESHOLD
from ssd_lightning.require import visible_line
from ssd_lightning.review.bootstrap import HOLDS, MORE_THAN_NOISE, compare_classes, compare_runs, compare_settings
from ssd_lightning.review.picture_pairs import SHOWN_SIDE, Pairs, picture_pairs
from ssd_lightning.review.runs import (
    MOST_NAMED,
    NAMES,
    load_runs,
    more_is_better,
    run_labels,
    settings_of,
    shown_value,
    with_numbers,
)
from ssd_lightning.review.same_pictures import picture_sets
from ssd_lightning.review.settings import SEED, importance, over_seeds
from ssd_lightning.run_folder import SCORE_NAMES, replace_text
from ssd_lightning.scoring.errors import BOTH, CAUSES, FOUND, IGNORED, SHORT_NAMES, TRUE, cost_in_ap
from ssd_lightning.scoring.stored_detections import FILE_NAME, StoredDetections, load_detections

FINISHED = "finished"

NO_RESULT = ("failed", "broken")
"""Prefixes of the status of runs without a result."""

SCORES = ("map_50", "map", "map_75", "map_voc12", "val/loss")
"""Scores in the table of runs, beside the score that ranks them."""

RESULTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "best_epoch": ("best epoch", "{:.0f}".format),
    "train_seconds": ("seconds of training", "{:.0f}".format),
    "parameters": ("parameters", lambda number: f"{number / 1e6:.2f} M"),
    "default_boxes": ("default boxes", "{:.0f}".format),
}
"""Further columns of the table of runs: title and format."""


class Findings(NamedTuple):
    """The summary of :func:`write_comparison`."""

    sentences: list[str]
    best: Path | None
    """The finished run with the best score."""


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    order: float | str
    """Value that rows are sorted by."""
    is_best: bool = False


class Column(NamedTuple):
    """A column of a table."""

    title: str
    is_number: bool
    cells: list[Cell]


class TwoRuns(NamedTuple):
    """The comparison of two runs on the same pictures. B is the best run, or the best except the baseline."""

    a: str
    b: str
    label_a: str
    label_b: str
    pictures: int
    chosen: str
    """The reason why these two were chosen, as a sentence."""
    overall: pd.DataFrame
    """The table of :func:`ssd_lightning.review.compare_runs`."""
    classes: pd.DataFrame
    errors: list[Column]
    pairs: Pairs
    settings: pd.DataFrame | None
    """The table of :func:`ssd_lightning.review.compare_settings`; None if the settings are the same."""
    seeds: tuple[int, int]
    """Number of runs, each with its own seed, that have the settings of A and of B."""


def write_comparison(
    folders: Path | str | Iterable[Path | str],
    path: Path | str,
    baseline: Path | str | None = None,
    score: str = "map_50",
    iou_threshold: float = 0.5,
    draw_threshold: float = DRAW_THRESHOLD,
    pictures: int = 8,
) -> Findings:
    """Write an HTML page about all runs in or below some folders.

    The page has a table of the runs, the failures with their reasons, and mean and deviation over seeds. Figures show
    learning curves, score against cost, and the importance of the settings. The page also compares the best run with
    ``baseline`` on the same pictures. Default: the best run whose settings differ in more than the seed.

    Args:
        folders: as for :func:`ssd_lightning.review.load_runs`.
        path: the file to write.
        baseline: folder of a run.
        score: column of :func:`ssd_lightning.review.load_runs` that ranks the runs.
        iou_threshold: lowest IoU at which a detection finds an object, in the comparison of two runs.
        draw_threshold: lowest score of the detections that are drawn and counted as errors.
        pictures: highest number of pictures.

    Raises:
        ValueError: if there are no runs with scores, ``score`` is not a column of numbers, or ``baseline`` is not a
            finished run with stored detections.
    """
    runs = _load(folders, baseline)
    if f"val/{score}" in runs.columns and score in settings_of(runs):
        # A run has a setting with the name of the score.
        score = f"val/{score}"
    if score not in runs.columns and not (runs["status"] == FINISHED).any():
        statuses = "; ".join(f"{_shown_folder(run, runs)} {status}" for run, status in runs["status"].items())
        raise ValueError(f"runs: expected at least one run with scores, got {statuses}")
    with_numbers(runs, score=score)
    runs = _ranked(runs, score)
    labels = _labels(runs)
    sets, positions = picture_sets(runs.index)
    scored = dict(zip(runs.index, positions, strict=True))
    for run in runs.index:
        if runs.at[run, "status"] == FINISHED and scored[run] is None and (Path(run) / FILE_NAME).exists():
            runs.at[run, "status"] = f"broken: {FILE_NAME}: expected stored detections, got other content"
    runs = _ranked(runs, score)
    finished = runs[(runs["status"] == FINISHED) & runs[score].notna()]
    best = finished.index[0] if len(finished) else None
    two, reason = None, ""
    try:
        chosen = _choose(finished, scored, None if baseline is None else str(Path(baseline).resolve()))
        of_settings = (_with_other_seeds(chosen[0], finished, scored), _with_other_seeds(chosen[1], finished, scored))
        two = _compare(*chosen, labels, of_settings, iou_threshold, draw_threshold, pictures)
    except _NotComparable as error:
        reason = str(error)
    settings = settings_of(runs)
    others = [name for name in settings if name != SEED]
    # Runs that differ in the seed alone share a colour.
    by_setting = run_labels(runs, others) if SEED in settings and 0 < len(others) <= MOST_NAMED else None
    mattered = _importance(finished, score)
    # Matplotlib takes as long to import as all else. Without it, a mistake is reported soon.
    from ssd_lightning.review.comparison_figures import draw_figures
    from ssd_lightning.scoring.error_figures import CAUSE_COLOURS

    figures = draw_figures(runs, finished, labels, by_setting, score, mattered, None if two is None else two.classes)
    sentences = _sentences(runs, labels, score, best, mattered, two)
    page = _template().render(
        folder=visible_line(_common_folder(runs)),
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        count=len(runs),
        settings=settings,
        sentences=sentences,
        score_name=_name(score),
        runs=_table_of_runs(runs, scored, score),
        failures=[(_shown_folder(run, runs), status) for run, status in runs["status"].items() if ":" in status],
        without_detections=[_shown_folder(run, runs) for run in finished.index if scored[run] is None],
        seeds=_table_over_seeds(runs, score) if SEED in settings else None,
        curves=figures.curves,
        has_shared_colours=by_setting is not None,
        fronts=figures.fronts,
        importance=figures.importance,
        mattered=mattered,
        sets=[
            (pictures, [_shown_folder(run, runs) for run in runs.index if scored[run] == place])
            for place, pictures in enumerate(sets)
        ],
        two=two,
        reason=reason,
        classes=figures.classes,
        iou_threshold=iou_threshold,
        draw_threshold=draw_threshold,
        shown_side=SHOWN_SIDE,
        colours=CAUSE_COLOURS,
        causes={TRUE: "finds an object", **{cause: about for cause, about in CAUSES.items() if cause in SHORT_NAMES}},
        short=SHORT_NAMES,
        light_text={TRUE, BOTH, BACKGROUND},
        not_missed={FOUND, IGNORED},
    )
    replace_text(Path(path), page)
    return Findings(sentences, None if best is None else Path(best))


class _NotComparable(Exception):
    """The reason why no two runs are compared, as a sentence for the page."""


def _load(folders: Path | str | Iterable[Path | str], baseline: Path | str | None) -> pd.DataFrame:
    """Load the runs, and the baseline even if it is in none of the folders."""
    given = [folders] if isinstance(folders, Path | str) else list(folders)
    # Absolute paths, so that a folder that is given in two ways counts once.
    runs = load_runs([Path(folder).resolve() for folder in given], "runs")
    if baseline is None or str(Path(baseline).resolve()) in runs.index:
        return runs
    with_baseline = load_runs([*runs.index, Path(baseline).resolve()], "baseline")
    if str(Path(baseline).resolve()) not in with_baseline.index:
        raise ValueError(f"baseline: expected the folder of one run, got {baseline}")
    return with_baseline


def _ranked(runs: pd.DataFrame, score: str) -> pd.DataFrame:
    """Sort the runs: finished runs with the best first, then unfinished runs, then runs without a result."""
    rank = runs["status"].map(lambda status: 0 if status == FINISHED else 2 if status.startswith(NO_RESULT) else 1)
    value = runs[score] * (-1 if more_is_better(score) else 1)
    return runs.iloc[np.lexsort((value.fillna(np.inf), rank))]


def _labels(runs: pd.DataFrame) -> pd.Series:
    """Return a unique text for each run."""
    labels = run_labels(runs)
    is_shared = labels.duplicated(keep=False)
    folders = pd.Series([f" ({_shown_folder(run, runs)})" for run in runs.index], index=runs.index)
    return labels + folders.where(is_shared, "")


def _common_folder(runs: pd.DataFrame) -> str:
    return os.path.commonpath([Path(run).parent for run in runs.index])


def _shown_folder(run: str, runs: pd.DataFrame) -> str:
    """Return the folder of a run without the part that all runs share."""
    return visible_line(os.path.relpath(run, _common_folder(runs)))


def _name(column: str) -> str:
    return NAMES.get(column.removeprefix("val/"), NAMES.get(column, column))


def _choose(finished: pd.DataFrame, scored: dict[str, int | None], baseline: str | None) -> tuple[str, str, str]:
    """Return run A and run B, and the reason for the choice as a sentence. B is the better run."""
    candidates = [run for run in finished.index if scored[run] is not None]
    if baseline is not None:
        if baseline not in candidates:
            raise ValueError(f"baseline: expected a finished run with its score and {FILE_NAME}, got {baseline}")
        others = [run for run in candidates if run != baseline and scored[run] == scored[baseline]]
        if not others:
            raise _NotComparable("No other finished run was scored on the validation pictures of the baseline.")
        return baseline, others[0], "A is the baseline, and B is the best of the other runs."
    if len(candidates) < 2:
        raise _NotComparable("Fewer than two finished runs have the score and stored detections.")
    settings = [name for name in settings_of(finished) if name != SEED]
    values = {run: [shown_value(finished.at[run, name]) for name in settings] for run in candidates}
    for best in candidates:
        partners = [run for run in candidates if run != best and scored[run] == scored[best]]
        others = [run for run in partners if values[run] != values[best]]
        if not partners:
            continue
        why = "B is the best run" if best == finished.index[0] else "B is the best run that can be compared"
        if others:
            seed = f" run that differs from B in more than the {SEED}" if others[0] != partners[0] else ""
            return others[0], best, f"{why}, and A is the best{seed or ' of the other runs'}."
        alike = f"no setting but the {SEED}" if SEED in settings_of(finished) else "no setting"
        return partners[0], best, f"{why}, and A is the best of the other runs. A and B differ in {alike}."
    raise _NotComparable("No two finished runs were scored on the same validation pictures with the same classes.")


def _with_other_seeds(run: str, finished: pd.DataFrame, scored: dict[str, int | None]) -> list[str]:
    """Return the run, and the runs on the same pictures that differ from it in the seed alone, one for each seed."""
    names = settings_of(finished)
    values = {
        other: tuple(shown_value(finished.at[other, name]) for name in names if name != SEED)
        for other in finished.index
    }
    seeds = {other: shown_value(finished.at[other, SEED]) if SEED in names else "" for other in finished.index}
    alike = [other for other in finished.index if values[other] == values[run] and scored[other] == scored[run]]
    return list({seeds[other]: other for other in [*alike[::-1], run]}.values())


def _compare(
    a: str,
    b: str,
    chosen: str,
    labels: pd.Series,
    of_settings: tuple[list[str], list[str]],
    iou_threshold: float,
    draw_threshold: float,
    pictures: int,
) -> TwoRuns:
    try:
        of_a, of_b = load_detections(a), load_detections(b)
        if of_a.objects.difficult.all():
            raise _NotComparable("The validation pictures hold no object that counts.")
        overall = compare_runs(a, b, iou_threshold)
        return TwoRuns(
            a,
            b,
            labels[a],
            labels[b],
            len(of_a.paths),
            chosen,
            overall,
            compare_classes(of_a, of_b, iou_threshold),
            _table_of_errors(of_a, of_b, iou_threshold, draw_threshold),
            picture_pairs(of_a, of_b, pictures, iou_threshold, draw_threshold),
            None if b in of_settings[0] else compare_settings(*of_settings, iou_threshold),
            (len(of_settings[0]), len(of_settings[1])),
        )
    except ValueError as error:
        raise _NotComparable(f"{a} and {b} cannot be compared: {error}") from error


def _table_of_runs(runs: pd.DataFrame, scored: dict[str, int | None], score: str) -> list[Column]:
    folders = [_shown_folder(str(run), runs) for run in runs.index]
    head = [Column("run", False, [Cell(folder, folder) for folder in folders])]
    if len(set(scored.values()) - {None}) > 1:
        positions = [scored[str(run)] for run in runs.index]
        cells = [Cell("", "") if place is None else Cell(str(place + 1), place) for place in positions]
        head.append(Column("pictures", False, cells))
    status = Column("status", False, [Cell(status.partition(":")[0], status) for status in runs["status"]])
    is_finished = (runs["status"] == FINISHED).tolist()
    scores = []
    for name in _scores(runs, score):
        column = _column(runs, name, SCORE_NAMES.get(name, name), "{:.3f}".format)
        of_finished = runs.loc[is_finished, name]
        best = of_finished.max() if more_is_better(name) else of_finished.min()
        known = zip(column.cells, is_finished, strict=True)
        marked = [cell._replace(is_best=counts and cell.order == best) for cell, counts in known]
        scores.append(column._replace(cells=marked))
    costs = [_column(runs, name, title, shown) for name, (title, shown) in RESULTS.items()]
    return _with_settings(runs, settings_of(runs), head, [status, *scores, *costs])


def _table_over_seeds(runs: pd.DataFrame, score: str) -> list[Column]:
    scores = _scores(runs, score)
    table = over_seeds(runs, scores).sort_values(score, ascending=not more_is_better(score), kind="stable")
    columns = [_column(table, "seeds", "seeds", str)]
    for name in scores:
        column = _column(table, name, SCORE_NAMES.get(name, name), "{:.3f}".format)
        deviations = zip(column.cells, table[f"{name} std"], strict=True)
        with_std = [cell._replace(text=f"{cell.text} ± {std:.3f}") if std == std else cell for cell, std in deviations]
        columns.append(column._replace(cells=with_std))
    return _with_settings(table, [name for name in settings_of(runs) if name != SEED], [], columns)


def _table_of_errors(
    a: StoredDetections, b: StoredDetections, iou_threshold: float, draw_threshold: float
) -> list[Column]:
    # The objects are the same for both.
    of_a, of_b = (
        cost_in_ap(run.detections, a.objects, len(a.classes), iou_threshold, score_threshold=draw_threshold)
        for run in (a, b)
    )
    return [
        Column("cause", False, [Cell(cause, place) for place, cause in enumerate(of_a.index)]),
        Column("what it means", False, [Cell(CAUSES.get(cause, ""), "") for cause in of_a.index]),
        _column(of_a, "errors shown", "A: errors", str),
        _column(of_b, "errors shown", "B: errors", str),
        _column(of_a, "cost", "A: cost in AP", "{:.3f}".format),
        _column(of_b, "cost", "B: cost in AP", "{:.3f}".format),
    ]


def _scores(runs: pd.DataFrame, score: str) -> list[str]:
    """Return the columns of scores, starting with the score that ranks the runs."""
    return [name for name in dict.fromkeys([score, *SCORES]) if name in runs.columns]


def _with_settings(table: pd.DataFrame, settings: list[str], head: list[Column], results: list[Column]) -> list[Column]:
    """Put the settings before the results, or after the results if the settings are many."""
    columns = [_column(table, name, name, shown_value) for name in settings]
    return [*head, *results, *columns] if len(settings) > MOST_NAMED else [*head, *columns, *results]


def _column(table: pd.DataFrame, name: str, title: str, shown: Callable[[Any], str]) -> Column:
    is_number = pd.api.types.is_numeric_dtype(table[name])
    cells = []
    for value in table[name].tolist():
        is_known = value == value  # NaN is not equal to itself.
        cells.append(Cell(shown(value), float(value) if is_number else str(value)) if is_known else Cell("", ""))
    return Column(title, is_number, cells)


def _importance(finished: pd.DataFrame, score: str) -> pd.DataFrame | None:
    """Rate the settings; None if there are too few runs."""
    if len(finished) < 2:
        return None
    table = importance(finished, score)
    return table if table["beyond chance"].notna().any() else None


def _sentences(
    runs: pd.DataFrame,
    labels: pd.Series,
    score: str,
    best: str | None,
    mattered: pd.DataFrame | None,
    two: TwoRuns | None,
) -> list[str]:
    kinds = runs["status"].str.partition(":")[0].value_counts()
    others = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if kind != FINISHED)
    sentences = [f"{kinds.get(FINISHED, 0)} of {len(runs)} runs finished{f' ({others})' if others else ''}."]
    sentences += [
        f"{_shown_folder(str(run), runs)} cannot be read: {status.partition(': ')[2]}."
        for run, status in runs["status"].items()
        if status.startswith("broken")
    ]
    if best is not None:
        sentences.append(f"Best {_name(score)}: {runs.at[best, score]:.3f}, {labels[best]}.")
    if two is not None:
        sentences.append(_headline(runs, labels, two))
    if mattered is not None:
        first = mattered.iloc[0]
        if first["beyond chance"] > 0:
            sentences.append(
                f"The most important setting is {mattered.index[0]}. By itself it explains {first['explained']:.0%} of "
                f"the variance of {first['runs']} runs ({first['by chance']:.0%} are expected by chance); "
                f"the best value is {first['best']}."
            )
        else:
            sentences.append("No setting explains more of the variance of the score than expected by chance.")
    return sentences


def _headline(runs: pd.DataFrame, labels: pd.Series, two: TwoRuns) -> str:
    """Return the verdict about the two settings, or about the two trained networks if that is all that is known."""
    differing = [
        name
        for name in settings_of(runs)
        if shown_value(runs.at[two.a, name]) != shown_value(runs.at[two.b, name])
        and (two.settings is None or name != SEED)
    ]
    short = run_labels(runs.loc[[two.a, two.b]], differing) if 0 < len(differing) <= MOST_NAMED else labels
    of_seeds = two.settings is not None and sum(two.seeds) > 2
    table = two.settings if two.settings is not None and of_seeds else two.overall
    row, name = table.iloc[-1], table.index[-1]
    by = f"{abs(row['difference']):.3f} {'higher' if row['difference'] >= 0 else 'lower'}"
    interval = f"95% interval: {row['low']:+.3f} to {row['high']:+.3f}"
    if of_seeds:
        a, b = (f"{short[run]} ({n} seed{'s' * (n > 1)})" for run, n in zip((two.a, two.b), two.seeds, strict=True))
        verdict = "more than chance" if row[MORE_THAN_NOISE] else "no more than chance"
        return f"{name} is {by} with {b} than with {a}, {verdict} in seeds and pictures can explain ({interval})."
    verdict = "would" if row[HOLDS] else "might not"
    rest = (
        "The two runs have the same settings."
        if two.settings is None
        else "With one seed of each setting, the effect of another seed is unknown."
    )
    return (
        f"{name} of the trained network with {short[two.b]} is {by} than with {short[two.a]}; "
        f"other pictures of this kind {verdict} show the same sign ({interval}). {rest}"
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison_report.html")
