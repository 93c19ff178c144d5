"""How far runs differ by their seed alone."""

from collections.abc import Sequence

import pandas as pd

from ssd_lightning.review.runs import settings_of

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
