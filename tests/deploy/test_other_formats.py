"""``ssd-export`` to programs of torch and to 8-bit whole numbers."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from processes import finish, start
from random_detector import CLASSES, photo, random_detector
from run_folder import Trained

from ssd_lightning.deploy.agreement import compare_with_file, compare_with_program, generated_pictures
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import PROGRAM_METADATA, RAW_OUTPUTS, export_onnx, export_program
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.deploy.quantization import quantize_onnx


@pytest.fixture(scope="module")
def detector() -> Detector:
    return random_detector()


def test_a_program_gives_the_boxes_and_scores_of_the_network(detector: Detector, tmp_path: Path):
    export_program(detector, tmp_path / "new" / "a.pt2")
    about = {PROGRAM_METADATA: ""}
    program = torch.export.load(tmp_path / "new" / "a.pt2", extra_files=about).module()
    for number in (1, 3):
        images = generated_pictures(detector.image_size, number)
        scores, boxes = program(images)
        with torch.no_grad():
            predictions = detector.model(images)
        expected = predictions.logits.softmax(dim=2)[..., 1:]
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
        chosen = detector.postprocess.choose(
            scores, lambda candidates, boxes=boxes: boxes.gather(1, candidates.unsqueeze(-1).expand(-1, -1, 4))
        )
        torch.testing.assert_close(chosen.boxes, detector.run(images).boxes, atol=1e-5, rtol=0)
    content = json.loads(about[PROGRAM_METADATA])
    assert content["classes"] == list(CLASSES)
    assert content["image_size"] == [64, 80]
    assert content["postprocess"] is None
    assert list(content["outputs"]) == list(RAW_OUTPUTS)
    agreement, description = compare_with_program(detector, tmp_path / "new" / "a.pt2", images)
    assert agreement.is_close
    assert agreement.detections > 100
    assert description == content


@pytest.mark.slow
def test_8_bit_files(detector: Detector, tmp_path: Path):
    whole, quantized = tmp_path / "whole.onnx", tmp_path / "int8.onnx"
    export_onnx(detector, whole)
    assert len(onnx.load(whole).opset_import) == 1
    images = generated_pictures(detector.image_size, 6)
    quantize_onnx(whole, quantized, images.split(1))
    proto = onnx.load(quantized)
    of_8_bits = {entry.name for entry in proto.graph.initializer if entry.data_type == onnx.TensorProto.INT8}
    scaled = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(layer, torch.nn.Conv2d) for layer in detector.model.modules())
    assert all(set(node.input[:2]) <= scaled for node in convolutions)
    assert len(of_8_bits) >= len(convolutions)
    exported = OnnxDetector(quantized)
    assert exported.metadata == {**OnnxDetector(whole).metadata, "int8": True}
    found = compare_with_file(detector, exported, images)
    # Rounding to 8 bits changes scores, but not what is found.
    assert 1e-3 < found.score_difference < 0.2
    assert found.box_difference < 0.2
    difference = exported.run(images).scores - detector.run(images).scores
    assert difference.abs().mean() < 0.02


@pytest.mark.slow
def test_the_command_writes_8_bit_files_and_reports_the_difference(
    run, trained: Trained, bananas: Path, tmp_path: Path
):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        photo(48, 90, seed=number).save(tmp_path / "photos" / f"{number}.png")
    data = ["data=banana", f"data.root={bananas}", "num_workers=0"]
    settings = ["int8=true", "calibration=photos", "hydra.run.dir=out"]
    outcome = run("ssd-export", str(trained.best), *settings, *data)
    assert outcome.exit_code == 0, outcome.error
    report = json.loads((tmp_path / "out/detector.json").read_text())
    assert report["int8"] is report["metadata"]["int8"] is True
    assert [Path(path).name for path in report["calibration"]] == ["0.png", "1.png", "2.png"]
    assert report["limit"] is None
    assert np.isfinite(report["score_difference"])
    before, after = report["scores"]["checkpoint"], report["scores"]["file"]
    summary = json.loads((trained.folder / "summary.json").read_text())["scores"]
    assert before == pytest.approx({key: summary[f"val/{key}"] for key in before}, abs=1e-4)
    assert run("ssd-evaluate", "out/detector.onnx", *data, "hydra.run.dir=scored").exit_code == 0
    scored = json.loads((tmp_path / "scored/scores.json").read_text())["scores"]["mean"]
    assert (after["map_50"], after["map"]) == pytest.approx((scored["COCO AP50"], scored["COCO AP"]))
    assert f"on the 4 pictures of val: AP50 {before['map_50']:.3f} and {after['map_50']:.3f}" in outcome.out
    assert OnnxDetector(tmp_path / "out/detector.onnx").predict(photo()).size == (48, 90)


def test_a_damaged_picture_of_the_calibration_leaves_the_former_file(run, trained: Trained, tmp_path: Path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "my.onnx").write_text("the former file")
    outcome = run("ssd-export", str(trained.best), "int8=true", "calibration=[a.png,b.png]", "file=my.onnx")
    assert outcome.exit_code == 1
    assert str(tmp_path / "b.png") in outcome.message
    assert (tmp_path / "my.onnx").read_text() == "the former file"


def test_the_command_writes_a_program(run, trained: Trained, tmp_path: Path):
    outcome = run("ssd-export", str(trained.best), "format=torch_export", "file=my.pt2", "hydra.run.dir=out")
    assert outcome.exit_code == 0, outcome.error
    report = json.loads((tmp_path / "my.json").read_text())
    assert (report["format"], report["is_close"], report["int8"]) == ("torch_export", True, False)
    assert report["metadata"]["classes"] == ["banana"]
    assert (tmp_path / "my.pt2").is_file()


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra, and large")
@pytest.mark.parametrize("raw", ["false", "true"])
def test_a_file_of_openvino_gives_the_same(trained: Trained, tmp_path: Path, raw: str):
    """In a process of its own, since OpenVINO and pytest's capture of output do not work together."""
    program = "from ssd_lightning.cli.commands import export; export()"
    arguments = [str(trained.best), "format=openvino", "file=my.xml", f"raw={raw}", "hydra.run.dir=out"]
    finish(start(tmp_path, "-c", program, *arguments))
    assert {path.name for path in tmp_path.glob("my.*")} == {"my.xml", "my.bin", "my.onnx", "my.json"}
    # The command compares the detections of OpenVINO with those of the ONNX file, and these with the checkpoint.
    report = json.loads((tmp_path / "my.json").read_text())
    assert report["is_close"] is True
    assert report["detections"] > 0
    assert "<ssd_lightning value=" in (tmp_path / "my.xml").read_text()


def test_openvino_that_is_missing(run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    outcome = run("ssd-export", str(trained.best), "format=openvino")
    assert outcome.exit_code == 1
    assert "expected the package openvino" in outcome.message
    assert "uv sync --extra openvino" in outcome.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["int8=true"], "calibration"),
        (["calibration=a.png"], "calibration"),
        (["int8=true", "calibration=nowhere"], "calibration"),
        (["int8=3"], "int8"),
        (["int8=true", "calibration=a.png", "format=torch_export"], "int8"),
        (["format=torch_export", "file=a.onnx"], "file"),
        (["format=onnx", "file=a.pt2"], "file"),
        (["format=tflite"], "format"),
        (["data=banana", "raw=true"], "data"),
        (["data=banana", "format=torch_export"], "data"),
        (["data=banana", "split=train"], "split"),
        (["data=banana", "data.root=nowhere"], "data.root"),
    ],
)
def test_mistakes(run, trained: Trained, arguments: list[str], key: str, tmp_path: Path):
    photo().save(tmp_path / "a.png")
    outcome = run("ssd-export", str(trained.best), *arguments)
    assert outcome.exit_code == 1
    assert outcome.message.startswith(f"ssd-export: {key}: expected")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pictures_of_the_calibration_are_not_scored(run, trained: Trained, bananas: Path):
    data = ["data=banana", f"data.root={bananas}", "num_workers=0"]
    calibration = f"calibration={bananas}/bananas_val/images"
    outcome = run("ssd-export", str(trained.best), "int8=true", calibration, *data)
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-export: calibration: expected other pictures than those that are scored")
    assert "got 4 of them" in outcome.message
