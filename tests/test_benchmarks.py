"""Runs of the scripts in ``benchmarks/``, which check that both sides give the same results."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from torch import nn
from torchvision.models import mobilenet_v2
from voc_xml import write_xml

from ssd_lightning.records import Sample

BENCHMARKS = ROOT / "benchmarks"
VOC = BENCHMARKS.parents[1] / "shared" / "data" / "VOCdevkit" / "VOC2007"

ONCE = {
    "average_precision.py": (["--repeats", "1"], "pycocotools, COCO"),
    "large_data.py": (["--share", "0.002", "--part", "1"], "`ssd-compare` of all runs"),
    "picture_to_boxes.py": (
        ["--model", "ssdlite320_torchvision", "--repeats", "1", "--pictures", "2"],
        "ONNX Runtime, int8",
    ),
    "pruning.py": (
        ["--trials", "1", "--epochs", "1", "--studies", "1", "--pruners", "median", "--", "debug=fast"],
        "| median | ",
    ),
    "ssd300_parts.py": (["--repeats", "1"], "times as fast"),
    "tiny_training_step.py": (["--repeats", "1", "--batch", "2"], "ours, as ssd-train runs it"),
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


@pytest.mark.slow
def test_accuracy_of_torchvision_and_ours_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages").mkdir(parents=True)
    for number in range(6):
        write_xml(folder / "Annotations" / f"{number}.xml", [("dog", 10, 20, 60, 90), ("cat", 50, 50, 100, 80)])
        Image.new("RGB", (120, 100), (40 * number, 90, 200)).save(folder / "JPEGImages" / f"{number}.jpg")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")
    torch.save(mobilenet_v2().state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(BENCHMARKS / "accuracy" / script), run_name="__main__")
        return capsys.readouterr().out

    settings = ["--pictures", "4", "--batch", "2", "--image-size", "96", "--score-every", "2", "--workers", "0"]
    for name in ("a", "b"):
        run("torchvision_ssdlite.py", ".", "weights.pth", name, *settings, "--seed", str(ord(name)))
    content = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert [validation["pictures"] for validation in content["validations"]] == [2, 4]
    assert content["settings"]["lr"] == 0.15 * 2 / 192
    assert "| dog | 2 |" in run("side_by_side.py", "a", "b")


@pytest.mark.slow
def test_batch_norms_that_normalize_again_change_no_output():
    unfold = runpy.run_path(str(BENCHMARKS / "accuracy" / "torchvision_ssdlite.py"))["unfold_batch_norms"]
    torch.manual_seed(0)
    network = mobilenet_v2().features[:4].double().eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for values in (norm.weight.data, norm.running_var, norm.bias.data, norm.running_mean):
            values.copy_(torch.rand_like(values) + 0.5)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64) * torch.tensor([1, 9]).view(2, 1, 1, 1)
    with torch.no_grad():
        before = network(images)
        unfold(network, images)
        torch.testing.assert_close(network(images), before)
        # In training they normalize by the same pictures.
        torch.testing.assert_close(network.train()(images), before)
    assert before.std(0).mean() > 0.01


def test_photographs_on_a_canvas_keep_their_pixels_and_their_boxes():
    functions = runpy.run_path(str(BENCHMARKS / "accuracy" / "tiles.py"))
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            np.array([[0.25, 0.5, 0.75, 1]], dtype=np.float32),
            np.array([label]),
            np.array([label == 2]),
        )
        for label, (height, width) in enumerate([(40, 500), (500, 60), (30, 80)], start=1)
    ]
    image, boxes, labels, difficult = functions["canvas"](samples, 2)
    assert image.shape == (1000, 1000, 3)
    assert np.array_equal(image[:500, 500:560], samples[1].image)
    assert np.array_equal(image[500:530, :80], samples[2].image)
    assert (image[500:, 500:] == functions["GREY"]).all()
    assert boxes.tolist() == [[125, 20, 375, 40], [515, 250, 545, 500], [20, 515, 60, 530]]
    assert labels.tolist() == [1, 2, 3]
    assert difficult.tolist() == [False, True, False]
    alone = functions["canvas"](samples[:1], 1)
    assert np.array_equal(alone.image, samples[0].image)


def test_every_benchmark_is_tested():
    assert set(ONCE) == {path.name for path in BENCHMARKS.glob("*.py")}
