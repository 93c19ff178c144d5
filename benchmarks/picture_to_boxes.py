"""Compare the ways to run SSD300 and SSDLite320, from a picture file to boxes, with torchvision's models.

    uv run python benchmarks/picture_to_boxes.py [--model ssd300_torchvision] [--repeats 15]

All sides have the same weights and settings, and detect objects in the same JPEG files of 500×375 pixels, one after
another. The weights are random, with logits that vary by 2 and a background that is so likely that about 1,000 pairs of
a default box and a class have a score above the threshold of 0.01. The best detections of our network are checked to be
torchvision's, and those of the exported file in float32 to be those of our network. All sides take turns; the table has
the medians, and torchvision's time divided by each.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

from ssd_lightning.data.bananas.generator import draw_picture
from ssd_lightning.deploy.agreement import compare_with_file
from ssd_lightning.deploy.detector import Detector
from ssd_lightning.deploy.export import export_onnx
from ssd_lightning.deploy.onnx_detector import OnnxDetector, whole_levels
from ssd_lightning.deploy.prediction import batch_of, views_of
from ssd_lightning.deploy.quantization import quantize_onnx
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.presets import build_model
from ssd_lightning.training.pretrained import load_pretrained

MODELS = {"ssd300_torchvision": ssd300_vgg16, "ssdlite320_torchvision": ssdlite320_mobilenet_v3_large}
CLASSES = tuple(f"class {number}" for number in range(1, 91))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="default: both")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| detector | run by | ms for a picture | times as fast |")
    print("|---|---|---|---|")
    for name in [arguments.model] if arguments.model else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), arguments.repeats, arguments.pictures)


def compare(name: str, folder: Path, repeats: int, number: int) -> None:
    paths = picture_files(folder, number)
    theirs = MODELS[name](weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1)
    make_scores_vary(theirs, [read(path) for path in paths[:2]])
    theirs.eval()
    ours = our_detector(name, theirs, folder)
    export_onnx(ours, folder / "float.onnx")
    views = (whole_levels(batch_of(views_of(path, ours.image_size, ours.antialias))) for path in paths)
    quantize_onnx(folder / "float.onnx", folder / "int8.onnx", views)
    exported = OnnxDetector(folder / "float.onnx")

    @torch.inference_mode()
    def their_boxes(path: Path) -> dict[str, Tensor]:
        return theirs([read(path)])[0]

    for path in paths:
        expected, found = their_boxes(path), ours.predict(path, score_threshold=0)
        # Rounding decides some of the suppressions, so that a few of the last detections differ.
        assert abs(len(found.scores) - len(expected["scores"])) <= 0.05 * len(expected["scores"])
        np.testing.assert_allclose(found.scores[:20], expected["scores"][:20], atol=1e-3)
        np.testing.assert_allclose(found.boxes[:20], expected["boxes"][:20], atol=0.5)
    # The file takes pictures in whole levels, which change scores a little. On these it is compared with our network.
    whole = torch.cat([whole_levels(batch_of(views_of(path, ours.image_size, ours.antialias))) for path in paths])
    assert compare_with_file(ours, exported, whole).is_close
    # A detector shares its network, and moving it to another precision changes the detector alone.
    half = ours.to("cpu", "bf16-mixed")
    quantized = OnnxDetector(folder / "int8.onnx")
    sides: dict[str, Callable[[Path], object]] = {
        "torchvision": their_boxes,
        "torch, float32": lambda path: ours.predict(path, score_threshold=0),
        "torch, bf16-mixed": lambda path: half.predict(path, score_threshold=0),
        "ONNX Runtime, float32": lambda path: exported.predict(path, score_threshold=0),
        "ONNX Runtime, int8": lambda path: quantized.predict(path, score_threshold=0),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for row in range(repeats + 2):
        for side, detect in sides.items():
            start = time.perf_counter()
            detect(paths[row % number])
            times[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(seconds[2:]) for side, seconds in times.items()}
    for side, seconds in medians.items():
        ratio = statistics.median(np.divide(times["torchvision"][2:], times[side][2:]))
        print(f"| `{name}` | {side} | {seconds * 1e3:.1f} | {ratio:.2f} |", flush=True)


def picture_files(folder: Path, number: int) -> list[Path]:
    paths = [folder / f"{row}.jpg" for row in range(number)]
    for row, path in enumerate(paths):
        pixels, _ = draw_picture(np.random.default_rng(row), num_bananas=3)
        Image.fromarray(pixels).resize((500, 375)).save(path)
    return paths


def read(path: Path) -> Tensor:
    return decode_image(path, ImageReadMode.RGB).float() / 255


@torch.no_grad()
def make_scores_vary(model: TorchvisionSSD, images: list[Tensor]) -> None:
    """Change random weights so that the scores resemble those of a trained network."""
    batch = model.transform(images)[0].tensors

    def logits() -> Tensor:
        return model.head(list(model.backbone(batch).values()))["cls_logits"]

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentums = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    logits()
    for norm, momentum in zip(norms, momentums, strict=True):
        norm.momentum = momentum
    model.eval()
    outputs = len(CLASSES) + 1
    last = [
        module
        for module in model.head.classification_head.modules()
        if isinstance(module, nn.Conv2d) and module.out_channels % outputs == 0 and module.groups == 1
    ]
    factor = 2 / logits().std()
    for layer in last:
        layer.weight.mul_(factor)
    while (logits().softmax(dim=-1)[..., 1:] > model.score_thresh).sum() > 1000 * len(images):
        for layer in last:
            assert layer.bias is not None
            layer.bias[::outputs] += 0.25


def our_detector(name: str, theirs: TorchvisionSSD, folder: Path) -> Detector:
    model = build_model(name, len(CLASSES))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    report = load_pretrained(model, folder / "weights.pth")
    assert not report.missing
    assert not report.skipped
    settings = PostProcess(theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates, theirs.detections_per_img)
    return Detector(model.eval(), settings, CLASSES)


if __name__ == "__main__":
    main()
