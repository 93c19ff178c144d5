"""Checkpoints of strangers: whatever their config and their weights are, one line names the file."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detector_config import CONFIG, POSTPROCESS
from hydra.utils import instantiate
from one_line import refused
from torch import Tensor

from ssd_lightning.detector.model import SSD
from ssd_lightning.detector.weights import CONFIG_KEY
from ssd_lightning.structures import Batch, Objects
from ssd_lightning.training.callbacks import load_non_finite_batch
from ssd_lightning.training.checkpoint import detector_in, load_detector, rebuild, rebuild_part
from ssd_lightning.training.pretrained import load_pretrained

FILE = "some.ckpt"


@pytest.fixture(scope="module")
def model() -> SSD:
    return instantiate(CONFIG["model"], _convert_="all").eval()


def content(model: SSD) -> dict[str, Any]:
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    return {CONFIG_KEY: copy.deepcopy(CONFIG), "state_dict": state}


def endless() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["again"] = found
    return found


def nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def many_times() -> list[Any]:
    """A list of a few kilobytes that holds 10^40 values."""
    found: list[Any] = [0] * 10
    for _ in range(40):
        found = [found] * 10
    return found


TOO_MUCH = [endless(), nested(400), many_times()]
ODD_CLASSES = [None, 5, "b", "", [], {"a": 1}, [7], [None], [["a"]], [b"a"], ["a", "a"], [10**40], TOO_MUCH[2]]


@pytest.mark.parametrize("classes", ODD_CLASSES, ids=range(len(ODD_CLASSES)))
def test_class_names_are_a_list_of_texts(model: SSD, tmp_path: Path, classes: Any):
    stored = content(model)
    stored[CONFIG_KEY]["classes"] = classes
    with refused("checkpoint", FILE, "classes"):
        detector_in(stored, FILE)
    torch.save(stored, tmp_path / FILE)
    with refused("pretrained", FILE, "classes"):
        load_pretrained(copy.deepcopy(model), tmp_path / FILE, ["banana"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"_target_": "ssd_lightning.Tiny"},
        {**POSTPROCESS, "_partial_": True},
        {**POSTPROCESS, "max_detections": 10**12},
        {**POSTPROCESS, "class_agnostic": "no"},
        {"again": POSTPROCESS},
    ],
)
def test_the_post_processing_is_one(model: SSD, settings: dict[str, Any]):
    stored = content(model)
    stored[CONFIG_KEY]["postprocess"] = settings
    with refused("checkpoint", FILE):
        detector_in(stored, FILE)
    with refused("checkpoint", FILE):
        detector_in(stored, FILE, {"score_threshold": 0.5})


@pytest.mark.parametrize("too_much", TOO_MUCH, ids=["endless", "deep", "many"])
@pytest.mark.parametrize("part", ["model", "postprocess"])
def test_a_config_has_limits(model: SSD, part: str, too_much: Any):
    stored = content(model)
    stored[CONFIG_KEY][part]["x"] = too_much
    with refused("checkpoint", FILE, "expected at most"):
        detector_in(stored, FILE)


ODD_VALUES = [
    *(None, True, -1, 10**30, 10**5000, float("nan"), "a\nb", "???", "${a}", [[]], (1,), {1}, b"x", 1j),
    *({None: 1}, {(1, 2): 3}, {1: 2}, torch.zeros(2, 2), {"_target_": "a\nb"}, {"_target_": "ssd_lightning..Tiny"}),
]


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_recursive_", "_convert_", "_args_", "gone"])
def test_odd_values_of_a_config(key: str):
    tiny = {"_target_": "ssd_lightning.Tiny", "gone": 1}
    for value in ODD_VALUES:
        for config in ({"gone": 1, **POSTPROCESS, key: value}, {**POSTPROCESS, "gone": {**tiny, key: value}}):
            # A partial is refused by those who need the object.
            if key != "_partial_" or value is not True:
                with refused("checkpoint", FILE):
                    rebuild(config, FILE)


def first_weight(stored: dict[str, Any], change: Callable[[Tensor], Tensor], name: str = "model.backbone.") -> None:
    found = next(own for own in stored["state_dict"] if own.startswith(name) and own.endswith("weight"))
    stored["state_dict"][found] = change(stored["state_dict"][found])


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": Tensor.to_sparse,
    "without numbers": lambda value: value.to("meta"),
    "complex": lambda value: value.to(torch.complex64),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "whole numbers": Tensor.long,
    "switches": lambda value: value > 0,
    "beyond float16": lambda value: (value.abs() + 1).half() * 65504,
    "beyond float32": lambda value: (value.abs().double() + 1) * 1e300,
}


@pytest.mark.parametrize("name", ["model.backbone.", "model.head.classification."])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_an_odd_kind(model: SSD, tmp_path: Path, kind: str, name: str):
    stored = content(model)
    first_weight(stored, KINDS[kind], name)
    path = tmp_path / FILE
    torch.save(stored, path)
    with refused("checkpoint", FILE, "weight"):
        load_detector(path)
    for classes in (["banana"], ["plum"], None):
        with refused("pretrained", FILE, "weight"):
            load_pretrained(copy.deepcopy(model), path, classes)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(model: SSD, tmp_path: Path, kind: torch.dtype):
    stored = content(model)
    first_weight(stored, lambda value: value.to(kind))
    torch.save(stored, tmp_path / FILE)
    assert load_detector(tmp_path / FILE).classes == ("banana",)
    load_pretrained(copy.deepcopy(model), tmp_path / FILE)


@pytest.mark.parametrize(
    "state",
    [
        {"head.classification_head.module_list.0.weight": [4, 3, 3, 3]},
        {"head.classification_head.module_list.0.1.weight": []},
        {"head.classification_head.module_list.0.weight": [], "head.regression_head.module_list.0.weight": []},
        {"head.classification_head.module_list.0.weight": [1], "head.classification_head": [1]},
        {"loc.0.weight": [1], "vgg.0.weight": [1]},
        {"loc.0.weight": [], "vgg.0.weight": [], "conf.0.weight": [], "loc.0.bias": [], "conf.0.bias": []},
        {"head.classification.0.weight": []},
        {"head.classification.0.weight": [2, 2], "head.classification.99.weight": [2, 2], "backbone.x": [1]},
        {"head.classification.0.weight": [1], f"head.classification.{'9' * 5000}.weight": [1]},
        {"head.classification.0.weight": [0, 64, 3, 3]},
        {"a\nb": [1]},
    ],
)
def test_bare_weights_with_odd_entries(model: SSD, tmp_path: Path, state: dict[str, list[int]]):
    path = tmp_path / FILE
    torch.save({name: torch.zeros(shape) for name, shape in state.items()}, path)
    for classes in (["banana"], None):
        with refused("pretrained", FILE):
            load_pretrained(copy.deepcopy(model), path, classes)


def test_an_odd_head_beside_a_good_backbone_is_skipped(model: SSD, tmp_path: Path):
    for shape in ([], [0], [0, 8, 3, 3], [3]):
        stored = {name: value for name, value in model.state_dict().items() if "classification" not in name}
        stored["head.classification.0.weight"] = torch.zeros(shape)
        torch.save(stored, tmp_path / FILE)
        report = load_pretrained(copy.deepcopy(model), tmp_path / FILE, ["banana"])
        assert [name for name in report.skipped if name.startswith("head.classification.0.weight")]


@pytest.mark.parametrize("value", [None, 1, "false", []])
def test_antialias_is_true_or_false(model: SSD, tmp_path: Path, value: Any):
    stored = content(model)
    stored[CONFIG_KEY]["model"]["antialias"] = value
    torch.save(stored, tmp_path / FILE)
    with refused("checkpoint", FILE, "antialias"):
        load_detector(tmp_path / FILE)
    with refused("pretrained", FILE, "antialias"):
        load_pretrained(copy.deepcopy(model), tmp_path / FILE)


@pytest.mark.parametrize("stored", [None, 3, [], {}, {"config": 3}, {"config": {"matcher": 3}}])
def test_a_part_of_the_training_that_is_none(stored: object):
    with refused("checkpoint", FILE, "matcher"):
        rebuild_part({CONFIG_KEY: stored}, "matcher", FILE)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 3},
        {"batch": {}},
        {"batch": {"objects": {}}},
        {"evaluating": None},
        {"evaluating": [3]},
        {"precision": None},
        {"precision": []},
        {"image_ids": 3},
        {"boxes": None},
    ],
)
def test_a_batch_of_a_stranger(model: SSD, tmp_path: Path, change: dict[str, Any]):
    objects: dict[str, Any] = dict.fromkeys(Objects._fields, torch.zeros(1))
    batch = {**dict.fromkeys(Batch._fields, torch.zeros(1)), "objects": objects}
    stored = {**content(model), "batch": batch, "evaluating": [], "precision": "32-true"}
    for key, value in change.items():
        place = next((part for part in (objects, batch) if key in part), stored)
        place[key] = value
    torch.save(stored, tmp_path / FILE)
    with refused("checkpoint", FILE, "batch"):
        load_non_finite_batch(tmp_path / FILE)
