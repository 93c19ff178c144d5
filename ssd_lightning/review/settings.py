"""The settings that differ between runs: how much each of them matters for the score, and means over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ssd_lightning.review.runs import UNSET, more_is_better, settings_of, shown_value, with_numbers

SEED = "seed"

MOST_VALUES = 4
"""Largest number of values up to which :func:`importance` makes a group of each; more values become ranges."""


MOST_NAMED = 20
"""Largest number of settings in a cell of the table."""


def importance(runs: pd.DataFrame, score: str = "map_50", settings: Sequence[str] | None = None) -> pd.DataFrame:
    """Compute how much of the variance of a score each setting explains by itself, the most important first.

    For each setting alone, runs are grouped by its values. The variance of the group means over the variance of all
    runs is ``explained``: η² of a one-way analysis of variance, 0 … 1. Numbers with more than 4 different values are
    grouped into up to four ranges with equally many runs.

    Any grouping explains something by chance, and groups of one run each explain everything. Compare ``explained``
    with ``by chance``, or read ``beyond chance``. With fewer than about ten runs, only believe large values.

    The table does not show settings that only work together, nor values that were not tried. A setting also gets the
    credit of settings that changed with it: in a search that favours good values, as Optuna's, or in a grid with holes.

    Args:
        runs: the table of :func:`load_runs`. Only finished runs with the score are used.
        score: a column.
        settings: columns to rate; default: all settings that differ between these runs.

    Returns:
        A row for each setting. Columns: ``runs`` and ``groups``, their numbers; ``explained``; ``by chance``, the mean
        of ``explained`` for a setting without any effect, (groups − 1) / (runs − 1); ``beyond chance``,
        ε² = 1 − (1 − η²)(runs − 1) / (runs − groups), whose mean is 0 for a setting without any effect, NaN if each
        run is a group of its own; ``spread``, the range of the group means in the unit of the score; ``best``, the
        group with the best mean; ``same as``, the settings that group the runs in the same way, so that their effects
        cannot be separated.

    Raises:
        ValueError: if a column is missing, or fewer than two finished runs have the score.
    """
    names = settings_of(runs) if settings is None else list(settings)
    kept = with_numbers(runs[runs["status"] == "finished"], score=score)
    if len(kept) < 2:
        raise ValueError(f"runs: expected at least 2 finished runs with {score}, got {len(kept)}")
    for name in names:
        if name not in runs.columns:
            raise ValueError(f"settings: expected columns of the table, got {name!r}")
    groups = {name: _groups(kept[name]) for name in names}
    groups = {name: group for name, group in groups.items() if len(group.names) > 1}
    scores = kept[score].to_numpy(float)
    rows = [_explained(scores, group, more_is_better(score)) for group in groups.values()]
    table = pd.DataFrame(rows, columns=list(_Explained._fields), index=pd.Index(list(groups), name="setting"))
    alike: dict[bytes, list[str]] = {}
    for name, group in groups.items():
        alike.setdefault(group.codes.tobytes(), []).append(name)
    table["same_as"] = [_named(alike[group.codes.tobytes()], name) for name, group in groups.items()]
    table.columns = table.columns.str.replace("_", " ")
    return table.sort_values(["beyond chance", "explained"], ascending=False, kind="stable", na_position="last")


def _named(names: Sequence[str], left_out: str) -> str:
    """Return the names but one as a text; of many names, only the first are in it."""
    others = [name for name in names[: MOST_NAMED + 1] if name != left_out][:MOST_NAMED]
    more = len(names) - 1 - len(others)
    return ", ".join(others) + (f" and {more} more" if more else "")


class _Explained(NamedTuple):
    runs: int
    groups: int
    explained: float
    by_chance: float
    beyond_chance: float
    spread: float
    best: str


class _Grouping(NamedTuple):
    codes: Int[np.ndarray, " runs"]
    """Group of each run, numbered in the order in which the groups appear."""
    names: list[str]
    """Name of each group."""


def _groups(column: pd.Series) -> _Grouping:
    values = [shown_value(value) for value in column]
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if is_number and column.nunique() > MOST_VALUES:
        # Ranges by rank, since values such as learning rates are far from even. Equal numbers stay together.
        ranges = pd.qcut(column.rank(method="average"), max(2, min(MOST_VALUES, len(column) // 2)), duplicates="drop")
        # If nearly all runs have the same value, there is a single range, and each value becomes a group.
        if ranges.nunique() > 1:
            ends = column.groupby(ranges, observed=True).agg(["min", "max"])
            texts = {
                key: shown_value(low) if low == high else f"{low:.3g} to {high:.3g}"
                for key, low, high in ends.itertuples()
            }
            values = [texts.get(key, UNSET) for key in ranges]
    codes, names = pd.factorize(np.array(values, dtype=object))
    return _Grouping(codes.astype(np.int64), [str(name) for name in names])


def _explained(scores: Float[np.ndarray, " runs"], grouping: _Grouping, more_is_better: bool) -> _Explained:
    runs, groups = len(scores), len(grouping.names)
    sizes = np.bincount(grouping.codes)
    means = np.bincount(grouping.codes, weights=scores) / sizes
    total = ((scores - scores.mean()) ** 2).sum()
    # If all runs have the same score, there is nothing to explain.
    explained = float((sizes * (means - scores.mean()) ** 2).sum() / total) if total > 0 else np.nan
    beyond = 1 - (1 - explained) * (runs - 1) / (runs - groups) if runs > groups else np.nan
    best = int(means.argmax() if more_is_better else means.argmin())
    by_chance = (groups - 1) / (runs - 1)
    return _Explained(
        runs, groups, explained, by_chance, beyond, float(means.max() - means.min()), grouping.names[best]
    )


def over_seeds(runs: pd.DataFrame, scores: Sequence[str] = ("map_50", "map")) -> pd.DataFrame:
    """Compute mean and standard deviation over the runs that differ in nothing but ``seed``.

    (The table that a sweep prints has the same numbers. That table is made without pandas, since the process that
    starts a sweep must stay small.)

    Args:
        runs: the table of :func:`ssd_lightning.review.load_runs`, with ``seed`` among its settings. Only finished
            runs are used.
        scores: columns.

    Returns:
        A row for each combination of the other settings. Columns: these settings; ``seeds``, the number of finished
        runs; and for each score its mean, as ``map_50``, and its standard deviation over n − 1, as ``map_50 std``,
        NaN for a single run.

    Raises:
        ValueError: if ``seed`` is the same for all runs, or a score is missing.
    """
    settings = settings_of(runs)
    if SEED not in settings:
        raise ValueError(f"runs: expected runs that differ in {SEED}, got {', '.join(settings) or 'no setting'}")
    for score in scores:
        if score not in runs.columns:
            raise ValueError(f"scores: expected columns of the table, got {score!r}")
    others = [name for name in settings if name != SEED]
    finished = runs[runs["status"] == "finished"]
    # pandas refuses to group by an empty list of keys.
    groups = finished.groupby(others, dropna=False, sort=False) if others else [((), finished)]
    rows = []
    for values, group in groups:
        row = {**dict(zip(others, values, strict=True)), "seeds": len(group)}
        for score in scores:
            row |= {score: group[score].mean(), f"{score} std": group[score].std()}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*others, "seeds", *(name for s in scores for name in (s, f"{s} std"))])
