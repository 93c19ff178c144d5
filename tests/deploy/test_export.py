"""``ssd-export`` and its files: against the detector, without torch, and files of other origin."""

import hashlib
import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from places import ROOT
from random_detector import CLASSES, photo, random_detector, same, with_spread
from run_folder import Trained

import ssd_lightning.deploy.export as export_module
from ssd_lightning.deploy.agreement import agreement, compare_with_file, generated_pictures
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import CHECKSUM_KEY, export_onnx
from ssd_lightning.deploy.onnx_detector import OnnxDetector
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.presets import build_model, model_names

EXAMPLE = ROOT / "docs" / "example_onnx" / "detect.py"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return random_detector()


@pytest.fixture(scope="module")
def files(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the detector, with suppression and without. The network is traced once."""
    folder = tmp_path_factory.mktemp("exported")
    network = export_module._network(detector.model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_network", lambda model: deepcopy(network))
        export_onnx(detector, folder / "detector.onnx")
        export_onnx(detector, folder / "raw.onnx", with_postprocess=False)
    return folder


@pytest.fixture(scope="module")
def exported(files: Path) -> Path:
    return files / "detector.onnx"


def preset(name: str) -> Detector:
    """A detector of ``conf/model`` with random weights, whose scores are far from each other."""
    torch.manual_seed(0)
    # The other presets have levels that need their own size.
    model = build_model(name, 3, *(["model.image_size=64"] if name == "tiny_ssd" else []))
    return Detector(with_spread(model), PostProcess(max_detections=50), ("a", "b", "c"))


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_preset_finds_the_same_in_one_picture_and_in_three(name: str, tmp_path: Path):
    detector = preset(name)
    export_onnx(detector, tmp_path / "a.onnx")
    exported = OnnxDetector(tmp_path / "a.onnx")
    for number in (1, 3):
        images = generated_pictures(detector.image_size, number)
        found = compare_with_file(detector, exported, images)
        assert found.pictures == number
        assert found.detections >= 10 * number
        assert found.is_close, found
        assert len(exported.run(images).scores.unique()) > 10


def test_detections_are_equal_row_by_row(detector: Detector, exported: Path):
    images = generated_pictures(detector.image_size, 3)
    expected, found = detector.run(images), OnnxDetector(exported).run(images)
    assert torch.equal(found.valid, expected.valid)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-5, rtol=0)


def test_a_file_predicts_as_its_detector(detector: Detector, exported: Path):
    file = OnnxDetector(exported)
    pictures = [photo(height, width) for height, width in [(48, 90), (300, 7), (64, 80)]]
    for found, expected in zip(
        file.predict(pictures, score_threshold=0.1), detector.predict(pictures, score_threshold=0.1), strict=True
    ):
        same(found, expected)
    assert file.predict([]) == []
    assert set(file.predict(photo(), score_threshold=0, classes=["plum"]).names) == {"plum"}
    assert file.draw(photo(), file.predict(photo())).size == (90, 48)


def test_levels_between_whole_ones_are_rounded(detector: Detector, exported: Path):
    file = OnnxDetector(exported)
    images = generated_pictures(detector.image_size, 2)
    for shift in (-0.4, 0.4):
        near = agreement(file.run(images), file.run((images + shift).clamp(0, 255)))
        assert near == (2, near.detections, 0, 0)


def test_without_suppression(detector: Detector, files: Path):
    file = OnnxDetector(files / "raw.onnx")
    images = generated_pictures(detector.image_size, 3)
    assert file.outputs(images)["all_scores"].shape == (3, len(detector.model.default_boxes), 3)
    found = compare_with_file(detector, file, images)
    assert found.is_close
    assert found.detections > 100
    assert file.metadata["postprocess"] is None
    with pytest.raises(ValueError, match=r"^checkpoint: expected a file with post-processing"):
        file.predict(photo())


def test_the_file_describes_itself(detector: Detector, exported: Path):
    proto = onnx.load(exported)
    text, checksum = [entry.value for entry in proto.metadata_props]
    about = json.loads(text)
    content = exported.read_bytes()
    assert content.endswith(checksum.encode())
    assert sum(hashlib.sha256(content[:-length]).hexdigest() == checksum for length in range(64, 120)) == 1
    assert about["classes"] == list(CLASSES)
    assert about["image_size"] == [64, 80]
    assert about["antialias"] is True
    assert PostProcess(**about["postprocess"]).max_detections == detector.postprocess.max_detections
    assert list(about["outputs"]) == [output.name for output in proto.graph.output]
    [images] = proto.graph.input
    shape = [dim.dim_value or dim.dim_param for dim in images.type.tensor_type.shape.dim]
    assert shape == ["batch", 3, 64, 80]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert str(ROOT).encode() not in exported.read_bytes()


@pytest.mark.parametrize("antialias", [True, False])
def test_the_example_runs_without_torch(detector: Detector, exported: Path, antialias: bool, tmp_path: Path):
    proto = onnx.load(exported)
    about = json.loads(proto.metadata_props[0].value)
    onnx.helper.set_model_props(proto, {"ssd_lightning": json.dumps({**about, "antialias": antialias})})
    onnx.save(proto, tmp_path / "detector.onnx")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo(100, 180).save(tmp_path / "photo.png", exif=exif)
    program = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'ssd_lightning', 'onnx'])); "
        f"sys.argv[1:] = ['detector.onnx', 'photo.png', 'drawn.png']; runpy.run_path({str(EXAMPLE)!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = OnnxDetector(tmp_path / "detector.onnx").predict(tmp_path / "photo.png")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 0
    boxes = np.array([[float(edge) for edge in line[2:]] for line in lines])
    scores = np.array([float(line[1]) for line in lines])
    names = np.array([line[0] for line in lines])
    is_near = (np.abs(boxes[:, None] - expected.boxes).max(axis=2) < 1) & (names[:, None] == np.array(expected.names))
    is_near &= np.abs(scores[:, None] - expected.scores) < 0.01
    # Without anti-aliasing Pillow rounds in another way, which decides between boxes of almost the same score.
    assert len(lines) == pytest.approx(len(expected.names), rel=0 if antialias else 0.1)
    assert is_near.any(axis=1).mean() >= (1 if antialias else 0.9)
    assert Image.open(tmp_path / "drawn.png").size == (100, 180)
    assert len(EXAMPLE.read_text().splitlines()) <= 35


@pytest.mark.parametrize("share", np.linspace(0.05, 0.95, 10).round(2))
def test_bytes_that_have_changed_are_refused(exported: Path, share: float, tmp_path: Path):
    """ONNX Runtime would run most of such files, with other weights."""
    path, content = tmp_path / "a.onnx", bytearray(exported.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^checkpoint: expected a file of ssd-export, got .*checksum") as caught:
        OnnxDetector(path)
    assert str(path) in str(caught.value)


def test_a_file_without_the_checksum_is_read(exported: Path, tmp_path: Path):
    """A program that changes the graph removes the entry, and a file of an earlier version has none."""
    proto = onnx.load(exported)
    proto.producer_version = "changed"
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=CHECKSUM_KEY):
        OnnxDetector(tmp_path / "a.onnx")
    del proto.metadata_props[1]
    onnx.save(proto, tmp_path / "a.onnx")
    assert OnnxDetector(tmp_path / "a.onnx").classes == tuple(CLASSES)


def foreign_file(path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[1] a) => (float[1] b) {b = Neg(a)}'
    graph = onnx.parser.parse_model(text)
    onnx.save(graph, path)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "cut", "foreign"])
def test_other_files_are_refused_in_one_line(exported: Path, kind: str, tmp_path: Path):
    path = tmp_path / "other.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        foreign_file(path)
    elif kind != "missing":
        content = exported.read_bytes()
        path.write_bytes({"empty": b"", "text": b"no model\n", "cut": content[: len(content) // 2]}[kind])
    with pytest.raises(ValueError, match=r"^checkpoint: expected a file of ssd-export, got ") as caught:
        OnnxDetector(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing(detector: Detector, exported: Path, package: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"expected the package {package}, .* Try uv sync --extra export"):
        OnnxDetector(exported) if package == "onnxruntime" else export_onnx(detector, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


class Undecided(Tiny):
    """A backbone whose way depends on the pixels."""

    def forward(self, images):
        return super().forward(images if images.sum() > 5 else images.flip(3))


def test_a_network_that_cannot_be_exported(tmp_path: Path):
    detector = random_detector()
    torch.manual_seed(0)
    detector.model.backbone = Undecided([4, 8, 8], 8).eval()
    with pytest.raises(ValueError, match=r"^model: expected a network that torch\.onnx can export") as caught:
        export_onnx(detector, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    detector.model.train()
    with pytest.raises(ValueError, match=r"^model: expected evaluation mode"):
        export_onnx(detector, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_file_and_a_report(run, trained: Trained, tmp_path: Path):
    photo(48, 90).save(tmp_path / "1.png")
    arguments = ["file=sub/my.onnx", "source=1.png", "postprocess.max_detections=9", "hydra.run.dir=out"]
    outcome = run("ssd-export", str(trained.best), *arguments)
    assert outcome.exit_code == 0, outcome.error
    report = json.loads((tmp_path / "sub/my.json").read_text())
    assert report["is_close"] is True
    assert report["pictures"] == 1
    assert report["source"] == [str(tmp_path / "1.png")]
    assert 0 < report["detections"] <= 9
    assert report["box_difference"] < 1e-4
    assert report["score_difference"] < 1e-4
    assert f"{report['score_difference']:.2g} of a score" in outcome.out
    assert OnnxDetector(tmp_path / "sub/my.onnx").metadata["postprocess"]["max_detections"] == 9


@pytest.mark.slow
def test_a_file_that_finds_something_else_is_an_error(run, trained: Trained, tmp_path: Path, monkeypatch):
    decode = export_module.decode
    # Only the export gets wrong boxes.
    shift = {True: 0.002, False: 0.0}
    monkeypatch.setattr(
        export_module, "decode", lambda *arguments: decode(*arguments) + shift[torch.compiler.is_exporting()]
    )
    outcome = run("ssd-export", str(trained.best), "hydra.run.dir=out")
    assert outcome.exit_code == 1
    assert outcome.message.startswith("ssd-export: file: expected differences of at most 0.001")
    report = json.loads((tmp_path / "out/detector.json").read_text())
    assert report["is_close"] is False
    assert report["box_difference"] == pytest.approx(0.002, abs=1e-4)
    assert (tmp_path / "out/detector.onnx").is_file()


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("format=tflite", "format"),
        ("file=detector.pt", "file"),
        ("split=test", "split"),
        ("raw=3", "raw"),
        ("source=nowhere.png", "source"),
        ("checkpoint=nowhere.ckpt", "checkpoint"),
        ("postprocess.nms_threshold=2", "nms_threshold"),
    ],
)
def test_mistakes(run, trained: Trained, argument: str, key: str, tmp_path: Path):
    checkpoint = [] if key == "checkpoint" else [trained.checkpoint]
    outcome = run("ssd-export", *checkpoint, argument)
    assert outcome.exit_code == 1
    assert f"{key}: expected" in outcome.message
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_damaged(run, trained: Trained, tmp_path: Path):
    (tmp_path / "a.png").write_text("no picture")
    outcome = run("ssd-export", trained.checkpoint, "source=a.png")
    assert outcome.exit_code == 1
    assert "a.png" in outcome.message
    assert not (tmp_path / "runs").exists()
