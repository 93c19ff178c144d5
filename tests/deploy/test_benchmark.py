"""``ssd-benchmark``: what is measured is what prediction does, and what stands in its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import finish, start
from random_detector import photo, random_detector, same
from run_folder import Trained

from ssd_lightning.data.pictures import PictureError
from ssd_lightning.deploy import benchmark
from ssd_lightning.deploy.benchmark import (
    Measured,
    Runner,
    Setting,
    Stages,
    added_memory,
    benchmark_runners,
    onnx_runner,
    run_once,
    size_of,
    torch_runner,
)
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.training.checkpoint import load_detector

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        photo(48 + number, 90, seed=number).save(path)
    return paths


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
@pytest.mark.slow
def test_the_measured_work_is_prediction(trained: Trained, exported_run: Path, photos: list[Path], runtime: str):
    detector = load_detector(trained.best) if runtime == "eager" else OnnxDetector(exported_run)
    runner = (
        onnx_runner(detector, "a", 1, 4)
        if isinstance(detector, OnnxDetector)
        else torch_runner(detector, "a", False, "32-true", 1, 4)
    )
    assert runner.setting == Setting("a", runtime, "cpu", "as exported" if runtime != "eager" else "32-true", 1, 4)
    found = run_once(runner, photos).found
    expected = detector.predict([*photos, photos[0]], score_threshold=0)
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs)


COMPILED = """
import sys
from pathlib import Path
import numpy as np
from random_detector import random_detector
from ssd_lightning.deploy.benchmark import run_once, torch_runner
detector, photos = random_detector(), [Path(name) for name in sys.argv[1:]]
runner = torch_runner(detector, "a", True, "32-true", 1, 3)
for mine, theirs in zip(run_once(runner, photos).found, detector.predict(photos, score_threshold=0), strict=True):
    np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4)
assert detector.model._compiled_call_impl is None
print("the same")
"""


@pytest.mark.slow
def test_a_compiled_network_finds_the_same(photos: list[Path], tmp_path: Path):
    """In a process of its own, because the shape checks of the tests cannot be compiled."""
    out, _ = finish(start(tmp_path, "-c", COMPILED, *map(str, photos)))
    assert out.endswith("the same\n")


def test_precision_and_threads_are_those_asked_for(photos: list[Path]):
    detector, before = random_detector(), torch.get_num_threads()
    seen = []
    [layer] = [layer for name, layer in detector.model.named_modules() if name == "head.classification.0"]
    layer.register_forward_hook(lambda layer, given, result: seen.append((result.dtype, torch.get_num_threads())))
    run_once(torch_runner(detector, "a", False, "bf16-mixed", 3, 1), photos)
    run_once(torch_runner(detector, "a", False, "32-true", 2, 1), photos)
    assert seen == [(torch.bfloat16, 3), (torch.float32, 2)]
    assert torch.get_num_threads() == before


def scripted(monkeypatch: pytest.MonkeyPatch, times: dict[str, list[float]]) -> list[str]:
    """Let runners take scripted seconds in the network; return the list in which their names will stand in turn."""
    turns: list[str] = []

    def run(runner: Runner, paths) -> benchmark.Run:
        turns.append(runner.setting.detector)
        return benchmark.Run(Stages(1.0, 2.0, times[runner.setting.detector].pop(0), 4.0), [])

    monkeypatch.setattr(benchmark, "run_once", run)
    return turns


def named_runner(name: str, batch_size: int = 1) -> Runner:
    return torch_runner(random_detector(), name, False, "32-true", 1, batch_size)


def test_medians_ratios_and_turns(monkeypatch: pytest.MonkeyPatch):
    turns = scripted(monkeypatch, {"a": [99, 99, 3, 13, 23], "b": [99, 99, 0, 0, 3]})
    reported = []
    a, b = benchmark_runners(
        [named_runner("a"), named_runner("b", batch_size=2)], [Path("a.png")], 2, 3, lambda: reported.append(1)
    )
    assert turns == list("ababbaabba")
    assert len(reported) == len(turns)
    assert a.seconds["network"] == [3, 13, 23]
    assert a.seconds["whole"] == [10, 20, 30]
    assert (a.median(), a.median("network"), a.ratio, a.images_per_second) == (20, 13, 1, 1 / 20)
    assert b.seconds["whole"] == [7, 7, 10]
    # Seconds per picture are 10, 20, 30 and 3.5, 3.5, 5.
    assert b.ratio == pytest.approx(np.median([10 / 3.5, 20 / 3.5, 30 / 5]))
    assert b.images_per_second == pytest.approx(2 / 7)


def test_percentile():
    result = Measured(Setting("a", "eager", "cpu", "32-true", 1, 1), {"whole": [float(n) for n in range(101)]}, None, 1)
    assert result.p95() == 95


def test_the_size_of_a_network():
    model = random_detector().model
    size = size_of(model)
    assert size.default_boxes == len(model.default_boxes)
    assert size.parameters == sum(value.numel() for value in model.parameters())
    multiplications = 0

    def count(layer, given, result) -> None:
        nonlocal multiplications
        multiplications += result.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, *model.image_size))
    assert size.multiplications == multiplications > 0


@pytest.mark.skipif(not benchmark.RESIDENT_PEAK.exists(), reason="needs Linux")
def test_memory_is_the_peak_of_the_work(monkeypatch: pytest.MonkeyPatch):
    def work() -> None:
        bytearray(50 * 10**6).count(1)  # Freed at the end of this line.

    # The allocator may add some megabytes.
    assert 45e6 < added_memory(torch.device("cpu"), work) < 75e6
    monkeypatch.setattr(benchmark, "RESIDENT_PEAK", Path("/nowhere"))
    assert added_memory(torch.device("cpu"), work) is None


def test_the_command_compares_two_runtimes(run, trained: Trained, exported_run: Path, tmp_path: Path):
    outcome = run(
        "ssd-benchmark", str(trained.best), str(exported_run), str(trained.best),
        "batch_sizes=[1,2]", "threads=1", "repeats=2", "warm_up=1", "hydra.run.dir=out",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert content["pictures"] == "generated"
    assert (content["warm_up"], content["repeats"]) == (1, 2)
    assert set(content["machine"]) == {"cpu", "cores", "gpu", "torch"}
    model = load_detector(trained.best).model
    checkpoint, file, _ = content["detectors"]
    assert checkpoint["parameters"] == sum(value.numel() for value in model.parameters())
    assert checkpoint["gmacs"] > 0
    assert file == {
        "name": str(exported_run), "image_size": [64, 64], "classes": 1, "parameters": None, "gmacs": None,
        "default_boxes": None,
    }  # fmt: skip
    settings = [(result["detector"], result["runtime"], result["batch_size"]) for result in content["results"]]
    best = str(trained.best)
    assert settings == [
        *((best, "eager", batch) for batch in (1, 2)),
        *((str(exported_run), "onnxruntime", batch) for batch in (1, 2)),
        *((best, "eager", batch) for batch in (1, 2)),
    ]
    for result in content["results"]:
        stages = dict(result["seconds"])
        whole = stages.pop("whole")
        assert set(stages) == {"decode", "resize", "network", "postprocess"}
        np.testing.assert_allclose(np.sum(list(stages.values()), axis=0), whole)
        assert len(whole) == 2
        assert min(map(min, stages.values())) > 0
        assert result["median_ms"]["whole"] == pytest.approx(1000 * np.median(whole))
        assert result["p95_ms"]["network"] == pytest.approx(1000 * np.percentile(stages["network"], 95))
        assert result["images_per_second"] == pytest.approx(result["batch_size"] / np.median(whole))
    assert content["results"][0]["ratio"] == 1
    # The same detector again; only a sanity check, since other programs may run meanwhile.
    assert 0.02 < content["results"][4]["ratio"] < 50
    assert (tmp_path / "out/figures/benchmark.png").exists()
    for text in ("2 repeats after 1", "ratio", "batch 2", "figures/benchmark.png"):
        assert text in outcome.out


def test_own_pictures_and_a_detector_without_weights(run, photos: list[Path], tmp_path: Path):
    outcome = run(
        "ssd-benchmark", "model_name=tiny_ssd", "num_classes=3", f"source={photos[0]}", "postprocess.max_detections=9",
        "precisions=bf16-mixed", "warm_up=1", "repeats=1", "hydra.run.dir=out",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    content = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert content["pictures"] == [str(photos[0])]
    [detector], [result] = content["detectors"], content["results"]
    assert (detector["name"], detector["classes"], detector["default_boxes"]) == ("tiny_ssd", 3, 5444)
    assert result["precision"] == "bf16-mixed"
    assert result["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_a_checkpoint_is_exported_for_onnx_runtime(run, trained: Trained, tmp_path: Path):
    outcome = run(
        "ssd-benchmark", str(trained.best), "runtimes=[eager,onnxruntime]", "precisions=[32-true,16-mixed]",
        "warm_up=1", "repeats=1", "hydra.run.dir=out",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.error
    results = json.loads((tmp_path / "out/benchmark.json").read_text())["results"]
    assert [(result["runtime"], result["precision"]) for result in results] == [
        ("eager", "32-true"),
        ("eager", "16-mixed"),
        ("onnxruntime", "as exported"),
    ]


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("precisions=half", "precisions"),
        ("precisions=[32-true,64]", "precisions"),
        ("precisions=[]", "precisions"),
        ("runtimes=tensorrt", "runtimes"),
        ("threads=0", "threads"),
        ("threads=[]", "threads"),
        ("batch_sizes=[1,0]", "batch_sizes"),
        ("batch_sizes=many", "batch_sizes"),
        ("repeats=0", "repeats"),
        ("warm_up=0", "warm_up"),
        ("device=nowhere", "device"),
        ("model_name=ssd9000", "model_name"),
        ("source=nowhere.png", "source"),
        ("postprocess.nms_threshold=2", "nms_threshold"),
        ("checkpoint=null", "checkpoint"),
        ("checkpoint=nowhere.ckpt", "checkpoint"),
    ],
)
def test_mistakes(run, trained: Trained, argument: str, key: str, tmp_path: Path):
    checkpoint = [] if key == "checkpoint" else [trained.checkpoint]
    outcome = run("ssd-benchmark", *checkpoint, argument)
    assert outcome.exit_code == 1
    assert f"{key}: expected" in outcome.message or f"{key}, model_name: expected" in outcome.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["runtimes=eager"], "runtimes"),
        (["device=cuda"], "device"),
        (["postprocess.nms_threshold=0.3"], "postprocess"),
    ],
)
def test_what_an_exported_file_cannot_do(run, exported_run: Path, arguments: list[str], key: str, tmp_path: Path):
    outcome = run("ssd-benchmark", str(exported_run), *arguments)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-benchmark: {key}: expected")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_picture_is_named(photos: list[Path]):
    photos[1].write_text("no picture")
    with pytest.raises(PictureError, match=r"1\.png"):
        benchmark_runners([named_runner("a", batch_size=2)], photos, 1, 1)


def test_a_network_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, photos: list[Path]):
    runner = torch_runner(random_detector(), "a", True, "32-true", 1, 1)

    def fail(images):
        raise RuntimeError("no compiler\nat all")

    with pytest.raises(ValueError, match=r"^runtimes: expected .* got an error: no compiler$"):
        benchmark_runners([runner._replace(network=fail)], photos, 1, 1)
