"""The network, compared with d2l.ai's TinySSD, and its outputs, compared with their default boxes."""

import copy

import pytest
import torch
from small_detectors import random_pictures, with_statistics
from torch import Tensor, nn

from ssd_lightning.detector.backbones.normalization import Normalization
from ssd_lightning.detector.backbones.tiny import Tiny
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.model import SSD, Head

TINY_BOXES = DefaultBoxes([0.2, 0.37, 0.54, 0.71, 0.88, 1.05], [[2.0]] * 5)


def tiny_ssd(num_classes: int = 1, image_size: int | tuple[int, int] = 64, seed: int = 0) -> SSD:
    torch.manual_seed(seed)
    return SSD(Tiny(), TINY_BOXES, num_classes, image_size)


# ---------------------------------------------------------------------------------------------------- d2l.ai's TinySSD


def down_sample_blk(in_channels: int, out_channels: int) -> nn.Sequential:
    blk: list[nn.Module] = []
    for _ in range(2):
        blk += [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
        in_channels = out_channels
    return nn.Sequential(*blk, nn.MaxPool2d(2))


class D2LTinySSD(nn.Module):
    """Section 14.7 of d2l.ai, without its anchors."""

    def __init__(self, num_classes: int, num_anchors: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        base_net = nn.Sequential(down_sample_blk(3, 16), down_sample_blk(16, 32), down_sample_blk(32, 64))
        deeper = [down_sample_blk(64, 128), down_sample_blk(128, 128), down_sample_blk(128, 128)]
        self.blk = nn.ModuleList([base_net, *deeper, nn.AdaptiveMaxPool2d((1, 1))])
        channels = [64, 128, 128, 128, 128]
        self.cls = nn.ModuleList(nn.Conv2d(c, num_anchors * (num_classes + 1), 3, padding=1) for c in channels)
        self.bbox = nn.ModuleList(nn.Conv2d(c, num_anchors * 4, 3, padding=1) for c in channels)

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        cls_preds, bbox_preds = [], []
        for blk, cls, bbox in zip(self.blk, self.cls, self.bbox, strict=True):
            X = blk(X)
            cls_preds.append(torch.flatten(cls(X).permute(0, 2, 3, 1), start_dim=1))
            bbox_preds.append(torch.flatten(bbox(X).permute(0, 2, 3, 1), start_dim=1))
        return torch.cat(cls_preds, dim=1).reshape(len(X), -1, self.num_classes + 1), torch.cat(bbox_preds, dim=1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_tiny_ssd_computes_what_d2l_computes(num_classes, training):
    """Compare on normalized pixels, with a last feature map of more than one cell."""
    theirs = with_statistics(D2LTinySSD(num_classes)).train(training)
    ours = tiny_ssd(num_classes, image_size=128).train(training)
    # The layers are in the same order, except for our normalization.
    weights = [name for name in ours.state_dict() if "normalize" not in name]
    ours.load_state_dict(dict(zip(weights, theirs.state_dict().values(), strict=True)), strict=False)

    pictures = random_pictures(2, 128, 128)
    predictions = ours(pictures)
    cls_preds, bbox_preds = theirs((pictures.float() - 127.5) / 63.75)
    torch.testing.assert_close(predictions.logits, cls_preds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictions.offsets.flatten(1), bbox_preds, rtol=1e-4, atol=1e-5)


def test_tiny_ssd_of_the_book():
    """Count 5444 default boxes and a million parameters at 256 × 256 pixels."""
    detector = tiny_ssd(image_size=256)
    assert detector.grids == [(32, 32), (16, 16), (8, 8), (4, 4), (1, 1)]
    assert detector.boxes_of_level == [4096, 1024, 256, 64, 4]
    assert detector.default_boxes.shape == (5444, 4)

    def convolution(channels_in: int, channels_out: int) -> int:
        return 3 * 3 * channels_in * channels_out + channels_out

    def block(channels_in: int, channels_out: int) -> int:
        batch_norms = 2 * 2 * channels_out
        return convolution(channels_in, channels_out) + convolution(channels_out, channels_out) + batch_norms

    blocks = sum(block(*pair) for pair in [(3, 16), (16, 32), (32, 64), (64, 128), (128, 128), (128, 128)])
    heads = sum(convolution(channels, 4 * 2) + convolution(channels, 4 * 4) for channels in [64, 128, 128, 128, 128])
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    assert parameters == blocks + heads == 1010376
    assert parameters == sum(parameter.numel() for parameter in D2LTinySSD(1).parameters())


# ------------------------------------------------------------------------------------- outputs and their default boxes


def test_every_output_belongs_to_its_default_box():
    """Predict the default boxes, by feature maps that hold the cells' centres and a head that adds each shape."""
    default_boxes, grids = DefaultBoxes([0.1, 0.3, 0.6, 0.9], [[2.0], [2.0, 3.0], []]), [(3, 5), (2, 2), (1, 4)]
    head = Head([2, 2, 2], default_boxes.boxes_per_cell, num_classes=3)
    for convolution, shapes in zip(head.localization, default_boxes.shapes(), strict=True):
        nn.init.zeros_(convolution.weight)
        for number, shape in enumerate(shapes):
            convolution.weight.data[4 * number, 0, 1, 1] = 1  # x
            convolution.weight.data[4 * number + 1, 1, 1, 1] = 1  # y
            convolution.bias.data[4 * number + 2 : 4 * number + 4] = shape
    features = [
        torch.stack(torch.meshgrid((torch.arange(c) + 0.5) / c, (torch.arange(r) + 0.5) / r, indexing="xy"))[None]
        for r, c in grids
    ]
    torch.testing.assert_close(head(features).offsets[0], default_boxes(grids, (30, 50)))


def test_every_class_has_its_logit():
    """Expect class c of the cell's box k at index k · (C + 1) + c."""
    head = Head([2], [4], num_classes=2)
    nn.init.zeros_(head.classification[0].weight)
    head.classification[0].bias.data = torch.arange(12.0)
    logits = head([torch.randn(1, 2, 3, 3)]).logits
    assert torch.equal(logits, torch.arange(12.0).view(4, 3).repeat(9, 1).unsqueeze(0))


@pytest.mark.parametrize("num_classes", [1, 20])
def test_shapes_of_predictions(num_classes):
    detector = tiny_ssd(num_classes)
    predictions = detector(random_pictures(3))
    assert predictions.logits.shape == (3, len(detector.default_boxes), num_classes + 1)
    assert predictions.offsets.shape == (3, len(detector.default_boxes), 4)


@pytest.mark.parametrize("image_size", [(64, 128), [64, 128]])
def test_rectangular_pictures(image_size):
    """Expect the height first, in pixels and in cells."""
    detector = tiny_ssd(image_size=image_size)
    assert detector.image_size == (64, 128)
    assert detector.grids == [(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)]
    assert len(detector.default_boxes) == 4 * (128 + 32 + 8 + 2 + 1)
    assert detector.default_boxes[4, 0].item() == pytest.approx(1.5 / 16)  # This is the second cell of the first row.
    assert len(detector(random_pictures(1, 64, 128)).logits[0]) == len(detector.default_boxes)
    with pytest.raises(ValueError, match=r"expected \(64, 128\) pixels \(height, width\), got \(128, 64\)"):
        detector(random_pictures(1, 128, 64))


def test_steps_are_of_the_image_size():
    boxes = DefaultBoxes(TINY_BOXES.scales, [[2]] * 5, steps=[8.0, 16.0, 32.0, 64.0, 64.0])
    detector = SSD(Tiny(), boxes, num_classes=1, image_size=(64, 128))
    assert torch.equal(detector.default_boxes, boxes(detector.grids, (64, 128)))


# ---------------------------------------------------------------------------------------------------- the same numbers


def test_bytes_and_floats_give_the_same():
    detector, pictures = with_statistics(tiny_ssd()).eval(), random_pictures(2)
    torch.testing.assert_close(detector(pictures), detector(pictures.float()), rtol=0, atol=0)


def test_normalization_by_hand():
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    scaled = Normalization(mean=[0.0, 50.0, 255.0], std=[1.0, 25.0, 3.0])(pixels)
    assert scaled.flatten().tolist() == [0, 2, 0]
    assert Tiny().normalize(torch.full((1, 3, 1, 1), 255.0)).flatten().tolist() == [2, 2, 2]
    assert Tiny().normalize(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [-2, -2, -2]


@pytest.mark.parametrize(("mean", "std"), [([0.0], [1.0] * 3), ([0.0] * 3, [1.0] * 4), ([0.0] * 3, [1.0, 0.0, 1.0])])
def test_normalization_refuses(mean, std):
    with pytest.raises(ValueError, match=r"(mean|std): expected a list of 3 numbers .*, got"):
        Normalization(mean, std)


def test_channels_last_gives_the_same():
    detector, pictures = with_statistics(tiny_ssd()).eval(), random_pictures(2)
    expected = detector(pictures)
    last = copy.deepcopy(detector).to(memory_format=torch.channels_last)
    predictions = last(pictures.to(memory_format=torch.channels_last))
    torch.testing.assert_close(predictions, expected, rtol=1e-4, atol=1e-5)


def test_state_dict_makes_the_same_detector():
    """Leave out the default boxes, which follow from the settings."""
    detector, other = with_statistics(tiny_ssd(seed=0)).eval(), tiny_ssd(seed=1).eval()
    pictures = random_pictures(1)
    assert not torch.equal(detector(pictures).logits, other(pictures).logits)
    assert "default_boxes" not in detector.state_dict()
    other.load_state_dict(detector.state_dict())
    torch.testing.assert_close(other(pictures), detector(pictures), rtol=0, atol=0)


def test_the_dry_run_leaves_the_backbone_alone():
    backbone = with_statistics(Tiny()).train()
    before = copy.deepcopy(backbone.state_dict())
    SSD(backbone, TINY_BOXES, num_classes=1, image_size=64)
    assert backbone.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_default_boxes_move_with_the_weights():
    detector = tiny_ssd().to("meta")
    assert detector.default_boxes.device.type == "meta"
    assert detector.default_boxes.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"num_classes": 0}, "num_classes: expected a whole number of at least 1, got 0", id="no class"),
        pytest.param({"image_size": 0}, "image_size: .* at least 1, got 0", id="no pixels"),
        pytest.param({"image_size": (64, -1)}, r"image_size: .* got \(64, -1\)", id="negative pixels"),
        pytest.param({"image_size": [64, 64, 3]}, r"image_size: .* got \[64, 64, 3\]", id="three numbers"),
        pytest.param(
            {"image_size": 32}, r"image_size: .* Tiny .* got \(32, 32\)", id="too small to be halved six times"
        ),
        pytest.param(
            {"default_boxes": DefaultBoxes([0.1, 0.2, 0.3], [[2.0], [2.0]])},
            r"scales: expected 6 numbers.* got \[0.1, 0.2, 0.3\]",
            id="another number of levels",
        ),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        SSD(**{"backbone": Tiny(), "default_boxes": TINY_BOXES, "num_classes": 1, "image_size": 64, **arguments})


@pytest.mark.parametrize("shape", [(32, 32), (64, 63), (256, 256)])
def test_refuses_pictures_of_another_size(shape):
    with pytest.raises(ValueError, match=rf"expected \(64, 64\) pixels .* got \({shape[0]}, {shape[1]}\)"):
        tiny_ssd()(random_pictures(1, *shape))
