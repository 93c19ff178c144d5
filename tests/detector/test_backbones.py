"""Backbones, compared with torchvision's networks with the same weights, which come from files or by name.

No test downloads anything: a stand-in answers for torch's downloader.
"""

import io
from copy import deepcopy
from email.message import Message
from functools import cache
from pathlib import Path
from urllib.error import HTTPError, URLError

import jaxtyping
import pytest
import torch
from small_detectors import random_pictures, with_statistics
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms.functional import normalize

from ssd_lightning.detector.backbones.torchvision_features import TorchvisionFeatures
from ssd_lightning.detector.backbones.vgg import VGG16, L2Norm
from ssd_lightning.detector.default_boxes import DefaultBoxes
from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.weights import read_weights, state_dict

CONVOLUTIONS = [
    ("conv1_1", 0, 3, 64),
    ("conv1_2", 2, 64, 64),
    ("conv2_1", 5, 64, 128),
    ("conv2_2", 7, 128, 128),
    ("conv3_1", 10, 128, 256),
    ("conv3_2", 12, 256, 256),
    ("conv3_3", 14, 256, 256),
    ("conv4_1", 17, 256, 512),
    ("conv4_2", 19, 512, 512),
    ("conv4_3", 21, 512, 512),
    ("conv5_1", 24, 512, 512),
    ("conv5_2", 26, 512, 512),
    ("conv5_3", 28, 512, 512),
]
"""Configuration D of arXiv 1409.1556: name in the paper, number in torchvision, channels in and out."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and std of pixels in 0 … 1."""


def scaled(pictures: Tensor, mean, std) -> Tensor:
    """Normalize as torchvision's transforms do."""
    return normalize(pictures.float() / 255, list(mean), list(std))


def assert_same_maps(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Compare up to rounding relative to a map's largest value, because pixels are normalized in other steps."""
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert their.abs().max() > 0  # Two dead networks would agree as well.
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4 * their.abs().max().item())


def write(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return str(path)


def like(network: str) -> dict[str, Tensor]:
    """Return weights of a classifier that share a single zero, so that their file is small."""
    with torch.device("meta"):
        classifier = models.get_model(network)
    return {n: torch.zeros((), dtype=v.dtype).expand(v.shape) for n, v in classifier.state_dict().items()}


class RunsCode:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


# --------------------------------------------------------------------------------------------------------------- VGG16


def torchvision_extractor() -> SSDFeatureExtractorVGG:
    """Make SSD300's backbone without extra layers, with random biases and factors."""
    torch.manual_seed(0)
    extractor = SSDFeatureExtractorVGG(nn.Sequential(*make_layers(cfgs["D"], batch_norm=False)), highres=False)
    del extractor.extra[1:]
    for name, parameter in extractor.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, -0.1, 0.1)
    nn.init.uniform_(extractor.scale_weight, 10, 30)
    return extractor.eval()


CAFFE = (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)
"""Mean and std of ssd300_vgg16 for pixels in 0 … 1: Caffe's mean, and pixels that stay in 0 … 255."""


@pytest.fixture(scope="module")
def same_vgg16() -> tuple[SSDFeatureExtractorVGG, VGG16]:
    """Return torchvision's network, and ours with its weights."""
    mean, std = CAFFE
    theirs, ours = torchvision_extractor(), VGG16(mean=[255 * m for m in mean], std=[255 * s for s in std]).eval()
    convolutions = [m for m in [*theirs.features, *theirs.extra[0].modules()] if isinstance(m, nn.Conv2d)]
    for name, convolution in zip([*(row[0] for row in CONVOLUTIONS), "fc6", "fc7"], convolutions, strict=True):
        ours.get_submodule(name).load_state_dict(convolution.state_dict())
    ours.l2_norm.weight.data.copy_(theirs.scale_weight)
    return theirs, ours


@pytest.mark.parametrize("size", [(150, 150), (97, 130), (64, 33), (16, 16)])
@torch.no_grad()
def test_vgg16_computes_what_torchvision_computes(same_vgg16, size):
    """Test sides that are odd at some pooling; at 16 pixels fc7 sees a single cell."""
    theirs, ours = same_vgg16
    pictures = random_pictures(2, *size)
    maps = theirs(scaled(pictures, *CAFFE))
    assert_same_maps(ours(pictures), [maps["0"], maps["1"]])


@pytest.mark.parametrize(("side", "grids"), [(300, (38, 19)), (512, (64, 32))])
def test_vgg16_grids_of_the_paper(side, grids):
    with torch.device("meta"):
        maps = VGG16()(torch.empty(1, 3, side, side))
    assert [tuple(m.shape) for m in maps] == [(1, 512, grids[0], grids[0]), (1, 1024, grids[1], grids[1])]


def test_vgg16_has_the_published_number_of_parameters():
    """Count 14,714,688 before fc6, fc6 and fc7 as convolutions, and a factor per channel of conv4_3."""
    with torch.device("meta"):
        vgg = VGG16()
    trunk = sum(3 * 3 * before * after + after for _, _, before, after in CONVOLUTIONS)
    assert trunk == 14_714_688
    fc6, fc7, factors = 3 * 3 * 512 * 1024 + 1024, 1024 * 1024 + 1024, 512
    assert sum(p.numel() for p in vgg.parameters()) == trunk + fc6 + fc7 + factors == 20_484_416


def test_l2_norm_by_a_loop():
    """Include a cell of zeros, which stays zero, and a cell with one large number."""
    features = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    features[0, :, 0, 0] = 0
    features[1, :, 1, 2] = torch.tensor([0.0, 1e6, 0.0])
    norm = L2Norm(3, scale=2.0)
    norm.weight.data = torch.tensor([2.0, -3.0, 0.5])
    expected = torch.empty_like(features)
    for picture in range(2):
        for row in range(2):
            for column in range(3):
                cell = features[picture, :, row, column].tolist()
                length = sum(value**2 for value in cell) ** 0.5
                for channel, value in enumerate(cell):
                    factor = norm.weight[channel].item()
                    expected[picture, channel, row, column] = factor * value / length if length else 0
    torch.testing.assert_close(norm(features), expected)
    assert torch.equal(L2Norm(4).weight, torch.full((4,), 20.0))  # section 3.1 of the paper


# -------------------------------------------------------------------------------------------- VGG16: weights from files


def vgg_trunk(prefix: str = "features.") -> dict[str, Tensor]:
    """Make the convolutions under torchvision's numbers."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for _, number, before, after in CONVOLUTIONS:
        state[f"{prefix}{number}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * before**-0.5 / 3
        state[f"{prefix}{number}.bias"] = torch.randn(after, generator=generator) * 0.1
    return state


def vgg_fully_connected(only_nan: bool = False) -> dict[str, Tensor]:
    """Make three layers of 4096, 4096 and 1000 outputs.

    Full layers would take half a gigabyte. Here rows and columns are steps through a short list. The steps have no
    common factor, so that a wrong row or column still gives another number.
    """
    if only_nan:
        nan = torch.tensor(float("nan"))
        shapes = [(4096, 25088), (4096, 4096), (1000, 4096)]
        weights = [nan.expand(shape) for shape in shapes]
        biases = [nan.expand(shape[0]) for shape in shapes]
    else:
        generator = torch.Generator().manual_seed(4)
        weights = [
            torch.randn(600_000, generator=generator).as_strided((4096, 25088), (101, 3)),
            torch.randn(600_000, generator=generator).as_strided((4096, 4096), (31, 7)),
            torch.zeros(()).expand(1000, 4096),
        ]
        biases = [torch.randn(4096, generator=generator), torch.randn(4096, generator=generator), torch.zeros(1000)]
    names = ("classifier.0", "classifier.3", "classifier.6")
    return {
        **{f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)},
        **{f"{name}.bias": bias for name, bias in zip(names, biases, strict=True)},
    }


def assert_trunk_is(vgg: VGG16, state: dict[str, Tensor], prefix: str = "features.") -> None:
    for name, number, _, _ in CONVOLUTIONS:
        convolution = vgg.get_submodule(name)
        assert torch.equal(convolution.weight, state[f"{prefix}{number}.weight"]), name
        assert torch.equal(convolution.bias, state[f"{prefix}{number}.bias"]), name


def test_vgg16_subsamples_the_fully_connected_layers(tmp_path: Path):
    """Keep cells 0, 3 and 6 of 7×7, and outputs 0, 4, 8 and so on of 4096."""
    state = {**vgg_trunk(), **vgg_fully_connected()}
    vgg = VGG16(write(tmp_path / "vgg16.pth", state))
    assert_trunk_is(vgg, state)
    first, second = state["classifier.0.weight"], state["classifier.3.weight"]
    corners = [(o, c, row, column) for o in (0, 1023) for c in (0, 511) for row in (0, 2) for column in (0, 2)]
    generator = torch.Generator().manual_seed(5)
    chosen = [[int(torch.randint(n, (), generator=generator)) for n in (1024, 512, 3, 3)] for _ in range(300)]
    for out, channel, row, column in [*corners, *chosen]:
        # The classifier flattens (512, 7, 7): channel, row, column.
        assert vgg.fc6.weight[out, channel, row, column] == first[4 * out, channel * 49 + 3 * row * 7 + 3 * column]
        assert vgg.fc7.weight[out, 2 * channel, 0, 0] == second[4 * out, 4 * 2 * channel]
        assert vgg.fc6.bias[out] == state["classifier.0.bias"][4 * out]
        assert vgg.fc7.bias[out] == state["classifier.3.bias"][4 * out]


def test_vgg16_does_not_read_a_classifier_of_nan(tmp_path: Path):
    """Initialize fc6 and fc7 instead: torchvision's file of features alone has such a classifier."""
    state = {**vgg_trunk(), **vgg_fully_connected(only_nan=True)}
    vgg = VGG16(write(tmp_path / "features.pth", state))
    assert_trunk_is(vgg, state)
    for layer in (vgg.fc6, vgg.fc7):
        assert layer.weight.isfinite().all()
        assert layer.weight.std() > 0
        assert torch.equal(layer.bias, torch.zeros(1024))


def test_vgg16_reads_the_file_of_the_amdegroot_repository(tmp_path: Path):
    """Read ``vgg16_reducedfc.pth``: numbers without a prefix, and fc6 and fc7 as convolutions 31 and 33."""
    generator = torch.Generator().manual_seed(6)
    state = {
        **vgg_trunk(prefix=""),
        "31.weight": torch.randn(1024, 512, 3, 3, generator=generator),
        "31.bias": torch.randn(1024, generator=generator),
        "33.weight": torch.randn(1024, 1024, 1, 1, generator=generator),
        "33.bias": torch.randn(1024, generator=generator),
    }
    vgg = VGG16(write(tmp_path / "vgg16_reducedfc.pth", state))
    assert_trunk_is(vgg, state, prefix="")
    for number, layer in ((31, vgg.fc6), (33, vgg.fc7)):
        assert torch.equal(layer.weight, state[f"{number}.weight"])
        assert torch.equal(layer.bias, state[f"{number}.bias"])
    # Caffe's mean, by the layout: section 3 of the paper, BGR 104, 117, 123.
    assert vgg.normalize.mean.flatten().tolist() == [123, 117, 104]
    assert vgg.normalize.std.flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_weights_may_be_nested_in_the_file(key):
    state = {"conv.weight": torch.zeros(1), "module.conv.bias": torch.ones(1)}
    content = state if key is None else {key: state, "epoch": 3}
    assert state_dict(content, "file.pth") == {"conv.weight": torch.zeros(1), "conv.bias": torch.ones(1)}


def test_vgg16_reverses_weights_for_blue_first(tmp_path: Path):
    """Reverse the input channels of the first convolution; mean and std are red first anyway."""
    state = vgg_trunk()
    mean = [100.0, 110.0, 120.0]
    vgg = VGG16(write(tmp_path / "vgg16.pth", state), mean, [50.0, 60.0, 70.0], bgr=True)
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    assert_trunk_is(vgg, state)
    assert vgg.normalize.mean.flatten().tolist() == mean


@pytest.mark.parametrize("network", ["resnet18", "alexnet", "vgg16_bn", "mobilenet_v3_large"])
def test_vgg16_refuses_the_weights_of_another_network(tmp_path: Path, network):
    """Include MobileNetV3, which also has a ``classifier.0`` and a ``classifier.3``."""
    file = write(tmp_path / f"{network}.pth", like(network))
    with pytest.raises(ValueError, match=f"weights: expected .* VGG16, got .*{network}.pth"):
        VGG16(file)


# ---------------------------------------------------------------------------------------- files that are no state dict


@pytest.mark.parametrize("make", [VGG16, lambda weights: TorchvisionFeatures("resnet18", ["layer2"], weights)])
class TestFiles:
    def test_a_missing_file_is_refused_with_the_known_names(self, make, tmp_path: Path):
        missing = str(tmp_path / "nowhere.pth")
        with pytest.raises(ValueError, match=rf"weights: .*IMAGENET1K_V1.*DEFAULT for \w+, got '{missing}'"):
            make(missing)

    def test_a_folder_is_refused(self, make, tmp_path: Path):
        with pytest.raises(ValueError, match="weights: expected a file"):
            make(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>"], ids=["empty", "a web page"])
    def test_a_file_of_something_else_is_refused(self, make, tmp_path: Path, content):
        file = tmp_path / "weights.pth"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"weights: .*{file}, which cannot be read"):
            make(str(file))

    def test_half_a_file_is_refused(self, make, tmp_path: Path):
        file = tmp_path / "weights.pth"
        write(file, {"features.0.weight": torch.randn(100, 100)})
        file.write_bytes(file.read_bytes()[:20_000])
        with pytest.raises(ValueError, match=rf"weights: .*{file}, which cannot be read"):
            make(str(file))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([torch.zeros(1)], "holds a list"),
            ({}, "holds no weights by name"),
            ({"features.0.weight": 3}, "holds no weights by name"),
            ({"state_dict": {"features.0.weight": [0.0]}}, "holds no weights by name"),
        ],
    )
    def test_a_file_without_tensors_by_name_is_refused(self, make, tmp_path: Path, content, message):
        file = write(tmp_path / "weights.pth", content)
        with pytest.raises(ValueError, match=f"weights: .*{file}, which {message}"):
            make(file)

    def test_a_file_cannot_run_code(self, make, tmp_path: Path):
        marker = tmp_path / "was run"
        file = write(tmp_path / "weights.pth", RunsCode(marker))
        torch.load(file, weights_only=False)
        assert marker.exists()  # The file does run code where that is allowed.
        marker.unlink()
        with pytest.raises(ValueError, match=rf"weights: .*{file}, which cannot be read"):
            make(file)
        assert not marker.exists()


# --------------------------------------------------------------------------------- classifiers of torchvision: features


@cache
def classifier_with_statistics(network: str, **options) -> nn.Module:
    """Make a classifier with random batch norms, because those of a new one do nothing."""
    torch.manual_seed(0)
    return with_statistics(models.get_model(network, weights=None, **options))


def random_classifier(network: str, **options) -> nn.Module:
    return deepcopy(classifier_with_statistics(network, **options))


@torch.no_grad()
def maps_inside(classifier: nn.Module, nodes: list[str], inputs: Tensor) -> list[Tensor]:
    """Return the outputs of layers while the classifier classifies."""
    maps: dict[str, Tensor] = {}
    hooks = [
        classifier.get_submodule(node).register_forward_hook(
            lambda layer, inputs, output, node=node: maps.update({node: output.clone()})
        )
        for node in nodes
    ]
    classifier(inputs)
    for hook in hooks:
        hook.remove()
    return [maps[node] for node in nodes]


NODES = {
    "resnet18": ["layer2", "layer3", "layer4"],
    "mobilenet_v2": ["features.14.conv.0", "features.18"],
    "mobilenet_v3_large": ["features.13.block.0", "features.16"],
    "efficientnet_b0": ["features.3", "features.5", "features.8"],
}


@pytest.mark.parametrize(
    ("network", "training"),
    # EfficientNet drops whole blocks at random in training.
    [(n, training) for n in NODES for training in (False, True) if not (training and n == "efficientnet_b0")],
)
@torch.no_grad()
def test_features_are_those_inside_the_classifier(tmp_path: Path, network, training):
    """Read the weights from a file; sides of 70 and 97 pixels become odd in the network."""
    classifier = random_classifier(network)
    features = TorchvisionFeatures(network, NODES[network], write(tmp_path / "weights.pth", classifier.state_dict()))
    pictures = random_pictures(2, 70, 97)
    expected = maps_inside(classifier.train(training), NODES[network], scaled(pictures, *IMAGENET))
    assert_same_maps(features.train(training)(pictures), expected)


@torch.no_grad()
def test_statistics_move_in_training_alone():
    features = TorchvisionFeatures("resnet18", ["layer1"])
    before = features.body.bn1.running_mean.clone()
    features.eval()(random_pictures(2))
    assert torch.equal(features.body.bn1.running_mean, before)
    features.train()(random_pictures(2))
    assert not torch.equal(features.body.bn1.running_mean, before)


def test_layers_after_the_last_map_are_left_out():
    names = [name for name, _ in TorchvisionFeatures("resnet18", ["layer2"]).named_parameters()]
    assert names
    assert not [name for name in names if "layer3" in name or "layer4" in name or "fc" in name]


@torch.no_grad()
def test_a_layer_left_out_is_left_out(tmp_path: Path):
    """Remove the max-pool, which makes ResNet's grids twice as fine, and a block."""
    classifier = random_classifier("resnet18")
    file = write(tmp_path / "weights.pth", classifier.state_dict())
    features = TorchvisionFeatures("resnet18", ["layer2", "layer3"], file, without=["maxpool", "layer1.1"]).eval()
    classifier.maxpool, classifier.layer1[1] = nn.Identity(), nn.Identity()
    pictures = random_pictures(2)
    maps = features(pictures)
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 16), (8, 8)]
    assert_same_maps(maps, maps_inside(classifier.eval(), ["layer2", "layer3"], scaled(pictures, *IMAGENET)))


@pytest.mark.parametrize("name", ["maxpol", "layer9.0", "layer1.7"])
def test_a_layer_to_leave_out_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"without: expected layers of resnet18 .*, got '{name}'"):
        TorchvisionFeatures("resnet18", ["layer2"], without=[name])


@torch.no_grad()
def test_lift_is_a_convolution_of_each_map_alone(tmp_path: Path):
    """Compare with the formulas of a 1×1 convolution, a batch norm and a ReLU."""
    classifier = random_classifier("resnet18")
    file = write(tmp_path / "weights.pth", classifier.state_dict())
    features = TorchvisionFeatures("resnet18", ["layer3", "layer4"], file, lift=[24, 40]).eval()
    pictures = random_pictures(2)
    plain = maps_inside(classifier.eval(), ["layer3", "layer4"], scaled(pictures, *IMAGENET))
    expected = []
    for (convolution, norm, _), each in zip(features.lift, plain, strict=True):
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        lifted = torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], each)
        mean, variance, weight, bias = (
            v.view(-1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        expected.append(((lifted - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0))
    maps = features(pictures)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 4, 4), (2, 40, 2, 2)]
    assert_same_maps(maps, expected)


@pytest.mark.parametrize("lift", [[], [64], [64, 64, 64]])
def test_lift_is_for_each_map(lift):
    with pytest.raises(ValueError, match=r"lift: expected .* got \["):
        TorchvisionFeatures("resnet18", ["layer2", "layer3"], lift=lift)


def test_options_reach_the_classifier():
    """Halve the channels of the tail, as in torchvision's SSDLite320, or all channels."""
    with torch.device("meta"):
        nodes, pictures = ["features.13.block.0", "features.16"], torch.empty(1, 3, 64, 64)
        whole = TorchvisionFeatures("mobilenet_v3_large", nodes)(pictures)
        reduced = TorchvisionFeatures("mobilenet_v3_large", nodes, options={"reduced_tail": True})(pictures)
        thin = TorchvisionFeatures("mobilenet_v2", ["features.1"], options={"width_mult": 0.5})(pictures)
    assert [m.shape[1] for m in whole] == [672, 960]
    assert [m.shape[1] for m in reduced] == [672, 480]
    assert [m.shape[1] for m in thin] == [8]


def test_a_file_for_ten_classes_is_read_with_that_option(tmp_path: Path):
    file = write(tmp_path / "ten.pth", random_classifier("resnet18", num_classes=10).state_dict())
    TorchvisionFeatures("resnet18", ["layer2"], file, options={"num_classes": 10})
    with pytest.raises(ValueError, match=r"weights: expected .* resnet18, got .*ten.pth .*fc.weight"):
        TorchvisionFeatures("resnet18", ["layer2"], file)


@torch.no_grad()
@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_large"])
def test_features_reverse_weights_for_blue_first(tmp_path: Path, network):
    file = write(tmp_path / "weights.pth", random_classifier(network).state_dict())
    mean, std, nodes = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0], NODES[network][:1]
    red_first = TorchvisionFeatures(network, nodes, file, mean, std, bgr=True).eval()
    blue_first = TorchvisionFeatures(network, nodes, file, mean[::-1], std[::-1]).eval()
    pictures = random_pictures(1)
    expected = blue_first(pictures.flip(1))
    assert_same_maps(red_first(pictures), expected)
    assert not torch.allclose(blue_first(pictures)[0], expected[0], rtol=0.01)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(("network", "other"), [("resnet18", "mobilenet_v2"), ("mobilenet_v2", "resnet18")])
def test_features_refuse_the_weights_of_another_network(tmp_path: Path, network, other, bgr):
    file = write(tmp_path / f"{other}.pth", like(other))
    with pytest.raises(ValueError, match=f"weights: expected .* {network}, got .*{other}.pth"):
        TorchvisionFeatures(network, NODES[network], file, bgr=bgr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"network": "resnet19"}, "network: .* got 'resnet19'. Try .*resnet18", id="a slip"),
        pytest.param({"network": ""}, "network: .* got ''", id="no name"),
        pytest.param({"network": "ssd300_vgg16"}, "network: .* got 'ssd300_vgg16'", id="a detector"),
        pytest.param({"nodes": ["layer5"]}, r"nodes: .*resnet18 .*layer4.* got \['layer5'\]", id="a node"),
        pytest.param({"nodes": ["layer2", "layer"]}, r"nodes: .*resnet18 .* got .*'layer'", id="half a name"),
        pytest.param({"options": {"reduced_tail": True}}, "options: .*resnet18.*reduced_tail", id="an option"),
        pytest.param({"mean": [1.0, 2.0]}, r"mean: .* got \[1.0, 2.0\]", id="two means"),
        pytest.param({"std": [1.0, 0.0, 1.0]}, r"std: .* \[1.0, 0.0, 1.0\]", id="a std of 0"),
    ],
)
def test_features_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionFeatures(**{"network": "resnet18", "nodes": ["layer2"], **arguments})


def test_outputs_that_are_not_maps_are_refused_by_the_detector(monkeypatch: pytest.MonkeyPatch):
    # The tests' own check of the signature would fail first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    flat = TorchvisionFeatures("resnet18", ["layer4", "flatten"])
    with pytest.raises(ValueError, match=r"expected feature maps \(batch, .*, got .*\(\d, 512\)\]"):
        SSD(flat, DefaultBoxes([0.2, 0.4, 0.6], [[2.0]] * 2), num_classes=1, image_size=64)


# -------------------------------------------------------------------------------------- torchvision's weights by name


class Response(io.BytesIO):
    """A response without headers."""

    def info(self) -> Message:
        return Message()


class Hub:
    """torch's download folder, and the answer of the server, which is unreachable by default."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer: bytes | Exception = URLError("no route to host")
        self.asked: list[str] = []

    def urlopen(self, request):
        self.asked.append(request.full_url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Response(self.answer)

    def put(self, weights, state) -> Path:
        """Write weights where torch looks for them."""
        path = self.folder / "checkpoints" / weights.url.rpartition("/")[2]
        write(path, state)
        return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "home" / "hub")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", hub.urlopen)
    return hub


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet:FutureWarning")
@pytest.mark.parametrize(
    ("network", "node"),
    [
        ("resnet18", "layer2"),
        ("mobilenet_v3_large", "features.7"),
        ("efficientnet_b0", "features.3"),
        # The network itself converts ImageNet's normalization to −1 … 1.
        ("googlenet", "maxpool2"),
    ],
)
@torch.no_grad()
def test_features_by_name_are_those_of_torchvision(hub, network, node):
    weights = models.get_model_weights(network)["IMAGENET1K_V1"]
    # torchvision builds some classifiers differently with weights: other auxiliary heads, another initialization.
    options = {"init_weights": False} if network == "googlenet" else {}
    hub.put(weights, random_classifier(network, **options).state_dict())
    classifier = models.get_model(network, weights=weights).eval()
    preset = weights.transforms()
    pictures = random_pictures(2)
    expected = maps_inside(classifier, [node], scaled(pictures, preset.mean, preset.std))

    features = TorchvisionFeatures(network, [node], "IMAGENET1K_V1", options=options).eval()
    assert_same_maps(features(pictures), expected)
    assert not hub.asked  # The file was there.


@torch.no_grad()
def test_mean_and_std_come_with_the_weights_and_stay_in_the_state_dict(hub):
    """Take them from ResNet's weights, from arguments, and from a state dict."""
    classifier = random_classifier("resnet18")
    hub.put(models.ResNet18_Weights.IMAGENET1K_V1, classifier.state_dict())
    features = TorchvisionFeatures("resnet18", ["layer1"], "DEFAULT").eval()
    assert features.normalize.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert features.normalize.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])

    own = TorchvisionFeatures("resnet18", ["layer1"], "DEFAULT", mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]).eval()
    assert own.normalize.mean.flatten().tolist() == [1, 2, 3]
    assert own.normalize.std.flatten().tolist() == [4, 5, 6]
    again, pictures = TorchvisionFeatures("resnet18", ["layer1"]).eval(), random_pictures(1)
    again.load_state_dict(own.state_dict())
    assert again.normalize.mean.flatten().tolist() == [1, 2, 3]
    torch.testing.assert_close(again(pictures), own(pictures), rtol=0, atol=0)


def test_mean_and_std_of_caffes_vgg16(hub):
    """Take Caffe's mean where torchvision's weights are Caffe's."""
    mean = pytest.approx([255 * m for m in CAFFE[0]])
    hub.put(models.VGG16_Weights.IMAGENET1K_FEATURES, vgg_trunk())
    read = read_weights("vgg16", "IMAGENET1K_FEATURES")
    assert read.mean == mean
    assert read.std == pytest.approx([1, 1, 1])
    vgg = VGG16("IMAGENET1K_FEATURES")
    assert_trunk_is(vgg, vgg_trunk())
    assert vgg.state_dict()["normalize.mean"].flatten().tolist() == mean
    assert vgg.state_dict()["normalize.std"].flatten().tolist() == pytest.approx([1, 1, 1])


def test_vgg16_of_imagenet_has_imagenets_mean_and_std(hub):
    hub.put(models.VGG16_Weights.IMAGENET1K_V1, vgg_trunk())
    vgg = VGG16("DEFAULT")
    assert_trunk_is(vgg, vgg_trunk())
    assert vgg.normalize.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert vgg.normalize.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(URLError("no route to host"), id="no network"),
        pytest.param(HTTPError("https://nowhere", 404, "Not Found", Message(), None), id="not found"),
        pytest.param(TimeoutError("timed out"), id="slow"),
        pytest.param(ConnectionResetError("reset by peer"), id="reset"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>Please log in to the guest network</html>", id="another hash"),
    ],
)
@pytest.mark.parametrize(
    ("make", "weights"),
    [
        pytest.param(lambda: VGG16("DEFAULT"), models.VGG16_Weights.DEFAULT, id="vgg16"),
        pytest.param(
            lambda: TorchvisionFeatures("resnet18", ["layer2"], "IMAGENET1K_V1"),
            models.ResNet18_Weights.IMAGENET1K_V1,
            id="resnet18",
        ),
    ],
)
def test_a_failed_download_says_which_file_to_put_where(hub, make, weights, answer):
    hub.answer = answer
    place = hub.folder / "checkpoints" / weights.url.rpartition("/")[2]
    with pytest.raises(ValueError, match=rf"weights: .*{weights.url}.* Try .* {place}"):
        make()
    assert hub.asked == [weights.url]
    assert not place.exists()  # A partial download must not count as the file next time.


@pytest.mark.parametrize("kind", ["half", "empty", "a web page", "code"])
def test_a_damaged_download_is_refused_by_its_path(hub, tmp_path: Path, kind):
    """Refuse a file that is already in the download folder, whose hash torch does not check."""
    file = hub.put(models.ResNet18_Weights.IMAGENET1K_V1, random_classifier("resnet18").state_dict())
    marker = tmp_path / "was run"
    if kind == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "code":
        write(file, RunsCode(marker))
    else:
        file.write_bytes(b"" if kind == "empty" else b"<html>404</html>")
    with pytest.raises(ValueError, match=f"weights: .*{file}"):
        TorchvisionFeatures("resnet18", ["layer2"], "IMAGENET1K_V1")
    assert not marker.exists()


def test_a_download_of_another_network_is_refused_by_its_path(hub):
    file = hub.put(models.ResNet18_Weights.IMAGENET1K_V1, like("mobilenet_v2"))
    with pytest.raises(ValueError, match=f"weights: expected .* resnet18, got {file}"):
        TorchvisionFeatures("resnet18", ["layer2"], "IMAGENET1K_V1")


@pytest.mark.parametrize("name", ["imagenet1k_v1", "IMAGENET1K_V7", "default", ""])
def test_an_unknown_name_is_refused_without_a_download(hub, name):
    with pytest.raises(ValueError, match=f"one of IMAGENET1K_V1, DEFAULT for resnet18, got '{name}'"):
        TorchvisionFeatures("resnet18", ["layer2"], name)
    assert not hub.asked
