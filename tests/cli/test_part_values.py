"""Values of the arguments of all parts: a wrong one is refused in one line that begins with its whole key."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from small_module import module_of, small_config

from ssd_lightning.cli.errors import explain

pytestmark = pytest.mark.usefixtures("types_unchecked")

INFINITE, NAN = float("inf"), float("nan")
NO_NUMBER = ["abc", None, True, [1], [], {}, NAN, INFINITE, -INFINITE, -1]
NO_COUNT = [*NO_NUMBER, 1.5, 10**30]
NO_SWITCH = ["abc", "true", None, 3, 1, 0.0, [], {}]
NO_PART = ["abc", 3, True, [1], {"a": 1}]
NO_RATIOS = ["abc", True, 3, [NAN], [INFINITE], [1.0], [-2], [0], ["abc"], [None], [True], [[2]], [1e30]]

PARTS: dict[str, tuple[str, dict[str, list[Any]]]] = {
    "loss": ("MultiBoxLoss", {"alpha": [*NO_NUMBER, 1e30], "localization": NO_PART, "classification": NO_PART}),
    "loss.classification": (
        "MinedCrossEntropy",
        {"negative_ratio": NO_NUMBER, "min_negatives": NO_COUNT},
    ),
    "loss.classification ": ("FocalLoss", {"alpha": [*NO_NUMBER, 2], "gamma": [*NO_NUMBER, 1e30]}),
    "loss.localization": ("SmoothL1", {"sigma": [*NO_NUMBER, 0, 1e30, 1e-30]}),
    "loss.localization ": ("BoxIoULoss", {"kind": ["abc", None, True, 3, ["giou"], {}]}),
    "matcher": (
        "BoxMatcher",
        {
            "iou_threshold": [*NO_NUMBER, 0, 2],
            "background_threshold": [0, 0.7, 2, *(value for value in NO_NUMBER if value is not None)],
        },
    ),
    "postprocess": (
        "PostProcess",
        {
            "score_threshold": [*NO_NUMBER, 1],
            "nms_threshold": [*NO_NUMBER, 0, 2],
            "candidates_per_class": [*NO_COUNT, 0],
            "max_detections": [*NO_COUNT, 0, 10**9],
            "class_agnostic": NO_SWITCH,
        },
    ),
    "parameter_groups": (
        "ParameterGroups",
        {"backbone_lr_factor": [*NO_NUMBER, 1e30], "decay_norms_and_biases": NO_SWITCH},
    ),
    "box_scales": (
        "LinearScales",
        {"levels": [*NO_COUNT, 0, 1, 10**9], "smallest": [*NO_NUMBER, 0, 1e30], "largest": [*NO_NUMBER, 0, 1e30]},
    ),
    "aspect_ratios": (
        "AspectRatios",
        {"inner": [*NO_RATIOS, None], "outer": NO_RATIOS, "inverses": NO_SWITCH},
    ),
    "extra_layers": (
        "ExtraLayers",
        {
            "channels": ["abc", None, True, 3, [], [1], [2.5], [NAN], ["abc"], [True], [10**9], {}],
            "halve_above": [*NO_COUNT, 0],
            "last_kernel": [0, *(value for value in NO_COUNT if value is not None)],
            "depthwise": NO_SWITCH,
            "batch_norm": NO_SWITCH,
        },
    ),
    "backbone": (
        "Tiny",
        {
            "base_channels": ["abc", None, True, 3, [], [0], [2.5], [NAN], ["abc"], [10**9], {}],
            "channels": [*NO_COUNT, 0, 10**9],
        },
    ),
    "model": (
        "SSD",
        {
            "image_size": ["abc", None, True, 0, -64, 64.5, NAN, [64], [64, None], [64, 64, 64], [True, True], {}],
            "frozen_until": ["abc", 3, True, [1], ["levels"], ""],
            "frozen_batch_norm": NO_SWITCH,
            "antialias": NO_SWITCH,
            "default_boxes": [*NO_PART, None],
            "backbone": [*NO_PART, None],
            "extra_layers": NO_PART,
            "head": NO_PART,
        },
    ),
    "model.default_boxes": (
        "DefaultBoxes",
        {
            "scales": [
                "abc",
                None,
                3,
                [],
                [0.1],
                ["abc"] * 6,
                [NAN, 0.3, 0.4, 0.5, 0.6, 0.7],
                [1e30, 1e31],
                [True],
                {},
            ],
            "aspect_ratios": ["abc", None, 3, [[NAN]], [[1]] * 5, [2], ["abc"], [["abc"]], [[True]]],
            "steps": ["abc", 3, True, [], [1], [NAN, 1, 2, 3, 4], [0] * 5, ["abc"] * 5, [None] * 5, {}],
            "clip": [True, False, "abc", 3, ["size"], {}],
        },
    ),
}
"""The class of each part and wrong values of its arguments. A key with a space is a second class for it."""


ALONE = {"loss", "matcher", "parameter_groups", "postprocess"}
"""Groups that are built without the network."""


def group_of(part: str) -> str:
    return part.split(".")[0].strip()


def build(config: DictConfig, key: str, part: dict[str, Any]) -> None:
    """Build a part with its group, or the whole module."""
    group = group_of(key)
    if group not in ALONE:
        module_of({key: part})
        return
    alone = OmegaConf.create({group: OmegaConf.to_container(config[group])})
    OmegaConf.update(alone, key, part, merge=False, force_add=True)
    instantiate(alone, _convert_="all")


def cases(part: str, bad: dict[str, list[Any]]) -> Iterator[Any]:
    """Yield a test for each value. Where each builds a module, two of each argument are quick tests."""
    for name, values in bad.items():
        for place, value in enumerate(values):
            yield pytest.param(
                part, name, value, marks=[pytest.mark.slow] if place >= 2 and group_of(part) not in ALONE else []
            )


@pytest.mark.parametrize(
    ("part", "name", "value"), [case for part, (_, bad) in PARTS.items() for case in cases(part, bad)]
)
def test_a_wrong_value_is_refused_by_its_key(part: str, name: str, value: Any):
    key = part.strip()
    config = small_config("model.image_size=64")
    former = OmegaConf.to_container(OmegaConf.select(config, key)) if not key.startswith("box") else {}
    assert isinstance(former, dict)
    other = {**former, "_target_": f"ssd_lightning.{PARTS[part][0]}", name: value}
    with pytest.raises((InstantiationException, ValueError)) as caught:
        build(config, key, other)
    text = explain(caught.value)
    assert text is not None
    assert re.match(rf"{re.escape(key)}\.{name}(\.\d+)?: expected .*got ", text), text
    assert "\n" not in text


AUGMENTATIONS: dict[str, dict[str, list[Any]]] = {
    "Augmentation": {
        "horizontal_flip": [*NO_NUMBER, 2],
        "vertical_flip": [*NO_NUMBER, 2],
        "windows": ["abc", None, True, [1], ["abc"], [None], {}],
        "colours": ["abc", None, True, [1], ["abc"], [None], {}],
    },
    "ZoomIn": {"probability": [*NO_NUMBER, 2], "largest": [*NO_NUMBER, 0.5, 1e30]},
    "ZoomOut": {"probability": [*NO_NUMBER, 2], "largest": [*NO_NUMBER, 0.5, 1e30]},
    "MinIoUCrop": {
        "min_ious": ["abc", None, 0.5, True, [], [NAN], [1.0], ["abc"], [True], {}],
        "shortest_side": [*NO_NUMBER, 0, 2],
        "aspect_ratio": ["abc", None, 0.5, [], [1.0], [NAN, 1], [2, 1], [1, INFINITE], ["a", "b"], [1, 2, 3], {}],
        "trials": [*NO_COUNT, 0, 10**9],
    },
    "BrightnessContrast": {name: [*NO_NUMBER, 1] for name in ("brightness", "contrast", "tint")},
    "PhotometricDistortion": {
        name: [*NO_NUMBER, 1000]
        for name in ("probability", "brightness", "contrast", "saturation", "hue", "shuffled_channels")
    },
    "AdaptiveMatcher": {"candidates": [*NO_COUNT, 0], "iou_threshold": [*NO_NUMBER, 0, 2]},
    "AveragedWeights": {"decay": [*NO_NUMBER, 1, 2]},
    "HeadsFirst": {"epochs": [value for value in NO_COUNT if value is not None]},
    "SaveEverySteps": {"every_n_train_steps": [*NO_COUNT, 0]},
}
"""Wrong values of the arguments of parts that are built alone."""


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [(target, name, value) for target, bad in AUGMENTATIONS.items() for name in bad for value in bad[name]],
)
def test_a_wrong_value_of_an_augmentation_or_another_part_is_refused_by_its_key(target: str, name: str, value: Any):
    config = OmegaConf.create({"group": {"part": {"_target_": f"ssd_lightning.{target}", name: value}}})
    with pytest.raises(InstantiationException) as caught:
        instantiate(config, _convert_="all")
    text = explain(caught.value)
    assert text is not None
    assert re.match(rf"group\.part\.{name}: expected .*got ", text), text
    assert "\n" not in text
