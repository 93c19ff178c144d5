"""Importance of settings, and means over seeds."""

import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ssd_lightning.review.run_figures import draw_importance
from ssd_lightning.review.settings import importance, over_seeds


def table(score: list[float], **settings: list[Any]) -> pd.DataFrame:
    """Return a table of finished runs."""
    return pd.DataFrame({**settings, "status": ["finished"] * len(score), "map_50": score})


class TestImportance:
    def test_a_value_of_nearly_all_runs_makes_no_ranges(self):
        rates = [0.005] * 20 + [0.01, 0.02, 0.03, 0.04]
        result = importance(table([0.5] * 20 + [0.1, 0.2, 0.6, 0.7], **{"optimizer.lr": rates}))
        assert result.index.tolist() == ["optimizer.lr"]
        assert result["groups"].tolist() == [5]
        assert result["explained"].tolist() == pytest.approx([1])

    def test_known(self):
        # The effect of the loss is 0.4, of the seed 0.2, and there is no other effect.
        runs = table([0.1, 0.3, 0.5, 0.7], loss=["a", "a", "b", "b"], seed=[0, 1, 0, 1])
        result = importance(runs)
        assert result.index.tolist() == ["loss", "seed"]
        assert result["explained"].tolist() == pytest.approx([0.8, 0.2])
        assert result["by chance"].tolist() == pytest.approx([1 / 3, 1 / 3])
        assert result["beyond chance"].tolist() == pytest.approx([1 - 0.2 * 3 / 2, 1 - 0.8 * 3 / 2])
        assert result["spread"].tolist() == pytest.approx([0.4, 0.2])
        assert result["best"].tolist() == ["b", "1"]
        assert result["runs"].tolist() == [4, 4]
        assert result["groups"].tolist() == [2, 2]

    def test_against_a_loop(self):
        rng = np.random.default_rng(0)
        score, setting = rng.random(40), rng.integers(0, 4, 40)
        within = sum((score[i] - score[setting == setting[i]].mean()) ** 2 for i in range(40))
        total = sum((value - score.mean()) ** 2 for value in score)
        result = importance(table(score.tolist(), matcher=[f"m{n}" for n in setting]))
        assert result["explained"].iloc[0] == pytest.approx(1 - within / total)

    def test_by_chance_is_the_mean_over_shuffled_settings(self):
        rng = np.random.default_rng(0)
        score, setting = rng.random(9).tolist(), np.array(list("aabbbcccc"))
        shuffled = [importance(table(score, loss=rng.permutation(setting).tolist())) for _ in range(300)]
        assert np.mean([one["explained"].iloc[0] for one in shuffled]) == pytest.approx(2 / 8, abs=0.03)
        assert np.mean([one["beyond chance"].iloc[0] for one in shuffled]) == pytest.approx(0, abs=0.03)

    def test_numbers_with_many_values_are_cut_into_ranges(self):
        lr = [float(n) for n in range(1, 17)]
        result = importance(table([n / 16 for n in lr], **{"optimizer.lr": lr}))
        assert result["groups"].tolist() == [4]
        assert result["best"].tolist() == ["13 to 16"]

    def test_groups_of_one_run_each_explain_nothing_beyond_chance(self):
        result = importance(table([0.1, 0.5], loss=["a", "b"]))
        assert result["explained"].tolist() == result["by chance"].tolist() == [1.0]
        assert result["beyond chance"].isna().all()

    def test_settings_that_group_alike_name_each_other(self):
        result = importance(table([0.1, 0.2, 0.3], model=list("aab"), backbone=list("xxy"), seed=[0, 1, 0]))
        assert result["same as"].to_dict() == {"model": "backbone", "backbone": "model", "seed": ""}

    def test_a_missing_value_is_a_group(self):
        result = importance(table([0.1, 0.2, 0.3, 0.4], decay=[np.nan, np.nan, 0.5, 0.5]))
        assert result["groups"].tolist() == [2]

    def test_a_loss_is_best_where_it_is_small(self):
        runs = table([0.1, 0.5], loss=["a", "b"]).assign(**{"val/loss": [2.0, 1.0]})
        assert importance(runs, "val/loss")["best"].tolist() == ["b"]

    def test_runs_that_are_not_finished_or_have_no_score_are_left_out(self):
        runs = table([0.1, 0.3, np.nan, 0.9], loss=["a", "b", "a", "c"])
        runs.loc[3, "status"] = "unfinished"
        result = importance(runs)
        assert result["runs"].tolist() == [2]
        assert result["best"].tolist() == ["b"]

    def test_equal_scores_have_nothing_to_explain(self):
        assert importance(table([0.5, 0.5, 0.5], loss=["a", "b", "b"]))["explained"].isna().all()

    def test_nothing_differs(self):
        result = importance(table([0.1, 0.2]))
        assert len(result) == 0
        draw_importance(result)

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"runs: expected at least 2 .* map_50, got 1"):
            importance(table([0.5], loss=["a"]))
        with pytest.raises(ValueError, match=r"settings: expected columns of the table, got 'lr'"):
            importance(table([0.5, 0.6]), settings=["lr"])
        with pytest.raises(ValueError, match=r"runs: expected the table of load_runs"):
            importance(table([0.5, 0.6]).drop(columns="status"))

    def test_figure(self):
        result = importance(table([0.1, 0.3, 0.5, 0.7], loss=["a", "a", "b", "b"], seed=[0, 1, 0, 1]))
        ax = draw_importance(result).axes[0]
        assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.8, 0.2])
        assert [label.get_text() for label in ax.get_yticklabels()] == ["loss", "seed"]


class TestOverSeeds:
    def table(self, **columns: list) -> pd.DataFrame:
        return pd.DataFrame({**columns, "status": "finished", "map_50": [0.1, 0.3, 0.5, 0.9]})

    def test_known(self):
        runs = self.table(loss=["a", "a", "b", "b"], seed=[0, 1, 0, 1])
        runs.loc[3, "status"] = "failed: x"
        found = over_seeds(runs, ["map_50"])
        assert list(found.columns) == ["loss", "seeds", "map_50", "map_50 std"]
        assert found.iloc[0].tolist() == ["a", 2, pytest.approx(0.2), pytest.approx(statistics.stdev([0.1, 0.3]))]
        assert found.iloc[1].tolist()[:3] == ["b", 1, 0.5]
        assert np.isnan(found["map_50 std"].iloc[1])

    def test_the_seed_alone_and_settings_that_some_lack(self):
        assert over_seeds(self.table(seed=[0, 1, 2, 3]), ["map_50"])["map_50"].tolist() == [pytest.approx(0.45)]
        found = over_seeds(self.table(ema=[np.nan, np.nan, 0.9, 0.9], seed=[0, 1, 0, 1]), ["map_50"])
        assert found["seeds"].tolist() == [2, 2]

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"runs: expected .* seed, got loss"):
            over_seeds(self.table(loss=list("abcd")))
        with pytest.raises(ValueError, match="scores: expected columns of the table, got 'map'"):
            over_seeds(self.table(seed=[0, 1, 2, 3]))
