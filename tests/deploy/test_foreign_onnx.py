"""ONNX files of strangers: whatever their metadata and their graph are, one line names the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from one_line import refused
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor,
    make_tensor_value_info,
    set_model_props,
)

from ssd_lightning.deploy.benchmark import onnx_runner
from ssd_lightning.deploy.export import FINAL_OUTPUTS, INPUT, METADATA_KEY, RAW_OUTPUTS
from ssd_lightning.deploy.onnx_detector import OnnxDetector

U8, F32, I64, F64 = (getattr(onnx.TensorProto, name) for name in ("UINT8", "FLOAT", "INT64", "DOUBLE"))
NUMBER, SIDE = 5, 8
GOOD: dict[str, Any] = {
    "classes": ["apple", "pear"],
    "image_size": [SIDE, SIDE],
    "antialias": True,
    "postprocess": {"max_detections": NUMBER},
    "outputs": FINAL_OUTPUTS,
}
SHAPES = {
    "boxes": (F32, [NUMBER, 4]),
    "labels": (I64, [NUMBER]),
    "scores": (F32, [NUMBER]),
    "count": (I64, []),
    "all_scores": (F32, [6, 2]),
    "all_boxes": (F32, [6, 4]),
}
"""Type and shape of each output for one picture."""

PICTURE = np.zeros((9, 7, 3), np.uint8)


def graph(
    path: Path,
    metadata: object,
    names: tuple[str, ...] = tuple(FINAL_OUTPUTS),
    image: tuple[str, int, list[Any]] = (INPUT, U8, ["batch", 3, SIDE, SIDE]),
    declared: dict[str, tuple[int, list[int]]] | None = None,
    values: dict[str, float] | None = None,
    lengths: dict[str, list[int]] | None = None,
) -> Path:
    """Write a graph that gives the same numbers for each picture.

    Args:
        path: file to write.
        metadata: the description; a text is written as it is.
        names: of the outputs.
        image: name, type and shape of the input.
        declared: types and shapes of outputs that differ from ``SHAPES``.
        values: numbers in the outputs; 1 where there are none.
        lengths: shapes that outputs have without declaring them.
    """
    nodes, outputs, constants = [make_node("Shape", [image[0]], ["one_axis"], end=1)], [], []
    for name in names:
        kind, shape = {**SHAPES, **(declared or {})}[name]
        real = (lengths or {}).get(name, shape)
        value = make_tensor("value", kind, [1], [(values or {}).get(name, 1)])
        constants.append(make_tensor(f"{name}_rest", I64, [len(real)], real))
        nodes.append(make_node("Concat", ["one_axis", f"{name}_rest"], [f"{name}_shape"], axis=0))
        # ONNX Runtime must not see the shape in advance, or it would refuse another one.
        nodes.append(make_node("ConstantOfShape", [f"{name}_shape"], [name], value=value))
        outputs.append(make_tensor_value_info(name, kind, ["batch", *shape]))
    made = make_graph(nodes, "detector", [make_tensor_value_info(*image)], outputs, constants)
    proto = make_model(made, opset_imports=[make_opsetid("", 18)], ir_version=9)
    set_model_props(proto, {METADATA_KEY: metadata if isinstance(metadata, str) else json.dumps(metadata)})
    onnx.save(proto, path)
    return path


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


def test_a_file_that_is_in_order(tmp_path: Path):
    detector = OnnxDetector(graph(tmp_path / "a.onnx", GOOD, values={"labels": 2, "count": 3}))
    assert (detector.classes, detector.image_size, detector.antialias) == (("apple", "pear"), (SIDE, SIDE), True)
    assert detector.settings.max_detections == NUMBER
    assert detector.predict(PICTURE).names == ("pear",) * 3
    assert len(detector.predict([PICTURE] * 3)) == 3
    with pytest.raises(ValueError, match=r"^images: expected \(8, 8\) pixels"):
        detector.outputs(torch.zeros(1, 3, 8, 9, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ("hello", "metadata"),
        ("", "metadata"),
        ("[]", "metadata"),
        ("3", "metadata"),
        ("null", "metadata"),
        ("[" * 100_000, "metadata"),
        ("[" * 500 + "]" * 500, "metadata"),
        (f"[{'1,' * 99_999}1]", "metadata"),
        (json.dumps({**GOOD, "x": "x" * 2**18}), "metadata"),
        ({}, "classes"),
        *((without(key), key) for key in GOOD),
        *(
            ({**GOOD, "classes": classes}, "classes")
            for classes in (3, "abc", None, [], [7, 8], [["a"], ["b"]], [{"a": 1}, None], ["a", "a"], {"a": 1, "b": 2})
        ),
        *(
            ({**GOOD, "image_size": size}, "image_size")
            for size in ("ab", "a\nb", None, [], [1, 2, 3], [-8, 8], [8.0, 8], [True, 8], [10**9, 10**9], {"8": 8})
        ),
        ({**GOOD, "image_size": [8, 16]}, INPUT),
        *(({**GOOD, "antialias": value}, "antialias") for value in (None, 1, "false", [])),
        *(
            ({**GOOD, "postprocess": value}, "postprocess")
            for value in (3, [1], "x", {"foo": 1}, {"max_detections": 10**12}, {"class_agnostic": 1})
        ),
        ({**GOOD, "postprocess": {"score_threshold": "x"}}, "score_threshold"),
        ({**GOOD, "postprocess": {"nms_threshold": float("nan")}}, "nms_threshold"),
        ({**GOOD, "postprocess": {}}, "boxes"),
        ({**GOOD, "postprocess": None}, "outputs"),
        *(
            ({**GOOD, "outputs": value}, "outputs")
            for value in (None, 3, "boxes", ["zzz"], {}, RAW_OUTPUTS, {**FINAL_OUTPUTS, "more": ""})
        ),
    ],
)
def test_metadata_that_no_export_writes(tmp_path: Path, metadata: object, key: str):
    path = graph(tmp_path / "a.onnx", metadata)
    with refused("checkpoint", path, key):
        OnnxDetector(path)


RAW = {**GOOD, "postprocess": None, "outputs": RAW_OUTPUTS}


@pytest.mark.parametrize(
    ("metadata", "changes", "key"),
    [
        (GOOD, {"image": ("pictures", U8, ["batch", 3, SIDE, SIDE])}, INPUT),
        (GOOD, {"image": (INPUT, F32, ["batch", 3, SIDE, SIDE])}, "tensor(float)"),
        (GOOD, {"image": (INPUT, U8, ["batch", 1, SIDE, SIDE])}, INPUT),
        (GOOD, {"image": (INPUT, U8, ["batch", 3, SIDE, "width"])}, INPUT),
        (GOOD, {"image": (INPUT, U8, [1, 3, SIDE, SIDE])}, INPUT),
        (GOOD, {"image": (INPUT, U8, ["batch", 3, SIDE])}, INPUT),
        (GOOD, {"names": ("boxes", "labels", "scores")}, "count"),
        (GOOD, {"names": (*FINAL_OUTPUTS, "all_boxes")}, "all_boxes"),
        (GOOD, {"names": tuple(RAW_OUTPUTS)}, "boxes"),
        (GOOD, {"declared": {"boxes": (F32, [NUMBER, 5])}}, "boxes"),
        (GOOD, {"declared": {"boxes": (F32, [4])}}, "boxes"),
        (GOOD, {"declared": {"scores": (F64, [NUMBER])}}, "scores"),
        (GOOD, {"declared": {"labels": (F32, [NUMBER])}}, "labels"),
        (GOOD, {"declared": {"count": (I64, [1])}}, "count"),
        (RAW, {}, "all_scores"),
        (RAW, {"names": tuple(RAW_OUTPUTS), "declared": {"all_scores": (F32, [6, 3])}}, "all_scores"),
        (RAW, {"names": tuple(RAW_OUTPUTS), "declared": {"all_boxes": (F32, [7, 4])}}, "all_boxes"),
        (RAW, {"names": tuple(RAW_OUTPUTS), "declared": {"all_scores": (F32, [12])}}, "all_scores"),
    ],
)
def test_graphs_that_no_export_writes(tmp_path: Path, metadata: object, changes: dict[str, Any], key: str):
    path = graph(tmp_path / "a.onnx", metadata, **changes)
    with refused("checkpoint", path, key):
        OnnxDetector(path)


def test_a_graph_without_post_processing_is_read(tmp_path: Path):
    path = graph(tmp_path / "a.onnx", RAW, names=tuple(RAW_OUTPUTS))
    detector = OnnxDetector(path)
    assert detector.outputs(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))["all_scores"].shape == (2, 6, 2)
    with refused("checkpoint", path, "raw=true"):
        detector.predict(PICTURE)
    with refused("checkpoint", path, "raw=true"):
        _ = detector.settings


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"values": {"labels": 3}}, "labels"),
        ({"values": {"labels": 0}}, "labels"),
        ({"values": {"labels": -1}}, "labels"),
        ({"values": {"boxes": float("nan")}}, "finite"),
        ({"values": {"scores": float("inf")}}, "finite"),
        # With NaN among the weights, no detection is valid.
        ({"values": {"scores": float("nan"), "count": 0}}, "finite"),
        ({"values": {"boxes": float("nan"), "count": 0}}, "finite"),
        ({"values": {"scores": 1.5}}, "0 … 1"),
        ({"values": {"scores": 0}}, "0 … 1"),
        ({"values": {"boxes": -0.5}}, "0 … 1"),
        ({"values": {"boxes": 1.5}}, "0 … 1"),
        ({"lengths": {"boxes": [NUMBER, 3]}}, "boxes"),
        ({"lengths": {"scores": [NUMBER + 1]}}, "scores"),
        ({"lengths": {"labels": [-7]}}, ""),
    ],
)
def test_graphs_that_give_no_detections(tmp_path: Path, changes: dict[str, Any], key: str):
    path = graph(tmp_path / "a.onnx", GOOD, **changes)

    def act():
        return OnnxDetector(path).predict(PICTURE)

    with refused("checkpoint", path, key):
        act()


def test_a_graph_that_cannot_be_measured_in_two_parts(tmp_path: Path):
    path = graph(tmp_path / "a.onnx", GOOD)
    with refused("checkpoint", path, "ONNX Runtime"):
        onnx_runner(OnnxDetector(path), "a", 1, 1)
