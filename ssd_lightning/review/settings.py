"""Which of the settings that varied between runs mattered for their score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ssd_lightning.review.runs import UNSET, more_is_better, settings_of, shown_value, with_numbers

MOST_VALUES = 4
"""Of a number, up to which :func:`importance` takes each for itself."""


def importance(runs: pd.DataFrame, score: str = "map_50", settings: Sequence[str] | None = None) -> pd.DataFrame:
    """How much of the variance of a score each setting explains by itself, the most first.

    Runs are grouped by the values of one setting at a time, whatever the others. ``explained`` is the variance of the
    means of the groups over the variance of all runs, η² of a one-way analysis, 0 … 1. Any grouping explains something,
    and with each run in a group of its own everything, so ``by chance`` is what a setting without any effect would
    explain on average, (groups − 1) / (runs − 1), and ``beyond chance`` is 1 − (1 − η²)(runs − 1) / (runs − groups):
    ε², which has a mean of 0 where there is no effect, and is NaN where each run has a group of its own. ``spread`` is
    how far the means of the groups are apart, in the unit of the score, ``best`` the group with the best.

    Of numbers with more than 4 different values (a learning rate that was searched) the groups are up to four ranges
    with as many runs each.

    What it does not tell: which settings only work together (their effect is in neither); what would happen outside of
    the values that were tried; and in a search that favours what works, as Optuna's, or in a grid with holes, a setting
    gets the credit for those that came with it. ``same as`` names settings that group the runs in the same way, which
    cannot be told apart at all. With fewer than about ten runs, only believe what is far beyond chance.

    Args:
        runs: the table of :func:`load_runs`. Those that are not finished, or lack the score, are left out: half a
            training would be put down to its settings.
        score: a column.
        settings: columns to rate; default: all settings that differ among these runs.

    Raises:
        ValueError: if a column is missing, or fewer than two finished runs have the score.
    """
    names = settings_of(runs) if settings is None else list(settings)
    kept = with_numbers(runs[runs["status"] == "finished"], score=score)
    if len(kept) < 2:
        raise ValueError(f"runs: expected at least 2 that are finished and have {score}, got {len(kept)}")
    for name in names:
        if name not in runs.columns:
            raise ValueError(f"settings: expected columns of the table, got {name!r}")
    groups = {name: _groups(kept[name]) for name in names}
    groups = {name: group for name, group in groups.items() if len(group.names) > 1}
    scores = kept[score].to_numpy(float)
    rows = [_explained(scores, group, more_is_better(score)) for group in groups.values()]
    table = pd.DataFrame(rows, columns=list(Explained._fields), index=pd.Index(list(groups), name="setting"))
    table["same_as"] = [
        ", ".join(other for other, codes in groups.items() if other != name and np.array_equal(codes.codes, mine.codes))
        for name, mine in groups.items()
    ]
    table.columns = table.columns.str.replace("_", " ")
    return table.sort_values(["beyond chance", "explained"], ascending=False, kind="stable", na_position="last")


class Explained(NamedTuple):
    """By one setting; see :func:`importance`."""

    runs: int
    groups: int
    explained: float
    by_chance: float
    beyond_chance: float
    spread: float
    best: str


class _Grouping(NamedTuple):
    codes: Int[np.ndarray, " runs"]
    """Group of each run, counted in the order in which they appear."""
    names: list[str]
    """Of the groups."""


def _groups(column: pd.Series) -> _Grouping:
    values = [shown_value(value) for value in column]
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if is_number and column.nunique() > MOST_VALUES:
        # By rank, since learning rates and the like are far from even. Equal numbers stay together.
        ranges = pd.qcut(column.rank(method="average"), max(2, min(MOST_VALUES, len(column) // 2)), duplicates="drop")
        # Where nearly all have the same value, there is one range; then each value is taken for itself.
        if ranges.nunique() > 1:
            ends = column.groupby(ranges, observed=True).agg(["min", "max"])
            texts = {
                key: shown_value(low) if low == high else f"{low:.3g} to {high:.3g}"
                for key, low, high in ends.itertuples()
            }
            values = [texts.get(key, UNSET) for key in ranges]
    codes, names = pd.factorize(np.array(values, dtype=object))
    return _Grouping(codes.astype(np.int64), [str(name) for name in names])


def _explained(scores: Float[np.ndarray, " runs"], grouping: _Grouping, more_is_better: bool) -> Explained:
    runs, groups = len(scores), len(grouping.names)
    sizes = np.bincount(grouping.codes)
    means = np.bincount(grouping.codes, weights=scores) / sizes
    total = ((scores - scores.mean()) ** 2).sum()
    # Where all runs have the same score, there is nothing to explain.
    explained = float((sizes * (means - scores.mean()) ** 2).sum() / total) if total > 0 else np.nan
    beyond = 1 - (1 - explained) * (runs - 1) / (runs - groups) if runs > groups else np.nan
    best = int(means.argmax() if more_is_better else means.argmin())
    by_chance = (groups - 1) / (runs - 1)
    return Explained(runs, groups, explained, by_chance, beyond, float(means.max() - means.min()), grouping.names[best])


SEED = "seed"


def over_seeds(runs: pd.DataFrame, scores: Sequence[str] = ("map_50", "map")) -> pd.DataFrame:
    """Mean and standard deviation over the runs that differ in nothing but ``seed``.

    Args:
        runs: the table of :func:`ssd_lightning.review.load_runs`, in which ``seed`` differs. Runs that are not finished
            are left out.
        scores: columns.

    Returns:
        A row for each combination of the other settings: these; ``seeds``, how many are finished; and for each score
        its mean, as ``map_50``, and ``map_50 std``, of a sample (n − 1), NaN for a single run.

    Raises:
        ValueError: if ``seed`` is no setting that differs, or a score is missing.
    """
    settings = settings_of(runs)
    if SEED not in settings:
        raise ValueError(
            f"runs: expected some that differ in {SEED}, they differ in {', '.join(settings) or 'nothing'}"
        )
    for score in scores:
        if score not in runs.columns:
            raise ValueError(f"scores: expected columns of the table, got {score!r}")
    others = [name for name in settings if name != SEED]
    finished = runs[runs["status"] == "finished"]
    # With an empty list of keys pandas refuses to group.
    groups = finished.groupby(others, dropna=False, sort=False) if others else [((), finished)]
    rows = []
    for values, group in groups:
        row = {**dict(zip(others, values, strict=True)), "seeds": len(group)}
        for score in scores:
            row |= {score: group[score].mean(), f"{score} std": group[score].std()}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*others, "seeds", *(name for s in scores for name in (s, f"{s} std"))])
