"""The command ``ssd-compare``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from html_page import Page
from made_up_sweep import detected, truth_of, write_run, write_sweep

from ssd_lightning.scoring.stored_detections import StoredDetections


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> StoredDetections:
    return truth_of(tmp_path_factory.mktemp("data") / "bananas")


class TestCommand:
    def test_writes_one_file_and_prints_a_summary(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth)
        outcome = run("ssd-compare", "runs=sweep", "hydra.run.dir=out")
        assert outcome.exit_code == 0, outcome.error
        assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".html"] == ["comparison.html"]
        lines = outcome.out.splitlines()
        assert lines[0] == "4 of 4 runs finished."
        assert re.match(r"VOC12 AP is 0\.\d+ higher with loss=multibox \(2 seeds\) than .*, more than", lines[2])
        assert re.match(r"The most important setting is loss\. .* \d+% of the variance of 4 runs", lines[3])
        assert lines[-2] == f"Results: {tmp_path / 'out'} (open comparison.html in a browser)"
        assert lines[-1].startswith(f"Next:    ssd-predict checkpoint={tmp_path}/sweep/0/checkpoints/best.ckpt source=")
        assert Page(tmp_path / "out" / "comparison.html").tags["svg"] == 14

    def test_a_report_is_never_overwritten(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth)
        assert run("ssd-compare", "runs=sweep", "hydra.run.dir=out", "pictures=0").exit_code == 0
        before = (tmp_path / "out" / "comparison.html").read_bytes()
        outcome = run("ssd-compare", "runs=[sweep/0,sweep/1]", "hydra.run.dir=out")
        assert outcome.exit_code == 1
        assert re.search(r"hydra.run.dir: .* got out", outcome.error)
        assert (tmp_path / "out" / "comparison.html").read_bytes() == before

    def test_some_runs_and_a_baseline_from_elsewhere(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth)
        write_run(tmp_path / "old", detected(truth, 5), {"loss": {"_target_": "losses.old"}}, {"loss": "old"})
        outcome = run("ssd-compare", "runs=[sweep/2,sweep/3]", "baseline=old", "hydra.run.dir=out")
        assert outcome.exit_code == 0, outcome.error
        page = Page(tmp_path / "out" / "comparison.html")
        assert len(page.table("run")) == 3
        assert "A is the baseline" in page.text
        assert float(page.table("score")[-1]["B − A"]) < 0

    def test_odd_runs_of_strangers_are_named_and_end_nothing(self, run, truth: StoredDetections, tmp_path: Path):
        write_sweep(tmp_path / "sweep", truth, seeds=1)
        command = "\x1b]0;owned\x07\x1b[31mX\nNext:    rm"
        for name in ("pipe", "metrics", "summary", "config", command):
            loss = {"_target_": f"losses.{name}"}
            write_run(tmp_path / "sweep" / name, detected(truth, 12), {"loss": loss, "alpha": name}, {"loss": name})
        for file in ("pipe/detections.npz", "summary/summary.json"):
            (tmp_path / "sweep" / file).unlink()
            os.mkfifo(tmp_path / "sweep" / file)
        header = "step,epoch,train/loss,val/loss"
        (tmp_path / "sweep" / "metrics" / "metrics.csv").write_text(f"{header}\n1,0,1e308,\n2,0,-1e308,1e308\n")
        keys = "\n".join(f"k{n}: {n}" for n in range(20_000))
        (tmp_path / "sweep" / "config" / ".hydra" / "config.yaml").write_text(keys)
        outcome = run("ssd-compare", "runs=sweep", "hydra.run.dir=out", "pictures=0")
        assert outcome.exit_code == 0, outcome.error
        lines = outcome.out.splitlines()
        assert lines[0] == "3 of 7 runs finished (4 broken)."
        reasons = {line.partition(" ")[0]: line for line in lines if " cannot be read: " in line}
        files = {
            "pipe": "detections.npz",
            "metrics": "metrics.csv",
            "summary": "summary.json",
            "config": "config.yaml",
        }
        assert reasons.keys() == files.keys()
        assert [name for name, file in files.items() if f"cannot be read: {file}: " not in reasons[name]] == []
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", outcome.out)
        assert [line for line in lines if line.startswith("Next:")] == [lines[-1]]
        page = (tmp_path / "out" / "comparison.html").read_text()
        assert r"\x1b]0;owned\x07\x1b[31mX\nNext:    rm" in page
        assert "\x1b" not in page

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "runs: expected a value, got none"),
            (["runs=sweep/0/summary.json"], "runs: expected a folder, got the file sweep/0/summary.json. Try runs=/"),
            (
                ["runs=sweep", "baseline=sweep/0/metrics.csv"],
                "baseline: expected a folder, got the file sweep/0/metrics",
            ),
            (["runs=nowhere"], "runs: expected folders that exist, got"),
            (["runs=empty"], "runs: expected folders with runs of ssd-train, got"),
            (["runs=[]"], "runs: expected a folder or a list of folders, got []"),
            (["runs=null"], "runs: expected a folder or a list of folders, got None"),
            (["runs={a:1}"], "runs: expected a folder or a list of folders, got {'a': 1}"),
            (["runs={a: b}"], "runs: expected a folder or a list of folders, got"),
            (["runs=sweep", "score=recall"], "score: expected a column of numbers, one of"),
            (["runs=sweep", "baseline=sweep"], "baseline: expected the folder of one run, got"),
            (["runs=sweep", "baseline=begun"], "baseline: expected a finished run with its score and detections.npz"),
            (["runs=sweep", "iou_threshold=0"], "iou_threshold: expected a number in (0, 1], got 0"),
            (["runs=sweep", "draw_threshold=high"], "draw_threshold: expected a number in [0, 1], got high"),
            (["runs=sweep", "pictures=-1"], "pictures: expected a whole number of at least 0, got -1"),
            (["runs=begun"], "runs: expected at least one run with scores, got begun unfinished"),
        ],
    )
    def test_mistakes_are_reported_in_a_line(self, run, truth, tmp_path: Path, arguments: list[str], message: str):
        write_sweep(tmp_path / "sweep", truth, seeds=1)
        write_run(tmp_path / "begun", None, {}, {})
        (tmp_path / "empty").mkdir()
        outcome = run("ssd-compare", *arguments, "hydra.run.dir=out")
        assert outcome.exit_code == 1
        # The first line is Hydra's and names the arguments.
        assert outcome.error.splitlines()[-1].startswith(f"ssd-compare: {message}")
        assert len(outcome.error.splitlines()) <= 2
        assert not (tmp_path / "out").exists()

    def test_help_is_quick(self):
        program = (
            "import sys; sys.argv = ['ssd-compare', '--help'];"
            "from ssd_lightning.cli.commands import compare; compare();"
            "assert not {'torch', 'lightning', 'matplotlib', 'pandas'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("ssd-compare - ")
        assert "runs=(required)" in done.stdout
