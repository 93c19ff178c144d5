"""Runs of the scripts in ``benchmarks/``, which check that both sides give the same results."""

import os
import subprocess
import sys

import pytest
from places import ROOT

BENCHMARKS = ROOT / "benchmarks"
VOC = BENCHMARKS.parents[1] / "shared" / "data" / "VOCdevkit" / "VOC2007"

ONCE = {
    "average_precision.py": (["--repeats", "1"], "pycocotools, COCO"),
    "family.py": (["tiny_ssd", "--repeats", "1"], "5444"),
    "large_data.py": (["--share", "0.002"], "`ssd-compare` of all runs"),
    "ssd300_parts.py": (["--repeats", "1"], "times as fast"),
    "tiny_training_step.py": (["--repeats", "1"], "ours, as ssd-train runs it"),
    "torchvision_models.py": (["--repeats", "1", "--batch", "2"], "ssdlite320_torchvision, training step"),
    "training_pictures.py": ([str(VOC), "--pictures", "8", "--rounds", "1"], "torchvision"),
}
"""Arguments for the quickest run of each script, and a part of its output."""


@pytest.mark.slow
@pytest.mark.parametrize("script", ONCE)
def test_benchmarks_run(script: str):
    arguments, last = ONCE[script]
    if str(VOC) in arguments and not VOC.is_dir():
        pytest.skip(f"{VOC} is missing")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert last in done.stdout


def test_every_benchmark_is_tested():
    assert set(ONCE) == {path.name for path in BENCHMARKS.glob("*.py")}
