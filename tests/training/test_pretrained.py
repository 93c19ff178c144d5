"""Loading detectors of others: compared with torchvision's forward pass, and with the amdegroot network written out."""

import copy
import functools
import os
import re
from collections.abc import Callable
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from PIL import Image
from places import SHARED
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.functional import pil_to_tensor

from ssd_lightning.deploy.detector import Detector
from ssd_lightning.detector.losses import MultiBoxLoss
from ssd_lightning.detector.matching import BoxMatcher
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.postprocess import PostProcess
from ssd_lightning.detector.presets import CONFIG_FOLDER, build_model
from ssd_lightning.structures import Losses, Objects, Predictions
from ssd_lightning.training.checkpoint import load_detector
from ssd_lightning.training.pretrained import LoadReport, load_pretrained

PHOTOGRAPHS = SHARED / "VOCdevkit" / "VOC2007" / "JPEGImages"

COCO_NUMBERS = {
    "aeroplane": 5,
    "bicycle": 2,
    "bird": 16,
    "boat": 9,
    "bottle": 44,
    "bus": 6,
    "car": 3,
    "cat": 17,
    "chair": 62,
    "cow": 21,
    "diningtable": 67,
    "dog": 18,
    "horse": 19,
    "motorbike": 4,
    "person": 1,
    "pottedplant": 64,
    "sheep": 20,
    "sofa": 63,
    "train": 7,
    "tvmonitor": 72,
}
"""VOC's classes in their order, and the category_id that COCO's annotations have for each."""


@functools.cache
def composed(option: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", [f"model={option}"])


def preset(option: str, num_classes: int, seed: int = 0) -> SSD:
    """The model of ``ssd-train model=<option>``."""
    config = composed(option)
    with open_dict(config):
        config.model.num_classes = num_classes
    torch.manual_seed(seed)
    return instantiate(config.model, _convert_="all").eval()


def generated_picture(seed: int, height: int, width: int) -> Tensor:
    """Coarse and fine blots: something for every level to see."""
    generator = torch.Generator().manual_seed(seed)
    blots = [
        F.interpolate(torch.randn(1, 3, n, n, generator=generator), (height, width), mode="bicubic") / sqrt(n)
        for n in (2, 5, 12, 40)
    ]
    return (128 + 80 * torch.cat(blots).sum(dim=0)).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    """Two pictures of different sizes that are not square."""
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))[:2]
    if len(files) < 2:
        return [generated_picture(0, 375, 500), generated_picture(1, 480, 320)]
    return [pil_to_tensor(Image.open(file).convert("RGB")) for file in files]


def resized(pictures: list[Tensor], size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels of 0 … 255 for our network, resized as torchvision's transform does."""
    return torch.cat(
        [
            F.interpolate(picture[None].to(dtype), (size, size), mode="bilinear", align_corners=False)
            for picture in pictures
        ]
    )


def by_class(tensor: Tensor, boxes_per_cell: int) -> Tensor:
    """Rows of a class head as (boxes of a cell, classes, ...)."""
    return tensor.unflatten(0, (boxes_per_cell, -1))


# ---------------------------------------------------------------------------------------------- torchvision's detectors


class Case(NamedTuple):
    make: Callable[..., TorchvisionSSD]
    layout: str
    option: str
    num_outputs: int
    contrast: float
    """Factor of the class scores."""
    background: float
    """Offset of the background's logit."""
    finds_more_than_it_returns: bool
    pictures: int
    """Number of pictures, since VGG16 takes three seconds for one in double precision."""


CASES = {
    "SSD300 COCO": Case(ssd300_vgg16, "torchvision SSD300", "ssd300_torchvision", 91, 1.0, 4.0, True, 1),
    "SSD300 VOC": Case(ssd300_vgg16, "torchvision SSD300", "ssd300_torchvision", 21, 1.0, 16.0, False, 1),
    "SSDLite320 COCO": Case(
        ssdlite320_mobilenet_v3_large, "torchvision SSDLite320", "ssdlite320_torchvision", 91, 2.0, 4.0, True, 2
    ),
    "SSDLite320 VOC": Case(
        ssdlite320_mobilenet_v3_large, "torchvision SSDLite320", "ssdlite320_torchvision", 21, 2.0, 16.0, False, 2
    ),
}


@torch.no_grad()
def random_detector(case: Case, pictures: list[Tensor]) -> TorchvisionSSD:
    """A detector of torchvision with random weights that tell pictures apart, none of which is 0 or 1."""
    detector = case.make(weights=None, weights_backbone=None, num_classes=case.num_outputs)
    generator = torch.Generator().manual_seed(case.num_outputs)
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in detector.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.3, generator=generator)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3, generator=generator)
        nn.init.uniform_(norm.bias, -0.3, 0.3, generator=generator)
        norm.momentum = 1.0
    if norms:
        # Statistics of the pictures, disturbed a little. With invented ones the signal dies out on its way, and the
        # network says the same of every picture.
        detector.train()
        images, _ = detector.transform([picture / 255 for picture in pictures])
        detector.head(list(detector.backbone(images.tensors).values()))
        for norm in norms:
            norm.running_mean += nn.init.uniform_(torch.empty_like(norm.running_mean), -0.3, 0.3, generator=generator)
            norm.running_var *= nn.init.uniform_(torch.empty_like(norm.running_var), 0.7, 1.5, generator=generator)
    else:
        # Pixels are up to 151 from the mean, and nothing normalizes what they become, apart from conv4_3.
        detector.backbone.features[0].weight /= 64
        nn.init.uniform_(detector.backbone.scale_weight, 10, 30, generator=generator)
    for level in detector.head.classification_head.module_list:
        last = level[-1] if isinstance(level, nn.Sequential) else level
        last.weight *= case.contrast
        last.bias.view(-1, case.num_outputs)[:, 0] += case.background
    return detector.eval()


class Theirs(NamedTuple):
    """The outputs of torchvision for pictures of 0 … 1 at their own sizes."""

    anchors: Tensor
    """xyxy in pixels of the network's input."""
    predictions: Predictions
    detections: list[dict[str, Tensor]]


@torch.no_grad()
def as_torchvision(detector: TorchvisionSSD, pictures: list[Tensor]) -> Theirs:
    outputs: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in (("head", detector.head), ("anchors", detector.anchor_generator))
    ]
    detections = detector([picture / 255 for picture in pictures])
    for hook in hooks:
        hook.remove()
    head = outputs["head"]
    return Theirs(outputs["anchors"][0], Predictions(head["cls_logits"], head["bbox_regression"]), detections)


class Pair(NamedTuple):
    """A detector of torchvision and ours with its weights, and their outputs for the same pictures.

    The outputs are in double precision, since rounding in single precision is 2e-5 at logits of 10.
    """

    case: Case
    detector: TorchvisionSSD
    theirs: Theirs
    model: SSD
    ours: Predictions
    file: Path
    report: LoadReport
    pictures: list[Tensor]


# VGG16 in double precision takes seconds, and COCO has the same layout.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name.startswith("SSD300") else ()) for name in CASES],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pictures: list[Tensor]) -> Pair:
    case = CASES[request.param]
    detector = random_detector(case, pictures)
    file = tmp_path_factory.mktemp("torchvision") / "detector.pth"
    torch.save(detector.state_dict(), file)
    model = preset(case.option, case.num_outputs - 1)
    report = load_pretrained(model, file)

    pictures = pictures[: case.pictures]
    theirs = as_torchvision(detector.double(), [picture.double() for picture in pictures])
    with torch.no_grad():
        ours = model.double()(resized(pictures, model.image_size[0], torch.float64))
    return Pair(case, detector, theirs, model, ours, file, report, pictures)


def test_default_boxes_are_torchvisions(pair: Pair):
    """Neither a file nor a loaded model would show that the default boxes of a preset do not fit the weights."""
    ours = box_convert(pair.model.default_boxes, "cxcywh", "xyxy")
    torch.testing.assert_close(ours, pair.theirs.anchors / pair.model.image_size[0], rtol=0, atol=1e-6)


def test_logits_and_offsets_are_torchvisions(pair: Pair):
    """The comparison begins with pictures, so that the scaling of pixels is part of it."""
    per_cell, (height, width) = pair.model.boxes_per_cell[0], pair.model.grids[0]
    of_first_level = pair.theirs.predictions.logits[:, : height * width * per_cell]
    apart = of_first_level.unflatten(1, (-1, per_cell)).std(dim=1).mean()
    assert apart > 0.1, "a network that sees nothing would agree with any other"
    torch.testing.assert_close(pair.ours.logits, pair.theirs.predictions.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(pair.ours.offsets, pair.theirs.predictions.offsets, rtol=0, atol=1e-5)


def test_detections_are_torchvisions(pair: Pair):
    """The comparison is from pictures of any size to boxes in them."""
    detector = pair.detector
    postprocess = PostProcess(
        detector.score_thresh, detector.nms_thresh, detector.topk_candidates, detector.detections_per_img
    )
    ours = postprocess(pair.ours, pair.model.default_boxes)
    for image, (picture, theirs) in enumerate(zip(pair.pictures, pair.theirs.detections, strict=True)):
        # Detections that are many, clear and of different scores, which either limit has cut.
        found = len(theirs["scores"])
        assert (found == detector.detections_per_img) == pair.case.finds_more_than_it_returns
        assert found >= 10
        assert theirs["scores"].max() - theirs["scores"].min() > 0.1
        assert len(theirs["labels"].unique()) >= 3

        valid = ours.valid[image]
        assert valid.sum() == found
        height, width = picture.shape[1:]
        their_boxes = theirs["boxes"] / torch.tensor([width, height, width, height])
        # Each one's nearest, and no two have the same: the order of nearly equal scores may differ.
        apart = torch.maximum(
            (ours.scores[image, valid].unsqueeze(1) - theirs["scores"]).abs(),
            (ours.boxes[image, valid].unsqueeze(1) - their_boxes).abs().amax(dim=2),
        )
        apart[ours.labels[image, valid].unsqueeze(1) != theirs["labels"]] = torch.inf
        nearest = apart.min(dim=1)
        assert nearest.values.max() <= 1e-5
        assert sorted(nearest.indices.tolist()) == list(range(found))
        assert (ours.scores[image, valid].diff() <= 0).all()


@pytest.mark.parametrize(
    ("name", "dtype"),
    # VGG16 takes seconds in double precision. SSDLite amplifies the rounding of single precision to 0.01 pixels.
    [pytest.param("SSD300 COCO", torch.float32, marks=pytest.mark.slow), ("SSDLite320 COCO", torch.float64)],
)
def test_files_give_torchvisions_boxes_in_pixels(tmp_path: Path, name: str, dtype: torch.dtype):
    """The first picture is made smaller and the second larger, with other factors along each side."""
    case = CASES[name]
    paths = [tmp_path / "larger.png", tmp_path / "smaller.png"]
    for path, picture in zip(paths, (generated_picture(0, 375, 640), generated_picture(1, 120, 200)), strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    read = [pil_to_tensor(Image.open(path)) for path in paths]
    theirs = random_detector(case, read)
    torch.save(theirs.state_dict(), tmp_path / "detector.pth")
    model = preset(case.option, case.num_outputs - 1)
    model.antialias = True
    load_pretrained(model, tmp_path / "detector.pth")
    postprocess = PostProcess(theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates, theirs.detections_per_img)
    detector = Detector(model.to(dtype), postprocess, tuple(map(str, range(1, case.num_outputs))))
    ours = detector.predict(paths, score_threshold=0)
    with torch.no_grad():
        expected = theirs.to(dtype)([picture.to(dtype) / 255 for picture in read])
    for found, wanted in zip(ours, expected, strict=True):
        assert len(found.scores) == len(wanted["scores"]) > 100
        apart = (torch.from_numpy(found.boxes).unsqueeze(1) - wanted["boxes"]).abs().amax(dim=2)
        apart[torch.from_numpy(found.labels).unsqueeze(1) != wanted["labels"]] = torch.inf
        nearest = apart.min(dim=1)
        assert nearest.values.max() < 1e-3
        assert len(nearest.indices.unique()) == len(found.scores)


def test_the_way_of_resizing_comes_with_the_weights(tmp_path: Path, trained, amdegroot_file: Path):
    """Weights of this project have it in their config. A state dict alone says nothing about it."""
    model = preset("ssd300_amdegroot", 20)
    model.antialias = True
    load_pretrained(model, amdegroot_file)
    assert model.antialias is False
    content = torch.load(trained.folder / "checkpoints" / "best.ckpt", weights_only=True)
    tiny = load_detector(trained.folder / "checkpoints" / "best.ckpt").model
    for stored in (True, False, None):
        changed = {key: value for key, value in content["ssd_lightning"]["model"].items() if key != "antialias"}
        if stored is not None:
            changed["antialias"] = stored
        torch.save({**content, "ssd_lightning": {**content["ssd_lightning"], "model": changed}}, tmp_path / "one.ckpt")
        tiny.antialias = None
        load_pretrained(tiny, tmp_path / "one.ckpt")
        assert tiny.antialias is (stored is not False)
        assert load_detector(tmp_path / "one.ckpt").model.antialias is tiny.antialias
    torch.save(tiny.state_dict(), tmp_path / "alone.pt")
    for own in (True, False):
        tiny.antialias = own
        load_pretrained(tiny, tmp_path / "alone.pt")
        assert tiny.antialias is own


def test_all_of_the_file_is_used_and_all_of_the_model_is_filled(pair: Pair):
    # The number of batches of the statistics is never read.
    in_file = [name for name in torch.load(pair.file) if not name.endswith("num_batches_tracked")]
    assert str(pair.report) == f"{pair.file} ({pair.case.layout}): {len(in_file)} tensors loaded"
    assert len(set(pair.report.loaded)) == len(in_file)
    assert pair.report._replace(loaded=[]) == LoadReport(
        str(pair.file), pair.case.layout, loaded=[], skipped=[], missing=[], classes=None, new_classes=[], preset=None
    )


# ------------------------------------------------------------------------------------------------- torchvision's losses


class Scene(NamedTuple):
    """A batch for both sides: boxes are fractions of the picture here and pixels in torchvision."""

    objects: Objects
    targets: list[dict[str, Tensor]]
    predictions: Predictions


def make_scene(pair: Pair, counts: list[int], seed: int = 0) -> Scene:
    """Pictures with ``counts`` objects, and random predictions for all default boxes."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.1 + 0.5 * torch.rand(len(counts), 5, 2, generator=generator)
    left_top = (1 - size) * torch.rand(len(counts), 5, 2, generator=generator)
    boxes = torch.cat((left_top, left_top + size), dim=2)
    labels = torch.randint(1, pair.case.num_outputs, (len(counts), 5), generator=generator)
    valid = torch.arange(5) < torch.tensor(counts).unsqueeze(1)
    shape = len(counts), len(pair.theirs.anchors)
    return Scene(
        Objects(boxes, labels, torch.zeros_like(valid), valid),
        [
            {"boxes": pair.model.image_size[0] * b[:n], "labels": n_labels[:n]}
            for b, n_labels, n in zip(boxes, labels, counts, strict=True)
        ],
        Predictions(
            2 * torch.randn(*shape, pair.case.num_outputs, generator=generator),
            torch.randn(*shape, 4, generator=generator),
        ),
    )


def torchvision_matches(pair: Pair, scene: Scene) -> list[Tensor]:
    """The object of each default box, or -1, as in the ``forward`` of torchvision's SSD."""
    anchors = pair.theirs.anchors.float()
    return [
        pair.detector.proposal_matcher(box_iou(target["boxes"], anchors))
        if len(target["boxes"])
        else torch.full((len(anchors),), -1)
        for target in scene.targets
    ]


def torchvision_losses(pair: Pair, scene: Scene) -> dict[str, Tensor]:
    return pair.detector.compute_loss(
        scene.targets,
        {"bbox_regression": scene.predictions.offsets, "cls_logits": scene.predictions.logits},
        [pair.theirs.anchors.float()] * len(scene.targets),
        torchvision_matches(pair, scene),
    )


def our_losses(pair: Pair, scene: Scene) -> Losses:
    default_boxes = pair.model.default_boxes.float()
    return MultiBoxLoss()(scene.predictions, BoxMatcher()(scene.objects, default_boxes), default_boxes)


def hardest(pair: Pair, logits: Tensor) -> Tensor:
    """The background losses of the three default boxes that look least like background."""
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none").topk(3).values


@pytest.mark.parametrize("counts", [[1], [3, 5]], ids=str)
def test_losses_are_torchvisions(pair: Pair, counts: list[int]):
    """Default boxes, matcher and objective together give the loss with which the weights were trained.

    Where two objects share their best default box, the two sides differ on purpose; see the tests of matching.
    """
    scene = make_scene(pair, counts)
    for target in scene.targets:
        best = box_iou(target["boxes"], pair.theirs.anchors.float()).argmax(dim=1)
        assert len(best.unique()) == len(best), "no two objects share their best default box"
    ours, theirs = our_losses(pair, scene), torchvision_losses(pair, scene)
    torch.testing.assert_close(ours.classification, theirs["classification"], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.localization, theirs["bbox_regression"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("pair", ["SSDLite320 VOC"], indirect=True)
def test_a_picture_without_objects_trains_the_background(pair: Pair):
    """Torchvision takes three negatives for each positive, so none without objects. Ours takes the three worst."""
    scene = make_scene(pair, [4, 0])
    ours, theirs = our_losses(pair, scene), torchvision_losses(pair, scene)
    positives = sum(int((matched >= 0).sum()) for matched in torchvision_matches(pair, scene))
    more = hardest(pair, scene.predictions.logits[1]).sum() / positives
    assert more > 0
    torch.testing.assert_close(ours.classification, theirs["classification"] + more, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.localization, theirs["bbox_regression"], rtol=1e-5, atol=0)

    nothing = make_scene(pair, [0, 0])
    assert torchvision_losses(pair, nothing)["classification"] == 0
    expected = torch.stack([hardest(pair, logits).sum() for logits in nothing.predictions.logits]).sum()
    torch.testing.assert_close(our_losses(pair, nothing).total, expected)


# ------------------------------------------------------------------------------------------------- the amdegroot layout

AMDEGROOT_VGG = {
    # Number in the ModuleList `vgg`, where ReLUs and pools count too: (channels out, in, kernel).
    0: (64, 3, 3),
    2: (64, 64, 3),
    5: (128, 64, 3),
    7: (128, 128, 3),
    10: (256, 128, 3),
    12: (256, 256, 3),
    14: (256, 256, 3),
    17: (512, 256, 3),
    19: (512, 512, 3),
    21: (512, 512, 3),
    24: (512, 512, 3),
    26: (512, 512, 3),
    28: (512, 512, 3),
    31: (1024, 512, 3),  # fc6
    33: (1024, 1024, 1),  # fc7
}
AMDEGROOT_EXTRAS = [
    (256, 1024, 1),
    (512, 256, 3),
    (128, 512, 1),
    (256, 128, 3),
    (128, 256, 1),
    (256, 128, 3),
    (128, 256, 1),
    (256, 128, 3),
]
LEVEL_CHANNELS, BOXES_PER_CELL = [512, 1024, 512, 256, 256, 256], [4, 6, 6, 6, 4, 4]


def amdegroot_state() -> dict[str, Tensor]:
    """Random weights with the names and in the order of ``build_ssd('train', 300, 21)`` in that repository."""
    shapes = {f"vgg.{number}": shape for number, shape in AMDEGROOT_VGG.items()}
    shapes |= {"L2Norm": (512,)}
    shapes |= {f"extras.{number}": shape for number, shape in enumerate(AMDEGROOT_EXTRAS)}
    levels = list(enumerate(zip(LEVEL_CHANNELS, BOXES_PER_CELL, strict=True)))
    shapes |= {f"loc.{level}": (boxes * 4, channels, 3) for level, (channels, boxes) in levels}
    shapes |= {f"conf.{level}": (boxes * 21, channels, 3) for level, (channels, boxes) in levels}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name == "L2Norm":
            state["L2Norm.weight"] = nn.init.uniform_(torch.empty(512), 10, 30, generator=generator)
            continue
        out, before, kernel = shape
        weight = torch.empty(out, before, kernel, kernel)
        state[f"{name}.weight"] = nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        state[f"{name}.bias"] = nn.init.normal_(torch.empty(out), std=0.3, generator=generator)
    state["vgg.0.weight"] /= 64  # pixels are up to 151 from the mean
    return state


def amdegroot_forward(state: dict[str, Tensor], pictures: Tensor) -> Predictions:
    """The network of Figure 2 of the paper, with the details of its released configuration."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def stage(numbers: list[int], x: Tensor) -> Tensor:
        for number in numbers:
            x = F.relu(conv(f"vgg.{number}", x, padding=1))
        return x

    # OpenCV reads blue first; the repository subtracts the means in that order and then turns the channels round.
    x = (pictures.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)).flip(1)
    x = F.max_pool2d(stage([0, 2], x), 2)
    x = F.max_pool2d(stage([5, 7], x), 2)
    x = F.max_pool2d(stage([10, 12, 14], x), 2, ceil_mode=True)
    conv4_3 = stage([17, 19, 21], x)
    levels = [state["L2Norm.weight"].view(-1, 1, 1) * conv4_3 / conv4_3.pow(2).sum(dim=1, keepdim=True).sqrt()]
    x = F.max_pool2d(stage([24, 26, 28], F.max_pool2d(conv4_3, 2)), 3, stride=1, padding=1)
    x = F.relu(conv("vgg.31", x, padding=6, dilation=6))
    levels.append(F.relu(conv("vgg.33", x)))
    for number, (stride, padding) in zip((0, 2, 4, 6), ((2, 1), (2, 1), (1, 0), (1, 0)), strict=True):
        between = F.relu(conv(f"extras.{number}", levels[-1]))
        levels.append(F.relu(conv(f"extras.{number + 1}", between, stride=stride, padding=padding)))

    def head(part: str, columns: int) -> Tensor:
        maps = [conv(f"{part}.{level}", x, padding=1) for level, x in enumerate(levels)]
        return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, columns) for x in maps], dim=1)

    return Predictions(head("conf", 21), head("loc", 4))


@pytest.fixture(scope="module")
def amdegroot_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("amdegroot") / "ssd300_mAP_77.43_v2.pth"
    torch.save(amdegroot_state(), file)
    return file


def test_an_amdegroot_file_computes_what_the_paper_says(amdegroot_file: Path, pictures: list[Tensor]):
    model = preset("ssd300_amdegroot", 20)
    report = load_pretrained(model, amdegroot_file, list(COCO_NUMBERS))
    assert str(report) == f"{amdegroot_file} (amdegroot): 71 tensors loaded"  # 35 convolutions and the norm
    assert (report.skipped, report.missing, report.classes, report.new_classes) == ([], [], None, [])

    inputs = resized(pictures[:1], 300)
    with torch.no_grad():
        theirs, ours = amdegroot_forward(torch.load(amdegroot_file), inputs), model(inputs)
    assert theirs.logits.std() > 0.5
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.offsets, theirs.offsets, rtol=0, atol=1e-5)


def test_a_file_that_dataparallel_wrote_gives_the_same_model(amdegroot_file: Path, tmp_path: Path):
    state = torch.load(amdegroot_file)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pth")
    plain, parallel = preset("ssd300_amdegroot", 20, seed=0), preset("ssd300_amdegroot", 20, seed=1)
    load_pretrained(plain, amdegroot_file)
    report = load_pretrained(parallel, tmp_path / "parallel.pth")
    assert (len(report.loaded), report.skipped, report.missing) == (len(state), [], [])
    for (name, value), other in zip(plain.state_dict().items(), parallel.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_default_boxes_are_those_of_amdegroots_weights():
    """The boxes of its ``PriorBox``: steps are in pixels, and no box is larger than the picture."""
    sizes = [30, 60, 111, 162, 213, 264, 315]
    expected = []
    for level, (cells, step) in enumerate(zip((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), strict=True)):
        smallest, between = sizes[level] / 300, sqrt(sizes[level] / 300 * sizes[level + 1] / 300)
        shapes = [(smallest, smallest), (between, between)]
        for ratio in (2, 3) if BOXES_PER_CELL[level] == 6 else (2,):
            wide, narrow = smallest * sqrt(ratio), smallest / sqrt(ratio)
            shapes += [(wide, narrow), (narrow, wide)]
        for row, column in product(range(cells), repeat=2):
            centre = (column + 0.5) / (300 / step), (row + 0.5) / (300 / step)
            expected += [(*centre, *shape) for shape in shapes]
    ours = preset("ssd300_amdegroot", 20).default_boxes
    torch.testing.assert_close(ours, torch.tensor(expected).clamp(0, 1), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------ class heads of another size


class Saved(NamedTuple):
    detector: TorchvisionSSD
    file: Path


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory, pictures: list[Tensor]) -> Saved:
    """An SSDLite320 with outputs for COCO's 90 category numbers."""
    detector = random_detector(CASES["SSDLite320 COCO"], pictures)
    file = tmp_path_factory.mktemp("coco") / "ssdlite.pth"
    torch.save(detector.state_dict(), file)
    return Saved(detector, file)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory, pictures: list[Tensor]) -> Saved:
    """An SSDLite320 with 20 classes whose names are not in the file."""
    detector = random_detector(CASES["SSDLite320 VOC"], pictures)
    file = tmp_path_factory.mktemp("twenty") / "ssdlite.pth"
    torch.save(detector.state_dict(), file)
    return Saved(detector, file)


@functools.cache
def built_ssdlite(num_classes: int) -> SSD:
    return preset("ssdlite320_torchvision", num_classes)


def ssdlite(num_classes: int) -> SSD:
    return copy.deepcopy(built_ssdlite(num_classes))


SSDLITE_CLASS_ROWS = {
    f"head.classification.{level}.1.{kind}": f"head.classification_head.module_list.{level}.1.{kind}"
    for level in range(6)
    for kind in ("weight", "bias")
}
"""Tensors with rows for each class, by our and their names: the last convolution of each level, with 6 boxes a cell."""


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_coco_teaches_the_classes_of_voc_by_their_names(coco: Saved, pictures: list[Tensor]):
    """Six VOC classes have other names in COCO. The new class has none of the names, though it begins like one."""
    classes = ["banana split", *COCO_NUMBERS]
    model = ssdlite(len(classes))
    before = copied_state(model)
    report = load_pretrained(model, coco.file, classes)

    for name in SSDLITE_CLASS_ROWS:
        assert torch.equal(by_class(model.state_dict()[name], 6)[:, 1], by_class(before[name], 6)[:, 1]), name

    # In double precision, as above.
    detector = copy.deepcopy(coco.detector).double()
    theirs = as_torchvision(detector, [picture.double() for picture in pictures]).predictions
    with torch.no_grad():
        ours = model.double()(resized(pictures, 320, torch.float64))
    known, their_columns = [0, *range(2, 22)], [0, *COCO_NUMBERS.values()]
    torch.testing.assert_close(ours.logits[..., known], theirs.logits[..., their_columns], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.offsets, theirs.offsets, rtol=0, atol=1e-5)

    assert (report.classes, report.new_classes) == (list(COCO_NUMBERS), ["banana split"])
    assert (report.skipped, report.missing) == ([], [])
    assert str(report).splitlines()[1:] == [
        f"  classes by name: {', '.join(COCO_NUMBERS)}",
        "  classes to be learned: banana split",
    ]


def test_voc_teaches_the_classes_of_coco_by_their_names(amdegroot_file: Path):
    """The layout of the file has VOC's names. The rows of a head are ordered box by box."""
    classes = ["zebra", "tv", "airplane", "person"]
    model = preset("ssd300_amdegroot", len(classes))
    before = copied_state(model)
    report = load_pretrained(model, amdegroot_file, classes)
    theirs, ours = torch.load(amdegroot_file), model.state_dict()
    for level, boxes in enumerate(BOXES_PER_CELL):
        for kind in ("weight", "bias"):
            name = f"head.classification.{level}.{kind}"
            rows, their_rows = by_class(ours[name], boxes), by_class(theirs[f"conf.{level}.{kind}"], boxes)
            assert torch.equal(rows[:, [0, 2, 3, 4]], their_rows[:, [0, 20, 1, 15]]), name
            assert torch.equal(rows[:, 1], by_class(before[name], boxes)[:, 1]), name
    assert (report.classes, report.new_classes) == (["tv", "airplane", "person"], ["zebra"])


def test_a_file_that_shares_no_class_still_knows_the_background(coco: Saved):
    model = ssdlite(1)
    report = load_pretrained(model, coco.file, ["banana split"])
    theirs, ours = coco.detector.state_dict(), model.state_dict()
    for name, their_name in SSDLITE_CLASS_ROWS.items():
        assert torch.equal(by_class(ours[name], 6)[:, 0], by_class(theirs[their_name], 6)[:, 0]), name
    assert (report.classes, report.new_classes) == ([], ["banana split"])
    assert "classes by name: none\n" in str(report)


def test_the_caller_can_name_the_classes_of_a_file(twenty: Saved):
    """Names count even where the model has as many classes as the file."""
    in_file = [f"thing {number}" for number in range(1, 21)]
    for classes in (["thing 7", "thing 21"], in_file[::-1]):
        model = ssdlite(len(classes))
        before = copied_state(model)
        report = load_pretrained(model, twenty.file, classes, in_file)
        theirs, ours = twenty.detector.state_dict(), model.state_dict()
        for name, their_name in SSDLITE_CLASS_ROWS.items():
            expected = by_class(before[name], 6)
            for row, number in enumerate([0, *(int(c.split()[1]) for c in classes)]):
                if number <= 20:
                    expected[:, row] = by_class(theirs[their_name], 6)[:, number]
            assert torch.equal(by_class(ours[name], 6), expected), name
        assert report.classes == [c for c in classes if c != "thing 21"]
        assert report.new_classes == [c for c in classes if c == "thing 21"]


def test_boxes_that_the_file_is_not_made_for_are_told(twenty: Saved):
    """The weights fit, but every offset would be wrong."""
    assert load_pretrained(ssdlite(20), twenty.file).preset is None
    report = load_pretrained(build_model("ssdlite320_torchvision", 20, "box_scales=coco"), twenty.file)
    assert not report.skipped
    assert report.preset == "ssdlite320_torchvision"
    assert "other default boxes" in str(report)
    assert "model=ssdlite320_torchvision" in str(report)


@pytest.mark.parametrize(
    ("source", "classes"),
    [
        pytest.param("twenty", ["cat", "dog", "person"], id="those of the file"),
        pytest.param("coco", None, id="those of the model"),
    ],
)
def test_a_head_for_other_classes_is_skipped_where_names_are_unknown(
    request: pytest.FixtureRequest, source: str, classes: list[str] | None
):
    """Everything else is loaded, including the depthwise convolutions of the class head."""
    saved: Saved = request.getfixturevalue(source)
    model = ssdlite(3)
    before = copied_state(model)
    report = load_pretrained(model, saved.file, classes)
    for name, value in model.state_dict().items():
        if name.startswith("backbone.normalize.") or name.endswith("num_batches_tracked"):
            continue
        assert torch.equal(value, before[name]) == (name in SSDLITE_CLASS_ROWS), name
    assert sorted(report.skipped) == sorted(f"{name} (other classes)" for name in SSDLITE_CLASS_ROWS)
    assert sorted(report.missing) == sorted(SSDLITE_CLASS_ROWS)
    assert not set(report.loaded) & set(SSDLITE_CLASS_ROWS)
    assert report.classes == []
    assert report.new_classes == (classes or [])
    title, by_name, *to_be_learned, skipped, missing = str(report).splitlines()
    assert by_name == "  classes by name: none"
    assert to_be_learned == (["  classes to be learned: cat, dog, person"] if classes else [])
    assert title == f"{saved.file} (torchvision SSDLite320): {len(report.loaded)} tensors loaded"
    assert skipped.startswith(f"  skipped: {report.skipped[0]}, {report.skipped[1]}, ")
    assert missing.startswith(f"  not in the file: {report.missing[0]}, {report.missing[1]}, ")
    assert skipped.endswith(" and 6 more")
    assert missing.endswith(" and 6 more")


def test_a_head_for_as_many_unknown_classes_is_taken_as_it_is(twenty: Saved):
    model = ssdlite(20)
    report = load_pretrained(model, twenty.file, [f"class {number}" for number in range(20)])
    theirs, ours = twenty.detector.state_dict(), model.state_dict()
    for name, their_name in SSDLITE_CLASS_ROWS.items():
        assert torch.equal(ours[name], theirs[their_name]), name
    assert (report.skipped, report.missing, report.classes, report.new_classes) == ([], [], None, [])


def test_weights_beside_other_things_are_found(twenty: Saved, tmp_path: Path):
    """Torchvision's training script writes the weights as ``model``."""
    plain, wrapped = ssdlite(20), ssdlite(20)
    for parameter in wrapped.parameters():
        nn.init.zeros_(parameter)
    torch.save({"model": twenty.detector.state_dict(), "epoch": 3}, tmp_path / "model_3.pth")
    load_pretrained(plain, twenty.file)
    load_pretrained(wrapped, tmp_path / "model_3.pth")
    for (name, value), other in zip(plain.state_dict().items(), wrapped.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


# ------------------------------------------------------------------------------------------------ this project's layout


@pytest.fixture
def own_checkpoint() -> dict[str, Any]:
    """The checkpoint of a TinySSD for cats, dogs and persons, with its own weights and scaling of pixels."""
    model = preset("tiny_ssd", 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                nn.init.uniform_(value, 0.5, 1.5, generator=generator)
            if name.startswith("backbone.normalize."):
                value *= 0.9
    return {
        "epoch": 3,
        "optimizer_states": [],
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "ssd_lightning": {"model": {}, "postprocess": {}, "classes": ["cat", "dog", "person"]},
    }


def test_a_checkpoint_of_this_project_teaches_a_model_of_other_classes(
    own_checkpoint: dict[str, Any], pictures: list[Tensor], tmp_path: Path
):
    source = preset("tiny_ssd", 3)
    source.load_state_dict({n.removeprefix("model."): v for n, v in own_checkpoint["state_dict"].items()})
    torch.save(own_checkpoint, tmp_path / "best.ckpt")
    classes = ["dog", "lorry", "person", "cow"]
    model = preset("tiny_ssd", len(classes))
    before = copied_state(model)
    report = load_pretrained(model, tmp_path / "best.ckpt", classes)

    with torch.no_grad():
        theirs, ours = source(resized(pictures, 256)), model(resized(pictures, 256))
    assert theirs.logits.diff(dim=0).std() > 0.01, "the picture matters"
    torch.testing.assert_close(ours.logits[..., [0, 1, 3]], theirs.logits[..., [0, 2, 3]], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.offsets, theirs.offsets, rtol=0, atol=1e-5)
    for name in (name for name in before if name.startswith("head.classification.")):
        rows, initial = (by_class(state[name], 4)[:, [2, 4]] for state in (model.state_dict(), before))
        assert torch.equal(rows, initial), name

    assert str(report).splitlines() == [
        f"{tmp_path / 'best.ckpt'} (ssd_lightning): {len(report.loaded)} tensors loaded",
        "  classes by name: dog, person",
        "  classes to be learned: lorry, cow",
    ]
    assert set(report.loaded) == {name for name in before if not name.endswith("num_batches_tracked")}


def test_what_does_not_fit_and_what_is_not_there_is_told(own_checkpoint: dict[str, Any], tmp_path: Path):
    state = own_checkpoint["state_dict"]
    del state["model.head.localization.2.bias"]
    state["model.backbone.levels.9.weight"] = torch.ones(3)
    state["model.head.localization.1.weight"] = torch.ones(16, 64, 3, 3)
    state["criterion.weight"] = torch.ones(3)  # beside the network
    torch.save(own_checkpoint, tmp_path / "best.ckpt")
    model = preset("tiny_ssd", 3)
    before = copied_state(model)
    report = load_pretrained(model, tmp_path / "best.ckpt", ["cat", "dog", "person"])
    assert sorted(report.skipped) == [
        "backbone.levels.9.weight (not in the model)",
        "head.localization.1.weight (16×64×3×3, not 16×128×3×3)",
    ]
    initial = ["head.localization.1.weight", "head.localization.2.bias"]
    assert sorted(report.missing) == initial
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        expected = before[name] if name in initial else state[f"model.{name}"]
        assert torch.equal(value, expected), name
        assert (name in report.loaded) == (name not in initial)
    assert report.classes is None  # the same: there is nothing to tell
    title, *lines = str(report).splitlines()
    assert title.endswith(f": {len(report.loaded)} tensors loaded")
    assert lines == [f"  skipped: {', '.join(report.skipped)}", f"  not in the file: {', '.join(report.missing)}"]


def test_a_bare_state_dict_of_this_project_is_taken_as_it_is(own_checkpoint: dict[str, Any], tmp_path: Path):
    state = {name.removeprefix("model."): value for name, value in own_checkpoint["state_dict"].items()}
    torch.save(state, tmp_path / "weights.pth")
    model = preset("tiny_ssd", 3)
    report = load_pretrained(model, tmp_path / "weights.pth", ["lorry", "cow", "sheep"])
    assert (report.skipped, report.missing, report.classes) == ([], [], None)
    for name, value in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, state[name]), name


# ------------------------------------------------------------------------------------------------------------- refusals


def refusal(model: SSD, path: Path) -> str:
    """Return the message of the ValueError, which names the file, when nothing in the model has changed."""
    before = copied_state(model)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_pretrained(model, path, ["cat"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return str(error.value)


@pytest.fixture(scope="module")
def tiny() -> SSD:
    return preset("tiny_ssd", 1)


def test_a_missing_file(tiny: SSD, tmp_path: Path):
    assert "does not exist" in refusal(tiny, tmp_path / "nowhere.pth")


class Command:
    """An object whose pickle calls os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_file_that_would_run_a_command_does_not(tiny: SSD, own_checkpoint: dict[str, Any], tmp_path: Path):
    path, marker = tmp_path / "stranger.pth", tmp_path / "was run"
    torch.save({**own_checkpoint, "hyper_parameters": Command(f"touch '{marker}'")}, path)
    assert "cannot be read" in refusal(tiny, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was not dangerous"


def test_weights_of_a_classifier(tiny: SSD, tmp_path: Path):
    """The message names the key for such weights."""
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    message = refusal(tiny, tmp_path / "resnet18.pth")
    assert "expected a detector of" in message
    assert "conv1.weight" in message
    assert "backbone.weights" in message


@pytest.mark.parametrize("option", ["ssd300_torchvision", "tiny_ssd"])
def test_a_detector_of_another_architecture(coco: Saved, option: str):
    message = refusal(preset(option, 1), coco.file)
    assert "torchvision SSDLite320" in message
    assert "model=ssdlite320_torchvision" in message  # where it would fit


def test_a_vgg_detector_into_a_mobile_one(amdegroot_file: Path):
    message = refusal(ssdlite(1), amdegroot_file)
    assert "amdegroot" in message
    assert "model=ssd300_amdegroot" in message


def test_a_checkpoint_of_this_project_of_which_nothing_fits(
    coco: Saved, own_checkpoint: dict[str, Any], tmp_path: Path
):
    own_checkpoint["state_dict"] = {f"model.{name}": value for name, value in coco.detector.state_dict().items()}
    torch.save(own_checkpoint, tmp_path / "best.ckpt")
    assert "expected a backbone that fits" in refusal(preset("tiny_ssd", 1), tmp_path / "best.ckpt")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}], ids=str)
def test_a_file_without_weights(tiny: SSD, tmp_path: Path, content: dict[str, Any]):
    torch.save(content, tmp_path / "empty.pth")
    assert "holds no weights" in refusal(tiny, tmp_path / "empty.pth")
