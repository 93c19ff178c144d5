"""Run folders as a table, and curves, labels and Pareto fronts of it."""

import json
import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from legible import assert_legends_are_outside

from ssd_lightning.review.run_figures import draw_learning_curves, draw_pareto
from ssd_lightning.review.runs import (
    learning_curves,
    load_runs,
    more_is_better,
    pareto,
    run_labels,
    settings_of,
)
from ssd_lightning.run_folder import replace_text

MULTIBOX = {"_target_": "losses.MultiBoxLoss", "alpha": 1.0, "classification": {"_target_": "losses.Mined", "ratio": 3}}
FOCAL = {"_target_": "losses.MultiBoxLoss", "alpha": 1.0, "classification": {"_target_": "losses.Focal", "gamma": 2.0}}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.001}
RESULTS = ["best_epoch", "train_seconds", "images_per_second", "parameters", "default_boxes"]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "summary ü.json"
    replace_text(path, "former\r\nü\n")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(OSError, match=re.escape(f"{path} could not be written: File too large")):
            replace_text(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert path.read_bytes() == "former\r\nü\n".encode()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=re.escape(f"{tmp_path / 'no/a.json'} could not be written: No such file")):
        replace_text(tmp_path / "no" / "a.json", "")


def write_run(
    folder: Path,
    config: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    scores: dict[str, float] | None = None,
    metrics: str | None = None,
    **summary: Any,
) -> Path:
    """Write a run folder by hand. With scores, the run is finished."""
    (folder / ".hydra").mkdir(parents=True)
    plain = {"seed": 0, "loss": MULTIBOX, "optimizer": ADAMW, "pretrained": None, "box_scales": [0.2, 0.5]}
    choices = {"loss": "multibox", "optimizer": "adamw", **(choices or {})}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**plain, **(config or {})}))
    hydra = {"hydra": {"job": {"name": "ssd-train"}, "runtime": {"choices": {**choices, "hydra/launcher": "basic"}}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    if scores is not None:
        costs = {"best_epoch": 1, "train_seconds": 10.0, "images_per_second": 5.0, "parameters": 100}
        content = {"scores": {f"val/{key}": value for key, value in scores.items()}, "choices": choices, **costs}
        (folder / "summary.json").write_text(json.dumps({**content, "default_boxes": 50, **summary}))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)
    return folder


def assert_the_last_alone_is_broken(runs: pd.DataFrame, reason: str) -> None:
    assert runs["status"].tolist()[:-1] == ["finished"] * (len(runs) - 1)
    assert runs["status"].iloc[-1].startswith(f"broken: {reason}")
    assert len(runs["status"].iloc[-1].splitlines()) == 1
    assert len(runs["status"].iloc[-1]) < 500
    assert runs["map_50"].tolist()[:-1] == [0.5] * (len(runs) - 1)
    assert runs.columns.is_unique
    assert {*RESULTS, "map_50"} <= set(runs.select_dtypes("number").columns)


METRICS = "step,epoch,train/loss,val/loss,val/map_50\n1,0,9.5,,\n2,0,,8.0,0.1\n3,1,7.5,,\n4,1,,6.0,0.3\n"


class TestLoadRuns:
    def test_one_row_for_each_run_with_the_settings_that_differ(self, tmp_path: Path):
        for number, (loss, name, lr) in enumerate([(MULTIBOX, "multibox", 0.1), (FOCAL, "focal", 0.2)]):
            config = {"loss": loss, "optimizer": {**ADAMW, "lr": lr}}
            write_run(tmp_path / str(number), config, {"loss": name}, {"map_50": 0.5 + lr, "loss": 3.0, "box_mae": 1.0})
        runs = load_runs(tmp_path)
        # The name of the loss determines its class, and the keys that only one loss has.
        assert settings_of(runs) == ["loss", "optimizer.lr"]
        assert list(runs.columns) == ["loss", "optimizer.lr", "status", "map_50", "val/loss", "box_mae", *RESULTS]
        assert runs.index.tolist() == [str(tmp_path / "0"), str(tmp_path / "1")]
        assert runs.index.name == "run"
        assert runs.iloc[1].tolist() == ["focal", 0.2, "finished", 0.7, 3.0, 1.0, 2, 10.0, 5.0, 100, 50]

    def test_keys_in_a_group_that_its_option_does_not_determine(self, tmp_path: Path):
        for number, (loss, name, alpha) in enumerate(
            [(MULTIBOX, "multibox", 1.0), (MULTIBOX, "multibox", 2.0), (FOCAL, "focal", 1.0)]
        ):
            write_run(tmp_path / str(number), {"loss": {**loss, "alpha": alpha}}, {"loss": name}, {"map_50": 0.5})
        assert settings_of(load_runs(tmp_path)) == ["loss", "loss.alpha"]

    def test_lists_are_text_and_values_in_place_of_an_option_count(self, tmp_path: Path):
        for number, (scales, name) in enumerate([([0.2, 0.5], "tiny"), ([0.1, 0.5], "tiny"), ([0.3], "wide")]):
            write_run(tmp_path / str(number), {"box_scales": scales}, {"box_scales": name}, {"map_50": 0.5})
        runs = load_runs(tmp_path)
        assert runs["box_scales"].tolist() == ["[0.2, 0.5]", "[0.1, 0.5]", "[0.3]"]
        named = load_runs([tmp_path / "0", tmp_path / "2"])
        assert named["box_scales"].tolist() == ["tiny", "wide"]

    def test_a_key_that_a_run_lacks_is_nan_and_so_is_null(self, tmp_path: Path):
        write_run(tmp_path / "a", {"pretrained": "x.pth"}, scores={"map_50": 0.5})
        write_run(tmp_path / "b", scores={"map_50": 0.5})
        runs = load_runs(tmp_path)
        assert settings_of(runs) == ["pretrained"]
        assert runs["pretrained"].tolist()[0] == "x.pth"
        assert pd.isna(runs["pretrained"].tolist()[1])

    def test_keys_that_come_together_are_represented_by_the_first(self, tmp_path: Path):
        write_run(tmp_path / "a", {"callbacks": {"ema": {"_target_": "EMA", "decay": 0.9}}}, scores={"map_50": 0.5})
        write_run(tmp_path / "b", {"jobs_at_once": 2}, scores={"map_50": 0.5})
        assert settings_of(load_runs(tmp_path)) == ["callbacks.ema._target_"]

    def test_jobs_are_sorted_by_number_and_runs_are_not_searched(self, tmp_path: Path):
        for job in ("10", "9", "1"):
            write_run(tmp_path / "sweep" / job, {"seed": int(job)}, scores={"map_50": 0.5})
        write_run(tmp_path / "sweep" / "1" / "inner", scores={"map_50": 0.5})
        write_run(tmp_path / "sweep" / "set_aside" / "1", scores={"map_50": 0.5})
        assert load_runs(tmp_path)["seed"].tolist() == [1, 9, 10]

    def test_several_folders_a_run_itself_and_the_same_twice(self, tmp_path: Path):
        first = write_run(tmp_path / "a" / "x", scores={"map_50": 0.5})
        second = write_run(tmp_path / "b", scores={"map_50": 0.6})
        runs = load_runs([first, str(second), tmp_path / "a"])
        assert runs["map_50"].tolist() == [0.5, 0.6]
        assert settings_of(runs) == []

    def test_an_unfinished_run_has_its_last_scores(self, tmp_path: Path):
        write_run(tmp_path / "a", metrics=METRICS)
        write_run(tmp_path / "b", metrics="step,epoch,train/loss\n1,0,9.5\n")
        write_run(tmp_path / "c")
        (tmp_path / "c" / "checkpoints").mkdir()
        (tmp_path / "c" / "checkpoints" / "last.ckpt").touch()
        write_run(tmp_path / "d")
        runs = load_runs(tmp_path)
        assert runs["status"].tolist() == ["unfinished"] * 4
        np.testing.assert_array_equal(runs["map_50"], [0.3, np.nan, np.nan, np.nan])
        assert runs["val/loss"].iloc[0] == 6.0
        assert "train/loss" not in runs.columns
        assert runs["parameters"].isna().all()

    def test_a_resumed_run_has_the_choices_of_its_start(self, tmp_path: Path):
        write_run(tmp_path / "a", choices={"loss": "focal"}, scores={"map_50": 0.5})
        resumed = json.loads((tmp_path / "a" / "summary.json").read_text())
        (tmp_path / "a" / "summary.json").write_text(json.dumps({**resumed, "choices": {}}))
        write_run(tmp_path / "b", scores={"map_50": 0.5})
        assert load_runs(tmp_path)["loss"].tolist() == ["focal", "multibox"]

    def test_status_of_a_job_of_a_sweep(self, tmp_path: Path):
        for name, job in (
            ("a", {"status": "failed", "reason": "loss is NaN\nat step 3"}),
            ("b", {"status": "running"}),
        ):
            write_run(tmp_path / name, metrics=METRICS)
            (tmp_path / name / "job.json").write_text(json.dumps(job))
        assert load_runs(tmp_path)["status"].tolist() == ["failed: loss is NaN at step 3", "unfinished"]

    def test_folders_of_other_commands_are_left_out(self, tmp_path: Path):
        write_run(tmp_path / "run", scores={"map_50": 0.5})
        for name in ("ssd-evaluate", "ssd-check"):
            hydra = write_run(tmp_path / name) / ".hydra" / "hydra.yaml"
            hydra.write_text(yaml.safe_dump({"hydra": {"job": {"name": name}}}))
        assert len(load_runs(tmp_path)) == 1

    @pytest.mark.parametrize(
        ("file", "content", "reason"),
        [
            ("summary.json", b"{", "summary.json: Expecting"),
            ("summary.json", b"[1]", "summary.json: expected a mapping, got list"),
            ("summary.json", b"\xff\xfe", "summary.json: 'utf-8'"),
            ("summary.json", b'{"a": ' * 100_000, "summary.json: expected at most 50 levels"),
            ("summary.json", b'{"scores": {"val/map_50": 1e400}}', "summary.json: val/map_50: expected a number"),
            ("summary.json", b'{"scores": {"val/map_50": -Infinity}}', "summary.json: val/map_50: expected a number"),
            (
                "summary.json",
                b'{"scores": {"val/map_50": 7}}',
                "summary.json: val/map_50: expected a number in [-1, 1]",
            ),
            (
                "summary.json",
                b'{"scores": {"val/loss": 1e400}}',
                "summary.json: val/loss: expected a number in",
            ),
            ("summary.json", b'{"scores": {}, "train_seconds": "long"}', "summary.json: train_seconds: expected"),
            ("summary.json", b'{"parameters": 1%s}' % (b"0" * 400), "summary.json: parameters: expected"),
            ("summary.json", b'{"best_epoch": [1]}', "summary.json: best_epoch: expected"),
            ("metrics.csv", b"epoch,val/map_50\n1,1\n", "metrics.csv: expected a column step"),
            (".hydra/config.yaml", b"a: &a [1]\nb: [*a, *a]\n", "config.yaml: expected no aliases"),
            (".hydra/config.yaml", b"a: [", "config.yaml: "),
            (".hydra/config.yaml", b"text", "config.yaml: expected a mapping, got str"),
            (".hydra/config.yaml", b"\x00", "config.yaml: "),
        ],
    )
    def test_a_damaged_run_is_reported_and_leaves_the_others_alone(
        self, tmp_path: Path, file: str, content: bytes, reason: str
    ):
        for seed in (0, 1, 2):
            write_run(tmp_path / str(seed), {"seed": seed}, scores={"map_50": 0.5})
        (tmp_path / "2" / file).write_bytes(content)
        runs = load_runs(tmp_path)
        assert settings_of(runs) == ["seed"]
        assert runs["status"].tolist()[:2] == ["finished"] * 2
        assert runs["status"].iloc[2].startswith(f"broken: {reason}")
        assert "\n" not in runs["status"].iloc[2]
        numbers = runs.select_dtypes("number").to_numpy(float)
        assert not np.isinf(numbers).any()
        assert {"map_50", "train_seconds"} <= set(runs.select_dtypes("number").columns)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"scores": {"val/status": 0.5}}, "summary.json: val/status: expected"),
            ({"scores": {"status": 0.5}}, "summary.json: status: expected"),
            ({"scores": {"loss.alpha": 0.5}}, "summary.json: loss.alpha: expected"),
            ({"scores": {"val/parameters": 0.5}}, "summary.json: val/parameters: expected"),
            ({"scores": {"val/val/loss": 0.5}}, "summary.json: val/val/loss: expected"),
            ({"scores": {"val/\x1b": 0.5}}, r"summary.json: val/\x1b: expected"),
            ({"scores": {f"val/{n}": 0.5 for n in range(10_000)}}, "summary.json: scores: expected at most"),
            ({"scores": {"val/loss": 10**300}}, "summary.json: val/loss: expected"),
            ({"scores": {"val/loss": True}}, "summary.json: val/loss: expected"),
            ({"scores": [1]}, "summary.json: scores: expected a mapping, got list"),
            ({"scores": None}, "summary.json: scores: expected a mapping, got null"),
            ({"choices": [1]}, "summary.json: choices: expected a mapping, got list"),
            ({"choices": None}, "summary.json: choices: expected a mapping, got null"),
            ({"choices": {"loss": {"a": 1}}}, "summary.json: choices: expected an option"),
            ({"choices": {"status": "a"}}, "summary.json: status: expected the name of a setting"),
            ({"parameters": 10**300, "train_seconds": -1e308}, "summary.json: train_seconds: expected"),
            ({"train_seconds": 1e308}, "summary.json: train_seconds: expected"),
            ({"train_seconds": -1}, "summary.json: train_seconds: expected"),
            ({"images_per_second": None}, "summary.json: images_per_second: expected"),
            ({"parameters": -5}, "summary.json: parameters: expected"),
            ({"parameters": "9" * 400}, "summary.json: parameters: expected"),
            ({"default_boxes": 0.5}, "summary.json: default_boxes: expected"),
            ({"best_epoch": -7}, "summary.json: best_epoch: expected"),
            ({"best_epoch": 1.5}, "summary.json: best_epoch: expected"),
        ],
    )
    def test_an_odd_summary_breaks_its_run_alone(self, tmp_path: Path, changes: dict[str, Any], reason: str):
        for seed in (0, 1, 2):
            write_run(tmp_path / str(seed), {"seed": seed}, scores={"map_50": 0.5})
        path = tmp_path / "2" / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        assert_the_last_alone_is_broken(load_runs(tmp_path), reason)

    @pytest.mark.parametrize(
        ("name", "value"), [("val/status", "0.5"), ("val/val/map", "0.5"), ("val/loss", "inf"), ("val/map_50", "7")]
    )
    def test_odd_metrics_break_an_unfinished_run_alone(self, tmp_path: Path, name: str, value: str):
        for seed in (0, 1):
            write_run(tmp_path / str(seed), {"seed": seed}, scores={"map_50": 0.5})
        write_run(tmp_path / "2", {"seed": 2}, metrics=f"step,epoch,{name}\n1,0,{value}\n")
        assert_the_last_alone_is_broken(load_runs(tmp_path), f"metrics.csv: {name}: expected")

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (f"alpha: 0x{'f' * 6000}", "config.yaml: expected values of at most"),
            ("\n".join(f"k{n}: {n}" for n in range(20_000)), "config.yaml: expected at most 1000 settings"),
            ("? [1, 2]\n: 3\n", "config.yaml: "),
            ("a: [{? [1] : 2}]", "config.yaml: "),
            *(
                (f"{name}: 1", f"config.yaml: {name}: expected the name of a setting")
                for name in ("status", "map_50", "parameters", "val/x", "run", "seeds", "map_50 std")
            ),
        ],
    )
    def test_an_odd_config_breaks_its_run_alone(self, tmp_path: Path, config: str, reason: str):
        for seed in (0, 1, 2):
            write_run(tmp_path / str(seed), {"seed": seed}, scores={"map_50": 0.5})
        (tmp_path / "2" / ".hydra" / "config.yaml").write_text(config)
        assert_the_last_alone_is_broken(load_runs(tmp_path), reason)

    @pytest.mark.parametrize(
        "content", [{"hydra": [1]}, {"hydra": {"runtime": [1]}}, {"hydra": {"runtime": {"choices": 3}}}, {}, [1]]
    )
    def test_odd_choices_break_an_unfinished_run_alone(self, tmp_path: Path, content: Any):
        for seed in (0, 1, 2):
            write_run(
                tmp_path / str(seed), {"seed": seed}, scores={"map_50": 0.5} if seed < 2 else None, metrics=METRICS
            )
        (tmp_path / "2" / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(content))
        assert_the_last_alone_is_broken(load_runs(tmp_path), "hydra.yaml: ")

    @pytest.mark.parametrize(
        "name", ["summary.json", "metrics.csv", "job.json", ".hydra/config.yaml", ".hydra/hydra.yaml"]
    )
    @pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
    def test_what_is_no_file_breaks_its_run_alone(self, tmp_path: Path, name: str, make: Callable[[Path], None]):
        for seed in (0, 1, 2):
            write_run(tmp_path / str(seed), {"seed": seed}, scores={"map_50": 0.5}, metrics=METRICS)
        for path in {tmp_path / "2" / name, tmp_path / "2" / ("summary.json" if "hydra.yaml" in name else name)}:
            path.unlink(missing_ok=True)
        make(tmp_path / "2" / name)
        assert_the_last_alone_is_broken(load_runs(tmp_path), f"{Path(name).name}: ")

    def test_a_score_with_the_name_of_a_setting_keeps_its_prefix(self, tmp_path: Path):
        for seed in (0, 1):
            config = {"seed": seed, "loss": {**MULTIBOX, "alpha": seed}}
            scores = {"map_50": 0.5, "seed": 0.25, "loss.alpha": 0.75, "recall": 1.0}
            write_run(tmp_path / str(seed), config, scores=scores)
        runs = load_runs(tmp_path)
        assert runs["status"].tolist() == ["finished"] * 2
        assert settings_of(runs) == ["loss.alpha", "seed"]
        assert runs["seed"].tolist() == runs["loss.alpha"].tolist() == [0, 1]
        assert runs["val/seed"].tolist() == [0.25] * 2
        assert runs["val/loss.alpha"].tolist() == [0.75] * 2
        assert runs["recall"].tolist() == [1.0] * 2

    def test_values_of_settings_that_are_no_numbers_of_a_column(self, tmp_path: Path):
        values = [0.5, 10**400, float("nan"), "\x1b[31mX\nNext: a", 2**53 + 1]
        for number, value in enumerate(values):
            write_run(tmp_path / str(number), {"alpha": value}, scores={"map_50": 0.5})
        runs = load_runs(tmp_path)
        assert runs["alpha"].tolist() == [0.5, f"1{'0' * 400}", "nan", r"\x1b[31mX\nNext: a", str(2**53 + 1)]

    def test_a_score_without_objects_is_no_damage(self, tmp_path: Path):
        write_run(tmp_path / "a", scores={"map_50": 0.5, "map_small": float("nan")})
        runs = load_runs(tmp_path)
        assert runs["status"].tolist() == ["finished"]
        assert "map_small" not in runs.columns

    @pytest.mark.parametrize("content", ['{"scores": [1]}', '{"choices": 3}', '{"scores": {"val/map_50": "high"}}'])
    def test_a_summary_of_unexpected_types_is_no_exception(self, tmp_path: Path, content: str):
        write_run(tmp_path / "a", scores={"map_50": 0.5})
        (write_run(tmp_path / "b") / "summary.json").write_text(content)
        runs = load_runs(tmp_path)
        assert runs["map_50"].iloc[0] == 0.5
        assert pd.isna(runs["map_50"].iloc[1])

    def test_damaged_metrics_of_an_unfinished_run(self, tmp_path: Path):
        write_run(tmp_path / "a", metrics="step,epoch,val/map_50\n1,0,0.25\n2,0,many\n")
        write_run(tmp_path / "b", scores={"map_50": 0.5}, metrics=METRICS)
        runs = load_runs(tmp_path)
        assert runs["status"].iloc[0].startswith("broken: metrics.csv: 1 of 2 rows cannot be read")
        assert runs["map_50"].tolist() == [0.25, 0.5]
        curves = learning_curves(runs, ["val/map_50"])
        assert curves[curves["run"] == str(tmp_path / "a")]["value"].tolist() == [0.25]

    def test_damage_of_any_kind_is_no_exception(self, tmp_path: Path):
        whole = write_run(tmp_path / "whole", scores={"map_50": 0.5}, metrics=METRICS)
        rng = np.random.default_rng(0)
        files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
        for number in range(40):
            copy = tmp_path / f"copy{number}"
            shutil.copytree(whole, copy)
            damaged = bytearray((copy / files[number % len(files)]).read_bytes())
            for place in rng.integers(0, len(damaged), 4):
                damaged[place] = rng.integers(256)
            (copy / files[number % len(files)]).write_bytes(damaged)
        runs = load_runs(tmp_path)
        assert len(runs) == 41
        assert runs["status"].str.startswith("broken").sum() > 12

    def test_folders_without_runs(self, tmp_path: Path):
        with pytest.raises(ValueError, match=f"folders: .* got {tmp_path / 'no'}"):
            load_runs(tmp_path / "no")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"folders: .* got .*empty"):
            load_runs([tmp_path / "empty"])

    def test_hundreds_of_runs_take_seconds(self, tmp_path: Path):
        long = {f"part{n}": {f"key{k}": k / 7 for k in range(10)} for n in range(12)}
        for number in range(100):
            write_run(tmp_path / str(number), {**long, "seed": number}, scores={"map_50": 0.5}, metrics=METRICS)
        begun = time.process_time()
        assert len(load_runs(tmp_path)) == 100
        assert time.process_time() - begun < 5  # Half a second on an idle machine.


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_runs_of_the_command(run: Callable[..., Any], bananas: Path, tmp_path: Path):
    quick = ["model.image_size=64", "batch_size=4", "num_workers=0", "trainer=cpu", "trainer.precision=32-true"]
    arguments = ["data=banana", f"data.root={bananas}", *quick, "trainer.max_epochs=1"]
    for loss in ("multibox", "focal"):
        outcome = run("ssd-train", *arguments, f"loss={loss}", f"hydra.run.dir=runs/{loss}")
        assert outcome.exit_code == 0, outcome.error
    (tmp_path / "runs" / "focal" / "summary.json").unlink()
    runs = load_runs("runs")
    assert settings_of(runs) == ["loss"]
    assert runs["loss"].tolist() == ["focal", "multibox"]
    assert runs["status"].tolist() == ["unfinished", "finished"]
    summary = json.loads((tmp_path / "runs" / "multibox" / "summary.json").read_text())
    assert runs["map_50"].iloc[1] == summary["scores"]["val/map_50"]
    assert runs["parameters"].iloc[1] == summary["parameters"]
    assert 0 <= runs["map_50"].iloc[0] <= 1
    assert learning_curves(runs, ["val/map_50"])["epoch"].tolist() == [1, 1]


class TestLabels:
    def test_settings_by_the_last_part_of_their_name(self, tmp_path: Path):
        for lr in (0.001, 0.01):
            config = {"optimizer": {**ADAMW, "lr": lr}, "loss": {**MULTIBOX, "alpha": lr}}
            write_run(tmp_path / str(lr), config, scores={"map_50": 0.5})
        runs = load_runs(tmp_path)
        assert run_labels(runs).tolist() == ["alpha=0.001, lr=0.001", "alpha=0.01, lr=0.01"]
        assert run_labels(runs, ["optimizer.lr"]).tolist() == ["lr=0.001", "lr=0.01"]

    def test_a_name_that_two_parts_have_stays_whole(self):
        runs = pd.DataFrame({"loss.alpha": [1.0], "matcher.alpha": [np.nan], "status": ["finished"]}, index=["a"])
        assert run_labels(runs).tolist() == ["loss.alpha=1, matcher.alpha=–"]

    def test_folders_where_nothing_differs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for name in ("a/x", "a/y", "b"):
            write_run(tmp_path / name, scores={"map_50": 0.5})
        assert run_labels(load_runs(tmp_path)).tolist() == ["a/x", "a/y", "b"]
        monkeypatch.chdir(tmp_path)
        runs = load_runs(["a", tmp_path / "b"])
        assert run_labels(runs).tolist() == ["a/x", "a/y", "b"]
        assert run_labels(load_runs(tmp_path / "b")).tolist() == ["b"]


class TestLearningCurves:
    def test_a_row_for_each_number(self, tmp_path: Path):
        run = str(write_run(tmp_path / "a", metrics=METRICS))
        curves = learning_curves(load_runs(tmp_path), ["train/loss", "val/map_50"])
        assert curves.columns.tolist() == ["run", "step", "epoch", "key", "value"]
        assert curves.to_numpy().tolist() == [
            [run, 1, 1, "train/loss", 9.5],
            [run, 3, 2, "train/loss", 7.5],
            [run, 2, 1, "val/map_50", 0.1],
            [run, 4, 2, "val/map_50", 0.3],
        ]

    def test_runs_without_metrics_have_no_rows(self, tmp_path: Path):
        write_run(tmp_path / "a", metrics=METRICS)
        write_run(tmp_path / "b", scores={"map_50": 0.5})
        assert set(learning_curves(load_runs(tmp_path))["run"]) == {str(tmp_path / "a")}

    @pytest.mark.parametrize("metrics", [None, "step,epoch,val/loss\n2,0,4.5\n"])
    def test_runs_that_end_before_their_first_logged_step(self, tmp_path: Path, metrics: str | None):
        write_run(tmp_path / "a", scores={"map_50": 0.5}, metrics=metrics)
        curves = learning_curves(load_runs(tmp_path))
        assert curves["key"].tolist() == ([] if metrics is None else ["val/loss"])
        figure = draw_learning_curves(curves, run_labels(load_runs(tmp_path)))
        assert len(figure.axes) == len(curves)
        assert len(figure.texts) == (metrics is None)

    def test_a_key_that_no_run_has(self, tmp_path: Path):
        write_run(tmp_path / "a", metrics=METRICS)
        with pytest.raises(ValueError, match=r"keys: .* train/loss, val/loss, val/map_50, got 'map_50'"):
            learning_curves(load_runs(tmp_path), ["map_50"])

    def test_figure(self, tmp_path: Path):
        for name in ("a", "b"):
            write_run(tmp_path / name, metrics=METRICS)
        curves = learning_curves(load_runs(tmp_path))
        figure = draw_learning_curves(curves)
        assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "validation loss", "AP at IoU 0.5"]
        assert [len(ax.lines) for ax in figure.axes] == [2, 2, 2]
        assert figure.axes[2].lines[0].get_ydata().tolist() == [0.1, 0.3]
        assert [text.get_text() for text in figure.legends[0].texts] == [str(tmp_path / n) for n in ("a", "b")]
        assert_legends_are_outside(figure)
        low, high = figure.axes[2].get_ylim()
        assert (low, high) == pytest.approx((0.084, 0.316)), "the axis of AP follows the values"
        alike = draw_learning_curves(curves, pd.Series("both", index=[str(tmp_path / n) for n in ("a", "b")]))
        assert [text.get_text() for text in alike.legends[0].texts] == ["both"]
        with pytest.raises(ValueError, match="labels: expected one for each run, got none for"):
            draw_learning_curves(curves, pd.Series(["x"], index=["other"]))

    def test_a_training_loss_of_many_steps_is_smoothed(self):
        curves = pd.DataFrame(
            [("a", n, 0, key, 1.0 + 2 * (n % 2)) for key in ("train/loss", "val/loss") for n in range(40)],
            columns=["run", "step", "epoch", "key", "value"],
        )
        train, val = draw_learning_curves(curves).axes
        assert train.lines[0].get_ydata().tolist() == [1.0, *[2.0] * 39]
        assert train.get_ylabel() == "training loss\n(mean of 5% of the logged steps)"
        assert val.lines[0].get_ydata().tolist() == [1.0, 3.0] * 20

    def test_figure_of_many_runs_highlights_the_best(self):
        curves = pd.DataFrame(
            [(f"run{n}", 1, 0, "val/map_50", n / 20) for n in range(15)],
            columns=["run", "step", "epoch", "key", "value"],
        )
        texts = [text.get_text() for text in draw_learning_curves(curves).legends[0].texts]
        assert texts == [*(f"run{n}" for n in range(3, 15)), "3 others"]


def table(score: list[float], cost: list[float] | None = None, **settings: list[Any]) -> pd.DataFrame:
    columns = {**settings, "status": ["finished"] * len(score), "map_50": score}
    return pd.DataFrame(columns | ({} if cost is None else {"parameters": cost, "images_per_second": cost}))


class TestPareto:
    def test_known(self):
        runs = table([0.5, 0.7, 0.6, 0.7, 0.4, np.nan], [10, 30, 20, 40, 15, 1])
        assert pareto(runs).index.tolist() == [0, 2, 1]
        # More images/s are better: 40 with 0.7 beats all.
        assert pareto(runs, cost="images_per_second").index.tolist() == [3]

    def test_equals_stay_together(self):
        assert pareto(table([0.5, 0.5, 0.5], [10, 10, 11])).index.tolist() == [0, 1]

    @pytest.mark.parametrize("cost", ["parameters", "images_per_second"])
    def test_against_a_loop(self, cost: str):
        rng = np.random.default_rng(0)
        runs = table(rng.integers(0, 12, 60) / 12, rng.integers(1, 12, 60).astype(float))
        sign = 1 if cost == "images_per_second" else -1
        points = [(s, sign * c) for s, c in zip(runs["map_50"], runs[cost], strict=True)]
        front = {
            row
            for row, (score, speed) in enumerate(points)
            if not any(s >= score and c >= speed and (s > score or c > speed) for s, c in points)
        }
        assert set(pareto(runs, cost=cost).index) == front

    def test_a_loss_is_better_when_it_is_small(self):
        runs = table([0.5, 0.6], [10, 10]).assign(**{"val/loss": [1.0, 2.0]})
        assert pareto(runs, score="val/loss").index.tolist() == [0]
        assert [more_is_better(name) for name in ("map", "val/loss_localization", "train_seconds")] == [
            True,
            False,
            False,
        ]

    def test_unknown_columns(self):
        with pytest.raises(ValueError, match=r"cost: expected a column of numbers, one of map_50, .*got 'size'"):
            pareto(table([0.5], [1]), cost="size")
        with pytest.raises(ValueError, match=r"score: .*got 'status'"):
            pareto(table([0.5], [1]), score="status")

    def test_figure(self):
        runs = table([0.5, 0.7, 0.6, 0.6], [1e6, 3e6, 2e6, 2e6], loss=list("abcc"))
        figure = draw_pareto(runs)
        numbers = [text.get_text() for text in figure.axes[0].texts]
        assert numbers == ["1  loss=a", "2  loss=c", "3  loss=b"]
        assert_legends_are_outside(figure)
        assert "2  0.6 · 2M (+ 1 alike)\n     loss=c" in figure.axes[1].texts[0].get_text()

    def test_long_names_beside_many_points_are_numbers(self):
        scores, costs = [0.1, *(0.5 + n / 1e4 for n in range(9))], [1e6, *(3e6 + 1e3 * n for n in range(9))]
        ax = draw_pareto(table(scores, costs, loss=[f"{'x' * 40}{n}" for n in range(10)])).axes[0]
        assert "1" in {text.get_text() for text in ax.texts} <= {str(n) for n in range(1, 11)}
